"""A trained voice speaks: the command, the file that grows, the players, and what is refused before a sound
is made."""
import base64
import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import workbench
from workbench.core.config import presets
from workbench.errors import Refused
from workbench.files import write_text
from workbench.lab import answers
from workbench.lab.cli import main
from workbench.lab.use import open_run, use
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
        return open_run(run, "last")


def test_the_command_speaks_into_a_file(run, tmp_path, capsys):
    out = tmp_path / "out.wav"
    assert main(["say", str(run), TEXT, "--out", str(out), "--checkpoint", "last"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("   ")[-2] for line in lines] == ["Good morning.", "Please hold on.", "Thank them."]
    assert all("s made in" in line and "real-time factor" in line and str(out) in line for line in lines)
    wave, facts = read_wave(out)
    seconds = [float(line.split(" s ")[0]) for line in lines]
    assert (facts["rate"] == 22050 and facts["channels"] == 1 and np.isfinite(wave).all()
            and np.abs(wave).max() > 1e-3)
    assert abs(facts["seconds"] - sum(seconds) - 2 * 0.2) < 0.03  # a pause between sentences


def test_the_file_is_whole_after_every_sentence(voice, tmp_path, monkeypatch):
    made, lengths = list(use(voice, TEXT)), []
    monkeypatch.setattr("builtins.print", lambda *line, **how: lengths.append(
        len(read_wave(tmp_path / "out.wav", None)[0])))
    assert answers.write(use(voice, TEXT), tmp_path / "out.wav") == 0
    assert lengths == [*(np.cumsum([len(s.made.wave) for s in made]) + 4410 * np.arange(3))]


def test_what_is_made_does_not_wait_for_what_follows(voice, monkeypatch):
    "The first sentence comes out when one spectrogram has been made, not three."
    from workbench.tasks.tts import use as tts_use

    count, held = [], tts_use.sing
    monkeypatch.setattr(tts_use, "sing", lambda *a, **k: count.append(1) or held(*a, **k))
    speech = use(voice, TEXT)
    assert next(speech).says == "Good morning." and len(count) == 1
    assert len(list(speech)) == 2 and len(count) == 3


def test_the_same_from_a_run_from_nets_and_in_a_cell(run, voice):
    import soundfile

    from workbench.tasks.tts.synthesis import synthesise

    first = next(use(run, TEXT, checkpoint="last"))
    again = next(synthesise(voice.nets, voice.data, TEXT))
    cell = next(workbench.use(run, TEXT, checkpoint="last"))._repr_html_()
    player = base64.b64decode(re.search("base64,([^\"]*)", cell)[1])
    heard, rate = soundfile.read(io.BytesIO(player), dtype="float32")
    assert np.array_equal(first.made.wave, again) and rate == first.made.rate == 22050
    assert len(heard) == len(again) and np.abs(heard - again).max() < 1e-3  # 16 bits


def test_pace_and_speaker(voice):
    lasts = lambda **how: sum(s.made.seconds for s in use(voice, TEXT, overrides={"speak": how}))
    assert 1.7 < lasts() / lasts(speed=2.0) < 2.3 and 0.4 < lasts() / lasts(speed=0.5) < 0.6
    ann, ben = (next(use(voice, TEXT, overrides=f"speak.speaker={who}")).made.wave for who in ("Ann", "Ben"))
    assert ann.shape != ben.shape or not np.allclose(ann, ben)


def test_the_first_sentence_begins_the_file_anew(voice, tmp_path):
    out = tmp_path / "out.wav"
    write_wave(out, np.ones(100000) * 0.5, 8000)
    answers.write(use(voice, "Good morning."), out)
    assert len(read_wave(out, None)[0]) == len(next(use(voice, "Good morning.")).made.wave)


def test_many_texts_are_many_files_and_a_table(run, tmp_path, capsys):
    "A text that cannot be spoken is named, and the others go on."
    (tmp_path / "texts.txt").write_text("Good morning. Thank them.\n\nሰላም\nPlease hold on.\n",
                                        encoding="utf8")
    assert main(["use", str(run), str(tmp_path / "texts.txt"), "--out", str(tmp_path / "speech"),
                 "--checkpoint", "last", "--overrides", "speak.speed=1.5"]) == 2
    said = capsys.readouterr()
    assert "workbench: ሰላም: the voice has no symbol for" in said.err and said.err.count("workbench: ") == 1
    assert len(said.out.splitlines()) == 3
    names = ["0001-good-morning-thank-them.wav", "0003-please-hold-on.wav"]
    assert sorted(p.name for p in (tmp_path / "speech").glob("*.wav")) == names
    rows = list(csv.DictReader((tmp_path / "speech/answers.csv").open(encoding="utf8")))
    assert [r["answer"] for r in rows] == [names[0], names[0], "", names[1]] and rows[2]["refused"]
    wave, _ = read_wave(tmp_path / "speech" / names[1], None)
    assert len(wave) == len(next(use(run, "Please hold on.", overrides="speak.speed=1.5",
                                     checkpoint="last")).made.wave)


def test_lines_that_come_in(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("Good morning.\n"))
    assert main(["use", str(run), "-", "--checkpoint", "last"]) == 0
    assert [p.name for p in (tmp_path / "answers").iterdir()] == ["0001-good-morning.wav"]
    assert main(["use", str(run), "Good morning.", "--checkpoint", "last"]) == 0
    assert (tmp_path / "answer.wav").exists()


@pytest.mark.parametrize("words, says", [
    (["--overrides", "model.width=64"], "`model.width` cannot be changed for a trained run: what a run of"),
    (["--overrides", "speak.sped=2"], "did you mean `speak.speed`"),
    (["--out", "out.png"], "what the run makes is a .wav file"),
    (["more", "--out", "out.wav"], "it has room for one answer"),
])
def test_what_use_refuses(words, says, run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["use", str(run), "Good morning.", *words, "--checkpoint", "last"]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.glob("*.*"))


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
    (TEXT, ["--speed", "0"], "speak.speed"),
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


@pytest.mark.parametrize("name", ["out.mp3", "none/out.wav"])
def test_a_file_that_cannot_be_written_is_refused(name, voice, tmp_path):
    with pytest.raises(Refused, match="cannot be written"):
        answers.write(use(voice, TEXT), tmp_path / name)


def test_a_run_of_another_task_cannot_speak(tmp_path, capsys):
    run = tmp_path / "gan"
    run.mkdir()
    write_text(run / "config.yaml", "task: gan\ntrain: {epochs: 2}\nvalid: {metric: accepted, mode: max}\n")
    assert main(["say", str(run), "Hello."]) == 2 and "is a run of the task `gan`" in capsys.readouterr().err
    assert main(["say", str(tmp_path / "none"),
                 "Hello."]) == 2 and "not a run folder" in capsys.readouterr().err
