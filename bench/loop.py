"""What the loop costs beside the mathematics: overhead of a step, start-up, resume, checkpoints.

    python bench/loop.py overhead     # the workbench's step beside a bare torch loop on the same batches
    python bench/loop.py startup      # import, and the first optimiser step from the start of papermill
    python bench/loop.py resume       # the first batch of a resumed run, at step 10 and at step 1,000,000
    python bench/loop.py checkpoint   # how long a checkpoint takes, as a share of a step when saving every 50

Prints markdown tables. Run it on a machine that does nothing else.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent)]


def table(head: list[str], *rows):
    for line in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(str(x) for x in line) + " |")


def prepared(folder: Path, overrides: str = "", preset: str = "t5_tiny"):
    "A training that is about to begin."
    from workbench.core.config import presets
    from workbench.core.run import folder as run
    from workbench.core.train.loop import start
    from workbench.core.train import stage as train

    cfg = presets.load(preset, f"valid.every=null train.checkpoint_every=null trackers=[] {overrides}")
    return train, start(run.create(cfg, folder))


def beside(preset: str, rounds: int, steps: int, folder: Path) -> list[list[list[tuple[float, dict]]]]:
    """For each round, bare loop and workbench in turn on the same batches: (seconds, counts) of each step
    after the first."""
    import torch

    from workbench.core.step.optim import named_parameters
    from workbench.core.task import Ctx

    train, training = prepared(folder, "train.log_every=10", preset)
    setup = training.setup
    plan = train.batch_plan(setup)
    data, nets, cfg = setup.data, setup.nets, setup.cfg
    (objective,) = setup.task.objectives(cfg).values()
    unique = list({id(p): p for p in named_parameters(nets).values() if p.requires_grad}.values())
    adam = torch.optim.AdamW(unique, lr=1e-4, fused=True)

    def batch_at(k):
        return [data.datasets["train"][int(i), 0] for i in plan(0)[k % len(plan(0))][0]]

    def bare(first):
        times = []
        for k in range(first, first + steps):
            began = time.perf_counter()
            batch = data.collate(batch_at(k))
            ctx = Ctx(cfg=cfg, data=data, counts=data.counts(batch))
            objective.loss(nets, batch, ctx)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(unique, 1.0)
            adam.step()
            adam.zero_grad()
            times.append(time.perf_counter() - began)
        return times[1:]

    def ours(first):
        times, last = [], [time.perf_counter()]

        def mark(training, after=train.after_step):
            after(training)
            times.append(time.perf_counter() - last[0])
            last[0] = time.perf_counter()
        held, train.after_step = train.after_step, mark
        setup.at.epoch, setup.at.batch, setup.at.stage_step = 0, first % len(plan(0)), 0
        object.__setattr__(setup.stage.cfg.train, "max_steps", steps)
        last[0] = time.perf_counter()
        with redirect_stdout(StringIO()):
            train.train_stage(training)
        train.after_step = held
        return times[1:]

    bare(0)
    found = []
    for i in range(rounds):
        first = (i * steps) % max(1, len(plan(0)) - steps)  # within an epoch: the next one has other batches
        counts = [data.counts(data.collate(batch_at(k))) for k in range(first + 1, first + steps)]
        a, b = (bare(first), ours(first)) if i % 2 else (ours(first), bare(first))[::-1]
        found.append([list(zip(a, counts, strict=True)), list(zip(b, counts, strict=True))])
    return found


def overhead(rounds: int = 6, steps: int = 40, preset: str = "t5_tiny"):
    "Median wall time of a step, loop and bare loop in turn, on the same batches."
    with tempfile.TemporaryDirectory() as folder:
        found = beside(preset, rounds, steps, Path(folder) / "run")
    times = [[[t for t, _ in one] for one in two] for two in found]
    middle = [1000 * statistics.median(t for two in times for t in two[k]) for k in (0, 1)]
    table(["loop", "median ms a step", "speed × bare (median of rounds)"],
          ["bare torch", f"{middle[0]:.1f}", "1.000"],
          ["workbench", f"{middle[1]:.1f}", f"{statistics.median(sum(a) / sum(b) for a, b in times):.3f}"])


def startup(rounds: int = 3):
    "Seconds to import, and from the start of papermill to the first optimiser step."
    def seconds(code):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - began

    empty = statistics.median(seconds("") for _ in range(5))
    imported = statistics.median(seconds("import workbench") for _ in range(5))
    firsts = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            began = time.time()
            subprocess.run(["papermill", str(here.parent / "nbs/train.ipynb"), f"{folder}/out.ipynb", "-k",
                            "python3", "-p",
                            "overrides", "train.max_steps=1 valid.rows=4 valid.final=[]", "-p", "run_dir",
                            f"{folder}/run", "-p", "check", "False"],
                           check=True, capture_output=True)
            lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
            firsts.append(json.loads(lines[0])["time"] - began)
    table(["what", "seconds (median)"], ["python, nothing imported", f"{empty:.3f}"],
          ["import workbench, on top of that", f"{imported - empty:.3f}"],
          ["first optimiser step after the start of papermill", f"{statistics.median(firsts):.1f}"])


def resume(rounds: int = 5):
    "Seconds from a position to the first batch of a resumed run."
    from workbench.core.data.batches import loader, stream

    with tempfile.TemporaryDirectory() as folder:
        train, training = prepared(Path(folder) / "run")
        setup, rows = training.setup, []
        for step in (10, 1_000_000):
            times = []
            for _ in range(rounds):
                epoch, batch = divmod(step, len(train.batch_plan(setup)(0)))
                began = time.perf_counter()
                plan = train.batch_plan(setup)
                first = min(batch, len(plan(epoch)) - 1)
                next(iter(loader(setup.data.datasets["train"], setup.data.collate,
                                 stream(plan, epoch, first))))
                times.append(time.perf_counter() - began)
            rows.append((step, statistics.median(times)))
        table(["resumed at step", "ms to the first batch", "ratio"],
              *([f"{s:,}", f"{1000 * t:.1f}", f"{t / rows[0][1]:.2f}"] for s, t in rows))


def checkpoint(saves: int = 10):
    "Stall per checkpoint against the step time, saving every 50 steps."
    with tempfile.TemporaryDirectory() as folder:
        train, training = prepared(Path(folder) / "run", "train.max_steps=31")
        marks = []
        held = train.after_step

        def mark(training):
            held(training)
            marks.append(time.perf_counter())
        train.after_step = mark
        with redirect_stdout(StringIO()):
            train.train_stage(training)
        train.after_step = held
        step = statistics.median(b - a for a, b in zip(marks, marks[1:]))
        stalls = []
        for _ in range(saves):
            training.setup.at.step += 1
            began = time.perf_counter()
            train.save(training)
            stalls.append(time.perf_counter() - began)
        stall = statistics.median(stalls)
        table(["step, ms", "stall of a checkpoint, ms", "stall per step when saving every 50"],
              [f"{1000 * step:.0f}", f"{1000 * stall:.0f}", f"{stall / 50 / step:.1%} of a step"])


if __name__ == "__main__":
    {"overhead": overhead, "startup": startup, "resume": resume, "checkpoint": checkpoint}[sys.argv[1]]()
