"""Listing runs whose logs are long: this checkout and another beside each other, interleaved.

    python bench/runs.py                           # a million lines, this checkout alone
    python bench/runs.py --other ../old --rounds 3  # and another checkout
    python bench/runs.py --lines 100000            # a quick look
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

here = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(here)]
EVERY = 1000  # training lines between two validations


def make(folder: Path, lines: int, index: bool):
    "A finished run with so many lines."
    from workbench.core.config import presets
    from workbench.core.run import folder as run

    made = run.create(presets.load("t5_tiny"), folder)
    with open(made / "metrics.jsonl", "w") as file:
        for step in range(1, lines + 1):
            row = {"step": step, "epoch": step // 5000, "stage": "train", "split": "train", "attempt": 1}
            rest = {"tokens_per_s": 18000.0 + step % 97, "time": 1.7e9 + step / 3}
            file.write(json.dumps(row | {"loss": 9 / step ** 0.3, "ce_loss": 8 / step ** 0.3,
                                         "ctc_loss": 1 / step ** 0.3, "grad_norm": 1.0 + step % 7,
                                         "lr": 3e-4 * step / lines} | rest) + "\n")
            if step % EVERY == 0:
                file.write(json.dumps(row | {"split": "valid", "loss": 9 / step ** 0.3,
                                             "cer": 1 / step ** 0.2, "rows": 150, "time": rest["time"]})
                                             + "\n")
    if index:
        run.cut_metrics(made, run.metrics_size(made))
    run.write_json(made / "plan.json", {"preset": "t5_tiny", "task": "sign",  # as every run that has trained
                                        "stages": [{"name": "train",
                                                    "best": {"metric": "cer", "mode": "min",
                                                             "every": f"{EVERY} steps"}}]})
    run.update_status(made, state="finished", step=lines, stage="train", pid=os.getpid())
    return run.metrics_size(made)


def listing(checkout: Path, runs: Path) -> tuple[float, float, float, str]:
    "(seconds, of the processor, largest resident MB, what was printed) of `workbench runs`."
    env = os.environ | {"PYTHONPATH": str(checkout), "WORKBENCH_RUNS": str(runs), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "workbench.lab.cli", "runs"], env=env, cwd=checkout,
                             stdout=subprocess.PIPE, text=True)
    said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0, said
    return (time.perf_counter() - began, usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6, said)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--other", type=Path, help="another checkout")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        homes = {"with an index": Path(home) / "indexed", "without": Path(home) / "plain"}
        size = [make(at / "run", asked.lines, index=name == "with an index") for name, at in homes.items()][0]
        print(f"{asked.lines:,} training lines, {size / 1e6:.0f} MB")
        builds = {"this": here} | ({"other": asked.other.resolve()} if asked.other else {})
        found = {}
        for _ in range(asked.rounds):
            for build, checkout in builds.items():
                for name, at in homes.items():
                    if build == "this" or name == "without":
                        found.setdefault((build, name), []).append(listing(checkout, at))
    print("| build | run folder | s, median of rounds | s of the processor | s, all | largest resident MB "
          "|\n|---|---|---:|---:|---|---:|")
    for (build, name), all_of in found.items():
        seconds, processor, memory, said = zip(*all_of)
        print(f"| {build} | {name} | {statistics.median(seconds):.2f} | {statistics.median(processor):.2f} | "
              f"{', '.join(f'{s:.2f}' for s in seconds)} | {max(memory):.0f} |")
    print(said[-1])


if __name__ == "__main__":
    main()
