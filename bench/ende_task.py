"""The English-German pairs as a task of the workbench, to measure its loop on them (`task: ende_task`)."""
import math
from dataclasses import dataclass

import ende
from torch.nn import functional as F

from workbench.core.config.section import Section
from workbench.core.data.metrics import constant_scores, text_scores
from workbench.core.task import Data, Objective, Task

HELD_OUT = 128  # the last rows of a fixed shuffle


class DataConfig(Section):
    lang: str = "de"
    vocab: int = 8000


class Config(Section):
    data: DataConfig = DataConfig()


@dataclass(frozen=True)
class Rows:
    "dataset[i, epoch] -> a pair as token ids."
    table: list[dict]
    tokenizer: object

    def __len__(self):
        return len(self.table)

    def __getitem__(self, at):
        return self.table[at[0]] | {"row": at[0]}


def split(
    table: list[dict],
) -> dict[str, list[dict]]:
    "Training rows and held-out rows, the same for everybody who asks."
    import numpy as np

    order = np.random.default_rng(0).permutation(len(table))
    return {"train": [table[i] for i in order[:-HELD_OUT]], "valid": [table[i] for i in order[-HELD_OUT:]]}


def data(cfg, stage) -> Data:
    table, tokenizer = ende.rows(cfg.data.lang, cfg.data.vocab)
    splits = split(table)
    return Data(
        datasets={name: Rows(rows, tokenizer) for name, rows in splits.items()},
        collate=lambda items: ende.collate(items) | {"row": [item["row"] for item in items]},
        lengths={name: ende.lengths(rows) for name, rows in splits.items()},
        counts=lambda batch: {"tokens": int((batch["labels"] != -100).sum())},
        uids={name: [f"{name}-{i}" for i in range(len(rows))] for name, rows in splits.items()},
        targets=["labels"], padding={"input_ids": "attention_mask"},
        facts={"vocabulary": len(tokenizer), "origin": f"{ende.PACKAGE} en-{cfg.data.lang}"})


def nets(cfg, data, load_weights) -> dict:
    return {"model": ende.t5(cfg.data.vocab)}


def loss(nets, batch, ctx) -> dict:
    "Cross-entropy of the target tokens, divided by those of the whole step."
    model = nets["model"]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                   decoder_input_ids=model._shift_right(batch["labels"]), use_cache=False).logits
    total = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")  # skips -100
    return {"loss": total / ctx.counts["tokens"]}


def predict(nets, batch, ctx) -> list[dict]:
    _, tokenizer = ende.rows(ctx.cfg.data.lang, ctx.cfg.data.vocab)
    sources = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    text = lambda ids: tokenizer.batch_decode(ids, skip_special_tokens=True)
    truth = text(batch["labels"].masked_fill(batch["labels"] == -100, 0))
    found = text(nets["model"].generate(**sources, max_new_tokens=64))
    return [{"uid": uid, "reference": r, "hypothesis": h} for uid, r, h in zip(batch["row"], truth, found)]


def score(rows, data) -> dict:
    return text_scores([row["reference"] for row in rows], [row["hypothesis"] for row in rows])


def texts(data, name) -> list[str]:
    return data.datasets[name].tokenizer.batch_decode([row["labels"] for row in data.datasets[name].table],
                                                      skip_special_tokens=True)


def baseline(data, name) -> dict:
    return constant_scores(texts(data, "train"), texts(data, name))


def expect(cfg, data) -> dict:
    "ln V plus half the variance of the logits: about 1 for tied embeddings of deviation 1, scaled by 1/√D."
    return {"loss": (math.log(cfg.data.vocab) - 0.1, math.log(cfg.data.vocab) + 1.5)}


def preview(nets, data, ctx) -> dict:
    batch = data.collate([data.datasets["valid"][i, 0] for i in range(4)])
    rows = predict(nets, batch, ctx)
    return {"translations": "\n\n".join(f"{row['reference']}\n{row['hypothesis']}" for row in rows)}


def objectives(cfg) -> dict:
    return {"translate": Objective(["model"], loss)}


task = Task(config=Config, data=data, nets=nets, objectives=objectives, predict=predict, score=score,
            baseline=baseline, expect=expect, preview=preview)
