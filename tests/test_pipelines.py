"""Pipelines: killed anywhere, in the document's words, with every mistake, a stage again, more stages; their
plan and their notebook."""
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from runs import again, config, done, end, go, lines, same_bits, surroundings, tensors

from workbench.core.run import checkpoint
from workbench.errors import Refused
from workbench.core.stages.stages import complete
from workbench.core.stages.stages import stages as resolved
from workbench.core.setup.plan import plan
from workbench.core.setup.resume import load
from workbench.core.run.folder import config_of, metrics_of
from workbench.files import read_json
from workbench.lab.run import launch
from workbench.lab.run.results import stages as stages_table
from workbench.lab.run.stages_diagram import diagram, stage_states

home = Path(__file__).parents[1]
THREE = """dropout=0.2 norm=true noise=0.05 train.epochs=null train.accumulate=2 train.checkpoint_every=3
 valid.every=2 pipeline.steps='[
  {name: head, freeze: [judge, body], objectives: [fit], valid: {metric: error, mode: max},
     train: {epochs: 2, ema: 0.9, scheduler: {type: ReduceLROnPlateau, patience: 0, factor: 0.5}}},
  {name: all, train: {epochs: 6, scheduler: {type: CosineAnnealingLR},
                      optimizers: {slow: {type: RMSprop, lr: 0.001, momentum: 0.5}}},
     transition_on: {mode: loss_threshold, metric: fit_loss, threshold: 2.5, window: 5, patience: 2,
                     min_epochs: 1}},
  {name: rest, freeze: [body], unfreeze: [body.4],
     train: {max_steps: 12, ema: 0.8, optimizer: {type: Lion, lr: 0.001}}}]'""".replace("\n", "")
HANDED = """dropout=0.2 train.epochs=null train.batch_size=8 valid.every=null pipeline.steps='[
  {name: first, train: {epochs: 1, ema: 0.9}},
  {name: second, objectives: [fit], freeze: [body.4, head], train: {max_steps: 3}}]'""".replace("\n", "")
CALM = """train.epochs=null train.batch_size=8 norm=true valid.every=4 train.keep=1 width=400
 pipeline.steps='[{name: a, train: {epochs: 1, ema: 0.9}},
  {name: b, objectives: [fit], freeze: [head], train: {epochs: 2}}]'""".replace("\n", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def three(folder):
    return done(go(folder / "three", THREE))


@pytest.fixture(scope="module")
def calm(folder):
    return done(go(folder / "calm", CALM))


def steps_of(run):
    "The steps of each stage, counted over the run from 0."
    out = {}
    for row in metrics_of(run, "train"):
        out.setdefault(row["stage"], []).append(row["step"] - 1)
    return out


def record(run):
    "stages.json without what a clock says."
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in read_json(run / "stages.json")]
    return [line | {"train": {k: v for k, v in line["train"].items() if k != "tokens_per_s"}}
            for line in lines]


def handed(run, stage):
    "The nets with which the stage after this one begins: the averages where there are any."
    which = checkpoint.end_of(stage)
    nets = {k.partition(".")[2]: t for k, t in tensors(run, which, ["net"]).items()}
    return nets | {k.partition(".")[2]: t for k, t in tensors(run, which, ["ema"]).items()}


def test_killed_ten_times_in_all_stages(three, folder):
    """At random batches, at the first of a stage and at its last; the numbers and the bits are those of the
    run that nobody killed."""
    steps = steps_of(three)
    assert list(steps) == ["head", "all", "rest"] and all(len(s) >= 7 for s in steps.values()), steps
    draw = random.Random(5)
    at = sorted({s for own, n in zip(steps.values(), (2, 2, 3)) for s in draw.sample(own[1:-1], n)}
                | {steps["all"][0], steps["all"][-1], steps["rest"][0]})
    assert len(at) == 10
    run = folder / "killed"
    assert end(go(run, THREE, trap=f"kill:{at[0]}"))["state"] == "died"
    for step in at[1:]:
        status = end(again(run, trap=f"kill:{step}"))
        assert status["state"] == "died" and status["step"] <= step, status
    done(again(run))
    assert lines(run) == lines(three) and same_bits(tensors(run), tensors(three))
    assert record(run) == record(three)
    for stage in steps:
        assert same_bits(handed(run, stage), handed(three, stage))


