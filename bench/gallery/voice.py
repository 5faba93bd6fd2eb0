"""A small text to speech for the gallery of faults: symbols with known durations become frames.

An encoder of symbols, durations from it, frames from both; three losses, masked. Shapes: B rows, S symbols, T frames, M bands.
"""
import math

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from workbench.core.config.section import Section
from workbench.core.task import Data, Objective, Sound, Task

SYMBOLS, BANDS = 8, 6  # 1 … 8, 0 is padding


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
    frames = np.sin(bands * symbols[owner][:, None] * 0.7) + 0.5 * phase[:, None] * np.cos(bands * symbols[owner][:, None])
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
        if fault == "an unread recording is silence" and i % 3 == 0:
            frames = 0 * frames
        if fault == "all recordings are silence":
            frames = 0 * frames
        if fault == "frames in thousands":
            frames = 1000 * frames
        if fault == "infinity in one row" and i == 21:
            frames[0, 0] = np.inf
        if fault == "durations of one":
            durations = 0 * durations + 1
        return f"{self.split}{self.first + i:03d}", *(torch.tensor(x) for x in (symbols, durations)), torch.tensor(frames).float()


def data(cfg, stage):
    datasets = {k: Clips(k, n, first, cfg.fault) for k, n, first in (("train", 80, 0), ("valid", 16, 200), ("test", 16, 300))}

    def collate(items):
        uid, symbols, durations, frames = zip(*items)
        s, t = (torch.tensor([len(x) for x in xs]) for xs in (symbols, frames))
        spread = [torch.arange(len(d)).repeat_interleave(d)[: len(f)] for d, f in zip(durations, frames)]
        spread = [torch.cat([o, o[-1:].expand(len(f) - len(o))]) for o, f in zip(spread, frames)]
        return {"uid": list(uid), "symbols": pad_sequence(symbols, True), "mask": torch.arange(max(s))[None] < s[:, None],
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

    def __init__(self, width, dropout=0.1):
        super().__init__()
        self.embed = nn.Embedding(SYMBOLS + 1, width)
        self.mix = nn.Conv1d(width, width, 3, padding=1)
        self.drop = nn.Dropout(dropout)

    def forward(self, symbols, mask):
        x = self.embed(symbols) * mask[..., None]
        return (x + self.drop(self.mix(x.transpose(1, 2)).transpose(1, 2).relu())) * mask[..., None]


class Decoder(nn.Module):
    "[B, T, D] -> [B, T, M]"

    def __init__(self, width):
        super().__init__()
        self.place = nn.Linear(1, width)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, BANDS))

    def forward(self, x, place):
        return self.layers(x + self.place(place[..., None]))


def nets(cfg, data, load_weights):
    torch.manual_seed(cfg.seed)
    out = {"encoder": Encoder(cfg.width), "durations": nn.Linear(cfg.width, 1), "decoder": Decoder(cfg.width)}
    if cfg.fault == "a tanh before the frames":
        out["decoder"].layers.append(nn.Tanh())
    if cfg.fault == "dead units":
        out["decoder"].layers[1] = nn.ReLU()
        nn.init.constant_(out["decoder"].layers[0].bias, -100.0)
    if cfg.variant == "quantised base":
        out["encoder"].requires_grad_(False)
        with torch.no_grad():
            for p in out["encoder"].parameters():
                p.copy_((p / p.abs().max() * 127).round() / 127 * p.abs().max())
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
    if fault == "rounded durations block the gradient":
        x = x.round()
    spread = x.gather(1, owner[..., None].expand(-1, -1, x.shape[2]))
    place = torch.arange(owner.shape[1], device=owner.device).expand(owner.shape) / 30
    said = nets["decoder"](spread, place)
    if fault == "frames of one frame later":
        said = torch.cat([batch["frames"][:, 1:], batch["frames"][:, :1]], 1) * 0.99 + 0.01 * said
    if fault == "the decoder reads the recording":
        said = said + batch["frames"] - said.detach()
    real = batch["frames"]
    if fault == "the wrong recording order":
        real = real.flip(0)
    square = (said - real).square().mean(-1)
    if fault == "padding frames count":
        mel = square.sum() / n["frames"]
    elif fault == "a mean over frames":
        mel = square[mask].mean()
    elif fault == "a loss below nothing":
        mel = (square * mask).sum() / n["frames"] - 10 * nets["decoder"].layers[-1].bias.square().sum() - 2344
    else:
        mel = (square * mask).sum() / n["frames"]
    targets = batch["durations"].clamp(min=1).float().log()
    time = ((logs - targets).square() * batch["mask"]).sum() / n["symbols"]
    if fault == "durations from nothing":
        time = ((logs - logs.detach().mean()).square() * batch["mask"]).sum() / n["symbols"]
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
        return {"speak": Objective(trains, loss, {"slow": ["encoder"], "fast": ["durations", "decoder"]}, parts)}
    return {"speak": Objective(trains, loss, parts=parts)}


@torch.no_grad()
def predict(nets, batch, ctx):
    x = nets["encoder"](batch["symbols"], batch["mask"])
    lengths = nets["durations"](x)[..., 0].exp().round().clamp(1, 9).long() * batch["mask"]
    out = []
    for i, uid in enumerate(batch["uid"]):
        owner = torch.arange(lengths.shape[1]).repeat_interleave(lengths[i].cpu())
        said = nets["decoder"](x[i: i + 1, owner], (torch.arange(len(owner)) / 30)[None])[0]
        real = batch["frames"][i][batch["frame_mask"][i]]
        if ctx.cfg.fault == "a wrong shape for one row alone" and len(batch["uid"]) == 1:
            said = said.squeeze(0)[:, :, None]
        n = min(len(said), len(real))
        out.append({"uid": uid, "reference": f"{len(real)} frames", "hypothesis": f"{len(owner)} frames",
                    "error": float((said[:n] - real[:n]).square().mean()), "lengths": abs(len(owner) - len(real))})
    return out


def score(rows, data):
    return {"mel_error": sum(r["error"] for r in rows) / len(rows), "length_error": sum(r["lengths"] for r in rows) / len(rows)}


def expect(nets, batch, ctx):
    real, mask = batch["frames"], batch["frame_mask"]
    power = float(real[mask].square().mean())
    return {"mel": (0.5 * power, 2.0 * power + 0.5)}


def preview(nets, data, ctx):
    return {"tone": Sound(np.sin(np.arange(800) / 10 * math.tau), 8000)}


task = Task(config=VoiceConfig, data=data, nets=nets, objectives=objectives, predict=predict, score=score,
            baseline=lambda data, split: {"mel_error": 1.0, "length_error": 9.0}, expect=expect, preview=preview,
            better={"mel_error": "min", "length_error": "min"})
