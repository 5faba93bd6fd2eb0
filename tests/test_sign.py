"""Sign end to end: a user's folder whole and spoilt, every family, real runs that are killed and resumed.

Each fault of the public projects has a test that shows it cannot happen; its docstring begins with
`Fault`."""
import builtins
import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import signs
import torch
from conftest import pairs
from test_seq2seq import FAMILIES

import workbench
from workbench.core.run import checkpoint
from workbench.core.config import presets
from workbench.errors import Refused
from workbench.core.step.evaluate import predict_rows
from workbench.core.setup.state import make_accelerator
from workbench.core.data.metrics import text_scores
from workbench.core.step.optim import freeze, named_parameters, set_modes
from workbench.core.stages.stages import stages
from workbench.core.checks.check import check
from workbench.core.data.rows import shared_rows
from workbench.core.run.folder import metrics_of
from workbench.files import read_json
from workbench.core.step.step import build, optimiser_step, require_gradients
from workbench.core.task import Ctx
from workbench.lab import cli
from workbench.lab.run import launch
from workbench.parts.text import model_config, pretrained
from workbench.parts.text.targets import decode_texts
from workbench.parts.text.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from workbench.tasks.sign import task as sign

TINY = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
PRESET = {
    "preset": "mine", "task": "trapped_sign", "check": False, "trackers": ["tensorboard"],
    "data": {"source": "", "keypoints": "152", "step_frames": 2, "max_frames": 30, "max_length": 30},
    "model": {"name": "t5", "init": "scratch", "tokenizer_kind": "char", "params": TINY},
    "generate": {"num_beams": 2, "max_length": 10, "no_repeat_ngram": 3},
    "train": {"max_steps": 8, "minutes": None, "batch_size": 4, "lr": 1e-3, "log_every": 1,
              "checkpoint_every": 3,
              "scheduler": {"warmup": 2}},
    "valid": {"every": 4, "batch_size": 2, "metric": "cer", "mode": "min", "final": ["test*"]}}


WHOLE = {**PRESET, "model": {"tokenizer_kind": "char"}}  # a model with its own sizes
READY = {**PRESET, "model": {}}  # one with its tokenizer, too


def config(home, overrides="", base=PRESET):
    return presets.load(presets.merge(base, {"data": {"source": str(home)}}), overrides)


def data_of(cfg, assets=None):
    return sign.task.data(cfg, types.SimpleNamespace(assets=assets))


def refusal(cfg):
    "The message with which data or nets are refused."
    with pytest.raises(Refused) as caught:
        sign.task.nets(cfg, data_of(cfg), True)
    return str(caught.value)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return signs.good_folder(tmp_path_factory.mktemp("good"))


@pytest.fixture(scope="module")
def untested(tmp_path_factory):
    "A folder without a table for tests: the end is then told by the validation rows."
    return signs.good_folder(tmp_path_factory.mktemp("untested"), test=False)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    home = signs.good_folder(tmp_path_factory.mktemp("spoilt"))
    return types.SimpleNamespace(home=home, flag=home / "flag", reasons=signs.spoil(home, home / "flag"))


# A user's folder

def test_a_folder_of_another_sign_language_is_read(good):
    "A BOM, semicolons, nested names, three formats, no table for validation: nothing is to be converted."
    d = data_of(config(good))
    texts = d.texts
    assert not d.rejected and {k: len(v) for k, v in texts.items()} == {"train": 21, "valid": 3, "test": 5}
    assert sorted(texts["train"] + texts["valid"]) == sorted(t for _, t in signs.TEXTS)
    assert not set(texts["train"]) & set(texts["valid"])
    assert all("/s" in uid for split in d.uids.values() for uid in split)
    again = data_of(config(good))
    assert again.texts == texts and again.facts["fingerprint"] == d.facts["fingerprint"]


def test_a_pose_is_never_empty(good):
    """Fault: `.pose` files read as empty poses.
    Every row has seen points that move and differ from every other row's."""
    d, seen = data_of(config(good)), set()
    for split, rows in d.datasets.items():
        for i in range(len(rows)):
            row, frames = rows[i, 0]
            points = frames.reshape(len(frames), 76, 3)
            assert len(frames) and np.isfinite(frames).all() and points[..., 2].mean() > 0.5
            assert points[..., :2].std(0).max() > 0.01 and frames.std() > 0.1
            seen.add((split == "test", points.tobytes()))
    assert len(seen) == 24 + 5
    kinds = {Path(p).suffix for p in (good / "poses").rglob("*.*")}
    assert kinds == {".pose", ".npy", ".pkl"}


def test_labels_are_padded_with_what_no_loss_counts(good):
    "Fault: label padding not -100. The loss of a row alone is its loss among longer ones."
    cfg = config(good, "model.dropout=0")
    d = data_of(cfg)
    nets = sign.task.nets(cfg, d, True)
    set_modes(nets, False)
    items = [d.datasets["valid"][i, 0] for i in range(3)]
    assert len({len(d.collate([it])["labels"][0]) for it in items}) > 1
    batch = d.collate(items)
    real = batch["labels"] != -100
    assert ((~real).any() and d.counts(batch)["tokens"] == int(real.sum())
            == sum(d.counts(d.collate([i]))["tokens"] for i in items))
    # never the padding token
    assert (batch["labels"][real] >= 0).all() and (batch["labels"][real] != 0).all()
    with torch.no_grad():
        def loss(b):
            return float(sign.translate_loss(nets, b,
                                             Ctx(cfg=cfg, data=d, training=False,
                                                 counts=d.counts(batch)))["loss"])
        assert loss(batch) == pytest.approx(sum(loss(d.collate([i])) for i in items), abs=2e-5)


def test_a_uid_in_two_tables_keeps_both_texts(good):
    "The rows of test.csv have the uids of training rows and other texts."
    d = data_of(config(good))
    tok = d.own.tokenizer
    for split, rows in d.datasets.items():
        batch = d.collate([rows[i, 0] for i in range(len(rows))])
        wanted = (d.texts[split] if split == "train"
                  else decode_texts(tok, tok(d.texts[split]).input_ids))
        assert decode_texts(tok, batch["labels"]) == wanted
    shared = set(d.uids["test"]) & (set(d.uids["train"]) | set(d.uids["valid"]))
    assert len(shared) == 5


