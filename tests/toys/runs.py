"Starting runs with a trap, and what is compared of them."
import copy
import os
import time
from contextlib import contextmanager
from pathlib import Path

from workbench.core.run import checkpoint
from workbench.core.config.merging import merge
from workbench.core.config.presets import parse_overrides
from workbench.core.run.folder import metrics_of
from workbench.lab.run import launch

BASE = {"task": "curve", "check": False, "trackers": [], "train": {
    "epochs": 3, "minutes": None, "batch_size": 4, "lr": 1e-2, "log_every": 1, "checkpoint_every": 4}}
outside = ("time", "tokens_per_s", "attempt")  # what may differ between equal runs


@contextmanager
def surroundings(trap):
    "The variables of the processes that are started here: no GPU, one thread, the toys on the path."
    tests = Path(__file__).parents[1]
    ours = {"PYTHONPATH": f"{tests / 'toys'}{os.pathsep}{tests.parent}", "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1", "TOY_TRAP": trap}
    before = dict(os.environ)
    os.environ.update(ours)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def config(overrides="", base=BASE):
    return merge(copy.deepcopy(base), parse_overrides(overrides))


def go(folder, overrides="", trap="", nproc=1, base=BASE):
    with surroundings(trap):
        return launch.start(config(overrides, base), "", folder, nproc)


def again(folder, overrides="", trap="", nproc=None):
    with surroundings(trap):
        return launch.resume(folder, overrides, nproc)


def end(run, seconds=120):
    "The status of a run when it is over, whatever it came to."
    until = time.monotonic() + seconds
    while not run.over:
        assert time.monotonic() < until, f"still {run.status}\n{launch.log_tail(run.folder)}"
        time.sleep(0.05)
    return run.status


def done(run, state="finished"):
    "Wait, and demand a good end; returns the folder."
    status = end(run)
    assert status["state"] == state, f"{status}\n{launch.log_tail(run.folder, 40)}"
    return run.folder


def lines(folder, split=None):
    return [{k: v for k, v in row.items() if k not in outside} for row in metrics_of(folder, split)]


def tensors(folder, which="last", kinds=("net", "ema", "optim")):
    "Everything that a checkpoint holds: {file|name: tensor}."
    found = checkpoint.find(folder, which)
    return {f"{p.stem}|{k}": t for p in sorted(found.glob("*.safetensors")) if p.stem.split(".")[0] in kinds
            for k, t in checkpoint.load_tensors(p).items()}


def same_bits(a, b):
    assert a.keys() == b.keys()
    return [k for k in a if not (a[k] == b[k]).all()] == []
