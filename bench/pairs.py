"""The two systems that throughput.py measures, each as rows, a net, and a task of the workbench."""
import functools

import ende
import ende_task

HELD_OUT = 128  # rows


class Ende:
    "A T5 on the English-German pairs of ende.py."
    module, net_name, preset = ende_task, "model", {"task": "ende_task"}
    settings, net, collate = {}, staticmethod(ende.t5), staticmethod(ende.collate)

    def __init__(self, source: str):
        table, self.tokenizer = ende.rows()
        self.rows = ende_task.split(table)

    def as_theirs(self, batch: dict) -> dict:
        return batch


class Translate:
    "`universal_tiny` of the task translate, on the pairs of `data.source`."
    net_name, preset = "translator", "universal_tiny"

    def __init__(self, source: str):
        from workbench.core.config import presets
        from workbench.core.stages.stages import stages
        from workbench.tasks.translate import task as module

        # the losses of the other loops are the model's own: without smoothing
        self.module, self.settings = module, {"data": {"source": source, "subword_dropout": 0.0},
                                              "loss": {"smoothing": 0.0}}
        self.cfg = presets.load(self.preset, self.settings)
        self.data = module.task.data(self.cfg, stages(self.cfg, None)[0])
        self.tokenizer = self.data.own.tokenizer
        self.rows = {split: [self.row(rows[i, 0]) for i in range(len(rows))][:most] for split, rows, most in
                     (("train", self.data.datasets["train"], None),
                      ("valid", self.data.datasets["valid"], HELD_OUT))}
        self.net = functools.partial(self.made, module.task.nets)
        self.collate = ende.collate

    def row(self, item: dict) -> dict:
        return {"input_ids": item["source"].tolist(), "labels": item["labels"].tolist()}

    def made(self, nets):
        "The net with its first weights."
        return nets(self.cfg, self.data, True)["translator"]

    def as_theirs(self, batch: dict) -> dict:
        "A batch of the task in the words of transformers."
        import torch

        source = batch["source"]
        real = torch.arange(source.shape[1]) < batch["source_lengths"][:, None]
        return {"input_ids": source, "attention_mask": real, "labels": batch["labels"]}


SYSTEMS = {"ende": Ende, "translate": Translate}
