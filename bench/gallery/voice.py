"""A small text to speech for the gallery of faults: symbols with known durations become frames.

An encoder of symbols, durations from it, frames from both; two losses, masked.
Shapes: B rows, S symbols, T frames, D width, M bands.
"""
import math

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from workbench.core.config.section import Section
from workbench.core.task import Data, Objective, Sound, Task

SYMBOLS, BANDS = 8, 6  # 1 … 8, 0 is padding

FAULTS = {  # name -> (checks that name it, what is wrong)
    # data
    "recordings of other rows": (("watch",),
                                 "each training row has the recording of another, always the same"),
    "noise drowns the recording": (("draws",), "training recordings are noise, another in every epoch"),
    "a third of the recordings is silence": (("inputs", "target values"), "every third recording is empty"),
    "all recordings are silence": (("inputs", "target values"), "recordings of zeros"),
    "frames in thousands": (("range",), "recordings that nobody has scaled"),
    "infinity in one row": (("inputs", "watch:train021"), "one training recording holds infinity"),
    "durations of one": (("target values", "inputs:the target `durations` has one value"),
                         "every symbol lasts one frame"),
    # nets
    "a tanh before the frames": (("range", "overfit"), "outputs between -1 and 1 for frames beyond"),
    "dead units": (("gradients",), "a hidden layer of ReLU units that are never on"),
    "units that are all alike": (("overfit", "gradients"),
                                 "a hidden layer begins with one constant, so stays one unit"),
    "the last layer is put back": (("evaluation", "update", "steps", "overfit"),
                                   "each pass sets a layer to its start"),
    "symbols of a constant": (("inputs matter",), "the encoder is given ones"),
    "rounding blocks a gradient": (("gradients", "overfit"), "the frames' loss cannot reach the encoder"),
    "weights in sixteen bits": (("update", "steps"), "steps too small for bfloat16 are rounded away"),
    # the loss
    "every frame of the first symbol": (("targets",),
                                        "the frames are spread from one symbol: `owner` is unread"),
    "frames of one frame later": (("inputs matter", "causality", "first loss"),
                                  "the output is the next real frame"),
    "the decoder reads the recording": (("first loss",), "the real frames are added to the output"),
    "recordings in another order": (("rows",), "a row is compared with another row's recording"),
    "padding frames count": (("padding",), "the frames' loss has no mask"),
    "a mean over frames": (("reduction", "accumulation"),
                           "a mean over the micro-batch, not a share of the step"),
    "a loss below nothing": (("overfit",), "a term that falls for ever"),
    "a column against a row": (("rows",), "lengths [B] minus lengths [B, 1] are [B, B]"),
    "durations from nothing": (("targets",), "the durations' loss compares the output with its own mean"),
    "durations do not count": (("gradients",), "a part is reported and not added to the loss"),
    # what trains, and how
    "a typing error in what trains": (("coverage",), "`decoder.layers` for `decoder`: a layer is left out"),
    "a rate of thirty": (("update", "overfit"), "learning rate 30"),
    "a rate of nothing": (("steps", "update"), "learning rate 1e-12"),
    "a clip of nothing": (("update",), "gradients clipped to 1e-8"),
    # answers
    "a shape for many rows alone": (("answers", "alone"), "predict squeezes a batch of one row"),
    "an answer without its score": (("answers",), "predict leaves out what score reads"),
    "the score is not a number": (("answers",), "score gives NaN"),
    "the preview writes to a weight": (("preview", "after answers", "watch"), "preview adds to a bias"),
}
CONFIG = {"weights in sixteen bits": "train.lr=0.00001", "a rate of thirty": "train.lr=30",
          "a rate of nothing": "train.lr=1e-12",
          "a clip of nothing": "train.clip=1e-8"}  # keys beside the fault's own
VARIANTS = {
    "": "as it is",
    "quantised base": "a frozen encoder of rounded weights",
    "answers at zero": "the last layer begins at zero",
    "frames alone": "one loss, durations stay untrained on purpose",
    "two optimisers": "one for the encoder, one for the rest",
    "negative log-likelihood": "a loss that goes below zero",
    "batch norm": "batch statistics in a trained encoder",
    "no biases": "linear maps alone",
}


