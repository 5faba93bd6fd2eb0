"Rows together and apart, causality and accumulation: each fault under its own cause, nothing in the healthy."
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from workbench.core.checks import accumulation, apart, causality
from workbench.core.checks.accumulation import accumulation as accumulated
from workbench.core.checks.apart import check_rows
from workbench.core.checks.check import check
from workbench.core.checks.costs import FewRows
from workbench.core.checks.real_steps import untouched
from workbench.core.config import presets
from workbench.core.config.schema import Core, Train
from workbench.core.setup.state import Job, Model, Setup
from workbench.core.stages.stage import Stage
from workbench.core.step.optim import named_parameters
from workbench.core.task import Data, Objective, Task

gallery = Path(__file__).parent.parent / "bench/gallery"
MINE = {*apart.asks, *causality.asks, *accumulation.asks}


@pytest.fixture(autouse=True)
def tasks_of_the_gallery(monkeypatch):
    paths = [str(gallery / f"{name}.py") for name in ("pairs", "voice", "draw")]
    monkeypatch.setenv("WORKBENCH_TASKS", ",".join([os.environ["WORKBENCH_TASKS"], *paths]))


def found_in(task, **kind):
    cfg = presets.load({"task": task, "trackers": [],
                        "train": {"max_steps": 60, "lr": 0.003, "batch_size": 16}} | kind)
    return {c.name: c for c in check(cfg) if c.name in MINE}


FAULTS = [
    ("pairs", "the loss is a mean", "reduction", "failed", ("`ce` is a mean", "accumulate 1")),
    ("voice", "a mean over frames", "reduction", "failed", ("`mel` is a mean",)),
    ("pairs", "rows read each other", "rows", "failed", ("in `decoder`", "`decoder.out`")),
    ("pairs", "softmax over the rows", "rows", "warned", ("`ce`", "in_batch")),
    ("voice", "recordings in another order", "rows", "warned", ("`mel`", "a flip")),
    ("pairs", "padding counts as a letter", "padding", "failed", ("`ce`", "padding counts")),
    ("voice", "padding frames count", "padding", "failed", ("`mel`", "padding counts")),
    ("voice", "frames of one frame later", "padding", "failed", ("reads past the end",)),
    ("pairs", "no causal mask", "causality", "failed",
     ("later targets in `decoder.layers.layers.0.self_attn`",)),
    ("pairs", "the decoder reads its target", "causality", "failed", ("the very token", "`decoder.embed`"))]


@pytest.mark.parametrize("task, fault, name, state, words", FAULTS, ids=[f[1] for f in FAULTS])
def test_a_fault_has_its_own_cause(task, fault, name, state, words):
    found = found_in(task, fault=fault)
    assert found[name].state == state and all(w in found[name].says for w in words), found[name]
    others = [c for c in found.values() if c.name != name and c.state in ("warned", "failed")]
    assert not others, others


@pytest.mark.parametrize("task, variant", [
    *[("pairs", v)
      for v in ("", "tied", "no dropout", "last layer at zero", "gate at zero", "adapter", "frozen encoder",
                             "terms of both signs")],
    *[("voice", v) for v in ("", "quantised base", "answers at zero", "frames alone", "two optimisers")],
    *[("draw", v) for v in ("", "no discriminator", "declared pairs")]])
def test_nothing_is_found_in_healthy_variants(task, variant):
    found = found_in(task, variant=variant)
    assert not [c for c in found.values() if c.state in ("warned", "failed")], found
    assert task != "pairs" or {c.state for c in found.values()} == {"passed"}, found


def test_a_contrastive_loss_that_nothing_says_is_one_warning():
    found = found_in("draw", variant="pairs in the batch")
    assert {n: c.state for n, c in found.items() if c.state in ("warned", "failed")} == {"rows": "warned"}


# small losses on rows [T, 3] -> [T, 1] of two to five places

class Rows:
    def __len__(self):
        return 24

    def __getitem__(self, at):
        x = torch.randn(2 + at[0] % 4, 3, generator=torch.Generator().manual_seed(at[0]))
        return f"r{at[0]}", x, x.sum(1, keepdim=True).sin()


