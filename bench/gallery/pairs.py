"""A small translation for the gallery of faults: numbers spelt by one alphabet are read and spelt by another.

Symbols pass a frozen embedding with batch statistics, a trained encoder, and a decoder with attention; two losses: cross-entropy
of the answer, and of the number of its letters, read from the encoder. Shapes: B rows, S source letters, T target letters, D width.
"""
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from workbench.core.checks.questions import chance_band
from workbench.core.config.section import Section
from workbench.core.task import Data, Objective, Task

LETTERS, START, END = 9, 10, 11  # 1 … 9 are letters, 0 is padding
VOCABULARY, LONGEST = 12, 7


class PairsConfig(Section):
    fault: str = ""
    variant: str = ""
    width: int = 32
    dropout: float = 0.1


def word(i):
    "The letters of row i."
    rng = np.random.default_rng([7, i])
    return rng.integers(1, LETTERS + 1, rng.integers(3, LONGEST)).tolist()


def answer(letters):
    "Each letter's partner, in the other order."
    return [LETTERS + 1 - x for x in reversed(letters)]


class Words:
    "(uid, source [S], target [T]) of row i; the epoch draws a letter that is blotted out in training."

    def __init__(self, split, n, first, fault):
        self.split, self.n, self.first, self.fault = split, n, first, fault

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        i, epoch = at
        source = word(self.first + i)
        target = answer(source)
        fault, rng = self.fault, np.random.default_rng([i, epoch])
        if fault == "targets of other rows" and self.split == "train":
            target = answer(word(self.first + (i * 7 + 3) % self.n))
        if fault == "one target":
            target = [5, 5, 5]
        if fault == "nearly one target" and i % 16:
            target = [5, 5, 5]
        if fault == "random targets" and self.split == "train":
            target = rng.integers(1, LETTERS + 1, len(target)).tolist()
        if fault == "same input":
            source = [1, 2, 3]
        if fault == "empty input":
            source = [0] * len(source)
        noisy = self.split == "train" or fault == "augmented validation"
        if noisy and fault != "still augmentation":
            source[rng.integers(len(source))] = 0 if fault != "rewritten rows" else int(rng.integers(1, 9))
        if fault == "rewritten rows" and noisy:
            source = rng.integers(1, LETTERS + 1, len(source)).tolist()
        return f"{self.split}{self.first + i:04d}", torch.tensor(source), torch.tensor([*target, END])


def data(cfg, stage):
    firsts = {"train": (96, 0), "valid": (24, 200), "test": (24, 300)}
    if cfg.fault == "held-out rows are training rows":
        firsts["valid"] = (24, 10)
    datasets = {k: Words(k, n, first, cfg.fault) for k, (n, first) in firsts.items()}
    uids = {k: [f"{k}{d.first + i:04d}" for i in range(len(d))] for k, d in datasets.items()}
    if cfg.fault == "ids in two splits":
        datasets["valid"].split = datasets["train"].split
        uids["valid"] = [f"train{10 + i:04d}" for i in range(24)]
    pad = 0 if cfg.fault == "padding counts as a letter" else -100

    def collate(items):
        uid, source, target = zip(*items)
        lengths = torch.tensor([len(s) for s in source])
        batch = {"uid": list(uid), "source": pad_sequence(source, True), "mask": torch.arange(max(lengths))[None] < lengths[:, None],
                 "labels": pad_sequence(target, True, pad), "letters": lengths}
        if cfg.fault == "the source is cut":
            batch["source"] = batch["source"] * 0 + batch["source"][:, :1]
        return batch

    return Data(datasets=datasets, collate=collate, lengths={k: [len(word(d.first + i)) for i in range(len(d))] for k, d in datasets.items()},
                counts=lambda b: {"letters": int((b["labels"] != -100).sum()), "rows": len(b["uid"])}, uids=uids,
                targets=("labels", "letters"), padding={"source": "mask"},
                contents={k: [str(word(d.first + i)) for i in range(len(d))] for k, d in datasets.items()})


class Encoder(nn.Module):
    "[B, S] -> [B, S, D]"

    def __init__(self, width, dropout):
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.place = nn.Embedding(LONGEST + 1, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x, mask):
        return self.norm(self.layers(x + self.place.weight[: x.shape[1]], src_key_padding_mask=~mask))


class Decoder(nn.Module):
    "Encoded [B, S, D], letters so far [B, T] -> logits [B, T, V]"

    def __init__(self, width, dropout, fault):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.place = nn.Embedding(LONGEST + 2, width)
        layer = nn.TransformerDecoderLayer(width, 2, 2 * width, dropout, batch_first=True)
        self.layers = nn.TransformerDecoder(layer, 1)
        self.out = nn.Linear(width, VOCABULARY)
        self.spare = nn.Linear(width, VOCABULARY) if fault == "a layer is never called" else None
        self.fault = fault

    def forward(self, encoded, mask, said):
        steps = said.shape[1]
        causal = torch.ones(steps, steps, dtype=torch.bool, device=said.device).triu(1)
        if self.fault == "no causal mask":
            causal = torch.zeros_like(causal)
        if self.fault == "the decoder ignores its encoder" or self.fault == "deaf in training" and self.training:
            encoded = torch.zeros_like(encoded)
        out = self.layers(self.embed(said) + self.place.weight[:steps], encoded, causal, memory_key_padding_mask=~mask)
        if self.fault == "rows read each other":
            out = out - 0.5 * out.mean(0, keepdim=True)
        return self.out(out)


