"""Mistakes as people make them in a task of their own are told with their cause; the healthy twin passes."""
import pytest

from workbench.core.checks.check import check
from workbench.core.config import presets

BASE = {"task": "mistaken", "trackers": [],
        "train": {"max_steps": 60, "batch_size": 32, "accumulate": 4, "lr": 3e-3}}

MISTAKES = {  # -> (the check that names it, how it ends, what it says)
    "functional dropout": ("evaluation", "failed", "`decoder` draws dropout (p = 0.3) in evaluation mode: "
                                                   "it does not ask for the mode (training=self.training)"),
    "mean loss": ("reduction", "failed", "`loss` is a mean over the micro-batch"),
    "labels padded with zero": ("padding", "failed", "padding counts"),
    "encoder without gradients": ("gradients", "failed", "`encoder.symbols.weight` got no gradient"),
    "a number of the loss": ("gradients", "failed", "(12 of 12 tensors)"),
    "a head of its own": ("gradients", "failed",
                          "`decoder.out.weight` was replaced after the optimiser was made"),
    "targets not shifted": ("causality", "warned", "targets are not shifted against its input"),
    "softmax over places": ("causality", "warned",
                            "are normalised over dimension 1, that of the 6 places of `y`"),
    "frozen by predict": ("answers", "failed", "turns off the gradient of `encoder.symbols.weight`")}


def told(mistake="", more=""):
    found = check(presets.load(BASE, f"{more} mistake='{mistake}'" if mistake else more))
    return {c.name: (c.state, c.says) for c in found if c.state in ("failed", "warned")}


@pytest.mark.parametrize("more", ["", "train.accumulate=1"])
def test_the_healthy_twin_passes(more):
    assert told(more=more) == {}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_cause(mistake):
    name, state, says = MISTAKES[mistake]
    found = told(mistake)
    beside = {"padding"} if mistake == "softmax over places" else set()  # then padded places are read as well
    assert set(found) - beside == {name} and found[name][0] == state and says in found[name][1], found