def collate(items):
    uid, x, y = zip(*items)
    lengths = torch.tensor([len(v) for v in x])
    return {"uid": list(uid), "x": pad_sequence(x, True), "y": pad_sequence(y, True),
            "mask": torch.arange(int(max(lengths)))[None] < lengths[:, None]}


def setup_of(objectives, nets, data=None):
    names = set(named_parameters(nets))
    rows = Rows()
    data = data or Data(datasets={"train": rows}, collate=collate,
                        counts=lambda b: {"places": float(b["mask"].sum())},
                        lengths={"train": [2 + i % 4 for i in range(24)]},
                        uids={"train": [f"r{i}" for i in range(24)]},
                        targets=("y",), padding={"x": "mask"})
    task = Task(config=Core, data=None, nets=None, objectives=lambda cfg: objectives, predict=None,
                score=None,
                preview=None, baseline=None, expect=None)
    cfg = Core(task="rows", train=Train(epochs=1))
    return Setup(Job(cfg, task, [Stage(0, "train", cfg, list(objectives))]), Accelerator(cpu=True), data=data,
                 model=Model(nets, names, names))


def asked(loss, net=None, data=None, rows=(0, 1, 3), **how):
    torch.manual_seed(0)
    nets = {"body": net or nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))}
    setup = setup_of({"fit": Objective(["body"], loss, **how)}, nets, data)
    bits = {n: p.detach().clone() for n, p in named_parameters(nets).items()}
    few = FewRows(setup, list(rows))
    found = check_rows(few)
    with untouched(setup):
        found.append(accumulated(few, found))
    assert all(torch.equal(p, bits[n]) for n, p in named_parameters(nets).items())
    return {c.name: c for c in found}


def squares(nets, b, ctx):
    return (nets["body"](b["x"]) - b["y"]).square().sum(-1) * b["mask"]


def sum_loss(nets, b, ctx):
    return {"loss": squares(nets, b, ctx).sum() / ctx.counts["places"]}


def of_own_counts(nets, b, ctx):
    return {"loss": squares(nets, b, ctx).sum() / b["mask"].sum()}


def mean_in_training(nets, b, ctx):
    total = squares(nets, b, ctx).sum()
    return {"loss": total / (b["mask"].sum() if ctx.training else ctx.counts["places"])}


def undivided(nets, b, ctx):
    return {"loss": squares(nets, b, ctx).sum()}


def penalised(nets, b, ctx):
    return {"loss": sum_loss(nets, b, ctx)["loss"]
            + 0.1 * sum(p.square().sum() for p in nets["body"].parameters())}


def partly_a_mean(nets, b, ctx):
    return {"loss": sum_loss(nets, b, ctx)["loss"] + 0.5 * squares(nets, b, ctx)[b["mask"]].mean()}


def reported_mean(nets, b, ctx):
    return {"loss": sum_loss(nets, b, ctx)["loss"],
            "accuracy": (squares(nets, b, ctx)[b["mask"]] < 1).float().mean() + 1}


def test_a_healthy_loss_passes():
    assert {c.state for c in asked(sum_loss).values()} == {"passed"}
    assert set(asked(sum_loss)) == {"reduction", "rows", "padding", "accumulation"}


@pytest.mark.parametrize("loss, state, word", [
    (of_own_counts, "failed", "divided by ctx.counts"), (undivided, "warned", "is not divided"),
    (penalised, "warned", "a penalty"), (partly_a_mean, "failed", "stays when ctx.counts doubles"),
    (reported_mean, "warned", "`accuracy` (2) is no sum")])
def test_reductions(loss, state, word):
    found = asked(loss)
    assert found["reduction"].state == state and word in found["reduction"].says, found
    assert not [c for c in found.values() if c.name != "reduction" and c.state in ("failed", "warned")], found


def test_a_mean_in_training_alone_is_seen_by_the_accumulated_step():
    found = asked(mean_in_training)
    assert {n for n, c in found.items() if c.state == "failed"} == {"accumulation"}
    assert "`body." in found["accumulation"].says


