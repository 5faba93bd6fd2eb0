"""A run of translation in use: texts, documents, n-best, glossaries, languages; the command and a cell."""
import math
import types

import phrases
import pytest
import torch

import workbench
from workbench.errors import Refused
from workbench.lab.cli import main
from workbench.lab.use import open_run, use, with_settings
from workbench.parts.text.seq2seq import decode, encode, shift_right
from workbench.tasks.translate.tokens import contents
from workbench.tasks.translate.translation import batch_of, found, items_of, source_mask, translate_all

TINY = ("{d_model: 32, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 2, "
        "decoder_attention_heads: 2, encoder_ffn_dim: 64, decoder_ffn_dim: 64}")
SMALL = (f'check=false trackers=[] pipeline=null model.vocab_size=1500 "model.params={TINY}" '
         'train.max_steps=150 '
         'train.scheduler.warmup=10 train.batch_tokens=120 '
         "train.lr=1e-2 train.log_every=20 valid.every=null valid.final=[] data.max_length=30 "
         "generate.max_length=12")


def trained(home, pairs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(home))
        source = phrases.corpus(home / "texts", pairs)
        return workbench.train("universal_tiny", f"{SMALL} data.source={source}", run_dir=home / "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A hundred and fifty steps of a small model that translates from English to German and Amharic."
    return trained(tmp_path_factory.mktemp("used"), ["en-de", "en-am"])


@pytest.fixture(scope="module")
def opened(run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(run.parent))
        return open_run(run, "last")


@pytest.fixture(autouse=True)
def one_cache(own_runs, run, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(run.parent))


def made(opened, *words, **how):
    return [a.made for a in use(opened, *words, **how)]


def test_a_file_gives_a_file_with_the_same_lines(run, opened, tmp_path, capsys):
    said = ["the red house sleeps. a blue car sings.", "", "  the red tree grows.\t", " ",
            "a blue river sings."]
    (tmp_path / "in.txt").write_text("\n".join(said) + "\n", encoding="utf8")
    out = tmp_path / "out.txt"
    assert main(["use", str(run), str(tmp_path / "in.txt"), "--to", "am", "--out", str(out), "--checkpoint",
                 "last"]) == 0
    lines = out.read_text(encoding="utf8").split("\n")[:-1]
    assert capsys.readouterr().out.split("\n")[:-1] == lines
    assert len(lines) == 5 and lines[1] == "" and lines[3] == " "
    assert lines[2].startswith("  ") and lines[2].endswith("\t")
    alone = [made(opened, text, to="am")[0]
             for text in (said[2].strip(), said[4], "the red house sleeps.", "a blue car sings.")]
    assert [lines[2].strip(), lines[4], lines[0]] == [alone[0], alone[1], " ".join(alone[2:])]
    assert made(opened, "\n".join(said), to="am") == ["\n".join(lines)]


def test_order_stays_and_windows_change_nothing(opened):
    texts = phrases.sentences("en") * 2
    ctx, tok = opened.ctx, opened.data.own.tokenizer
    whole = [t[0][0] for t in translate_all(opened.nets, items_of(texts, tok), "en-de", ctx, 16)]
    parts = [t[0][0] for t in translate_all(opened.nets, items_of(texts, tok), "en-de", ctx, 5, window=7)]
    one = [t[0][0] for text in texts[:5]
           for t in translate_all(opened.nets, items_of([text], tok), "en-de", ctx)]
    assert whole == parts and whole[:48] == whole[48:] and whole[:5] == one


def test_the_best_texts_are_printed_with_their_scores(run, opened, capsys):
    how = "generate.num_beams=4 generate.n_best=3"
    words = ["use", str(run), "the red house sleeps.", "--to=de", "--checkpoint", "last", "--overrides", how]
    assert main(words) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    scores = [float(score) for score, _ in rows]
    assert len(rows) == 3 and scores == sorted(scores, reverse=True) and len({text for _, text in rows}) > 1
    assert [text for _, text in rows] == made(opened, "the red house sleeps.", to="de", overrides=how)


@pytest.mark.parametrize("beams, penalty", [(1, 1.0), (4, 1.0), (4, 0.6)])
def test_scores_are_those_of_teacher_forcing(opened, beams, penalty):
    ctx = with_settings(opened,
                        {"generate": {"num_beams": beams, "n_best": beams, "length_penalty": penalty}}).ctx
    own, model = opened.data.own, opened.nets["translator"]
    batch = batch_of(list(items_of(["the red house sleeps.", "a car grows."], own.tokenizer)), "en-de", own,
                     "cpu")
    mask, first = source_mask(batch), own.frames["en-de"].first
    with torch.no_grad():
        hidden = encode(model, batch["source"], mask)
        for i, texts in enumerate(found(opened.nets, batch, ctx)):
            assert len(texts) == beams and [t.score
                                            for t in texts] == sorted([t.score for t in texts], reverse=True)
            for t in texts:
                ends = len(t.ids) < ctx.cfg.generate.max_length
                ids = torch.tensor([[*first, *t.ids, *[own.tokenizer.eos_token_id] * ends]])
                logp = decode(model, hidden[i:i + 1], mask[i:i + 1], shift_right(model, ids)).log_softmax(-1)
                total = float(logp[0].gather(1, ids[0, :, None])[len(first):].sum())
                assert math.isclose(t.score, total / (ids.shape[1] - len(first)) ** penalty, abs_tol=1e-4)


def test_a_forced_beginning_begins_and_a_term_appears(opened, tmp_path):
    text = "the red house sleeps."
    assert made(opened, text, to="de",
                overrides={"generate": {"prefix": "ein blaues"}})[0].startswith("ein blaues")
    table = tmp_path / "terms.tsv"
    table.write_text("source\ttarget\nHouse\tUfer\ncar\tWagen\n", encoding="utf8")
    for glossary in ({"House": "Ufer", "car": "Wagen"}, str(table)):
        answer, = made(opened, text, to="de", overrides={"generate": {"num_beams": 4, "glossary": glossary}})
        assert "Ufer" in answer and "Wagen" not in answer
    with pytest.raises(Refused, match="num_beams=4"):
        made(opened, text, to="de", overrides={"generate": {"num_beams": 1, "glossary": {"house": "Ufer"}}})
    table.write_text("a\tb\n", encoding="utf8")
    with pytest.raises(Refused, match="columns `source` and `target`"):
        made(opened, text, to="de", overrides={"generate": {"num_beams": 4, "glossary": str(table)}})


def test_what_is_drawn_comes_again_with_its_seed(opened):
    draw = lambda seed: made(opened, *phrases.sentences("en")[:8], to="de", seed=seed,
                             overrides="generate.sample=true generate.temperature=1.5")
    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("options, words", [
    ({}, "set generate.tgt (--to): this run translates en-am, en-de"),
    ({"to": "ru"}, "does not translate to `ru`. It translates to am, de"),
    ({"to": "am", "from_": "de"}, "does not translate from `de`. It translates from en"),
    ({"two": "am"}, "has no option `two`; did you mean `to`")])
def test_an_unknown_language_is_named_with_those_the_run_knows(opened, options, words):
    with pytest.raises(Refused) as caught:
        made(opened, "the house.", **options)
    assert words.split(";")[0] in str(caught.value)


def test_one_pair_needs_no_language(tmp_path):
    run = trained(tmp_path, ["en-de"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(tmp_path))
        assert len(list(use(run, "the red house sleeps.", checkpoint="last"))) == 1


def test_a_script_without_a_pack_is_one_sentence(run, tmp_path, capsys):
    assert main(["use", str(run), "το σπίτι", "--to", "de", "--checkpoint", "last"]) == 2
    said = capsys.readouterr().err
    assert "is written in Greek" in said and said.count("workbench:") == 1 and "Traceback" not in said
    (tmp_path / "in.txt").write_text("the house.\nτο σπίτι\n\na car.\n", encoding="utf8")
    out = tmp_path / "out.txt"
    assert main(["use", str(run), str(tmp_path / "in.txt"), "--to", "de", "--out", str(out), "--checkpoint",
                 "last"]) == 2
    lines = out.read_text(encoding="utf8").split("\n")[:-1]
    assert ("in.txt, line 2" in capsys.readouterr().err and len(lines) == 4
            and lines[1] == lines[2] == "" != lines[3])


@pytest.mark.parametrize("content, words",
                         [(b"good\n\xff\n", "line 2: not UTF-8"), (None, "there is no file")])
def test_a_file_that_cannot_be_read_is_named(run, tmp_path, capsys, content, words):
    if content:
        (tmp_path / "in.txt").write_bytes(content)
    assert main(["use", str(run), str(tmp_path / "in.txt"), "--to", "de", "--checkpoint", "last"]) == 2
    assert words in capsys.readouterr().err


def test_a_sentence_that_is_too_long_is_cut_and_this_is_said(opened):
    text = "the red house sleeps, " * 20 + "a car grows."
    answer, = use(opened, text, to="de")
    room = opened.ctx.cfg.data.max_length - 2
    assert f"the run reads {room}" in answer.note and len(answer.made) > 20
    assert len(list(contents(opened.data.own.tokenizer, [text], False))[0]) > room


def test_no_text_is_no_answer(opened):
    answer, = use(opened, " ", to="de")
    assert answer.refused and answer.made is None
    assert types.GeneratorType is type(use(opened, "a car.", to="de"))
