"Numbers of every language of num2words: nothing fails, no digit is left, no value changes."
from decimal import Decimal

import pytest

num2words = pytest.importorskip("num2words", reason="speech needs num2words: pip install num2words")
from babel.numbers import format_decimal  # noqa: E402

from workbench.parts.numerals import words_of  # noqa: E402
from workbench.parts.readings import numbers, reading_of  # noqa: E402
from workbench.parts.spoken import normalise  # noqa: E402

WRITTEN = ["12", "3,5", "1.234", "1,234.56", "1.234,56", "1 234", "1\u202f234,5", "1'234", "12,34,567", "+49 30 123456", "$1.5bn", "50€", "€27,50",
           "5 %", "24.12.2026", "12/24/2026", "2026-02-31", "10:30", "00:00", "5-10", "ከ5-10", "the '90s", "1990s.", "1st", "1.", "2e", "1½", "⅔",
           "-3,5", "−7", "١٢٫٥", "१२", "፲፪", "007", "A4", "192.168.0.1", "0.001", "9" * 20, "-" + "9" * 14, "90 km/h", "1,2,3", "v2.0", "３", "1ª"]
VALUES = [Decimal(v) for v in ("5", "1234", "1234567", "0.5", "12.25", "1234.5", "-17", "-2.5")]


@pytest.mark.parametrize("language", [*sorted(num2words.CONVERTER_CLASSES), "de-CH", "en-GB", "en-IN", "kk"])
def test_any_number_in_any_language(language):
    for written in WRITTEN:
        said = normalise(f"{written}", language)
        assert said and not any(c.isdecimal() for c in said), (written, said)
    reading = reading_of(language)
    for value in VALUES:
        written = format_decimal(value, locale=reading.locale, numbering_system="latn")
        right = words_of(int(value) if value == int(value) else value, reading.code)
        assert numbers(written, language).replace(" ", "") == right.replace(" ", ""), written


def test_languages_that_num2words_lacks_keep_their_digits():
    assert numbers("12,5 %", "hi") == "12,5 %"
