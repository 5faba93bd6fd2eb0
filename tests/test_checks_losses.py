"""The questions about losses name the gallery's faults that are theirs, and pass what is healthy."""
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from workbench.core.checks.check import check
from workbench.core.checks.few_rows import batch_of, spread
from workbench.core.checks.forward import training_passes, zeros_nudged
from workbench.core.checks.modes import Draws
from workbench.core.checks.questions import chance_band, check_first_loss, check_losses
from workbench.core.config import presets
from workbench.core.run.folder import create
from workbench.core.setup.prepare import prepare
from workbench.core.step.optim import named_parameters

GALLERY = Path(__file__).parents[1] / "bench/gallery"
FAULTS = {  # (system, fault): (the check, its state, what it says)
    ("pairs", "the decoder ignores its encoder"): ("inputs matter", "failed",
                                                   "`ce` reads its targets and not source"),
    ("pairs", "no encoder in training"): ("inputs matter", "failed",
                                          "in training mode (in evaluation mode by 0.0"),
    ("pairs", "targets of the batch before"): ("batches", "failed", "something of the batch before"),
    ("pairs", "the first batch for ever"): ("batches", "failed", "the first batch forever"),
    ("pairs", "no dropout in training"): ("training mode", "failed", "`encoder.layers.layers.0.self_attn`"),
    ("pairs", "dropout in evaluation"): ("evaluation", "failed", "draws dropout (p = 0.1)"),
    ("pairs", "frozen statistics move"): ("evaluation", "failed", "`symbols.norm` in training mode"),
    ("pairs", "the loss never sees the targets"): ("targets", "failed",
                                                   "`labels` is read and never compared with"),
    ("pairs", "softmax over the rows"): ("first loss", "failed", "normalised over something else"),
    ("pairs", "the wrong sign"): ("first loss", "failed", "its sign is turned"),
    ("pairs", "a weight of zero"): ("first loss", "failed", "its weight is zero"),
    ("pairs", "gradients of nothing"): ("first loss", "failed", "its scale is another"),
    ("pairs", "logits a hundred times too large"): ("first loss", "warned", "ln V is 2.485"),
    ("pairs", "a part that no loss reports"): ("first loss", "failed", "there are loss, ce, counted"),
    ("voice", "symbols of a constant"): ("inputs matter", "failed", "does not read symbols"),
    ("voice", "durations from nothing"): ("targets", "warned", "`time` depends on no target"),
    ("voice", "every frame of the first symbol"): ("targets", "not proven", "`owner` is looked up"),
    ("draw", "the reconstruction is of itself"): ("first loss", "failed", "compared with itself"),
    ("draw", "the picture is passed by"): ("first loss", "failed", "better than chance"),
    ("draw", "divergence with the wrong sign"): ("parts", "warned", "`kl` is -0.1"),
    ("draw", "captions are never read"): ("inputs matter", "failed", "does not read caption")}
VARIANTS = [("pairs", v) for v in ("", "tied", "no dropout", "last layer at zero", "gate at zero", "adapter",
                                   "frozen encoder", "terms of both signs")]
VARIANTS += [("voice", v)
             for v in ("", "quantised base", "answers at zero", "frames alone", "two optimisers")]
VARIANTS += [("draw", v) for v in ("", "no discriminator", "pairs in the batch", "flow")]
OURS = {"first loss", "evaluation", "training mode", "batches", "parts", "targets", "inputs matter"}


@pytest.fixture(autouse=True)
def gallery(monkeypatch):
    monkeypatch.setenv("WORKBENCH_TASKS",
                       ",".join(str(GALLERY / f"{n}.py") for n in ("pairs", "voice", "draw")))


def config(system, fault="", variant=""):
    return presets.load({"task": system, "trackers": [], "fault": fault, "variant": variant,
                         "train": {"max_steps": 60, "lr": 0.003, "batch_size": 16}})


def prepared(tmp_path, system, **kind):
    return prepare(create(config(system, **kind), tmp_path / "run"))


@pytest.mark.parametrize("system, fault", FAULTS)
def test_a_fault_is_named(system, fault):
    name, state, word = FAULTS[system, fault]
    found = {c.name: c for c in check(config(system, fault)) if c.name in OURS}
    assert found[name].state == state and word in found[name].says, found
    if state == "failed":  # and nothing else is blamed before it
        assert [c.name for c in found.values() if c.state == "failed"] == [name]


@pytest.mark.parametrize("system, variant", VARIANTS)
def test_a_healthy_variant_passes(system, variant):
    found = [c for c in check(config(system, variant=variant)) if c.name in OURS]
    assert not [c for c in found if c.state in ("failed", "warned")], found
    assert {c.name for c in found if c.state == "not proven"} <= {"first loss", "inputs matter", "targets"}