@pytest.mark.parametrize("kind", ["char", "unigram", "bpe"])
def test_three_scripts_come_back_from_the_tokenizer(good, kind, tmp_path):
    d = data_of(config(good, f"model.tokenizer_kind={kind} model.vocab_size=150"))
    d.save(tmp_path)
    tok = load_tokenizer(tmp_path / "tokenizer")
    assert len(d.texts["train"]) == 21
    for t in d.texts["train"]:
        assert decode_texts(tok, [tok(t).input_ids]) == [t]
    assert d.facts["letters_lost"]["train"] == 0 < d.facts["letters_lost"]["valid"]  # of letters held out


def test_more_than_a_share_of_broken_rows_is_refused_with_the_list(spoilt):
    message = refusal(config(spoilt.home))
    assert message.startswith("10 of 39 rows cannot be used, more than data.max_rejected = 0.01 allows.")
    for uid, reason in spoilt.reasons.items():
        line = next(x for x in message.splitlines() if f" {uid}: " in x)
        assert re.search(reason, line) and re.match(r"  train\.csv:\d+ ", line)
    assert not spoilt.flag.exists()


def test_broken_rows_within_the_share_are_left_out(spoilt):
    d = data_of(config(spoilt.home, "data.max_rejected=0.5"))
    assert {r["uid"] for r in d.rejected} == set(spoilt.reasons)
    assert {k: len(v) for k, v in d.datasets.items()} == {"train": 21, "valid": 3, "test": 5}
    assert not spoilt.flag.exists()  # the pickle was not executed


def test_a_pickle_that_asks_for_code_does_run_outside(spoilt, tmp_path):
    "What the test above shows is no accident of the file."
    import pickle

    flag = tmp_path / "flag"
    pickle.loads(pickle.dumps(signs.Call(os.system, f"touch {flag}")))
    assert flag.exists() and b"posix" in (spoilt.home / "poses/evil.pkl").read_bytes()


def spoil_table(home, text, encoding="utf8"):
    (home / "train.csv").write_bytes(text.encode(encoding))
    return refusal(config(home))


def test_a_wrong_table_is_a_sentence(tmp_path):
    home = signs.good_folder(tmp_path)
    for text, words in [("id,text\na,b\n", "the column uid is missing; the header has id, text"),
                        ("uid;sentence\na;b\n", "the column text is missing; the header has uid, sentence"),
                        ("", "the column uid is missing; the header has nothing"),
                        ("uid,text\n", "has no row to train on"),
                        ('uid,text\na,"b\n', "train.csv, line")]:
        assert words in spoil_table(home, text) and str(home) in spoil_table(home, text)
    assert "not UTF-8" in spoil_table(home, "uid,text\na,größe\n", "cp1252")
    (home / "train.csv").unlink()
    assert "has no train.csv: put it there, or set data.train_path" in refusal(config(home))


@pytest.mark.parametrize("overrides, words", [
    ("data.source=/no/such/folder", "there is no such folder"),
    ("data.train_path=gone.csv", "gone.csv: there is no such table"),
    ("data.val_path=gone.csv", "gone.csv: there is no such table"),
    ("data.pose_dir=gone", "there is no folder"),
    ("data.keypoints=hand", "choose from hands, left, right"), ("data.keypoints=266", "266 needs"),
    ("data.source=samples data.languages=[asl]", "did you mean `ase`?"),
    ("data.dims=3", "2 coordinates, not 3"),
    ("model.vocab_size=20 model.tokenizer_kind=bpe", "vocab_size is 20"),
    ("model.language=he_IL model.tokenizer_kind=char model.init=pretrained model.name=t5-small",
     "three ways out|Three ways out"),
])
def test_a_wrong_key_is_a_sentence(good, overrides, words):
    message = refusal(config(good, overrides))
    assert re.search(words, message) and "Traceback" not in message


def test_texts_with_commas_line_breaks_and_strange_spaces(tmp_path):
    home = signs.good_folder(tmp_path, test=False)
    odd = ["a, b", "two\nlines", "a\u2028b", "a\x85b", '"quoted"', "semi;colon"]
    signs.write(home / "train.csv",
                [(f"{lang}/s{i}", t) for i, ((lang, _), t) in enumerate(zip(signs.TEXTS, odd * 4))])
    texts = data_of(config(home)).texts
    assert {*texts["train"], *texts["valid"]} == set(odd)
    (home / "train.csv").write_text("uid,text\nisr/s0,hello, world\n")
    assert "train.csv:2 isr/s0: more fields than the header" in refusal(config(home))


def test_a_filter_on_languages(tmp_path):
    """A column `lang` is filtered by data.languages; a table without it is taken whole; no row left is a
    sentence."""
    home = signs.good_folder(tmp_path, test=False)
    assert len(data_of(config(home, "data.languages=[ase]")).datasets["train"]) == 21
    rows = [(f"{lang}/s{i}", t, lang) for i, (lang, t) in enumerate(signs.TEXTS)]
    signs.write(home / "train.csv", rows, head=("uid", "text", "lang"))
    d = data_of(config(home, "data.languages=[isr,eth]"))
    assert {u.split("/")[0] for part in d.uids.values() for u in part} == {"isr", "eth"}
    message = refusal(config(home, "data.languages=[ase]"))
    assert ("data.languages = ase; its column lang has eth, isr, ukl" in message
            and "data.languages=null" in message)


