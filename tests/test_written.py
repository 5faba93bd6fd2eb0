"""Text models of sign runs: what a tokenizer cannot write, languages that are needed, tokenizers without a
vocabulary, BLEU by script."""
import io
import json
import shutil
from types import SimpleNamespace

import pytest
import sentencepiece
import signs
from transformers import (
    AutoTokenizer, ByT5Tokenizer, M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer, T5Config,
    T5ForConditionalGeneration)

from workbench.errors import Refused
from workbench.core.data.metrics import signatures
from workbench.core.config.presets import load
from workbench.parts.shared import hub
from workbench.parts.text import tokenizer as text
from workbench.tasks.sign import task as sign
from workbench.tasks.sign import data as sign_data

LATIN = ["guten morgen", "wo ist das haus", "danke", "bis bald", "es regnet", "der hund", "ja, gern", "nein"]


def folder(home, texts, test=()):
    for i in range(len(texts)):
        signs.save_pose(home / "poses" / f"s{i}.npy", i)
    signs.write(home / "train.csv", [(f"s{i}", t) for i, t in enumerate(texts)])
    if test:
        signs.write(home / "test.csv", [(f"s{i}", t) for i, t in enumerate(test)])
    return home


def data_of(home, more=""):
    cfg = load("t5_base", f"data.source={home} data.languages=null {more}")
    return sign_data.data(cfg, SimpleNamespace(assets=None))