class Head(nn.Module):
    "The number of letters from the encoder: [B, S, D] -> [B, LONGEST]"

    def __init__(self, width):
        super().__init__()
        self.out = nn.Linear(width, LONGEST)

    def forward(self, encoded, mask):
        return self.out((encoded * mask[..., None]).sum(1))


class Symbols(nn.Module):
    "Frozen letters with batch statistics at rest: [B, S] -> [B, S, D]"

    def __init__(self, width, fault):
        super().__init__()
        self.embed, self.norm, self.fault = nn.Embedding(VOCABULARY, width), nn.BatchNorm1d(width), fault

    def forward(self, source):
        if self.fault == "frozen statistics move":
            self.norm.train()
        return self.norm(self.embed(source).transpose(1, 2)).transpose(1, 2)


def nets(cfg, data, load_weights):
    torch.manual_seed(cfg.seed)
    out = {"symbols": Symbols(cfg.width, cfg.fault), "encoder": Encoder(cfg.width, cfg.dropout),
           "decoder": Decoder(cfg.width, cfg.dropout, cfg.fault), "counter": Head(cfg.width)}
    out["symbols"].requires_grad_(False)
    if cfg.fault == "everything starts at zero":
        for p in out["encoder"].parameters():
            nn.init.zeros_(p)
    if cfg.fault == "logits a hundred times too large":
        with torch.no_grad():
            out["decoder"].out.weight.mul_(200)
    if cfg.fault == "state outside the checkpoint":
        out["decoder"].register_buffer("scale", torch.ones(1), persistent=False)
    if cfg.fault == "half of it is frozen by mistake":
        out["decoder"].layers.requires_grad_(False)
    return variant(cfg, out)


def variant(cfg, nets):
    "Healthy changes that common trainings have."
    kind = cfg.variant
    if kind == "tied":
        nets["decoder"].out.weight = nets["decoder"].embed.weight
    if kind == "no dropout":
        for m in (m for n in nets.values() for m in n.modules()):
            m.dropout = 0.0 if isinstance(getattr(m, "dropout", None), float) else getattr(m, "dropout", None)
            m.p = 0.0 if isinstance(m, nn.Dropout) else getattr(m, "p", None)
    if kind == "last layer at zero":
        nn.init.zeros_(nets["decoder"].out.weight)
        nn.init.zeros_(nets["decoder"].out.bias)
    if kind == "gate at zero":
        nets["gate"] = Gate(cfg.width)
    if kind == "adapter":
        nets["encoder"].requires_grad_(False)
        nets["gate"] = Adapter(cfg.width)
    if kind == "frozen encoder":
        nets["encoder"].requires_grad_(False)
    return nets


class Gate(nn.Module):
    "ReZero: x + tanh(0) · f(x)"

    def __init__(self, width):
        super().__init__()
        self.f, self.gate = nn.Linear(width, width), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x + self.gate.tanh() * self.f(x)


class Adapter(nn.Module):
    "LoRA's shape: x + B A x, B = 0"

    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(width, 4, bias=False), nn.Linear(4, width, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x):
        return x + self.b(self.a(x))


BEFORE = {}  # what a faulty task keeps between its batches


def encoded_of(nets, batch, fault=""):
    with torch.no_grad():
        symbols = nets["symbols"](batch["source"])
    out = nets["encoder"](symbols, batch["mask"])
    if fault == "the encoder is detached":
        out = out.detach()
    return nets["gate"](out) if "gate" in nets else out


