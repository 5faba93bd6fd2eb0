"""What trains, moves, rests and comes back: each fault is named, and healthy trainings are left alone."""
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from workbench.core.checks.check import check
from workbench.core.config import presets
from workbench.core.config.section import Section
from workbench.core.task import Data, Objective, Task


class MixConfig(Section):
    fault: str = ""


class Rows:
    def __init__(self, n, first):
        self.n, self.first = n, first

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        i = self.first + at[0]
        x = torch.randn(6, generator=torch.Generator().manual_seed(i))
        return f"r{i}", x, torch.stack([x[:3].sum().sin(), x[3:].sum().cos()])


def data(cfg, stage):
    sets = {k: Rows(n, first) for k, n, first in (("train", 40, 0), ("valid", 8, 100))}

    def collate(items):
        uid, x, y = zip(*items)
        return {"uid": list(uid), "x": torch.stack(x), "y": torch.stack(y)}
    return Data(datasets=sets, collate=collate, targets=["y"], counts=lambda b: {"rows": len(b["uid"])},
                lengths={k: [1] * len(d) for k, d in sets.items()},
                uids={k: [f"r{d.first + i}" for i in range(len(d))] for k, d in sets.items()})


class Body(nn.Module):
    "A frozen front with batch statistics, a trained middle, and whatever a fault adds."

    def __init__(self, fault):
        super().__init__()
        self.front = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
        self.front.requires_grad_(False)
        self.middle = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))
        self.fault, self.teacher, self.scale = fault, None, torch.ones(1)
        if fault in ("teacher", "decay"):
            self.teacher = nn.Linear(8, 16)
            self.teacher.load_state_dict(self.middle[0].state_dict())
            self.teacher.requires_grad_(False)
        if fault == "half is frozen":
            self.middle[0].requires_grad_(False)
        if fault == "buffer":
            self.register_buffer("drift", torch.zeros(1), persistent=False)

    def forward(self, x):
        if self.fault == "statistics move" and self.training:
            self.front.train()
        if self.fault == "buffer" and self.training:
            self.drift += 1
        if self.fault == "attribute" and self.training:
            self.scale = self.scale * 1.5
        x = self.front(x)
        if self.teacher is not None and self.training:
            with torch.no_grad():
                for mean, p in zip(self.teacher.parameters(), self.middle[0].parameters()):
                    mean.lerp_(p, 0.1) if self.fault == "teacher" else mean.mul_(0.999)
        x = self.middle(x) * self.scale.to(x.dtype)
        return x + self.drift if self.fault == "buffer" else x


def nets(cfg, data, load_weights):
    torch.manual_seed(cfg.seed)
    out = {"body": Body(cfg.fault), "one": nn.Linear(8, 1), "two": nn.Linear(8, 1)}
    return {k: n.bfloat16() if cfg.fault == "bfloat16" else n for k, n in out.items()}


PACKED = []  # what the fault "after an answer" keeps


def loss(nets, batch, ctx):
    fault, x = ctx.cfg.fault, batch["x"]
    if fault == "replaced" and not hasattr(nets["one"], "old"):
        nets["one"].__dict__["old"] = True
        nets["one"].weight = nn.Parameter(nets["one"].weight.detach().clone())
    h = nets["body"](x.bfloat16() if fault == "bfloat16" else x)
    if fault == "after an answer" and PACKED:
        h = h.detach()
    one, two = (((nets[k](h).float()[:, 0] - batch["y"][:, i]).square().sum() / ctx.counts["rows"])
                for i, k in enumerate(("one", "two")))
    return {"loss": one * (1e-9 if fault == "nothing" else 1) + two.detach() * (fault == "detached")
            + two * (fault != "detached"), "one": one, "two": two}


def objectives(cfg):
    trains = ["body.middle", "one"] + ["two"] * (cfg.fault != "left out")
    return {"fit": Objective(["body", *trains[1:]] if cfg.fault in ("half is frozen", "said") else trains,
                             loss,
                             frozen=["body.front"])}


def predict(nets, batch, ctx):
    PACKED.append(1)
    return [{"uid": u, "reference": f"{float(y[0]):.1f}", "hypothesis": "0.0"}
            for u, y in zip(batch["uid"], batch["y"])]


mixed = Task(config=MixConfig, data=data, nets=nets, objectives=objectives, predict=predict,
             score=lambda rows, data: {"hits": 0.0}, baseline=lambda data, split: {"hits": 0.0},
             expect=lambda nets, batch, ctx: {}, preview=lambda nets, data, ctx: {"note": "none"})

FAULTS = {  # fault: (check, a word of what it says)
    "left out": ("coverage", "`two`"), "half is frozen": ("coverage", "`body.middle.0`"),
    "detached": ("gradients", "`two.weight` has a gradient of zero"),
    "replaced": ("gradients", "`one.weight` was replaced"),
    "nothing": ("gradients", "`one`"), "decay": ("frozen", "`body.teacher.weight` is frozen"),
    "statistics move": ("frozen", "`body.front.1.running_mean` is a buffer"),
    "bfloat16": ("update", "bfloat16 weights round"), "buffer": ("checkpoint", "`body.drift`"),
    "attribute": ("checkpoint", "new nets"), "after an answer": ("after answers", "has none after it")}
SETTINGS = {"train.lr=1e-12": "lost in rounding", "train.lr=1000": "too large",
            "train.clip=1e-8": "train.clip=1e-08"}


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    PACKED.clear()
    monkeypatch.setitem(sys.modules, "mixed_toy", SimpleNamespace(task=mixed, __name__="mixed_toy"))
    monkeypatch.setenv("WORKBENCH_TASKS", "mixed_toy")


def found_in(fault="", more=""):
    lr = 1e-5 if fault == "bfloat16" else 1e-3
    cfg = presets.load({"task": "mixed_toy", "trackers": [], "fault": fault,
                        "train": {"max_steps": 100, "lr": lr, "clip": 1.0}}, more)
    return {c.name: c for c in check(cfg) if c.state != "passed" and c.name != "first loss"}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault):
    name, word = FAULTS[fault]
    found = found_in(fault)
    assert name in found and word in found[name].says, found


@pytest.mark.parametrize("override", SETTINGS)
def test_a_step_of_a_strange_size_is_named(override):
    found = found_in(more=override)
    assert SETTINGS[override] in found["update"].says, found


@pytest.mark.parametrize("fault, more", [("", ""), ("teacher", ""), ("said", ""), *(
    ("", f"train.optimizer.type={kind} train.lr={lr}")
    for kind, lr in (("SGD", 0.01), ("Lion", 3e-4), ("Adagrad", 0.01)))])
def test_healthy_trainings_pass(fault, more):
    found = found_in(fault, more)
    assert not {k: c for k, c in found.items() if k in ("coverage", "gradients", "frozen", "steps", "update",
                                                        "checkpoint", "after answers")}, found