def test_the_stages_ended_as_they_should(three):
    reasons = [line["ended"] for line in record(three)]
    assert (reasons[0] == "2 epochs" and reasons[1] == "mean fit_loss of 5 steps below 2.5"
            and reasons[2] == "12 steps")
    rates = [r["lr"] for r in metrics_of(three, "train") if r["stage"] == "head"]
    # whenever a validation was no higher
    assert len(set(rates)) > 1 and all(b in (a, a / 2) for a, b in zip(rates, rates[1:]))
    assert [*stages_table(three).rows[1][:4]] == ["all", reasons[1], record(three)[1]["epochs"],
                                                  len(steps_of(three)["all"])]
    assert [s["state"] for s in stage_states(three).values()] == ["done"] * 3
    assert "✓ done" in repr(diagram(three)) and diagram(three)._repr_html_().count('data-state="done"') == 3


def test_the_documents_words_make_the_same_run(folder):
    ours = {"task": "curve", "check": False, "trackers": [], "dropout": 0.2,
            "train": {"log_every": 1, "checkpoint_every": 4}, "pipeline": {"steps": [
        {"name": "one", "freeze": ["body"], "objectives": ["fit"], "data": {"rows": 24},
         "train": {"epochs": 1, "batch_size": 4, "ema": 0.9999, "clip": 0.5,
                   "optimizers": {"fast": {"type": "SGD", "lr": 0.1}}}},
        {"name": "two", "data": {"rows": 40},
         "transition_on": {"mode": "loss_threshold", "metric": "fit_loss", "threshold": 50, "window": 3},
         "train": {"epochs": 2, "batch_size": 8, "lr": 0.001,
                   "schedulers": {"slow": {"type": "StepLR", "step_size": 2}}, "max_steps": 9}}]}}
    theirs = {"task": "curve", "check": False, "trackers": [], "dropout": 0.2, "log_interval": 1,
              "checkpoint_save_interval": 4,
              "training": {"pipeline": {
                  "default_dataset": "small",
                  "datasets": {"small": {"rows": 24, "batch_size": 4},
                               "large": {"rows": 40, "batch_size": 8}},
                  "defaults": {"lr": 0.01},
                  "steps": [
                      {"name": "one", "n_epochs": 1, "freeze": ["body"], "objectives": ["fit"],
                       "use_ema": True, "initial_clipping_norm": 0.5,
                       "optimization": {"optimizers": {"fast": {"type": "SGD", "lr": 0.1}}}},
                      {"name": "two", "dataset": "large", "n_epochs": 2, "lr": 0.001, "max_steps": 9,
                       "use_ema": False,
                       "optimization": {"schedulers": {"slow": {"type": "StepLR", "step_size": 2}}},
                       "transition_criteria": {"mode": "loss_threshold", "metric": "fit_loss",
                                               "threshold": 50, "window": 3}}]}}}
    for mine, other in zip(resolved(complete(ours)), resolved(complete(theirs)), strict=True):
        assert mine.cfg.model_dump(exclude={"pipeline", "train",
                                            "asked"}) == other.cfg.model_dump(exclude={"pipeline", "train",
                                                                                       "asked"})
        assert (mine.name, mine.freeze, mine.objectives,
                mine.transition) == (other.name, other.freeze, other.objectives, other.transition)
    a, b = (go(folder / name, base=file) for name, file in (("ours", ours), ("theirs", theirs)))
    assert lines(done(a)) == lines(done(b)) and same_bits(tensors(a.folder), tensors(b.folder))
    assert record(a.folder) == record(b.folder) and [line["epochs"] for line in record(a.folder)] == [1, 0]
    assert read_json(a.folder / "plan.json")["stages"][1]["data"] == {"rows": 40}