def test_tables_elsewhere_and_a_table_for_validation(tmp_path):
    home = signs.good_folder(tmp_path)
    (home / "tables").mkdir()
    (home / "train.csv").rename(home / "tables/a.csv")
    signs.write(home / "tables/b.csv", [("isr/s0", "אחר"), ("eth/s1", "ሌላ")])
    (home / "poses").rename(home / "keypoints")
    d = data_of(config(home, "data.train_path=tables/a.csv data.val_path=tables/b.csv "
                             "data.test_path=tables/b.csv data.pose_dir=keypoints"))
    assert {k: len(v) for k, v in d.datasets.items()} == {"train": 24, "valid": 2, "test": 2}
    assert d.texts["valid"] == ["אחר", "ሌላ"]
    (home / "tables/b.csv").rename(home / "dev.csv")
    assert d.texts["valid"] == data_of(config(home, "data.train_path=tables/a.csv "
                                                           "data.pose_dir=keypoints")).texts["valid"]


def test_a_validation_table_that_is_the_training_table_is_said(tmp_path):
    home = signs.good_folder(tmp_path)
    (home / "dev.csv").write_bytes((home / "train.csv").read_bytes())
    assert shared_rows(data_of(config(home)))[0].startswith("all of 24 rows of valid are training rows")
    (home / "validation.csv").write_bytes((home / "train.csv").read_bytes())
    assert "dev.csv and validation.csv are both for `valid`" in refusal(config(home))


def test_max_frames_and_step_frames_hold_for_every_row(good):
    for step, most in ((1, 7), (5, 300), (2, 6)):
        d = data_of(config(good, f"data.step_frames={step} data.max_frames={most}"))
        for split, rows in d.datasets.items():
            lengths = [len(rows[i, 1][1]) for i in range(len(rows))]
            assert max(lengths) <= most and min(lengths) >= 1
            if split != "train":
                assert lengths == list(d.lengths[split][:, 0])


def test_both_selections_and_arrays_without_names(tmp_path):
    home = tmp_path / "named"
    for i in range(4):
        signs.save_pose(home / f"poses/s{i}.pose", i)
    signs.write(home / "train.csv", [(f"s{i}", f"text {i}") for i in range(4)])
    for selection, points in ((152, 76), (266, 133), ("hands+body", 53), ("all", 150)):
        cfg = config(home, f"data.keypoints={selection}")
        d = data_of(cfg)
        assert d.facts["numbers_per_frame"] == points * 3 == d.datasets["train"][0, 0][1].shape[1]
        assert sign.task.nets(cfg, d, True)["reader"].mean.shape == (points * 3,)
    for i in range(4):
        (home / f"poses/s{i}.pose").unlink()
        np.save(home / f"poses/s{i}.npy", signs.motion(i, points=31))
    message = refusal(config(home))
    assert ("data.keypoints is 152, which fits none of the clips (4 of 4" in message
            and "its 31 points have no names to choose 152 by; use all" in message)
    assert data_of(config(home, "data.keypoints=all")).facts["numbers_per_frame"] == 93
    np.save(home / "poses/s3.npy", signs.motion(3, points=32))
    assert "s3 has 32 points of 2 coordinates and others 31 of 2" in refusal(config(home,
                                                                                    "data.keypoints=all"))


def test_points_that_are_seen_in_a_few_frames_only(tmp_path):
    "Thinning would pass over them; the row is trained on what is there, and never on zeros."
    for i in range(6):
        points = signs.motion(i, 40)
        points[:, :, :] = np.where((np.arange(40) == 13 + i)[:, None, None], points, np.nan)
        (tmp_path / "poses").mkdir(exist_ok=True)
        np.save(tmp_path / f"poses/s{i}.npy", points)
    signs.write(tmp_path / "train.csv", [(f"s{i}", f"text {i}") for i in range(6)])
    d = data_of(config(tmp_path, "data.step_frames=5"))
    for epoch in range(3):
        for i in range(len(d.datasets["train"])):
            frames = d.datasets["train"][i, epoch][1]
            assert frames.reshape(len(frames), 76, 3)[..., 2].any()


