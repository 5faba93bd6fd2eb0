"""Every fault is really seeded or says why it cannot be, and a trial says which check has seen it."""
import pickle
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import check_names

from workbench.core.checks.check import check
from workbench.lab.faults.fault import Fault, NotHere, healthy_of, with_loss
from workbench.lab.faults.losses import constant
from workbench.lab.faults.seeded import Seeded, seeded_faults
from workbench.lab.faults.trial import begun, trial, try_fault
from workbench.core.config.modules import permit
from workbench.core.run.folder import create
from workbench.core.setup.prepare import prepare
from workbench.core.stages.stages import complete
from workbench.core.step.evaluate import losses
from workbench.core.step.optim import freeze, named_parameters, seed_all, set_modes
from workbench.errors import Refused
from workbench.lab import cli

gallery = Path(__file__).parents[1] / "bench/gallery"
FAULTS = {f.name: f for f in seeded_faults()}
TASKS = ("pairs", "voice", "draw", "faulty")
BLIND = ("empty inputs", "one input for all", "inputs in thousands", "validation with noise",
         "blind in training")
ABSENT = {  # fault -> the tasks that cannot have it, and a word of why
    "a vocabulary larger than it is": (TASKS, "reports no vocabulary"),
    "a part that compares nothing": (TASKS, "is there to compare"),
    "outputs that cannot reach their targets": (["pairs", "faulty"], "no output is compared with numbers"),
    "a row with NaN": (["pairs"], "no field is a floating point number"),
    "inputs in thousands": (["pairs", "voice"], "no input is a floating point number"),
    "masks that hide nothing": (["draw"], "nothing is padded"),
    "labels of padding count": (["voice", "draw"], "no label is -100"),
    "divided by the rows": (["draw"], "the number of rows alone"),
    "evaluation mode in training": (["draw"], "the same in both modes"),
    "frozen statistics move": (["voice", "draw", "faulty"], "no frozen part has batch statistics"),
    "a frozen part that decays": (["voice"], "no part is frozen")}


def settings(task, **more):
    permit(",".join(str(gallery / f"{name}.py") for name in TASKS[:3]))
    return complete({"task": task, "trackers": [], "train": {"max_steps": 8, "lr": 0.01, "batch_size": 16}}
                    | more)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    "task -> (what is known of it, its set-up, its run folder), made once"
    made, patch = {}, pytest.MonkeyPatch()
    patch.setenv("WORKBENCH_TASKS", "faulty")

    def of(task):
        if task not in made:
            run = create(settings(task), tmp_path_factory.mktemp(task) / "run")
            setup = prepare(run)
            made[task] = healthy_of(setup), setup, run
        return made[task]
    yield of
    patch.undo()


def batch_of(data, split, epoch=0, rows=(30, 3, 10, 11)):
    return data.collate([data.datasets[split][i % len(data.datasets[split]), epoch] for i in rows])


def numbers(thing):
    "Something that compares equal only to the same content."
    if isinstance(thing, torch.Tensor):
        return str(thing.dtype), tuple(thing.shape), thing.detach().cpu().double().numpy().tobytes()
    return {k: numbers(v) for k, v in thing.items()} if isinstance(thing, dict) else repr(thing)


def raised(call):
    try:
        return call()
    except Seeded as e:
        return str(e)


