"""Packs of pieces in files, in other processes, extended, for one pair; subword dropout.
On texts in ten scripts."""
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from workbench.errors import Refused
from workbench.parts.text.coverage import coverage_of
from workbench.parts.text.run_tokenizer import keep_tokenizer, kept_tokenizer
from workbench.parts.text.targets import decode_texts, encode_targets
from workbench.parts.text.tokenizer import check_language, language_id, load_tokenizer, save_tokenizer
from workbench.parts.text.tokenizer import train_tokenizer
from workbench.parts.vocabulary import packs
from workbench.parts.vocabulary.dropout import dropout, split_pieces
from workbench.parts.vocabulary.foreign import check_scripts, foreign_rows
from workbench.parts.vocabulary.packs import added_rows, extend, sample_lines, train_vocabulary
from workbench.parts.vocabulary.scripts import group_of, script_of
from workbench.parts.vocabulary.vocabulary import Vocabulary, vocab_for_pair

home = Path(__file__).parents[1]
WORDS = {
    "en": "the a house of and water sun river big small goes comes child reads book every day in morning",
    "de": "das Haus der und Wasser Sonne Fluß groß klein geht kommt Kind liest Buch jeden Tag am Morgen",
    "pt_BR": "a casa de e água sol rio grande pequena vai vem criança lê livro todo dia manhã não",
    "ru": "дом вода солнце река большой маленький идёт ребёнок читает книгу каждый день утром и в",
    "el": "το σπίτι και νερό ήλιος ποτάμι μεγάλο μικρό πηγαίνει παιδί διαβάζει βιβλίο κάθε μέρα πρωί",
    "am": "ቤት ውሃ ፀሐይ ወንዝ ትልቅ ትንሽ ይሄዳል ይመጣል ልጅ ያነባል መጽሐፍ በየቀኑ ጠዋት እና ሰላም",
    "ar": "بيت ماء شمس نهر كبير صغير يذهب يأتي طفل يقرأ كتاب كل يوم صباحا و في",
    "hi": "घर पानी सूरज नदी बड़ा छोटा जाता आता बच्चा पढ़ता किताब हर दिन सुबह और में",
    "th": "บ้าน น้ำ ดวงอาทิตย์ แม่น้ำ ใหญ่ เล็ก ไป มา เด็ก อ่าน หนังสือ ทุกวัน ตอนเช้า และ",
    "ja": "家 水 太陽 川 大きい 小さい 行く 来る 子供 読む 本 毎日 朝 コンピューター へ を は",
    "ko": "집 물 태양 강 큰 작은 간다 온다 아이 읽는다 책 매일 아침 그리고 에서",
}
UNSPACED = ("th", "ja")
ODD = ["", " ", "  ", " leading", "trailing ", "two  spaces", "\ttab\n", "no\u00a0break\u202fspace", "፲፪ ሺህ",
       "١٢ و ۱۲",
       "12,345.67 %", "😀👩\u200d🚀🏳️\u200d🌈", "e\u0301a\u0308 ẹ\u0301", "ሰላም hello мир 家", "__am__ ሰላም",
       "a</s>b <s> <pad> <unk>",
       "<bt>", "<0x41><0xFF>", "▁under▁", "Ω≈ç√", "ᐃᓄᒃᑎᑐᑦ", "𝔘𝔫𝔦", "\u0000\u0001", "ー・ー", "\u0301",
       "\ufeffbom", "\u200bzero",
       "a" * 3000, "١", "ab\r\ncd"]


def sentences(language, n=120, seed=0):
    rng = np.random.default_rng([seed, *language.encode()])
    words = WORDS[language].split()
    for _ in range(n):
        some = rng.choice(words, rng.integers(3, 9))
        yield ("" if language in UNSPACED else " ").join(some) + rng.choice([".", " (12)", ", 3!", "?"])


def corpus(languages=tuple(WORDS)):
    return [(language, text) for language in languages for text in sentences(language)]


@pytest.fixture(scope="module")
def vocabulary():
    return train_vocabulary(corpus(), WORDS, 4000)


@pytest.fixture(scope="module")
def tok(vocabulary):
    return vocabulary.tokenizer()


def written(tokenizer, texts):
    return [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(texts).input_ids]


# Nothing is lost

