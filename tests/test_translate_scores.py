"Scores of a translation: equal to sacrebleu's command on the same files, for each pair and over pairs."
import json
import random
import subprocess
import sys

import pytest

from workbench.core.data.metrics import text_scores
from workbench.tasks.translate.scores import baselines, best_of, chrf_constant, chrf_of_constant, pair_scores
from workbench.tasks.translate.scores import pair_signatures, pair_tokenizers, rows_of, score_names

REFERENCES = {
    "en-de": ["Öffnen Sie das Menü »Datei«.", "Klicken Sie auf Weiter, um fortzufahren.",
              "Der Rechner hat 8.5 GB Speicher.",
              "Wählen Sie eine Sprache aus der Liste.", "Fertig!"],
    "am-en": ["Open the menu and choose Save.", "The computer isn't on.", "Click on Next (twice).",
              "I don't know it."],
    "en-am": ["እኔ ወደ ቤት እሄዳለሁ።", "ኮምፒውተሩን ክፈት፤ ከዚያም ጠብቅ።", "ምናሌውን ክፈት።", "አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት።"],
    "en-ar": ["افتح القائمة، ثم اختر حفظ.", "هل هذا جيد؟", "انقر على التالي للمتابعة."],
    "en-ru": ["Откройте меню «Файл».", "Нажмите «Далее», чтобы продолжить.", "Выберите язык из списка."],
    "en-zh": ["今天天气很好。", "请打开菜单，然后选择保存。", "用 Python 写程序。"],
    "en-ja": ["今日はいい天気です。", "メニューを開いて保存を選びます。"],
    "en-ko": ["메뉴를 여십시오.", "계속하려면 다음을 누르십시오."],
}
TOKENIZERS = {"en-de": "13a", "am-en": "13a", "en-am": "intl", "en-ar": "intl", "en-ru": "13a", "en-zh": "zh",
              "en-ja": "char",
              "en-ko": "char"}


def spoilt(text, draw):
    "A hypothesis with a few wrong characters, a lost word, or a space too many."
    words = text.split(" ")
    if len(words) > 2 and draw.random() < 0.5:
        del words[draw.randrange(len(words))]
    chars = list(" ".join(words))
    for _ in range(draw.randrange(3)):
        chars[draw.randrange(len(chars))] = draw.choice(chars)
    return "".join(chars).strip() if draw.random() < 0.9 else ""


@pytest.fixture(scope="module")
def rows():
    draw = random.Random(3)
    found = [{"uid": f"{pair}/{i}", "pair": pair, "source": f"source {i} {text[:3]}", "reference": text,
              "hypothesis": spoilt(text, draw)}
             for pair, texts in REFERENCES.items() for i, text in enumerate(texts * 6)]
    draw.shuffle(found)
    return found


def command(folder, references, hypotheses, tokenize):
    "What `sacrebleu` says of two files: [{name, score, signature}]."
    for name, texts in (("ref", references), ("hyp", hypotheses)):
        (folder / name).write_text("".join(f"{text}\n" for text in texts), encoding="utf8")
    out = subprocess.run([sys.executable, "-m", "sacrebleu", "ref", "-i", "hyp", "-m", "bleu", "chrf",
                          "--tokenize",
                          tokenize, "--width", "12", "--format", "json"], cwd=folder, capture_output=True,
                          text=True,
                         check=True)
    return json.loads(out.stdout)


def test_tokenizers_follow_the_target(rows):
    assert pair_tokenizers(REFERENCES) == TOKENIZERS
    assert {*pair_tokenizers(REFERENCES, "intl").values()} == {"intl"}


@pytest.mark.parametrize("pair", REFERENCES)
def test_scores_of_a_pair_equal_the_command(pair, rows, tmp_path):
    some = rows_of(rows)[pair]
    bleu, chrf = command(tmp_path, [r["reference"] for r in some], [r["hypothesis"] for r in some],
                         TOKENIZERS[pair])
    found, said = pair_scores(rows, TOKENIZERS), pair_signatures(TOKENIZERS)
    assert found[f"bleu4/{pair}"] == pytest.approx(bleu["score"], abs=1e-9)
    assert found[f"chrf/{pair}"] == pytest.approx(chrf["score"], abs=1e-9)
    assert (said[f"bleu4/{pair}"] == f"{bleu['signature']}|order:4"
            and said[f"chrf/{pair}"] == chrf["signature"])


def test_scores_of_all_rows_equal_the_command(rows, tmp_path):
    found = pair_scores(rows, TOKENIZERS)
    _, chrf = command(tmp_path, [r["reference"] for r in rows], [r["hypothesis"] for r in rows], "13a")
    assert found["chrf"] == pytest.approx(chrf["score"], abs=1e-9)
    latin = [r for r in rows if TOKENIZERS[r["pair"]] == "13a"]
    bleu, _ = command(tmp_path, [r["reference"] for r in latin], [r["hypothesis"] for r in latin], "13a")
    assert pair_scores(latin, TOKENIZERS)["bleu4"] == pytest.approx(bleu["score"], abs=1e-9)


