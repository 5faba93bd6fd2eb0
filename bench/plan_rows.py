"""Time and memory of `workbench plan` for very many rows: this checkout beside another, in turns.

    python bench/plan_rows.py OTHER               # OTHER: the folder of another checkout
    python bench/plan_rows.py OTHER ROWS ROUNDS   # 200000 and 3

The table has ROWS different texts and forty pose files, which its column `pose` names. Each plan is a
process of its own; its memory is the peak of that process. Prints a markdown table; the last line is the
ratio of the medians. Where others work on the machine, only the seconds of the processor mean anything. A
plan of 16 rows (ROWS 16) is what remains when rows cost nothing.
"""
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORDS = ["".join(p) for p in zip(*[iter("bakedilomunaseritovupygahecozifaxujewiqo")] * 2)]


def write(home: Path, rows: int):
    "The table and its poses."
    draw, noise = random.Random(0), np.random.default_rng(0)
    (home / "poses").mkdir()
    for i in range(40):
        motion = np.cumsum(noise.normal(size=(40 + i, 76, 2)), 0) + noise.uniform(100, 400, (1, 76, 2))
        np.save(home / "poses" / f"p{i}.npy", motion.astype(np.float32))
    word = lambda: "".join(draw.choices(WORDS, k=draw.randint(1, 4)))
    with open(home / "train.csv", "w", encoding="utf8") as f:
        f.write("uid,text,pose\n")
        for i in range(rows):
            f.write(f"u{i:06},{' '.join(word() for _ in range(draw.randint(3, 12)))} {i},p{i % 40}\n")


def plan(checkout: Path, home: Path, runs: Path) -> tuple[float, float, float]:
    "Seconds, seconds of the processor and peak GB of one plan."
    more = f"data.source={home} data.languages=null data.max_length=128"
    began, pid = time.perf_counter(), os.fork()
    if not pid:
        os.chdir(checkout)
        done = subprocess.run([sys.executable, "-m", "workbench.lab.cli", "plan", "t5_tiny", "--overrides",
                               more],
                              env=os.environ | {"PYTHONPATH": str(checkout), "WORKBENCH_RUNS": str(runs)},
                              stdout=subprocess.DEVNULL)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        Path(runs / "used").write_text(f"{used.ru_maxrss} {used.ru_utime + used.ru_stime} {done.returncode}")
        os._exit(0)
    os.waitpid(pid, 0)
    peak, worked, status = map(float, (runs / "used").read_text().split())
    assert status == 0, f"the plan of {checkout} ended with {status:g}"
    return time.perf_counter() - began, worked, peak * 1024 / 1e9


def main(other: str, rows: int = 200_000, rounds: int = 3):
    with tempfile.TemporaryDirectory() as folder:
        home, found = Path(folder), {}
        write(home, int(rows))
        sides = {"this": Path(__file__).resolve().parents[1], "other": Path(other).resolve()}
        for name in sides:
            (home / name).mkdir()
        for _ in range(int(rounds)):
            for name, checkout in sides.items():
                found.setdefault(name, []).append(plan(checkout, home, home / name))
    print("| checkout | seconds | of the processor | GB |\n|---|---|---|---|")
    medians = {name: [statistics.median(x) for x in zip(*rounds)] for name, rounds in found.items()}
    for name, (seconds, worked, gb) in medians.items():
        print(f"| {name} | {seconds:.1f} | {worked:.1f} | {gb:.2f} |")
    (a, p, b), (c, q, d) = medians["this"], medians["other"]
    print(f"{c / a:.1f} times as fast ({q / p:.1f} by the processor), {b / d:.2f} of the memory")


if __name__ == "__main__":
    main(*sys.argv[1:])