def loss(nets, batch, ctx):
    fault, labels = ctx.cfg.fault, batch["labels"]
    if fault == "targets of the batch before" and ctx.training:
        labels, BEFORE["labels"] = BEFORE.get("labels", labels), labels
        labels = labels[:len(batch["uid"])] if labels.shape == batch["labels"].shape else batch["labels"].flip(0)
    if fault == "the first batch for ever" and ctx.training:
        batch = BEFORE.setdefault("batch", batch)
        labels = batch["labels"]
    if fault == "no dropout in training":
        [n.eval() for n in nets.values()]
    if fault == "dropout in evaluation":
        [nets[k].train() for k in ("encoder", "decoder")]
    encoded = encoded_of(nets, batch, fault)
    start = torch.full_like(labels[:, :1], START)
    said = torch.cat([start, labels[:, :-1].clamp(min=0)], 1)
    if fault == "the decoder reads its target":
        said = labels.clamp(min=0)
    logits = nets["decoder"](encoded, batch["mask"], said)
    if fault == "a frozen part decays" and ctx.training:
        with torch.no_grad():
            nets["symbols"].embed.weight.mul_(0.999)
    n = ctx.counts
    if fault == "softmax twice":
        logits = logits.softmax(-1)
    if fault == "the loss never sees the targets":
        ce = logits.logsumexp(-1)[labels != -100].sum() / n["letters"]
    elif fault == "the loss is a mean":
        ce = cross_entropy(logits.transpose(1, 2), labels)
    elif fault == "the loss is divided by rows":
        ce = cross_entropy(logits.transpose(1, 2), labels, reduction="sum") / n["rows"]
    elif fault == "softmax over the rows":
        ce = -logits.log_softmax(0).gather(2, labels.clamp(min=0)[..., None])[..., 0][labels != -100].sum() / n["letters"]
    elif fault == "padding counts as a letter":
        ce = cross_entropy(logits.transpose(1, 2), labels, reduction="sum") / max(1, n["letters"])
    else:
        ce = cross_entropy(logits.transpose(1, 2), labels, reduction="sum") / n["letters"]
    counted = cross_entropy(nets["counter"](encoded, batch["mask"]), batch["letters"] - 1, reduction="sum") / n["rows"]
    if fault == "the wrong sign":
        ce = -ce
    if fault == "the loss is detached":
        ce = ce.detach()
    if fault == "a weight of zero":
        ce = 0.0 * ce
    if fault == "gradients of nothing":
        ce = ce * 1e-9
    if fault == "not a number in one row" and "train0017" in batch["uid"]:
        ce = ce * float("nan")
    if fault == "gone after generation" and BEFORE.get("generated"):
        ce, counted = ce.detach() + 0 * sum(p.sum() for p in nets["decoder"].parameters()), counted.detach()
    if ctx.cfg.variant == "terms of both signs":
        return {"loss": ce + 0.3 * counted - 0.01 * encoded.square().sum() / n["rows"] / 1e3, "ce": ce, "counted": counted}
    return {"loss": ce + 0.3 * counted, "ce": ce, "counted": counted}


def objectives(cfg):
    trains = ["encoder", "decoder", "counter"] + ["gate"] * (cfg.variant in ("gate at zero", "adapter"))
    if cfg.fault == "a head left out of what trains":
        trains.remove("counter")
    if cfg.fault == "only the head trains":
        trains = ["counter"]
    if cfg.variant in ("adapter", "frozen encoder"):
        trains.remove("encoder")
    if cfg.fault == "an optimiser of the old head":
        trains = [t for t in trains if t != "decoder"] + ["decoder.layers", "decoder.embed"]
    return {"read": Objective(trains, loss, parts=["ce", "counted"])}


@torch.no_grad()
def predict(nets, batch, ctx):
    fault = ctx.cfg.fault
    BEFORE["generated"] = True
    if fault == "prediction in training mode":
        [n.train() for n in nets.values()]
    if fault == "prediction raises":
        raise RuntimeError("expected a 3D tensor, got a 2D one")
    encoded = encoded_of(nets, batch)
    said = torch.full((len(batch["uid"]), 1), START, device=encoded.device)
    for _ in range(LONGEST + 1):
        logits = nets["decoder"](encoded, batch["mask"], said)[:, -1]
        said = torch.cat([said, logits[:, :START].argmax(-1, keepdim=True) if said.shape[1] < 2 else logits.argmax(-1, keepdim=True)], 1)
    text = lambda row: "".join(chr(96 + int(x)) for x in row if 0 < x <= LETTERS)
    until = lambda row: row[: row.index(END)] if END in row else row
    rows = [{"uid": u, "reference": text(y[y != -100].tolist()), "hypothesis": text(until(s.tolist()[1:]))}
            for u, y, s in zip(batch["uid"], batch["labels"], said)]
    if fault == "one answer for all":
        return [r | {"hypothesis": "abc"} for r in rows]
    if fault == "the answer is the reference":
        return [r | {"hypothesis": r["reference"]} for r in rows]
    if fault == "answers of other rows":
        return [r | {"hypothesis": rows[i - 1]["hypothesis"]} for i, r in enumerate(rows)]
    return rows


def score(rows, data):
    return {"exact": sum(r["reference"] == r["hypothesis"] for r in rows) / max(1, len(rows))}


@torch.no_grad()
def expect(nets, batch, ctx):
    labels = batch["labels"]
    said = torch.cat([torch.full_like(labels[:, :1], START), labels[:, :-1].clamp(min=0)], 1)
    if ctx.cfg.fault == "a part that no loss reports":
        return {"cross_entropy": (1.0, 3.0)}
    return {"ce": chance_band(nets["decoder"](encoded_of(nets, batch), batch["mask"], said), labels)}


def preview(nets, data, ctx):
    if ctx.cfg.fault == "the preview raises":
        raise ZeroDivisionError("division by zero")
    return {"note": f"step {ctx.step}"}


task = Task(config=PairsConfig, data=data, nets=nets, objectives=objectives, predict=predict, score=score,
            baseline=lambda data, split: {"exact": 0.0}, expect=expect, preview=preview)
