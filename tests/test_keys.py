"""No key without effect and no data but the user's: what he set is read, or it is refused with the reason, in
every task."""
import contextlib
import multiprocessing
import shutil

import numpy as np
import pytest
import yaml
from runs import again, done, end, go, surroundings

from workbench.core.config import presets
from workbench.errors import Refused
from workbench.core.stages.stages import complete, stages
from workbench.core.checks.check import check
from workbench.core.setup.plan import plan
from workbench.core.run.folder import config_of, create
from workbench.files import read_json
from workbench.lab import cli
from workbench.lab.run.plan_tables import data_line

SIXTH = {"task": "heedless", "trackers": [], "train": {"epochs": 1, "batch_size": 8, "lr": 0.01}}


def mistakes(raw, overrides=""):
    "The lines with which a configuration is refused before anything is read."
    with pytest.raises(Refused) as e:
        complete(raw, overrides)
    return str(e.value).splitlines()


def file_of(tmp_path, tree, name="mine.yaml"):
    (tmp_path / name).write_text(yaml.safe_dump(tree))
    return str(tmp_path / name)


# What the user set

def test_only_what_the_user_set_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "device_kind", lambda: "cpu")
    assert presets.load("t5_base").asked == []
    assert presets.load("t5_base", "train.lr=1e-3 model.lora={}").asked == ["train.lr", "model.lora"]
    file_of(tmp_path, {"extends": "t5_base", "train": {"lr": 1e-3}, "on_cpu": {"train": {"workers": 1}}},
            "base.yaml")
    mine = file_of(tmp_path, {"extends": "base.yaml", "model": {"params": {"num_layers": 2}}})
    cfg = presets.load(mine, "seed=1")
    assert cfg.asked == ["train.lr", "model.params", "train.workers", "seed"] and cfg.train.workers == 1
    assert presets.resolve(yaml.safe_load(presets.dump(cfg)), "again", {"seed": 2}).asked == cfg.asked
    monkeypatch.setattr(presets, "device_kind", lambda: "cuda")
    assert "train.workers" not in presets.load(mine).asked


def test_the_users_file_wins_over_a_presets_on_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "device_kind", lambda: "cpu")
    cfg = presets.load(file_of(tmp_path,
                               {"extends": "t5_base", "train": {"batch_size": 6}, "valid": {"rows": 5}}))
    assert (cfg.train.batch_size, cfg.valid.rows, cfg.valid.batch_size) == (6, 5, 8)
    assert "train.batch_size" not in cfg.notes[0] and "valid.batch_size=8" in cfg.notes[0]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_preset_copied_and_written_out_whole_is_valid(tmp_path, monkeypatch, device):
    monkeypatch.setattr(presets, "device_kind", lambda: device)
    for name in presets.presets():
        shutil.copy(presets.find(name), tmp_path / f"copy_of_{name}.yaml")
        cfg = complete(str(tmp_path / f"copy_of_{name}.yaml"))
        other = {"asked", "preset"}
        same = cfg.model_dump(exclude=other) == presets.load(name).model_dump(exclude=other)
        # there the copy's own keys win over the on_cpu of what it extends
        assert cfg.asked and (same or device == "cpu")
        if name != "spade_off_on":  # its parent's keys of the flow are of no use to it
            complete(file_of(tmp_path, presets.read_file(presets.find(name))))


def test_a_runs_own_configuration_is_a_file_as_any_other(tmp_path):
    # generate.ctc of the preset counts for nothing
    run = create(complete("t5_tiny", "model.ctc=false seed=4"), tmp_path / "run")
    cfg = complete(str(run / "config.yaml"), "train.lr=1e-3")
    assert cfg.asked == ["model.ctc", "seed", "train.lr"] and config_of(run).asked == cfg.asked[:2]
    assert mistakes(str(run / "config.yaml"), "loss.ctc=0.3") == [
        "`loss.ctc` counts for nothing without model.ctc=true: set that, or leave this out."]


# Reasons that are known

