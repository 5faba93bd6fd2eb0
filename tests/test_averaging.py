"The mean of a run's last checkpoints: exact, for use alone, and refused where there is nothing to average."
import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from runs import again, done, go, lines, same_bits, tensors

from workbench.core.run import checkpoint
from workbench.core.setup.average import average, held_out, last_ones, ready
from workbench.core.setup.resume import load
from workbench.errors import Refused
from workbench.lab import cli

# 17 steps an epoch, a checkpoint in 4
SHORT = "train.epochs=2 train.keep=null norm=true train.ema=0.9"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return done(go(tmp_path_factory.mktemp("average") / "run", SHORT))


def files(run):
    "Each file of a run's checkpoints besides the average, with its bytes."
    return {p.relative_to(run): p.read_bytes() for p in sorted((run / "checkpoints").rglob("*"))
            if p.is_file() and "average" not in p.parts}


def means(run, last):
    "What is expected: numpy's mean in float64, of every tensor."
    found = [tensors(run, p.name, ("net",)) for p in last_ones(run, last)]
    return {n: torch.from_numpy(sum(x[n].double().numpy() for x in found) / last).to(t.dtype)
            for n, t in found[-1].items() if t.is_floating_point()}


def test_weights_are_the_mean_in_float64_and_nothing_else_is_touched(run):
    before = files(run)
    folder = average(run, 4)
    assert folder == run / "checkpoints" / "average" and files(run) == before
    expected, found = means(run, 4), tensors(run, "average", ("net",))
    running = {n for n in expected if "running_" in n}
    assert len(running) == 2 and expected.keys() <= found.keys()
    assert [n for n in expected.keys() - running if not torch.equal(found[n], expected[n])] == []
    assert not any(p.name.startswith(("optim", "ema")) for p in folder.iterdir())
    state = checkpoint.state_of(folder)
    assert state["averaged"] == [p.name for p in last_ones(run, 4)] and not state["ema"]


def test_it_is_loaded_by_name_and_never_resumed_from(run):
    average(run, 3)
    nets, _ = load(run, "average")
    mean = means(run, 3)
    assert torch.equal(nets["head"].out.weight, mean["net.head|out.weight"])
    assert checkpoint.find(run).name != "average" != checkpoint.find(run, "best").name
    checkpoint.prune(run, 1000)
    assert checkpoint.find(run, "average")


def test_batch_statistics_are_those_of_the_averaged_weights(run):
    average(run, 4)
    nets, _, ctx = ready(run, "average")
    rows = ctx.data.datasets["train"]
    x = torch.stack([rows[i, 0][1] for i in range(len(rows))])
    with torch.no_grad():
        seen = nets["body"][0](x)
    norm = nets["body"][1]
    assert torch.allclose(norm.running_mean, seen.mean(0), atol=1e-6)
    assert not torch.allclose(means(run, 4)["net.body|1.running_mean"], seen.mean(0), atol=1e-2)


def test_a_run_goes_on_as_if_nothing_had_been_averaged(tmp_path):
    more = "train.epochs=null train.max_steps={} train.keep=2"
    plain, other = (done(go(tmp_path / name, more.format(12))) for name in ("plain", "other"))
    average(other, 2)
    for run in (plain, other):
        done(again(run, "train.max_steps=20"))
    assert lines(plain) == lines(other) and same_bits(tensors(plain), tensors(other))
    assert checkpoint.find(other, "average") and len(list((other / "checkpoints").glob("step_*"))) == len(
        list((plain / "checkpoints").glob("step_*")))


def test_too_few_and_unlike_checkpoints_are_refused_in_one_sentence(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "average", ignore_errors=True)
    there = len(list((copy / "checkpoints").glob("step_*")))
    with pytest.raises(Refused, match=f"has {there} checkpoints, and 99 are to be averaged. Take --last "
                                      f"{there}"):
        average(copy, 99)
    with pytest.raises(Refused, match="an average is of 2 checkpoints at least"):
        average(copy, 1)
    odd = last_ones(copy, 2)[0] / "net.head.safetensors"
    state = checkpoint.load_tensors(odd)
    checkpoint.save_tensors(odd, state | {"out.weight": torch.zeros(1, 9)})
    with pytest.raises(Refused,
                       match=r"`out.weight` of net.head is \(1, 9\) in one and \(1, 8\) in the other"):
        average(copy, 2)
    assert not (copy / "checkpoints" / "average").exists()
    assert not list((copy / "checkpoints").glob(".average*"))


def test_the_checkpoints_are_of_the_stage_at_hand(tmp_path):
    steps = json.dumps([{"name": "a", "train": {"max_steps": 8}}, {"name": "b", "train": {"max_steps": 8}}])
    run = done(go(tmp_path / "two", f"train.epochs=null train.keep=null train.checkpoint_every=2 "
                                    f"pipeline.steps='{steps}'"))
    assert [p.name for p in last_ones(run, 4)] == [checkpoint.checkpoint_name(n) for n in (10, 12, 14, 16)]
    with pytest.raises(Refused, match="checkpoints of its stage 2, and 7 are to be averaged"):
        last_ones(run, 7)


def test_the_command_shows_the_losses_of_all(run, capsys, monkeypatch):
    assert cli.main(["average", str(run), "--last", "3"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("average", "best", "last", "fit_loss", "--checkpoint average"))
    assert held_out(run, "average")["loss"] > 0
    assert cli.main(["average", str(run), "--last", "99"]) == 2


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_adapters_are_averaged_and_their_base_in_4_bits_stays(tmp_path):
    base = {"task": "fourbit", "trackers": [], "check": False, "train": {
        "max_steps": 8, "minutes": None, "lr": 0.01, "batch_size": 16, "checkpoint_every": 2, "keep": None}}
    run = done(go(tmp_path / "run", "layers=guarded", base=base))
    frozen = (run / "checkpoints" / "base" / "model.safetensors").read_bytes()
    average(run, 3)
    mean, last = tensors(run, "average", ("net",)), tensors(run, "last", ("net",))
    assert all("lora" in n for n, t in means(run, 3).items() if not torch.equal(t, last[n]))
    assert all(torch.equal(mean[n], t) for n, t in means(run, 3).items())
    assert (run / "checkpoints" / "base" / "model.safetensors").read_bytes() == frozen
    assert held_out(run, "average")["loss"] > 0