class VoiceConfig(Section):
    fault: str = ""
    variant: str = ""
    width: int = 32


def row(i):
    "(symbols [S], durations [S], frames [T, M])"
    rng = np.random.default_rng([11, i])
    symbols = rng.integers(1, SYMBOLS + 1, rng.integers(3, 7))
    durations = 2 + (symbols + np.roll(symbols, 1)) % 3
    owner = np.repeat(np.arange(len(symbols)), durations)
    phase = np.concatenate([np.arange(d) / d for d in durations])
    bands = np.arange(1, BANDS + 1)
    frames = np.sin(bands * symbols[owner][:, None]
                    * 0.7) + 0.5 * phase[:, None] * np.cos(bands * symbols[owner][:, None])
    return symbols, durations, frames + 0.05 * rng.normal(size=frames.shape)


class Clips:
    def __init__(self, split, n, first, fault):
        self.split, self.n, self.first, self.fault = split, n, first, fault

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        i, epoch = at
        symbols, durations, frames = row(self.first + i)
        fault = self.fault
        if fault == "recordings of other rows" and self.split == "train":
            frames = row(self.first + (7 * i + 1) % self.n)[2]
            frames = np.resize(frames, (durations.sum(), BANDS))
        if fault == "noise drowns the recording" and self.split == "train":
            frames = np.random.default_rng([i, epoch]).normal(size=frames.shape)
        if fault == "a third of the recordings is silence" and i % 3 == 0:
            frames = 0 * frames
        if fault == "all recordings are silence":
            frames = 0 * frames
        if fault == "frames in thousands":
            frames = 1000 * frames
        if fault == "infinity in one row" and i == 21:
            frames[0, 0] = np.inf
        if fault == "durations of one":
            durations = 0 * durations + 1
        return (f"{self.split}{self.first + i:03d}", *(torch.tensor(x) for x in (symbols, durations)),
                torch.tensor(frames).float())


def data(cfg, stage):
    datasets = {k: Clips(k, n, first, cfg.fault)
                for k, n, first in (("train", 80, 0), ("valid", 16, 200), ("test", 16, 300))}

    def collate(items):
        uid, symbols, durations, frames = zip(*items)
        s, t = (torch.tensor([len(x) for x in xs]) for xs in (symbols, frames))
        spread = [torch.arange(len(d)).repeat_interleave(d)[: len(f)] for d, f in zip(durations, frames)]
        spread = [torch.cat([o, o[-1:].expand(len(f) - len(o))]) for o, f in zip(spread, frames)]
        return {"uid": list(uid), "symbols": pad_sequence(symbols, True),
                "mask": torch.arange(max(s))[None] < s[:, None],
                "durations": pad_sequence(durations, True), "owner": pad_sequence(spread, True),
                "frames": pad_sequence(frames, True), "frame_mask": torch.arange(max(t))[None] < t[:, None]}

    shape = lambda d: [[len(row(d.first + i)[0]), len(row(d.first + i)[2])] for i in range(len(d))]
    return Data(datasets=datasets, collate=collate, lengths={k: shape(d) for k, d in datasets.items()},
                counts=lambda b: {"symbols": int(b["mask"].sum()), "frames": int(b["frame_mask"].sum())},
                uids={k: [f"{k}{d.first + i:03d}" for i in range(len(d))] for k, d in datasets.items()},
                targets=("frames", "frame_mask", "durations", "owner"),
                padding={"symbols": "mask", "frames": "frame_mask", "durations": "mask"})


class Encoder(nn.Module):
    "[B, S] -> [B, S, D]"

    def __init__(self, width, kind="", dropout=0.1):
        super().__init__()
        self.norm = nn.BatchNorm1d(width) if kind == "batch norm" else nn.Identity()
        self.embed = nn.Embedding(SYMBOLS + 1, width)
        self.mix = nn.Conv1d(width, width, 3, padding=1)
        self.drop = nn.Dropout(dropout)

    def forward(self, symbols, mask):
        x = self.norm(self.embed(symbols).transpose(1, 2)).transpose(1, 2) * mask[..., None]
        return (x + self.drop(self.mix(x.transpose(1, 2)).transpose(1, 2).relu())) * mask[..., None]


