"""A task for tests: pictures and captions in one latent space, as a public project published it.

The document gives totals alone: 108,708,035 parameters, of which 72 tensors with 16.8 M get no gradient.
These parts add up to both, to the last one: five convolutions to 7 x 7 and back, a caption encoder and a
caption decoder of four layers each, with embeddings and positions of their own. `faults` says what is as
published; [] mends all.
Shapes: `B` pictures of side `P`, `S` tokens, `D` width, `L` latent, `V` vocabulary.
"""
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from workbench.core.checks.questions import chance_band
from workbench.core.config.section import Section
from workbench.core.task import Data, Objective, Task
from workbench.files import write_json

FAULTS = ("never called", "tanh", "norm penalty", "reported")
SPECIAL = ["<PAD>", "<START>", "<END>", "<UNK>"]
COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.8, 0.2), "blue": (0.1, 0.2, 0.9),
           "white": (1.0, 1.0, 1.0), "yellow": (0.9, 0.9, 0.1)}
PLACES = {"top": 0, "middle": 1, "bottom": 2}
PLATES = 1266 - len(SPECIAL) - len(COLOURS) - len(PLACES) - len("an engraving of a bar at the plate".split())


class OriginalConfig(Section):
    faults: list[str] = list(FAULTS)
    side: int = 32  # P
    channels: list[int] = [8, 8, 16, 16, 16]
    latent: int = 32
    width: int = 16
    layers: int = 4
    heads: int = 2
    hidden: int = 32
    vocab_size: int = 8000
    length: int = 100  # tokens at the most


FULL = {"side": 224, "channels": [64, 128, 256, 512, 512], "latent": 1024, "width": 512, "heads": 8,
        "hidden": 2048}  # as published


# Nets

def image_encoder(cfg):
    "[B, 3, P, P] -> [B, L]"
    sizes, cells = [3, *cfg.channels], (cfg.side // 2 ** len(cfg.channels)) ** 2
    layers = [m for a, b in zip(sizes, sizes[1:]) for m in (nn.Conv2d(a, b, 4, 2, 1), nn.ReLU())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(cfg.channels[-1] * cells, cfg.latent))


def image_decoder(cfg):
    "[B, L] -> [B, 3, P, P]; as published from -1 to 1, where pictures are from 0 to 1"
    sizes, side = [*cfg.channels[::-1], 3], cfg.side // 2 ** len(cfg.channels)
    first = [nn.Linear(cfg.latent, sizes[0] * side * side), nn.Unflatten(1, (sizes[0], side, side))]
    layers = [m for a, b in zip(sizes, sizes[1:])
              for m in (nn.ReLU(), nn.ConvTranspose2d(a, b, 4, 2, 1))]
    return nn.Sequential(*first, *layers, nn.Tanh() if "tanh" in cfg.faults else nn.Sigmoid())


class CaptionEncoder(nn.Module):
    "Ids [B, S] and their mask -> [B, L]: of the mean, and of the first place."

    def __init__(self, cfg, words):
        super().__init__()
        self.word, self.place = (nn.Embedding(n, cfg.width) for n in (words, cfg.length))
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(
            cfg.width, cfg.heads, cfg.hidden, batch_first=True), cfg.layers, enable_nested_tensor=False)
        self.mean, self.first = (nn.Linear(cfg.width, cfg.latent) for _ in range(2))

    def forward(self, ids, mask):
        x = self.layers(self.word(ids) + self.place.weight[:ids.shape[1]], src_key_padding_mask=~mask)
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.mean(mean) + self.first(x[:, 0])


class CaptionDecoder(nn.Module):
    """Latent [B, L] and ids [B, S] -> scores [B, S, V]; as published the transformer is built and never
    called."""

    def __init__(self, cfg, words):
        super().__init__()
        self.word, self.place = (nn.Embedding(n, cfg.width) for n in (words, cfg.length))
        self.memory = nn.Linear(cfg.latent, cfg.width)
        self.transformer = nn.TransformerDecoder(nn.TransformerDecoderLayer(
            cfg.width, cfg.heads, cfg.hidden, batch_first=True), cfg.layers)
        self.out = nn.Linear(cfg.width, words)
        self.called = "never called" not in cfg.faults

    def forward(self, latent, ids):
        n, memory = ids.shape[1], self.memory(latent)[:, None]
        x = self.word(ids) + self.place.weight[:n]
        if not self.called:
            return self.out(x + memory)
        hidden = torch.ones(n, n, dtype=torch.bool, device=ids.device).triu(1)
        return self.out(self.transformer(x, memory, hidden))


def nets(cfg, data, load_weights):
    torch.manual_seed(cfg.seed)
    words = data.facts["vocabulary"]
    return {"image_encoder": image_encoder(cfg), "caption_encoder": CaptionEncoder(cfg, words),
            "image_decoder": image_decoder(cfg), "caption_decoder": CaptionDecoder(cfg, words)}


# Data

