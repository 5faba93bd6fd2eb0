"""Text to speech by parts: what a loss counts, alignments, a user's data, every variant before the checks.

Each fault of the public project has a test that shows it cannot happen; its docstring begins with `Fault`."""
import json
import re
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("soundfile", reason="speech needs soundfile: pip install soundfile")
import voices  # noqa: E402
from conftest import some  # noqa: E402
from voices import FLOW, MELODY, batch_of, config, data_of, lively, refusal, with_times  # noqa: E402

from workbench.errors import Refused
from workbench.core.step.evaluate import predict_rows  # noqa: E402
from workbench.core.checks.check import check  # noqa: E402
from workbench.core.task import Ctx, Objective  # noqa: E402
from workbench.parts.speech.align import check_durations, frames_to_symbols, regulate_length  # noqa: E402
from workbench.tasks.tts import task as tts
from workbench.tasks.tts import data as tts_data
from workbench.tasks.tts import synthesis as tts_voice  # noqa: E402


def losses_of(cfg, nets, d, batch, training=False):
    "Loss parts of a batch and, when training, its gradients; the same draws each time."
    torch.manual_seed(3)
    for net in nets.values():
        net.train(training).zero_grad(set_to_none=True)
    ctx = Ctx(cfg=cfg, data=d, training=training, counts=d.counts(batch),
              generator=torch.Generator().manual_seed(4))
    parts = tts.speech_loss(nets, batch, ctx)
    parts["loss"].backward()
    grads = {f"{name}.{k}": p.grad for name, net in nets.items() for k, p in net.named_parameters()}
    return {k: v.detach() for k, v in parts.items()}, grads


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


# What a loss counts

@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("more", ["", f"{FLOW} model.decoder.together=3", f"loss.mel=l1 {MELODY}"])
def test_padding_counts_nothing(good, more, training):
    "Fault: loss averaged over padding. Whatever stands there, every part and every gradient keeps its bits."
    cfg = config(good, more)
    nets, d = lively(cfg)
    batch = batch_of(d)
    text = torch.arange(batch["text_ids"].shape[1]) >= batch["text_lengths"][:, None]
    frames = torch.arange(batch["mel"].shape[2]) >= batch["mel_lengths"][:, None]
    assert text.any() and frames.any()
    spoilt = batch | {"text_ids": batch["text_ids"].masked_fill(text, 5),
                      "mel": batch["mel"].masked_fill(frames[:, None], 7.0)}
    spoilt |= {k: batch[k].masked_fill(frames, 190.0) for k in ("pitch", "energy") if k in batch}
    (parts, grads), (again, grads_again) = (losses_of(cfg, nets, d, b, training) for b in (batch, spoilt))
    wanted = {"loss", "mel_loss", "duration_loss",
              "align_loss"} | ({"pitch_loss", "energy_loss"} if cfg.model.pitch else set())
    assert parts.keys() == wanted and all(v > 0 for v in parts.values())
    assert {k: float(v) for k, v in parts.items()} == {k: float(v) for k, v in again.items()}
    assert all(torch.equal(grads[k], grads_again[k]) for k in grads)


def test_the_total_is_made_of_its_weighted_parts(good):
    cfg = config(good, f"{MELODY} loss.mel_weight=0.5 loss.dur_weight=0.25 loss.align_weight=2 "
                       "loss.pitch_weight=3 loss.energy_weight=4")
    nets, d = lively(cfg)
    parts, _ = losses_of(cfg, nets, d, batch_of(d))
    weights = {"mel": 0.5, "duration": 0.25, "align": 2, "pitch": 3, "energy": 4}
    assert float(parts["loss"]) == pytest.approx(sum(w * float(parts[f"{k}_loss"])
                                                     for k, w in weights.items()), rel=1e-5)


def test_durations_are_learnt_from_real_ones(good):
    "Fault: no duration targets, so the duration loss was only a regulariser."
    cfg = with_times(good)
    nets, d = lively(cfg)
    batch = batch_of(d)
    before, grads = losses_of(cfg, nets, d, batch)
    after, _ = losses_of(cfg, nets, d, batch | {"durations": batch["durations"].roll(1, 1)})
    assert (float(before["duration_loss"]) != float(after["duration_loss"])
            and grads["durations.out.weight"].abs().max() > 0)
    optimiser = torch.optim.Adam(nets["durations"].parameters(), 0.02)
    for _ in range(40):  # one batch, by heart
        losses_of(cfg, nets, d, batch)
        optimiser.step()
    found, _ = losses_of(cfg, nets, d, batch)
    assert float(found["duration_loss"]) < 0.5 * float(before["duration_loss"])


