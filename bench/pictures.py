"""Pictures per second of the store, read as a training reads it, against a plain DataLoader with Pillow.

    python bench/pictures.py                          # the samples, and photographs of 640 x 480
    python bench/pictures.py --rounds 3 --workers 2   # with two worker processes each
    python bench/pictures.py --clock cpu              # processor seconds, where others use the machine, too

The photographs are made of noise. Both give batches of 64 as float32 [64, 3, H, W] in [0, 1], every picture
once an epoch, in random order. The plain one opens, converts and resizes in `__getitem__`, as tutorials do.
The epochs of the two take turns in one process; the first of each, in which the store is made, is reported
apart and counts for nothing else. Writes results/pictures.csv beside this file.
"""
import argparse
import csv
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from loop import table  # noqa: E402
from PIL import Image  # noqa: E402

from workbench.core.data.batches import epoch_plan, loader, stream  # noqa: E402
from workbench.parts.image.rows import read_folder  # noqa: E402
from workbench.parts.image.sources import read_pictures  # noqa: E402
from workbench.parts.image.store import open_store  # noqa: E402

ROWS, RESULTS = 64, Path(__file__).parent / "results"


def photographs(folder, count):
    "JPEG files of 640 x 480 with the detail of photographs: noise at several scales, about 100 kB each."
    rng = np.random.default_rng(0)
    for n in range(count):
        scales = [Image.fromarray(rng.integers(0, 255, (480 // s, 640 // s, 3), dtype=np.uint8))
                  .resize((640, 480), Image.Resampling.BICUBIC) for s in (120, 40, 10, 2)]
        mixed = sum(w * np.asarray(x, np.float32) for w, x in zip((0.5, 0.25, 0.15, 0.1), scales))
        Image.fromarray(mixed.astype(np.uint8)).save(folder / f"{n}.jpg", quality=90)
        (folder / f"{n}.txt").write_text("a photograph")
    return read_folder(folder)[0]["train"]


def numbers(pixels):
    "What a network is given."
    return np.asarray(pixels, np.float32).transpose(2, 0, 1) / 255


class Plain(torch.utils.data.Dataset):
    "Pillow in `__getitem__`."

    def __init__(self, rows, size):
        self.paths, self.size = [row.where for row in rows], size

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        with Image.open(self.paths[i]) as image:
            return torch.from_numpy(numbers(image.convert("RGB").resize((self.size, self.size))))


class Ours:
    "Rows as a task of ours gives them."

    def __init__(self, store):
        self.store = store

    def __getitem__(self, at):
        return numbers(self.store[at[0]])


def collate(items):
    return torch.from_numpy(np.stack(items))


def epochs(rows, size, folder, workers):
    "Name of the arm -> (epoch -> its batches)."
    ours, lengths = Ours(open_store(rows, size, folder)), np.ones(len(rows))

    def batches(epoch):
        plan = epoch_plan(lengths, ROWS, 1, 0, epoch)
        found = iter(loader(ours, collate, stream(lambda e: epoch_plan(lengths, ROWS, 1, 0, e), epoch, 0),
                            workers))
        return (next(found) for _ in plan)

    plain = torch.utils.data.DataLoader(Plain(rows, size), ROWS, shuffle=True, num_workers=workers)
    return {"store": batches, "plain": lambda epoch: plain}


def measured(rows, size, folder, workers, rounds, clock):
    "Arm -> pictures per second in each epoch, the first one first."
    arms, found = epochs(rows, size, folder, workers), {"store": [], "plain": []}
    for epoch in range(rounds + 1):
        for name, of in arms.items():
            began = clock()
            seen = sum(len(batch) for batch in of(epoch))
            found[name].append(seen / (clock() - began))
            assert seen == len(rows), (name, seen)
    return found


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--workers", type=int, default=0)
    ask.add_argument("--photographs", type=int, default=400)
    ask.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    how = ask.parse_args()
    if how.clock == "cpu" and how.workers:
        raise SystemExit("The processor seconds of worker processes are not counted: --workers 0.")
    torch.set_num_threads(1)
    clock = time.perf_counter if how.clock == "wall" else time.process_time
    lines = []
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        (home / "photographs").mkdir()
        sets = {"samples": read_pictures("samples")[0]["train"],
                "photographs": photographs(home / "photographs", how.photographs)}
        for name, size in (("samples", 64), ("photographs", 64), ("photographs", 224)):
            found = measured(sets[name], size, home / f"store-{name}-{size}", how.workers, how.rounds, clock)
            ratios = [a / b for a, b in zip(found["store"][1:], found["plain"][1:])]
            lines.append([name, size, len(sets[name]), how.workers, how.clock,
                          *(f"{statistics.median(found[arm][1:]):.0f}" for arm in ("store", "plain")),
                          f"{found['store'][0]:.0f}", f"{found['plain'][0]:.0f}",
                          f"{statistics.median(ratios):.1f}", f"{min(ratios):.1f}", f"{max(ratios):.1f}"])
    head = ["pictures", "size", "rows", "workers", "clock", "store, pictures/s", "plain, pictures/s",
            "store, first epoch", "plain, first epoch", "ratio", "least", "most"]
    table(head, *lines)
    name = f"pictures{f'_{how.workers}_workers' * bool(how.workers)}.csv"
    with open(RESULTS / name, "w", newline="", encoding="utf8") as file:
        csv.writer(file).writerows([head, *lines])


if __name__ == "__main__":
    main()
