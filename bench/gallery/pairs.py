"""A small translation for the gallery of faults: words are spelt in another alphabet, last letter first.

Letters pass a frozen embedding with batch statistics, a trained encoder, and a decoder with attention. Two
losses: cross-entropy of the answer, and of the number of its letters, read from the encoder.
Shapes: B rows, S source letters, T target letters, D width, V letters of the vocabulary.
"""
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from workbench.core.checks.questions import chance_band
from workbench.core.config.section import Section
from workbench.core.task import Ctx, Data, Objective, Task

LETTERS, START, END = 9, 10, 11  # 1 … 9 are letters, 0 is padding
VOCABULARY, LONGEST = 12, 7

FAULTS = {  # name -> (checks that name it, what is wrong)
    # data
    "ids in two splits": (("splits",), "validation rows have the ids of training rows"),
    "held-out rows are training rows": (("splits",), "validation rows have the content of training rows"),
    "validation is drawn anew": (("draws",), "validation rows are augmented, by numbers without a seed"),
    "training rows are rewritten": (("draws",), "a training row has another source in every epoch"),
    "random targets": (("draws",), "a training row has another answer in every epoch"),
    "targets of other rows": (("watch",), "each training row has the answer of another, always the same"),
    "one target": (("target values", "targets"), "every row has the same answer"),
    "nearly one target": (("target values",), "fifteen of sixteen rows have the same answer"),
    "same input": (("inputs", "inputs matter"), "every row has the same source"),
    "empty input": (("inputs",), "sources hold padding alone"),
    "the first letter in every place": (("inputs",), "collate fills each source with its first letter"),
    "sources are sorted, answers are not": (("rows",),
                                            "collate puts sources beside other rows' answers"),
    "the denominator counts padding": (("padding", "reduction"), "counts depend on the other rows' lengths"),
    "padding counts as a letter": (("padding",), "labels are padded with 0, which the loss counts"),
    "the end is never counted": (("generation",), "labels leave the last sign out, so answers never end"),
    # nets
    "the encoder reads padding": (("padding",), "attention without its padding mask"),
    "the mask is upside down": (("padding",), "the letters are counted where there are none"),
    "no causal mask": (("causality",), "the decoder reads letters that it is to predict"),
    "the decoder ignores its encoder": (("inputs matter", "gradients"), "attention over zeros"),
    "no encoder in training": (("training mode", "gradients"), "attention over zeros in training alone"),
    "rows read each other": (("rows",), "the mean over the batch is part of each row's output"),
    "frozen statistics move": (("frozen", "evaluation", "rows"), "a frozen norm is in training mode"),
    "a layer is never called": (("gradients",), "a module that the forward pass does not use"),
    "everything starts at zero": (("gradients", "inputs matter"), "all weights of the encoder are zero"),
    "logits a hundred times too large": (("first loss",), "the last layer starts far too large"),
    "a scale outside the checkpoint": (("checkpoint",), "training changes a buffer that is not saved"),
    # the loss
    "the encoder is detached": (("gradients",), "no gradient reaches the encoder"),
    "the decoder reads its target": (("causality",), "the answer is not shifted by one letter"),
    "the answer is shifted twice": (("generation",), "each place learns the letter after the next"),
    "the loss never sees the targets": (("targets", "shuffled targets"),
                                        "logsumexp without the answer's logit"),
    "softmax twice": (("first loss", "overfit"), "cross-entropy of probabilities"),
    "softmax over the rows": (("rows",), "the softmax is over the batch, not over the letters"),
    "the loss is a mean": (("reduction", "accumulation"),
                           "a mean over the micro-batch, not a share of the step"),
    "the loss is divided by rows": (("first loss",), "a sum over letters divided by the number of rows"),
    "the wrong sign": (("first loss", "overfit"), "the step makes the cross-entropy larger"),
    "the loss is detached": (("gradients",), "the cross-entropy has no gradient"),
    "a weight of zero": (("gradients",), "the cross-entropy times zero"),
    "gradients of nothing": (("gradients", "update", "first loss"), "the cross-entropy times 1e-9"),
    "targets of the batch before": (("batches",),
                                    "a training batch has the answers of the last"),
    "the first batch for ever": (("batches",), "training sees its first batch in every step"),
    "no dropout in training": (("training mode",), "the loss puts the nets into evaluation mode"),
    "dropout in evaluation": (("evaluation",), "the loss puts nets into training mode, always"),
    "evaluation moves a weight": (("evaluation",), "an evaluated loss writes to a weight"),
    "noise with a seed of its own": (("batches", "evaluation"),
                                     "random numbers that no seed of the run decides"),
    "a frozen part decays": (("frozen",), "each training step shrinks the frozen embedding"),
    "not a number in one row": (("watch:train0017",), "one training row of 96 costs NaN"),
    "no gradient after generation": (("after answers", "watch"), "predict cuts the loss off, for good"),
    # what trains
    "a head left out of what trains": (("coverage",), "the objective does not list the counter"),
    "only the head trains": (("coverage",), "the objective lists the counter alone"),
    "an optimiser of the old head": (("coverage",), "the decoder's last layer is in no optimiser"),
    "half of it is frozen by mistake": (("coverage",), "requires_grad is off in the decoder's layers"),
    # answers
    "prediction in training mode": (("answers",), "predict puts the nets into training mode"),
    "prediction raises": (("answers",), "predict ends in an error"),
    "prediction freezes the decoder": (("after answers", "watch"), "predict switches requires_grad off"),
    "prediction loses a row": (("answers",), "predict answers one row too few"),
    "one answer for all": (("generation",), "predict answers every row alike"),
    "the answer is the reference": (("answers", "generation"), "predict copies the reference"),
    "answers of other rows": (("alone", "generation"), "predict gives each row its neighbour's answer"),
    "a part that no loss reports": (("first loss", "parts"), "expect names a loss part that is not there"),
    "the preview raises": (("preview",), "preview ends in an error"),
}
VARIANTS = {
    "": "as it is",
    "tied": "the last layer is the embedding",
    "no dropout": "nothing differs between training and evaluation",
    "no augmentation": "the same rows in every epoch",
    "last layer at zero": "the decoder begins with one answer for all",
    "gate at zero": "ReZero: x + tanh(0) f(x)",
    "scale at zero": "a gate for each value, all at zero",
    "adapter": "LoRA's shape on a frozen encoder, its second matrix at zero",
    "peft": "LoRA of the library peft in a frozen decoder",
    "frozen encoder": "the encoder stays as it is, on purpose",
    "terms of both signs": "a term of the loss is rewarded",
    "label smoothing": "a cross-entropy that never reaches zero",
    "pretrained": "weights that know the training rows a little",
    "one letter in nine tenths": "a class is nine tenths of all",
}


