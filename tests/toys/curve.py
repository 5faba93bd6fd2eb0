"""A task for tests: two nets learn a curve under one objective, a third guesses their errors.

The two have an optimiser each. The variable TOY_TRAP names what goes wrong, and when, so that the
configuration of a run stays as it is."""
import os
import signal
import time

import numpy as np
import torch
from torch import nn

from workbench.core.config.section import Section
from workbench.core.task import Data, Objective, Task


class Curve:
    "(row id, x [3], y [1]); an augmentation moves x by a random number of (row, epoch)."

    def __init__(self, n, first=0):
        self.n, self.first = n, first

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        i, epoch = at
        x = np.random.default_rng(self.first + i).normal(size=3)
        moved = x + 0.01 * np.random.default_rng([i, epoch]).normal(size=3)
        return (f"r{self.first + i:03d}", torch.tensor(moved).float(),
                torch.tensor([np.sin(x[0]) + x[1] * x[2]]).float())


class CurveData(Section):
    rows: int = 66  # of the training split
    first: int = 0  # the first of them


class CurveConfig(Section):
    data: CurveData = CurveData()
    width: int = 8
    dropout: float = 0.0
    norm: bool = False  # batch statistics in the body
    noise: float = 0.0  # drawn from the generator of the context
    lift: bool = False  # a third objective, which trains a part of the body
    spare: bool = False  # a layer of the head that no loss uses


def data(cfg, stage):
    datasets = {"train": Curve(cfg.data.rows, cfg.data.first), "valid": Curve(11, 100), "test": Curve(7, 200)}

    def collate(items):
        uid, x, y = zip(*items)
        return {"uid": list(uid), "x": torch.stack(x), "y": torch.stack(y)}
    return Data(datasets=datasets, collate=collate,
                lengths={k: [3 + i % 4 for i in range(len(d))] for k, d in datasets.items()},
                counts=lambda b: {"rows": len(b["uid"])},
                uids={k: [f"r{d.first + i:03d}" for i in range(len(d))] for k, d in datasets.items()},
                targets=("y",))


def nets(cfg, data, load_weights):
    torch.manual_seed(cfg.seed)
    norm = nn.BatchNorm1d(cfg.width) if cfg.norm else nn.Identity()
    body = nn.Sequential(nn.Linear(3, cfg.width), norm, nn.Tanh(), nn.Dropout(cfg.dropout),
                         nn.Linear(cfg.width, cfg.width))
    head = nn.ModuleDict({"out": nn.Linear(cfg.width, 1)} | ({"spare": nn.Linear(1, 1)} if cfg.spare else {}))
    return {"body": body, "head": head, "judge": nn.Linear(cfg.width, 1)}


def trap(ctx, loss):
    "TOY_TRAP is `what:step`, or `pause:seconds` for every step."
    what, _, at = os.environ.get("TOY_TRAP", "").partition(":")
    if what == "pause":
        time.sleep(float(at))
    elif what and ctx.training and (ctx.step, ctx.slot) == (int(at), 0):
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range({"term": 1, "twice": 2}.get(what, 0)):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        if what == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore lines.")
        if what == "nan":
            return loss * float("nan")
    return loss


def fit(nets, batch, ctx):
    noise = torch.randn(batch["x"].shape, generator=ctx.generator, device=batch["x"].device)
    hidden = nets["body"](batch["x"] + ctx.cfg.noise * noise)
    error = (nets["head"]["out"](hidden) - batch["y"]).square()
    ctx.cache.update(hidden=hidden.detach(), error=error.detach())
    loss = error.sum() / ctx.counts["rows"]
    return {"loss": trap(ctx, loss), "worst": error.max() / ctx.counts["rows"]}


def guess(nets, batch, ctx):
    return {"loss": (nets["judge"](ctx.cache["hidden"]) - ctx.cache["error"]).square().sum()
            / ctx.counts["rows"]}


def lift(nets, batch, ctx):
    return {"loss": (nets["body"][0](batch["x"]).mean(1) - 1).square().sum() / ctx.counts["rows"]}


def objectives(cfg):
    both = {"fit": Objective(["body", "head"], fit, {"slow": ["body"], "fast": ["head"]}, ["worst"]),
            "guess": Objective(["judge"], guess, parts=["loss"])}
    return both | ({"lift": Objective(["body.0"], lift, parts=["loss"])} if cfg.lift else {})


def predict(nets, batch, ctx):
    says = nets["head"]["out"](nets["body"](batch["x"]))[:, 0]
    return [{"uid": u, "reference": f"{float(y):.6f}", "hypothesis": f"{float(s):.6f}"}
            for u, y, s in zip(batch["uid"], batch["y"][:, 0], says)]


def score(rows, data):
    return {"error": sum(abs(float(r["reference"]) - float(r["hypothesis"])) for r in rows) / len(rows)}


task = Task(config=CurveConfig, data=data, nets=nets, objectives=objectives, predict=predict, score=score,
            baseline=lambda data, split: {"error": 1.0}, expect=lambda nets, batch, ctx: {},
            preview=lambda nets, data, ctx: {"note": f"step {ctx.step}"})