IDLE = {
    "t5_tiny": {
        "train.batch_size=8 train.batch_tokens=3000": "`train.batch_size` counts for nothing beside "
                                                      "`train.batch_tokens`: leave one out",
        "train.optimizer.lr=1e-3 train.lr=1e-4": "`train.lr` counts for nothing where every optimiser has an "
                                                 "`lr` of its own",
        "train.optimizer.momentum=0.9": "`train.optimizer.momentum` counts for nothing with AdamW: it is of "
                                        "SGD, RMSprop",
        "train.optimizer='{type: SGD, eps: 1e-6}'": "`train.optimizer.eps` counts for nothing with SGD",
        "train.optimizer='{type: Lion, amsgrad: true}'": "`train.optimizer.amsgrad` counts for nothing with "
                                                         "Lion",
        "train.optimizer.weight_decay=0.1 train.optimizers.translate.lr=0.1":
            "`train.optimizer.weight_decay` counts for nothing where `train.optimizers` has",
        "train.scheduler.milestones=[3]": "`train.scheduler.milestones` counts for nothing with cosine",
        "train.scheduler='{type: StepLR, warmup: 9}'": "`train.scheduler.warmup` counts for nothing with "
                                                       "StepLR",
        "valid.every=null train.early_stopping.patience=3": "`train.early_stopping.patience` counts for "
                                                            "nothing where `valid.every` is null",
        "valid.every=null valid.rows=7": "`valid.rows` counts for nothing where `valid.every` is null",
        "model.ctc=false loss.ctc=0.3": "`loss.ctc` counts for nothing without model.ctc=true",
        "model.strides=[] model.kernel=7": "`model.kernel` counts for nothing without `model.strides`",
        "model.vocab_size=80": "`model.vocab_size` counts for nothing with model.tokenizer_kind=char",
        "model.tokenizer=t5-base model.tokenizer_kind=bpe": "`model.tokenizer_kind` counts for nothing "
                                                            "beside `model.tokenizer`",
        "data.augment.tilt=3": "`data.augment.tilt` counts for nothing with data.dims=2"},
    "tts_tiny": {
        "loss.pitch_weight=0.3": "`loss.pitch_weight` counts for nothing without model.pitch=true",
        "model.decoder.kind=flow loss.mel=l1": "`loss.mel` counts for nothing with",
        "data.times=samples loss.align_weight=0.5": "`loss.align_weight` counts for nothing beside "
                                                    "`data.times`"},
    "flow_tiny": {
        "loss.r1_gamma=2": "`loss.r1_gamma` counts for nothing without gan_training",
        "loss.lambda_lpips=0.3": "`loss.lambda_lpips` counts for nothing without use_lpips",
        "data.label_key=cls": "`data.label_key` counts for nothing where",
        "data.source=a-{000..003}.tar data.column=am": "`data.column` counts for nothing with shards",
        "model.flow.kind=unet model.flow.mlp=2.0": "`model.flow.mlp` counts for nothing with "
                                                   "model.flow.kind=unet",
        "train.max_steps=3": "`train.max_steps` (`max_steps`) counts for nothing where every step of the "
                             "pipeline that could use it has its own",
        "pipeline.steps.flow.loss.kl_beta=0.1": "pipeline step `flow`: `loss.kl_beta` counts for nothing in "
                                                "a stage that trains no reconstruction",
        "pipeline.steps.vae_off.cfg_dropout_prob=0.5": "pipeline step `vae_off`: `loss.cfg_dropout_prob` "
                                                       "counts for nothing in a stage that trains no flow",
        "pipeline.steps.flow.lr=1e-4": "pipeline step `flow`: `train.lr` (`lr`) counts for nothing where "
                                       "every optimiser has an `lr` of its own",
        "pipeline.steps.vae_on.transition_on='{mode: epoch, value: 3, window: 5}'": "pipeline step `vae_on`: "
                                                                                    "`transition_on.window` "
                                                                                    "counts for nothing"}}


@pytest.mark.parametrize("preset, overrides", [(p, o) for p, cases in IDLE.items() for o in cases])
def test_a_key_that_counts_for_nothing_is_refused_with_the_reason(preset, overrides):
    found = mistakes(preset, overrides)
    assert len(found) == 1 and found[0].startswith(IDLE[preset][overrides]), found


@pytest.mark.parametrize("preset, overrides, key", [
    ("t5_tiny", "generate.length_penalty=2.0", "generate.length_penalty"),
    ("tts_tiny", "speak.steps=4", "speak.steps"),
    ("tts_tiny", "data.text='{kind: characters, voice: de}'", "data.text.voice"),
    ("flow_tiny", "sample.sampler=adaptive sample.steps=4", "sample.steps")])