def test_bleu_of_all_adds_the_counts_of_pairs(rows, tmp_path):
    "The same as sacrebleu without a tokenizer on texts that were split before."
    from sacrebleu.metrics import BLEU

    split = {kind: BLEU(tokenize=kind).tokenizer for kind in TOKENIZERS.values()}
    references, hypotheses = ([split[TOKENIZERS[r["pair"]]](r[name]) for r in rows]
                              for name in ("reference", "hypothesis"))
    bleu, _ = command(tmp_path, references, hypotheses, "none")
    found = pair_scores(rows, TOKENIZERS)
    assert found["bleu4"] == pytest.approx(bleu["score"], abs=1e-9)
    assert "tok:13a+char+intl+zh by pair, counts added" in pair_signatures(TOKENIZERS)["bleu4"]


def test_means_weigh_pairs_alike(rows):
    found = pair_scores(rows, TOKENIZERS)
    for name in ("chrf", "bleu4"):
        assert found[f"{name}_mean"] == pytest.approx(sum(found[f"{name}/{pair}"] for pair in REFERENCES)
                                                      / len(REFERENCES))
    more = pair_scores([*rows, *(r for r in rows if r["pair"] == "en-de")], TOKENIZERS)
    assert more["chrf_mean"] == pytest.approx(found["chrf_mean"]) and more["chrf"] != found["chrf"]
    assert [*found] == score_names(REFERENCES) and {*pair_signatures(TOKENIZERS)} == {*found}


def test_order_and_company_change_nothing(rows):
    found = pair_scores(rows, TOKENIZERS)
    again = pair_scores(sorted(rows, key=lambda r: r["uid"]), {})
    assert again == pytest.approx(found)
    alone = pair_scores(rows_of(rows)["en-am"], TOKENIZERS)
    assert alone["bleu4/en-am"] == alone["bleu4"] == found["bleu4/en-am"]


def test_streams_of_unequal_length_are_refused(rows):
    with pytest.raises(ValueError, match="3 references stand against 2 hypotheses"):
        text_scores(["a", "b", "c"], ["a", "b"])
    with pytest.raises(ValueError, match="1 tokenizers stand against 2 rows"):
        text_scores(["a", "b"], ["a", "b"], ["13a"])
    with pytest.raises(ValueError, match="row x has no hypothesis"):
        pair_scores([*rows, {"uid": "x", "pair": "en-de", "reference": "Ja."}], TOKENIZERS)
    with pytest.raises(ValueError, match="the hypothesis of row 0 is of type NoneType"):
        pair_scores([rows[0] | {"hypothesis": None}], TOKENIZERS)
    with pytest.raises(ValueError, match="nothing to score"):
        pair_scores([], {})


def test_the_best_constant_is_the_best_of_all(rows):
    from sacrebleu.metrics import CHRF

    candidates, references = REFERENCES["en-de"], [r["reference"] for r in rows if r["pair"] == "en-de"]
    by_hand = {text: CHRF().corpus_score([text] * len(references), [references]).score for text in candidates}
    assert {text: chrf_of_constant(references)(text) for text in candidates} == pytest.approx(by_hand)
    assert chrf_constant(candidates, references) == max(by_hand, key=by_hand.get)


@pytest.mark.parametrize("text", ["", " ", "a", "ab", "ሰላም", "x" * 40])
def test_chrf_of_a_constant_at_its_edges(text):
    from sacrebleu.metrics import CHRF

    for references in (["a b c d e f g", "ab", ""], ["a"], ["ሰላም ለዓለም", "xxx xxxxx"]):
        theirs = CHRF().corpus_score([text] * len(references), [references]).score
        assert chrf_of_constant(references)(text) == pytest.approx(theirs, abs=1e-9)


def test_baselines_are_given_for_each_pair(rows):
    simple = baselines(rows, REFERENCES, TOKENIZERS)
    copied = pair_scores([r | {"hypothesis": r["source"]} for r in rows], TOKENIZERS)
    assert simple["copy"] == copied and [*simple["constant"]] == [*copied] == score_names(REFERENCES)
    for pair, texts in REFERENCES.items():
        of = [r for r in rows if r["pair"] == pair]
        each = [pair_scores([r | {"hypothesis": text} for r in of], TOKENIZERS)["chrf"] for text in texts]
        assert simple["constant"][f"chrf/{pair}"] == pytest.approx(max(each))
    assert best_of([{"chrf_mean": 3, "wer": 2, "exact": 0}, {"chrf_mean": 4, "wer": 3, "exact": 1}]) == {
        "chrf_mean": 4, "wer": 2, "exact": 1}
    assert pair_scores(rows, TOKENIZERS)["chrf_mean"] > max(table["chrf_mean"] for table in simple.values())
