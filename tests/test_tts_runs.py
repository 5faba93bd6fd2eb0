"""Text to speech in real runs: killed, resumed, shared by processes, built upon; then speaking.

What such a run leaves behind is looked at too.
Each fault of the public project has a test that shows it cannot happen; its docstring begins with `Fault`."""
import csv
import json
import shutil
import signal
import types
import wave

import numpy as np
import pytest
import torch

pytest.importorskip("soundfile", reason="speech needs soundfile: pip install soundfile")
import runs as started  # noqa: E402
import voices  # noqa: E402
from runs import done, end, lines, same_bits, tensors  # noqa: E402
from test_resume import close  # noqa: E402
from voices import FLOW, config, data_of, refusal  # noqa: E402

import workbench  # noqa: E402
import workbench.core.step.step  # noqa: E402
from workbench.core.run import checkpoint
from workbench.core.config import presets  # noqa: E402
from workbench.errors import Refused
from workbench.core.checks.check import check  # noqa: E402
from workbench.core.run.folder import status_of# noqa: E402
from workbench.files import read_json
from workbench.lab.run import launch  # noqa: E402
from workbench.tasks.tts import task as tts
from workbench.tasks.tts import synthesis as tts_voice  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tts")


@pytest.fixture(autouse=True)
def one_cache(own_runs, folder, monkeypatch):
    "Features are made once for all tests of this module."
    monkeypatch.setenv("WORKBENCH_RUNS", str(folder))


@pytest.fixture(scope="module")
def good(folder):
    return voices.good_folder(folder / "good")


@pytest.fixture(scope="module")
def spoilt(folder):
    home = voices.good_folder(folder / "spoilt")
    return types.SimpleNamespace(home=home, reasons=voices.spoil(home))


# Real runs

HARD = f"{FLOW} model.dropout=0.1 train.accumulate=2 train.ema=0.9 train.max_steps=6"
EQUAL = f"{FLOW} model.dropout=0 train.max_steps=3 trackers=[]"
FINE = f"{HARD} train.lr=1e-2 train.optimizer.weight_decay=0.5"


def go(home, cfg=None, trap="", nproc=1):
    "Start a run of a configuration, or resume the one in the folder."
    if cfg is None:
        return started.again(home, trap=trap)
    base = cfg.model_dump(mode="json") | {"task": "trapped_tts"}
    return started.go(home, "", trap, nproc, base)


@pytest.fixture(scope="module")
def runs(folder, good):
    "All runs of this module, two at a time: name -> folder."
    other = voices.good_folder(folder / "other", first=100, count=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(folder))
        straight, stopped = go(folder / "straight",
                               config(good, HARD)), go(folder / "killed", config(good, HARD), trap="3")
        base = done(straight)
        assert end(stopped)["state"] == "died" and stopped.process.returncode == -signal.SIGKILL
        assert checkpoint.find(stopped.folder).name == checkpoint.checkpoint_name(2)
        again, fine = go(stopped.folder), go(folder / "fine", config(other, f"{FINE} model.base={base}"))
        done(again)
        one = go(folder / "one", config(good, f"{EQUAL} train.accumulate=2"))
        done(fine)
        two = go(folder / "two", config(good, EQUAL), nproc=2)
        return {"straight": base, "killed": again.folder, "fine": fine.folder, "one": done(one),
                "two": done(two), "other": other}


def test_a_killed_run_is_the_run_that_was_never_killed(runs):
    """Fault: scheduler, scaler and RNG not in the checkpoint.
    In the middle of an epoch, with dropout, drawn noise and averaged weights."""
    one, two = runs["straight"], runs["killed"]
    assert (status_of(two)["attempt"] == 2
            and read_json(one / "plan.json")["batches"]["steps_per_epoch"] == 3 > 2 % 3 > 0)
    assert lines(two) == lines(one) and len(lines(one, "train")) == 6
    assert same_bits(tensors(two), tensors(one)) and same_bits(tensors(two, "best"), tensors(one, "best"))
    assert read_json(two / "results.json") == read_json(one / "results.json")


def test_two_processes_equal_one(runs):
    one, two = runs["one"], runs["two"]
    assert read_json(two / "plan.json")["processes"] == 2
    close(lines(one), lines(two))
    rows = [(r / "predictions/valid.csv").read_text().splitlines() for r in (one, two)]
    assert rows[0] == rows[1] and len(rows[0]) > 2


