"A folder with a voice of another language as its owner has it, in LJSpeech's layout, whole or spoilt."
import os
import shutil
from pathlib import Path

import numpy as np
import soundfile

import workbench
from workbench.parts.wave import read_wave

PACK = Path(workbench.__file__).parent / "samples/tts/am"
RATE = 22050


def rows(split="train"):
    "(uid, text) of the Amharic samples."
    lines = (PACK / f"{split}.csv").read_text(encoding="utf8").splitlines()
    return [(Path(clip).stem, text) for clip, text in (line.split("|") for line in lines)]


def write_table(home, lines, name="metadata.csv"):
    (home / name).write_text("\n".join("|".join(line) for line in lines) + "\n", encoding="utf8")


def good_folder(home, first=0, count=40):
    "metadata.csv, and beside it wavs in stereo at 22,050 Hz; the phones of the texts and their times. Returns the folder."
    (home / "wavs").mkdir(parents=True)
    mine = rows()[first:first + count]
    for name in ("phones.json", "times.json"):
        shutil.copy(PACK / name, home)
    for uid, _ in mine:
        wave, _ = read_wave(PACK / f"clips/{uid}.ogg", RATE)
        soundfile.write(home / f"wavs/{uid}.wav", np.stack([wave, 0.8 * wave], 1), RATE, "PCM_16")
    write_table(home, mine)
    return home


def of_two_speakers(good, home):
    "The same recordings under a table with a header that gives them to two speakers."
    home.mkdir()
    for name in ("wavs", "phones.json", "times.json"):
        (home / name).symlink_to(good / name)
    lines = [line.split("|") for line in (good / "metadata.csv").read_text(encoding="utf8").splitlines()]
    write_table(home, [("file", "text", "speaker"), *((u, t, "ab"[i % 2]) for i, (u, t) in enumerate(lines))])
    return home


def spoil(home):
    "Clips that nobody can learn from. Returns {uid: what is said of it}."
    more = rows()[-8:]
    for (uid, text), rate in zip(more, [8000, 8000] + 6 * [RATE]):
        wave, _ = read_wave(PACK / f"clips/{uid}.ogg", rate)
        soundfile.write(home / f"wavs/{uid}.wav", wave, rate, "PCM_16")
    low, low2, cut, text_gone, mute, long, noise, clipped = (uid for uid, _ in more)
    place = lambda uid: home / f"wavs/{uid}.wav"
    os.truncate(place(cut), place(cut).stat().st_size // 2)
    soundfile.write(place(mute), np.zeros(RATE), RATE, "PCM_16")
    place(noise).write_bytes(b"no sound at all")
    soundfile.write(place(clipped), np.clip(20 * soundfile.read(place(clipped))[0], -1, 1), RATE, "PCM_16")
    soundfile.write(place(long), np.zeros(40 * 60 * 8000, np.int16), 8000, "PCM_U8")  # forty minutes
    shutil.copy(place(low), home / "wavs/nobody_wrote_this.wav")
    lines = [(u, "" if u == text_gone else t) for u, t in more]
    old = (home / "metadata.csv").read_text(encoding="utf8").splitlines()
    write_table(home, [*(line.split("|") for line in old), *lines, ("not_there", "ሰላም ለዓለም"), ("../outside", "ሰላም"), rows()[3]])
    return {low: "nothing above 4 kHz", low2: "nothing above 4 kHz", cut: "cut off", text_gone: "empty text", mute: "silent",
            long: "2400.00 s", noise: "not a sound file", clipped: "clipped: ", "nobody_wrote_this": "audio without text",
            "not_there": "text without audio", "../outside": "leads out of the folder", rows()[3][0]: "stands twice"}
