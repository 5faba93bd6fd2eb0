"""Faults of answers, previews and of what is learnt by heart are found and named; the healthy ones pass, and
the control asks the model again."""
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from workbench.core.checks.alone import alike
from workbench.core.checks.answers import asks as answers_asks, check_answers
from workbench.core.checks.attempt import attempt
from workbench.core.checks.learnt import judge_answers, likeness
from workbench.core.checks.overfit import asks as deep_asks, deep
from workbench.core.config import presets
from workbench.core.run.folder import create
from workbench.core.setup.prepare import prepare
from workbench.core.step.evaluate import control, input_fields, predict_rows
from workbench.core.step.optim import named_parameters
from workbench.core.task import Ctx, Data

GALLERY = Path(__file__).parents[1] / "bench" / "gallery"


@pytest.fixture
def setup_of(tmp_path, monkeypatch):
    "A set-up of a small system with a fault or in a healthy variant."
    def make(name, fault="", variant=""):
        monkeypatch.setenv("WORKBENCH_TASKS",
                           ",".join(str(GALLERY / f"{n}.py") for n in ("pairs", "voice", "draw")))
        cfg = presets.load({"task": name, "trackers": [], "fault": fault, "variant": variant,
                            "train": {"max_steps": 60, "lr": 0.003, "batch_size": 16}})
        return prepare(create(cfg, tmp_path / "run"))
    return make