def trace(known, job):
    "All that a fault can change of a task, as bytes."
    healthy, setup, run = known
    faulty = begun(job, setup, run)
    stage, data, nets, task = faulty.stage, faulty.data, faulty.nets, faulty.task
    objectives = {n: task.objectives(stage.cfg)[n] for n in stage.objectives}
    nan = len(data.datasets["train"]) // 3
    rows = [batch_of(data, s, e) for s, e in (("train", 0), ("train", 1), ("valid", 0), ("valid", 0))]
    found = [numbers(b) for b in rows] + [numbers(data.collate([data.datasets["train"][nan, 0]])),
                                          {k: list(map(str, v)) for k, v in data.uids.items()},
                                          numbers(data.counts(rows[0])), repr(stage.cfg.train)]
    on = freeze(nets, faulty.model.trainable, stage.freeze, stage.unfreeze)
    found += [sorted(on), sorted(named_parameters(nets)), {n: list(o.trains) for n, o in objectives.items()},
              [numbers(p) for p in named_parameters(nets).values()]]

    def passes(batch, training):
        set_modes(nets, training)
        ctx = faulty.ctx(counts={k: 2 * v for k, v in data.counts(batch).items()})
        if not training:
            return losses(nets, objectives, batch, ctx)
        seed, cache = seed_all(1), {}
        for objective in objectives.values():
            here = replace(ctx, training=True, cache=cache, generator=torch.Generator().manual_seed(seed))
            parts = objective.loss(nets, batch, here)
            parts["loss"].backward()
            found.append(numbers(parts))
        found.append({n: p.grad is not None and numbers(p.grad) for n, p in named_parameters(nets).items()})
        return {}

    for batch in (rows[0], batch_of(data, "train", rows=(1, 7, 12)), rows[0]):
        passes(batch, True)
        found.append(passes(batch, False))
    found.append({n: numbers(b) for net in nets.values() for n, b in net.named_buffers()})
    found.append([numbers(p) for p in named_parameters(nets).values()])
    set_modes(nets, False)
    ctx = faulty.ctx(training=False, counts=data.counts(rows[2]), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found += [raised(lambda: repr(task.predict(nets, rows[2], ctx))), raised(
            lambda: repr(sorted(task.preview(nets, data, ctx))))]
    found.append([m.training for net in nets.values() for m in net.modules()])
    passes(rows[0], True)
    return pickle.dumps(found)


def test_expected_checks_exist():
    assert {name for fault in seeded_faults() for name in fault.expected} <= check_names()


@pytest.mark.parametrize("task", TASKS)
def test_every_fault_is_seeded_or_says_why_not(task, known):
    "A faulty task differs from the healthy one, which is the same before and after."
    healthy = known(task)[0]
    before, absent, same = trace(known(task), healthy.job), {}, []
    for fault in FAULTS.values():
        try:
            if trace(known(task), fault.seed(healthy)) == before:
                same.append(fault.name)
        except NotHere as why:
            absent[fault.name] = str(why)
    assert not same
    assert trace(known(task), healthy.job) == before
    wanted = {name: why for name, (where, why) in ABSENT.items() if task in where}
    if task == "draw":  # its first stage makes pictures out of themselves
        wanted |= dict.fromkeys(BLIND, "the loss reads no input beside its targets")
    assert absent.keys() == wanted.keys() and all(why in absent[name] for name, why in wanted.items()), absent


def values(known, job, training=True, times=1):
    "The parts of the first objective for a few training rows."
    faulty = begun(job, known[1], known[2])
    batch = batch_of(faulty.data, "train")
    set_modes(faulty.nets, False)
    ctx = faulty.ctx(training=training, generator=torch.Generator().manual_seed(0), counts={
        k: times * v for k, v in faulty.data.counts(batch).items()})
    parts = faulty.task.objectives(faulty.stage.cfg)[faulty.stage.objectives[0]].loss(faulty.nets, batch, ctx)
    return {k: float(v.detach()) for k, v in parts.items()}


def test_the_losses_are_what_the_faults_say(known):
    of, healthy = known("pairs"), known("pairs")[0]
    loss = lambda name, **how: values(of, FAULTS[name].seed(healthy), **how)
    right, half = values(of, healthy.job), values(of, healthy.job, times=2)
    close = pytest.approx
    assert loss("the wrong sign") == close({k: -v for k, v in right.items()})
    assert loss("a detached loss") == close(right) and loss("a detached module") == close(right)
    assert loss("a part that counts for nothing")["ce"] == 0
    assert loss("a part that counts for nothing")["loss"] == close(right["loss"] - right["ce"], abs=1e-5)
    assert loss("a mean in place of a share") == close(right)
    assert loss("a mean in place of a share", times=2) == close(right) != close(half)
    assert loss("blind in training", training=False) == close(right) != close(loss("blind in training"))
    assert loss("targets rolled in training", training=False) == close(right)
    assert loss("a constant loss") == dict.fromkeys(right, 1.0)


def test_weights_of_the_parts_and_modules_are_known(known):
    healthy = known("pairs")[0]
    assert healthy.weights == pytest.approx({"ce": 1.0, "counted": 0.3})
    assert (healthy.inner, healthy.last, healthy.statistics) == ("encoder", "decoder", ["symbols.norm"])
    assert healthy.modes and not healthy.silent and {"source", "mask", "labels"} <= set(healthy.read)


def test_a_trial_names_what_the_checks_have_seen():
    "What is caught by name in the toy of the checks, with today's questions and whatever is asked besides."
    tried = {t.fault.name: t for t in trial(settings("faulty"), seconds=0)}
    named = {name for name, t in tried.items() if t.result == "by name"}
    assert named >= {"empty inputs", "a detached loss", "the wrong sign",
                     "a part that counts for nothing", "a constant loss", "a layer that is never called",
                     "a frozen part that decays", "a state outside the checkpoint",
                     "a rate of nothing"}, tried
    assert tried["a layer that is never called"].check == "gradients" and "seeded" in tried[
        "a layer that is never called"].says
    assert tried["frozen statistics move"].says == "no frozen part has batch statistics"
    assert {t.result for t in tried.values()} <= {"by name", "vague", "missed", "in a run", "not here"}


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    cfg = settings("faulty")
    before = check(cfg)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    some = [FAULTS[name] for name in ("a frozen part that decays", "a row with NaN", "the preview raises")]
    assert len(list(trial(cfg, some, seconds=0))) == 3
    one = trial(cfg, some, seconds=0)
    next(one)
    one.close()  # whoever looks at the first alone
    assert not list(tmp_path.iterdir()) and check(cfg) == before


def test_an_error_that_the_fault_did_not_raise_says_that_it_cannot_be_tried(known):
    def breaks(loss, nets, batch, ctx):
        raise IndexError("index 9 is out of bounds")

    def refuses(loss, nets, batch, ctx):
        raise Refused("It cannot be.")
    healthy, setup, run = known("faulty")
    of = lambda around: try_fault(Fault("a", "loss", "b", ("c",), lambda h: with_loss(h.job, around)),
                                  healthy, setup, run, [])
    assert of(breaks).result == "not here" and "IndexError: index 9" in of(breaks).says
    assert (of(refuses).result, of(refuses).check) == ("vague", "refused")
    assert of(constant).result == "vague"  # no expected name


def test_the_command_shows_what_was_caught_and_what_was_missed(monkeypatch, capsys, tmp_path):
    settings("faulty")
    some = [f for f in seeded_faults() if f.kind != "data" and f.seen == "quick"]
    monkeypatch.setattr("workbench.lab.faults.trial.seeded_faults", lambda: some)
    config = "task: faulty\ntrackers: []\ntrain: {max_steps: 4, lr: 0.01}\n"
    path = tmp_path / "toy.yaml"
    path.write_text(config, encoding="utf8")
    assert cli.main(["check", str(path), "--faults"]) == 0
    out = capsys.readouterr().out
    assert "Faults that the checks catch here" in out and "a detached loss" in out
    assert re.search(r"\d+ of \d+ faults are caught here: \d+ by name, \d+ vaguely; \d+ missed; \d+ do not "
                     r"apply\.",
                     out.splitlines()[-1])
    path.write_text(config + "fault: never called\n", encoding="utf8")
    assert cli.main(["check", str(path), "--faults"]) == 2
    err = capsys.readouterr().err
    assert "does not pass as it is" in err and "`namer.unused.weight` got no gradient" in err