class PairsConfig(Section):
    fault: str = ""
    variant: str = ""
    width: int = 32
    dropout: float = 0.1


def word(i):
    "The letters of row i."
    rng = np.random.default_rng([7, i])
    return rng.integers(1, LETTERS + 1, rng.integers(3, LONGEST)).tolist()


def answer(letters, kind=""):
    "Each letter's partner, in the other order."
    said = [LETTERS + 1 - x for x in reversed(letters)]
    return [max(x, LETTERS - 1) for x in said] if kind == "one letter in nine tenths" else said


class Words:
    "(uid, source [S], target [T]) of row i; the epoch draws a letter that is blotted out in training."

    def __init__(self, split, n, first, cfg):
        self.split, self.n, self.first, self.fault, self.kind = split, n, first, cfg.fault, cfg.variant

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        i, epoch = at
        source = word(self.first + i)
        target = answer(source, self.kind)
        fault, rng = self.fault, np.random.default_rng([i, epoch])
        if fault == "targets of other rows" and self.split == "train":
            target = answer(word(self.first + (i * 7 + 3) % self.n))
        if fault == "one target":
            target = [5, 5, 5]
        if fault == "nearly one target" and i % 16:
            target = [5, 5, 5]
        if fault == "validation is drawn anew" and self.split != "train":
            rng = np.random.default_rng()
        if fault == "random targets" and self.split == "train":
            target = rng.integers(1, LETTERS + 1, len(target)).tolist()
        if fault == "same input":
            source = [1, 2, 3]
        if fault == "empty input":
            source = [0] * len(source)
        noisy = self.split == "train" or fault == "validation is drawn anew"
        if noisy and self.kind != "no augmentation":
            source[rng.integers(len(source))] = 0
        if fault == "training rows are rewritten" and noisy:
            source = rng.integers(1, LETTERS + 1, len(source)).tolist()
        end = -100 if fault == "the end is never counted" else END
        return f"{self.split}{self.first + i:04d}", torch.tensor(source), torch.tensor([*target, end])


