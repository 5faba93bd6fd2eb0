"""Pictures in two stages for the gallery of faults: an autoencoder with a discriminator, then a flow.

The flow runs in the latent space of the autoencoder and reads a caption.
Shapes: B rows, pictures [B, 1, 8, 8] between -1 and 1, latents [B, L], a class for each picture.
"""
import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize, one_hot, relu

from workbench.core.config.section import Section
from workbench.core.task import Data, Objective, Task

KINDS, SIDE, LATENT = 4, 8, 8

FAULTS = {  # name -> (checks that name it, what is wrong)
    # data
    "bytes for numbers": (("range", "first loss"), "pictures from 0 to 255 for nets that expect -1 to 1"),
    "held-out pictures in bytes": (("range",), "training pictures are scaled, held-out ones are not"),
    "one picture": (("inputs", "target values", "targets"), "every row has the same picture"),
    "one id for two rows": (("splits",), "two rows of a split have one id"),
    "captions of other pictures": (("watch",), "captions of training pictures are drawn at random, once"),
    "one caption": (("inputs", "inputs matter"), "every picture has the same caption"),
    # the first stage: an autoencoder and its discriminator
    "a sigmoid for -1 to 1": (("range", "overfit", "first loss"), "outputs between 0 and 1"),
    "the expander reads noise": (("inputs matter", "generation", "overfit"), "the latent is thrown away"),
    "the picture is passed by": (("first loss",), "the picture is added to the output"),
    "the reconstruction is of itself": (("gradients", "targets", "first loss:compared with itself"),
                                        "the output is compared with itself"),
    "pictures are averaged": (("reduction", "accumulation"),
                              "a mean over the micro-batch, not a share of the step"),
    "divergence with the wrong sign": (("overfit", "parts"), "a part that falls for ever"),
    "the adversary is not heard": (("gradients", "parts"),
                                   "the discriminator's loss does not reach the pictures"),
    "the discriminator sees itself": (("gradients",), "real pictures on both sides"),
    "the generator trains its discriminator": (("coverage", "parts"), "two objectives pull the same weights"),
    "always the mean picture": (("answers", "generation"), "predict gives every row the mean of its batch"),
    # the second stage: a flow in the latent space
    "the compressor moves in the second stage": (("frozen",), "the loss writes to a frozen part"),
    "time runs backwards": (("generation",), "the path runs from the picture to the noise"),
    "captions are never read": (("inputs matter", "gradients"), "the caption times zero"),
    "captions are detached": (("gradients",), "no gradient reaches the text encoder"),
    "the velocity is the noise": (("generation", "targets"), "the target of the flow is its own start"),
    "a step of nothing": (("gradients", "update"), "the loss times 1e-12"),
    "the text encoder is left out": (("coverage",), "the objective does not list it"),
}
SECOND = list(FAULTS)[list(FAULTS).index("the compressor moves in the second stage"):] + [
    "captions of other pictures", "one caption"]  # faults and variants of the second stage
VARIANTS = {
    "": "as it is",
    "no discriminator": "an autoencoder alone",
    "spectral norm": "in the discriminator",
    "divergence from zero": "a part that begins at zero and rises",
    "running codes": "latents beside a codebook of running means, in buffers",
    "a teacher that follows": "a running mean of the weights, in buffers",
    "flow": "the second stage",
    "pairs in the batch": "a contrastive loss, which nobody has declared",
    "declared pairs": "the same as a part that the task declares",
    "moved pictures": "pictures are moved by a pixel in training",
    "captions dropped": "a tenth of the captions is left out in training",
}
SECOND += list(VARIANTS)[list(VARIANTS).index("flow"):]


class DrawConfig(Section):
    fault: str = ""
    variant: str = ""


def picture(i):
    "(kind, [8, 8]): a bar, lying or standing, with its place and brightness."
    rng = np.random.default_rng([13, i])
    kind, image = i % KINDS, np.full((SIDE, SIDE), -0.8)
    at = 1 + rng.integers(2) + 3 * (kind % 2)
    image[(slice(at, at + 2), slice(1, 7)) if kind < 2
          else (slice(1, 7), slice(at, at + 2))] = rng.uniform(0.4, 0.9)
    return kind, image + 0.05 * rng.normal(size=image.shape)


class Pictures:
    def __init__(self, split, n, first, cfg):
        self.split, self.n, self.first, self.fault, self.kind = split, n, first, cfg.fault, cfg.variant

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        i, epoch = at
        kind, image = picture(self.first + i)
        fault = self.fault
        if self.kind == "moved pictures" and self.split == "train":
            image = np.roll(image, np.random.default_rng([i, epoch]).integers(2), 1)
        if fault == "bytes for numbers" or fault == "held-out pictures in bytes" and self.split != "train":
            image = (image + 1) * 127.5
        if fault == "one picture":
            image = picture(0)[1]
        if fault == "captions of other pictures" and self.split == "train":
            kind = (kind + np.random.default_rng(i).integers(KINDS)) % KINDS
        if fault == "one caption":
            kind = 0
        return f"{self.split}{self.first + i:03d}", torch.tensor(image).float()[None], kind