@pytest.mark.parametrize("language", WORDS)
def test_every_text_comes_back(language, tok):
    texts = [*sentences(language), *sentences(language, 50, 1)]
    ids = tok(texts).input_ids
    assert tok.batch_decode(ids, skip_special_tokens=True) == texts
    assert sum(5 <= i < 261 for row in ids for i in row) == 0, "a known character is written as bytes"
    assert not coverage_of(texts, decode_texts(tok, ids)).lost


@pytest.mark.parametrize("text", ODD, ids=lambda text: repr(text[:20]))
def test_odd_texts_come_back(text, vocabulary, tok):
    ids = tok(text).input_ids
    assert tok.decode(ids, skip_special_tokens=True) == text
    assert ids[-1] == 1 and not {*ids[:-1]} & {*tok.all_special_ids}, "a text made a special token"
    pair = vocabulary.for_pair("en", "am")
    assert pair.tokenizer.decode(pair.tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_raw_samples_come_back(tok):
    "What the package ships for translation, where it ships it: every line of every pair."
    files = sorted((home / "workbench/samples/translate").rglob("*.tsv"))
    texts = [cell for file in files for line in file.read_text(encoding="utf8").splitlines()
             for cell in line.split("\t")]
    for some in (texts[i:i + 5000] for i in range(0, len(texts), 5000)):
        assert tok.batch_decode(tok(some).input_ids, skip_special_tokens=True) == some


def test_random_characters_come_back(tok):
    rng = np.random.default_rng(0)
    points = [p for p in rng.integers(0, 0x110000, 20_000).tolist() if not 0xD800 <= p < 0xE000]
    text = "".join(map(chr, points))
    texts = [text[i:i + 50] for i in range(0, len(text), 50)]
    assert tok.batch_decode(tok(texts).input_ids, skip_special_tokens=True) == texts


# Packs

def test_pieces_never_mix_scripts(vocabulary):
    for block in vocabulary.blocks[3:]:
        for piece, _ in block.pieces:
            groups = {group_of(script_of(c)) for c in piece if c.isalpha()} - {"common"}
            assert groups <= ({block.name} if block.name != "common" else set()), (block.name, piece)


def test_every_character_of_a_piece_is_a_piece(vocabulary):
    tokens = [token for token, _ in vocabulary.tokens]
    assert len({*tokens}) == len(tokens)
    for name in vocabulary.packs:
        pieces = {tokens[i] for i in vocabulary.ids_of(name, "common")}
        assert not [tokens[i] for i in vocabulary.ids_of(name) if not {*tokens[i]} <= pieces], name


def test_ids_and_size(vocabulary, tok):
    assert [tok.convert_ids_to_tokens(i) for i in range(5)] == ["<pad>", "</s>", "<unk>", "<s>", "<bt>"]
    assert tok.convert_ids_to_tokens([5, 260]) == ["<0x00>", "<0xFF>"]
    assert tok.convert_ids_to_tokens(261) == "__en__" and vocabulary.languages == tuple(WORDS)
    assert vocabulary.packs == ("common", "latin", "cyrillic", "greek", "ethiopic", "arabic", "devanagari",
                                "thai",
                                "cjk")
    assert len(tok) == len(vocabulary) <= 4000 and len(vocabulary.tokens) == len(vocabulary)


def test_the_same_corpus_gives_the_same_vocabulary(vocabulary):
    assert train_vocabulary(iter(corpus()), list(WORDS), 4000) == vocabulary


def test_lines_are_sampled_with_equal_chance_and_repeatably():
    lines = [("en", str(i)) for i in range(2000)]
    kept = sample_lines(iter(lines), ("en",), 500)["en"]
    assert kept == sample_lines(iter(lines), ("en",), 500)["en"] and len({*kept}) == 500
    assert (900 < np.mean([int(t) for t in kept]) < 1100
            and sample_lines(lines, ("en",))["en"] == [t for _, t in lines])


def test_sizes_are_shared_with_a_floor():
    letters, needed = {"latin": 1_000_000, "ethiopic": 1000,
                       "common": 5000}, dict(latin=80, ethiopic=150, common=40)
    even, as_is = packs.shares(letters, needed, 10_000, 3), packs.shares(letters, needed, 10_000, 1)
    assert sum(even.values()) <= 10_000 and min(as_is.values()) >= packs.FLOOR
    assert even["ethiopic"] > 3 * as_is["ethiopic"] and as_is["latin"] > even["latin"]
    with pytest.raises(Refused, match="500 pieces are too few for 3 packs"):
        packs.shares(letters, needed, 500)


# Files, versions, other processes

def test_another_process_has_the_same_ids(vocabulary, tok, tmp_path):
    vocabulary.save(tmp_path / "v")
    save_tokenizer(tok, tmp_path / "t")
    texts = [*ODD, *(next(sentences(language, 1, 5)) for language in WORDS)]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    code = """
import json, sys
from pathlib import Path
from workbench.parts.text.tokenizer import load_tokenizer
from workbench.parts.vocabulary.vocabulary import Vocabulary, vocab_for_pair
at = Path(sys.argv[1])
v, texts = Vocabulary.load(at / "v"), json.loads((at / "texts.json").read_text())
pair = vocab_for_pair("en", "am", at / "v")
print(json.dumps([v.checksum, v.tokenizer()(texts).input_ids, load_tokenizer(at / "t")(texts).input_ids,
                  pair.rows.tolist(), pair.tokenizer(texts).input_ids]))
"""
    out = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=home, capture_output=True,
                         text=True,
                         check=True)
    checksum, whole, saved, rows, of_pair = json.loads(out.stdout.splitlines()[-1])
    assert checksum == vocabulary.checksum and whole == saved == tok(texts).input_ids
    pair = vocabulary.for_pair("en", "am")
    assert rows == pair.rows.tolist() and of_pair == pair.tokenizer(texts).input_ids