def test_a_key_of_a_later_use_is_noted(preset, overrides, key):
    """A run may be asked for other texts, voices and pictures later: the plan says that the training has no
    use for the key."""
    notes = [note for stage in stages(complete(preset, overrides)) for note in stage.notes]
    assert [note for note in notes if note.startswith(f"`{key}` counts for nothing")], notes


def test_saying_none_of_what_does_not_happen_is_no_mistake():
    complete("tts_tiny", "model.freeze_base_rows=false loss.pitch_weight=0")
    complete("flow_tiny", "loss.r1_gamma=0 loss.lambda_lpips=0")


def test_all_of_them_in_one_pass_with_other_mistakes(tmp_path):
    found = mistakes(file_of(tmp_path, {"extends": "t5_tiny", "model": {"ctc": False}, "loss": {"ctc": 0.3},
                                        "train": {"lrr": 1}}), "train.optimizer.alpha=0.5")
    assert len(found) == 3 and [w in " ".join(found)
                                for w in ("`train.lrr`", "`loss.ctc`",
                                          "`train.optimizer.alpha`")] == [True] * 3


def test_what_counts_somewhere_is_right():
    for preset, overrides in (("flow_tiny", "loss.kl_beta=0.1 loss.cfg_dropout_prob=0.2 train.lr=1e-3 "
                                            "sample.steps=4 data.retries=2"),
                              ("flow_tiny", "pipeline.only=[vae_off] sample.steps=4 "
                                            "pipeline.steps.flow.loss.cfg_dropout_prob=0.3"),
                              ("t5_base", "train.batch_tokens=900 valid.batch_size=4 "
                                          "train.optimizer={type:\\ RMSprop} model.vocab_size=300"),
                              ("t5_tiny", "generate.num_beams=3 generate.length_penalty=1.0 data.dims=3 "
                                          "data.augment.tilt=3"),
                              ("tts_small", "loss.pitch_weight=0.3 loss.energy_weight=0.2")):
        complete(preset, overrides)


def test_a_document_names_its_own_words(tmp_path):
    "The default data set lists keys of both types; what a stage sets in vain is named in its words."
    steps = [{"name": "vae", "n_epochs": 1, "train_vae": True, "lr": 1e-3, "r1_interval": 4},
             {"name": "draw", "n_epochs": 1, "train_diff": True, "kl_beta": 0.5}]
    words = {"type": "local", "image_folder": "pictures", "captions_file": "c.tsv", "webdataset_url": "x.tar",
             "webdataset_image_key": "png", "webdataset_label_key": "cls"}
    found = mistakes(file_of(tmp_path,
                             {"training": {"batch_size": 4}, "data": words, "pipeline": {"steps": steps}}))
    assert [line.partition(" counts")[0] for line in found] == ["pipeline step `vae`: `loss.r1_interval`",
                                                                "pipeline step `draw`: `loss.kl_beta`"]


# What nothing read

def sixth(overrides):
    return complete(SIXTH, overrides)


def test_a_sixth_task_is_asked_for_each_key_and_no_read_one_is_refused():
    """A key that a row, a loss, a prediction, a score, a trivial answer or a preview reads has an effect; the
    ghost has none."""
    read = "width=9 jitter=0.1 power=3 digits=4 norm_of=abs trivial=2 look.color=red look.width=2 noise=0.1"
    found = {c.name: c for c in check(sixth(read))}
    assert "keys" not in found and all(c.state != "failed" for c in found.values())
    found = {c.name: c for c in check(sixth(read + " ghost=0.5"))}
    assert found["keys"].state == "failed" and "`ghost` has no effect: nothing reads it" in found["keys"].says
    assert found["keys"].says.count("has no effect") == 1
    assert "keys" not in {c.name for c in check(sixth("ghost=0.0"))}  # as it is anyway


def test_the_check_and_the_run_end_with_2(tmp_path, capsys):
    file = file_of(tmp_path, SIXTH)
    assert cli.main(["check", file, "--overrides",
                     "ghost=0.5"]) == 2 and "`ghost` has no effect" in capsys.readouterr().out
    with surroundings(""):
        status = end(go(tmp_path / "run", "ghost=0.5", base=SIXTH))
    assert (status["state"] == "failed" and status["refused"] and "`ghost` has no effect" in status["error"]
            and not status["step"])


