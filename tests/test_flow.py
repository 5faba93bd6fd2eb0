"""Text to image in real runs: the three stages on a few pictures, killed in each, in the document's words,
from shards, spoilt.
Each fault of the public project has a test that shows it cannot happen; its docstring begins with `Fault`."""
import csv
import random
import shutil
import tarfile
import types

import numpy as np
import pytest
import runs as started
import torch
import yaml
from conftest import some
from runs import done, end, lines, same_bits, tensors

import workbench
from workbench.core.run import checkpoint
from workbench.core.config import presets
from workbench.errors import Refused
from workbench.core.setup.plan import plan
from workbench.core.data.rows import shared_rows
from workbench.core.run.folder import metrics_of
from workbench.files import read_json, samples
from workbench.lab import cli
from workbench.lab.run import launch
from workbench.parts.image.files import read_picture
from workbench.parts.image.rows import read_folder
from workbench.parts.image.shards import write_shards
from workbench.tasks.flow import data as flow_data

SMALL = {"vae": {"width": 8, "latent": 4, "downs": 2, "blocks": [0, 1, 1], "hidden": 8},
         "flow": {"width": 32, "depth": 1, "heads": 2},
         "text": {"vocab": 120, "width": 32, "layers": 1, "heads": 2}, "critic": {"width": 8, "layers": 1}}
STEPS = [{"name": "off", "train_vae": True, "gan_training": True,
          "freeze": ["flow_processor", "text_encoder"], "max_steps": 5},
         {"name": "on", "train_vae": True, "train_spade": True, "max_steps": 4,
          "freeze": ["flow_processor", "text_encoder", "discriminator"]},
         {"name": "flow", "train_flow": True, "max_steps": 5,
          "freeze": ["compressor", "expander", "discriminator"],
          "optimization": {"optimizers": {"flow": {"type": "AdamW", "lr": 1e-3},
                                          "text_encoder": {"type": "Lion", "lr": 1e-4}},
                           "schedulers": {"flow": {"type": "CosineAnnealingLR", "eta_min_factor": 0.1}}}}]