# Alignment and length regulation

def test_alignments_are_monotonic_complete_and_sum_to_the_frames(good):
    cfg, timed = config(good), with_times(good)
    nets, d = lively(cfg)
    for split, rows in d.datasets.items():
        batch = batch_of(d, range(len(rows)), split)
        with torch.no_grad():
            found, _ = tts_voice.align(nets, batch, tts_voice.encode_text(nets, batch)[0])
        check_durations(found, batch["text_lengths"], batch["mel_lengths"], batch["uid"])
        owner = frames_to_symbols(found, batch["mel"].shape[2])
        steps = owner.diff(dim=1)[torch.arange(1, owner.shape[1]) < batch["mel_lengths"][:, None]]
        assert set(steps.unique().tolist()) == {0, 1} and not owner[:, 0].any()
        assert (owner.gather(1, batch["mel_lengths"][:, None] - 1)[:, 0] == batch["text_lengths"] - 1).all()
    d = data_of(timed)
    for split, rows in d.datasets.items():
        batch = batch_of(d, range(len(rows)), split)
        check_durations(batch["durations"], batch["text_lengths"], batch["mel_lengths"], batch["uid"],
                        silent=99)
        # between words there may be no pause
        assert set(batch["text_ids"][batch["durations"] == 0].tolist()) <= {0, 2}


def test_the_spectrogram_teaches_the_encoder_through_the_length_regulator(good):
    """Fault: rounding blocks the mel gradient.
    The mel error alone moves the vector of every symbol of the batch."""
    cfg = config(good, f"{MELODY} loss.align_weight=0 loss.dur_weight=0 loss.pitch_weight=0 "
                       "loss.energy_weight=0")
    nets, d = lively(cfg)
    batch = batch_of(d)
    _, grads = losses_of(cfg, nets, d, batch)
    touched = grads["encoder.embed.weight"].abs().amax(1) > 0
    assert touched[batch["text_ids"][batch["text_ids"] > 0].unique()].all()
    assert all(grads[f"{n}_in.project.weight"].abs().max() > 0 for n in ("pitch", "energy"))
    durations = torch.tensor([[2, 1, 4], [3, 3, 0]])
    x = torch.randn(2, 3, 4, requires_grad=True)
    out = regulate_length(x, frames_to_symbols(durations, 7))
    (out * (torch.arange(7) < durations.sum(1, keepdim=True))[..., None]).sum().backward()
    assert torch.equal(x.grad, durations[..., None].expand(-1, -1, 4).float())


def test_the_length_regulator_has_no_loop():
    """Fault: a Python loop in the length regulator.
    As many operations for sixty symbols of thirty rows as for three of two."""
    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, kinds, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **(kwargs or {}))

    counts = []
    for rows, symbols in ((2, 3), (30, 60)):
        durations, x = torch.randint(1, 9, (rows, symbols)), torch.randn(rows, symbols, 8)
        with Count() as count:
            tts_voice.expand_to_frames(x, durations, 400)
        counts.append(count.calls)
    assert counts[0] == counts[1] > 0


# Voices of other people

def test_unreadable_sound_never_becomes_a_spectrogram(spoilt):
    """Fault: unreadable audio silently becomes a zero mel.
    Broken, silent, clipped, 8 kHz, forty minutes, without text: each is named."""
    message = refusal(config(spoilt.home))
    count = len(spoilt.reasons)
    assert message.startswith(f"{count} of {40 + count} rows cannot be used, more than data.max_rejected = "
                              "0.01 allows.")
    for uid, reason in spoilt.reasons.items():
        assert reason in next(x for x in message.splitlines() if f" {uid}: " in x)
    d = data_of(config(spoilt.home, "data.max_rejected=0.5"))
    assert {r["uid"] for r in d.rejected} == set(spoilt.reasons)  # a row that stands twice is used once
    assert sorted(u for part in d.uids.values() for u in part) == sorted(u for u, _ in voices.rows()[:40])
    for part in d.datasets.values():
        mels = [part[i, 0]["mel"] for i in range(len(part))]
        assert all(np.isfinite(m).all() and m.std() > 0.5 and m.shape[1] > 20 for m in mels)