def test_changed_files_are_named(vocabulary, tmp_path):
    at = vocabulary.save(tmp_path / "v")
    good = {p.name: p.read_text(encoding="utf8") for p in at.iterdir()}
    assert {p: len(t) for p, t in good.items()}.keys() == {"vocabulary.json", *(f"{b.name}.tsv" for b in
                                                                                   vocabulary.blocks)}

    def refusal(name, text):
        (at / name).write_text(text, encoding="utf8") if text is not None else (at / name).unlink()
        with pytest.raises(Refused) as error:
            Vocabulary.load(at)
        (at / name).write_text(good[name], encoding="utf8")
        return str(error.value)
    first, rest = good["latin.tsv"].split("\n", 1)
    assert "latin.tsv was changed" in refusal("latin.tsv", rest)
    assert "ethiopic.tsv is damaged" in refusal("ethiopic.tsv", "half a line")
    assert "thai.tsv is missing" in refusal("thai.tsv", None)
    tree = json.loads(good["vocabulary.json"])
    assert "of format 2; this program reads format 1" in refusal("vocabulary.json",
                                                                 json.dumps(tree | {"format": 2}))
    swapped = tree | {"blocks": [*tree["blocks"][:3], *tree["blocks"][:2:-1]]}
    assert "vocabulary.json was changed" in refusal("vocabulary.json", json.dumps(swapped))
    assert "is damaged" in refusal("vocabulary.json", "{")
    assert "has no vocabulary.json" in refusal("vocabulary.json", None)
    assert Vocabulary.load(at) == vocabulary


def test_another_version_is_refused_by_name(vocabulary, tmp_path):
    other = train_vocabulary(corpus(("en", "am")), ("en", "am"), 1500)
    more = extend(other, "ru", list(sentences("ru")))
    more.save(tmp_path)
    with pytest.raises(Refused, match=f"{other.checksum} is expected.*{more.checksum} .version 2., an "
                                      "extension of it"):
        Vocabulary.load(tmp_path, other.checksum)
    with pytest.raises(Refused, match="another vocabulary"):
        Vocabulary.load(tmp_path, vocabulary.checksum)
    assert Vocabulary.load(tmp_path, more.checksum) == more


def test_the_padding_of_a_call_is_not_kept(tok, tmp_path):
    "The library writes the last call's padding and truncation into tokenizer.json."
    tok(["a", "a b c"], padding=True, truncation=True, max_length=3)
    again = load_tokenizer(save_tokenizer(tok, tmp_path))
    assert len(again.backend_tokenizer.encode("a " * 50).ids) > 50
    assert len(again.backend_tokenizer.encode_batch_fast(["a", "a b c d"])[0].ids) < 4


# As any other tokenizer of the house