def stage_at(step):
    "The stage that is killed after so many steps of the run, and whether a checkpoint was due there."
    ends = [5, 9, 14]  # sums of `max_steps`
    return {next(s["name"] for s, last in zip(STEPS, ends) if step <= last), step % 3 == 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("flow")


@pytest.fixture(scope="module")
def home(folder):
    "Forty real pictures with captions, twelve of them held out."
    home, pack = folder / "pictures", samples("emoji")
    rows = [r for r in (pack / "train.tsv").read_text(encoding="utf8").splitlines() if "\tnoto\t" in r]
    (home / "images").mkdir(parents=True)
    for split, part in (("train", rows[100:128]), ("valid", rows[300:306]), ("test", rows[400:406])):
        lines = ["image\tcaption", *("\t".join(r.split("\t")[:2]) for r in part)]
        (home / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf8")
        for row in part:
            shutil.copy(pack / row.split("\t")[0], home / "images")
    return home


@pytest.fixture(autouse=True)
def one_cache(own_runs, folder, monkeypatch):
    "Sizes are read once for all tests of this module."
    monkeypatch.setenv("WORKBENCH_RUNS", str(folder / "runs"))


def config(home, overrides="", **more):
    base = {"task": "flow", "check": False, "trackers": [],
            "data": {"source": str(home), "sizes": [16], "length": 12, "retry_wait": 0},
            "model": SMALL, "loss": {"cfg_dropout_prob": 0.2, "r1_interval": 2},
            "sample": {"steps": 2, "guidance": 2.0},
            "train": {"minutes": None, "batch_size": 8, "lr": 1e-3, "ema": 0.9, "log_every": 1,
                      "checkpoint_every": 3, "keep": None},
            "valid": {"every": 4, "batch_size": 6}, "pipeline": {"steps": STEPS}}
    return presets.merge(presets.merge(base, more), presets.parse_overrides(overrides))


def go(folder, cfg, trap="", nproc=1):
    with started.surroundings(trap):
        return launch.start(cfg, "", folder, nproc)


@pytest.fixture(scope="module")
def straight(folder, home):
    "The three stages, uninterrupted."
    return done(go(folder / "straight", config(home) | {"task": "trapped_flow"}))


def test_a_trained_run_draws_captions(straight, tmp_path, capsys):
    "The same caption and seed give the same picture, alone and in company; one that says nothing is named."
    out = tmp_path / "drawn"
    assert cli.main(["use", str(straight), "red heart", " ", "grinning face", "--out", str(out),
                     "--checkpoint", "last",
                     "--overrides", "sample.guidance=1 sample.sizes=[16,[24,16]]"]) == 2
    assert "nothing to draw" in capsys.readouterr().err
    names = sorted(p.name for p in out.glob("*.png"))
    assert [n[5:] for n in names] == ["red-heart-2.png", "red-heart.png", "grinning-face-2.png",
                                      "grinning-face.png"]
    alone, wide = workbench.use(straight, "grinning face", checkpoint="last",
                                overrides="sample.guidance=1 sample.sizes=[16,[24,16]]")
    assert alone.made.shape == (16, 16, 3) and wide.made.shape == (16, 24, 3)
    file = out / next(n for n in names if n.endswith("face.png"))
    drawn = np.asarray(read_picture(file.read_bytes(), "drawn"))
    assert abs(drawn.astype(int) - alone.made).max() <= 1
    other = next(workbench.use(straight, "grinning face", checkpoint="last", seed=5,
                               overrides="sample.guidance=1"))
    assert (other.made != alone.made).any()
    with pytest.raises(Refused, match="`train.lr` cannot be changed"):
        workbench.use(straight, "red heart", overrides="train.lr=1")
    first = next(p.name for p in sorted((straight / "checkpoints").iterdir()) if p.name.startswith("step_"))
    with pytest.raises(Refused, match="trains no flow"):
        list(workbench.use(straight, "red heart", checkpoint=first))


# The stages

def test_each_stage_moves_its_nets_alone(straight):
    ends = {s["name"]: tensors(straight, checkpoint.end_of(s["name"]), ["net"]) for s in STEPS}
    first = tensors(straight, "step_00000003", ["net"])

    def moved(a, b, net):
        return {k for k in a if k.startswith(f"net.{net}") and not (a[k] == b[k]).all()}

    assert moved(first, ends["off"], "compressor") and moved(first, ends["off"], "discriminator")
    assert not any("spade" in k for k in moved(first, ends["off"], "expander"))
    assert any("spade" in k for k in moved(ends["off"], ends["on"], "expander"))
    assert not moved(ends["off"], ends["on"], "flow_processor")
    # a stage begins with the averages of the one before
    handed = tensors(straight, checkpoint.end_of("on"), ["ema"])
    for net in ("compressor", "expander"):
        assert all((ends["flow"][k] == handed[k.replace("net.", "ema.", 1)]).all()
                   for k in ends["flow"] if k.startswith(f"net.{net}"))
    parts = {s["name"]: metrics_of(straight, "train")[i] for s, i in zip(STEPS, (0, 6, 12))}
    assert {"vae_loss", "recon_loss", "kl_loss", "generator_loss", "discriminator_loss", "r1_loss",
            "lr/discriminator"} <= parts["off"].keys()
    assert "generator_loss" not in parts["on"]
    assert {"flow_loss", "lr/flow", "lr/text_encoder"} <= parts["flow"].keys()
    assert [r["r1_loss"] > 0 for r in metrics_of(straight, "train")[:5]] == [True, False, True, False, True]


def test_what_a_person_sees(straight):
    seen = {p.parent.name: {f.name for f in p.parent.iterdir()} for p in straight.glob("previews/*/*")}
    assert seen["step_00000005"] == {"reconstructions.png"}
    assert seen["step_00000014"] == {"reconstructions.png", "drawings_16x16.png", "path.png"}
    results = read_json(straight / "results.json")["splits"]["test"]
    assert ({"retrieval_rank", "frechet", "flow_loss"} <= results["scores"].keys()
            and abs(results["baseline"]["retrieval_rank"] - 0.5) < 0.25)
    assert {"retrieval_rank"} <= results["control"].keys()
    with open(straight / "predictions" / "test.csv", encoding="utf8") as f:
        assert next(csv.DictReader(f))["hypothesis"] == "drawing of 16 × 16"
    record = read_json(straight / "stages.json")
    assert [(r["stage"], r["steps"], r["ended"])
            for r in record] == [("off", 5, "5 steps"), ("on", 4, "4 steps"), ("flow", 5, "5 steps")]
    assert all(r["gb_freed"] > 0 for r in record[:2])


def test_loaded_in_one_line(straight):
    nets, data = workbench.load(straight)
    batch = data.collate([data.datasets["test"][i, 0] for i in range(4)])
    with torch.no_grad():
        mean, _ = nets["compressor"](batch["image"])
        assert nets["expander"](mean, True).shape == batch["image"].shape
    assert set(nets) == {"compressor", "expander", "flow_processor", "text_encoder", "discriminator"}


@pytest.mark.parametrize("step", some(random.Random(5).sample(range(1, 14), 13), stage_at))
def test_killed_anywhere(straight, folder, home, step):
    """Fault: averages not restored, the position in a stage lost.
    Killed in any stage, the losses and all bits are the uninterrupted run's."""
    run = folder / f"killed_{step}"
    assert end(go(run, config(home) | {"task": "trapped_flow"}, trap=str(step)))["state"] == "died"
    done(started.again(run))
    assert lines(run) == lines(straight) and same_bits(tensors(run), tensors(straight))
    assert tensors(run, "last", ["assets"]).keys() == {"assets|latent_mean", "assets|latent_std"}


def test_the_documents_file_word_for_word(straight, folder, home):
    "`training: pipeline:`, defaults, datasets, transition_criteria, output: the same run as in our keys."
    theirs = {
        "data": {"data_path": str(home), "img_size": 16, "use_webdataset": False, "tokenizer_name": "own",
                 "webdataset_token": None},
        "output": {"output_path": str(folder / "theirs"), "log_interval": 1, "checkpoint_save_interval": 3},
        "model": SMALL, "model_checkpoint": None, "check": False, "trackers": [],
        "sample": {"steps": 2, "guidance": 2.0},
        "train": {"minutes": None, "ema": 0.9, "keep": None}, "valid": {"every": 4, "batch_size": 6},
        "training": {"batch_size": 8, "lr": 1e-3, "pipeline": {
            "default_dataset": "few", "datasets": {"few": {"type": "local", "image_folder": str(home),
                                                           "length": 12, "retry_wait": 0, "batch_size": 8}},
            "defaults": {"cfg_dropout_prob": 0.2, "r1_interval": 2},
            "steps": [s | {"transition_criteria": {"mode": "epoch", "value": 50}} for s in STEPS]}}}
    path = folder / "theirs.yaml"
    path.write_text(yaml.safe_dump(theirs))
    with started.surroundings(""):
        run = done(launch.start(str(path)))
    assert (run == folder / "theirs" and lines(run) == lines(straight)
            and same_bits(tensors(run), tensors(straight)))


def test_a_stage_is_run_again_alone(straight, folder, home):
    """Fault: invalid resume positions accepted.
    Another run begins with the nets, tokenizer and averages of the end of a stage."""
    cfg = config(home, f"begin_from={straight}@on pipeline.only=[flow]")
    run = done(go(folder / "again", cfg))
    before = tensors(straight, checkpoint.end_of("on"), ["ema"])
    first = tensors(run, "step_00000003", ["net"])
    assert all((first[k] == before[k.replace("net.", "ema.", 1)]).all()
               for k in first if "compressor" in k or "expander" in k)
    assert (run / "assets" / "tokenizer").is_dir()
    assert [r["stage"] for r in read_json(run / "stages.json")] == ["flow"]
    with pytest.raises(Refused, match="has no checkpoint `end of onn`"):
        plan(presets.load(config(home, f"begin_from={straight}@onn pipeline.only=[flow]")))


def test_a_diverging_stage_leaves_the_last_good_checkpoint(folder, home):
    steps = [STEPS[0] | {"max_steps": 3},
             STEPS[1] | {"lr": 1e30, "initial_clipping_norm": 1e30, "n_epochs": 20}]
    run = folder / "diverged"
    status = end(go(run, config(home, pipeline={"steps": steps}, train={"clip": None, "checkpoint_every": 1},
                                loss={}, sample={})))
    assert (status["state"] == "failed" and "became" in status["error"]
            and "The last good checkpoint is" in status["error"])
    good = checkpoint.find(run)
    assert str(good) in status["error"]
    last = tensors(run, "last", ["net"]).values()
    assert all(torch.isfinite(t).all() for t in last if t.is_floating_point())


# A user's pictures

def data_of(home, **keys):
    cfg = presets.load(config(home, data={"source": str(home), "max_rejected": 1, **keys}))
    return flow_data.data(cfg, types.SimpleNamespace(assets=None))


def test_what_the_plan_says_of_a_users_pictures(home, tmp_path):
    """A damaged one is left out by name, copies of training pictures in a held-out table are said, and the
    fingerprint is that of rows and pixels."""
    mine = tmp_path / "mine"
    shutil.copytree(home, mine)
    first = data_of(mine)
    assert first.facts["fingerprint"] == data_of(home).facts["fingerprint"] and not shared_rows(first)
    (mine / "valid.tsv").rename(mine / "dev.tsv")
    names = [line.split("\t")[0]
             for line in (mine / "train.tsv").read_text(encoding="utf8").splitlines()[1:4]]
    shutil.copy(mine / names[0], mine / "images/copy.webp")
    with open(mine / "dev.tsv", "a", encoding="utf8") as f:
        f.write("images/copy.webp\ta copy\n")
    (mine / names[1]).write_bytes((mine / names[1]).read_bytes()[:-200])
    found = data_of(mine)
    assert ([r["row"] for r in found.rejected] == ["train.tsv:3"]
            and found.facts["fingerprint"] != first.facts["fingerprint"])
    assert len(found.datasets["train"]) == 27 and len(found.datasets["valid"]) == 7
    assert [s.split(" (")[0] for s in shared_rows(found)] == ["1 of 7 rows of valid are training rows"]
    (mine / "Validation.tsv").write_text("images/copy.webp\ta copy\n")
    with pytest.raises(Refused, match="both for `valid`"):
        data_of(mine)


# Pictures in shards

@pytest.fixture(scope="module")
def shards(folder, home):
    rows, _ = read_folder(home)
    return write_shards(rows["train"], folder / "shards", 10)


def test_shards_train_and_resume(folder, home, shards):
    source = str(folder / "shards" / "shard-{000000..000002}.tar")
    cfg = config(home, data={"source": source}) | {"task": "trapped_flow"}
    straight = done(go(folder / "tars", cfg))
    splits = read_json(straight / "plan.json")["splits"]
    assert splits["train"] + splits["valid"] == 28 and 2 <= splits["valid"] <= 6  # about a tenth, by a hash
    run = folder / "tars_killed"
    assert end(go(run, cfg, trap="7"))["state"] == "died"
    done(started.again(run))
    assert lines(run) == lines(straight) and same_bits(tensors(run), tensors(straight))


def test_spoilt_shards_are_rejected_rows_or_refused(folder, home, shards, capsys):
    bad = folder / "bad"
    bad.mkdir()
    cut = bad / "cut.tar"
    with tarfile.open(shards[0]) as whole:
        last = whole.getmembers()[-1]
    with open(shards[0], "rb") as f:
        cut.write_bytes(f.read(last.offset_data + 3))
    with tarfile.open(shards[1]) as whole, tarfile.open(bad / "lost.tar", "w") as tar:
        for i, member in enumerate(whole.getmembers()):
            if i != 1:  # the caption of the first sample
                tar.addfile(member, whole.extractfile(member))
        climbing = tarfile.TarInfo("../outside.png")
        tar.addfile(climbing)
    cfg = config(home, data={"source": [str(cut), str(bad / "lost.tar")]})
    with pytest.raises(Refused) as e:
        plan(presets.load(cfg))
    said = str(e.value)
    assert ("data.max_rejected = 0.01" in said and "cut.tar" in said and "lost.tar" in said
            and "outside" in said)
    facts = plan(presets.load(presets.merge(cfg, {"data": {"max_rejected": 1}})))
    assert facts["rejected"] >= 3 and facts["splits"]["train"] + facts["splits"]["valid"] < 20


@pytest.mark.parametrize("source, why", [("/no/such/folder", "no such folder"),
                                         ("gone-{0..3}.tar", "gone-0.tar"),
                                         ("pipe:cat x.tar", "a command is not run")])
def test_a_source_that_is_not_there(home, source, why):
    with pytest.raises(Refused, match=why):
        plan(presets.load(config(home, data={"source": source})))


# Keys

def test_a_dry_run_prints_the_stages_and_reads_no_pixels(home, folder, capsys, monkeypatch):
    path = folder / "dry.yaml"
    path.write_text(yaml.safe_dump(config(home)))
    monkeypatch.setattr(flow_data.Pictures, "pixels", lambda self, i: pytest.fail("a picture was read"))
    facts = plan(presets.load(str(path)))
    assert [s["name"] for s in facts["stages"]] == ["off", "on", "flow"]


def test_every_mistake_of_a_pipeline_through_the_command_line(home, folder, capsys):
    wrong = config(home, pipeline={"datasets": {"a": {"type": "lokal"}}, "steps": [
        STEPS[0] | {"kl_bta": 1, "dataset": "b"}, STEPS[1] | {"name": "off", "freeze": ["compresor"]},
        STEPS[2] | {"transition_on": {"mode": "loss_threshold", "metric": "vae_loss", "threshold": 0.1},
                    "duration_epochs": 3},
        {"name": "idle", "n_epochs": 1},
        {"name": "late", "train_flow": True, "freeze": ["flow_processor", "text_encoder"], "n_epochs": 1}]})
    path = folder / "wrong.yaml"
    path.write_text(yaml.safe_dump(wrong))
    assert cli.main(["plan", str(path)]) == 2
    said = capsys.readouterr().err
    for part in ("`kl_bta`; did you mean `kl_beta`?", "there is no dataset `b`",
                 "'lokal'; did you mean `local`?", "the name `off` stands twice",
                 "`compresor`, which is no net that trains; did you mean `compressor`?",
                 "write `n_epochs: 3`",
                 "`vae_loss`, which objective `vae` reports, and that is not active here",
                 "it trains nothing",
                 "objective `flow` trains flow_processor, text_encoder, and all of it is frozen"):
        assert part in said, (part, said)


def test_lpips_where_its_weights_are_not_at_hand(home, folder):
    steps = [STEPS[0] | {"use_lpips": True}]
    status = end(go(folder / "lpips", config(home, pipeline={"steps": steps}, loss={}, sample={})))
    assert status["refused"] and "use_lpips: false" in status["error"]


@pytest.mark.parametrize("more", ["model.path=cosine sample.sampler=ddim",
                                  "model.flow.kind=unet sample.sampler=adaptive sample.steps=16",
                                  "data.reduced_min_sizes=[8] data.sizes=[16,[24,16]] model.critic.layers=1 "
                                  "sample.sizes=[[24,16],16]"])
def test_the_other_ways_of_a_flow(home, folder, more):
    "v-prediction with DDIM; a U-Net with an adaptive solver; several sizes in one training."
    run = done(go(folder / str(abs(hash(more))), config(home, f"{more} check=true pipeline.only=[on,flow]")))
    assert metrics_of(run, "valid")[-1]["flow_loss"] < 10
    if "sizes" in more:
        assert {p.name for p in run.glob("previews/*/*.png")} >= {"drawings_24x16.png", "drawings_16x16.png"}


def test_two_processes_learn_what_one_does(home, folder):
    "Equal to rounding at an equal global batch: reconstruction draws from each slot's generator."
    cfg = config(home, "train.accumulate=2 train.batch_size=4 pipeline.only=[on] train.ema=null "
                       "valid.every=null")
    one, two = (done(go(folder / f"nproc{n}", cfg, nproc=n)) for n in (1, 2))
    for a, b in zip(metrics_of(one, "train"), metrics_of(two, "train")):
        assert abs(a["loss"] - b["loss"]) < 1e-5


def test_unet_and_transformer_are_built_by_the_dialects_names(home):
    cfg = presets.load(config(home, model={"vae_dim": 8, "feature_maps_dim": 64, "text_embedding_dim": 64,
                                           "feature_maps_dim_disc": 16}) | {"model": {
        "vae_dim": 8, "feature_maps_dim": 48, "text_embedding_dim": 24, "feature_maps_dim_disc": 16}})
    assert (cfg.model.vae.latent, cfg.model.flow.width, cfg.model.text.width,
            cfg.model.critic.width) == (8, 48, 24, 16)
