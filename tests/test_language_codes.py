"Languages in the codes of CLDR are found among those of each model, and one that it lacks is a sentence."
import types

import pytest
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES
from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as MBART50
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES as NLLB

from workbench.core.config.presets import load
from workbench.errors import Refused
from workbench.parts.corpus.codes import code_among, written_in
from workbench.parts.text.tokenizer import train_tokenizer
from workbench.tasks.translate import data
from workbench.tasks.translate.tokens import frame_of
from workbench.tasks.translate.vocabulary import RunTokens

M2M100 = FAIRSEQ_LANGUAGE_CODES["m2m100"]
OURS = {"am": ("amh_Ethi", "am", None), "ar": ("arb_Arab", "ar", "ar_AR"), "de": ("deu_Latn", "de", "de_DE"),
        "el": ("ell_Grek", "el", None), "en": ("eng_Latn", "en", "en_XX"), "es": ("spa_Latn", "es", "es_XX"),
        "fa_AF": ("prs_Arab", "fa", "fa_IR"), "fa": ("pes_Arab", "fa", "fa_IR"),
        "fr": ("fra_Latn", "fr", "fr_XX"), "hi": ("hin_Deva", "hi", "hi_IN"),
        "ja": ("jpn_Jpan", "ja", "ja_XX"), "ko": ("kor_Hang", "ko", "ko_KR"),
        "mr": ("mar_Deva", "mr", "mr_IN"),
        "om": ("gaz_Latn", None, None), "pt_BR": ("por_Latn", "pt", "pt_XX"),
        "ru": ("rus_Cyrl", "ru", "ru_RU"),
        "sv": ("swe_Latn", "sv", "sv_SE"), "th": ("tha_Thai", "th", "th_TH"), "ti": ("tir_Ethi", None, None),
        "uk": ("ukr_Cyrl", "uk", "uk_UA"), "zh_CN": ("zho_Hans", "zh", "zh_CN"),
        "zh_TW": ("zho_Hant", None, None), "sr": ("srp_Cyrl", "sr", None), "sr_Latn": (None, None, None),
        "nb": ("nob_Latn", None, None), "ne": ("npi_Deva", "ne", "ne_NP"), "he": ("heb_Hebr", "he", "he_IL")}


@pytest.mark.parametrize("ours", OURS)
def test_a_language_is_found_among_the_codes_of_each_model(ours):
    assert tuple(code_among(ours, known) for known in (NLLB, M2M100, MBART50)) == OURS[ours]


def test_no_two_codes_of_a_model_are_taken_for_one_language():
    for known in (NLLB, M2M100, MBART50):
        alike = {code for code in known if code_among(code, known) != code}
        assert alike <= {"ajp_Arab", "apc_Arab", "aka_Latn", "twi_Latn"}, alike  # CLDR has one name for two
    assert written_in("English") == ("", "", "") and code_among("english", NLLB) is None


@pytest.mark.parametrize("name", ["nllb_600m", "nllb_600m_lora", "nllb_600m_qlora", "m2m100"])
def test_the_presets_need_no_table(name):
    assert load(name).model.languages == {}


def test_the_tokens_around_a_text_are_those_of_the_model():
    tok = train_tokenizer(["Open the file."], "char", languages=("eng_Latn", "pes_Arab", "zho_Hans"))
    ids = dict(zip(("en", "fa", "zh_CN"), tok.convert_tokens_to_ids(["eng_Latn", "pes_Arab", "zho_Hans"])))
    for pair in ("en-fa", "zh_CN-en", "fa-zh_CN"):
        source, target = pair.split("-")
        assert (frame_of(tok, pair).before, frame_of(tok, pair).first) == ((ids[source],), (ids[target],))
    assert frame_of(tok, "en-zh_TW", {"zh_TW": "zho_Hans"}).first == (ids["zh_CN"],)
    with pytest.raises(Refused, match=r"no language token 'mr'; nearest: .*model.languages=\{mr: CODE\}"):
        frame_of(tok, "en-mr")


def test_a_language_that_a_model_lacks_is_told_before_texts_are_prepared(own_runs, tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "texts.en-mr.tsv").write_text("One house.\tएक घर.\n" * 4, encoding="utf8")
    tok = train_tokenizer(["One house."], "char", languages=("eng_Latn", "pes_Arab"))
    monkeypatch.setattr(data, "tokens_of", lambda cfg, assets, corpus: RunTokens(tok, {"kind": "hub"}))
    monkeypatch.setattr(data, "corpus_of", lambda cfg, assets: pytest.fail("texts were prepared"))
    for more in ("", " data.pairs=[en-mr]"):
        with pytest.raises(Refused, match=r"no language token 'mr'"):
            data.data(load("nllb_600m", f"data.source={raw}{more}"), types.SimpleNamespace(assets=None))
