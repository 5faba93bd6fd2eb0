"""The questions about the data: each meets its own faults, and healthy data that look like them."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from workbench.core.checks.data import check_data
from workbench.core.checks.few_rows import spread
from workbench.core.task import Data

N = {"train": (96, 0), "valid": (32, 1000), "test": (32, 2000)}  # rows, the first of them


class Rows:
    "Rows of a split: item(i, rng) for what never changes, drawn(item, rng) for what an epoch draws."

    def __init__(self, split, item, drawn, rows=None):
        self.split, self.item, self.drawn = split, item, drawn
        self.n, self.first = rows or N[split]

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        i, epoch = at
        item = self.item(self.first + i, np.random.default_rng([3, self.first + i]))
        item = self.drawn(item, np.random.default_rng([self.first + i, epoch])) if self.drawn else item
        return {"uid": f"{self.split}{self.first + i}", **item}


def stacked(items):
    "Fields of all rows: strings as lists, whole numbers as they are, rows of unlike length padded."
    def field(values):
        if isinstance(values[0], str):
            return list(values)
        values = [torch.as_tensor(v) for v in values]
        values = [v.float() if v.is_floating_point() else v for v in values]
        return pad_sequence(values, True, -100 if values[0].dtype == torch.long else 0) if values[0].dim() \
            else torch.stack(values)
    return {name: field([item[name] for item in items]) for name in items[0]}


def made(item, targets=("y",), drawn=None, valid_drawn=None, collate=stacked, lengths=None, **more):
    "Data of three splits."
    datasets = {k: Rows(k, item, drawn if k == "train" else valid_drawn) for k in N}
    lengths = lengths or (lambda i: 4)
    return Data(datasets=datasets, collate=collate, targets=targets, counts=lambda b: {"rows": 1},
                lengths={k: [lengths(d.first + i) for i in range(len(d))] for k, d in datasets.items()},
                uids={k: [f"{k}{d.first + i}" for i in range(len(d))] for k, d in datasets.items()}, **more)


def asked(data):
    "What is found of the data, by name."
    setup = SimpleNamespace(data=data, cfg=SimpleNamespace(seed=0), accelerator=SimpleNamespace(device="cpu"))
    return {c.name: c for c in check_data(setup, spread(data))}


def odd(data):
    return {name: f"{c.state}: {c.says}" for name, c in asked(data).items() if c.state in ("failed", "warned")}


# Healthy data

def vector(i, rng):
    x = rng.normal(size=6)
    return {"x": x, "y": np.array([np.sin(x[0]) + x[1]])}


def letters(i, rng):
    x = rng.integers(1, 30, 6 + i % 5)
    return {"x": x, "y": x[::-1].copy()}


def image(i, rng):
    at, level = rng.integers(0, 12, 2), rng.uniform(0.3, 1)
    pixels = 0.1 * rng.normal(size=(1, 16, 16)) - 0.5
    pixels[0, at[0]:at[0] + 4, at[1]:at[1] + 4] += level
    return {"image": pixels, "kind": np.eye(4)[i % 4]}


def caption(i, rng):
    return image(i, rng) | {"words": rng.integers(10, 60, 6)}


def masked(item, rng):
    "A masked language model: 15 % of the tokens are hidden, and they are the labels."
    x, hide = item["x"].copy(), rng.random(len(item["x"])) < 0.3
    hide[rng.integers(len(x))] = True
    return {"x": np.where(hide, 0, x), "y": np.where(hide, x, -100)}


def crop(size, *fields):
    def drawn(item, rng):
        a, b = rng.integers(0, 16 - size, 2)
        return item | {f: item[f][:, a:a + size, b:b + size] for f in fields}
    return drawn


def noisy(field, sigma=0.3):
    return lambda item, rng: item | {field: item[field] + sigma * rng.normal(size=np.shape(item[field]))}


def dropped(field):
    return lambda item, rng: item | {field: item[field] * (rng.random() > 0.2)}


def one_of_five(item, rng):
    "Five captions of a picture share their words."
    words = item["words"]
    order = rng.permutation(6)[:5]
    return {"image": item["image"], "y": np.append(words[order], rng.integers(10, 60))}


def turned(item, rng):
    turns = int(rng.integers(4))
    return {"image": np.rot90(item["image"], turns, (1, 2)).copy(), "y": turns}


def negative(item, rng):
    return {"x": item["x"], "near": item["x"] + 0.1, "far": rng.normal(size=6)}


def matched(item, rng):
    right = rng.random() > 0.5
    return {"x": item["x"], "other": item["x"] * 2 if right else rng.normal(size=6), "y": int(right)}


def diffused(item, rng):
    t, noise = rng.random(), rng.normal(size=item["image"].shape)
    return {"noisy": (1 - t) * item["image"] + t * noise, "t": np.array([t]), "y": noise}


def clean(item):
    return lambda i, rng: (lambda x: {"x": x["image"], "y": x["image"].copy()})(item(i, rng))


def segmented(i, rng):
    x = image(i, rng)["image"]
    return {"x": x, "y": (x[0] > 0.1).astype(int)}


def spoken(i, rng):
    frames = rng.normal(size=(9 + i % 4, 5))
    stop = np.zeros(len(frames), int)
    stop[-1] = 1
    return {"x": rng.integers(1, 9, 4), "y": frames, "stop": stop, "y_lengths": len(frames)}


HEALTHY = {
    "numbers": made(vector), "letters": made(letters, lengths=lambda i: 6 + i % 5),
    "augmentation": made(vector, drawn=noisy("x", 0.1)),
    "masked tokens": made(letters, drawn=masked, valid_drawn=masked),
    "denoising": made(clean(image), drawn=noisy("x"), valid_drawn=noisy("x")),
    "random crops": made(clean(image), drawn=crop(12, "x", "y"), valid_drawn=crop(12, "x", "y")),
    "crops of a class": made(image, ("image",), crop(12, "image")),
    "crops of a class everywhere": made(image, ("image",), crop(12, "image"), crop(12, "image")),
    "classes of crops": made(lambda i, rng: image(i, rng) | {"y": i % 4}, ("y",), crop(13, "image")),
    "dropped conditions": made(image, ("image",), dropped("kind"), dropped("kind")),
    "dropped conditions of vectors": made(lambda i, rng: vector(i, rng) | {"y": rng.normal(size=6)}, ("y",), dropped("x"),
                                          dropped("x")),
    "several captions": made(caption, ("y",), one_of_five, one_of_five),
    "turned pictures": made(image, ("y",), turned, turned),
    "drawn negatives": made(vector, (), negative, negative),
    "drawn pairs": made(vector, ("y",), matched, matched),
    "noise of a diffusion": made(image, ("y",), diffused, diffused),
    "two classes": made(lambda i, rng: vector(i, rng) | {"y": int(rng.random() < 0.3)}),
    "background": made(segmented), "stop tokens": made(spoken, ("y", "stop", "y_lengths")),
    "a grid": made(lambda i, rng: vector(i, rng) | {"weight": 1.0}),
    "texts": made(lambda i, rng: {"text": " ".join(rng.choice(list("abcdefgh"), 5)), "y": rng.normal(size=2)}),
    "decibels": made(lambda i, rng: {"x": -50 + 20 * rng.normal(size=(8, 4)), "y": i % 3}),
    "small world": made(lambda i, rng: (lambda x: {"x": x, "y": x.sum() % 2})(rng.integers(0, 2, 7))),
    "tiny noise in validation": made(vector, drawn=noisy("x", 0.01), valid_drawn=noisy("x", 0.01)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_data_pass(name):
    assert not odd(HEALTHY[name])
