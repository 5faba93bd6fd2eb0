"Whatever stops a run, the resumed one is the run that was never stopped: the same lines, the same bits."
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from runs import again, done, end, go, lines, same_bits, tensors

import workbench
from workbench.core.run import checkpoint
from workbench.errors import Refused
from workbench.core.data.batches import epoch_plan, stream
from workbench.core.run.folder import metrics_of, status_of
from workbench.files import read_json
from workbench.lab.run import launch

# Mid-epoch checkpoints (6 steps an epoch, one in 4), three micro-batches a step, dropout and drawn noise, two
# objectives
# with three optimisers, averaged weights, a log window that no checkpoint meets, a process that loads the
# data.
HARD = ("train.accumulate=3 train.ema=0.9 dropout=0.2 noise=0.1 train.workers=1 train.log_every=3 "
        "train.optimizers.fast.type=SGD train.optimizers.fast.momentum=0.9 valid.every=5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def straight(folder):
    "The run that nothing stops."
    return done(go(folder / "straight", HARD))


def killed(run):
    status = end(run)
    assert status["state"] == "died" and run.process.returncode == -signal.SIGKILL, (
        launch.log_tail(run.folder))
    return run.folder


def test_killed_again_and_again(straight, folder):
    # the trap of a step that is trained
    steps = sorted(random.Random(time.time_ns()).sample(range(1, status_of(straight)["step"]), 3))
    print("killed in the steps after", steps)
    run = killed(go(folder / "killed", HARD, trap=f"kill:{steps[0]}"))
    if steps[0] < 4:  # no checkpoint yet: what was logged is forgotten
        assert checkpoint.find(run) is None
    for step in steps[1:]:
        killed(again(run, trap=f"kill:{step}"))
        with open(run / "metrics.jsonl", "a") as f:
            f.write('{"step": 3, "spl')  # torn in the middle of a line
        assert all("split" in row for row in metrics_of(run))
    done(again(run))
    assert lines(run) == lines(straight)
    assert same_bits(tensors(run),
                     tensors(straight)) and same_bits(tensors(run, "best"), tensors(straight, "best"))
    assert read_json(run / "results.json") == read_json(straight / "results.json")
    assert (run / "predictions/test.csv").read_text() == (straight / "predictions/test.csv").read_text()


def test_killed_from_outside_at_any_moment(straight, folder):
    run = go(folder / "outside", HARD, trap="pause:0.05")
    while not metrics_of(run.folder):
        assert not run.over, launch.log_tail(run.folder)
        time.sleep(0.05)
    time.sleep(random.random() * 3)  # 60 micro-batches of 0.05 s, validations and checkpoints between them
    os.kill(run.process.pid, signal.SIGKILL)
    assert end(run)["state"] == "died"
    run = done(again(run.folder))
    assert lines(run) == lines(straight) and same_bits(tensors(run), tensors(straight))


def test_stopped_on_request(straight, folder):
    run = go(folder / "stopped", HARD, trap="term:9")
    status = end(run)
    assert run.process.returncode == 0 and (status["state"], status["reason"]) == ("stopped", "asked to stop")
    # the step is finished and saved
    assert status["step"] == 10 and checkpoint.find(run.folder).name == "step_00000010"
    done(again(run.folder))
    assert lines(run.folder) == lines(straight) and same_bits(tensors(run.folder), tensors(straight))
    assert status_of(run.folder)["attempt"] == 2 and {r["attempt"] for r in metrics_of(run.folder)} == {1, 2}


@pytest.mark.parametrize("nproc", [1, 2])
def test_paused_and_gone_on(straight, folder, nproc):
    """A pause keeps everything in memory and changes no bit; it can be stopped, and a resumed run is not
    paused."""
    run = go(folder / f"paused{nproc}", HARD if nproc == 1 else "train.accumulate=2", trap="pause:0.05",
             nproc=nproc)
    while not metrics_of(run.folder):
        assert not run.over, launch.log_tail(run.folder)
        time.sleep(0.05)
    assert launch.pause(run.folder)
    while run.status["state"] != "paused":
        assert not run.over, launch.log_tail(run.folder)
        time.sleep(0.05)
    step = run.status["step"]
    time.sleep(1)
    assert (run.status["state"], run.status["step"]) == ("paused", step) and not launch.pause(run.folder)
    if nproc == 1:
        launch.go_on(run.folder)
    else:
        assert (launch.stop(run.folder) and end(run)["reason"] == "asked to stop"
                and (run.folder / "pause").exists())
        run = again(run.folder)
        assert not (run.folder / "pause").exists()
    done(run)
    if nproc == 1:
        assert lines(run.folder) == lines(straight) and same_bits(tensors(run.folder), tensors(straight))


def test_a_finished_run_repeats_nothing_and_can_be_extended(straight, folder):
    constant = f"{HARD} train.scheduler.type=constant train.scheduler.warmup=3"
    longer = go(folder / "longer", f"{constant} train.epochs=4")
    short = done(go(folder / "short", constant))
    done(again(short, "train.epochs=4"))
    keep = lambda run: [r for r in lines(run)
                        if (r["split"], r["step"] % 5) == ("valid", 0)
                        or (r["split"], r["step"] % 3) == ("train", 0)]
    assert keep(short) == keep(done(longer)) and same_bits(tensors(short), tensors(longer.folder))
    copy = shutil.copytree(straight, folder / "copy")
    done(again(copy))
    assert lines(copy) == lines(straight) and same_bits(tensors(copy), tensors(straight))


def test_what_may_not_change(straight):
    with pytest.raises(Refused, match="train.batch_size was 4 in this run and cannot become 8"):
        again(straight, "train.batch_size=8")
    with pytest.raises(Refused, match="dropout"):
        again(straight, "dropout=0")
    with pytest.raises(Refused, match="is not a run folder"):
        again(straight / "checkpoints")


def test_loaded_again(straight):
    "`workbench.load` gives the averaged weights of the best checkpoint."
    nets, data = workbench.load(str(straight))
    saved = tensors(straight, "best", ["ema"])
    assert all((t == saved[f"ema.{n}|{k}"]).all() for n, net in nets.items()
               for k, t in net.state_dict().items())
    assert not nets["body"].training and len(data.datasets["train"]) == 66


@pytest.fixture(scope="module")
def plain(folder):
    "Without dropout, on one process and on two, with the same two micro-batches a step."
    one = go(folder / "one", "train.accumulate=2")
    two = go(folder / "two", "", nproc=2)
    return done(one), done(two)


def close(a, b):
    assert [r["step"] for r in a] == [r["step"] for r in b]
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        assert all(x[k] == (y[k] if isinstance(y[k], str) else pytest.approx(y[k], rel=1e-4, abs=1e-6))
                   for k in x), (x, y)


def test_two_processes_equal_one(plain):
    one, two = plain
    assert read_json(two / "plan.json")["processes"] == 2
    close(lines(one), lines(two))
    a, b = tensors(one, kinds=["net"]), tensors(two, kinds=["net"])
    assert a.keys() == b.keys() and all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)
    rows = [(p / "predictions/test.csv").read_text().splitlines() for p in plain]
    assert len(rows[0]) == len(rows[1]) == 1 + 7  # every row once


