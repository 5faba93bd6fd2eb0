"""A trained voice speaks: the command, the file that grows, the players, and what is refused before a sound
is made."""
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import workbench
from workbench.core.config import presets
from workbench.errors import Refused
from workbench.files import write_text
from workbench.lab import say
from workbench.lab.cli import main
from workbench.parts.speech.wave import read_wave, write_wave
from workbench.tasks.tts.rows import home_of

SMALL = ("model.width=32 model.layers=1 model.hidden=64 model.prenet=1 model.decoder.width=32 "
         "model.decoder.blocks=1 train.max_steps=2 train.log_every=1 valid.every=null valid.final=[] "
         "data.text.kind=characters trackers=[] check=false")
TEXT = "Good morning. Please hold on. Thank them."


def folder_of(home, speakers=("",), rows=24):
    "A small folder of real recordings, LJSpeech's layout."
    pack = home_of(presets.load("tts_tiny").data)
    lines = sorted((pack / "train.csv").read_text(encoding="utf8").splitlines(), key=len)[40:40 + rows]
    (home / "wavs").mkdir(parents=True)
    table = ["file|text|speaker"]
    for i, line in enumerate(lines):
        file, text = line.split("|")
        shutil.copy(pack / file, home / "wavs")
        table.append(f"wavs/{Path(file).name}|{text}|{speakers[i % len(speakers)]}")
    (home / "metadata.csv").write_text("\n".join(table), encoding="utf8")
    return home


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "Two steps of a voice of two speakers."
    home = tmp_path_factory.mktemp("voice")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(home / "runs"))
        source = folder_of(home / "mine", ("Ann", "Ben"))
        return workbench.train("tts_tiny", f"{SMALL} data.source={source}", run_dir=home / "run")


@pytest.fixture(scope="module")
def voice(run, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(run.parent / "runs"))
        return say.voice_of(run, "last")


def test_the_command_speaks_into_a_file(run, tmp_path, capsys):
    out = tmp_path / "out.wav"
    assert main(["say", str(run), TEXT, "--out", str(out), "--checkpoint", "last"]) == 0
    *lines, whole = capsys.readouterr().out.splitlines()
    assert [line.split("   ")[-1] for line in lines] == ["Good morning.", "Please hold on.", "Thank them."]
    assert all("s made in" in line and "real-time factor" in line
               for line in [*lines, whole]) and str(out) in whole
    wave, facts = read_wave(out)
    seconds = [float(line.split(" s ")[0]) for line in lines]
    assert (facts["rate"] == 22050 and facts["channels"] == 1 and np.isfinite(wave).all()
            and np.abs(wave).max() > 1e-3)
    assert abs(facts["seconds"] - sum(seconds) - 2 * 0.2) < 0.03  # a pause between sentences
    assert abs(float(whole.split(" s ")[0]) - sum(seconds)) < 0.03


def test_the_file_is_whole_after_every_sentence(voice, tmp_path, monkeypatch):
    made, lengths = list(say.spoken(voice, TEXT)), []
    monkeypatch.setattr("builtins.print", lambda *line,
                        flush: lengths.append(len(read_wave(tmp_path / "out.wav", None)[0])))
    say.say(voice, TEXT, tmp_path / "out.wav")
    ends = np.cumsum([len(s.wave) for s in made]) + 4410 * np.arange(3)
    assert lengths == [*ends, ends[-1]]


def test_what_is_made_does_not_wait_for_what_follows(voice, monkeypatch):
    "The first sentence comes out when one spectrogram has been made, not three."
    from workbench.tasks.tts import synthesis as tts_voice

    count, held = [], tts_voice.sing
    monkeypatch.setattr(tts_voice, "sing", lambda *a, **k: count.append(1) or held(*a, **k))
    speech = say.spoken(voice, TEXT)
    assert next(speech).text == "Good morning." and len(count) == 1
    assert len(list(speech)) == 2 and len(count) == 3


