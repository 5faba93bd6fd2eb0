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
    return {name: f"{c.state}: {c.says}"
            for name, c in asked(data).items() if c.state in ("failed", "warned")}


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
    "dropped conditions of vectors": made(lambda i, rng: vector(i, rng) | {"y": rng.normal(size=6)}, ("y",),
                                          dropped("x"),
                                          dropped("x")),
    "several captions": made(caption, ("y",), one_of_five, one_of_five),
    "turned pictures": made(image, ("y",), turned, turned),
    "drawn negatives": made(vector, (), negative, negative),
    "drawn pairs": made(vector, ("y",), matched, matched),
    "noise of a diffusion": made(image, ("y",), diffused, diffused),
    "two classes": made(lambda i, rng: vector(i, rng) | {"y": int(rng.random() < 0.3)}),
    "background": made(segmented), "stop tokens": made(spoken, ("y", "stop", "y_lengths")),
    "a grid": made(lambda i, rng: vector(i, rng) | {"weight": 1.0}),
    "texts": made(lambda i,
                  rng: {"text": " ".join(rng.choice(list("abcdefgh"), 5)), "y": rng.normal(size=2)}),
    "decibels": made(lambda i, rng: {"x": -50 + 20 * rng.normal(size=(8, 4)), "y": i % 3}),
    "small world": made(lambda i, rng: (lambda x: {"x": x, "y": x.sum() % 2})(rng.integers(0, 2, 7))),
    "a condition of vectors that is dropped": made(lambda i,
                                                   rng: {"x": rng.normal(size=8), "y": rng.normal(size=2)},
                                                   ("y",),
                                                   dropped("x"), dropped("x")),
    "noise as input": made(image, ("image",), lambda item, rng: item | {"z": rng.normal(size=9)},
                           lambda item, rng: item | {"z": rng.normal(size=9)}),
    "tiny noise in validation": made(vector, drawn=noisy("x", 0.01), valid_drawn=noisy("x", 0.01)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_data_pass(name):
    assert not odd(HEALTHY[name])


# Faults

def unseeded(item, rng):
    "Noise that (row, epoch) does not decide: of numpy's own generator."
    return item | {"x": item["x"] + 0.3 * np.random.normal(size=6)}


def labels_anew(item, rng):
    return item | {"x": item["x"], "y": int(rng.integers(4))}


def rewritten(item, rng):
    return item | {"x": rng.normal(size=6)}


def copied(data, split="valid", noise=0.0):
    "Held-out rows are training rows, with noise on the inputs, or without."
    train = data.datasets["train"]

    class Copies(Rows):
        def __getitem__(self, at):
            item = dict(train[at[0] + 3, 0])
            noises = np.random.default_rng(at[0]).normal(size=np.shape(item["x"]))
            return item | {"uid": f"{split}{at[0]}", "x": item["x"] + noise * noises}
    data.datasets[split] = Copies(split, None, None)
    return data


def with_ids(data, ids):
    data.uids["valid"] = [f"train{i}" for i in ids]
    return data


def scaled(by, add=0.0):
    return lambda i, rng: (lambda item: item | {"x": by * item["x"] + add})(vector(i, rng))


def one_nan(i, rng):
    item = vector(i, rng)
    item["x"][2] = np.nan if i == 57 else item["x"][2]
    return item


def raw_validation(i, rng):
    item = vector(i, rng)
    return item | {"x": 12 + 9 * item["x"]} if i >= 1000 else item


def silent(i, rng):
    item = spoken(i, rng)
    return item | {"y": item["y"] * (i % 4 > 0)}


def empty_pose(i, rng):
    frames = rng.normal(size=(6, 4))
    return {"x": frames * (i % 5 > 0), "y": np.array([i % 30, i % 7, 3])}


def cut(i, rng):
    item = letters(i, rng)
    return item | {"x": item["x"][:1].repeat(len(item["x"]))}


few = lambda i, rng: letters(i, rng) | {"y": np.array([4, 4, 4]) if i % 8 else rng.integers(1, 9, 3)}
FAULTS = {  # data: (check, state, words of what it says)
    "rows of validation are training rows": (copied(made(vector)), "splits", "failed",
                                             "`valid1000` that of `train3`"),
    "rows of a test are training rows": (copied(made(vector), "test"), "splits", "failed",
                                         "32 of 32 rows of test"),
    "copies with noise": (copied(made(lambda i, rng: vector(i, rng) | {"y": i % 4}), noise=0.02), "splits",
                          "warned",
                          "nearly a training row"),
    "contents": (made(vector, contents={"train": list(range(96)), "valid": [*range(8), *range(200, 224)]}),
                 "splits",
                 "failed", "8 of 32 rows of valid"),
    "few contents": (made(letters, contents={"train": list(range(96)), "valid": [5, 6, *range(200, 230)]}),
                     "splits",
                     "warned", "2 of 32 rows of valid"),
    "ids of other rows": (with_ids(made(vector), range(5, 37)), "splits", "warned", "`train5`"),
    "augmented validation": (made(vector, drawn=noisy("x"), valid_drawn=noisy("x")), "draws", "failed",
                             "augmentation of training is on in validation"),
    "validation alone is augmented": (made(vector, valid_drawn=noisy("x")), "draws", "warned",
                                      "validation is augmented"),
    "validation drawn anew": (made(vector, drawn=unseeded, valid_drawn=unseeded), "draws", "failed",
                              "twice in the same epoch"),
    "training drawn from no seed": (made(vector, drawn=unseeded), "draws", "warned",
                                    "draw from (row, epoch) alone"),
    "targets anew": (made(lambda i, rng: vector(i, rng) | {"y": i % 4}, drawn=labels_anew), "draws", "failed",
                     "targets are drawn anew"),
    "rewritten rows": (made(vector, drawn=rewritten), "draws", "warned", "are the rows rewritten?"),
    "a NaN in one row": (made(one_nan), "range", "failed", "row `train57` holds NaN"),
    "pixels": (made(scaled(100, 640)), "range", "warned", "far more than a net starts well with"),
    "hardly anything": (made(scaled(1e-4)), "range", "warned", "hardly more than nothing"),
    "a far mean": (made(scaled(0.5, 40)), "range", "warned", "subtract it"),
    "validation that is scaled otherwise": (made(raw_validation), "range", "warned", "not scaled alike"),
    "eight rows again and again": (made(lambda i,
                                        rng: vector(i, np.random.default_rng(i % 8 if i < 1000 else i))),
                                   "inputs", "warned", "8 different contents"),
    "one target": (made(lambda i, rng: vector(i, rng) | {"y": 3}), "target values", "failed",
                   "the target is the same (3)"),
    "one label in most rows": (made(lambda i, rng: vector(i, rng) | {"y": int(i % 8 == 0)}), "target values",
                               "warned",
                               "88% of the rows"),
    "nearly one target": (made(few), "target values", "warned", "88% of the rows"),
    "unread recordings": (made(silent), "target values", "warned", "24 of 96 rows"),
    "empty poses": (made(empty_pose), "inputs", "warned", "20 of 96 rows"),
    "a source that is cut": (made(cut, lengths=lambda i: 6 + i % 5), "inputs", "failed",
                             "only the first of its values"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_data_is_found_and_named(fault):
    data, name, state, words = FAULTS[fault]
    found = odd(data)
    assert set(found) == {name} and found[name].startswith(state) and words in found[name], found


def test_ids_that_number_the_rows_of_each_split_are_no_fault():
    data = made(vector)
    data.uids = {k: [str(i) for i in range(len(d))] for k, d in data.datasets.items()}
    assert not odd(data)


def test_rows_with_one_id_and_one_content_are_one_row():
    data = copied(made(vector))
    data.uids["valid"] = [f"train{i + 3}" for i in range(32)]
    assert odd(data)["splits"].startswith("failed: 32 of 32 rows of valid have the content of a training "
                                          "row, e.g. `train3`")


def test_a_validation_that_is_the_training_split_is_said_and_not_refused():
    data = made(vector)
    for of_split in (data.datasets, data.lengths, data.uids):
        of_split["valid"] = of_split["train"]
    assert odd(data)["splits"].startswith("warned: valid is the training split itself")


def test_rows_that_never_share_a_batch_are_never_collated_together():
    "Pictures of two sizes."
    data = made(lambda i,
                rng: {"x": rng.normal(size=(1, 4 + 4 * (i % 3 == 0), 4)), "y": np.array([rng.normal()])},
                collate=lambda items: {"uid": [i["uid"] for i in items],
                                       "x": torch.stack([torch.tensor(i["x"]).float()
                                                                                          for i in items]),
                                       "y": torch.stack([torch.tensor(i["y"]).float() for i in items])})
    data.groups = {k: np.array([(d.first + i) % 3 == 0 for i in range(len(d))]).astype(int)
                   for k, d in data.datasets.items()}
    assert not odd(data)


def test_the_sample_is_a_fixed_count_of_rows():
    data, drawn = made(vector), []
    train = data.datasets["train"]
    get = Rows.__getitem__
    big = type("Big", (Rows,), {"__getitem__": lambda self, at: drawn.append(at) or get(self, at)})
    data.datasets["train"] = big("train", train.item, None, (5000, 0))
    data.lengths["train"], data.uids["train"] = [4] * 5000, [f"train{i}" for i in range(5000)]
    found = asked(data)
    assert "256 of 5,000 rows of train" in found["range"].says and len(drawn) < 320
