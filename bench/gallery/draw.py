"""Pictures in two stages for the gallery of faults: an autoencoder with a discriminator, then a flow in its latent space.

Shapes: B rows, pictures [B, 1, 8, 8] between -1 and 1, latents [B, L], a class for each picture.
"""
import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize, one_hot, relu

from workbench.core.config.section import Section
from workbench.core.task import Data, Objective, Task

KINDS, SIDE, LATENT = 4, 8, 8


class DrawConfig(Section):
    fault: str = ""
    variant: str = ""


def picture(i):
    "(kind, [8, 8]): a bar, lying or standing, with its place and brightness."
    rng = np.random.default_rng([13, i])
    kind, image = i % KINDS, np.full((SIDE, SIDE), -0.8)
    at = 1 + rng.integers(2) + 3 * (kind % 2)
    image[(slice(at, at + 2), slice(1, 7)) if kind < 2 else (slice(1, 7), slice(at, at + 2))] = rng.uniform(0.4, 0.9)
    return kind, image + 0.05 * rng.normal(size=image.shape)


class Pictures:
    def __init__(self, split, n, first, fault):
        self.split, self.n, self.first, self.fault = split, n, first, fault

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        i, epoch = at
        kind, image = picture(self.first + i)
        fault = self.fault
        if fault == "bytes for numbers":
            image = (image + 1) * 127.5
        if fault == "one picture":
            image = picture(0)[1]
        if fault == "captions of other pictures" and self.split == "train":
            kind = (kind + np.random.default_rng(i).integers(KINDS)) % KINDS
        if fault == "one caption":
            kind = 0
        return f"{self.split}{self.first + i:03d}", torch.tensor(image).float()[None], kind


def data(cfg, stage):
    datasets = {k: Pictures(k, n, first, cfg.fault) for k, n, first in (("train", 64, 0), ("valid", 16, 100), ("test", 16, 200))}

    def collate(items):
        uid, image, kind = zip(*items)
        return {"uid": list(uid), "image": torch.stack(image), "caption": one_hot(torch.tensor(kind), KINDS).float()}

    return Data(datasets=datasets, collate=collate, lengths={k: [1] * len(d) for k, d in datasets.items()},
                counts=lambda b: {"pictures": len(b["uid"])},
                uids={k: [f"{k}{d.first + i:03d}" for i in range(len(d))] for k, d in datasets.items()}, targets=("image",))


def stack(*sizes, end=None):
    layers = [m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), nn.SiLU())][:-1]
    return nn.Sequential(*layers, *[end] * (end is not None))


def nets(cfg, data, load_weights):
    torch.manual_seed(cfg.seed)
    pixels = SIDE * SIDE
    end = nn.Sigmoid() if cfg.fault == "a sigmoid for -1 to 1" else None
    return {"compressor": stack(pixels, 64, 2 * LATENT), "expander": stack(LATENT, 64, pixels, end=end),
            "discriminator": stack(pixels, 32, 1), "flow": stack(LATENT + KINDS + 1, 64, LATENT),
            "text": nn.Linear(KINDS, KINDS)}


def compress(nets, image):
    mean, logs = nets["compressor"](image.flatten(1)).chunk(2, 1)
    return mean, logs.clamp(-8, 4)


def rebuild(nets, batch, ctx):
    fault, n = ctx.cfg.fault, ctx.counts["pictures"]
    mean, logs = compress(nets, batch["image"])
    noise = torch.randn(mean.shape, generator=ctx.generator, device=mean.device)
    z = mean + (logs / 2).exp() * noise * ctx.training
    if fault == "the expander reads noise":
        z = noise
    fake = nets["expander"](z).view_as(batch["image"])
    if fault == "the picture is passed by":
        fake = fake + batch["image"]
    ctx.cache["fake"] = fake.detach()
    recon = (fake - batch["image"]).square().sum() / n
    if fault == "the reconstruction is of itself":
        recon = (fake - fake.detach()).square().sum() / n
    kl = 0.5 * (mean.square() + logs.exp() - 1 - logs).sum() / n
    if fault == "divergence with the wrong sign":
        kl = -kl
    adv = relu(1 - nets["discriminator"](fake.flatten(1))).sum() / n
    if ctx.cfg.variant == "no discriminator":
        return {"loss": recon + 0.01 * kl, "recon": recon, "kl": kl}
    return {"loss": recon + 0.01 * kl + 0.1 * adv, "recon": recon, "kl": kl, "adv": adv}