class Decoder(nn.Module):
    "[B, T, D] -> [B, T, M]"

    def __init__(self, width, fault):
        super().__init__()
        self.fault = fault
        self.place = nn.Linear(1, width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, BANDS))

    def forward(self, x, place):
        if self.fault == "the last layer is put back":
            self.start = getattr(self, "start", self.layers[-1].weight.detach().clone())
            self.layers[-1].weight.data.copy_(self.start)
        dtype = self.place.weight.dtype
        return self.layers(x.to(dtype) + self.place(place[..., None].to(dtype))).float()


def nets(cfg, data, load_weights):
    torch.manual_seed(cfg.seed)
    out = {"encoder": Encoder(cfg.width, cfg.variant), "durations": nn.Linear(cfg.width, 1),
           "decoder": Decoder(cfg.width, cfg.fault)}
    if cfg.fault == "a tanh before the frames":
        out["decoder"].layers.append(nn.Tanh())
    if cfg.fault == "dead units":
        out["decoder"].layers[1] = nn.ReLU()
        nn.init.constant_(out["decoder"].layers[0].bias, -100.0)
    if cfg.fault == "units that are all alike":
        nn.init.constant_(out["decoder"].layers[0].weight, 0.05)
    if cfg.fault == "weights in sixteen bits":
        out["decoder"].to(torch.bfloat16)
    return variant(cfg, out)


def variant(cfg, out):
    "Healthy changes that common trainings have."
    if cfg.variant == "negative log-likelihood":
        out["decoder"].spread = nn.Parameter(torch.zeros(BANDS))
    if cfg.variant == "no biases":
        for m in (m for n in out.values() for m in n.modules()):
            m.bias = None if isinstance(m, (nn.Linear, nn.Conv1d)) else getattr(m, "bias", None)
    if cfg.variant == "quantised base":
        out["encoder"].requires_grad_(False)
        with torch.no_grad():
            for p in out["encoder"].parameters():
                p.copy_((p / p.abs().max() * 127).round() / 127 * p.abs().max())
    if cfg.variant == "frames alone":
        out["durations"].requires_grad_(False)
    if cfg.variant == "answers at zero":
        nn.init.zeros_(out["decoder"].layers[-1].weight)
        nn.init.zeros_(out["decoder"].layers[-1].bias)
    return out


def loss(nets, batch, ctx):
    fault, n, mask = ctx.cfg.fault, ctx.counts, batch["frame_mask"]
    x = nets["encoder"](batch["symbols"], batch["mask"])
    if fault == "symbols of a constant":
        x = nets["encoder"](torch.ones_like(batch["symbols"]), batch["mask"])
    logs = nets["durations"](x)[..., 0]
    owner = batch["owner"]
    if fault == "every frame of the first symbol":
        owner = torch.zeros_like(owner)
    if fault == "rounding blocks a gradient":
        x = (4 * x).round() / 4
    spread = x.gather(1, owner[..., None].expand(-1, -1, x.shape[2]))
    place = torch.arange(owner.shape[1], device=owner.device).expand(owner.shape) / 30
    said = nets["decoder"](spread, place)
    if fault == "frames of one frame later":
        said = torch.cat([batch["frames"][:, 1:], batch["frames"][:, :1]], 1) * 0.99 + 0.01 * said
    if fault == "the decoder reads the recording":
        said = said + batch["frames"] - said.detach()
    real = batch["frames"]
    if fault == "recordings in another order":
        real = real.flip(0)
    square = (said - real).square().mean(-1)
    if ctx.cfg.variant == "negative log-likelihood":
        spread = nets["decoder"].spread
        square = (0.5 * (said - real).square() / (2 * spread).exp() + spread).mean(-1)
    if fault == "padding frames count":
        mel = square.sum() / n["frames"]
    elif fault == "a mean over frames":
        mel = square[mask].mean()
    elif fault == "a loss below nothing":
        share = mask.sum() / n["frames"]
        mel = (square * mask).sum() / n["frames"] - share * nets["decoder"].layers[-1].bias.square().sum()
    else:
        mel = (square * mask).sum() / n["frames"]
    targets = batch["durations"].clamp(min=1).float().log()
    time = ((logs - targets).square() * batch["mask"]).sum() / n["symbols"]
    if fault == "durations from nothing":
        time = ((logs - logs.detach().mean()).square() * batch["mask"]).sum() / n["symbols"]
    if fault == "a column against a row":
        length = ((logs.exp() * batch["mask"]).sum(1) - batch["durations"].sum(1, keepdim=True)).square()
        time = 0.01 * length.sum() / n["symbols"]
    if fault == "durations do not count":
        return {"loss": mel, "mel": mel, "time": time.detach()}
    if ctx.cfg.variant == "frames alone":
        return {"loss": mel, "mel": mel}
    return {"loss": mel + 0.1 * time, "mel": mel, "time": time}


