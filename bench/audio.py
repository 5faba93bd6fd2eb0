"""What it costs to turn recordings into log-mels, beside librosa on the same files.

    python bench/audio.py [FOLDER]    # of sound files; without one the English speech samples of the package

Needs librosa, which nothing else here does: install it in an environment of its own. Two cases: the files
as they are, and the same as wav at 22,050 Hz (the LJSpeech layout's usual form, where nothing is decoded
and no rate changed). `clip to mel` is the whole way: read, mono, 22,050 Hz, ends trimmed, log-mel; the
workbench's side also levels, hashes the files, adds up statistics and writes its cache to the disk. `mel
only` starts from waves in memory. Rounds are interleaved; a ratio within a round is worth more than a
second.
"""
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
home = Path(__file__).parents[1]
sys.path.insert(0, str(home))

import librosa
import numpy as np
import torch

from workbench.parts.speech.mel_cache import Clip, features
from workbench.parts.speech.mel import Mel, log_mels
from workbench.parts.speech.wave import read_wave, write_wave

mel = Mel()


def mel_by_librosa(wave):
    "The same log-mel, as a user of librosa writes it."
    padded = np.pad(wave, (mel.pad, mel.pad), mode="reflect")
    found = librosa.feature.melspectrogram(y=padded, sr=mel.rate, n_fft=mel.n_fft, hop_length=mel.hop,
                                           win_length=mel.win, center=False,
                                           power=1.0, n_mels=mel.bands, fmin=mel.fmin, fmax=mel.fmax)
    return np.log(np.maximum(found, mel.floor))


def by_librosa(paths):
    for path in paths:
        wave, _ = librosa.load(path, sr=mel.rate, mono=True)
        mel_by_librosa(librosa.effects.trim(wave, top_db=40)[0])


def ours(paths):
    with tempfile.TemporaryDirectory() as cache:
        found = features([Clip(str(i), path) for i, path in enumerate(paths)], cache)
    assert len(found) > 0.9 * len(paths), found.rejected[:5]


def waves_ours(waves):
    for i in range(0, len(waves), 32):
        log_mels([torch.from_numpy(wave) for wave in waves[i:i + 32]], mel)


def waves_librosa(waves):
    for wave in waves:
        mel_by_librosa(wave)


def waves_librosa_bank(waves):
    bank = librosa.filters.mel(sr=mel.rate, n_fft=mel.n_fft, n_mels=mel.bands, fmin=mel.fmin, fmax=mel.fmax)
    for wave in waves:
        padded = np.pad(wave, (mel.pad, mel.pad), mode="reflect")
        spectra = librosa.stft(padded, n_fft=mel.n_fft, hop_length=mel.hop, win_length=mel.win, center=False)
        np.log(np.maximum(bank @ np.abs(spectra), mel.floor))


def timed(work, items):
    began = time.perf_counter()
    work(items)
    return time.perf_counter() - began


def compare(case, seconds, items, mine, theirs, rounds=3):
    "Median times of interleaved rounds and the median of their ratios."
    mine(items[:8]), theirs(items[:8])
    pairs = [(timed(mine, items), timed(theirs, items)) for _ in range(rounds)]
    a, b = (statistics.median(side) for side in zip(*pairs))
    ratios = sorted(y / x for x, y in pairs)
    print(f"| {case} | {b:.2f} s | {a:.2f} s | {seconds / a:,.0f} | {statistics.median(ratios):.1f} "
          f"({ratios[0]:.1f} to {ratios[-1]:.1f}) |",
          flush=True)


if __name__ == "__main__" and "__file__" in globals():
    folder = (Path(sys.argv[1]) if len(sys.argv) > 1
              else home / "workbench" / "samples" / "tts" / "en" / "clips")
    paths = sorted(path
                   for path in folder.rglob("*") if path.suffix in (".wav", ".flac", ".ogg", ".opus", ".mp3"))
    waves = [read_wave(path, mel.rate)[0] for path in paths]
    waves = [wave for wave in waves if len(wave) > mel.pad]
    seconds = sum(map(len, waves)) / mel.rate
    worst = max(float(np.abs(mel_by_librosa(wave)
                             - log_mels([torch.from_numpy(wave)], mel)[0].numpy().T).max())
                             for wave in waves[:20])
    print(f"{len(paths)} files, {seconds / 60:.1f} min, torch {torch.__version__} with "
          f"{torch.get_num_threads()} threads, librosa {librosa.__version__}; largest difference of a "
          f"log-mel {worst:.1e}\n")
    print("| case | librosa | workbench | seconds of sound a second | times as fast "
          "|\n|---|---:|---:|---:|---:|")
    compare(f"clip to mel, {paths[0].suffix[1:]} as it is", seconds, paths, ours, by_librosa)
    with tempfile.TemporaryDirectory() as plain:
        wavs = [write_wave(Path(plain) / f"{i}.wav", wave, mel.rate) for i, wave in enumerate(waves)]
        compare("clip to mel, wav at 22,050 Hz", seconds, wavs, ours, by_librosa)
    compare("mel only", seconds, waves, waves_ours, waves_librosa)
    compare("mel only, librosa's filter bank made once by hand", seconds, waves, waves_ours,
            waves_librosa_bank)
