"""Voices leave as ONNX: spectrograms, durations and sound are the workbench's at any length."""
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from bare import bare_python, ran
from test_say import SMALL, folder_of

import workbench
from workbench.core.run.folder import config_of
from workbench.errors import Refused
from workbench.lab.export import export, leaving_of
from workbench.lab.use import open_run, use
from workbench.parts.portable.bundle import Bundle
from workbench.parts.portable.feeds import Unusable
from workbench.parts.speech.mel import Mel, log_mel
from workbench.parts.speech.wave import read_wave
from workbench.tasks.tts import program
from workbench.tasks.tts.exports import exports
from workbench.tasks.tts.synthesis import batch_of_texts, frame_noise, predict_mels

pytest.importorskip("onnxruntime")
VOICES = {"regression": "model.energy=true model.decoder.together=3 speak.speaker=Ben",
          "flow": "model.decoder.kind=flow speak.steps=4 speak.speed=1.3"}
quiet = lambda words: None


def hifigan(folder):
    "A random vocoder for the mels of the samples."
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    torch.manual_seed(0)
    SpeechT5HifiGan(SpeechT5HifiGanConfig(
        model_in_dim=80, sampling_rate=22050, normalize_before=False, upsample_initial_channel=16,
        upsample_rates=[8, 8, 4], upsample_kernel_sizes=[16, 16, 8], resblock_kernel_sizes=[3, 5],
        resblock_dilation_sizes=[[1, 3], [1, 2]], initializer_range=0.1)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "Recordings of two speakers and of one, and a vocoder."
    home = tmp_path_factory.mktemp("voices")
    folder_of(home / "two", ("Ann", "Ben"), 40)
    folder_of(home / "one", rows=40)
    hifigan(home / "hifigan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(home / "runs"))
        yield home


@pytest.fixture(scope="module", params=list(VOICES))
def voice(request, home):
    "(kind, the run, its bundle, the report)."
    kind = request.param
    more = f"data.source={home / 'two'}" if kind == "regression" else (
        f"data.source={home / 'one'} speak.vocoder=hifigan:{home / 'hifigan'}")
    run = workbench.train("tts_tiny", f"{SMALL} train.max_steps=40 {VOICES[kind]} {more}",
                          run_dir=home / kind)
    out, precision = home / f"{kind}_export", "fp32,int8" if kind == "regression" else "fp32"
    return kind, run, out, export(run, "onnx", out, "last", precision, say=quiet)


@pytest.fixture(scope="module")
def opened(voice):
    "(kind, the opened run, the program over onnxruntime)."
    kind, run, folder, _ = voice
    bundle = Bundle(folder)
    return kind, open_run(run, "last"), program.opened(bundle.models, bundle.settings, bundle.assets)


def far(found, wanted):
    assert np.shape(found) == np.shape(wanted)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def refusal(action, kind=Unusable):
    with pytest.raises(kind) as e:
        action()
    assert "\n" not in str(e.value)
    return str(e.value)


# As faithful as torch

def test_every_precision_is_proven_on_held_out_rows(voice):
    kind, _, folder, report = voice
    plain, *smaller = report["formats"]
    assert not report["problem"] and report["torch"]["agreement with the workbench"] == 1
    assert plain["agreement"] == plain["agreement with the workbench"] == 1
    graphs = {"symbols", "decoder", *["vocoder"] * (kind == "flow")}
    assert {o["graph"] for o in plain["outputs"]} == graphs
    assert all(o["difference"] <= 1e-4 and o["shapes"] >= 3 for o in plain["outputs"])
    assert all(f["bytes"] < plain["bytes"] for f in smaller)
    assert {"mel_error", "length_error", "mcd", "duration_error_ms"} == set(plain["scores"])
    assert plain["scores"] == pytest.approx(report["workbench"]["scores"], rel=1e-4)


def test_lengths_and_batches_that_no_export_saw_give_the_same_frames(opened):
    kind, run, said = opened
    speak, symbols = run.ctx.cfg.speak, [s for s in run.data.own.symbols.symbols if s.isalpha()]
    draw, speakers = np.random.default_rng(0), list(run.data.own.speakers)
    for batch, longest in ((1, 3), (5, 31), (17, 61), (2, 90)):
        rows = [[" ", *draw.choice(symbols, n), " "] for n in draw.integers(1, longest, batch)]
        rows[-1] = [" ", *draw.choice(symbols, longest), " "]
        who, speed = speakers[batch % len(speakers)], 0.9 + 0.1 * batch
        found = said([{"symbols": row, "speaker": who, "speed": speed} for row in rows])
        wanted = predict_mels(run.nets, batch_of_texts(rows, run.data, who), speed, speak.steps,
                              run.ctx.cfg.seed)
        for f, (mel, durations) in zip(found, wanted, strict=True):
            assert f.durations.tolist() == durations.tolist() and f.mel.shape[1] == durations.sum()
            assert far(f.mel, mel.numpy()) <= 1e-4


def test_zeros_in_the_inputs_count_for_nothing(voice):
    "So a format of fixed lengths pads, and cuts what comes out."
    kind, run, *_ = voice
    leaving, _ = leaving_of(run, config_of(run), "last")
    for name, graph in leaving.graphs.items():
        more = {axis: n for n, axis in enumerate(leaving.axes, 4)} | {"batch": 0}
        pads = {k: [more.get(graph.axes.get(k, {}).get(d), 0) for d in range(t.dim())]
                for k, t in graph.inputs.items()}
        padded = [torch.nn.functional.pad(t, [n for w in reversed(pads[k]) for n in (0, w)])
                  for k, t in graph.inputs.items()]
        with torch.no_grad():
            plain, longer = graph.net(*graph.inputs.values()), graph.net(*padded)
        plain, longer = ([x] if isinstance(x, torch.Tensor) else x for x in (plain, longer))
        for p, n in zip(plain, longer, strict=True):
            cut = n[tuple(slice(0, size) for size in p.shape)]
            assert n.shape[1] > p.shape[1] and far(cut.numpy(), p.numpy()) < 1e-5
            assert not n[:, p.shape[1]:].any()


def test_a_flow_draws_the_noise_of_the_workbench(opened):
    kind, run, said = opened
    if kind != "flow":
        pytest.skip("a regression draws nothing")
    about = {"mean": [0.0] * 80, "seed": 3, "together": 2}
    found = program.noise_of(np.array([37, 20]), 19, about)
    wanted = frame_noise(80, 37, torch.Generator().manual_seed(3)).T.numpy()
    assert np.allclose(found[0].reshape(-1, 80)[:37], wanted, atol=5e-6)
    assert np.allclose(found[1].reshape(-1, 80)[:20], wanted[:20], atol=5e-6) and not found[1, 10:].any()


# What is heard

def test_the_sound_is_that_of_the_workbench(opened):
    kind, run, said = opened
    (theirs,), (ours,) = use(run, "Good morning."), said(["Good morning."])
    assert ours.wave.shape == theirs.made.wave.shape and ours.rate == theirs.made.rate == 22050
    assert np.corrcoef(ours.wave, theirs.made.wave)[0, 1] > 0.99
    mel = Mel(**run.data.own.mel.model_dump())
    mels = [log_mel(torch.from_numpy(np.asarray(w, np.float32)), mel) for w in (ours.wave, theirs.made.wave)]
    assert float((mels[0] - mels[1]).abs().mean()) < 0.02  # of a logarithm: 0.2 dB


def test_speakers_differ_and_each_is_the_workbenchs(opened):
    kind, run, said = opened
    if kind == "flow":
        assert "`Eve`" in refusal(lambda: said([{"text": "a man", "speaker": "Eve"}]))
        return
    ann, ben, plain = said([{"text": "good", "speaker": "Ann"}, {"text": "good", "speaker": "Ben"}, "good"])
    assert (np.array(ben) == np.array(plain)).all()  # speak.speaker
    assert ann.mel.shape != ben.mel.shape or far(ann.mel, ben.mel) > 1e-4


def test_an_example_speaks_where_there_is_no_torch(voice, tmp_path):
    kind, _, folder, _ = voice
    if kind == "flow":
        pytest.skip("the regression shows it")
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    python = bare_python(tmp_path / "env")
    (tmp_path / "b.json").write_text(json.dumps({"text": "Hold on.", "speed": 1.5}))
    told = ran(python, moved / "example.py", "Good morning!", tmp_path / "b.json", "--out", tmp_path / "out")
    assert told.returncode == 0, told.stderr
    waves = [read_wave(tmp_path / f"out/answer_{i}.wav") for i in (1, 2)]
    assert [f"{facts['seconds']:.2f} s" in line
            for (_, facts), line in zip(waves, told.stdout.splitlines())] == [True, True]
    told = ran(python, moved / "example.py", "room 3 + ю", cwd=tmp_path)
    assert told.returncode == 2 and "no symbol for '3', '+', 'ю'" in told.stderr
    assert len(told.stderr.splitlines()) == 1


# What is refused

def test_what_a_voice_cannot_say_is_a_sentence(opened):
    kind, run, said = opened
    assert "write numbers and signs in words" in refusal(lambda: said(["room 3"]))
    assert "nothing to say" in refusal(lambda: said(["..."]))
    assert "`voice` is unknown" in refusal(lambda: said([{"text": "a", "voice": "b"}]))
    assert "between 0.2 and 5" in refusal(lambda: said([{"text": "a", "speed": 0}]))
    assert "`symbols` takes 1 to 128 of `symbols` and was given 202" in refusal(lambda: said(["a" * 200]))


def test_a_vocoder_or_a_speaker_that_is_not_to_be_had_is_refused(voice, home):
    kind, run, *_ = voice
    at = open_run(run, "last")

    def refused(key, value):
        cfg = at.ctx.cfg.model_copy(update={"speak": at.ctx.cfg.speak.model_copy(update={key: value})})
        return refusal(lambda: exports(at.nets, at.data, replace(at.ctx, cfg=cfg)), Refused)
    assert "speak.vocoder: hifigan:/no/such: there is no such folder" in refused("vocoder",
                                                                                 "hifigan:/no/such")
    assert "no speaker `Eve`" in refused("speaker", "Eve")


def test_phones_are_read_as_the_samples_write_them():
    symbols = program.Symbols([*program.Symbols().symbols, "h", "ˈaɪ", "."])
    about = {"reads": "phones", "speakers": [""], "speaker": "", "speed": 1.0}
    assert program.request_of("h aɪ _ .", symbols,
                              about).ids == symbols.encode([" ", "h", "ˈaɪ", " ", ".", " "])
    assert "with spaces between them" in refusal(lambda: program.request_of("hi", symbols, about))
