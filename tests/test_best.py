"What is best and when; what each tracker is told of a run, also of one that was killed and resumed."
import glob
import sys
from types import SimpleNamespace

import pytest
import torch
from runs import again, config, done, end, go

from workbench.core.run import checkpoint

from workbench.core.config import presets

from workbench.core.train import loop as train
from workbench.errors import Refused
from workbench.core.data.batches import evaluation_plan
from workbench.core.setup.state import Job, Setup
from workbench.core.train.log import record
from workbench.core.train.training import Attempt
from workbench.core.data.metrics import direction, text_scores
from workbench.core.stages.position import Position
from workbench.core.stages.stages import complete, stages
from workbench.core.setup.scores import measured
from workbench.core.run.folder import config_of, create, metrics_of, status_of
from workbench.files import read_json, write_json, write_text
from workbench.core.task import Data, get
from workbench.core.run.trackers import settings_of
from workbench.core.config.yaml12 import read_yaml, write_yaml
from workbench.lab.cli import run_row
from workbench.lab.compare.tables import facts_of
from workbench.lab.run.plan_tables import judged
from workbench.lab.run.results import predictions, previews

BASE = {"task": "scripted", "check": False, "trackers": ["tensorboard"], "train": {
    "minutes": None, "batch_size": 4, "lr": 1e-2, "log_every": 1, "checkpoint_every": None, "ema": 0.5}}