def test_a_row_in_another_process_reads_the_same_configuration():
    "The sections are pickled as ever, also while they are watched."
    from workbench.core.config.read_keys import ReadKeys

    stage = stages(sixth("power=3"))[0]
    with ReadKeys().during(stage), multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(repr, (stage.cfg.look,)) == repr(stage.cfg.look)


PIPED = ("train.epochs=null pipeline.steps='[{name: one, objectives: [fit], freeze: [judge], "
         "train: {epochs: 1}}, {name: two, objectives: [fit], freeze: [head], train: {epochs: 1}}]'")


def test_a_pipeline_is_told_at_its_last_stage_and_not_stopped(tmp_path):
    "A later stage may read a key of the run; who waits for hours shall not lose them to it."
    with surroundings(""):
        run = done(go(tmp_path / "run", f"{PIPED} check=true ghost=0.5 power=3", base=SIXTH))
    told = [c for c in read_json(run / "checks.json") if c["name"] == "keys"]
    assert ([(c["stage"], c["state"]) for c in told] == [("two", "warned")] and "`ghost`" in told[0]["says"]
            and "power" not in told[0]["says"])


def test_what_was_asked_is_kept_by_a_resume(tmp_path):
    run = done(go(tmp_path / "run", "width=6"))
    done(again(run, "train.epochs=4 valid.rows=5"))
    asked = config_of(run).asked
    assert ("width" in asked and asked[-1] == "valid.rows"
            and read_json(run / "status.json")["changed"] == ["train.epochs 3 → 4", "valid.rows None → 5"])
    with pytest.raises(Refused, match="`train.optimizer.alpha` counts for nothing with AdamW"):
        again(run, "train.optimizer.alpha=0.5")


# The plan

def signs(folder, rows=6, header="uid,text", more=""):
    "A table and poses of the user's."
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(folder.name))
    names = [f"{folder.name}{i}" for i in range(rows)]
    for name in names:
        np.save(folder / f"{name}.npy", rng.normal(size=(30, 76, 2)))
    (folder / "mine.csv").write_text("\n".join([header, *(f"{name},say {name} again{more}"
                                                          for name in names)]) + "\n")
    return folder / "mine.csv"


def own(overrides):
    return complete("t5_tiny", f"data.languages=null data.trim=false {overrides}")


