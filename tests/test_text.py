"""Tokenizers: trained, saved, read back, and the targets that each family wants."""
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from workbench.errors import Refused
from workbench.parts.text import coverage, targets
from workbench.parts.text import tokenizer as text

CORPUS = [
    "the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs",
    "Größe, naïveté, façade",
    "ሰላም ለዓለም", "አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት", "እንኳን ደህና መጡ", "አማርኛ በጌዕዝ ፊደል ይጻፋል",
    "שלום עולם", "בראשית ברא אלהים את השמים ואת הארץ", "שָׁלוֹם", "two  spaces, 3 digits; (marks)!",
] * 3
HELD_OUT = ["the dog over the box", "ሰላም ከተማ", "עולם ברא", "fox!"]


@pytest.mark.parametrize("kind", ["char", "unigram", "bpe"])
def test_round_trip_in_three_scripts_after_saving(kind, tmp_path):
    tok = text.train_tokenizer(CORPUS, kind, 200, special_tokens=("<blank>",), languages=("am_ET",))
    back = text.load_tokenizer(text.save_tokenizer(tok, tmp_path))
    assert back.get_vocab() == tok.get_vocab() and len(back) == len(tok) == len(back.get_vocab())
    ids = [back.pad_token_id, back.eos_token_id, back.unk_token_id, back.bos_token_id]
    assert ids == [0, 1, 2, 3] and back.convert_tokens_to_ids(["<blank>", "am_ET"]) == [4, 5]
    for line in CORPUS + HELD_OUT:
        rows, cut = targets.encode_targets(back, [line], 200)
        assert rows == targets.encode_targets(tok, [line], 200)[0] and cut == 0 and rows[0][-1] == 1
        assert targets.decode_texts(back, [rows[0] + [0, 0, -100]]) == [unicodedata.normalize("NFC", line)]
    assert not coverage.round_trip(back, targets.targets_of(back, CORPUS))[0]
    assert coverage.round_trip(back, targets.targets_of(back, ["日本語"]))[0]["日本語"] == ""


@pytest.mark.parametrize("kind", ["char", "unigram", "bpe"])
def test_every_process_trains_the_same_tokenizer(kind):
    code = (
        "import json, sys; from workbench.parts.text import tokenizer as text; "
        f"print(json.dumps(text.train_tokenizer(json.loads(sys.argv[1]), {kind!r}, 200).get_vocab(), "
        "sort_keys=True))")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    run = subprocess.run([sys.executable, "-c", code, json.dumps(CORPUS)], capture_output=True, text=True,
                         env=env)
    assert json.loads(run.stdout) == text.train_tokenizer(CORPUS, kind, 200).get_vocab(), run.stderr[-500:]


def test_vocabulary_size_is_an_upper_bound():
    for kind in ("unigram", "bpe"):
        assert len(text.train_tokenizer(CORPUS, kind, 150)) <= 150
        assert len(text.train_tokenizer(["ab ab ab"], kind, 5000)) < 5000
    assert len(text.train_tokenizer(["abcabc"], "char")) == 4 + 3


@pytest.mark.parametrize("bad, words", [
    (lambda: text.train_tokenizer([], "char"), "no text"),
    (lambda: text.train_tokenizer([""], "bpe"), "no text"),
    (lambda: text.train_tokenizer(["a"], "word"), "char, unigram or bpe")])
def test_what_cannot_be_trained(bad, words):
    with pytest.raises(Refused, match=words):
        bad()


def test_a_vocabulary_too_small_for_the_letters_says_so():
    for kind in ("unigram", "bpe"):
        with pytest.raises(Refused, match="vocab_size is 20, but the corpus needs"):
            text.train_tokenizer(CORPUS, kind, 20)


def pieces(*more):
    "A unigram vocabulary in the layout of fairseq (mBART)."
    letters = sorted({c for line in CORPUS for c in line if c != " "})
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    return [*special, ("▁", -2.0), *[(c, -3.0) for c in letters], *more]


def test_mbart50_puts_the_language_first(tmp_path):
    from transformers import MBart50Tokenizer

    MBart50Tokenizer(vocab=pieces()).save_pretrained(tmp_path)
    tok = text.load_tokenizer(tmp_path)
    lang = text.language_id(tok, "de_DE")
    rows, cut = targets.encode_targets(tok, ["fox", "the dog"], 6, "de_DE")
    assert [r[0] for r in rows] == [lang, lang] and [r[-1] for r in rows] == [tok.eos_token_id] * 2
    assert len(rows[1]) == 6 and cut == 1 and targets.decode_texts(tok, rows)[0] == "fox"
    with pytest.raises(Refused, match="de_DE"):
        text.language_id(tok, "de_D")


def test_nllb_puts_the_language_first(tmp_path):
    from transformers import NllbTokenizer

    NllbTokenizer(vocab={p: i for i, (p, _) in enumerate(pieces())}, merges=[]).save_pretrained(tmp_path)
    tok = text.load_tokenizer(tmp_path)
    rows, _ = targets.encode_targets(tok, ["ሰላም"], language="amh_Ethi")
    assert rows[0][0] == text.language_id(tok, "amh_Ethi") and rows[0][-1] == tok.eos_token_id
    assert targets.decode_texts(tok, rows) == ["ሰላም"]


def test_m2m100_knows_its_languages_by_short_names(tmp_path):
    import sentencepiece
    from transformers import M2M100Tokenizer

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(tmp_path / "spm"), vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=2)
    sp = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for i in range(3, len(sp)):
        vocab.setdefault(sp.id_to_piece(i), len(vocab))
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    made = M2M100Tokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "spm.model"))
    made.save_pretrained(tmp_path / "saved")
    tok = text.load_tokenizer(tmp_path / "saved")
    rows, _ = targets.encode_targets(tok, ["the dog"], language="am")
    assert rows[0][0] == text.language_id(tok, "am") == tok.get_lang_id("am")
    assert rows[0][-1] == tok.eos_token_id
    assert targets.decode_texts(tok, rows) == ["the dog"]


def byte_level(folder, cls, **special):
    letters = [chr(c) for c in range(33, 127)] + ["Ġ"]
    vocab = {t: i for i, t in enumerate([*special.values(), *letters])}
    cls(vocab=vocab, merges=[], **special).save_pretrained(folder)
    return text.load_tokenizer(folder)


def test_gpt2_gets_an_end_and_a_padding_token_of_its_own(tmp_path):
    from transformers import GPT2Tokenizer

    end = "<|endoftext|>"
    tok = byte_level(tmp_path, GPT2Tokenizer, unk_token=end)
    rows, cut = targets.encode_targets(tok, ["dog", "a long text"], 5)
    assert rows[0] == [*tok("dog").input_ids, tok.eos_token_id]
    assert rows[1][-1] == tok.eos_token_id and cut == 1
    assert tok.pad_token_id not in (None, tok.eos_token_id) and targets.decode_texts(tok, rows)[0] == "dog"


def test_bart_keeps_its_begin_token(tmp_path):
    from transformers import BartTokenizer

    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>",
               "mask_token": "<mask>"}
    tok = byte_level(tmp_path, BartTokenizer, **special)
    rows, _ = targets.encode_targets(tok, ["dog"])
    assert (rows[0][0], rows[0][-1]) == (tok.bos_token_id, tok.eos_token_id) and len(rows[0]) == 5


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(Refused, match="cannot be read"):
        text.load_tokenizer(tmp_path)
