"""A task for tests: rows of numbers are sorted into four kinds by adapters on a base in 4 bits.

`layers` says whose layers: those of bitsandbytes, or an imitation of how they behave on a CPU with
AVX512-BF16, where the first evaluation packs a layer for inference and nothing below it trains any more."""
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from workbench.core.checks.questions import chance_band
from workbench.core.config.section import Section
from workbench.core.task import Data, Objective, Task


class FourbitConfig(Section):
    width: int = 64
    layers: str = "bitsandbytes"  # bitsandbytes | imitation | guarded (bitsandbytes, kept from packing)


class Rows:
    def __init__(self, n, first):
        self.n, self.first = n, first

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        i = self.first + at[0]
        x = torch.randn(16, generator=torch.Generator().manual_seed(i))
        return f"r{i:04d}", x, (x[0] > 0).long() * 2 + (x[1] > 0).long()


def data(cfg, stage):
    sets = {"train": Rows(96, 0), "valid": Rows(32, 1000), "test": Rows(32, 2000)}

    def collate(items):
        uid, x, y = zip(*items)
        return {"uid": list(uid), "x": torch.stack(x), "y": torch.stack(y)}
    return Data(datasets=sets, collate=collate, lengths={k: [1] * len(d) for k, d in sets.items()},
                counts=lambda b: {"rows": len(b["uid"])}, targets=["y"],
                uids={k: [f"r{d.first + i:04d}" for i in range(len(d))] for k, d in sets.items()})


class Packed(nn.Linear):
    "Packed for inference at its first evaluation; no gradient passes it from then on."
    packed = False

    def forward(self, x):
        self.packed = self.packed or not self.training and not x.requires_grad
        return super().forward(x.detach() if self.packed else x)


def four_bits(layers):
    "Makes a layer of so many inputs and outputs."
    if layers == "imitation":
        return lambda a, b: Packed(a, b, bias=False)
    from bitsandbytes.nn import Linear4bit

    def make(a, b):
        layer = Linear4bit(a, b, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16)
        if layers == "guarded":
            layer.support_avx512bf16_for_cpu = False
        return layer
    return make


class Base(nn.Module):
    def __init__(self, width, four):
        super().__init__()
        self.up, self.mid, self.down = nn.Linear(16, width), four(width, width), four(width, width)
        self.out = nn.Linear(width, 4)

    def forward(self, x):
        x = torch.relu(self.up(x))
        x = torch.relu(self.mid(x).float())
        x = torch.relu(self.down(x).float())
        return self.out(x)


def nets(cfg, data, load_weights):
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(cfg.seed)
    base = Base(cfg.width, four_bits(cfg.layers)).to("cpu")  # which quantises
    base.requires_grad_(False)
    adapters = LoraConfig(r=4, target_modules=["mid", "down"])
    return {"model": inject_adapter_in_model(adapters, base)}


def loss(nets, batch, ctx):
    total = cross_entropy(nets["model"](batch["x"]), batch["y"], reduction="sum")
    return {"loss": total / ctx.counts["rows"]}


def predict(nets, batch, ctx):
    said = nets["model"](batch["x"]).argmax(-1)
    return [{"uid": u, "reference": str(int(y)), "hypothesis": str(int(s))}
            for u, y, s in zip(batch["uid"], batch["y"], said)]


def score(rows, data):
    return {"exact": sum(r["reference"] == r["hypothesis"] for r in rows) / len(rows)}


task = Task(config=FourbitConfig, data=data, nets=nets, predict=predict, score=score,
            objectives=lambda cfg: {"sort": Objective(["model"], loss)},
            baseline=lambda data, split: {"exact": 0.25},
            expect=lambda nets, batch, ctx: {"loss": chance_band(nets["model"](batch["x"]), batch["y"])},
            preview=lambda nets, data, ctx: {"note": f"step {ctx.step}"})