def test_reading_rows_opens_no_file_and_takes_no_lock(good, monkeypatch):
    """Fault: four GPUs as slow as one because of file locks in the dataset.
    Rows come from one mapped, read-only array."""
    import fcntl

    d = data_of(config(good))
    rows = d.datasets["train"]
    assert isinstance(rows.clips.frames, np.memmap) and not rows.clips.frames.flags.writeable
    with open(rows.clips.frames.filename, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # whoever waited for a lock would wait for ever

        def refuse(*args, **more):
            raise AssertionError(f"a row asked for {args}")
        for place, name in ((builtins, "open"), (os, "open"), (fcntl, "flock"), (fcntl, "lockf"),
                            (np, "load")):
            monkeypatch.setattr(place, name, refuse)
        items = [rows[i, 0] for i in range(len(rows))]
        monkeypatch.undo()
    assert len(items) == 21


# Families

LANGUAGE = {"mbart": "en_XX", "m2m100": "en", "nllb": "eng_Latn"}
TOKEN = {"mbart": "en_XX", "m2m100": "__en__", "nllb": "eng_Latn"}
KINDS = ["t5", "mt5", "bart", "mbart", "m2m100", "nllb", "pegasus", "marian", "bert-gpt2"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "A local folder of every family, as save_pretrained writes it: random weights and a tokenizer."
    home, out = tmp_path_factory.mktemp("families"), {}
    for family in KINDS:
        tok = train_tokenizer([t for _, t in signs.TEXTS], "char",
                              languages=tuple({TOKEN.get(family, "")} - {""}))
        torch.manual_seed(3)
        fitted = model_config.fit_config(FAMILIES[family], len(tok), tok.pad_token_id, tok.eos_token_id,
                                       tok.bos_token_id)
        if family in LANGUAGE:
            fitted["decoder_start_token_id"] = tok.eos_token_id
        pretrained.build_seq2seq(fitted).save_pretrained(home / family)
        save_tokenizer(tok, home / family)
        out[family] = home / family
    return out


def trained(cfg, steps=2, change=None):
    "Nets of a configuration after a few steps of the loop's own, beside what every parameter was."
    d = data_of(cfg)
    nets = sign.task.nets(cfg, d, True)
    stage, accelerator = stages(cfg)[0], make_accelerator(cfg, Path("unused"))
    params = named_parameters(nets)
    on = freeze(nets, {n for n, p in params.items() if p.requires_grad})
    before = {n: p.detach().clone() for n, p in params.items()}
    active = build(stage, nets, sign.task.objectives(cfg), on, steps, accelerator)
    set_modes(nets, True)
    losses = []
    for step in range(steps):
        batch = d.collate([d.datasets["train"][i, 0] for i in range(6)])
        ctx = Ctx(cfg=cfg, data=d, step=step, counts=d.counts(batch))
        losses.append(float(optimiser_step(active, params, [batch], ctx, accelerator, 1.0,
                                           require_gradients)["loss"]))
    assert all(math.isfinite(x) for x in losses)
    moved = {n for n, p in params.items() if not torch.equal(p, before[n])}
    return types.SimpleNamespace(cfg=cfg, data=d, nets=nets, losses=losses, moved=moved, on=on)


def rows_of(t):
    return predict_rows(sign.task, t.nets, t.data, "test", Ctx(cfg=t.cfg, data=t.data, training=False), 3)


def family_config(good, folders, family, more=""):
    language = f"model.language={LANGUAGE[family]} " if family in LANGUAGE else ""
    return config(good, f"task=sign model.name={folders[family]} model.init=pretrained train.lr=1e-2 "
                        f"{language}{more}",
                  WHOLE if "model.init=scratch" in more else READY)


@pytest.mark.parametrize("family", KINDS)
def test_a_family_trains_and_writes(good, folders, family):
    t = trained(family_config(good, folders, family, "model.dropout=0 data.augment=null"))
    assert t.moved == t.on and {n.split(".")[0] for n in t.moved} == {"reader", "translator"}
    assert t.losses[1] < t.losses[0]
    origin = sign.task.origin(t.nets)
    assert (origin["kind"], origin["via"], origin["weights"]) == ("pretrained", "folder", "safetensors")
    rows = rows_of(t)
    assert ([r["uid"] for r in rows] == sorted(t.data.uids["test"])
            and all(isinstance(r["hypothesis"], str) for r in rows))
    unread = {n for n, p in named_parameters(t.nets).items() if n not in t.on}
    assert all("embed_tokens" in n or "pooler" in n or "position" in n or "word_embeddings" in n
               for n in unread)


@pytest.mark.parametrize("family, kind", pairs(KINDS, ["scratch", "pretrained", "lora"]))
def test_a_family_passes_the_reality_checks(good, folders, family, kind):
    more = {"scratch": "model.init=scratch", "pretrained": "", "lora": "model.lora.r=4"}[kind]
    found = check(family_config(good, folders, family, f"train.lr=1e-3 {more}"), seconds=1)
    assert not [c for c in found if c.state == "failed"]
    states = {c.name: c.state for c in found}
    # random weights: the decoder hardly listens
    assert states["inputs matter"] == "passed" or kind == "pretrained", found


@pytest.mark.parametrize("family", sorted(LANGUAGE))
def test_every_text_starts_with_the_forced_language(good, folders, family):
    from workbench.parts.decoding.search import Settings, search
    from workbench.parts.text.seq2seq import encode, start_id

    t = trained(family_config(good, folders, family), steps=1)
    tok = t.data.own.tokenizer
    wanted = tok.convert_tokens_to_ids(TOKEN[family])
    assert t.data.own.language_id == wanted
    batch = t.data.collate([t.data.datasets["test"][i, 0] for i in range(3)])
    assert (batch["labels"][:, 0] == wanted).all()
    set_modes(t.nets, False)
    with torch.no_grad():
        embeds, mask, _ = t.nets["reader"](batch["frames"], batch["frame_lengths"])
        hidden = encode(t.nets["translator"], embeds, mask)
        begin = torch.full((3, 1), start_id(t.nets["translator"]))
        found = search(t.nets["translator"], hidden, mask, begin, Settings(2, 6), first=wanted)
    assert all(texts[0].ids[0] == wanted for texts in found)
    assert TOKEN[family] not in "".join(r["hypothesis"] for r in rows_of(t))
    with pytest.raises(Refused, match="no language token 'xx_XX'"):
        data_of(family_config(good, folders, family, "model.language=xx_XX"))


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("side, other", [("encoder", "decoder"), ("decoder", "encoder")])
def test_freezing_one_side_freezes_just_that(good, folders, family, side, other):
    """Fault: `freeze_decoder` froze everything.
    What is not of the frozen side moves; what is of it keeps its bits."""
    t = trained(family_config(good, folders, family, f"model.freeze_{side}=true"))
    everything = trained(family_config(good, folders, family), steps=1).on
    part = {f"translator.{n}" for n, p in t.nets["translator"].named_parameters(remove_duplicate=False)
            if id(p) in {id(q) for q in getattr(t.nets["translator"], f"get_{side}")().parameters()}}
    far = {id(p) for p in getattr(t.nets["translator"], f"get_{other}")().parameters()}
    layers = {n for n in everything if n in part and id(named_parameters(t.nets)[n]) not in far}
    assert layers and not t.moved & layers and t.moved == t.on
    assert [n for n in t.moved if f"{other}." in n] and [n for n in t.moved if n.startswith("reader.")]
    kept = everything - t.moved  # besides the side itself only its token table and the output layer
    assert all(f"{side}." in n or "shared" in n or "lm_head" in n or "embed" in n or "wte" in n for n in kept)


@pytest.mark.parametrize("family", KINDS)
def test_adapters_train_alone_in_every_family(good, folders, family):
    t = trained(family_config(good, folders, family, "model.lora.r=2 model.lora.dropout=0"))
    inside = {n for n in t.moved if n.startswith("translator.")}
    assert inside and all("lora_" in n for n in inside) and t.moved == t.on
    assert len(rows_of(t)) == 5


def test_adapters_of_a_frozen_side_are_frozen_too(good, folders):
    t = trained(family_config(good, folders, "t5", "model.lora.r=2 model.freeze_encoder=true"))
    inside = {n for n in t.moved if n.startswith("translator.")}
    assert inside and all(".decoder." in n and "lora_" in n for n in inside)


@pytest.mark.parametrize("extra", ["model.lora.rslora=true", "model.lora.dora=true", "model.lora.bias=all",
                                   "model.lora.modules_to_save=[lm_head]",
                                   "model.gradient_checkpointing=true"])
def test_the_kinds_of_adapters(good, folders, extra):
    t = trained(family_config(good, folders, "bart", f"model.lora.r=2 {extra}"))
    assert t.moved == t.on and len(rows_of(t)) == 5


def test_adapters_on_layers_that_do_not_exist_are_refused(good, folders):
    "Fault: a LoRA preset whose targets (`q_proj`) do not exist in T5 (`q`, `v`)."
    message = refusal(family_config(good, folders, "t5", "model.lora.targets=[q_proj,v_proj]"))
    assert "this t5 has no layer q_proj, v_proj; its layers are q, k, v, o" in message


def test_half_precision_is_refused_for_t5(good, folders):
    "Fault: fp16 with T5 (overflows: use bf16)."
    for family in ("t5", "mt5", "pegasus"):
        message = refusal(family_config(good, folders, family, "train.precision=fp16"))
        assert "train.precision is fp16" in message and "overflows in float16: use bf16 or fp32" in message
    cfg = family_config(good, folders, "bart", "train.precision=fp16")
    assert sign.task.nets(cfg, data_of(cfg), True)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_train_two_steps(good, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    tok = train_tokenizer([t for _, t in signs.TEXTS], "char")
    wide = model_config.fit_config({**FAMILIES["t5"], "d_model": 64, "d_kv": 16, "d_ff": 128}, len(tok), 0, 1,
                                 3)
    pretrained.build_seq2seq(wide).save_pretrained(tmp_path)
    save_tokenizer(tok, tmp_path)
    t = trained(config(good, f"task=sign model.name={tmp_path} model.init=pretrained "
                             f"model.load_in_{bits}bit=true model.lora.r=2", READY))
    kinds = {type(m).__name__ for m in t.nets["translator"].modules()}
    assert ("Linear8bitLt" if bits == 8 else "Linear4bit") in kinds and len(rows_of(t)) == 5
    assert all("lora_" in n for n in t.moved if n.startswith("translator."))
    assert t.nets["translator"].elsewhere == str(tmp_path)
    plain = f"task=sign model.name={tmp_path} model.init=pretrained model.load_in_{bits}bit=true"
    assert "nothing would learn" in refusal(config(good, plain, READY))
    assert "needs pretrained weights" in refusal(config(good, f"task=sign model.load_in_{bits}bit=true "
                                                              "model.lora.r=2"))


# Where weights come from

def test_pretrained_without_a_hub_names_three_ways_out(good, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = refusal(config(good, "model.name=t5-base model.init=pretrained"))
    for way in ("HF_HOME", "local folder", "model.init=scratch"):
        assert way in message
    assert len(message.splitlines()) == 1


def test_pretrained_weights_never_meet_a_tokenizer_of_the_corpus(good, folders, tmp_path, monkeypatch):
    """A cache with weights and no tokenizer: `auto` would else train a tokenizer whose ids mean nothing to
    the weights."""
    snapshot = hub_cache(tmp_path, folders["t5"], tokenizer=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert (snapshot / "model.safetensors").exists()
    message = refusal(config(good, "model.name=t5-small model.init=auto", WHOLE))
    assert "its tokenizer is not to be had" in message and "model.tokenizer" in message


@pytest.mark.parametrize("more", ["", "model.lora.r=2 model.load_in_4bit=true"])
def test_a_plan_of_pretrained_weights_reads_none(good, folders, monkeypatch, more):
    from workbench.core.setup.plan import plan

    def refuse(*args, **how):
        raise AssertionError("weights were read")
    monkeypatch.setattr(pretrained, "load_seq2seq", refuse)
    facts = plan(family_config(good, folders, "t5", more))
    counts = {n["net"]: n["parameters"] for n in facts["nets"]}
    assert facts["weights"]["kind"] == "pretrained" and counts["translator"] > 10_000


def test_a_model_too_long_for_its_positions_is_refused(good, folders):
    message = refusal(family_config(good, folders, "bart", "data.max_frames=300"))
    assert "40 positions and a source can be 300 long: lower data.max_frames" in message


def hub_cache(home, folder, tokenizer=True):
    "A cache as the hub's own library writes it, with google-t5/t5-small in it."
    repo = home / "hub/models--google-t5--t5-small"
    snapshot = repo / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(snapshot.name)
    for file in folder.iterdir():
        if tokenizer or "token" not in file.name:
            (snapshot / file.name).write_bytes(file.read_bytes())
    return snapshot


# Real runs

lock = threading.Lock()


def go(folder, cfg=None, nproc=1, **variables):
    "Start a run, or resume the one in the folder; returns it."
    tests = Path(__file__).parent
    env = {"PYTHONPATH": f"{tests / 'toys'}{os.pathsep}{tests.parent}", "CUDA_VISIBLE_DEVICES": "",
           "OMP_NUM_THREADS": "1",
           "HF_HUB_OFFLINE": "1", "WORKBENCH_RUNS": str(folder.parent), **variables}
    with lock:
        before = dict(os.environ)
        os.environ.update(env)
        try:
            return launch.start(cfg, "", folder, nproc) if cfg else launch.resume(folder, "", nproc)
        finally:
            os.environ.clear()
            os.environ.update(before)


def end(run, state="finished"):
    "Wait for the end that is expected; returns the folder."
    until = time.monotonic() + 150
    while not run.over:
        assert time.monotonic() < until, f"{run.status}\n{launch.log_tail(run.folder)}"
        time.sleep(0.05)
    assert run.status["state"] == state, f"{run.status}\n{launch.log_tail(run.folder, 40)}"
    if state == "died":
        assert run.process.returncode == -signal.SIGKILL
    return run.folder


HARD = ("model.dropout=0.1 train.accumulate=2 data.max_rejected=0.5 train.ema=0.9 model.ctc=true "
        "model.strides=[2,1]")
ADAPTED = "model.dropout=0.1 train.accumulate=2 model.lora.r=2 model.lora.dropout=0.1"
EQUAL = ("model.dropout=0 train.accumulate=2 model.name=t5-small model.init=auto valid.final=[test,valid] "
         "generate.num_beams=1")


def killed(folder, cfg, *steps):
    "A run that is killed when it trains these steps, and then let finish."
    end(go(folder, cfg, TOY_TRAP=str(steps[0])), "died")
    for step in steps[1:]:
        end(go(folder, TOY_TRAP=str(step)), "died")
    base = folder / "checkpoints/base/translator.safetensors"
    written = base.stat().st_mtime_ns if base.exists() else None
    end(go(folder))
    assert written is None or base.stat().st_mtime_ns == written  # frozen weights are written once
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, good, spoilt, untested, folders):
    "All runs of this module, two at a time: name -> a future of the folder."
    home = tmp_path_factory.mktemp("runs")
    cache = tmp_path_factory.mktemp("cache")
    hub_cache(cache, folders["t5"])
    hard, adapted = config(spoilt.home, HARD), config(good, ADAPTED)
    equal = config(good, EQUAL)
    cached = config(untested, "model.name=t5-small model.init=pretrained model.freeze_encoder=true", READY)
    with ThreadPoolExecutor(2) as pool:
        yield {
            "hard": pool.submit(lambda: end(go(home / "hard", hard))),
            "hard killed": pool.submit(killed, home / "hard_killed", hard, 4, 7),
            "adapted": pool.submit(lambda: end(go(home / "adapted", adapted))),
            "adapted killed": pool.submit(killed, home / "adapted_killed", adapted, 5),
            "one": pool.submit(lambda: end(go(home / "one", equal))),
            "two": pool.submit(lambda: end(go(home / "two", equal, nproc=2))),
            "cached": pool.submit(lambda: end(go(home / "cached", cached, HF_HOME=str(cache)))),
        }


def table(path):
    with open(path, encoding="utf8", newline="") as f:
        return list(csv.DictReader(f))


def lines(folder):
    outside = ("time", "tokens_per_s", "attempt")
    return [{k: v for k, v in row.items() if k not in outside} for row in metrics_of(folder)]


def tensors(folder, which="last"):
    found = checkpoint.find(folder, which)
    return {f"{p.stem}|{k}": t for p in sorted(found.glob("*.safetensors"))
            for k, t in checkpoint.load_tensors(p).items()}


def test_the_run_folder_is_as_designed(runs, spoilt):
    run = runs["hard"].result()
    status, manifest, plan = (read_json(run / f"{n}.json") for n in ("status", "manifest", "plan"))
    assert status["state"] == "finished" and status["step"] == 8 and status["steps_total"] == 8
    assert manifest["seed"] == 0 and manifest["versions"]["torch"] and manifest["data"]["fingerprint"]
    assert manifest["weights"]["kind"] == plan["weights"]["kind"] == "scratch" and plan["rejected"] == 10
    assert [n["net"] for n in plan["nets"]] == ["reader", "translator", "ctc"]
    steps = [r["step"] for r in metrics_of(run, "train")]
    assert steps == list(range(1, 9)) and [r["step"] for r in metrics_of(run, "valid")] == [4, 8]
    for row in metrics_of(run, "train"):
        assert {"loss", "ce", "ctc", "lr", "grad_norm", "tokens_per_s", "epoch", "stage", "attempt",
                "time"} <= row.keys()
    for row in metrics_of(run, "valid"):
        assert {"loss", "bleu1", "bleu2", "bleu3", "bleu4", "chrf", "rouge_l", "wer", "cer",
                "exact"} <= row.keys()
    assert (run / "checkpoints/last").read_text().strip() == "step_00000008"
    assert ((run / "checkpoints/best").exists() and (run / "log.txt").stat().st_size
            and list((run / "events").rglob("events.*")))
    assert {p.name for p in checkpoint.find(run).iterdir()} == {
        "state.json", *(f"{k}.{n}.safetensors" for k in ("net", "ema")
                        for n in ("reader", "translator", "ctc")),
        "optim.translate.safetensors"}
    pictures = sorted(run.glob("previews/step_*/valid_*.png"))
    assert pictures and all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)
    assert not [p for p in run.rglob("*") if p.suffix in (".pt", ".pth", ".bin", ".pkl")]


def test_rejected_rows_are_listed_beside_the_run(runs, spoilt):
    rows = table(runs["hard"].result() / "rejected.csv")
    assert {r["uid"]
            for r in rows} == set(spoilt.reasons) and all(r["row"].startswith("train.csv:") for r in rows)
    assert all(re.search(spoilt.reasons[r["uid"]], r["reason"]) for r in rows) and not spoilt.flag.exists()


def test_predictions_are_tables_in_every_script(runs, spoilt):
    run = runs["hard"].result()
    d = data_of(config(spoilt.home, HARD))
    found = sorted((run / "predictions").glob("predictions_epoch_*.csv"))
    assert found
    for path in found:
        rows = table(path)
        assert list(rows[0]) == ["uid", "reference", "hypothesis"]
        assert {r["uid"]: r["reference"] for r in rows} == dict(zip(d.uids["valid"], d.texts["valid"]))
    test = table(run / "predictions/test.csv")
    assert {r["reference"] for r in test} == {f"{t} {t}" for _, t in signs.TEXTS[:5]}


def test_a_persons_files_are_read_as_the_rows_are(runs, spoilt, tmp_path, capsys):
    "Files of three formats, a table and a folder; what cannot be read is named, and the others go on."
    run, poses = runs["hard"].result(), spoilt.home / "poses"
    wanted = {r["uid"]: r["hypothesis"] for r in table(run / "predictions/test.csv")}
    files = {uid: next(poses.glob(f"{uid}.*")) for uid in wanted}
    assert {p.suffix for p in files.values()} == {".pose", ".npy", ".pkl"}
    bad = [str(poses / "evil.pkl"), str(poses / "truncated.pose"), str(tmp_path / "none.pose")]
    assert cli.main(["use", str(run), *map(str, files.values()), *bad, "--out",
                     str(tmp_path / "read.csv")]) == 2
    rows = table(tmp_path / "read.csv")
    assert [r["answer"] for r in rows] == [*wanted.values(), "", "", ""]
    assert [r["given"] for r in rows if r["refused"]] == bad and not spoilt.flag.exists()
    said = capsys.readouterr()
    assert "refused, it asks for posix.system" in said.err and "there is no file or folder" in said.err
    signs.write(spoilt.home / "list.csv", [[uid, ""] for uid in wanted])
    found = list(workbench.use(run, str(spoilt.home / "list.csv")))
    assert [(a.given, a.made) for a in found] == list(wanted.items())
    given = {a.given for a in workbench.use(run, str(poses / "isr"))}
    assert given == {str(p) for p in (poses / "isr").iterdir()}
    one = next(iter(wanted))
    greedy = next(workbench.use(run, str(files[one]), overrides="generate.num_beams=1 generate.max_length=2"))
    assert len(greedy.made) <= 2 and not greedy.refused


@pytest.mark.parametrize("name", ["hard", "two", "one"])
def test_scores_are_those_of_all_rows(runs, name):
    """Faults: BLEU over rank 0's shard only; WER never called.
    The scores are the libraries' over the whole table."""
    import jiwer
    import sacrebleu

    run = runs[name].result()
    results = read_json(run / "results.json")
    rows = table(run / "predictions/test.csv")
    split = results["splits"]["test"]
    assert split["rows"] == split["of"] == len(rows) == len({r["uid"] for r in rows}) == 5
    references, hypotheses = [r["reference"] for r in rows], [r["hypothesis"] for r in rows]
    for key, value in text_scores(references, hypotheses).items():
        assert split["scores"][key] == pytest.approx(value, abs=1e-9), key
    assert split["scores"]["wer"] == pytest.approx(jiwer.wer(references, hypotheses))
    assert split["scores"]["bleu4"] == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score,
                                                     abs=1e-6)
    assert {"wer", "cer", "bleu4"} <= split["baseline"].keys() and {"wer", "cer"} <= split["control"].keys()


def test_load_gives_nets_and_data_that_predict_the_same_rows(runs, spoilt):
    for name, split in (("hard", "test"), ("adapted", "test"), ("cached", "valid")):
        run = runs[name].result()
        nets, d = workbench.load(run, "best")
        cfg = stages(launch.config_of(run))[0].cfg
        rows = predict_rows(sign.task, nets, d, split, Ctx(cfg=cfg, data=d, training=False), 2)
        kept = {r["uid"]: r for r in table(run / f"predictions/{split}.csv")}
        assert len(rows) == len(kept) == read_json(run / "results.json")["splits"][split]["rows"] > 2
        assert {r["uid"]: r for r in rows} == kept


@pytest.mark.parametrize("name", ["hard", "adapted"])
def test_a_killed_run_continues_bit_for_bit(runs, name):
    """Fault: no resume. Killed in the middle of an epoch, with dropout, accumulation, averaged weights, or
    adapters."""
    whole, broken = runs[name].result(), runs[f"{name} killed"].result()
    assert read_json(broken / "status.json")["attempt"] == (3 if name == "hard" else 2)
    assert lines(broken) == lines(whole)
    for which in ("last", "best"):
        a, b = tensors(whole, which), tensors(broken, which)
        assert a.keys() == b.keys() and not [k for k in a if not torch.equal(a[k], b[k])]
    assert read_json(broken / "results.json") == read_json(whole / "results.json")
    assert table(broken / "predictions/test.csv") == table(whole / "predictions/test.csv")


def test_checkpoints_of_adapters_hold_adapters_and_the_base_once(runs):
    run = runs["adapted"].result()
    found = sorted(p for p in (run / "checkpoints").glob("step_*"))
    assert len(found) >= 2
    base = checkpoint.load_tensors(run / "checkpoints/base/translator.safetensors")
    assert base and not [k for k in base
                         if "lora_" in k] and [p.name for p in (run / "checkpoints/base").iterdir()] == [
        "translator.safetensors"]
    for folder in found:
        inside = checkpoint.load_tensors(folder / "net.translator.safetensors")
        assert inside and all("lora_" in k for k in inside)
        assert (folder / "net.reader.safetensors").exists() and not list(folder.glob("*base*"))
    stepped = checkpoint.load_tensors(found[-1] / "optim.translate.safetensors")
    assert all("lora_" in k or k.startswith("reader.") for k in stepped)


def test_two_processes_are_one(runs):
    "The same global batch, no dropout: equal to rounding; every row of an evaluation once."
    one, two = runs["one"].result(), runs["two"].result()
    assert read_json(two / "plan.json")["processes"] == 2 and read_json(one / "plan.json")["processes"] == 1
    a, b = lines(one), lines(two)
    assert len(a) == len(b) > 8
    for x, y in zip(a, b):
        assert x.keys() == y.keys() and x["rows"] == y["rows"] if "rows" in x else True
        for k, v in x.items():
            assert y[k] == pytest.approx(v, rel=2e-5, abs=2e-6) if isinstance(v, float) else y[k] == v, k
    ta, tb = tensors(one), tensors(two)
    assert max(float((ta[k].double() - tb[k].double()).abs().max())
               for k in ta if k.startswith("net.")) < 1e-5
    for split in ("test", "valid"):
        assert table(one / f"predictions/{split}.csv") == table(two / f"predictions/{split}.csv")


def test_auto_without_a_hub_says_that_the_weights_are_random(runs):
    for name in ("one", "two"):
        run = runs[name].result()
        for file in ("plan.json", "manifest.json"):
            weights = read_json(run / file)["weights"]
            assert (weights["kind"] == "scratch" and weights["via"] == "architecture"
                    and weights["why"].startswith("random weights: "))
        tokenizer = read_json(run / "plan.json")["data"]["tokenizer"]
        assert tokenizer["kind"] == "scratch" and "trained on the corpus" in tokenizer["why"]


def test_a_cache_of_the_hub_is_used_offline(runs, folders):
    """Weights and tokenizer come from the cache; the frozen encoder keeps their bits; the finished run needs
    no cache."""
    run = runs["cached"].result()
    weights = read_json(run / "manifest.json")["weights"]
    assert (weights["kind"], weights["via"], weights["revision"]) == (
        "pretrained", "cache", "0123456789abcdef0123456789abcdef01234567")
    assert read_json(run / "plan.json")["data"]["tokenizer"]["kind"] == "pretrained"
    nets, d = workbench.load(run, "best")
    source = checkpoint.load_tensors(folders["t5"] / "model.safetensors")
    mine = nets["translator"].state_dict()
    encoder = [k for k in source if k.startswith("encoder.")]
    assert encoder and all(torch.equal(mine[k], source[k]) for k in encoder)
    assert [k for k in source if k.startswith("decoder.") and not torch.equal(mine[k], source[k])]
    assert d.own.tokenizer.get_vocab() == load_tokenizer(folders["t5"]).get_vocab()


def test_the_command_refuses_broken_rows_with_status_2(spoilt, tmp_path):
    "The list, no traceback, and a run folder that says the same."
    (tmp_path
     / "mine.yaml").write_text(json.dumps(presets.merge(PRESET, {"data": {"source": str(spoilt.home)}})))
    env = {**os.environ,
           "PYTHONPATH": f"{Path(__file__).parent / 'toys'}{os.pathsep}{Path(__file__).parents[1]}"}
    done = subprocess.run([sys.executable, "-m", "workbench.lab.cli", "train", str(tmp_path / "mine.yaml"),
                           "--run-dir",
                           str(tmp_path / "run")], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr + done.stdout
    assert ("10 of 39 rows cannot be used" in done.stderr and "evil: " in done.stderr
            and "refused, it asks for" in done.stderr)
    assert not spoilt.flag.exists()
    status = read_json(tmp_path / "run/status.json")
    assert status["state"] == "failed" and status["refused"] and "10 of 39 rows" in status["error"]


# Rates, layouts and keys of poses

def clip_at(path, fps, seed, seconds=2.0):
    "A motion of two seconds, filmed at a rate."
    import pickle

    time = np.arange(round(seconds * fps)) / fps
    phase = np.random.default_rng(seed).uniform(0, 6, (1, 9, 2))
    points = 200 + 50 * np.sin(2 * time[:, None, None] + phase)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"keypoints": points.astype(np.float32), "fps": fps}))