def test_a_loss_that_remembers_is_not_passed_off_as_accumulation():
    before = {}

    def stale(nets, b, ctx):
        target, before["y"] = before.get("y", b["y"]), b["y"]
        b = b | {"y": target if ctx.training and target.shape == b["y"].shape else b["y"].flip(0)}
        return sum_loss(nets, b, ctx)

    assert asked(stale)["accumulation"].state == "not proven"


def flow(nets, b, ctx, reduce="sum"):
    "Noise for each place, and a time for each row."
    x0 = torch.randn(b["y"].shape, generator=ctx.generator)
    t = torch.rand(len(b["y"]), 1, 1, generator=ctx.generator)
    said = nets["body"](torch.cat([b["x"][..., :2], (1 - t) * x0 + t * b["y"]], -1))
    each = (said - (b["y"] - x0)).square().sum(-1) * b["mask"]
    return {"loss": each.sum() / ctx.counts["places"] if reduce == "sum" else each.sum() / b["mask"].sum()}


def test_drawn_noise_is_neither_padding_nor_mixing():
    found = asked(flow)
    assert {c.state for c in found.values()} == {"passed"}, found
    assert asked(partial(flow, reduce="mean"))["reduction"].state == "failed"


def test_noise_of_the_whole_batch_leaves_no_answer():
    def shuffled(nets, b, ctx):
        order = torch.randperm(len(b["y"]), generator=ctx.generator)
        return sum_loss(nets, b | {"y": b["y"][order]}, ctx)

    found = asked(shuffled)
    assert found["rows"].state == "not proven" and not [c for c in found.values()
                                                        if c.state == "failed"], found

    def times(nets, b, ctx):  # two numbers a row, side by side, in training
        first, second = torch.rand(2, len(b["y"]), generator=ctx.generator)
        scale = (first + second)[:, None, None] if ctx.training else 1
        return sum_loss(nets, b | {"x": b["x"] * scale}, ctx)

    found = asked(times)
    assert found["rows"].state == "passed" and found["accumulation"].state == "not proven", found


def test_noise_that_a_loss_draws_by_the_name_of_a_row_is_its_own():
    def named(nets, b, ctx):
        own = [torch.Generator().manual_seed(100 + int(u[1:])) for u in b["uid"]]
        noise = torch.stack([torch.randn(4, generator=g)[:1] for g in own])
        return sum_loss(nets, b | {"x": b["x"] + noise[:, None]}, ctx)

    assert {c.state for c in asked(named).values()} == {"passed"}


def contrastive(nets, b, ctx):
    z = nets["body"](b["x"]).mul(b["mask"][..., None]).sum(1)
    pairs = cross_entropy(-(z - z.T).square(), torch.arange(len(z)), reduction="sum") / ctx.counts["places"]
    return {"loss": sum_loss(nets, b, ctx)["loss"] + pairs, "pairs": pairs}


def test_losses_that_compare_rows():
    said = asked(contrastive, in_batch=["pairs"])
    assert said["rows"].state == "passed" and "as it is meant" in said["rows"].says
    assert "does not make its batch larger" in said["accumulation"].says
    assert asked(contrastive)["rows"].state == "warned"
    wrong = asked(lambda nets, b, ctx: (p := sum_loss(nets, b, ctx)) | {"pairs": p["loss"]},
                  in_batch=["pairs"])
    assert wrong["rows"].state == "failed" and "compares no rows" in wrong["rows"].says


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, x):
        h = self.first(x)
        return self.last((h - h.mean((0, 1))).tanh())


def test_a_net_that_mixes_rows_is_named():
    found = asked(sum_loss, Centred())
    assert found["rows"].state == "failed" and "in `body` (seen first in `body.last`)" in found["rows"].says


def test_collating_that_draws_leaves_padding_open():
    def masked(items):
        batch = collate(items)
        return batch | {"x": batch["x"] * (torch.rand(batch["x"].shape) < 0.7)}

    data = setup_of({"fit": Objective(["body"], sum_loss)}, {"body": nn.Linear(3, 1)}).data
    data.collate = masked
    found = asked(sum_loss, data=data)
    assert (found["rows"].state == found["reduction"].state == "passed"
            and found["padding"].state == "not proven")


