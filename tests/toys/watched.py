"""A task for tests of the watch: a body and a head learn a curve, a judge guesses their error.

`fault` brings in what goes wrong after the first steps; TOY_TRAP (`where:step:what`) kills or raises."""
import os
import signal

import numpy as np
import torch
from torch import nn

from workbench.core.config.section import Section
from workbench.core.task import Data, Objective, Task


class WatchedConfig(Section):
    fault: str = ""
    variant: str = ""
    dropout: float = 0.0
    norm: bool = False


class Rows:
    "(id, x [3], y [1])"

    def __init__(self, split, n, first, fault):
        self.split, self.n, self.first, self.fault = split, n, first, fault

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        i = at[0]
        x = np.random.default_rng(self.first + i).normal(size=3)
        other = np.random.default_rng(self.first + (7 * i + 3) % self.n).normal(size=3)
        told = other if self.fault == "others" and self.split == "r" else x
        if self.fault == "nan_data" and self.split == "r" and i == 17:
            x = x * np.nan
        return (f"{self.split}{i:03d}", torch.tensor(x).float(),
                torch.tensor([np.sin(told[0]) + told[1]]).float())


def data(cfg, stage):
    sets = {"train": Rows("r", 64, 0, cfg.fault), "valid": Rows("v", 32, 100, cfg.fault),
            "test": Rows("t", 8, 200, cfg.fault)}

    def collate(items):
        uid, x, y = zip(*items)
        return {"uid": list(uid), "x": torch.stack(x), "y": torch.stack(y)}
    return Data(datasets=sets, collate=collate, lengths={k: [1] * len(d) for k, d in sets.items()},
                counts=lambda b: {"rows": len(b["uid"])},
                uids={k: [f"{d.split}{i:03d}" for i in range(len(d))] for k, d in sets.items()},
                targets=("y",))


def nets(cfg, data, load_weights):
    torch.manual_seed(cfg.seed)
    body = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(cfg.dropout), nn.Linear(8, 8))
    made = {"body": body, "head": nn.Linear(8, 1), "judge": nn.Linear(8, 1), "still": nn.Linear(3, 3),
            "still_norm": nn.BatchNorm1d(3), "norm": nn.BatchNorm1d(3) if cfg.norm else nn.Identity()}
    made["still"].requires_grad_(False)
    made["still_norm"].requires_grad_(False)
    if cfg.variant == "teacher":
        made["teacher"] = nn.Linear(8, 1)
        made["teacher"].load_state_dict(made["head"].state_dict())
        made["teacher"].requires_grad_(False)
    if cfg.variant == "rows":
        made["judge"].weight.frozen_rows = torch.tensor([0])
    return made


def trap(where, step, rows=()):
    "TOY_TRAP: in a function, at a step or on a split, a kill or an error, which row 3 alone raises."
    place, _, rest = os.environ.get("TOY_TRAP", "").partition(":")
    at, _, what = rest.partition(":")
    third = [u for u in rows if u[1:] == "003"]
    if place != where or at not in (str(step), *{{"t": "test"}.get(u[0])
                                                 for u in rows}) or rows and not third:
        return
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise KeyError("a symbol")


LATE = 8  # the step from which a fault shows that the checks before the first step cannot see
SEEN = {"validations": 0}


def fit(nets, batch, ctx):
    fault, rows = ctx.cfg.fault, ctx.counts["rows"]
    trap("train" if ctx.training else "valid_loss", ctx.step, () if ctx.training else batch["uid"])
    x = batch["x"]
    with torch.no_grad():
        x = nets["still_norm"](x) + 0 * nets["still"](x)
        late = ctx.training and ctx.step >= LATE
        if fault == "drifts" and late:
            nets["still"].weight.mul_(0.999)
        if fault == "statistics" and ctx.training and ctx.step >= 6:
            nets["still_norm"].train()
        if ctx.cfg.variant == "teacher" and late:
            for a, b in zip(nets["teacher"].parameters(), nets["head"].parameters()):
                a.lerp_(b, 0.01)
    hidden = nets["body"](nets["norm"](x))
    if fault == "gone" and SEEN["validations"]:
        hidden = hidden.detach()
    error = (nets["head"](hidden) - batch["y"]).square()
    ctx.cache.update(hidden=hidden.detach(), error=error.detach())
    loss = error.sum() / rows
    if fault == "zeroed" and ctx.training and ctx.step >= 6:
        loss = loss.detach() + 0 * sum(p.sum() for k in ("body", "head", "norm")
                                       for p in nets[k].parameters())
    odd = [i for i, u in enumerate(batch["uid"]) if u == "r017"]
    if fault == "nan" and odd:
        loss = loss + hidden[odd].sum() * float("nan")
    if fault == "root" and odd:
        loss = loss + (0 * hidden[odd].sum()).abs().sqrt()
    if fault == "eval" and late:
        nets["body"].eval()
    return {"loss": loss}


def guess(nets, batch, ctx):
    said = nets["judge"](ctx.cache["hidden"])
    if ctx.cfg.variant == "hinge":
        return {"loss": (said - 1e3).relu().sum() / ctx.counts["rows"] if ctx.step >= LATE
                else said.square().sum() / ctx.counts["rows"]}
    if ctx.cfg.fault == "lost" and ctx.training and ctx.step == LATE:  # as an update that is rounded away
        for p in nets["judge"].parameters():
            p.register_hook(lambda g: 1e-30 * g)
    return {"loss": (said - ctx.cache["error"]).square().sum() / ctx.counts["rows"]}


def objectives(cfg):
    return {"fit": Objective(["body", "head"] + ["norm"] * cfg.norm, fit, parts=["loss"]),
            "guess": Objective(["judge"], guess, parts=["loss"])}


def predict(nets, batch, ctx):
    trap("predict", ctx.step, batch["uid"])
    SEEN["validations"] += ctx.step > 0
    if ctx.cfg.fault == "training" and ctx.step:  # in the run alone: the checks would see it
        nets["norm"].train()
    x = nets["norm"](batch["x"]) if ctx.cfg.norm else batch["x"]
    said = nets["head"](nets["body"](x))[:, 0]
    return [{"uid": u, "reference": f"{float(y):.5f}", "hypothesis": f"{float(s):.5f}", "step": ctx.step}
            for u, y, s in zip(batch["uid"], batch["y"][:, 0], said)]


def score(rows, data):
    trap("score", rows[0]["step"], [r["uid"] for r in rows])
    return {"error": sum(abs(float(r["reference"]) - float(r["hypothesis"])) for r in rows) / len(rows)}


def preview(nets, data, ctx):
    trap("preview", ctx.step)
    return {"note": f"step {ctx.step}"}


task = Task(config=WatchedConfig, data=data, nets=nets, objectives=objectives, predict=predict, score=score,
            baseline=lambda data, split: {"error": 1.0}, expect=lambda nets, batch, ctx: {}, preview=preview)