def objectives(cfg):
    trains = ["encoder", "durations", "decoder"]
    if cfg.variant == "quantised base":
        trains = trains[1:]
    if cfg.variant == "frames alone":
        trains = ["encoder", "decoder"]
    if cfg.fault == "a typing error in what trains":
        trains = ["encoder", "durations", "decoder.layers"]
    parts = ["mel"] + ["time"] * (cfg.variant != "frames alone")
    if cfg.variant == "two optimisers":
        return {"speak": Objective(trains, loss, {"slow": ["encoder"], "fast": ["durations", "decoder"]},
                                   parts)}
    return {"speak": Objective(trains, loss, parts=parts)}


@torch.no_grad()
def predict(nets, batch, ctx):
    x = nets["encoder"](batch["symbols"], batch["mask"])
    lengths = nets["durations"](x)[..., 0].exp().round().clamp(1, 9).long() * batch["mask"]
    if ctx.cfg.fault == "a shape for many rows alone":
        lengths = lengths.squeeze()
    out = []
    for i, uid in enumerate(batch["uid"]):
        owner = torch.arange(lengths.shape[1]).repeat_interleave(lengths[i].cpu())
        said = nets["decoder"](x[i: i + 1, owner], (torch.arange(len(owner)) / 30)[None])[0]
        real = batch["frames"][i][batch["frame_mask"][i]]
        n = min(len(said), len(real))
        out.append({"uid": uid, "reference": f"{len(real)} frames", "hypothesis": f"{len(owner)} frames",
                    "error": float((said[:n] - real[:n]).square().mean()),
                    "lengths": abs(len(owner) - len(real))})
    if ctx.cfg.fault == "an answer without its score":
        out = [{k: v for k, v in r.items() if k != "lengths"} for r in out]
    if ctx.cfg.fault == "the score is not a number":
        out = [r | {"error": float("nan")} for r in out]
    return out


def score(rows, data):
    return {"mel_error": sum(r["error"] for r in rows) / len(rows),
            "length_error": sum(r["lengths"] for r in rows) / len(rows)}


def expect(nets, batch, ctx):
    real, mask = batch["frames"], batch["frame_mask"]
    power = float(real[mask].square().mean())
    if ctx.cfg.variant == "negative log-likelihood":
        power = 0.5 * power
    return {"mel": (0.5 * power, 2.0 * power + 0.5)}


def preview(nets, data, ctx):
    if ctx.cfg.fault == "the preview writes to a weight":
        nets["durations"].bias.data.add_(0.5)
    return {"tone": Sound(np.sin(np.arange(800) / 10 * math.tau), 8000)}


task = Task(config=VoiceConfig, data=data, nets=nets, objectives=objectives, predict=predict, score=score,
            baseline=lambda data, split: {"mel_error": 1.0, "length_error": 9.0}, expect=expect,
            preview=preview,
            better={"mel_error": "min", "length_error": "min"})