def test_the_same_from_a_run_from_nets_and_in_a_cell(run, voice):
    import soundfile

    first = next(say.spoken(run, TEXT, checkpoint="last"))
    again = next(say.spoken((voice.nets, voice.data), TEXT))
    player = next(say.hear(run, TEXT, checkpoint="last"))
    heard, rate = soundfile.read(io.BytesIO(player.data), dtype="float32")
    assert np.array_equal(first.wave, again.wave) and rate == first.rate == 22050
    assert len(heard) == len(first.wave) and np.abs(heard - first.wave).max() < 1e-3  # 16 bits


def test_pace_and_speaker(voice):
    lasts = lambda **how: sum(s.seconds for s in say.spoken(voice, TEXT, **how))
    assert 1.7 < lasts() / lasts(speed=2.0) < 2.3 and 0.4 < lasts() / lasts(speed=0.5) < 0.6
    ann, ben = (next(say.spoken(voice, TEXT, speaker=who)).wave for who in ("Ann", "Ben"))
    assert ann.shape != ben.shape or not np.allclose(ann, ben)


def test_the_first_sentence_begins_the_file_anew(voice, tmp_path):
    out = tmp_path / "out.wav"
    write_wave(out, np.ones(100000) * 0.5, 8000)
    say.say(voice, "Good morning.", out)
    assert len(read_wave(out, None)[0]) == len(next(say.spoken(voice, "Good morning.")).wave)


def other_hifigan(folder):
    "A vocoder for recordings of 16 kHz."
    folder.mkdir()
    config = {"sampling_rate": 16000, "hop_size": 256, "upsample_rates": [8, 8, 2, 2],
              "upsample_kernel_sizes": [16, 16, 4, 4],
              "upsample_initial_channel": 32, "resblock_kernel_sizes": [3],
              "resblock_dilation_sizes": [[1, 3, 5]]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("text, how, words", [
    ("ሰላም ለዓለም", [], "the voice has no symbol for"),
    ("Good morning. Ü?", [], "the voice has no symbol for"),  # the second sentence: nothing is begun
    ("   ", [], "nothing to say"),
    ("...", [], "nothing to say"),
    (TEXT, ["--speaker", "Cleo"], "there is no speaker `Cleo`: Ann, Ben"),
    (TEXT, ["--vocoder", "wavenet"], "vocoder 'wavenet'"),
    (TEXT, ["--vocoder", "hifigan:HIFIGAN"], "sampling_rate 16000 where ours has 22050"),
    (TEXT, ["--speed", "0"], "speed is 0"),
    (TEXT, ["--checkpoint", "step_9"], "no checkpoint"),
])
def test_what_cannot_be_said_is_one_sentence_and_no_file(text, how, words, run, tmp_path, capsys):
    hifigan = other_hifigan(tmp_path / "hifigan")
    how = [h.replace("HIFIGAN", str(hifigan)) for h in how]
    out = tmp_path / "out.wav"
    assert main(["say", str(run), text, "--out",
                 str(out), *([] if "--checkpoint" in how else ["--checkpoint", "last"]), *how]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("workbench: ") == 1 and "Traceback" not in said.err
    assert not out.exists() and not said.out


@pytest.mark.parametrize("name", ["out.mp3", "none/out.wav", "out"])
def test_a_file_that_cannot_be_written_is_refused(name, voice, tmp_path):
    with pytest.raises(Refused, match="cannot be written"):
        say.say(voice, TEXT, tmp_path / name)


def test_a_run_of_another_task_cannot_speak(tmp_path, capsys):
    run = tmp_path / "gan"
    run.mkdir()
    write_text(run / "config.yaml", "task: gan\ntrain: {epochs: 2}\nvalid: {metric: accepted, mode: max}\n")
    assert main(["say", str(run), "Hello."]) == 2 and "is a run of the task `gan`" in capsys.readouterr().err
    assert main(["say", str(tmp_path / "none"),
                 "Hello."]) == 2 and "not a run folder" in capsys.readouterr().err
    with pytest.raises(Refused, match="not those of a run of text to speech"):
        say.voice_of(({}, type("Data", (), {"own": None})()))
