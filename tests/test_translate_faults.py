"Faults of translation, made on purpose, and named by the check that is for them; healthy data passes all."
from dataclasses import replace

import numpy as np
import pytest
import torch
from bilingual import config, corpus
from runs import end, go

from workbench.core.checks.check import check
from workbench.core.checks.pairs import check_belonging, check_sides, stretches
from workbench.core.stages.stages import complete, stages
from workbench.files import read_json, samples
from workbench.lab.run.launch import log_tail
from workbench.parts.text import seq2seq
from workbench.parts.vocabulary.packs import extend
from workbench.parts.vocabulary.vocabulary import Vocabulary
from workbench.tasks.translate import data as data_module
from workbench.tasks.translate import task as module

ROWS = (420, 40, 40)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("healthy") / "data", ROWS)


def found(folder, more=""):
    return {c.name: c for c in check(complete(config(folder, more)))}


def wrong(folder, more=""):
    return {n: c.says for n, c in found(folder, more).items() if c.state in ("failed", "warned")}


def with_task(monkeypatch, **changes):
    monkeypatch.setattr(module, "task", replace(module.task, **changes))


def with_batches(monkeypatch, change):
    "The task with other batches: change is (batch) -> batch."
    def data(cfg, stage):
        out = module.data(cfg, stage)
        return replace(out, collate=lambda items: change(out.collate(items)))
    with_task(monkeypatch, data=data)


# Healthy

def test_healthy_data_passes_every_check(healthy):
    said = found(healthy)
    assert not [c for c in said.values() if c.state in ("failed", "warned")]
    assert {"sides", "pairs", "told"} <= {n for n, c in said.items() if c.state == "passed"}


def rows_of(path):
    lines = path.read_text(encoding="utf8").splitlines()
    at = [lines[0].split("\t").index(k) for k in ("source", "target")]
    return [tuple(line.split("\t")[i] for i in at) for line in lines[1:]]


@pytest.mark.parametrize("path", sorted(samples("translate").glob("train/*.tsv")), ids=lambda p: p.stem)
@pytest.mark.parametrize("back", [False, True], ids=["forth", "back"])
def test_real_pairs_are_no_false_alarm_and_half_of_them_swapped_are_seen(path, back):
    rows = [(b, a) if back else (a, b) for a, b in rows_of(path)]
    some = [rows[i] for block in stretches(np.arange(len(rows)), 400) for i in block]
    uids = [str(i) for i in range(len(some))]
    assert check_sides(path.stem, some, uids) is None
    draw = np.random.default_rng(0)
    half = [(b, a) if draw.random() < 0.5 else (a, b) for a, b in some]
    seen = check_sides(path.stem, half, uids)
    assert seen.state == "failed" and "source and target are swapped" in seen.says
    assert check_belonging(path.stem, [some[i:i + 50] for i in range(0, len(some), 50)]).state in (
        "passed", "not proven")


@pytest.mark.parametrize("preset", ["t5_tiny", "tts_tiny", "flow_tiny"])
def test_other_tasks_are_not_asked_about_texts(preset):
    from workbench.core.task import get

    cfg = complete(preset)
    assert get(cfg.task).told is None
    assert get(cfg.task).data(cfg, stages(cfg)[0]).text_pairs is None


# Of the data

def test_source_and_target_swapped_in_half_of_the_rows(tmp_path):
    def swap(split, pair, rows):
        draw = np.random.default_rng(1)
        return [(b, a) if pair == "en-de" and draw.random() < 0.5 else (a, b) for a, b in rows]
    said = wrong(corpus(tmp_path / "data", ROWS, change=swap))
    assert list(said) == ["sides"] and "rows of en-de source and target are swapped" in said["sides"]


def shift(split, pair, rows):
    return [(a, rows[i - 1][1]) for i, (a, _) in enumerate(rows)]


def test_targets_shifted_by_a_row(tmp_path):
    said = wrong(corpus(tmp_path / "data", ROWS, change=shift))
    assert list(said) == ["pairs"] and "the targets are shifted by a row" in said["pairs"]


