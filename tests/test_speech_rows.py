"Folders of speech as people have them, and every way in which they are broken."
import numpy as np
import pytest
import soundfile as sf

from workbench.parts.clip_check import check_clip
from workbench.parts.speech_rows import read_source
from workbench.parts.wave import read_wave

AMHARIC = ["ሰላም ለዓለም", "አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት", "እንኳን ደህና መጡ", "አማርኛ በጌዕዝ ፊደል ይጻፋል", "ኢትዮጵያ በምስራቅ አፍሪካ የምትገኝ ሀገር ናት"]


def noise(path, seconds=2.0, rate=22050, gain=0.3, channels=1):
    "A sound like speech in its level and band."
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = gain * np.random.default_rng(0).normal(size=(int(seconds * rate), channels)).clip(-3, 3) / 3
    sf.write(path, wave, rate)
    return path


def reasons(folder):
    rows, rejected = read_source(folder)
    return [r.uid for r in rows], {r["row"]: r["reason"] for r in rejected}


def judged(path, text="Good morning."):
    wave, facts = read_wave(path, 22050)
    return check_clip(wave, 22050, facts, text)


def table(folder, *lines):
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf8")


def test_another_language_in_ljspeech_layout(tmp_path):
    for i, text in enumerate(AMHARIC):
        noise(tmp_path / f"wavs/am-{i}.wav", 0.5 + 0.15 * len(text), 16000)
    table(tmp_path, *(f"am-{i}|{t}|{t}" for i, t in enumerate(AMHARIC)))
    rows, rejected = read_source(tmp_path)
    assert [r.text for r in rows] == AMHARIC and not rejected
    assert all(r.seconds == pytest.approx(0.5 + 0.15 * len(r.text), abs=1e-3) for r in rows)
    assert all(judged(r.path, r.text) == "" for r in rows)