def mistakes(raw, overrides=""):
    with pytest.raises(Refused) as e:
        complete(raw, overrides)
    return str(e.value).splitlines()


def flow(step, **more):
    return {"task": "flow",
            "pipeline": {"steps": [{"name": "vae", "n_epochs": 1, "train_vae": True} | step]}} | more


STAGE_KEYS = {
    "n_epochs": 1, "description": "x", "dataset": "a", "max_steps": 5, "train_vae": True,
    "gan_training": True, "use_lpips": True, "train_spade": True,
    "train_diff": True, "train_diff_full": True, "use_ema": True, "cfg_dropout_prob": 0.1, "freeze": [],
    "unfreeze": [], "batch_size": 2, "workers": 1,
    "initial_clipping_norm": 1.0, "kl_beta": 1e-4, "kl_warmup_steps": 5, "kl_free_bits": 0.0,
    "lambda_adv": 0.5, "lambda_lpips": 0.1,
    "mse_weight": 0.1, "r1_interval": 16, "r1_gamma": 5.0, "instance_noise_std": 0.01,
    "instance_noise_decay": 0.9, "adaptive_weights": True,
    "optimization": {}, "transition_on": {"mode": "epoch", "value": 1},
    "transition_criteria": {"mode": "epoch", "value": 1}, "train_flow": True}


@pytest.mark.parametrize("key", STAGE_KEYS)
def test_a_stage_key_misspelt_is_one_sentence_with_the_nearest_name(key):
    wrong = key[:2] + key[3:]
    found = mistakes(flow({wrong: STAGE_KEYS[key]}))
    assert (len(found) == 1
            and f"pipeline step `vae`: unknown key `{wrong}`; did you mean `{key}`?" in found[0]), found


INNER = {  # what is misspelt inside a stage, and the name that must be said
    "optimizers": ({"optimization": {"optimizrs": {}}}, "optimization.optimizers"),
    "schedulers": ({"optimization": {"shedulers": {}}}, "optimization.schedulers"),
    "type": ({"optimization": {"optimizers": {"vae": {"tpye": "Adam"}}}}, "type"),
    "Adam": ({"optimization": {"optimizers": {"vae": {"type": "Adma"}}}}, "Adam"),
    "vae": ({"optimization": {"optimizers": {"vea": {"lr": 1e-3}}}}, "vae"),
    "betas": ({"optimization": {"optimizers": {"vae": {"beta": [0.9, 0.9]}}}}, "betas"),
    "momentum": ({"optimization": {"optimizers": {"vae": {"momentm": 0.9}}}}, "momentum"),
    "centered": ({"optimization": {"optimizers": {"vae": {"centred": True}}}}, "centered"),
    "weight_decay": ({"optimization": {"optimizers": {"vae": {"weight_decy": 0.1}}}}, "weight_decay"),
    "eps": ({"optimization": {"optimizers": {"vae": {"epss": 0.1}}}}, "eps"),
    "alpha": ({"optimization": {"optimizers": {"vae": {"alpa": 0.1}}}}, "alpha"),
    "amsgrad": ({"optimization": {"optimizers": {"vae": {"amsgrd": True}}}}, "amsgrad"),
    "decoupled": ({"optimization": {"optimizers": {"vae": {"decoupled_weight_decya": True}}}},
                  "decoupled_weight_decay"),
    "eta_min_factor": ({"optimization": {"schedulers": {"vae": {"eta_min_facto": 0.1}}}}, "eta_min_factor"),
    "start_factor": ({"optimization": {"schedulers": {"vae": {"start_facto": 0.1}}}}, "start_factor"),
    "end_factor": ({"optimization": {"schedulers": {"vae": {"end_facto": 1}}}}, "end_factor"),
    "total_iters": ({"optimization": {"schedulers": {"vae": {"total_iter": 5}}}}, "total_iters"),
    "step_size": ({"optimization": {"schedulers": {"vae": {"stepsize": 5}}}}, "step_size"),
    "gamma": ({"optimization": {"schedulers": {"vae": {"gama": 0.5}}}}, "gamma"),
    "mode": ({"optimization": {"schedulers": {"vae": {"mod": "min"}}}}, "mode"),
    "factor": ({"optimization": {"schedulers": {"vae": {"facto": 0.5}}}}, "factor"),
    "patience": ({"optimization": {"schedulers": {"vae": {"patiense": 5}}}}, "patience"),
    "StepLR": ({"optimization": {"schedulers": {"vae": {"type": "StpLR"}}}}, "StepLR"),
    "compressor": ({"freeze": ["compresor"]}, "compressor"),
    "flow_processor": ({"unfreeze": ["flow_procesor"]}, "flow_processor"),
    "value": ({"transition_on": {"mode": "epoch", "valu": 1}}, "value"),
    "epoch": ({"transition_on": {"mode": "epohc", "value": 1}}, "epoch"),
    "metric": ({"transition_on": {"mode": "loss_threshold", "metric": "vae_los", "threshold": 1}},
               "vae_loss"),
    "threshold": ({"transition_on": {"mode": "loss_threshold", "metric": "loss", "treshold": 1}},
                  "threshold"),
    "max_epochs": ({"transition_on": {"mode": "epoch", "value": 1, "max_epoch": 4}}, "max_epochs")}