def test_resumed_with_another_number_of_processes(plain, folder):
    one, _ = plain
    run = killed(go(folder / "grown", "train.accumulate=2", trap="kill:6"))
    status = end(again(run, nproc=2, trap="kill:13"), 180)
    assert status["state"] == "died"
    done(again(run, nproc=1))
    close(lines(run), lines(one))
    a, b = tensors(one, kinds=["net"]), tensors(run, kinds=["net"])
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


def test_two_processes_stop_together(folder):
    run = go(folder / "together", "train.epochs=100", trap="pause:0.02", nproc=2)
    while not metrics_of(run.folder):
        assert not run.over, launch.log_tail(run.folder)
        time.sleep(0.05)
    assert launch.stop(run.folder)  # rank 0 alone hears it
    status = end(run, 60)
    assert (status["state"], status["reason"]) == ("stopped", "asked to stop") and not launch.stop(run.folder)
    assert checkpoint.find(run.folder).name == checkpoint.checkpoint_name(status["step"])


@pytest.mark.parametrize("step", [10, 1_000_000])
def test_finding_a_position_costs_one_plan(step):
    lengths, asked = np.random.default_rng(0).integers(3, 30, 400), []

    def plan_of(epoch):
        asked.append(epoch)
        return epoch_plan(lengths, 16, 4, seed=0, epoch=epoch)
    each = len(plan_of(0))
    asked.clear()
    batches = stream(plan_of, *divmod(step, each))
    first = next(batches)
    assert asked == [step // each] and {epoch for _, epoch in first} == {step // each}


def test_a_kill_inside_the_write_of_a_checkpoint_leaves_a_whole_one(tmp_path, monkeypatch):
    "The n-th change to the file system is the last one of a process, for every n."
    weights = torch.arange(6.0).reshape(2, 3)

    def write(run, step):
        checkpoint.save(run, step, {"net": {"w": weights + step}}, {"step": step}, ("last", "best"))
        checkpoint.prune(run, keep=1)

    def process(run, last_act):
        "Saves step 2, then step 2 again, then step 3; killed after `last_act` changes."
        acts = [0]

        def counted(act):
            def acting(*args, **kw):
                if acts[0] == last_act:
                    os.kill(os.getpid(), signal.SIGKILL)
                acts[0] += 1
                return act(*args, **kw)
            return acting
        for module, name in ((os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")):
            setattr(module, name, counted(getattr(module, name)))
        for step in (2, 2, 3):
            write(run, step)

    for last_act in range(100):
        run = tmp_path / str(last_act)
        (run / "checkpoints").mkdir(parents=True)
        write(run, 1)
        pid = os.fork()
        if not pid:
            try:
                process(run, last_act)
            finally:
                os._exit(0)
        was_killed = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        for which in ("last", "best"):
            found = checkpoint.find(run, which)
            step = read_json(found / "state.json")["step"]
            assert found.name == checkpoint.checkpoint_name(step)
            assert (checkpoint.load_tensors(found / "net.safetensors")["w"] == weights + step).all()
        if not was_killed:
            break
    assert last_act > 10 and step == 3
