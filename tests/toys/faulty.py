"""A task for tests that names the kind of every frame of a sequence; `fault` brings in what went wrong in
public projects."""
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.utils.rnn import pad_sequence

from workbench.core.config.section import Section
from workbench.core.checks.questions import chance_band
from workbench.core.task import Data, Objective, Task

KINDS = 7


class FaultyConfig(Section):
    fault: str = ""
    shy: bool = False  # a healthy net that collapses all the same: it is asked before it has learnt anything


class Frames:
    "(row id, frames [T, 3], kinds [T]): a frame's kind is told by its direction."

    def __init__(self, n, first, fault):
        self.n, self.first, self.fault = n, first, fault

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        i = self.first + at[0]
        x = np.random.default_rng(i).normal(size=(3 + i % 5, 3))
        kinds = (np.arctan2(x[:, 0], x[:, 1]) / (2 * np.pi) * KINDS % KINDS).astype(int)
        x = {"zeros": 0 * x, "constant": 0 * x + 0.5, "one row": np.ones((3 + i % 5, 1)) * [1, 2, 3],
             "nan": x / (i % 2)}.get(self.fault, x)
        return f"r{i:03d}", torch.tensor(x).float(), torch.tensor(0 * kinds if self.fault == "one target"
                                                                  else kinds)


def data(cfg, stage):
    with np.errstate(all="ignore"):
        datasets = {k: Frames(n, first, cfg.fault)
                    for k, n, first in (("train", 40, 0), ("valid", 8, 50), ("test", 8, 60))}

    def collate(items):
        uid, x, y = zip(*items)
        lengths = torch.tensor([len(f) for f in x])
        return {"uid": list(uid), "x": pad_sequence(x, True),
                "mask": torch.arange(max(lengths))[None] < lengths[:, None],
                "y": pad_sequence(y, True, 0 if cfg.fault == "padding labels" else -100)}
    return Data(datasets=datasets, collate=collate,
                lengths={k: [3 + (d.first + i) % 5 for i in range(len(d))] for k, d in datasets.items()},
                counts=lambda b: {"frames": int(b["mask"].sum())},
                uids={k: [f"r{d.first + i:03d}" for i in range(len(d))] for k, d in datasets.items()},
                targets=["y"], padding={"x": "mask"})


class Namer(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, KINDS))
        self.unused = nn.Linear(3, KINDS) if fault == "never called" else None
        self.table = nn.Embedding(4, KINDS)
        if fault == "frozen rows":
            self.table.weight.frozen_rows = torch.tensor([0, 1])
        self.register_buffer("drift", torch.zeros(KINDS), persistent=fault != "forgotten")
        self.fault = fault

    def forward(self, x):
        if self.training:
            self.drift += 0.1
        if self.fault == "deaf":
            x = torch.ones_like(x)
        out = self.layers(x) + self.table(torch.zeros((), dtype=torch.long, device=x.device)
                                          + 2) + self.drift.cumsum(0)
        if self.fault == "zero":
            out = out + 0 * self.table(torch.tensor(1, device=x.device))
        return out


def nets(cfg, data, load_weights):
    torch.manual_seed(cfg.seed)
    still = nn.Linear(2, 2)
    still.requires_grad_(False)
    return {"namer": Namer(cfg.fault), "still": still}


def loss(nets, batch, ctx):
    fault, out, y = ctx.cfg.fault, nets["namer"](batch["x"]), batch["y"]
    if fault == "drifting" and ctx.training:
        with torch.no_grad():
            # what weight decay does to a tensor that an optimiser should not have
            nets["still"].weight.mul_(0.999)
    # falls as long as one likes: the loss of a public project, completed after 1000 epochs
    if fault == "dummy":
        return {"loss": sum(p.square().sum() for p in nets["namer"].parameters()) - 2344.0}
    if fault == "targets":
        return {"loss": out[batch["mask"]].square().sum() / ctx.counts["frames"]}
    if fault == "leak":
        out = out + 20 * one_hot(y.clamp(0), KINDS)
    if fault == "averaged padding":
        return {"loss": cross_entropy(out.transpose(1, 2), y.clamp(0)) * len(y) / ctx.counts["frames"] * 5}
    return {"loss": cross_entropy(out.transpose(1, 2), y, reduction="sum") / ctx.counts["frames"]}


def predict(nets, batch, ctx):
    said = nets["namer"](batch["x"]).argmax(-1)
    said = torch.zeros_like(said) if ctx.cfg.fault == "collapsed" or ctx.cfg.shy else said
    text = (lambda row,
            mask: "and" if ctx.cfg.fault == "collapsed" else " ".join(str(int(k)) for k in row[mask]))
    return [{"uid": u, "reference": " ".join(str(int(k)) for k in y[m]), "hypothesis": text(s, m)}
            for u, s, y, m in zip(batch["uid"], said, batch["y"], batch["mask"])]


def score(rows, data):
    return {"exact": sum(r["reference"] == r["hypothesis"] for r in rows) / len(rows)}


def expect(nets, batch, ctx):
    return {"loss": chance_band(nets["namer"](batch["x"]), batch["y"])}


task = Task(config=FaultyConfig, data=data, nets=nets,
            objectives=lambda cfg: {"name": Objective(["namer"], loss)},
            predict=predict, score=score, baseline=lambda data, split: {"exact": 0.0}, expect=expect,
            preview=lambda nets, data, ctx: {"note": f"step {ctx.step}"})