def data(cfg, stage):
    BEFORE.clear()
    firsts = {"train": (96, 0), "valid": (24, 200), "test": (24, 310)}
    if cfg.fault == "held-out rows are training rows":
        firsts["valid"] = (24, 10)
    datasets = {k: Words(k, n, first, cfg) for k, (n, first) in firsts.items()}
    uids = {k: [f"{k}{d.first + i:04d}" for i in range(len(d))] for k, d in datasets.items()}
    if cfg.fault == "ids in two splits":
        datasets["valid"].split = datasets["train"].split
        uids["valid"] = [f"train{10 + i:04d}" for i in range(24)]
    pad = 0 if cfg.fault == "padding counts as a letter" else -100

    def collate(items):
        uid, source, target = zip(*items)
        if cfg.fault == "sources are sorted, answers are not":
            source = sorted(source, key=lambda s: (-len(s), s.tolist()))
        lengths = torch.tensor([len(s) for s in source])
        batch = {"uid": list(uid), "source": pad_sequence(source, True),
                 "mask": torch.arange(max(lengths)) < lengths[:, None],
                 "labels": pad_sequence(target, True, pad), "letters": lengths}
        if cfg.fault == "the first letter in every place":
            batch["source"] = batch["source"] * 0 + batch["source"][:, :1]
        return batch

    def counts(batch):
        every = cfg.fault == "the denominator counts padding"
        return {"letters": batch["labels"].numel() if every else int((batch["labels"] != -100).sum()),
                "rows": len(batch["uid"])}

    words = {k: [word(d.first + i) for i in range(len(d))] for k, d in datasets.items()}
    return Data(datasets=datasets, collate=collate,
                lengths={k: [len(w) for w in some] for k, some in words.items()},
                counts=counts, uids=uids, targets=("labels", "letters"), padding={"source": "mask"},
                contents={k: [str(w) for w in some] for k, some in words.items()})


class Encoder(nn.Module):
    "[B, S] -> [B, S, D]"

    def __init__(self, width, dropout, fault):
        super().__init__()
        self.fault = fault
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.place = nn.Embedding(LONGEST + 1, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x, mask):
        if self.fault == "the encoder reads padding":
            mask = torch.ones_like(mask)
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
        if (self.fault == "the decoder ignores its encoder"
            or self.fault == "no encoder in training" and self.training):
            encoded = torch.zeros_like(encoded)
        out = self.layers(self.embed(said) + self.place.weight[:steps], encoded, causal,
                          memory_key_padding_mask=~mask)
        if self.fault == "rows read each other":
            out = out - 0.5 * out.mean(0, keepdim=True)
        if self.fault == "a scale outside the checkpoint":
            self.scale.mul_(0.9 if self.training else 1)
            out = out * self.scale
        return self.out(out)


class Head(nn.Module):
    "The number of letters from the encoder: [B, S, D] -> [B, LONGEST]"

    def __init__(self, width, fault):
        super().__init__()
        self.out, self.fault = nn.Linear(width, LONGEST), fault

    def forward(self, encoded, mask):
        if self.fault == "the mask is upside down":
            mask = ~mask
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
    out = {"symbols": Symbols(cfg.width, cfg.fault), "encoder": Encoder(cfg.width, cfg.dropout, cfg.fault),
           "decoder": Decoder(cfg.width, cfg.dropout, cfg.fault), "counter": Head(cfg.width, cfg.fault)}
    out["symbols"].requires_grad_(False)
    if cfg.fault == "everything starts at zero":
        for p in out["encoder"].parameters():
            nn.init.zeros_(p)
    if cfg.fault == "logits a hundred times too large":
        with torch.no_grad():
            out["decoder"].out.weight.mul_(200)
    if cfg.fault == "a scale outside the checkpoint":
        out["decoder"].register_buffer("scale", torch.ones(1), persistent=False)
    if cfg.fault == "half of it is frozen by mistake":
        out["decoder"].layers.requires_grad_(False)
    return variant(cfg, out, data if load_weights else None)


def variant(cfg, nets, data):
    "Healthy changes that common trainings have."
    kind = cfg.variant
    if kind == "pretrained" and data:
        pretrain(nets, data, cfg)
    if kind == "tied":
        nets["decoder"].out.weight = nets["decoder"].embed.weight
    if kind == "no dropout":
        for m in (m for n in nets.values() for m in n.modules()):
            m.dropout = 0.0 if isinstance(getattr(m, "dropout", None), float) else getattr(m, "dropout", None)
            m.p = 0.0 if isinstance(m, nn.Dropout) else getattr(m, "p", None)
    if kind == "last layer at zero":
        nn.init.zeros_(nets["decoder"].out.weight)
        nn.init.zeros_(nets["decoder"].out.bias)
    if kind in ("gate at zero", "scale at zero"):
        nets["gate"] = Gate(cfg.width, 1 if kind == "gate at zero" else cfg.width)
    if kind == "peft":
        from peft import LoraConfig, inject_adapter_in_model

        layers = inject_adapter_in_model(LoraConfig(r=2, target_modules=["linear1", "linear2"]),
                                         nets["decoder"].layers)
        nets["decoder"].layers = layers
    if kind == "adapter":
        nets["encoder"].requires_grad_(False)
        nets["gate"] = Adapter(cfg.width)
    if kind == "frozen encoder":
        nets["encoder"].requires_grad_(False)
    return nets


