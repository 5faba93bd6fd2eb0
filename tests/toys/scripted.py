"""A task for tests whose validations say what the configuration tells them: validation i of a stage scores
good[i] and costs costs[i]."""
import numpy as np
import torch
from curve import trap
from torch import nn

from workbench.core.config.section import Section
from workbench.core.task import Data, Objective, Sound, Task


class Script(Section):
    good: list[float] = []  # more is better
    costs: list[float] = []


class ScriptedConfig(Section):
    loss: Script = Script()


class Rows:
    def __init__(self, split, n):
        self.names = [f"{split}{i}" for i in range(n)]

    def __len__(self):
        return len(self.names)

    def __getitem__(self, at):
        return self.names[at[0]]


def data(cfg, stage):
    sets = {split: Rows(split, n) for split, n in (("train", 8), ("valid", 2), ("test", 2))}
    return Data(datasets=sets, collate=lambda items: {"uid": items},
                lengths={k: [1] * len(d) for k, d in sets.items()},
                counts=lambda b: {"rows": len(b["uid"])}, uids={k: d.names for k, d in sets.items()})


def told(values, ctx):
    return values[ctx.stage_step - 1] if 0 < ctx.stage_step <= len(values) else 0.0


def loss(nets, batch, ctx):
    share = len(batch["uid"]) / ctx.counts["rows"]
    if not ctx.training:
        return {"loss": torch.tensor(share * told(ctx.cfg.loss.costs, ctx))}
    return {"loss": trap(ctx, nets["m"].weight.square().sum() * share),
            "ramp": torch.tensor(share * ctx.stage_step)}


def predict(nets, batch, ctx):
    return [{"uid": u, "reference": u, "hypothesis": repr(told(ctx.cfg.loss.good, ctx))}
            for u in batch["uid"]]


def preview(nets, data, ctx):
    return {"beep": Sound(np.zeros(80), 8000)}


task = Task(config=ScriptedConfig, data=data, nets=lambda cfg, data, load_weights: {"m": nn.Linear(1, 1)},
            objectives=lambda cfg: {"fit": Objective(["m.weight"], loss, parts=["ramp"])},
            predict=predict, score=lambda rows, data: {"good": float(rows[0]["hypothesis"])},
            baseline=lambda data, split: {"good": 0.0},
            expect=lambda nets, batch, ctx: {}, preview=preview, better={"good": "max"})