FAULTS = {  # fault -> (system, check, words of what it says)
    "prediction in training mode": ("pairs", "answers", "training mode: `decoder`"),
    "prediction raises": ("pairs", "answers", "expected a 3D tensor, got a 2D one (pairs.py, line"),
    "the answer is the reference": ("pairs", "answers", "the answer is the reference"),
    "answers of other rows": ("pairs", "alone", "answers stand beside other rows"),
    "a shape for many rows alone": ("voice", "alone",
                                        "`predict` raised IndexError on row valid202 alone"),
    "the preview raises": ("pairs", "preview", "ZeroDivisionError: division by zero (pairs.py, line"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_answers_is_found(setup_of, fault, capsys):
    system, name, words = FAULTS[fault]
    found = {c.name: c for c in check_answers(setup_of(system, fault))}
    assert found[name].state == "failed" and words in found[name].says, found
    assert [c.name for c in found.values() if c.state == "failed"] == [name]
    assert ("Traceback" in capsys.readouterr().err) == ("raise" in fault or "shape" in fault)


@pytest.mark.parametrize("system, variant", [("pairs", ""), ("pairs", "tied"), ("voice", ""), ("draw", ""),
                                             ("draw", "no discriminator")])
def test_healthy_answers_pass_and_leave_no_trace(setup_of, system, variant):
    setup = setup_of(system, variant=variant)
    [net.train() for net in setup.nets.values()]
    before = {n: p.clone() for n, p in named_parameters(setup.nets).items()}
    found = check_answers(setup)
    assert {c.name for c in found} == set(answers_asks)
    # an autoencoder's answer follows its target, and nothing tells that from one that is read off
    assert all(c.state == "passed" or system == "draw" and (c.name, c.state) == ("alone", "not proven")
               for c in found)
    assert all(m.training for net in setup.nets.values() for m in net.modules())
    assert all(torch.equal(p, before[n]) for n, p in named_parameters(setup.nets).items())


DEEP = {  # fault -> (system, check, state, words)
    "one answer for all": ("pairs", "generation", "failed", "1 different answers for 4"),
    "answers of other rows": ("pairs", "generation", "failed", "those of other rows"),
    "the decoder reads its target": ("pairs", "generation", "failed", "it reads its target"),
    "softmax twice": ("pairs", "overfit", "warned", "every answer is right: it cannot approach zero"),
    "the wrong sign": ("pairs", "generation", "failed", "fell below zero, so a sign is wrong"),
    "divergence with the wrong sign": ("draw", "parts", "warned", "`kl` is -"),
    "always the mean picture": ("draw", "generation", "failed", "1 different answers for 3"),
}


@pytest.mark.parametrize("fault", DEEP)
def test_a_fault_is_found_in_what_is_learnt_by_heart(setup_of, fault):
    system, name, state, words = DEEP[fault]
    found = {c.name: c for c in deep(setup_of(system, fault), 60)}
    assert found[name].state == state and words in found[name].says, found


@pytest.mark.parametrize("system, variant", [("pairs", "terms of both signs"), ("voice", "quantised base"),
                                             ("draw", ""), ("draw", "pairs in the batch")])
def test_healthy_rows_are_learnt_by_heart(setup_of, system, variant):
    found = deep(setup_of(system, variant=variant), 60)
    assert {c.name for c in found} <= set(deep_asks) and found[0].state == "passed", found
    assert not [c for c in found if c.state in ("failed", "warned")], found


def test_what_raises_is_named_by_the_innermost_line_of_the_user(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("import torch\n\ndef predict():\n    return torch.zeros(2).view(3)\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import mine
    finally:
        sys.path.remove(str(tmp_path))
    value, failed = attempt("answers", "predict", mine.predict)
    assert value is None and failed.says.endswith("(mine.py, line 4)."), failed
    assert "Traceback" in capsys.readouterr().err


def test_answers_are_alike_but_for_rounding():
    speech = lambda x: types.SimpleNamespace(mel=torch.full((2, 3), x).numpy(), says="a")
    assert alike(speech(1.0), speech(1.0005)) and not alike(speech(1.0), speech(1.5))
    assert alike("a", "a") and not alike("a", "b") and not alike(torch.zeros(2), torch.zeros(3))


def test_an_answer_that_is_cut_short_is_at_home():
    rows = [{"hypothesis": r[:3], "reference": r} for r in ("hello there", "good morning", "thank you")]
    assert likeness(rows).own < 0.5 and judge_answers(rows, True, True).state == "not proven"


def lines(world, read):
    "Rows of one number for `world` ranks of a task that reads them, or says one thing."
    data = Data(datasets={"valid": type("Rows", (),
                                        {"__len__": lambda s: 10, "__getitem__": lambda s, at: at[0]})()},
                collate=lambda ids: {"uid": list(ids), "x": torch.tensor(ids, dtype=torch.float)[:, None],
                                     "lengths": torch.ones(len(ids)), "y": torch.tensor(ids)},
                lengths={"valid": [1] * 10}, counts=lambda b: {}, uids={"valid": list(range(10))},
                targets=("y",),
                padding={"x": "lengths", "y": "y_mask"})
    task = types.SimpleNamespace(
        predict=lambda nets, b,
        ctx: [{"uid": u, "reference": str(u // 2), "hypothesis": str(int(x) // 2 if read else 1)}
                                      for u, x in zip(b["uid"], b["x"])],
        score=lambda rows, data: {"exact": sum(r["reference"] == r["hypothesis"] for r in rows) / len(rows)})
    return task, data, Ctx(cfg=types.SimpleNamespace(seed=0), data=data)


@pytest.mark.parametrize("read, own, other", [(True, 1.0, 0.0), (False, 0.2, 0.2)])
def test_the_control_asks_the_model_again(read, own, other):
    task, data, ctx = lines(1, read)
    rows = predict_rows(task, {}, data, "valid", ctx, 5)
    found = control(task, {}, data, "valid", ctx, 5, rows)
    assert found == {"control": {"exact": other}, "own": {"exact": own}, "rows": 10}
    assert control(task, {}, data, "valid", ctx, 5, rows, most=5)["rows"] == 5
    assert control(task, {}, data, "valid", ctx, 5, rows, deadline=time.monotonic() - 1)["rows"] == 5
    assert "no row stands beside" in control(task, {}, data, "valid", ctx, 1, rows)["why"]
    assert input_fields(data.collate([0, 1]), data) == ["x", "lengths"]


def test_a_control_that_raises_says_so(capsys):
    task, data, ctx = lines(1, True)
    rows = predict_rows(task, {}, data, "valid", ctx, 5)
    task.predict = lambda nets, b, ctx: 1 / 0
    found = control(task, {}, data, "valid", ctx, 5, rows)
    assert (found["control"] == {} and "ZeroDivisionError" in found["why"]
            and "Traceback" in capsys.readouterr().err)