def test_the_folder_is_read_as_its_owner_wrote_it(good):
    d = data_of(config(good))
    said = {u: t for part, texts in d.texts.items() for u, t in zip(d.uids[part], texts)}
    assert said == dict(voices.rows()[:40]) and set(d.datasets) == {"train", "valid"} and not d.rejected
    assert d.own.mels.facts(d.uids["train"][0])["channels"] == 2
    batch = batch_of(d, [0])
    assert d.own.symbols.decode(batch["text_ids"][0].tolist()) == [" ", *batch["text"][0], " "]
    assert batch["mel"].shape[1] == 80 and d.counts(batch) == {"frames": int(batch["mel_lengths"][0]),
                                                               "symbols": int(batch["text_lengths"][0])}


@pytest.mark.parametrize("overrides, words", [
    ("data.source=/no/such/folder", "there is no such folder"),
    ("data.source=samples data.text.language=xx", "there are samples of am, en"),
    ("data.times=/no/such/times.json", "data.times: .*no/such/times.json"),
    ("data.times=samples data.source=samples data.text.language=en", "data.times: .*times.json"),
    ("data.times={good}/few.json data.text.kind=phones",
     "data.times has no times of `am-emoji-.*39 clips in all"),
    ("data.times={good}/times.json", "40 of 40 rows cannot be used(.|\n)*take both from the same phone set"),
    ("model.rows=8", "model.rows is 8, and there are"),
    ("model.base=/no/such/run", "no run of text to speech: it has no assets/symbols.json"),
])
def test_a_wrong_key_is_a_sentence(good, overrides, words):
    times = json.loads((good / "times.json").read_text())
    first = voices.rows()[0][0]
    (good / "few.json").write_text(json.dumps({first: times[first]}))
    message = refusal(config(good, overrides.format(good=good)))
    assert re.search(words, message), message
    assert len(message.splitlines()) == 1 or "rows cannot be used" in message


@pytest.mark.parametrize("name", ["hifigan:/no/such/folder", "wavenet"])
def test_an_unknown_vocoder_is_a_sentence(good, name):
    cfg = config(good, f"speak.vocoder={name} speak.f0=true")
    nets, d = lively(cfg)
    ctx = Ctx(cfg=cfg, data=d, training=False)
    for ask in (lambda: tts.preview(nets, d, ctx), lambda: predict_rows(tts.task, nets, d, "valid", ctx, 2)):
        with pytest.raises(Refused, match=f"speak.*{name.split(':')[-1]}") as caught:
            ask()
        assert len(str(caught.value).splitlines()) == 1


# Reality checks

VARIANTS = ["", f"{FLOW} model.decoder.together=3", f"times {FLOW}", f"loss.mel=l1 {MELODY}",
            "model.dropout=0 model.prenet=0", "data.text.kind=phones", "speakers", "times"]


@pytest.mark.parametrize("more", some(VARIANTS, lambda more: more.split() or ["plain"]))
def test_every_variant_passes_the_reality_checks(good, folder, more):
    home = good
    if more == "speakers":
        home, more = voices.of_two_speakers(good, folder / "two speakers"), MELODY
    cfg = with_times(home, more.removeprefix("times")) if more.startswith("times") else config(home, more)
    assert data_of(cfg).facts["speakers"] == (2 if home != good else 1)
    found = {c.name: c for c in check(cfg)}
    assert {c.state for c in found.values()} == {"passed"}, found
    assert set(found) >= {"inputs", "first loss", "padding", "targets", "inputs matter", "gradients",
                          "frozen", "steps", "checkpoint"}


def test_the_samples_with_their_times_pass_too():
    cfg = config("samples", "data.times=samples data.text.kind=phones")
    assert {c.state for c in check(cfg)} == {"passed"}
    assert len(data_of(cfg).datasets["train"]) == 265


def with_loss(change):
    "The task with another loss: change(the real one, nets, batch, ctx)."
    def loss(nets, batch, ctx):
        return change(tts.speech_loss, nets, batch, ctx)
    return replace(tts.task,
                   objectives=lambda cfg: {"speech": Objective(tts.objectives(cfg)["speech"].trains, loss)})


def noise_like(decoder, mel):
    "As loud as the spectrograms are, and nothing to do with them."
    noise = torch.randn(999, 80, generator=torch.Generator().manual_seed(0))[: mel.shape[2]]
    return decoder.destandardise(0.94 * noise.T).expand_as(mel)


