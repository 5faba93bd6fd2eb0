"""What the watch costs: a run of t5_tiny with it and without it, in turns, in one process.

    python bench/watch.py [--steps 300] [--rounds 3] [--preset t5_tiny]

Without the watch its looks do nothing; the checks before the first step are the same. Prints a markdown
table: processor seconds of each run, their ratio, and what the looks took by themselves.
"""
import argparse
import os
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent)]

LOOKS = {"stage": ("begin_watching", "watch_gradients", "watch_step", "watch_save", "end_watching"),
         "loop": ("end_watching",),
         "validate": ("watch_reads",)}


def timed(function, spent: list[float]):
    "The function, whose seconds are added up."
    def calling(*given):
        began = time.process_time()
        try:
            return function(*given)
        finally:
            spent[0] += time.process_time() - began
    return calling


def run_once(preset: str, steps: int, watched: bool) -> tuple[float, float]:
    "(seconds of a run, from its preparation to its final evaluation, seconds of the looks)."
    from workbench.core.config import presets
    from workbench.core.run.folder import create
    from workbench.core.step.step import require_gradients
    from workbench.core.train import loop, stage, validate

    rooms, spent, kept = {"stage": stage, "validate": validate, "loop": loop}, [0.0], {}
    off = {"watch_gradients": lambda training, objective,
           first: require_gradients(objective) if first else None,
           "watch_reads": lambda training, loss: {}}
    for room, names in LOOKS.items():
        for name in names:
            kept[room, name] = getattr(rooms[room], name)
            setattr(rooms[room], name, timed(kept[room, name], spent) if watched
                    else off.get(name, lambda *given: None))
    try:
        with tempfile.TemporaryDirectory() as home, redirect_stdout(StringIO()):
            cfg = presets.load(preset, f"trackers=[] train.max_steps={steps}")
            began = time.process_time()
            loop.train(loop.start(create(cfg, Path(home) / "run")))
            return time.process_time() - began, spent[0]
    finally:
        for (room, name), function in kept.items():
            setattr(rooms[room], name, function)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", default="t5_tiny")
    given = parser.parse_args()
    print("| round | with the watch, s | without, s | ratio | looks, s | share of the run |")
    print("|---|---|---|---|---|---|")
    ratios, shares = [], []
    for i in range(given.rounds):
        pair = {}
        for watched in ((True, False), (False, True))[i % 2]:
            pair[watched] = run_once(given.preset, given.steps, watched)
        (with_it, looks), (without, _) = pair[True], pair[False]
        ratios.append(with_it / without)
        shares.append(looks / with_it)
        print(f"| {i + 1} | {with_it:.1f} | {without:.1f} | {ratios[-1]:.4f} | {looks:.3f} | "
              f"{shares[-1]:.2%} |",
              flush=True)
    print(f"| median | | | {statistics.median(ratios):.4f} | | {statistics.median(shares):.2%} |")


if __name__ == "__main__":
    main()