def t5(home, words, size=120, rule="identity"):
    "A T5 whose pieces are learnt from these words."
    home.mkdir()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 60), model_writer=model, vocab_size=size, hard_vocab_limit=False,
        pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2, normalization_rule_name=rule)
    (home / "spiece.model").write_bytes(model.getvalue())
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
    (home / "tokenizer_config.json").write_text(json.dumps(settings))
    AutoTokenizer.from_pretrained(home).save_pretrained(home)
    config = T5Config(vocab_size=200, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
                      decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(home)
    return home


@pytest.mark.parametrize("texts, test, words", [
    (["ሰላም, ነህ?", "አዎ! አይ?", "ዛሬ, ነገ.", "ቡና, ሻይ?"] * 2, [], "letters of train"),
    (LATIN, ["привіт, друже", "до побачення"], "letters of test"),  # a split in another script
    # a few letters in half of the texts
    ([t + " ñoño" if i % 2 else t for i, t in enumerate(LATIN)], [], "ñ"),
])
def test_letters_that_the_tokenizer_cannot_write_end_the_run(tmp_path, texts, test, words):
    home, model = folder(tmp_path / "data", texts, test), t5(tmp_path / "model", LATIN + ["?!.,"])
    with pytest.raises(Refused, match="cannot write") as e:
        data_of(home, f"model.name={model}")
    assert words in str(e.value) and "comes back as" in str(e.value) and "data.max_lost" in str(e.value)
    told = data_of(home, f"model.name={model} data.max_lost=1").facts
    assert max(told["letters_lost"].values()) > 0.01 and told["characters_lost"]["of"]


def test_the_ceiling_of_a_tokenizer_that_changes_every_text(tmp_path):
    texts = [f"{t} …" for t in LATIN] * 2
    home = folder(tmp_path / "data", texts)
    model = t5(tmp_path / "model", LATIN + [". . ..."], rule="nmt_nfkc")
    d = data_of(home, f"model.name={model}")
    assert (set(d.facts["letters_lost"].values()) == {0.0}
            and "exact 0, cer 0." in d.facts["a_perfect_model_would_score"]["valid"])
    with pytest.raises(Refused, match="valid.metric is exact, and a perfect model would score 0"):
        data_of(home, f"model.name={model} valid.metric=exact")


def test_nothing_is_said_where_every_text_comes_back(tmp_path):
    facts = data_of(folder(tmp_path / "data", LATIN), f"model.name={t5(tmp_path / 'model', LATIN)}").facts
    assert (set(facts["letters_lost"].values()) == {0.0} and "characters_lost" not in facts
            and "a_perfect_model_would_score" not in facts)


def test_a_language_that_is_needed(tmp_path):
    model, home = tmp_path / "nllb", folder(tmp_path / "data", LATIN)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz,"]
    tok = NllbTokenizer(vocab={t: i for i, t in enumerate(pieces)}, merges=[])
    tok.save_pretrained(model)
    M2M100ForConditionalGeneration(M2M100Config(
        vocab_size=len(tok), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, pad_token_id=1, bos_token_id=0,
        eos_token_id=2)).save_pretrained(model)
    for language, words in (("", "model.language is empty: set it, for example model.language=deu_Latn"),
                            ("deu_Lat", "deu_Latn"),
                            ("d", "no language token 'd'")):  # a piece of the vocabulary is no language
        with pytest.raises(Refused) as e:
            data_of(home, f"model.name={model} model.language='{language}'")
        assert words in str(e.value)
    d = data_of(home, f"model.name={model} model.language=deu_Latn")
    first = int(d.collate([d.datasets["train"][0, 0]])["labels"][0, 0])
    assert d.own.tokenizer.convert_ids_to_tokens(first) == "deu_Latn"


def test_a_tokenizer_without_a_vocabulary(tmp_path, monkeypatch):
    model, home = tmp_path / "byt5", folder(tmp_path / "data", LATIN)
    ByT5Tokenizer().save_pretrained(model)
    config = T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
                      decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(model)
    d = data_of(home, f"model.name={model}")
    assert (d.own.no_repeat_ngram == 0 and "bytes" in d.facts["no_repeat_ngram"]
            and set(d.facts["letters_lost"].values()) == {0.0})
    snapshot = tmp_path / "hub/models--org--byt5/snapshots/abc"
    shutil.copytree(model, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("abc")
    (snapshot / "config.json").unlink()
    assert hub.in_cache("org/byt5", "tokenizer", cache_dir=str(tmp_path / "hub")) == snapshot
    assert hub.has(["config.json", "tokenizer_config.json", "pytorch_model.bin"], "tokenizer")


def test_a_sentencepiece_model_alone_is_a_tokenizer(tmp_path):
    model = t5(tmp_path / "model", LATIN)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    source = hub.locate(str(model), "pretrained", "tokenizer")
    assert text.load_tokenizer(source.at)("danke").input_ids[-1] == 1


@pytest.mark.parametrize("kind, asked, n, words",
                         [("char", "null", 0, "off"), ("char", "3", 3, "2 of 8 texts"),
                          ("bpe", "null", 3, None),
                                                   ("bpe", "2", 2, None)])
def test_blocking_of_repeats_by_what_a_token_is(tmp_path, kind, asked, n, words):
    texts = ["banana bread", "so so so", "good morning", "blue sky", "my friend", "two cups", "nice light",
             "water"]
    whole = [f"{t} number {c}" for t in ("the yellow house on the hill", "the yellow dog near the water")
             for c in "abcdef"]
    home = folder(tmp_path, texts if kind == "char" else whole)
    d = data_of(home, f"model.init=scratch model.tokenizer_kind={kind} model.vocab_size=200 "
                      f"generate.no_repeat_ngram={asked}")
    assert d.own.no_repeat_ngram == n
    assert words is None or words in d.facts["no_repeat_ngram"]


def test_bleu_reads_the_script(tmp_path):
    texts = ["今天天气很好", "他每天喝一杯茶", "明天我去学校", "妈妈做饭", "我们回家", "谢谢你", "再见朋友", "下雨了"]
    more = "model.init=scratch model.tokenizer_kind=char"
    d = data_of(folder(tmp_path, texts), more)
    rows = [{"reference": t, "hypothesis": t[:-1] + "x"} for t in texts]
    assert (sign.task.score(rows, d)["bleu1"] > 50 and d.facts["signatures"] == signatures("zh")
            and d.facts["bleu"].startswith("zh"))
    assert sign.task.baseline(d, "valid")["bleu1"] >= 0
    plain = data_of(tmp_path, f"{more} score.bleu=13a")
    assert sign.task.score(rows, plain)["bleu1"] == 0 and plain.facts["bleu"] == "13a"


def test_captions_in_a_script_that_the_text_encoder_does_not_know(tmp_path):
    from workbench.tasks.flow.data import caption_tokenizer

    named = SimpleNamespace(tokenizer=str(t5(tmp_path / "model", LATIN)), encoder="own", vocab=100)
    cfg = SimpleNamespace(model=SimpleNamespace(text=named))
    assert caption_tokenizer(cfg, None, LATIN)[1]["via"] == "folder"
    with pytest.raises(Refused, match="does not know .* of the letters"):
        caption_tokenizer(cfg, None, ["guten morgen", "ሰላም ዛሬ"])  # the first text is fine