def test_frozen_rows_keep_their_bits(runs):
    """Fault: `frozen` rows still shrunk by weight decay.
    The base's symbols keep ids and embeddings; the rest learns."""
    base, fine = runs["straight"], runs["fine"]
    before, after = (json.loads((r / "assets/symbols.json").read_text())["symbols"] for r in (base, fine))
    old = len(before)
    assert after[:old] == before and len(after) > old
    begun = {k.removeprefix("ema."): t for k, t in tensors(base, "best", ["ema"]).items()}
    found = {k.removeprefix("net."): t for k, t in tensors(fine, "last", ["net"]).items()}
    averaged = {k.removeprefix("ema."): t for k, t in tensors(fine, "last", ["ema"]).items()}
    row = "encoder|embed.weight"
    assert torch.equal(found[row][:old].view(torch.int32), begun[row].view(torch.int32))
    assert torch.equal(averaged[row][:old].view(torch.int32), begun[row].view(torch.int32))
    cfg = config(runs["other"], f"{FINE} model.base={base}")
    fresh = tts.task.nets(cfg, data_of(cfg), True)["encoder"].embed.weight
    # every new one moved
    assert len(found[row]) == len(after) and (found[row][old:] != fresh[old:]).any(1).all()
    same = {k for k, t in found.items()
            if k in begun and t.shape == begun[k].shape and torch.equal(t, begun[k])}
    assert not {k for k in same if not k.endswith(("mean", "std"))}  # everything else moved
    statistics = read_json(fine / "assets/statistics.json")["mel"]
    for k in ("mean", "std"):
        assert (found[f"decoder|{k}"][:, 0].tolist() == torch.tensor(statistics[k]).tolist()
                != begun[f"decoder|{k}"][:, 0].tolist())
    origin = read_json(fine / "plan.json")["weights"]
    assert (origin["kind"], origin["where"]) == ("pretrained", str(base))


def test_a_run_begins_with_the_weights_that_load_gives(runs):
    cfg = config(runs["other"], f"{FINE} model.base={runs['straight']}")
    d = data_of(cfg)
    mine, (base, _) = tts.task.nets(cfg, d, True), workbench.load(str(runs["straight"]))
    for name, net in base.items():
        own = mine[name].state_dict()
        assert all(torch.equal(own[k][: len(t)], t)
                   for k, t in net.state_dict().items() if k not in ("mean", "std")), name
    assert mine["encoder"].embed.weight.frozen_rows == slice(0, len(base["encoder"].embed.weight))


def test_rows_that_decay_all_the_same_are_found(runs, monkeypatch):
    cfg = config(runs["other"], f"{FINE} model.base={runs['straight']}")
    assert not [c for c in check(cfg) if c.state == "failed"]
    # as the public project had it
    monkeypatch.setattr(workbench.core.step.step, "restore_rows", lambda optimizer: None)
    found = {c.name: c.says for c in check(cfg) if c.state == "failed"}
    assert "`encoder.embed.weight, frozen rows`" in found["frozen"]
    loose = config(runs["other"], f"{FINE} model.base={runs['straight']} model.freeze_base_rows=false")
    assert not hasattr(tts.task.nets(loose, data_of(loose), True)["encoder"].embed.weight, "frozen_rows")


def test_a_base_that_does_not_fit_is_a_sentence(runs, tmp_path):
    base = shutil.copytree(runs["straight"], tmp_path / "base")
    wider = refusal(config(runs["other"], f"{FINE} model.base={base} model.width=48"))
    assert f"in {base}" in wider and "give the model the sizes of the base" in wider
    shutil.rmtree(base / "checkpoints")
    assert refusal(config(runs["other"],
                          f"{FINE} model.base={base}")) == f"model.base: {base} has no checkpoint."


# Speaking

@pytest.fixture(scope="module")
def voice(runs):
    "A trained run that began from another, which is gone: it speaks by itself."
    away = runs["straight"].with_name("away")
    runs["straight"].rename(away)
    try:
        return workbench.load(str(runs["fine"]))
    finally:
        away.rename(runs["straight"])


