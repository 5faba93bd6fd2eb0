"""A folder with a voice of another language as its owner has it, in LJSpeech's layout, whole or spoilt; and
small nets that learn it."""
import os
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import workbench
from workbench.core.config import presets
from workbench.errors import Refused
from workbench.parts.speech.wave import read_wave
from workbench.tasks.tts import task as tts

PACK = Path(workbench.__file__).parent / "samples/tts/am"
RATE = 22050


def rows(split="train"):
    "(uid, text) of the Amharic samples."
    lines = (PACK / f"{split}.csv").read_text(encoding="utf8").splitlines()
    return [(Path(clip).stem, text) for clip, text in (line.split("|") for line in lines)]


def write_table(home, lines, name="metadata.csv"):
    (home / name).write_text("\n".join("|".join(line) for line in lines) + "\n", encoding="utf8")


def good_folder(home, first=0, count=40):
    """metadata.csv, and beside it wavs in stereo at 22,050 Hz; the phones of the texts and their times.
    Returns the folder."""
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
    write_table(home, [*(line.split("|") for line in old), *lines, ("not_there", "ሰላም ለዓለም"),
                       ("../outside", "ሰላም"), rows()[3]])
    return {low: "nothing above 4 kHz", low2: "nothing above 4 kHz", cut: "cut off", text_gone: "empty text",
            mute: "silent",
            long: "2400.00 s", noise: "not a sound file", clipped: "clipped: ",
            "nobody_wrote_this": "audio without text",
            "not_there": "text without audio", "../outside": "leads out of the folder",
            rows()[3][0]: "stands twice"}


SMALL = {"trackers": [], "check": False, "data": {"text": {"kind": "characters", "language": "am"}},
         "model": {"width": 32, "layers": 1, "hidden": 64, "prenet": 1,
                   "decoder": {"width": 32, "blocks": 1, "together": 2}},
         "train": {"max_steps": 4, "batch_size": 6, "lr": 1e-3, "log_every": 1, "checkpoint_every": 2,
                   "scheduler": {"warmup": 1}},
         "valid": {"every": 4, "rows": 4, "batch_size": 2}, "speak": {"f0": False}}
MELODY = "model.pitch=true model.energy=true"
FLOW = f"model.decoder.kind=flow speak.steps=2 {MELODY}"
# beside data.times: the folder has phones.json and times.json
TIMES = "data.text.kind=phones data.text.voice=am"


def config(home, overrides="", **more):
    small = presets.merge(SMALL, {"data": {"source": str(home)}})
    return presets.load("tts_tiny",
                        presets.merge(presets.merge(small, more), presets.parse_overrides(overrides)))


def data_of(cfg, assets=None):
    return tts.task.data(cfg, types.SimpleNamespace(assets=assets))


def refusal(cfg):
    "The message with which data or nets are refused: a sentence."
    with pytest.raises(Refused) as caught:
        tts.task.nets(cfg, data_of(cfg), True)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


def lively(cfg):
    "Nets whose outputs, which begin at zero, say something; and the data."
    d = data_of(cfg)
    nets = tts.task.nets(cfg, d, True)
    torch.manual_seed(1)
    for p in (p for net in nets.values() for p in net.parameters()):
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return nets, d


def batch_of(d, rows=range(6), split="train"):
    return d.collate([d.datasets[split][i, 0] for i in rows])


def with_times(home, overrides=""):
    return config(home, f"{TIMES} data.times={home}/times.json {overrides}")
