"A task for tests: a generator and a critic learn where points lie, with two optimisers of different kinds."
import torch
from torch import nn

from workbench.core.config.section import Section
from workbench.core.task import Data, Objective, Task


class Points:
    "Pairs (row id, a point on the line y = 2x); the epoch moves x, as an augmentation would."

    def __init__(self, n, first=0):
        self.n, self.first = n, first

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        i, epoch = at
        x = ((self.first + i) * 37 % 101) / 101 + 0.01 * epoch
        return f"r{self.first + i}", torch.tensor([x, 2 * x])


class GanConfig(Section):
    width: int = 8
    dropout: float = 0.1


def data(cfg, stage):
    datasets = {"train": Points(60), "valid": Points(10, 60), "test": Points(7, 70)}
    return Data(datasets=datasets,
                collate=lambda items: {"uid": [u for u, _ in items],
                                       "point": torch.stack([p for _, p in items])},
                lengths={k: [3 + i % 4 for i in range(len(d))] for k, d in datasets.items()},
                counts=lambda b: {"rows": len(b["uid"])},
                uids={k: [f"r{d.first + i}" for i in range(len(d))] for k, d in datasets.items()},
                targets=("point",))


def nets(cfg, data, load_weights):
    torch.manual_seed(cfg.seed)

    def net(inputs, outputs):
        return nn.Sequential(nn.Linear(inputs, cfg.width), nn.Tanh(), nn.Dropout(cfg.dropout),
                             nn.Linear(cfg.width, outputs))
    return {"generator": net(2, 2), "critic": net(2, 1)}


def fool(nets, batch, ctx):
    noise = torch.randn(len(batch["uid"]), 2, generator=ctx.generator, device=batch["point"].device)
    fake = nets["generator"](noise)
    ctx.cache["fake"] = fake.detach()
    distance = (fake.mean(0) - batch["point"].mean(0)).square().sum() * len(fake) / ctx.counts["rows"]
    return {"loss": -nets["critic"](fake).sum() / ctx.counts["rows"] + distance, "distance": distance}


def judge(nets, batch, ctx):
    fake = ctx.cache["fake"] if "fake" in ctx.cache else torch.zeros_like(batch["point"])
    wrong = (1 + nets["critic"](fake)).relu() + (1 - nets["critic"](batch["point"])).relu()
    return {"loss": wrong.sum() / ctx.counts["rows"]}


def objectives(cfg):
    return {"fool": Objective(["generator"], fool, parts=["distance"]),
            "judge": Objective(["critic"], judge, {"critic_steps": ["critic"]}, ["loss"])}


def predict(nets, batch, ctx):
    says = nets["critic"](batch["point"])[:, 0] > 0
    return [{"uid": u, "reference": "real", "hypothesis": "real" if s else ""}
            for u, s in zip(batch["uid"], says)]


task = Task(config=GanConfig, data=data, nets=nets, objectives=objectives, predict=predict,
            score=lambda rows, data: {"accepted": sum(bool(r["hypothesis"]) for r in rows) / len(rows)},
            baseline=lambda data, split: {"accepted": 0.5}, expect=lambda nets, batch, ctx: {},
            preview=lambda nets, data, ctx: {"note": f"step {ctx.step}"})