def one_mel(real, rows, at):
    return real(rows, at) | {"mel": np.tile(np.linspace(-4, 2, 90, dtype=np.float32), (80, 1))}


FAULTS = {  # fault: (the loss that has it, the check that finds it, a word of what it says)
    "spectrogram not read": (lambda f, n, b, c: f(n, b | {"mel": noise_like(n["decoder"], b["mel"])}, c),
                             "targets", "other mel cost the same"),
    "mean over padding": (lambda f, n, b, c: {k: v * b["mel"].shape[2] * len(b["mel"]) / sum(b["mel_lengths"])
                                              for k, v in f(n, b, c).items()}, "first loss",
                          "the loss counts what it should not"),
    "dummy loss": (lambda f, n, b, c: {k: v * 0 - 2344 for k, v in f(n, b, c).items()}, "first loss",
                   "-2344"),
    "dummy tokens": (lambda f, n, b, c: f(n, b | {"text_ids": b["text_ids"] * 0 + 5}, c), "inputs matter",
                     "text_ids"),
    "sum over bands": (lambda f, n, b, c: {k: v * 80 for k, v in f(n, b, c).items()}, "first loss",
                       "mel_loss is"),
    "blocked gradient": (lambda f, n, b,
                         c: {k: v.detach() + 0 * n["aligner"].weight.sum() for k, v in f(n, b, c).items()},
                         "gradients", "no gradient"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_named(good, monkeypatch, fault):
    "Fault: 1000 epochs `completed` on a dummy loss, and others of its kind. A run with one does not begin."
    change, name, word = FAULTS[fault]
    monkeypatch.setattr(tts, "task", with_loss(change))
    found = {c.name: c.says for c in check(config(good)) if c.state == "failed"}
    assert word in found.get(name, ""), found


def test_one_spectrogram_for_all_is_found(good, monkeypatch):
    "Fault: unreadable audio silently becomes a zero mel: were it so, the checks would say it."
    real = tts_data.Clips.__getitem__
    monkeypatch.setattr(tts_data.Clips, "__getitem__", lambda rows, at: one_mel(real, rows, at))
    found = {c.name: c.says for c in check(config(good)) if c.state == "failed"}
    assert "target `mel`" in found["inputs"]


# Answers do not depend on what they are made beside

@pytest.mark.parametrize("more", ["", FLOW, f"{FLOW} data.mel.bands=41"])
def test_a_row_is_the_same_alone_and_in_a_batch(good, more):
    cfg = config(good, more)
    nets, d = lively(cfg)
    for net in nets.values():
        net.eval()
    ctx = Ctx(cfg=cfg, data=d, training=False)
    together = tts.predict(nets, batch_of(d), ctx)
    counts = d.counts(batch_of(d))

    def parts(rows):
        with torch.no_grad():
            return tts.speech_loss(nets, batch_of(d, rows), replace(ctx, counts=counts))
    alone = [parts([i]) for i in range(6)]
    for i, row in enumerate(together):
        own = tts.predict(nets, batch_of(d, [i]), ctx)[0]["hypothesis"]
        assert (own.mel.shape == row["hypothesis"].mel.shape
                and np.allclose(own.mel, row["hypothesis"].mel, atol=1e-3))
    for name, value in parts(range(6)).items():
        assert float(value) == pytest.approx(sum(float(a[name]) for a in alone), rel=1e-4)


def test_the_better_answer_without_the_text_is_another_clip(good):
    "A split of one row has no other recording to answer with, and is not its own neighbour."
    d = data_of(config(good))
    d.uids["lone"] = d.uids["train"][:1]
    lone, many = tts.baseline(d, "lone"), tts.baseline(d, "train")
    assert lone["mcd"] > 1 and lone["mel_error"] > 0.1 and many["mcd"] > 1 and many["length_error"] > 0


def test_the_plan_of_a_voice_predicts_its_memory():
    "The alignment search is an operation whose shape is known without values, and its compiler counts."
    from workbench.core.setup.plan import plan
    from workbench.core.config.presets import load

    memory = plan(load("tts_tiny"), memory=True)["memory"]
    assert ("could not be predicted" not in memory["note"]
            and {line["device"] for line in memory["table"]} >= {"this machine", "GPU 24 GB"})