def pretrain(nets, data, cfg):
    "Fifty steps on the training rows: weights that know something."
    weights = [p for n in nets.values() for p in n.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, 3e-3)
    [n.train(k != "symbols") for k, n in nets.items()]
    for step in range(50):
        batch = data.collate([data.datasets["train"][(16 * step + i) % 96, step] for i in range(16)])
        optimizer.zero_grad()
        loss(nets, batch, Ctx(cfg=cfg, counts=data.counts(batch)))["loss"].backward()
        optimizer.step()
    nets["decoder"].pretrained = True


class Gate(nn.Module):
    "x + tanh(g) · f(x) with g = 0: ReZero with one g, LayerScale's shape with one for each value"

    def __init__(self, width, gates):
        super().__init__()
        self.f, self.gate = nn.Linear(width, width), nn.Parameter(torch.zeros(gates))

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
        labels = (labels[:len(batch["uid"])] if labels.shape == batch["labels"].shape
                  else batch["labels"].flip(0))
    if fault == "the first batch for ever" and ctx.training:
        batch = BEFORE.setdefault("batch", batch)
        labels = batch["labels"]
    if fault == "no dropout in training":
        [n.eval() for n in nets.values()]
    if fault == "dropout in evaluation":
        [nets[k].train() for k in ("encoder", "decoder")]
    encoded = encoded_of(nets, batch, fault)
    if fault == "noise with a seed of its own":
        noise = np.random.default_rng().normal(0, 0.3, encoded.shape)
        encoded = encoded + torch.tensor(noise, dtype=encoded.dtype, device=encoded.device)
    start = torch.full_like(labels[:, :1], START)
    said = torch.cat([start, labels[:, :-1].clamp(min=0)], 1)
    if fault == "the decoder reads its target":
        said = labels.clamp(min=0)
    if fault == "the answer is shifted twice":
        labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)
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
        ce = (-logits.log_softmax(0).gather(2, labels.clamp(min=0)[..., None])[..., 0][labels != -100].sum()
              / n["letters"])
    else:
        smooth = 0.1 * (ctx.cfg.variant == "label smoothing")
        ce = cross_entropy(logits.transpose(1, 2), labels, reduction="sum",
                           label_smoothing=smooth) / n["letters"]
    counted = cross_entropy(nets["counter"](encoded, batch["mask"]), batch["letters"] - 1,
                            reduction="sum") / n["rows"]
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
    if fault == "evaluation moves a weight" and not ctx.training:
        nets["counter"].out.bias.data.add_(1e-2)
    if fault == "no gradient after generation" and BEFORE.get("generated"):
        ce, counted = ce.detach() + 0 * sum(p.sum() for p in nets["decoder"].parameters()), counted.detach()
    if ctx.cfg.variant == "terms of both signs":
        return {"loss": ce + 0.3 * counted - 0.01 * encoded.square().sum() / n["rows"] / 1e3, "ce": ce,
                "counted": counted}
    return {"loss": ce + 0.3 * counted, "ce": ce, "counted": counted}


def origin(nets):
    kind = "pretrained" if getattr(nets["decoder"], "pretrained", False) else "scratch"
    return {"kind": kind, "where": "here", "why": "fifty steps"}


def objectives(cfg):
    trains = ["encoder", "decoder", "counter"]
    if cfg.variant in ("gate at zero", "scale at zero", "adapter"):
        trains.append("gate")
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
    if fault == "prediction freezes the decoder":
        nets["decoder"].requires_grad_(False)
    if fault == "prediction in training mode":
        [n.train() for n in nets.values()]
    if fault == "prediction raises":
        raise RuntimeError("expected a 3D tensor, got a 2D one")
    encoded = encoded_of(nets, batch)
    said = torch.full((len(batch["uid"]), 1), START, device=encoded.device)
    for _ in range(LONGEST + 1):
        logits = nets["decoder"](encoded, batch["mask"], said)[:, -1]
        said = torch.cat([said, logits[:, :START].argmax(-1, keepdim=True) if said.shape[1] < 2
                          else logits.argmax(-1, keepdim=True)], 1)
    text = lambda row: "".join(chr(96 + int(x)) for x in row if 0 < x <= LETTERS)
    until = lambda row: row[: row.index(END)] if END in row else row
    rows = [{"uid": u, "reference": text(y[y != -100].tolist()), "hypothesis": text(until(s.tolist()[1:]))}
            for u, y, s in zip(batch["uid"], batch["labels"], said)]
    if fault == "one answer for all":
        return [r | {"hypothesis": "abc"} for r in rows]
    if fault == "the answer is the reference":
        return [r | {"hypothesis": r["reference"]} for r in rows]
    if fault == "prediction loses a row":
        return rows[:-1]
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
            baseline=lambda data, split: {"exact": 0.0}, expect=expect, preview=preview, origin=origin)