def test_targets_of_any_other_rows(tmp_path):
    def drawn(split, pair, rows):
        order = np.random.default_rng(2).permutation(len(rows))
        return [(a, rows[j][1]) for (a, _), j in zip(rows, order)]
    said = wrong(corpus(tmp_path / "data", ROWS, change=drawn))
    assert list(said) == ["pairs"] and "the targets belong to other rows" in said["pairs"]


def test_a_collate_that_mixes_rows_up(healthy, monkeypatch):
    with_batches(monkeypatch, lambda batch: batch | {"labels": batch["labels"].roll(1, 0)})
    said = wrong(healthy)
    assert "the targets are shifted by a row" in said["pairs"]


# The language

def test_one_language_token_for_all(healthy, monkeypatch):
    plain, first = data_module.frame_of, []

    def frame_of(tok, pair, **more):
        frame = plain(tok, pair, **more)
        first.append(frame.first)
        return replace(frame, first=first[0])
    monkeypatch.setattr(data_module, "frame_of", frame_of)
    assert wrong(healthy)["told"] == ("a row is the same whatever its target language: nothing tells it to "
                                      "the "
                                      "net.")


def test_a_language_token_that_is_ignored(healthy, monkeypatch):
    def nets(cfg, data, load_weights):
        made = module.nets(cfg, data, load_weights)
        tok, table = data.own.tokenizer, made["translator"].get_input_embeddings().weight
        ids = tok.convert_tokens_to_ids(["__en__", "__de__", "__am__"])
        with torch.no_grad():
            table[ids] = table[ids[0]].clone()
        return made
    with_task(monkeypatch, nets=nets)
    said = wrong(healthy)
    assert list(said) == ["told"] and "the net ignores it" in said["told"]


# The vocabulary

def test_a_pack_of_another_version(healthy, tmp_path):
    run, folder = tmp_path / "run", tmp_path / "extended"
    assert end(go(run, "train.max_steps=1 valid.final=[]", base=config(healthy)), 400)["state"] == "finished"
    own = Vocabulary.load(run / "assets" / "vocabulary")
    extend(own, "sw", ["Karibu nyumbani kwetu leo asubuhi rafiki yangu"] * 40).save(folder)
    more = config(healthy, f"begin_from={run} data.vocabulary={folder}")
    del more["model"]["vocab_size"]
    again = go(tmp_path / "again", "", base=more)
    assert end(again, 400)["state"] == "failed"
    said = log_tail(again.folder, 40)
    assert own.checksum in said and Vocabulary.load(folder).checksum in said


# The loss and the nets

def test_an_encoder_without_a_gradient(healthy, monkeypatch):
    plain = seq2seq.encode
    monkeypatch.setattr(seq2seq, "encode", lambda *a: plain(*a).detach())
    said = wrong(healthy)
    assert list(said) == ["gradients"] and "translator.model.encoder" in said["gradients"]


def test_padding_in_the_loss(healthy, monkeypatch):
    with_batches(monkeypatch, lambda batch: batch | {"labels": batch["labels"].masked_fill(
        batch["labels"] == -100, 0)})
    assert "padding" in wrong(healthy)


@pytest.mark.parametrize("by", [0, 2], ids=["sees the token that it predicts", "predicts the token after the "
                                                                               "next"])
def test_labels_shifted_by_one_token(healthy, monkeypatch, by):
    plain = seq2seq.shift_right

    def shifted(model, labels):
        return labels.masked_fill(labels == -100, 0) if by == 0 else plain(model, plain(model, labels))
    monkeypatch.setattr(seq2seq, "shift_right", shifted)
    assert "causality" in wrong(healthy)


# Scores

def test_two_processes_score_every_row_once(tmp_path):
    few, run = corpus(tmp_path / "data", (60, 8, 9)), tmp_path / "run"
    over = "train.max_steps=1 train.batch_size=16 valid.final=[test] generate.max_length=8"
    assert end(go(run, over, nproc=2, base=config(few)), 400)["state"] == "finished"
    lines = (run / "predictions" / "test.csv").read_text(encoding="utf8").splitlines()
    assert len({line.split(",")[0] for line in lines[1:]}) == len(lines) - 1 == 18
    assert read_json(run / "results.json")["splits"]["test"]["rows"] == 18