class Engravings:
    "(uid, picture [3, P, P] from 0 to 1, words): a bar of a colour at a place, and the number of its plate."

    def __init__(self, n, first, side):
        self.n, self.first, self.side = n, first, side

    def __len__(self):
        return self.n

    def caption(self, i):
        colour, place = list(COLOURS)[i % 5], list(PLACES)[i // 5 % 3]
        return f"an engraving of a {colour} bar at the {place} plate {i % PLATES:04d}"

    def __getitem__(self, at):
        i, side = self.first + at[0], self.side
        picture = 0.2 * np.random.default_rng(i).random((3, side, side), np.float32)
        top = PLACES[self.caption(i).split()[8]] * side // 3
        picture[:, top:top + side // 3] = np.float32(COLOURS[self.caption(i).split()[4]])[:, None, None]
        return f"e{i:04d}", torch.from_numpy(picture), self.caption(i)


def data(cfg, stage):
    sets = {split: Engravings(n, first, cfg.side)
            for split, n, first in (("train", PLATES, 0), ("valid", 24, 1500), ("test", 24, 1600))}
    texts = {split: [d.caption(d.first + i) for i in range(len(d))] for split, d in sets.items()}
    words = dict.fromkeys(w for text in texts["train"] for w in text.split())
    index = {word: i for i, word in enumerate([*SPECIAL, *words])}

    def collate(items):
        uid, pictures, captions = zip(*items)
        said = [[1, *(index.get(w, 3) for w in text.split()), 2] for text in captions]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(s[:-1]) for s in said], True)
        labels = nn.utils.rnn.pad_sequence([torch.tensor(s[1:]) for s in said], True, -100)
        return {"uid": list(uid), "image": torch.stack(pictures), "ids": ids, "mask": labels != -100,
                "labels": labels, "caption": list(captions)}

    return Data(datasets=sets, collate=collate, targets=("labels",), padding={"ids": "mask"}, texts=texts,
                lengths={split: [12] * len(d) for split, d in sets.items()},
                counts=lambda b: {"rows": len(b["uid"]), "tokens": int(b["mask"].sum())},
                uids={split: [f"e{d.first + i:04d}" for i in range(len(d))] for split, d in sets.items()},
                save=lambda folder: write_json(folder / "tokenizer.json", {
                    "word2idx": index, "vocab_size": cfg.vocab_size}),
                facts={"vocabulary": cfg.vocab_size if "reported" in cfg.faults else len(index)}, own=index)


# Loss and answers

def latents(nets, batch):
    return nets["image_encoder"](batch["image"]), nets["caption_encoder"](batch["ids"], batch["mask"])


def alignment(image, caption, faults):
    """As published: how large the two are, whichever stand together.
    Mended: whether a picture finds its caption."""
    if "norm penalty" in faults:
        return (image.square().mean(1) + caption.square().mean(1)).sum()
    scores = 10 * normalize(image, dim=1) @ normalize(caption, dim=1).T
    own = torch.arange(len(scores), device=scores.device)
    return (cross_entropy(scores, own, reduction="sum") + cross_entropy(scores.T, own, reduction="sum")) / 2


def loss(nets, batch, ctx):
    n = ctx.counts
    image, caption = latents(nets, batch)
    drawn = nets["image_decoder"](image)
    scores = nets["caption_decoder"](image, batch["ids"])
    picture = mse_loss(drawn, batch["image"], reduction="sum") / drawn[0].numel() / n["rows"]
    text = cross_entropy(scores.flatten(0, 1), batch["labels"].flatten(), reduction="sum") / n["tokens"]
    aligned = alignment(image, caption, ctx.cfg.faults) / n["rows"]
    return {"loss": picture + text + 0.5 * aligned, "image": picture, "caption": text, "alignment": aligned}


@torch.no_grad()
def predict(nets, batch, ctx):
    words, latent = list(ctx.data.own), nets["image_encoder"](batch["image"])
    ids = torch.ones(len(latent), 1, dtype=torch.long, device=latent.device)
    for _ in range(12):
        scores = nets["caption_decoder"](latent, ids)[:, -1, :len(words)]
        ids = torch.cat([ids, scores.argmax(1, keepdim=True)], 1)
    said = [" ".join(words[i] for i in row if i > 3) for row in ids.tolist()]
    return [{"uid": u, "reference": r, "hypothesis": h}
            for u, r, h in zip(batch["uid"], batch["caption"], said)]


def expect(nets, batch, ctx):
    scores = nets["caption_decoder"](nets["image_encoder"](batch["image"]), batch["ids"])
    return {"caption": chance_band(scores, batch["labels"])}


def objectives(cfg):
    contrast = () if "norm penalty" in cfg.faults else ("alignment",)
    return {"train": Objective(["image_encoder", "caption_encoder", "image_decoder", "caption_decoder"], loss,
                               parts=["image", "caption", "alignment"], in_batch=contrast)}


task = Task(config=OriginalConfig, data=data, nets=nets, objectives=objectives, predict=predict,
            score=lambda rows, data: {
                "exact": sum(r["reference"] == r["hypothesis"] for r in rows) / len(rows)},
            baseline=lambda data, split: {"exact": 0.0}, expect=expect,
            preview=lambda nets, data, ctx: {"note": f"step {ctx.step}"})
