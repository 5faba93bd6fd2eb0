"""How long a chart of 100,000 logged steps takes: python bench/charts.py [steps].

The log is read once and then only what was added; the drawing is repeated at every refresh. Both are timed
apart, for the live chart (`lab.run.chart`, four panels) and for the figure of a report (`lab.run.curves`,
matplotlib). Medians of five, and the worst."""
import io
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from workbench.files import write_json, write_text
from workbench.lab.run.chart import Line, Log, chart
from workbench.lab.run.curves import curves

CONFIG = ("task: sign\npreset: t5_base\nmodel: {init: auto}\ntrain: {minutes: 4}\nvalid: {metric: cer, mode: "
          "min}\n")


def log_line(step, split, **values):
    return json.dumps({"step": step, "epoch": step // 1000, "stage": "train", "attempt": 1,
                       "time": 1e9 + step,
                       "split": split, **values}) + "\n"


def make_run(folder, steps):
    "A run of so many logged steps with a spike, and a validation each thousand."
    write_text(folder / "config.yaml", CONFIG)
    write_json(folder / "plan.json", {"preset": "t5_base", "task": "sign"})
    noise = random.Random(0)
    with open(folder / "metrics.jsonl", "w") as f:
        for step in range(1, steps + 1):
            loss = 8 / step ** 0.3 + 0.2 * noise.random() + 10 * (step == steps // 2)
            parts = {"loss": loss, "ctc": 0.4 * loss, "words": 0.6 * loss}
            f.write(log_line(step, "train", **parts, grad_norm=1.0, lr=1e-3 * (1 - step / steps),
                             tokens_per_s=900.0))
            if step % 1000 == 0:
                f.write(log_line(step, "valid", **parts, cer=1 / step ** 0.1, rows=12))


def timed(what, act, times=5):
    "Say how long something takes."
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - began)
    seconds.sort()
    print(f"{what:<55} {1000 * seconds[times // 2]:7.1f} ms, worst {1000 * seconds[-1]:7.1f} ms", flush=True)


def panels(log):
    lines = lambda key: [Line("training", *log.line("train", key)),
                         Line("validation", *log.line("valid", key), "#D55E00", dots=True)]
    return [chart(lines(key), key, stages=log.stages[1:]) for key in ("loss", "ctc", "words", "lr")]


def main(steps):
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        make_run(run, steps)
        print(f"{steps:,} logged steps, metrics.jsonl {(run / 'metrics.jsonl').stat().st_size / 1e6:.1f} MB")
        timed("live: the first reading of the whole log", lambda: Log(run / "metrics.jsonl").read(), 3)
        log = Log(run / "metrics.jsonl")
        log.read()

        def look():
            with open(run / "metrics.jsonl", "a") as f:
                f.writelines(log_line(steps + n, "train", loss=0.5, lr=1e-3) for n in range(10))
            log.read()
        timed("live: reading ten lines that were added", look)
        timed("live: four panels as SVG", lambda: panels(log))
        print(f"      {sum(map(len, panels(log))) / 1000:.0f} kB")
        timed("report: the figure, the log read anew", lambda: curves(run), 3)
        figure = curves(run)
        timed("report: the figure as PNG", lambda: figure.savefig(io.BytesIO(), dpi=72), 3)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