@pytest.mark.parametrize("about", INNER)
def test_a_wrong_word_inside_a_stage_is_told_with_the_nearest(about):
    step, name = INNER[about]
    found = mistakes(flow(step))
    assert any(f"`{name}`?" in line or f".{name}`?" in line for line in found), found
    assert len(found) <= 2, found


OTHER = {
    "duration_epochs": ({"duration_epochs": 3}, "n_epochs: 3"),
    "freeze_modules": ({"freeze_modules": {"expander": True, "compressor": False}}, "freeze: [expander]"),
    "optimizer_type": ({"optimizers": {"vae": {"optimizer_type": "Adam", "lr": 0.1}}},
                       "optimization: {optimizers: {vae: {type: Adam, lr: 0.1}}}"),
    "criteria": ({"transition_criteria": {"mode": "loss_threshold", "min_epochs": 2, "loss_threshold": 0.5,
                                          "metric_name": "vae_loss"}},
                 "transition_on: {mode: loss_threshold, min_epochs: 2, threshold: 0.5, metric: vae_loss}")}


@pytest.mark.parametrize("word", OTHER)
def test_the_other_dialect_is_refused_with_the_line_to_write(word):
    step, instead = OTHER[word]
    found = mistakes(flow(step))
    assert len(found) == 1 and f"write `{instead}`" in found[0], found
    complete(flow({"n_epochs": 9} | yaml.safe_load(instead)))  # and that line is right


IMPOSSIBLE = {
    "freeze: [bodi], train: {epochs: 1}": "did you mean `body`?",
    "freeze: [body], train: {epochs: 1, optimizers: {slow: {lr: 0.1}}}": "`slow` steps body, which is frozen "
                                                                         "here",
    "objectives: [fit], train: {epochs: 1, schedulers: {guess: {type: cosine}}}": "belongs to objective "
                                                                                  "`guess`, which is not "
                                                                                  "active",
    "train: {epochs: 1}, transition_on: {mode: loss_threshold, metric: fit_los, threshold: 1}":
        "did you mean `fit_loss`?",
    "objectives: [fit], train: {epochs: 1}, transition_on: {mode: loss_threshold, metric: guess_loss, "
    "threshold: 1}": "that is not active here",
    "train: {max_steps: 5}, transition_on: {mode: loss_threshold, metric: loss, threshold: 1}":
        "looks at 20 steps",
    "train: {epochs: 2}, transition_on: {mode: epoch, value: 5}": "over after 2 epochs",
    "train: {epochs: 2}, transition_on: {mode: loss_threshold, metric: loss, threshold: 1, min_epochs: 3}":
        "over after 2 epochs",
    "transition_on: {mode: loss_threshold, metric: loss, threshold: .nan}": "threshold",
    "transition_on: {mode: loss_threshold, metric: loss, threshold: 1}": "never ends",
    "train: {epochs: 0}": "train.epochs", "train: {epochs: -3}": "train.epochs",
    "train: {epochs: .inf}": "train.epochs", "train: {}": "never ends",
    "freeze: [body, head, judge], train: {epochs: 1}": "is frozen",
    "objectives: [], train: {epochs: 1}": "trains nothing",
    "freeze: [body], unfreeze: [body], train: {epochs: 1}": "stands in freeze and in unfreeze",
    "train: {epochs: 1, minutes: 3}": "holds for the whole run", "minutes: 0": "minutes",
    "train: {epochs: 1}}, {name: a, train: {epochs: 1}": "stands twice"}