def test_a_gate_of_zero_is_nudged_and_put_back(tmp_path):
    setup = prepared(tmp_path, "pairs", variant="gate at zero")
    with zeros_nudged(setup.nets, 0) as nudged:
        assert nudged == ["gate.gate"] and abs(float(setup.nets["gate"].gate.detach())) >= 0.02
    assert float(setup.nets["gate"].gate.detach()) == 0


def test_passes_in_training_mode_repeat_themselves_and_leave_nothing(tmp_path):
    setup = prepared(tmp_path, "pairs", fault="a frozen part decays")
    before = {n: (p.clone(), p.requires_grad) for n, p in named_parameters(setup.nets).items()}
    buffers = {n: b.clone() for n, b in setup.nets["symbols"].named_buffers()}
    batch = batch_of(setup, spread(setup.data))
    with training_passes(setup) as run:
        a, b = (run(batch, setup.data.counts(batch)) for _ in range(2))
        other = run(batch, setup.data.counts(batch), draw=1)
    assert a.parts == b.parts != other.parts and a.read["read"] == {"source", "mask", "labels", "letters"}
    after = named_parameters(setup.nets)
    assert all(torch.equal(p, after[n]) and after[n].requires_grad is on for n, (p, on) in before.items())
    assert all(torch.equal(b, buffers[n]) for n, b in setup.nets["symbols"].named_buffers())


@pytest.mark.parametrize("ce, ideal, state",
                         [(9.3, 8.3, "passed"), (584.0, 8.3, "warned"), (299.0, 2.4, "warned")])
def test_a_start_far_above_ln_v_is_a_warning(ce, ideal, state):
    "Stock initialisations: a tied T5 costs 9.3, a tied mT5 584, where ln V is 8.3."
    band = chance_band(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
    wide = type(band)((0.5 * ce, 1.5 * ce))
    wide.ideal = ideal
    found = check_first_loss({"loss": ce, "ce": ce}, {"ce": wide}, True)
    assert found.state == state and check_first_loss({"loss": ce}, {"loss": wide}, False).state == "passed"
    low, high = band
    assert low < band.ideal < high


@pytest.mark.parametrize("loss, state", [("twice", "failed"), ("own numbers", "warned"), ("queue", "passed"),
                                         ("spectral norm", "passed")])
def test_what_a_loss_keeps(tmp_path, monkeypatch, loss, state):
    "A buffer may remember other batches; a global list of targets may not; unseeded noise is a warning."
    setup = prepared(tmp_path, "voice")
    setup.nets["decoder"].register_buffer("queue", torch.zeros(1))
    if loss == "spectral norm":
        nn.utils.parametrizations.spectral_norm(setup.nets["decoder"].place)
    kept, noise = [torch.zeros(())], torch.Generator()
    objective = setup.task.objectives(setup.cfg)["speak"]

    def remembers(nets, batch, ctx):
        parts, queue = objective.loss(nets, batch, ctx), nets["decoder"].queue
        extra = {"spectral norm": torch.zeros(()), "twice": kept[-1],
                 "own numbers": torch.randn((), generator=noise), "queue": queue[0].clone()}[loss]
        kept.append(batch["frames"].mean())
        queue.copy_(batch["frames"].mean()[None])
        return parts | {"loss": parts["loss"] + extra}

    changed = replace(setup.task, objectives=lambda cfg: {"speak": replace(objective, loss=remembers)})
    object.__setattr__(setup.job, "task", changed)
    rows = spread(setup.data)
    found = {c.name: c for c in check_losses(setup, batch_of(setup, rows), rows)}
    assert found["batches"].state == state, found


def test_dropout_is_seen_through_functions_and_attention():
    class Block(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.25)

    body = Block()
    with Draws({"body": body}) as draws:
        draws_of = nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.5).eval())
        draws_of(torch.randn(2, 3)), torch.rand(3).bernoulli_(0.5)
        assert not draws.seen
        torch.dropout(torch.ones(3), 0.1, True)
        body(torch.ones(1, 1, 2, 2))
    assert draws.seen == {"the loss itself": 0.1, "body": 0.25}


def test_no_change_in_half_precision_is_no_proof(tmp_path):
    setup = prepared(tmp_path, "pairs", fault="the decoder ignores its encoder")
    for net in setup.nets.values():
        net.bfloat16()
    rows = spread(setup.data)
    found = {c.name: c for c in check_losses(setup, batch_of(setup, rows), rows)}
    assert found["inputs matter"].state == "not proven" and "in half precision" in found["inputs matter"].says