def test_language_tokens_as_elsewhere(tok, tmp_path):
    assert tok.convert_ids_to_tokens(language_id(tok, "pt_BR")) == "__pt_BR__"
    rows, cut = encode_targets(tok, ["ሰላም"], 20, "am")
    assert tok.convert_ids_to_tokens(rows[0][0]) == "__am__" and rows[0][-1] == 1 and not cut
    assert decode_texts(tok, rows) == ["ሰላም"]
    check_language(tok, "am")
    with pytest.raises(Refused, match="writes 11 languages.*model.language=de"):
        check_language(tok, "")
    with pytest.raises(Refused, match="no language token 'pt'; nearest: pt_BR"):
        language_id(tok, "pt")
    keep_tokenizer(tmp_path, tok, {"kind": "vocabulary"})
    kept, origin = kept_tokenizer(tmp_path)
    assert kept(ODD).input_ids == tok(ODD).input_ids and origin == {"kind": "vocabulary"}
    assert (kept.init_kwargs["vocabulary"] == tok.init_kwargs["vocabulary"]
            and kept.init_kwargs["packs"][0] == "common")


# One pair

@pytest.mark.parametrize("src, tgt", [("en", "am"), ("am", "ru"), ("ja", "ko"), ("de", "pt_BR")])
def test_a_pair_has_the_same_pieces(src, tgt, vocabulary, tok):
    pair = vocabulary.for_pair(src, tgt)
    texts = [*sentences(src), *sentences(tgt), *(t for t in ODD if not any(group_of(script_of(c)) not in (
        "common", *pair.packs) for c in t))]
    ids = pair.tokenizer(texts).input_ids
    assert [pair.rows[row].tolist() for row in ids] == tok(texts).input_ids
    assert pair.tokenizer.batch_decode(ids, skip_special_tokens=True) == texts
    assert written(pair.tokenizer, texts) == written(tok, texts)
    assert len(pair.rows) == len(pair.tokenizer) < len(vocabulary) and (np.diff(pair.rows) > 0).all()
    own = pair.rows[language_id(pair.tokenizer, tgt)]
    assert own == language_id(tok, tgt) and pair.rows[:261].tolist() == list(range(261))


def test_pairs_that_cannot_be(vocabulary, tmp_path):
    with pytest.raises(Refused, match="no language 'pt'; nearest: pt_BR"):
        vocabulary.for_pair("en", "pt")
    small = Vocabulary(vocabulary.blocks[:5], vocabulary.classes)
    with pytest.raises(Refused,
                       match="en-am needs the pack 'ethiopic', and the vocabulary has common, latin"):
        small.for_pair("en", "am")
    small.save(tmp_path)
    assert vocab_for_pair("en", "de", tmp_path).packs == ("common", "latin")


# Extension

def test_an_extension_moves_no_id(tmp_path):
    old = train_vocabulary(corpus(("en", "am")), ("en", "am"), 1500)
    texts = [text for _, text in corpus(("en", "am"))]
    before = old.tokenizer()
    ids = before(texts).input_ids
    new = extend(old, "ru", list(sentences("ru")))
    newer = extend(new, "de", list(sentences("de")), size=300)
    for version in (new, newer):
        tok = version.tokenizer()
        assert (version.tokens[:len(old)] == old.tokens
                and tok.batch_decode(ids, skip_special_tokens=True) == texts)
        assert all(tok.convert_tokens_to_ids(t) == i for i, (t, _) in enumerate(old.tokens))
        version.save(tmp_path)
        assert Vocabulary.load(tmp_path) == version
    assert new.tokenizer()(texts).input_ids == ids, "another script changes nothing for the old texts"
    amharic = [text for text in texts if script_of(text[0]) == "Ethiopic"]
    assert newer.tokenizer()(amharic).input_ids == before(amharic).input_ids
    german = newer.tokenizer()([*sentences("de")]).input_ids
    assert max(map(max, german)) >= len(new) and newer.tokenizer().batch_decode(
        german, skip_special_tokens=True) == [*sentences("de")]
    assert (newer.version, newer.languages, newer.packs) == (3, ("en", "am", "ru", "de"),
                                                             ("common", "latin", "ethiopic", "cyrillic"))
    assert (tmp_path / "latin.2.tsv").is_file() and (tmp_path / "languages.3.tsv").is_file()


def test_the_rows_of_an_extension_are_named(vocabulary):
    old = train_vocabulary(corpus(("en", "am")), ("en", "am"), 1500)
    new = extend(extend(old, "ru", list(sentences("ru"))), "de", list(sentences("de")))
    rows = added_rows(new, old.checksum)
    assert [name for name, _ in rows if name != "common"] == ["languages", "cyrillic", "languages", "latin"]
    assert [i for _, ids in rows
            for i in ids] == list(range(len(old), len(new))) and added_rows(new, new.checksum) == []
    with pytest.raises(Refused, match="does not extend"):
        added_rows(vocabulary, old.checksum)