@pytest.mark.parametrize("step", IMPOSSIBLE)
def test_what_cannot_be_is_refused(step):
    found = mistakes(config(f"train.epochs=null pipeline.steps='[{{name: a, {step}}}]'"))
    assert any(IMPOSSIBLE[step] in line for line in found), found


def workbench(*arguments, cwd=None):
    done = subprocess.run([sys.executable, "-m", "workbench.lab.cli", *arguments], capture_output=True,
                          text=True, timeout=300, cwd=cwd)
    return done.returncode, done.stdout, done.stderr


def test_the_command_tells_all_mistakes_at_once(tmp_path):
    (tmp_path / "wrong.yaml").write_text("""task: curve
trackers: []
train: {epochs: null, lrr: 1}
pipeline:
  steps:
  - {name: a, freeze: [bodi], duration_epochs: 2}
  - {name: a, n_epochs: 0, optimization: {optimizers: {fats: {lr: 1}}}}
  - {name: c, n_epochs: 1, transition_on: {mode: loss_threshold, metric: los, threshold: 1}}
""")
    code, out, err = workbench("plan", str(tmp_path / "wrong.yaml"))
    assert code == 2 and not out and "Traceback" not in err
    for words in ("train.lrr", "did you mean `body`?", "n_epochs: 2", "stands twice", "`train.epochs`",
                  "did you mean `fast`?", "did you mean `loss`?"):
        assert words in err, (words, err)
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(config(THREE)))
    code, out, err = workbench("plan", str(tmp_path / "good.yaml"), "--overrides", "begin_from=nowhere")
    assert code == 2 and "nowhere is no run folder" in err


def test_the_plan_of_a_pipeline(tmp_path, monkeypatch):
    """What trains and rests in each stage, by which optimisers, for how long; no row is read, and for memory
    only the longest."""
    import curve

    read, get = [], curve.Curve.__getitem__
    monkeypatch.setattr(curve.Curve, "__getitem__", lambda self, at: read.append(at) or get(self, at))
    found = plan(complete(config(THREE)))["stages"]
    assert read == [] and [s["name"] for s in found] == ["head", "all", "rest"]
    assert [(s["trained"], s["frozen"]) for s in found] == [(9, 104 + 16 + 9), (138, 0),
                                                            (72 + 9 + 9, 32 + 16)]
    assert [list(s["optimizers"]) for s in found] == [["fast"], ["slow", "fast", "guess"],
                                                      ["slow", "fast", "guess"]]
    assert found[1]["optimizers"]["slow"] == {"type": "RMSprop", "lr": 0.001, "steps": ["body"]}
    assert found[2]["optimizers"]["guess"]["type"] == "Lion"
    assert found[0]["schedulers"] == {"fast": {"type": "ReduceLROnPlateau", "mode": "max", "factor": 0.5,
                                               "patience": 0}} and found[0]["best"] == {"metric": "error",
                                                                                        "mode": "max",
                                                                                        "every": 2}
    each = found[0]["steps_per_epoch"]
    assert [s["steps"] for s in found] == [2 * each, 6 * each, 12] and each == 8
    # its rows are not read
    assert plan(complete(config(THREE, ), "pipeline.steps.all.data.rows=40"))["stages"][1]["steps"] is None
    memory = [s["memory"] for s in plan(complete(config(THREE)), memory=True)["stages"]]
    assert 1 <= len(set(read)) <= 3 and all(m["table"] for m in memory)


