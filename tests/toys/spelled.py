"A task for tests whose texts would do harm in a page, and whose loss can be made to look at nothing."
import torch
from torch import nn

from workbench.core.config.section import Section
from workbench.core.task import Data, Objective, Task

HARM = "<img src=x onerror=\"window.harmed=1\"><script>window.harmed=1</script>"


class SpelledConfig(Section):
    blind: bool = False  # a loss that no input reaches
    sleep: float = 0.0  # seconds a step takes


class Rows:
    "Points and a name that is markup."

    def __init__(self, n, first=0):
        self.n, self.first = n, first

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        x = torch.tensor([((self.first + at[0]) * k % 101) / 101 for k in (37, 53, 71)])
        return f"r{self.first + at[0]}{HARM}", x, x.sum().reshape(1) + 1


def data(cfg, stage):
    datasets = {"train": Rows(60), "valid": Rows(10, 60), "test": Rows(7, 70)}
    names = {k: [d[i, 0][0] for i in range(len(d))] for k, d in datasets.items()}
    return Data(datasets=datasets,
                collate=lambda items: {"uid": [i[0] for i in items], "x": torch.stack([i[1] for i in items]),
                                       "y": torch.stack([i[2] for i in items])},
                lengths={k: [3 + i % 4 for i in range(len(d))] for k, d in datasets.items()},
                counts=lambda b: {"rows": len(b["uid"])}, uids=names, targets=("y",),
                show=lambda batch: {"texts": "\n".join(batch["uid"])},
                rejected=[{"row": HARM, "uid": HARM, "reason": HARM}], facts={"source": HARM})


def nets(cfg, data, load_weights):
    torch.manual_seed(cfg.seed)
    return {"net": nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))}


def fit(nets, batch, ctx):
    import time

    time.sleep(ctx.cfg.sleep if ctx.training else 0)
    x = torch.zeros_like(batch["x"]) if ctx.cfg.blind else batch["x"]
    return {"loss": (nets["net"](x) - batch["y"]).square().sum() / ctx.counts["rows"]}


def predict(nets, batch, ctx):
    return [{"uid": u, "reference": HARM, "hypothesis": f"{float(s):.3f}{HARM}"}
            for u, s in zip(batch["uid"], nets["net"](batch["x"])[:, 0])]


task = Task(config=SpelledConfig, data=data, nets=nets,
            objectives=lambda cfg: {"fit": Objective(["net"], fit)}, predict=predict,
            score=lambda rows, data: {"error": sum(len(r["hypothesis"]) for r in rows) / len(rows)},
            baseline=lambda data, split: {"error": 1.0}, expect=lambda nets, batch, ctx: {},
            preview=lambda nets, data, ctx: {"note": HARM})