# token models of the usual families

class Tokens:
    def __len__(self):
        return 12

    def __getitem__(self, at):
        return f"r{at[0]}", torch.randperm(20,
                                           generator=torch.Generator().manual_seed(at[0]))[:6 + at[0] % 3] + 3


def tokens(masked=False):
    def collate(items):
        uid, ids = zip(*items)
        labels = pad_sequence(ids, True, -100)
        shown = labels.clamp(min=0)
        if masked:  # every third token is hidden, and scored
            hidden = (torch.arange(labels.shape[1]) % 3 == 1)[None] & (labels != -100)
            shown, labels = torch.where(hidden, 2, shown), torch.where(hidden, labels, -100)
        return {"uid": list(uid), "input_ids": shown, "mask": (pad_sequence(ids, True, 0) > 0).long(),
                "labels": labels}

    return Data(datasets={"train": Tokens()}, collate=collate,
                counts=lambda b: {"tokens": float(sum(b["mask"].sum(1) - 1))},
                lengths={"train": [6 + i % 3 for i in range(12)]},
                uids={"train": [f"r{i}" for i in range(12)]},
                targets=("labels",), padding={"input_ids": "mask"})


def language_loss(nets, b, ctx):
    out = nets["body"](input_ids=b["input_ids"], attention_mask=b["mask"], labels=b["labels"])
    return {"loss": out.loss * (b["labels"][:, ctx.cfg.seed * 0 + 1:] != -100).sum() / ctx.counts["tokens"]}


def masked_loss(nets, b, ctx):
    out = nets["body"](input_ids=b["input_ids"], attention_mask=b["mask"]).logits
    return {"loss": cross_entropy(out.transpose(1, 2), b["labels"], reduction="sum") / ctx.counts["tokens"]}


def gpt(**how):
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, **how))


def test_a_decoder_alone_predicts_the_next_token():
    found = asked(language_loss, gpt(), tokens(), (0, 1, 2))
    assert {c.state for c in found.values()} == {"passed"}, found
    assert "what is predicted is read afterwards" in found["causality"].says


def test_a_decoder_alone_that_predicts_what_it_reads():
    found = asked(masked_loss, gpt(), tokens(), (0, 1, 2))["causality"]  # the labels are not moved on
    assert (found.state == "failed" and "the very token" in found.says
            and "`body.transformer.wte`" in found.says)


def test_a_decoder_alone_without_its_mask():
    from transformers import BertConfig, BertForMaskedLM

    bert = BertForMaskedLM(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1,
                                      num_attention_heads=2,
                                      intermediate_size=32, max_position_embeddings=16))

    def moved_on(nets, b, ctx):
        out = nets["body"](input_ids=b["input_ids"], attention_mask=b["mask"]).logits
        return {"loss": cross_entropy(out[:, :-1].transpose(1, 2), b["labels"][:, 1:], reduction="sum")
                / ctx.counts["tokens"]}

    found = asked(moved_on, bert, tokens(), (0, 1, 2))["causality"]
    assert found.state == "failed" and "no causal mask" in found.says and "attention" in found.says
    assert asked(masked_loss, bert, tokens(masked=True),
                 (0, 1, 2))["causality"].state in ("passed", "not proven")
    # in both directions and not shifted: an autoencoder reads its own target
    assert asked(masked_loss, bert, tokens(), (0, 1, 2))["causality"].state == "not proven"


def test_outputs_that_read_no_targets():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(1, 32)

        def forward(self, mask):
            return self.out(mask[..., None].cumsum(1) / 9)

    def tags(nets, b, ctx):
        out = nets["body"](b["mask"].float())
        return {"loss": cross_entropy(out.transpose(1, 2), b["labels"], reduction="sum", label_smoothing=0.1)
                / ctx.counts["tokens"]}

    found = asked(tags, Tagger(), tokens(), (0, 1, 2))["causality"]
    assert found.state == "passed" and "no output depends on the targets" in found.says
