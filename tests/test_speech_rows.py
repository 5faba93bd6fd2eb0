"Folders of speech as people have them, and every way in which they are broken."
import os

import numpy as np
import pytest
import soundfile as sf

from workbench.errors import Refused
from workbench.parts.speech.clip_check import check_clip, check_sound
from workbench.parts.speech.rows import read_source
from workbench.parts.speech.wave import read_wave

AMHARIC = ["ሰላም ለዓለም", "አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት", "እንኳን ደህና መጡ",
           "አማርኛ በጌዕዝ ፊደል ይጻፋል", "ኢትዮጵያ በምስራቅ አፍሪካ የምትገኝ ሀገር ናት"]


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
    return check_sound(wave, 22050, facts) or check_clip(wave, 22050, facts, text)


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
    broken = {"empty": b"", "text": b"not a sound", "cut": whole[:len(whole) // 2], "head": whole[:44]}
    for name, content in broken.items():
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
    with pytest.raises(Refused, match="metadata.csv is not UTF-8 at byte 5"):
        read_source(tmp_path)


def test_folders_that_are_no_source(tmp_path):
    with pytest.raises(Refused, match="no such folder"):
        read_source(tmp_path / "gone")
    noise(tmp_path / "LJSpeech/wavs/a.wav")
    table(tmp_path / "LJSpeech", "a|Good morning.")
    with pytest.raises(Refused, match="LJSpeech/metadata.csv: give that folder"):
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
    """A long stereo recording of 44.1 kHz is never read whole: the rows come from its head, the sound in
    parts."""
    path = tmp_path / "talk.flac"
    part = np.random.default_rng(0).normal(size=(44100 * 10, 2)).clip(-3, 3) / 10
    with sf.SoundFile(path, "w", 44100, 2) as file:
        for i in range(240):
            file.write(part if i in (0, 239) else 0 * part)

    def stamp(s):
        return f"{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d},000"

    cues = [f"{n}\n{stamp(s)} --> {stamp(s + 3)}\n<i>This is sentence number</i>\n{n}.\n"
            for n, s in enumerate(range(0, 2400, 5), 1)]
    cues += [f"481\n{stamp(2399)} --> {stamp(2402)}\nToo late for this.\n"]
    (tmp_path / "talk.srt").write_text("\n".join(cues))
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


# Tables in the layouts that people have

SAID = ["The boat left the harbour at noon", "She counted every coin twice",
        "Rain fell on the roof all night", "He forgot the name of the street",
        "Our train stops at a small village", "The baker opens before the sun is up",
        "Nobody heard the bell in the tower", "A letter came from her brother",
        "They planted beans along the fence", "The old clock in the hall is slow",
        "Bring the ladder to the yard", "We walked home by the river"]
LONG = ["Anna Maria von Hohenfels", "Benjamin of the Old Mill"]


def voices(folder, columns, name="metadata.csv", sign="|", head="", end="\n", texts=SAID,
           path="wavs/c{}.wav"):
    "Recordings and their table; a column is `path`, `text`, or a function of a row's number and text."
    for i, text in enumerate(texts):
        noise(folder / f"wavs/c{i}.wav", 0.5 + 0.07 * len(text), 16000)
    cells = [[path.format(i) if c == "path" else text if c == "text" else c(i, text) for c in columns]
             for i, text in enumerate(texts)]
    (folder / name).write_text(head + end.join(sign.join(line) for line in cells) + end, encoding="utf8",
                               newline="")
    return folder


LAYOUTS = {
    "path|text|speaker": (["path", "text", lambda i, t: str(i % 2)], {}, 2, "path, text, speaker (2)"),
    "path|speaker|text": (["path", lambda i, t: f"p{i % 2}", "text"], {}, 2, "path, speaker (2), text"),
    "long names": (["path", lambda i, t: LONG[i % 2], "text"], {}, 2, "path, speaker (2), text"),
    "many speakers": (["path", lambda i, t: f"spk_{i % 10}", "text"], {}, 10, "path, speaker (10), text"),
    "seconds": (["path", "text", lambda i, t: f"{0.5 + 0.07 * len(t):.2f}".replace(".", ",")], {}, 1,
                "path, text, seconds"),
    "milliseconds": (["path", "text", lambda i, t: str(int(500 + 70 * len(t)))], {}, 1,
                     "path, text, seconds"),
    "normalised": (["path", lambda i, t: t.replace("every", "12"), "text"], {}, 1,
                   "path, text, normalised text"),
    "normalised alike": (["path", "text", "text"], {"path": "c{}"}, 1, "path, text, normalised text"),
    "language": (["path", "text", lambda i, t: LONG[i % 2], lambda i, t: "en"], {}, 2,
                 "path, text, speaker (2), language (1: en)"),
    "language in capitals": (["path", lambda i, t: ("EN", "deu")[i % 2], "text"], {}, 1,
                             "path, language (2: EN, deu), text"),
    "counted": ([lambda i, t: str(i + 1), "path", "text"], {}, 1, "path, text"),
    "a prompt": (["path", "text", lambda i, t: "wavs/c0.wav"], {"path": "c{}"}, 1, "path, text"),
    "other files": (["path", lambda i, t: f"pitch/c{i}.npy", "text", lambda i, t: f"mel-{i}.pt"], {}, 1,
                    "path, text"),
    "size in a header": (["path", lambda i, t: str(7 * i), "text"],
                         {"head": "wav_filename|wav_filesize|transcript\n"}, 1, "path, text"),
    "language first": (["path", lambda i, t: "en", "text"], {}, 1, "path, language (1: en), text"),
    "text first": (["text", "path"], {"path": "wavs\\c{}.WAV"}, 1, "text, path"),
    "third column empty": (["path", "text", lambda i, t: ""], {"end": "\r\n\r\n", "head": "\ufeff"}, 1,
                           "path, text"),
    "header in any case": ([lambda i, t: str(i % 3), "path", "text", lambda i, t: "sad"],
                           {"head": "Speaker_ID|Audio File|TEXT|mood\n"}, 3, "speaker (3), path, text"),
    "tsv": (["path", "text"], {"sign": "\t", "head": "\ufeffpath\tsentence\r\n", "end": "\r\n",
                               "name": "train.tsv"}, 1, "path, text"),
    "csv": ([lambda i, t: f'"{t}, he said"', "path"], {"sign": ",", "head": '"transcription","file_name"\n'},
            1, "text, path"),
    "digits with a header": (["path", lambda i, t: str(5550100 + i)], {"head": "path|text\n"}, 1,
                             "path, text"),
    "inside, from the root": (["path", "text"], {"path": "{root}/wavs/c{}.wav"}, 1, "path, text")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_are_known_by_their_content(layout, tmp_path):
    columns, how, speakers, said = LAYOUTS[layout]
    how = how | {"path": how["path"].replace("{root}", str(tmp_path))} if "path" in how else how
    told = []
    rows, rejected = read_source(voices(tmp_path, columns, **how), told.append)
    assert not rejected and len(rows) == len(SAID) and told == [said]
    assert len({r.speaker for r in rows}) == speakers
    assert layout[:6] == "digits" or min(len(r.text.split()) for r in rows) > 4


@pytest.mark.parametrize("columns, mend", [
    (["path", lambda i, t: str(i % 2)], "path|text"),
    (["path", lambda i, t: ("yes", "no")[i % 2]], "path|text"),
    (["path", "text", lambda i, t: str(7 * i)], "path|text|speaker"),
    (["path", lambda i, t: SAID[-i], "text"], "path|text|speaker"),
    (["path", "text", lambda i, t: f"p{i % 3}", lambda i, t: ("sad", "glad")[i % 2]],
     "path|text|speaker|other")])
def test_columns_that_could_be_two_things_are_refused_with_the_line_to_write(columns, mend, tmp_path):
    table = voices(tmp_path, columns) / "metadata.csv"
    with pytest.raises(Refused) as caught:
        read_source(tmp_path)
    assert f"write a first line with the names, for example `{mend}`" in str(caught.value)
    assert "metadata.csv" in str(caught.value)
    table.write_text(mend + "\n" + table.read_text())
    assert sum(map(len, read_source(tmp_path))) == len(SAID)  # pace may leave out some


def test_one_clip_and_small_held_out_tables(tmp_path):
    voices(tmp_path / "one", ["path", "text", lambda i, t: "0"], texts=SAID[:1])
    assert [r.text for r in read_source(tmp_path / "one")[0]] == SAID[:1]
    voices(tmp_path / "two", ["path", lambda i, t: LONG[i % 2], "text"], "train.csv")
    lines = (tmp_path / "two/train.csv").read_text().splitlines()
    (tmp_path / "two/train.csv").write_text("\n".join(lines[2:]))
    (tmp_path / "two/valid.csv").write_text("\n".join(lines[:2]))
    rows, _ = read_source(tmp_path / "two")
    assert {(r.text, r.speaker) for r in rows if r.split == "valid"} == set(zip(SAID[:2], LONG))


def test_names_meet_across_folders_and_unicode_forms(tmp_path):
    for who in ("p1", "p2"):
        for i in range(2):
            noise(tmp_path / f"wav48/{who}/{who}_{i}.wav")
            (tmp_path / f"lab/{who}").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"lab/{who}/{who}_{i}.lab").write_text("Good morning.")
    rows, rejected = read_source(tmp_path)
    assert not rejected
    assert {(r.uid, r.speaker) for r in rows} == {
        (f"wav48/{w}/{w}_{i}", w) for w in ("p1", "p2") for i in range(2)}
    table(tmp_path, *(f"{w}_{i}|Good morning." for w in ("p1", "p2") for i in range(2)))
    assert {r.speaker for r in read_source(tmp_path)[0]} == {"p1", "p2"}
    home = tmp_path / "again"
    for name in ("p1/7.wav", "p2/7.wav", "cafe\u0301.wav"):
        noise(home / name)
    os.mkfifo(home / "pipe.wav")
    table(home, "7|Good morning.", "caf\u00e9.wav|Good evening.", "D:\\old\\p1\\7.wav|Good night.")
    rows, rejected = read_source(home)
    why = {r["row"]: r["reason"] for r in rejected}
    assert [r.text for r in rows] == ["Good evening."] and "may be p1/7 or p2/7" in why["metadata.csv:1"]
    assert why["metadata.csv:3"].endswith("write it relative to the folder, p1/7.wav")


def test_an_mp3_without_a_count_of_its_frames_is_read_whole(tmp_path):
    from workbench.parts.speech.mp3 import frame_starts

    wave = np.random.default_rng(0).normal(size=16000 * 6) * np.repeat([0.1, 1e-4, 0.1], 32000)
    for name in ("a", "b"):
        with sf.SoundFile(tmp_path / f"{name}.mp3", "w", 16000, 1, bitrate_mode="VARIABLE",
                          compression_level=0.3) as file:
            file.write(wave)
        (tmp_path / f"{name}.txt").write_text("Good morning to all of you.")
    data = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(data[frame_starts(data)[1]:])
    assert sf.info(tmp_path / "a.mp3").frames < 0.7 * len(wave)
    rows, rejected = read_source(tmp_path)
    assert not rejected and all(abs(r.seconds - 6) < 0.15 for r in rows)
    sound, facts = read_wave(rows[0].path, 16000)
    assert facts["seconds"] == pytest.approx(6, abs=0.15) and sound[-16000:].std() > 0.05


def test_lists_with_bars_under_other_names(tmp_path):
    voices(tmp_path, ["path", "text", lambda i, t: f"p{i % 2}"], "train_list.txt")
    lines = (tmp_path / "train_list.txt").read_text().splitlines()
    (tmp_path / "OOD_texts.txt").write_text("A text of nobody|x\nAnother of nobody|y\n")
    (tmp_path / "train_list.txt").write_text("\n".join(lines[2:]))
    (tmp_path / "val_list.txt").write_text("\n".join(lines[:2]))
    rows, rejected = read_source(tmp_path)
    assert not rejected and sorted(r.text for r in rows) == sorted(SAID)
    assert [r.split for r in rows] == ["valid"] * 2 + ["train"] * 10
    (tmp_path / "train.2.txt").write_text("\n".join(lines))
    with pytest.raises(Refused, match="train.2.txt and train_list.txt are both for `train`"):
        read_source(tmp_path)
    assert len(read_source(voices(tmp_path / "one", ["path", "text"], "transcripts.txt"))[0]) == len(SAID)
    (tmp_path / "one/SPEAKERS.txt").write_text("ID|SEX\n19|F\n")
    assert len(read_source(tmp_path / "one")[0]) == len(SAID)
    deep = voices(tmp_path / "three/by/one", ["path", "text"])
    with pytest.raises(Refused, match="by/one/metadata.csv: give that folder"):
        read_source(deep.parents[1])


def test_two_microphones_and_two_forms_of_a_text(tmp_path):
    for i in range(4):
        for mic in (1, 2):
            noise(tmp_path / f"a/wav48/p{i % 2}/p{i % 2}_{i}_mic{mic}.flac")
        (tmp_path / f"a/txt/p{i % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"a/txt/p{i % 2}/p{i % 2}_{i}.txt").write_text("Good morning.")
        noise(tmp_path / f"b/{i % 2}/{i}_0.wav")
        (tmp_path / f"b/{i % 2}/{i}_0.original.txt").write_text("At 9, Mr. X")
        (tmp_path / f"b/{i % 2}/{i}_0.normalized.txt").write_text("At nine, Mister X")
    rows, rejected = read_source(tmp_path / "a")
    assert not rejected and len(rows) == 4 and all(r.path.stem.endswith("_mic1") for r in rows)
    assert {r.speaker for r in rows} == {"p0", "p1"}
    rows, rejected = read_source(tmp_path / "b")
    assert not rejected and [r.text for r in rows] == ["At nine, Mister X"] * 4
    assert {r.speaker for r in rows} == {"0", "1"}