def test_the_plan_in_the_terminal(tmp_path):
    (tmp_path / "three.yaml").write_text(yaml.safe_dump(config(THREE)))
    code, out, err = workbench("plan", str(tmp_path / "three.yaml"))
    assert code == 0, err
    for words in ("Stage 1 of 3: head", "body 120 (frozen)", "slow: RMSprop lr 0.001",
                  "6 epochs of 8 steps or mean fit_loss of 5 steps under 2.5 for 2 steps, not before",
                  "schedules", "Memory of the stages"):
        assert words in out, (words, out)
    assert not (tmp_path / "runs").exists()


def test_a_stage_again_in_a_run_of_its_own(calm, folder, monkeypatch):
    "The same nets bit for bit; and since nothing here is drawn from the step number, the same losses."
    run = done(go(folder / "again", f"{CALM} pipeline.only=[b] begin_from={calm}@a"))
    rows = [[{k: v for k, v in row.items() if k != "step"}
             for row in lines(r) if row["stage"] == "b" and row["split"] != "test"] for r in (calm, run)]
    assert rows[0] == rows[1] and len(rows[0]) > 10
    whole, alone = ({f"{n}.{k}": t for n, net in load(r, "last")[0].items()
                     for k, t in net.state_dict().items()} for r in (calm, run))
    assert same_bits(whole, alone)
    first = next(r for r in metrics_of(run, "train"))
    assert first["step"] == 1 and next(r for r in metrics_of(calm, "train")
                                       if r["stage"] == "b")["step"] == len(steps_of(calm)["a"]) + 1
    monkeypatch.chdir(calm.parent)
    relative = complete(config(f"{CALM} pipeline.only=[b] begin_from={calm.name}@a"))
    assert relative.begin_from.run == f"{calm}@a"  # a run may be resumed from another folder
    with pytest.raises(Refused, match="no checkpoint `end of c`.*end of a"):
        plan(complete(config(f"{CALM} pipeline.only=[b] begin_from={calm}@c")))


def test_ends_of_stages_stay_and_memory_is_given_back(calm):
    kept = {p.name for p in (calm / "checkpoints").glob("step_*")}
    named = {n: checkpoint.find(calm, n).name for n in ("end of a", "end of b", "best", "last")}
    assert set(named.values()) == kept and named["end of a"] != named["last"] == named["end of b"]  # keep=1
    a, b = read_json(calm / "stages.json")
    weights = sum(t.numel() for t in tensors(calm, kinds=["net"]).values()) * 4 / 1e9
    # two moments, and the average beside the weights
    assert a["gb_freed"] > 1.9 * weights and a["gb_held"] > 3.8 * weights
    nets, _ = load(calm, "end of a")
    assert all((t == nets[n.split("|")[0]].state_dict()[n.split("|")[1]]).all()
               for n, t in handed(calm, "a").items())