def discriminate(nets, batch, ctx):
    fault, n = ctx.cfg.fault, ctx.counts["pictures"]
    fake = ctx.cache.get("fake", torch.zeros_like(batch["image"]))
    if fault == "the discriminator sees itself":
        fake = batch["image"]
    good, bad = (nets["discriminator"](x.flatten(1)) for x in (batch["image"], fake))
    return {"loss": (relu(1 - good) + relu(1 + bad)).sum() / n}


def flow(nets, batch, ctx):
    fault, n = ctx.cfg.fault, ctx.counts["pictures"]
    with torch.no_grad():
        target, _ = compress(nets, batch["image"])
    if fault == "the compressor moves in the second stage" and ctx.training:
        with torch.no_grad():
            nets["compressor"][0].bias.add_(1e-3)
    x0 = torch.randn(target.shape, generator=ctx.generator, device=target.device)
    t = torch.rand(len(target), 1, generator=ctx.generator, device=target.device)
    xt = (1 - t) * x0 + t * target
    if fault == "time runs backwards":
        xt = t * x0 + (1 - t) * target
    caption = nets["text"](batch["caption"])
    if fault == "captions are never read":
        caption = 0 * caption
    if fault == "captions are detached":
        caption = caption.detach()
    said = nets["flow"](torch.cat([xt, caption, t], 1))
    velocity = target - x0
    if fault == "the velocity is the picture":
        velocity = x0
    loss = (said - velocity).square().sum() / n
    if fault == "a step of nothing":
        loss = 1e-12 * loss
    if ctx.cfg.variant.startswith("pairs in the batch"):
        a, b = normalize(said, dim=1), normalize(velocity, dim=1)
        scores = a @ b.T / 0.1
        same = torch.arange(len(a), device=a.device)
        pairs = nn.functional.cross_entropy(scores, same, reduction="sum") / n
        return {"loss": loss + pairs, "pairs": pairs}
    return {"loss": loss}


def objectives(cfg):
    trains = ["flow", "text"]
    if cfg.fault == "the text encoder is left out":
        trains = ["flow"]
    out = {"rebuild": Objective(["compressor", "expander"], rebuild, parts=["recon", "kl"]),
           "discriminate": Objective(["discriminator"], discriminate, parts=["loss"]),
           "flow": Objective(trains, flow, parts=["loss"])}
    if cfg.variant == "pairs in the batch":
        out["flow"] = Objective(trains, flow, parts=["pairs"], in_batch=["pairs"])
    if cfg.variant == "pairs in the batch, which nothing says":
        out["flow"] = Objective(trains, flow, parts=["pairs"])
    if cfg.fault == "the generator trains its discriminator":
        out["rebuild"] = Objective(["compressor", "expander", "discriminator"], rebuild, parts=["recon", "kl"])
    if cfg.variant == "no discriminator":
        del out["discriminate"]
    return out


def active(cfg):
    return ["flow"] if cfg.variant.startswith("pairs in the batch") else [k for k in objectives(cfg) if k != "flow"]


@torch.no_grad()
def predict(nets, batch, ctx):
    mean, _ = compress(nets, batch["image"])
    fake = nets["expander"](mean).view_as(batch["image"])
    if ctx.cfg.fault == "always the mean picture":
        fake = fake.mean(0, keepdim=True).expand_as(fake)
    error = (fake - batch["image"]).square().flatten(1).mean(1)
    says = lambda x: f"{float(x.mean()):.2f} {float(x.std()):.2f}"
    return [{"uid": u, "reference": says(y), "hypothesis": says(x), "error": float(e)}
            for u, y, x, e in zip(batch["uid"], batch["image"], fake, error)]


def score(rows, data):
    return {"mse": sum(r["error"] for r in rows) / len(rows)}


def expect(nets, batch, ctx):
    if "flow" in active(ctx.cfg) or ctx.stage == "flow":
        return {}
    power = float(batch["image"].square().flatten(1).sum(1).mean())
    return {"recon": (0.7 * power, 1.6 * power)}


task = Task(config=DrawConfig, data=data, nets=nets, objectives=objectives, predict=predict, score=score, active=active,
            baseline=lambda data, split: {"mse": 0.5}, expect=expect, preview=lambda nets, data, ctx: {"note": f"step {ctx.step}"},
            better={"mse": "min"})
