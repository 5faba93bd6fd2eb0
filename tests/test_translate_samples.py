"""The translation sample pack is what its datasheet says."""
import hashlib
import re
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import workbench

PACK = Path(workbench.__file__).parent / "samples/translate"
PARTS = ("train", "valid", "test")
LETTERS = {"de": "LATIN", "es": "LATIN", "ru": "CYRILLIC", "ko": "HANGUL", "zh_CN": "CJK", "fa": "ARABIC",
           "mr": "DEVANAGARI", "am": "ETHIOPIC", "th": "THAI"}
HELP = ("de", "es", "ru", "ko", "zh_CN", "fa", "mr")
ORIGINS = {"gnome-user-docs", "chromium", "tech-mezgeb-qalat", "cldr-annotations-full"}


@cache
def rows(part, language):
    "(source, target, origin) of a pair in a split."
    lines = (PACK / part / f"en-{language}.tsv").read_text(encoding="utf8").splitlines()
    assert lines[0] == "source\ttarget\torigin"
    return [tuple(line.split("\t")) for line in lines[1:]]


def everything():
    return [(part, language, *row) for part in PARTS for language in LETTERS for row in rows(part, language)]


def key(text):
    "A text without case, digits and punctuation."
    return " ".join(re.findall(r"[^\W\d_]+", text.casefold()))


def test_the_pack_is_the_one_that_was_made():
    lines = (PACK / "SHA256SUMS").read_text(encoding="utf8").splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines)
    there = {p.relative_to(PACK).as_posix() for p in PACK.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert there == set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256((PACK / name).read_bytes()).hexdigest() == digest, name
    assert sum((PACK / name).stat().st_size for name in there) < 6e6
    assert {name for name in there if name.endswith(".tsv")} == {f"{part}/en-{language}.tsv" for part in PARTS
                                                                for language in LETTERS}


@pytest.mark.parametrize("language", LETTERS)
def test_the_datasheet_counts_what_is_there(language):
    sheet = (PACK / "DATASHEET.md").read_text(encoding="utf8")
    found = [rows(part, language) for part in PARTS]
    origins = Counter(origin for part in found for _, _, origin in part)
    said = ", ".join(f"{origin} {n}" for origin, n in origins.items())
    assert f"| en-{language} | {said} | " + " | ".join(str(len(part)) for part in found) + " |" in sheet
    assert set(origins) <= ORIGINS and all(100 <= len(part) <= 150 for part in found[1:])


def test_every_source_has_its_licence_and_the_notice_names_them():
    sheet = (PACK / "DATASHEET.md").read_text(encoding="utf8")
    assert all(word in sheet for word in ("CC-BY-SA-3.0", "BSD-3-Clause", "MIT", "Unicode License V3",
                                          "Ethiopian Languages Research Center", "150.0.7871.100", "43.0-2"))
    notice = (Path(__file__).parents[1] / "NOTICE").read_text(encoding="utf8")
    licences = {p.name for p in PACK.glob("LICENSE.*")}
    assert licences == {"LICENSE.gnome-user-docs", "LICENSE.chromium", "LICENSE.tech-mezgeb-qalat",
                        "LICENSE.unicode"}
    assert all(f"workbench/samples/translate/{name}" in notice for name in licences)


def test_one_english_text_is_in_one_split_for_all_languages():
    part_of, twice = {}, []
    for part, language, source, _, _ in everything():
        if part_of.setdefault(key(source), part) != part:
            twice.append((language, source))
    assert not twice
    for language in LETTERS:
        keys = [key(source).replace(" ", "") for part in PARTS for source, _, _ in rows(part, language)]
        assert len(keys) == len(set(keys)) and "" not in keys, language


def test_no_translation_is_in_two_splits():
    def folded(text):
        return "".join(c for c in text.casefold() if unicodedata.category(c)[0] in "LMN")

    for language in LETTERS:
        train, valid, test = ({folded(target) for _, target, _ in rows(part, language)} for part in PARTS)
        assert not (train & valid or train & test or valid & test), language


@pytest.mark.parametrize("part", ["valid", "test"])
def test_the_held_out_texts_of_the_help_are_the_same_in_its_languages(part):
    texts = {language: {source for source, _, _ in rows(part, language)} for language in HELP}
    assert all({key(s) for s in found} == {key(s) for s in texts["de"]} for found in texts.values())
    browser = {language: {source for source, _, origin in rows(part, language) if origin == "chromium"}
               for language in ("am", "th")}
    assert browser["am"] == browser["th"] and len(browser["am"]) >= 100


def test_the_text_is_clean():
    direction = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffd]")
    for row in everything():
        source, target = row[2:4]
        assert len(row) == 5 and source.casefold() != target.casefold(), row
        for text in (source, target):
            assert text == unicodedata.normalize("NFC", " ".join(text.split())) and 0 < len(text) <= 300, row
            assert not direction.search(text) and text[0] != '"', row


def test_menus_keys_and_links_are_as_a_reader_sees_them():
    "No menu glued to the next, no link without its words."
    texts = [row[2] for row in everything() if row[4] == "gnome-user-docs"]
    assert sum("Ctrl+" in text for text in texts) > 100 and sum(" ▸ " in text for text in texts) > 20
    glued = re.compile(r"\b(see|at|See) \.|\(\)|Ctrl[A-Z]|Alt[A-Z][A-Za-z]")
    assert not [text for text in texts if glued.search(text)]
    assert not [text for text in texts if re.search(r"translator-credits|@\w+\.(com|org)", text)]


@pytest.mark.parametrize("language", LETTERS)
def test_a_translation_is_in_the_script_of_its_language(language):
    for part in PARTS:
        for source, target, _ in rows(part, language):
            scripts = Counter(unicodedata.name(c, "?").split()[0] for c in target
                              if unicodedata.category(c)[0] in "LM")
            ours = scripts[LETTERS[language]] + (scripts["CJK"] if language == "ko" else 0)
            assert ours >= scripts.total() / 2, (source, target)


def test_numbers_agree():
    def numbers(text):
        return sorted("".join(str(unicodedata.decimal(c)) for c in n) for n in re.findall(r"\d+", text))

    assert not [row for row in everything() if numbers(row[2]) != numbers(row[3])]