def test_a_finished_pipeline_goes_on(calm, folder):
    """More epochs of the last stage and a stage more make the run that had both from the start; what is past
    cannot change."""
    more = ("pipeline.steps.b.train.max_steps={} pipeline.steps.c='{{name: c, objectives: [fit], train: "
            "{{max_steps: 4}}}}'")
    base = CALM.replace("train: {epochs: 2}",
                        "train: {max_steps: 10, scheduler: {type: constant, warmup: 0}}")
    run = done(go(folder / "short", base))
    with pytest.raises(Refused, match="stage `a`: train.lr was 0.01 in this run and cannot become 1.0: it "
                                      "has been trained with that"):
        again(run, "pipeline.steps.a.train.lr=1.0")
    with pytest.raises(Refused, match="no entry `bb`; did you mean `b`"):
        again(run, "pipeline.steps.bb.train.max_steps=9")
    with pytest.raises(Refused, match="must still begin with a, b"):
        again(run, "pipeline.steps='[{name: z, train: {epochs: 1}}]'")
    assert read_json(run / "status.json")["attempt"] == 1
    done(again(run, more.format(14)))
    changed = read_json(run / "status.json")["changed"]
    assert changed == ["stage `b`: train.max_steps 10 → 14", "stage `c`: added"]
    assert ([line["stage"] for line in record(run)] == ["a", "b", "c"]
            and [line["steps"] for line in record(run)][1:] == [14, 4])
    straight = done(go(folder / "long", f"{base} {more.format(14)}"))
    train = [[row for row in lines(r, "train")] for r in (run, straight)]
    assert train[0] == train[1] and same_bits(tensors(run), tensors(straight))
    assert config_of(run).pipeline.steps[1].train["max_steps"] == 14


def test_not_a_number_in_the_second_stage(folder):
    "The run fails, names the last good checkpoint, never touches it, and goes on from it."
    words = CALM.replace("train.keep=1", "train.keep=null").replace(
        "valid.every=4", "valid.every=null train.log_every=5 train.checkpoint_every=4")
    straight = done(go(folder / "numbers", words))
    first = read_json(straight / "stages.json")[0]["steps"]
    run = folder / "nan"
    status = end(go(run, words, trap=f"nan:{first + 6}"))
    assert status["state"] == "failed" and not status.get("refused") and "(stage `b`)" in status["error"]
    last = checkpoint.find(run)
    assert f"The last good checkpoint is {last}." in status["error"]
    assert first <= read_json(last / "state.json")["position"]["step"] <= first + 6
    digest = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(last.iterdir())}
    assert digest == {p.name: hashlib.sha256(p.read_bytes()).hexdigest()
                      for p in sorted((straight / "checkpoints" / last.name).iterdir())
                      if p.name != "state.json"} | {"state.json": digest["state.json"]}
    assert same_bits(tensors(run),
                     tensors(straight, last.name)) and (run / "checkpoints" / last.name).exists()
    assert all(t.isfinite().all() for t in tensors(run).values())
    done(again(run))
    assert lines(run) == lines(straight) and same_bits(tensors(run), tensors(straight))


def test_averages_are_handed_on_also_by_a_resume_at_the_end(folder):
    straight = done(go(folder / "handed", HANDED))
    first = len(steps_of(straight)["first"])
    run = folder / "handed_killed"
    # in the first step of the second stage
    assert end(go(run, HANDED, trap=f"kill:{first}"))["state"] == "died"
    assert read_json(checkpoint.find(run) / "state.json")["position"]["stage_step"] == first
    done(again(run))
    assert lines(run) == lines(straight) and same_bits(tensors(run), tensors(straight))
    begin, after = handed(straight, "first"), {k.partition(".")[2]: t
                                               for k, t in tensors(straight, kinds=["net"]).items()}
    net = {k.partition(".")[2]: t for k, t in tensors(straight, checkpoint.end_of("first"), ["net"]).items()}
    rested = [k for k in after if k.startswith(("head|", "judge|", "body|4."))]
    assert len(rested) == 6 and all((after[k] == begin[k]).all() for k in rested)
    assert not all((net[k] == begin[k]).all() for k in rested)  # an average, not the last weights
    assert not (after["body|0.weight"] == begin["body|0.weight"]).all()


