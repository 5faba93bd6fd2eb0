"Numbers of every language of num2words: nothing fails, no digit is left, no value changes."
from decimal import Decimal

import pytest

num2words = pytest.importorskip("num2words", reason="speech needs num2words: pip install num2words")
from babel.numbers import format_decimal  # noqa: E402

from workbench.parts.speech.numerals import words_of  # noqa: E402
from workbench.parts.speech.number_format import number_format  # noqa: E402
from workbench.parts.speech.number_rules import numbers_in_words  # noqa: E402
from workbench.parts.speech.normalise import normalise  # noqa: E402

WRITTEN = ["12", "3,5", "1.234", "1,234.56", "1.234,56", "1 234", "1\u202f234,5", "1'234", "12,34,567",
           "+49 30 123456", "$1.5bn", "50€", "€27,50",
           "5 %", "24.12.2026", "12/24/2026", "2026-02-31", "10:30", "00:00", "5-10", "ከ5-10", "the '90s",
           "1990s.", "1st", "1.", "2e", "1½", "⅔",
           "-3,5", "−7", "١٢٫٥", "१२", "፲፪", "007", "A4", "192.168.0.1", "0.001", "9" * 20, "-" + "9" * 14,
           "90 km/h", "1,2,3", "v2.0", "３", "1ª"]
VALUES = [Decimal(v) for v in ("5", "1234", "1234567", "0.5", "12.25", "1234.5", "-17", "-2.5")]


@pytest.mark.parametrize("language", [*sorted(num2words.CONVERTER_CLASSES), "de-CH", "en-GB", "en-IN", "kk"])
def test_any_number_in_any_language(language):
    for written in WRITTEN:
        said = normalise(f"{written}", language)
        assert said and not any(c.isdecimal() for c in said), (written, said)
    form = number_format(language)
    for value in VALUES:
        written = format_decimal(value, locale=form.locale, numbering_system="latn")
        right = words_of(int(value) if value == int(value) else value, form.code)
        assert numbers_in_words(written, language).replace(" ", "") == right.replace(" ", ""), written


def test_languages_that_num2words_lacks_keep_their_digits():
    assert numbers_in_words("12,5 %", "hi") == "12,5 %"


@pytest.mark.parametrize("language, written, said", [
    ("de", "30 000 Leute", "dreißigtausend Leute"), ("fr", "2.500", "deux mille cinq cents"),
    ("sv", "4.000", "fyratusen"),
    ("fr-CH", "12 000.5", "douze mille virgule cinq"), ("en", "7 000", "seven thousand"),
    ("en", "3 400", "three four hundred"),
    ("pt", "R$ 7", "sete Reais brasileiros"), ("es", "US$ 8", "ocho dólares estadounidenses"),
    ("es-MX", "$8", "ocho pesos mexicanos"),
    ("pl", "8 zł", "osiem złotych polskich"), ("de", "8,- €", "acht Euro"), ("en", "8 Ft", "eight Ft"),
    ("de", "Version 4.5.6", "Version vier Punkt fünf Punkt sechs"),
    ("de", "0221/445566", "null zwei zwei eins vier vier fünf fünf sechs sechs"),
    ("de", "am 7. Juni", "am siebten Juni"), ("de", "die 7. Reihe", "die siebte Reihe"),
    ("de", "7.–9. Juni", "siebte bis neunte Juni"),
    ("nl", "om 16.45 uur", "om zestien uur vijfenveertig"),
    ("id", "pukul 16.45", "pukul enam belas empat puluh lima"), ("fr", "16h45", "seize heures quarante-cinq"),
    ("nl", "7-6-2004", "zeven juni tweeduizendvier"), ("ru", "07.06.2001", "семь июня две тысячи один"),
    ("ru", "3-я, 7-го, 80-е", "третья, седьмого, восьмидесятые"),
    ("tr", "%40", "yüzde kırk"), ("tr", "40%", "yüzde kırk"), ("ko", "40%", "사십 퍼센트"),
    ("fa", "۴۰٪", "چهل درصد"),
    ("en", "20%-30%", "twenty percent to thirty percent"),
    ("de", "20 % – 30 %", "zwanzig Prozent bis dreißig Prozent"),
    ("en", "$20-$30", "twenty dollars to thirty dollars"),
    ("en", "9:20pm", "nine twenty pm"), ("en", "555-9876", "five five five nine eight seven six"),
    ("en", "pages 300-1200", "pages three hundred to twelve hundred"),
    ("en", "$6-7", "six to seven dollars"), ("en", "€3-4 million", "three to four million euros"),
    ("en", "3°C-4°C", "three degrees Celsius to four degrees Celsius"),
    ("tr", "%30-40", "yüzde otuz – kırk"), ("hu", "3%-4%", "három százalék – négy százalék"),
    ("es", "a las 16.45", "a las dieciséis cuarenta y cinco"),
    ("fr", "la 1ère", "la première"), ("en", "2 3/4", "two and three fourths")])
def test_numbers_as_people_write_them(language, written, said):
    assert normalise(written, language) == said