TWO = """valid.every=1 pipeline.steps='[
  {name: a, train: {max_steps: 4}, valid: {metric: good}, loss: {good: [1, 3, 3, 2], costs: [5, 4, 3, 1]}},
  {name: b, train: {max_steps: 4, early_stopping: {patience: 9, min_delta: 0.5}},
   loss: {good: [9, 9, 9, 9], costs: [0.9, 0.6, 0.8, 0.7]}}]'"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "Two stages; killed in step 8, after step 7 was told, and resumed from there; the best one is step 6."
    run = go(tmp_path_factory.mktemp("best") / "two", TWO.replace("\n", ""), "kill:7", base=BASE)
    assert end(run)["state"] == "died"
    assert {r["step"] for r in metrics_of(run.folder)} == {1, 2, 3, 4, 5, 6, 7}
    assert checkpoint.find(run.folder).name == checkpoint.checkpoint_name(7)
    assert checkpoint.find(run.folder, "best").name == checkpoint.checkpoint_name(6)
    return done(again(run.folder))


def test_best_is_the_last_stages_and_strictly_the_best(two):
    # 0.6, although patience waits for steps of 0.5
    assert checkpoint.find(two, "best").name == checkpoint.checkpoint_name(6)
    at = read_json(checkpoint.find(two) / "state.json")["position"]
    assert (at["best"], at["best_step"], at["reference"],
            at["bad"]) == (pytest.approx(0.6), 6, pytest.approx(0.9), 3)
    end_of_a = read_json(checkpoint.find(two, checkpoint.end_of("a")) / "state.json")["position"]
    # of two equal ones the lower loss
    assert (end_of_a["best_step"], end_of_a["best_loss"], end_of_a["judged"]) == (3, 3.0, "max good")


def test_every_reader_says_the_same(two):
    assert judged(two) == ("b", "loss", "min") and run_row(two)[4] == "loss 0.600"
    facts = facts_of(two)
    assert (facts["metric"], facts["best"]) == ("loss", pytest.approx(0.6))
    plan = read_json(two / "plan.json")
    write_json(two / "plan.json", plan | {"stages": []})  # an older build's did not say it
    try:
        assert judged(two) == ("b", "loss", "min")
    finally:
        write_json(two / "plan.json", plan)


def test_a_ramp_counts_the_steps_of_its_stage(two):
    assert [(r["stage"], r["ramp"])
            for r in metrics_of(two, "train")] == [(s, float(i)) for s in "ab" for i in range(4)]


def test_no_stage_overwrites_another(two):
    names = {p.name for p in (two / "predictions").iterdir()}
    assert names == {f"predictions_{s}_epoch_{e}_step_{i}.csv"
                     for s, i, e in zip("aaaabbbb", range(1, 9), (0, 1, 1, 2) * 2)} | {"test.csv"}
    assert [r[2] for r in predictions(two, "valid").rows] == ["9.0", "9.0"]
    assert {p.name for p in (two / "previews").iterdir()} == {checkpoint.checkpoint_name(i)
                                                              for i in range(1, 9)}
    assert previews(two).files[0].parent.name == checkpoint.checkpoint_name(6)  # those of the best weights


def test_tensorboard_has_each_step_once(two):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(two / "events"), {"audio": 0, "scalars": 0}).Reload()
    seen = {tag: [(e.step, pytest.approx(e.value)) for e in board.Scalars(tag)]
            for tag in board.Tags()["scalars"]}
    for split in ("train", "valid"):
        assert seen[f"{split}/loss"] == [(r["step"], r["loss"])
                                         for r in metrics_of(two, split)] and len(seen[f"{split}/loss"]) == 8
    # the best step's scores, told at the last
    assert seen["test/step"] == [(8, 6.0)] and [step for step, _ in seen["test/loss"]] == [8]
    assert [e.step for e in board.Audio("beep")] == list(range(1, 9))
    assert len(glob.glob(str(two / "events" / "*"))) == 2


def test_a_run_folder_of_an_older_build_goes_on(two, tmp_path):
    """It says mode: min of a score that is better the larger, and its positions lack what is kept beside the
    best."""
    raw = read_yaml((two / "config.yaml").read_text(), "config.yaml")
    raw["valid"]["mode"] = raw["train"]["scheduler"]["mode"] = "min"
    raw["pipeline"]["steps"][0]["train"]["scheduler"] = {"type": "ReduceLROnPlateau", "mode": "min"}
    write_text(tmp_path / "config.yaml", write_yaml(raw))
    a, b = stages(config_of(tmp_path))
    assert (a.mode, b.mode) == ("max", "min") and list(b.notes) == []
    assert list(a.notes) == ["train.scheduler.mode is min and counts for nothing: more of good is better."]
    saved = read_json(checkpoint.find(two) / "state.json")["position"]
    old = Position(**{k: v for k, v in saved.items() if k not in ("best_loss", "judged", "reference")})
    assert (old.best, old.judged, old.reference) == (pytest.approx(0.6), "", None)


def test_the_direction_is_the_metrics():
    mine = lambda task, **valid: stages(complete({"task": task, "train": {"max_steps": 2},
                                                  "valid": valid}))[0]
    assert all(direction(name) for name in text_scores(["a b"], ["a c"]))
    for task, up, down in (("sign", ["bleu1", "chrf", "rouge_l", "exact"], ["cer", "wer"]),
                           ("tts", [], ["mcd", "f0_cents", "length_error"])):
        assert {m: mine(task, metric=m).mode
                for m in up + down} == dict.fromkeys(up, "max") | dict.fromkeys(down, "min")
    better = get("flow").better
    assert [direction(m, better) for m in ("psnr", "ssim", "retrieval_top5", "retrieval_rank", "frechet",
                                           "kl_loss")] == ["max"] * 3 + ["min"] * 3
    assert mine("scripted", metric="ramp").mode == "min"  # a part of the loss
    wrong = mine("scripted", metric="good", mode="min")
    assert wrong.mode == "max" and list(wrong.notes) == ["valid.mode is min and counts for nothing: more of "
                                                         "good is better."]
    assert mine("curve", metric="error", mode="max").mode == "max"  # nobody but the user knows
    with pytest.raises(Refused, match="valid.metric is `goood`; did you mean `good`.*set valid.mode to min "
                                      "or max"):
        mine("scripted", metric="goood")
    inherited = {"task": "curve", "train": {"max_steps": 2}, "valid": {"metric": "loss", "mode": "min"},
                 "pipeline": {"steps": [{"name": "a", "valid": {"metric": "error"}}]}}
    with pytest.raises(Refused, match="step `a`: valid.metric is `error`, and nothing says"):
        complete(inherited)


def test_a_score_that_could_not_be_measured_is_no_better():
    "A score that the task can give, for which this validation has nothing to measure by."
    stage = SimpleNamespace(cfg=SimpleNamespace(valid=SimpleNamespace(metric="f0")))
    setup = SimpleNamespace(stage=stage, task=SimpleNamespace(scores=lambda cfg: ["f0", "mcd"]),
                            at=SimpleNamespace(step=3))
    assert measured(setup, {"loss": 1.0, "f0": 2.0}) == 2.0
    assert not (nothing := measured(setup, {"loss": 1.0, "mcd": 2.0})) == nothing
    setup.task.scores = lambda cfg: ["mcd"]
    with pytest.raises(Refused, match="valid.metric is `f0`, which nothing reports"):
        measured(setup, {"loss": 1.0, "mcd": 2.0})


def test_a_part_of_the_loss_that_only_training_has_is_told_before_the_first_step(tmp_path):
    run = create(complete(config("valid.metric=ramp train.max_steps=2", BASE)), tmp_path / "run")
    assert (train.main(run) == 2
            and "valid.metric is `ramp`, which nothing reports" in status_of(run)["error"]
            and not metrics_of(run))


class Latent(torch.nn.Module):
    "The mean of a latent is the picture's first channel, its variance 4."

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image):
        return image[:, :1], torch.full_like(image[:, :1], 4.0).log()


def test_latent_statistics_weigh_each_picture_once():
    "Batches of 32, 5 and 1 pictures in three sizes; the mean of batch means would be far off."
    values = torch.tensor([0.0] * 32 + [1.0, 2, 3, 4, 5] + [90.0])
    sizes = [4] * 32 + [6] * 5 + [12]
    pictures = [torch.full((3, n, n), float(v)) for v, n in zip(values, sizes)]
    for picture in pictures[32:]:
        picture[0, 0, 0] += 7  # not constant within a picture
    rows = type("Rows", (),
                {"__len__": lambda s: len(pictures), "__getitem__": lambda s, at: pictures[at[0]]})()
    data = Data(datasets={"train": rows}, collate=lambda items: {"image": torch.stack(items)},
                lengths={"train": sizes}, counts=None, uids={},
                groups={"train": torch.tensor(sizes).numpy()})
    batches = evaluation_plan(data.lengths["train"], 32, 512, 0, data.groups["train"])
    assert sorted(map(len, batches)) == [1, 5, 32]
    stage = SimpleNamespace(name="flow", cfg=SimpleNamespace(seed=0, loss=SimpleNamespace(train_diff=True)))
    found = get("flow").begin(stage, {"compressor": Latent()}, data)
    mean = sum(p[0].double().mean() for p in pictures) / 38
    square = sum(p[0].double().square().mean() + 4 for p in pictures) / 38
    assert found["latent_mean"].dtype == torch.float32
    torch.testing.assert_close(found["latent_mean"].double(), mean[None], rtol=1e-5, atol=0)
    torch.testing.assert_close(found["latent_std"].double(), (square - mean**2).sqrt()[None], rtol=1e-5,
                               atol=0)


class Told:
    "Stands for the module wandb or trackio: notes what it is told."

    def __init__(self):
        self.config, self.inits, self.logs = {}, [], []

    def init(self, **how):
        self.inits.append(how)
        return SimpleNamespace(log=lambda values, step: self.logs.append((step, values)), finish=lambda: None)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_of_many_runs(name, tmp_path, monkeypatch):
    """The final scores come at the last step, whatever step they are of; a resumed run has the same project,
    name and id."""
    from accelerate import Accelerator

    module = Told()
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    run = tmp_path / "first-try"
    run.mkdir()
    cfg = presets.load({**BASE, "preset": "mine", "trackers": [name], "train": {"max_steps": 3}})
    row = lambda step, split: {"step": step, "epoch": 0, "stage": "train", "split": split, "loss": 1 / step,
                               "rows": 2, "time": 1.0}
    for attempt, steps in ((1, (5, 10)), (2, (10, 15))):
        setup, lines = Setup(Job(cfg, None, []), Accelerator(cpu=True)), Attempt(run, attempt, first_step=5)
        for step in steps:
            setup.at.step = step
            record(lines, setup, row(step, "train"))
        record(lines, setup, row(step, "valid"))
        record(lines, setup, row(5, "test"), best=True)
    first, second = module.inits
    assert (first == second and first["project"] == "workbench" and first["config"]["train"]["max_steps"] == 3
            and first["resume"] == "allow")
    assert (first["name"].startswith("first-try")
            and read_json(run / "trackers.json")["id"] in (first.get("id"), first["name"].rpartition("-")[2]))
    assert name == "trackio" or (first["tags"] == ["scripted", "mine"] and first["dir"] == str(run))
    assert [step for step, _ in module.logs] == [5, 10, 10, 10, 10, 15, 15, 15]
    assert module.logs[-1][1] == {"test/loss": 1 / 5, "test/step": 5}
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    assert settings_of(name, run, cfg, None)[0] == "theirs"


def test_the_final_scores_reach_wandb(tmp_path, monkeypatch):
    "The library itself, offline: a resumed run is a second folder with the same id."
    pytest.importorskip("wandb", reason="wandb is not installed")
    from accelerate import Accelerator

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "first-try"
    run.mkdir()
    cfg = presets.load({**BASE, "trackers": ["wandb"], "train": {"max_steps": 3}})
    for attempt in (1, 2):
        accelerator = Accelerator(cpu=True)
        setup, lines = Setup(Job(cfg, None, []), accelerator), Attempt(run, attempt)
        for step, split, best in ((10, "train", False), (15, "train", False), (10, "test", True)):
            setup.at.step = max(step, setup.at.step)
            record(lines, setup, {"step": step, "epoch": 0, "stage": "train", "split": split, "loss": 0.5,
                          "time": 1.0}, best)
        for tracker in accelerator.trackers:
            tracker.finish()
    files = glob.glob(str(run / "wandb" / "offline-run-*" / "*.wandb"))
    own = read_json(run / "trackers.json")["id"]
    assert files and all(own in f for f in files)
    for file in files:
        content = open(file, "rb").read()
        assert b"test/loss" in content and b"workbench" in content and b"first-try" in content