def test_tables_without_a_source_are_the_users(tmp_path, monkeypatch):
    table = signs(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    found = plan(own("data.train_path=set/mine.csv"))
    assert found["data"]["source"] == str(tmp_path / "set") and sum(found["splits"].values()) == 6
    signs(tmp_path / "held", 3)
    poses = list(tmp_path.glob("*/*.npy"))
    (tmp_path / "all").mkdir()
    for path in poses:
        shutil.copy(path, tmp_path / "all")
    cfg = own("data.train_path=set/mine.csv data.val_path=held/mine.csv data.pose_dir=all")
    monkeypatch.chdir(tmp_path / "set")  # a run may be resumed from another folder
    assert plan(cfg)["splits"] == {"train": 6, "valid": 3} and cfg.data.pose_dir == str(tmp_path / "all")
    assert (plan(own(f"data.train_path={table} data.source=samples"))["data"]["source"]
            == str(tmp_path / "set"))


@pytest.mark.parametrize("overrides, says", [
    ("data.train_path=gone.csv", "data.train_path: .*gone.csv: there is no such table"),
    ("data.val_path=gone.csv", "no table to train on: set data.train_path"),
    ("data.test_path=gone.csv", "data.test_path is named, and no table"),
    ("data.pose_dir=.", "data.pose_dir is named, and no table")])
def test_the_samples_never_stand_in(overrides, says):
    with pytest.raises(Refused, match=says):
        plan(complete("t5_tiny", overrides))


def test_captions_and_several_folders_of_pictures_are_not_replaced(tmp_path):
    (tmp_path / "mine.tsv").write_text("a.png\ta red house\n")
    with pytest.raises(Refused, match="data.captions is .*mine.tsv, and data.source is `samples`"):
        plan(complete("flow_tiny", f"data.captions={tmp_path}/mine.tsv"))
    with pytest.raises(Refused, match="data.source names 2 folders, and one is read"):
        plan(complete("flow_tiny", f"data.source=[{tmp_path},{tmp_path.parent}]"))


@pytest.mark.parametrize("preset, key", [
    ("t5_tiny", "data.source"), ("t5_tiny", "data.train_path"), ("t5_tiny", "data.pose_dir"),
    ("t5_tiny", "run_dir"), ("t5_tiny", "begin_from"),
    ("t5_tiny", "model.name"), ("t5_tiny", "model.tokenizer"), ("tts_tiny", "data.source"),
    ("tts_tiny", "data.times"), ("tts_tiny", "model.base"),
    ("tts_tiny", "speak.asr"), ("flow_tiny", "data.source"), ("flow_tiny", "data.captions"),
    ("flow_tiny", "data.column"), ("flow_tiny", "model.text.encoder")])
def test_a_path_that_names_nothing_is_refused(preset, key):
    for nothing in ("", "'\"  \"'"):
        found = mistakes(preset, f"{key}={nothing}")
        assert any(f"`{key}" in line and "it names nothing" in line for line in found), found


def test_the_plan_judges_what_data_and_nets_read(tmp_path):
    table = signs(tmp_path / "set")
    with pytest.raises(Refused, match="`data.languages` has no effect: no table has a column `lang`"):
        plan(complete("t5_tiny", f"data.train_path={table} data.trim=false data.languages=[en]"))
    # the preset's languages are not the user's
    plan(complete("t5_tiny", f"data.train_path={table} data.trim=false"))
    spoken = signs(tmp_path / "spoken", header="uid,text,lang", more=",en")
    plan(complete("t5_tiny", f"data.train_path={spoken} data.trim=false data.languages=[en]"))


def test_a_tokenizer_that_is_read_has_no_kind_to_choose(tmp_path):
    """Where the weights may be random the kind is what a tokenizer is trained as; where they may not, it
    counts for nothing."""
    from workbench.core.config.read_keys import ReadKeys
    from workbench.tasks.sign.texts import text_tokenizer

    for init, read in (("scratch", True), ("auto", True), ("pretrained", False)):
        stage, reads = stages(presets.load("t5_tiny", f"model.init={init}"))[0], ReadKeys()
        with reads.during(stage), contextlib.suppress(Refused):  # the hub is not at hand
            text_tokenizer(stage.cfg, None, ["a text"])
        assert ("model.tokenizer_kind" in reads.keys["train"]) == read


def test_what_a_run_takes_from_another_is_no_mistake(tmp_path):
    "Its tokenizer is that of the other run: the same kind is right, another has no effect."
    first = complete("t5_tiny", f"data.train_path={signs(tmp_path / 'set')} data.languages=null "
                                "data.trim=false model.tokenizer_kind=bpe model.vocab_size=60")
    run = create(first, tmp_path / "first")
    from workbench.core.setup.prepare import prepare
    from workbench.core.setup.resume import save
    from workbench.core.setup.state import Optimisation

    save(run, prepare(run), Optimisation())
    next_one = str(run / "config.yaml")
    plan(complete(next_one, f"begin_from={run}"))
    with pytest.raises(Refused, match="`model.vocab_size` has no effect: the tokenizer is not trained here"):
        plan(complete(next_one, f"begin_from={run} model.vocab_size=70"))


# Whose data it is

def test_the_first_line_says_whose_data_it_is(tmp_path, capsys):
    assert cli.main(["plan", file_of(tmp_path, SIXTH)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("data  made by the task heedless · train 66 · valid 11 · test 7 rows · "
                            "fingerprint ")
    assert first == "data  " + data_line(plan(complete(SIXTH)))
    other = plan(complete(SIXTH, "data.first=300"))
    assert other["data"]["fingerprint"] != plan(complete(SIXTH))["data"]["fingerprint"]  # other rows


def test_the_lines_of_samples_and_of_a_folder(tmp_path):
    assert data_line(plan(complete("t5_tiny",
                                   "data.languages=[ukl]"))).startswith("samples of the package (sign, ukl) "
                                                                        "· train ")
    table = signs(tmp_path / "set")
    found = data_line(plan(own(f"data.train_path={table}")))
    assert found.startswith(f"{tmp_path / 'set'} · train ") and " rows · fingerprint " in found
