"""A task for tests of exports: each letter becomes the next one of its text's alphabet, through attention.

The table of letters is the output layer too. The variable TOY_EXPORT names what is wrong with what leaves."""
import os
import string

import numpy as np
import torch
from torch import nn

from workbench.core.config.section import Section
from workbench.core.task import Axis, Data, Graph, Leaving, Objective, Task
from workbench.errors import Refused

LETTERS = string.ascii_lowercase
LONGEST = 24


class CipherConfig(Section):
    width: int = 64
    lora: str = ""  # the layer that has an adapter


class Words:
    "(id, text): words of 2 to LONGEST letters."

    def __init__(self, n, first=0):
        self.n, self.first = n, first

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        draw = np.random.default_rng(self.first + at[0])
        return f"w{self.first + at[0]}", "".join(draw.choice(list(LETTERS), draw.integers(2, LONGEST)))


def coded(text):
    return "".join(LETTERS[(LETTERS.index(c) + 1) % 26] for c in text)


def encoded(texts):
    ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
    mask = np.zeros(ids.shape, np.float32)
    for i, text in enumerate(texts):
        ids[i, :len(text)], mask[i, :len(text)] = [LETTERS.index(c) for c in text], 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


class Cipher(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.table, self.inner = nn.Embedding(26, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 26, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids, mask):  # [B, S], [B, S] -> [B, S, 26], [B, D]
        x = self.table(ids)
        scores = x @ x.transpose(1, 2) / x.shape[-1] ** 0.5 + (1 - mask)[:, None] * -1e4
        x = self.inner(x) + 0.1 * torch.softmax(scores, -1) @ x
        return self.head(x), (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def data(cfg, stage):
    datasets = {"train": Words(400), "valid": Words(30, 1000), "test": Words(40, 2000)}
    texts = {k: [d[i, 0][1] for i in range(len(d))] for k, d in datasets.items()}

    def collate(items):
        ids, mask = encoded([text for _, text in items])
        return {"uid": [uid for uid, _ in items], "ids": ids, "mask": mask,
                "labels": torch.where(mask > 0, (ids + 1) % 26, -100)}
    return Data(datasets=datasets, collate=collate,
                lengths={k: [len(t) for t in v] for k, v in texts.items()},
                counts=lambda b: {"letters": int(b["mask"].sum())}, targets=("labels",),
                padding={"ids": "mask"},
                uids={k: [d[i, 0][0] for i in range(len(d))] for k, d in datasets.items()},
                texts={k: list(map(coded, v)) for k, v in texts.items()},
                inputs={k: [(t,) for t in v] for k, v in texts.items()})


def nets(cfg, data, load_weights):
    torch.manual_seed(cfg.seed)
    net = Cipher(cfg.width)
    if cfg.lora:
        from peft import LoraConfig, get_peft_model

        net = get_peft_model(net, LoraConfig(r=4, target_modules=[cfg.lora], modules_to_save=None))
        net.base_model.model.table.weight.requires_grad_(True)
    return {"net": net}


def fit(nets, batch, ctx):
    logits, _ = nets["net"](batch["ids"], batch["mask"])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
    return {"loss": loss / ctx.counts["letters"]}


def answers(nets, texts):
    ids, mask = encoded(texts)
    with torch.no_grad():
        logits, _ = nets["net"](ids, mask)
    return ["".join(LETTERS[i] for i in row[:len(text)]) for row, text in zip(logits.argmax(-1), texts)]


def predict(nets, batch, ctx):
    texts = ["".join(LETTERS[i] for i in row[:int(n)]) for row, n in zip(batch["ids"], batch["mask"].sum(1))]
    return [{"uid": u, "reference": coded(t), "hypothesis": a}
            for u, t, a in zip(batch["uid"], texts, answers(nets, texts))]


def score(rows, data):
    right = [a == b for r in rows for a, b in zip(r["reference"], r["hypothesis"])]
    return {"letters": sum(right) / len(right)}


class Trapped(nn.Module):
    "What goes wrong in a graph: a length that becomes the example's, an operator without an ONNX form."

    def __init__(self, net, trap):
        super().__init__()
        self.net, self.trap = net, trap

    def forward(self, ids, mask):
        logits, mean = self.net(ids, mask)
        if self.trap == "operator":
            mean = torch.linalg.eigvals(mean[:, :4, None] * mean[:, None, :4]).real
        return logits, mean


def exports(nets, data, ctx):
    trap = os.environ.get("TOY_EXPORT", "")
    if trap == "stage":
        raise Refused("the stage `warm` has no net that answers: export a checkpoint of the stage `train`.")
    texts, both = [row[0] for row in data.inputs["test"]], {0: "batch", 1: "letters"}
    graph = Graph(Trapped(nets["net"], trap) if trap else nets["net"],
                  {"ids": torch.ones(2, 5, dtype=torch.long), "mask": torch.ones(2, 5)}, ["logits", "mean"],
                  {"ids": both, "mask": both, "logits": both, "mean": {0: "batch"}})
    return Leaving(
        graphs={"net": graph},
        axes={"batch": Axis(high=64), "letters": Axis(high=LONGEST, lengths=[*map(len, texts)])},
        program="cipher_program", settings={"letters": LETTERS, "wrong": trap == "program"}, inputs=texts,
        save=lambda folder: (folder / "letters.txt").write_text(LETTERS),
        expected=lambda inputs: answers(nets, inputs),
        score=lambda found: score([{"reference": coded(t), "hypothesis": a} for t, a in zip(texts, found)],
                                  data))


task = Task(config=CipherConfig, data=data, nets=nets,
            objectives=lambda cfg: {"fit": Objective(["net"], fit)},
            predict=predict, score=score, baseline=lambda data, split: {"letters": 1 / 26},
            expect=lambda nets, batch, ctx: {}, preview=lambda nets, data, ctx: {"note": f"step {ctx.step}"},
            exports=exports, better={"letters": "max"})