def test_the_notebook_runs_headless(tmp_path):
    (tmp_path / "three.yaml").write_text(yaml.safe_dump(config(THREE) | {"check": True}))
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    out, run = tmp_path / "out.ipynb", tmp_path / "run"
    command = ["papermill", str(home / "nbs/pipeline.ipynb"), str(out), "-k", "python3", "--no-progress-bar",
               "-p", "config", str(tmp_path / "three.yaml"),
               "-p", "run_dir", str(run), "-p", "overrides",
               "pipeline.steps.head.train.max_steps=3 pipeline.steps.all.train.max_steps=8 "
               "pipeline.steps.rest.train.max_steps=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [o for c in nbformat.read(out, 4).cells for o in c.get("outputs", [])]
    text = "\n".join("".join(o.get("text", "")) + o.get("data", {}).get("text/plain", "") for o in found)
    for words in ("Stage 3 of 3: rest", "Memory of the stages", "finished after", "✓ done", "GB freed",
                  "Scores of step_", "rest · note", "pipeline.only=[all]"):
        assert words in text, (words, text)
    drawings = [o["data"]["text/html"]
                for o in found if "wb-stages" in o.get("data", {}).get("text/html", "")]
    assert (len(drawings) == 2 and 'data-state="planned"' in drawings[0]
            and drawings[1].count('data-state="done"') == 3)
    assert len(json.loads((run / "stages.json").read_text())) == 3


def test_what_ways_on_says_is_true(calm, folder):
    "The commands that the notebook prints are parsed and complete."
    import shlex

    from workbench.lab.cli import parser
    from workbench.lab.run.results import ways_on

    for about, line in ways_on(calm).rows:
        options = parser().parse_args(shlex.split(line.replace("=N", "=3").replace(": N", ": 3"))[1:])
        if options.command == "train":
            only = complete(options.config, options.overrides)
            assert (about == f"`{only.pipeline.only[0]}` again"
                    and (only.begin_from is None) == (only.pipeline.only == ["a"]))
        else:
            words = yaml.safe_load((calm / "config.yaml").read_text())
            assert (complete(words, options.overrides).pipeline.steps[-1].train.get("epochs") == 3
                    and options.run == str(calm))
    assert launch.status_of(calm)["state"] == "finished"


SIGN = ("pipeline={steps: [{name: projection, freeze: [translator], train: {max_steps: 2}}, {name: short, "
        "data: {max_frames: 60}, train: {max_steps: 2}}, {name: all, train: {max_steps: 2}}]}")
SPEECH = ("pipeline={steps: [{name: aligner, freeze: [durations, decoder], train: {max_steps: 2}}, {name: "
          "all, train: {max_steps: 2}}]}")


@pytest.mark.parametrize("preset, steps", [("t5_tiny", SIGN), ("tts_tiny", SPEECH)])
def test_pipelines_of_other_tasks(folder, preset, steps):
    """Sign: what reads poses first, then shorter clips, then all.
    Speech: the aligner first. What rests does not move a bit."""
    small = "model.width=32 model.hidden=64 model.layers=1 speak.f0=false" if preset == "tts_tiny" else ""
    more = (f"{small} trackers=[] train.batch_size=4 train.epochs=null train.max_steps=null "
            "train.minutes=null valid.rows=2 valid.batch_size=2 valid.final=[] train.checkpoint_every=1 "
            "train.keep=null")
    if preset == "tts_tiny":
        pytest.importorskip("soundfile", reason="speech needs soundfile: pip install soundfile")
    with surroundings(""):
        run = done(launch.start(preset, f"{more} '{steps}'", folder / preset))
    names = [line["stage"] for line in read_json(run / "stages.json")]
    assert names == (["projection", "short", "all"] if preset == "t5_tiny" else ["aligner", "all"])
    rests = "translator" if preset == "t5_tiny" else "decoder"
    first, end_of_first, last = (tensors(run, which, ["net"])
                                 for which in ("step_00000001", checkpoint.end_of(names[0]), "last"))
    held = [k for k in first if k.startswith(f"net.{rests}|")]
    assert held and all((first[k] == end_of_first[k]).all()
                        for k in held) and not all((last[k] == first[k]).all() for k in held)
    checks = {c["stage"] for c in read_json(run / "checks.json")}
    assert checks == set(names)  # each stage is asked whether it is real