def test_clips_of_all_rates_have_the_frames_of_one(tmp_path):
    rates = [25, 25, 25, 50, 12.5, 60, 25.1, 25]
    for i, fps in enumerate(rates):
        clip_at(tmp_path / "poses" / f"s{i}.pkl", fps, i)
    signs.write(tmp_path / "train.csv", [(f"s{i}", f"text {i}") for i in range(len(rates))])
    signs.write(tmp_path / "valid.csv", [("s3", "fast text")])
    more = "data.keypoints=all data.augment=null data.step_frames=1 data.max_frames=300 model.strides=[]"
    d = data_of(config(tmp_path, more))
    assert set(d.lengths["train"][:, 0]) == {50} and len(d.datasets["valid"][0, 0][1]) == 50
    said = d.facts["frames_a_second"]
    assert said.startswith("25; ") and "1 clips of 50 fps resampled" in said and "25.1" not in said
    d.save(tmp_path / "assets")
    # another table, read by the same run
    (tmp_path / "train.csv").write_text("uid,text\ns3,text 3\ns5,text 5\n")
    again = data_of(config(tmp_path, more), tmp_path / "assets")
    assert set(again.lengths["train"][:, 0]) == {50}
    assert set(data_of(config(tmp_path, f"{more} data.fps=10")).lengths["train"][:, 0]) == {20}