def test_what_cannot_be_trained_or_extended(vocabulary):
    with pytest.raises(Refused, match="no text in de"):
        train_vocabulary(corpus(("en",)), ("en", "de"), 2000)
    with pytest.raises(Refused, match="a text is in 'am', and the languages of the vocabulary are en"):
        train_vocabulary(corpus(("en", "am")), ("en",), 2000)
    with pytest.raises(Refused, match="pieces are too few for 3 packs"):
        train_vocabulary(corpus(("en", "am")), ("en", "am"), 500)
    with pytest.raises(Refused, match="has am already"):
        extend(vocabulary, "am", ["ሰላም"])
    with pytest.raises(Refused, match="no script is known for the language 'xx'"):
        train_vocabulary([("xx", "a")], ("xx",), 2000)


# Foreign scripts

def test_a_text_in_a_foreign_script_is_refused_by_row():
    tok = train_vocabulary(corpus(("en", "am")), ("en", "am"), 1500).tokenizer()
    texts = ["the river", "a Ω resistor", "", "Большой дом", "ሰላም", "大きい家"]
    assert foreign_rows(tok, texts).tolist() == [3, 5]
    with pytest.raises(Refused, match="train.tsv, row 4 is written in Cyrillic.*no pack 'cyrillic', only "
                                      "common, latin, ethiopic: 'Большой дом' .2 of 6 texts.*extend"):
        check_scripts(tok, texts, "train.tsv, row {}")
    check_scripts(tok, [*texts[:3], *ODD[:9], "١٢", "😀"])
    assert tok.decode(tok("a Ω resistor").input_ids, skip_special_tokens=True) == "a Ω resistor"


# Subword dropout

def test_dropout_is_lossless_and_repeatable(tok):
    splits = split_pieces(tok)
    texts = [*ODD, *(text for language in WORDS for text in sentences(language, 10))]
    for p in (0.0, 0.1, 0.5, 1.0):
        rows = [dropout(splits, ids, np.random.default_rng((7, 2, i)), p)
                for i, ids in enumerate(tok(texts).input_ids)]
        same = [dropout(splits, ids, np.random.default_rng((7, 2, i)), p)
                for i, ids in enumerate(tok(texts).input_ids)]
        other = [dropout(splits, ids, np.random.default_rng((7, 3, i)), p)
                 for i, ids in enumerate(tok(texts).input_ids)]
        assert tok.batch_decode(rows, skip_special_tokens=True) == texts
        assert all(np.array_equal(a, b) for a, b in zip(rows, same))
        assert any(not np.array_equal(a, b) for a, b in zip(rows, other)) == (0 < p < 1)
    assert all(np.array_equal(dropout(splits, ids, np.random.default_rng(0), 0), ids)
               for ids in tok(texts).input_ids)
    assert all(len(t) == 1 or t.startswith("<") for row in rows
               for t in tok.convert_ids_to_tokens(row.tolist()))


def test_dropout_splits_the_share_it_is_told(tok):
    splits, rng = split_pieces(tok), np.random.default_rng(0)
    piece = int(np.flatnonzero(splits.sizes == 2)[0])
    hits = Counter(len(dropout(splits, [piece], rng, 0.2)) > 1 for _ in range(5000))
    assert 0.18 < hits[True] / 5000 < 0.22


def test_dropout_keeps_tokens_that_are_no_pieces(tok):
    splits, special = split_pieces(tok), [language_id(tok, "am"), 4, 0, 2, 3, 1, *range(5, 261)]
    assert dropout(splits, special, np.random.default_rng(0), 1.0).tolist() == special


def test_dropout_of_a_pair_and_of_other_unigram_tokenizers(vocabulary):
    texts = [*sentences("en", 20)]
    pair = vocabulary.for_pair("en", "am").tokenizer
    plain = train_tokenizer(texts, "unigram", 150)
    for some in (pair, plain):
        splits = split_pieces(some)
        rows = [dropout(splits, ids, np.random.default_rng(i), 0.5)
                for i, ids in enumerate(some(texts).input_ids)]
        assert some.batch_decode(rows, skip_special_tokens=True) == texts
        assert sum(map(len, rows)) > sum(map(len, some(texts).input_ids))


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_dropout_refuses_other_tokenizers_by_name(kind):
    with pytest.raises(Refused, match="unigram tokenizer, and this one is of the kind BPE: set "
                                      "data.subword_dropout=0"):
        split_pieces(train_tokenizer(["a b c d"], kind))