def test_a_text_is_spoken_sentence_by_sentence(voice):
    nets, d = voice
    text = f"{d.texts['train'][0]}። {d.texts['train'][1]}!"
    waves = list(tts_voice.synthesise(nets, d, text))
    assert len(waves) == 2 and all(w.ndim == 1 and np.isfinite(w).all() and w.std() > 0 for w in waves)
    assert all(np.array_equal(a, b) for a, b in zip(waves, tts_voice.synthesise(nets, d, text), strict=True))
    first = next(tts_voice.synthesise(nets, d, text))
    assert np.array_equal(first, waves[0])
    for speed in (0.5, 2.0):
        other = sum(len(w) for w in tts_voice.synthesise(nets, d, text, speed=speed))
        assert other * speed == pytest.approx(sum(map(len, waves)), rel=0.1)


@pytest.mark.parametrize("text, words",
                         [("ሰላም Ω", "no symbol for 'ω'"), ("", "nothing to say"), ("።", "nothing to say")])
def test_what_cannot_be_said_is_a_sentence(voice, text, words):
    with pytest.raises(Refused, match=words) as caught:
        list(tts_voice.synthesise(*voice, text))
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(Refused, match="there is no speaker `x`"):
        list(tts_voice.synthesise(*voice, "ሰላም", speaker="x"))


# What a run leaves behind

@pytest.fixture(scope="module")
def trained(folder, spoilt):
    "A spoilt folder of another language, trained by the command."
    own = folder / "own.yaml"
    raw = config(spoilt.home, "data.max_rejected=0.5 train.max_steps=2 valid.every=2 speak.f0=true "
                              "trackers=[tensorboard] check=true",
                 speak={"sentences": [voices.rows()[1][1], "Ω"]})
    own.write_text(presets.dump(raw), encoding="utf8")
    from workbench.lab import cli

    with pytest.MonkeyPatch.context() as patch, started.surroundings(""):
        patch.setenv("WORKBENCH_RUNS", str(folder))
        assert cli.main(["train", str(own), "--run-dir",
                         str(folder / "own")]) == 0, launch.log_tail(folder / "own", 40)
    return folder / "own"


def test_a_run_lists_what_it_could_not_use(trained, spoilt):
    with open(trained / "rejected.csv", encoding="utf8", newline="") as f:
        listed = {r["uid"]: r["reason"] for r in csv.DictReader(f)}
    assert listed.keys() == spoilt.reasons.keys() and all(spoilt.reasons[u] in listed[u] for u in listed)
    assert {c["state"] for c in read_json(trained / "checks.json") if "step" not in c} == {"passed"}


def test_results_stand_beside_a_baseline(trained):
    split = read_json(trained / "results.json")["splits"]["valid"]
    assert split["rows"] == split["of"] >= 2
    for name in ("mcd", "mel_error", "length_error"):
        assert all(split[kind][name] > 0 for kind in ("scores", "baseline", "control")), name
    assert split["scores"]["voicing_error"] >= 0 and split["scores"]["mel_loss"] > 0
    for table in ("valid", "predictions_epoch_0_step_2"):
        with open(trained / f"predictions/{table}.csv", encoding="utf8", newline="") as f:
            rows = list(csv.DictReader(f))
        assert len(rows) == split["rows"] and all("s of speech" in r["hypothesis"] and r["reference"]
                                                  for r in rows)


def test_previews_can_be_seen_and_heard(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = trained / "previews" / checkpoint.checkpoint_name(2)
    names = {p.name for p in shown.iterdir()}
    assert names >= {"valid_0.png", "valid_0_recorded.wav", "valid_0_spoken.wav", "sentence_0.png",
                     "sentence_0_spoken.wav"}
    assert "no symbol for 'ω'" in (shown / "sentence_1.txt").read_text(encoding="utf8")
    for path in shown.glob("*.wav"):
        with wave.open(str(path)) as f:
            assert f.getframerate() == 22050 and np.frombuffer(f.readframes(f.getnframes()), "<i2").std() > 10
    events = next(p.parent for p in trained.rglob("events.out.tfevents*"))
    tags = EventAccumulator(str(events), size_guidance={"images": 0, "audio": 0}).Reload().Tags()
    assert {"valid_0", "sentence_0"} <= set(tags["images"]) and {"valid_0_recorded",
                                                                 "valid_0_spoken"} <= set(tags["audio"])
    assert [t for t in tags["scalars"] if "mel_loss" in t] and [t for t in tags["scalars"]
                                                                if "duration_loss" in t]