def test_the_fingerprint_is_of_tables_and_poses_wherever_they_lie(tmp_path):
    import shutil

    home = signs.good_folder(tmp_path / "a")
    first = data_of(config(home)).facts["fingerprint"]
    shutil.copytree(home, tmp_path / "b")
    assert data_of(config(tmp_path / "b")).facts["fingerprint"] == first
    signs.save_pose(tmp_path / "b/poses/eth/s1.npy", 1234, 19)
    assert data_of(config(tmp_path / "b")).facts["fingerprint"] != first


@pytest.mark.parametrize("overrides, words", [
    ("data.keypoints=xyz", "data.keypoints is xyz, which fits none of the clips"),
    ("data.dims=3", "data.dims is 3, which fits none"),
    ("data.keypoints=all data.layout=xyzv", "data.layout is xyzv, which fits none")])
def test_a_key_that_fits_no_clip_is_blamed_itself(tmp_path, overrides, words):
    for i in range(8):
        signs.save_pose(tmp_path / "poses" / f"s{i}.npy", i)
    signs.write(tmp_path / "train.csv", [(f"s{i}", f"text {i}") for i in range(8)])
    assert (words in refusal(config(tmp_path, overrides))
            and "rows cannot be used" not in refusal(config(tmp_path, overrides)))


def test_quotes_and_columns_of_a_table_with_tabs(tmp_path):
    for i in range(6):
        signs.save_pose(tmp_path / "poses" / f"s{i}.npy", i)
    said = ["guten tag", '"nun ja', "es regnet", 'bis bald"', '"ganz" gut', "nein"]
    (tmp_path / "train.csv").write_text("\ufeffUID\tText\n"
                                        + "".join(f"s{i}\t{t}\n" for i, t in enumerate(said)))
    texts = data_of(config(tmp_path)).texts
    assert {*texts["train"], *texts["valid"]} == set(said)