def data(cfg, stage):
    datasets = {k: Pictures(k, n, first, cfg)
                for k, n, first in (("train", 64, 0), ("valid", 16, 100), ("test", 16, 200))}
    uids = {k: [f"{k}{d.first + i:03d}" for i in range(len(d))] for k, d in datasets.items()}
    if cfg.fault == "one id for two rows":
        uids["valid"] = [u[:-1] + str(int(u[-1]) // 2) for u in uids["valid"]]

    def collate(items):
        uid, image, kind = zip(*items)
        if cfg.fault == "one id for two rows":
            uid = [u[:-1] + str(int(u[-1]) // 2) if u.startswith("valid") else u for u in uid]
        return {"uid": list(uid), "image": torch.stack(image),
                "caption": one_hot(torch.tensor(kind), KINDS).float()}

    return Data(datasets=datasets, collate=collate, lengths={k: [1] * len(d) for k, d in datasets.items()},
                counts=lambda b: {"pictures": len(b["uid"])},
                uids=uids, targets=("image",))


def stack(*sizes, end=None):
    layers = [m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), nn.SiLU())][:-1]
    return nn.Sequential(*layers, *[end] * (end is not None))


def nets(cfg, data, load_weights):
    torch.manual_seed(cfg.seed)
    pixels = SIDE * SIDE
    end = nn.Sigmoid() if cfg.fault == "a sigmoid for -1 to 1" else None
    out = {"compressor": stack(pixels, 64, 2 * LATENT), "expander": stack(LATENT, 64, pixels, end=end),
           "discriminator": stack(pixels, 32, 1), "flow": stack(LATENT + KINDS + 1, 64, LATENT),
           "text": nn.Linear(KINDS, KINDS)}
    if cfg.variant == "no discriminator":
        out["discriminator"].requires_grad_(False)
    if cfg.variant == "spectral norm":
        out["discriminator"][0] = nn.utils.parametrizations.spectral_norm(out["discriminator"][0])
    if cfg.variant == "divergence from zero":
        nn.init.zeros_(out["compressor"][-1].weight)
        nn.init.zeros_(out["compressor"][-1].bias)
    if cfg.variant == "running codes":
        out["compressor"].register_buffer("codes", torch.randn(16, LATENT))
    if cfg.variant == "a teacher that follows":
        out["expander"].register_buffer("teacher", out["expander"][0].weight.detach().clone())
    return out


def compress(nets, image):
    mean, logs = nets["compressor"](image.flatten(1)).chunk(2, 1)
    return mean, logs.clamp(-8, 4)


@torch.no_grad()
def moved(codes, z, near):
    "Each code goes a little towards the latents that are nearest to it."
    mine = one_hot(near, len(codes)).float()  # [B, codes]
    n = mine.sum(0)[:, None]
    codes.lerp_(torch.where(n > 0, mine.T @ z / n.clamp(min=1), codes), 0.05)


def nearest(codes, z, training):
    "The latents [B, L] drawn halfway to their nearest codes [codes, L]."
    near = torch.cdist(z.detach(), codes).argmin(1)
    out = z + 0.5 * (codes[near] - z).detach()
    if training:
        moved(codes, z.detach(), near)
    return out


def rebuild(nets, batch, ctx):
    fault, n = ctx.cfg.fault, ctx.counts["pictures"]
    mean, logs = compress(nets, batch["image"])
    noise = torch.randn(mean.shape, generator=ctx.generator, device=mean.device)
    z = mean + (logs / 2).exp() * noise * ctx.training
    if fault == "the expander reads noise":
        z = noise
    if ctx.cfg.variant == "running codes":
        z = nearest(nets["compressor"].codes, z, ctx.training)
    fake = nets["expander"](z).view_as(batch["image"])
    if ctx.cfg.variant == "a teacher that follows" and ctx.training:
        with torch.no_grad():
            nets["expander"].teacher.lerp_(nets["expander"][0].weight, 0.01)
    if fault == "the picture is passed by":
        fake = fake + batch["image"]
    ctx.cache["fake"] = fake.detach()
    recon = (fake - batch["image"]).square().sum() / n
    if fault == "pictures are averaged":
        recon = (fake - batch["image"]).square().flatten(1).sum(1).mean()
    if fault == "the reconstruction is of itself":
        recon = (fake - fake.detach()).square().sum() / n
    kl = 0.5 * (mean.square() + logs.exp() - 1 - logs).sum() / n
    if fault == "divergence with the wrong sign":
        kl = -kl
    seen = fake.detach() if fault == "the adversary is not heard" else fake
    adv = relu(1 - nets["discriminator"](seen.flatten(1))).sum() / n
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
        target = (compress(nets, batch["image"])[0] - ctx.assets["mean"]) / ctx.assets["deviation"]
    if fault == "the compressor moves in the second stage" and ctx.training:
        with torch.no_grad():
            nets["compressor"][0].bias.add_(1e-3)
    x0 = torch.randn(target.shape, generator=ctx.generator, device=target.device)
    t = torch.rand(len(target), 1, generator=ctx.generator, device=target.device)
    xt = (1 - t) * x0 + t * target
    if fault == "time runs backwards":
        xt = t * x0 + (1 - t) * target
    caption = nets["text"](batch["caption"])
    if ctx.cfg.variant == "captions dropped" and ctx.training:
        kept = torch.rand(len(t), 1, generator=ctx.generator, device=t.device) > 0.1
        caption = caption * kept
    if fault == "captions are never read":
        caption = 0 * caption
    if fault == "captions are detached":
        caption = caption.detach()
    said = nets["flow"](torch.cat([xt, caption, t], 1))
    velocity = target - x0
    if fault == "the velocity is the noise":
        velocity = x0
    loss = (said - velocity).square().sum() / n
    if fault == "a step of nothing":
        loss = 1e-12 * loss
    if ctx.cfg.variant in ("pairs in the batch", "declared pairs"):
        a, b = normalize(said, dim=1), normalize(velocity, dim=1)
        scores = a @ b.T / 0.1
        same = torch.arange(len(a), device=a.device)
        pairs = nn.functional.cross_entropy(scores, same, reduction="sum") / n
        return {"loss": loss + pairs, "velocity": loss, "pairs": pairs}
    return {"loss": loss, "velocity": loss}


def objectives(cfg):
    trains = ["flow", "text"]
    if cfg.fault == "the text encoder is left out":
        trains = ["flow"]
    both = cfg.variant in ("pairs in the batch", "declared pairs")
    out = {"rebuild": Objective(["compressor", "expander"], rebuild,
                                parts=["recon", "kl"] + ["adv"] * (cfg.variant != "no discriminator")),
           "discriminate": Objective(["discriminator"], discriminate, parts=["loss"]),
           "flow": Objective(trains, flow, parts=["velocity"] + ["pairs"] * both,
                             in_batch=["pairs"] * (cfg.variant == "declared pairs"))}
    if cfg.fault == "the generator trains its discriminator":
        out["rebuild"] = Objective(["compressor", "expander", "discriminator"], rebuild,
                                   parts=["recon", "kl", "adv"])
    if cfg.variant == "no discriminator":
        del out["discriminate"]
    return out


@torch.no_grad()
def begin(stage, nets, data):
    "The second stage reads latents whose values have mean 0 and deviation 1 over the training pictures."
    if active(stage.cfg) != ["flow"]:
        return {}
    every = data.collate([data.datasets["train"][i, 0] for i in range(len(data.datasets["train"]))])
    latents = compress(nets, every["image"].to(nets["compressor"][0].weight.device))[0]
    return {"mean": latents.mean(0), "deviation": latents.std(0)}


def active(cfg):
    second = cfg.fault in SECOND or cfg.variant in SECOND
    return ["flow"] if second else [k for k in objectives(cfg) if k != "flow"]


def drawn(nets, caption, ctx, steps=8):
    "Latents [B, L] from noise, along the velocity."
    text = nets["text"](caption)
    z = torch.randn(len(text), LATENT, generator=ctx.generator, device=text.device)
    for i in range(steps):
        z = z + nets["flow"](torch.cat([z, text, torch.full_like(text[:, :1], i / steps)], 1)) / steps
    return z


@torch.no_grad()
def predict(nets, batch, ctx):
    second = active(ctx.cfg) == ["flow"]
    z = drawn(nets, batch["caption"], ctx) if second else compress(nets, batch["image"])[0]
    z = z * ctx.assets["deviation"] + ctx.assets["mean"] if second else z
    fake = nets["expander"](z).view_as(batch["image"])
    if ctx.cfg.fault == "always the mean picture":
        fake = fake.mean(0, keepdim=True).expand_as(fake)
    error = (fake - batch["image"]).square().flatten(1).mean(1)
    says = lambda x: f"{float(x.mean()):.2f} {float(x.std()):.2f}"
    return [{"uid": u, "reference": says(y), "hypothesis": says(x), "error": float(e)}
            for u, y, x, e in zip(batch["uid"], batch["image"], fake, error)]


def score(rows, data):
    return {"mse": sum(r["error"] for r in rows) / len(rows)}


def expect(nets, batch, ctx):
    if active(ctx.cfg) == ["flow"]:
        return {}
    power = float(batch["image"].square().flatten(1).sum(1).mean())
    return {"recon": (0.7 * power, 1.6 * power)}


task = Task(config=DrawConfig, data=data, nets=nets, objectives=objectives, predict=predict, score=score,
            active=active, begin=begin,
            baseline=lambda data, split: {"mse": 0.5}, expect=expect, preview=lambda nets, data,
            ctx: {"note": f"step {ctx.step}"},
            better={"mse": "min"})