def test_broken_recordings(tmp_path):
    whole = noise(tmp_path / "wavs/whole.wav").read_bytes()
    for name, content in {"empty": b"", "text": b"not a sound", "cut": whole[:len(whole) // 2], "head": whole[:44]}.items():
        (tmp_path / f"wavs/{name}.wav").write_bytes(content)
    (tmp_path / "wavs/folder.wav").mkdir()
    table(tmp_path, *(f"{n}|Good morning." for n in ("whole", "empty", "text", "cut", "head", "folder")))
    used, why = reasons(tmp_path)
    assert used == ["whole"] and set(why) == {f"metadata.csv:{n}" for n in range(2, 7)}
    assert "empty" in why["metadata.csv:2"] and "cut off" in why["metadata.csv:4"]
    assert "text without audio" in why["metadata.csv:6"] and not any(str(tmp_path) in w for w in why.values())


def test_names_that_lead_out(tmp_path):
    noise(tmp_path / "outside.wav")
    home = tmp_path / "data"
    noise(home / "wavs/in.wav")
    table(home, "in|Good morning.", "../outside|Good morning.", f"{tmp_path}/outside.wav|Good morning.",
          "wavs/../../outside.wav|Good morning.", r"..\outside|Good morning.")
    used, why = reasons(home)
    assert used == ["in"] and len(why) == 4 and all("leads out" in w for w in why.values())


def test_texts_and_uids(tmp_path):
    for name in ("a", "b", "c"):
        noise(tmp_path / f"wavs/{name}.wav")
    table(tmp_path, "a|Good morning.", "wavs/a.wav|Good evening.", "b|", "b.wav| … ", "gone|Good night.")
    used, why = reasons(tmp_path)
    assert used == ["a"] and "twice, first in metadata.csv:1" in why["metadata.csv:2"]
    assert why["metadata.csv:3"] == why["metadata.csv:4"] == "empty text"
    assert "text without audio" in why["metadata.csv:5"] and why["wavs/c.wav"] == "audio without text"


def test_one_recording_in_two_splits(tmp_path):
    noise(tmp_path / "clips/a.ogg")
    noise(tmp_path / "clips/b.ogg")
    (tmp_path / "train.csv").write_text("clips/a.ogg|Good morning.\nclips/b.ogg|Good evening.\n")
    (tmp_path / "test.csv").write_text("clips/a.ogg|Good morning.\n")
    rows, rejected = read_source(tmp_path)
    assert [(r.uid, r.split) for r in rows] == [("a", "test"), ("b", "train")]
    assert [r["row"] for r in rejected] == ["train.csv:1"] and "twice" in rejected[0]["reason"]


def test_files_that_are_not_utf8(tmp_path):
    noise(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_bytes("café".encode("latin1"))
    assert "not UTF-8 at byte 3" in reasons(tmp_path)[1]["a.txt"]
    (tmp_path / "metadata.csv").write_bytes("a|café".encode("latin1"))
    with pytest.raises(ValueError, match="metadata.csv is not UTF-8 at byte 5"):
        read_source(tmp_path)


def test_folders_that_are_no_source(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        read_source(tmp_path / "gone")
    noise(tmp_path / "LJSpeech/wavs/a.wav")
    table(tmp_path / "LJSpeech", "a|Good morning.")
    with pytest.raises(ValueError, match="LJSpeech/metadata.csv: give that folder"):
        read_source(tmp_path)


@pytest.mark.parametrize("rate, channels", [(16000, 1), (44100, 2), (48000, 1)])
def test_rates_and_channels_that_are_mended(tmp_path, rate, channels):
    assert judged(noise(tmp_path / "x.wav", rate=rate, channels=channels)) == ""


def test_8_khz_as_it_is_and_in_disguise(tmp_path):
    import soxr

    narrow = noise(tmp_path / "x.wav", rate=8000)
    assert "nothing above 4 kHz: take the original" in judged(narrow)
    wave = sf.read(narrow)[0]
    sf.write(tmp_path / "raised.wav", soxr.resample(wave, 8000, 22050), 22050)
    assert "although the file says 22050 Hz" in judged(tmp_path / "raised.wav")


def test_silent_clipped_short_long(tmp_path):
    assert "silent" in judged(noise(tmp_path / "silent.wav", gain=1e-4))
    assert "clipped" in judged(noise(tmp_path / "loud.wav", gain=12))
    assert "0.10 s long" in judged(noise(tmp_path / "short.wav", 0.1))
    assert "cut it into sentences" in judged(noise(tmp_path / "long.wav", 40))


def test_forty_minutes_and_their_subtitles(tmp_path):
    "A long stereo recording of 44.1 kHz is never read whole: the rows come from its head, the sound in parts."
    path = tmp_path / "talk.flac"
    part = np.random.default_rng(0).normal(size=(44100 * 10, 2)).clip(-3, 3) / 10
    with sf.SoundFile(path, "w", 44100, 2) as file:
        for i in range(240):
            file.write(part if i in (0, 239) else 0 * part)

    def stamp(s):
        return f"{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d},000"

    cues = [f"{n}\n{stamp(s)} --> {stamp(s + 3)}\n<i>This is sentence number</i>\n{n}.\n" for n, s in enumerate(range(0, 2400, 5), 1)]
    (tmp_path / "talk.srt").write_text("\n".join([*cues, f"481\n{stamp(2399)} --> {stamp(2402)}\nToo late for this.\n"]))
    rows, rejected = read_source(tmp_path)
    assert len(rows) == 480 and rows[-1].text == "This is sentence number 480." and rows[-1].start == 2395.0
    assert [r["uid"] for r in rejected] == ["talk-0481"] and "recording at 2400.00 s" in rejected[0]["reason"]
    wave, facts = read_wave(rows[-1].path, 22050, rows[-1].start, rows[-1].end)
    assert len(wave) == 3 * 22050 and check_clip(wave, 22050, facts, rows[-1].text) == ""


def test_texts_that_belong_to_other_recordings(tmp_path):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 60)
    for i, n in enumerate(lengths):
        noise(tmp_path / f"{i}.wav", 0.3 + 0.35 * n, 16000)
        (tmp_path / f"{i}.txt").write_text("words " * n)
    used, why = reasons(tmp_path)
    assert len(used) == 60 and not why
    for i, j in enumerate(rng.permutation(60)):
        (tmp_path / f"{i}.txt").write_text("words " * lengths[j])
    used, why = reasons(tmp_path)
    assert len(why) > 15 and all("do not belong together" in w for w in why.values())
