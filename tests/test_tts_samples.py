"""The speech sample packs are what their datasheets say."""
import hashlib
import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import workbench
from workbench.parts.speech.normalise import leftovers, normalise
from workbench.parts.speech.phone_times import durations_of, read_times
from workbench.parts.speech.phones import missing_espeak, phones, read_phones
from workbench.parts.speech.symbols import is_pause

soundfile = pytest.importorskip("soundfile", reason="reading clips needs soundfile: pip install soundfile")
PACKS = Path(workbench.__file__).parent / "samples/tts"
COUNTS = {"en": (462, 30, 32), "am": (265, 25, 35)}
VOICES = {"en": "en-us", "am": "am"}
SENTENCES = ["ሰላም ለዓለም", "አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት", "እንኳን ደህና መጡ", "አማርኛ በጌዕዝ ፊደል ይጻፋል",
             "ኢትዮጵያ በምስራቅ አፍሪካ የምትገኝ ሀገር ናት"]
both = pytest.mark.parametrize("lang", COUNTS)


def rows(lang, part):
    "(clip's path, text) of a split."
    lines = (PACKS / lang / f"{part}.csv").read_text(encoding="utf8").splitlines()
    return [tuple(line.split("|")) for line in lines]


def all_rows(lang):
    return [row for part in ("train", "valid", "test") for row in rows(lang, part)]


def key(text):
    "A text without case and marks, as its words."
    return " " + " ".join(re.findall(r"[^\W_]+", text.lower())) + " "


@both
def test_the_pack_is_the_one_that_was_made(lang):
    pack = PACKS / lang
    lines = (pack / "SHA256SUMS").read_text(encoding="utf8").splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines)
    there = {p.relative_to(pack).as_posix() for p in pack.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert there == set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256((pack / name).read_bytes()).hexdigest() == digest, name
    assert sum((pack / name).stat().st_size for name in there) < {"en": 6e6, "am": 3e6}[lang]


@both
def test_the_datasheet_says_what_is_there(lang):
    sheet = (PACKS / lang / "DATASHEET.md").read_text(encoding="utf8")
    words = {"en": ("asterisk-core-sounds-en", "1.6.1-1", "CC-BY-SA-3.0", "Allison Smith",
                    "The speech is real"),
             "am": ("SYNTHETIC", "not by a person", "espeak-ng 1.52", "cldr-annotations-full` 48.2.0",
                    "MIT")}[lang]
    assert all(word in sheet for word in words)
    for part, count in zip(("train", "valid", "test"), COUNTS[lang]):
        found = rows(lang, part)
        assert len(found) == count
        minutes = sum(soundfile.info(PACKS / lang / clip).duration for clip, _ in found) / 60
        assert f"| {part} | {count} | {minutes:.1f} |" in sheet
    notice = (Path(__file__).parents[1] / "NOTICE").read_text(encoding="utf8")
    assert f"workbench/samples/tts/{lang}" in notice


@both
def test_no_text_is_in_two_splits_nor_part_of_a_text_in_another(lang):
    texts = {part: [key(text) for _, text in rows(lang, part)] for part in ("train", "valid", "test")}
    for part in ("valid", "test"):
        others = [t for other in texts if other != part for t in texts[other]]
        assert not [(t, o) for t in texts[part] for o in others if t in o]


@both
def test_every_row_has_its_clip_and_every_clip_its_row(lang):
    found = all_rows(lang)
    assert all(len(row) == 2 and row[1] == row[1].strip() and row[1] for row in found)
    clips = [clip for clip, _ in found]
    assert len(set(clips)) == len(clips)
    assert set(clips) == {f"clips/{p.name}" for p in (PACKS / lang / "clips").iterdir()}


@both
def test_every_clip_decodes_and_is_speech(lang):
    for clip, text in all_rows(lang):
        wave, rate = soundfile.read(PACKS / lang / clip, dtype="float32")
        seconds = len(wave) / rate
        assert rate == 16000 and wave.ndim == 1 and 0.3 < seconds <= 10, clip
        assert np.isfinite(wave).all() and 0.05 < abs(wave).max() and (abs(wave) >= 0.999).mean() < 1e-3, clip
        assert 0.02 < seconds / len(text) < 1.3, (clip, seconds / len(text))


@both
def test_every_text_has_its_phones(lang):
    known = read_phones(PACKS / lang / "phones.json")
    texts = {text for _, text in all_rows(lang)}
    assert set(known) == texts
    for text, sequence in known.items():
        assert sum(not is_pause(p) for p in sequence) >= 1 and not leftovers(normalise(text, lang)), text
    if missing_espeak() or not find_spec("espeakng_loader"):
        pytest.skip("the pack's own espeak-ng is not installed: pip install espeakng-loader")
    some = sorted(texts)[::7]
    assert [known[t] for t in some] == [phones(normalise(t, lang), VOICES[lang]) for t in some]


def test_the_five_sentences_open_the_amharic_test_set():
    assert [text for _, text in rows("am", "test")[:5]] == SENTENCES


def test_the_amharic_times_cover_every_clip_and_give_its_frames():
    times, known = read_times(PACKS / "am/times.json"), read_phones(PACKS / "am/phones.json")
    found = all_rows("am")
    assert set(times) == {Path(clip).stem for clip, _ in found}
    for clip, text in found:
        uid, info = Path(clip).stem, soundfile.info(PACKS / "am" / clip)
        seconds, spoken = info.frames / info.samplerate, times[Path(clip).stem]
        assert spoken[0][1] == 0 and abs(spoken[-1][2] - seconds) < 2e-4, uid
        assert all(a[2] == b[1] for a, b in zip(spoken, spoken[1:])), uid
        frames = int(seconds * 22050) // 256
        durations = durations_of(spoken, known[text], frames, 256 / 22050, uid)
        assert durations.sum() == frames and (durations >= 0).all() and len(durations) == len(known[text])


def test_the_amharic_times_fit_the_sound():
    "Silence is silent and vowels are loud: the times are those of these waves."
    times, loud, silent = json.loads((PACKS / "am/times.json").read_text(encoding="utf8")), [], []
    for clip, _ in rows("am", "test"):
        wave, rate = soundfile.read(PACKS / "am" / clip)
        for phone, start, end in times[Path(clip).stem]:
            piece = wave[int(start * rate):int(end * rate)]
            if end - start <= 0.02:
                continue
            if set(phone) & set("aeiouəɨ"):
                loud.append(piece.std())
            elif not phone:
                silent.append(piece.std())
    assert np.median(loud) > 20 * np.median(silent) and len(silent) > 5
