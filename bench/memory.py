"""Predicted against measured peak memory of training steps on a CPU, and what each saving costs in time.

    python bench/memory.py                       # every case: a markdown table
    python bench/memory.py t5_tiny "tiny lora"   # some of them
    python bench/memory.py --costs t5_tiny       # seconds of a step with each saving, × those without

Measured: the largest resident set of the training process (getrusage) over the steps with the fullest
micro-batches of the first epoch, no validation. Predicted: what `train.memory` goes by, from fake tensors.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path[:0] = [str(Path(__file__).parents[1])]
STEPS = 4
OVERRIDES = (f"train.max_steps={STEPS} train.epochs=null train.minutes=null valid.every=null valid.final=[] "
             "train.checkpoint_every=null check=false")
TINY, SMALL = "universal_tiny", "universal_small"
SAVINGS = {"plain": "", "2 parts": "train.accumulate=2 train.batch_tokens=1500",
           "checkpointing": "model.gradient_checkpointing=true", "lora": "model.lora.r=8",
           "8-bit": "train.optimizer.type=AdamW8bit"}
CASES = {
    **{name: (name, "model.init=scratch" if name.startswith("t5") else "")
       for name in ("t5_tiny", "t5_small", "t5_base", "tts_tiny")},
    **{f"{short} {what}": (preset, f"pipeline=null train.precision={low} {words}")
       for short, preset in (("tiny", TINY), ("small", SMALL)) for low in ("fp32",)
       for what, words in SAVINGS.items()},
    "tiny bf16": (TINY, "pipeline=null train.precision=bf16"), "small bf16": (SMALL, "train.precision=bf16")}

# the fullest micro-batches come first: these are the steps that are measured
FULLEST = """
import numpy as np, workbench.core.setup.state as state
made = state.planned
def fullest(data, *key):
    plan, lengths = made(data, *key), np.asarray(data.lengths["train"])
    lengths = lengths.reshape(len(lengths), -1)
    size = lambda step: max(len(slot) * lengths[slot].max(0).sum() for slot in step if len(slot))
    return lambda epoch: sorted(plan(epoch), key=size, reverse=True)
state.planned = fullest
"""


def child(preset: str, overrides: str, code: str) -> str:
    """What a trainer prints that is run in a child of a child, so that each case is measured alone; `code` is
    run after it."""
    inner = (f"{FULLEST}\nimport workbench.core.train.loop as t, workbench.core.train.stage as s\n"
             "s.save = t.save = t.close_stage = lambda *a, **k: None\n"
             "t.final_evaluation = lambda training: None\n")
    outer = ("import resource, subprocess, sys\nfrom workbench.core.config import presets\n"
             "from workbench.core.run import folder as run\n"
             f"folder = run.create(presets.load({preset!r}, {overrides!r}), sys.argv[1])\n"
             f"code = {inner!r} + 't.main(' + repr(str(folder)) + ')'\n"
             "subprocess.run([sys.executable, '-c', code], check=True, stdout=subprocess.DEVNULL)\n" + code)
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        return subprocess.run([sys.executable, "-c", outer, f"{folder}/run"], capture_output=True, text=True,
                              check=True, env=env).stdout


def measured(preset: str, overrides: str) -> int:
    "Bytes of the trainer at its fullest."
    code = "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    return int(child(preset, overrides, code).split()[-1])


def predicted(preset: str, overrides: str) -> int:
    "Bytes that `train.memory` would go by."
    import torch

    from workbench.core.setup.memory_choice import needs_of
    from workbench.core.setup.prepare import without_weights
    from workbench.core.stages.stages import complete

    cfg = complete(preset, overrides)
    here = SimpleNamespace(num_processes=1, device=torch.device("cpu"), is_main_process=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "assets").mkdir()
        return needs_of(without_weights(cfg, Path(folder), here), cfg, "cpu")


def costs(preset: str, more: str):
    "Processor seconds of a step with each saving, × those without, by the difference of 12 and 4 steps."
    code = ("r = resource.getrusage(resource.RUSAGE_CHILDREN); print(r.ru_utime + r.ru_stime)")
    savings = {"nothing": "", "bf16": "train.precision=bf16", "checkpointing": SAVINGS["checkpointing"],
               "8-bit optimiser": SAVINGS["8-bit"]}
    print("| saving | s a step | × nothing |\n|---|---:|---:|")
    first = 0.0
    for name, words in savings.items():
        spent = [float(child(preset, f"{OVERRIDES} train.precision=fp32 {words} {more} train.max_steps={n}",
                             code).split()[-1]) for n in (4, 12)]
        each = (spent[1] - spent[0]) / 8
        first = first or each
        print(f"| {name} | {each:.3f} | {each / first:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"some of: {', '.join(CASES)}")
    parser.add_argument("--costs", metavar="PRESET")
    parser.add_argument("--overrides", default="", help="for every case: data.source=…")
    args = parser.parse_args()
    if args.costs:
        return costs(args.costs, args.overrides)
    print("| case | predicted, GB | measured, GB | predicted / measured |\n|---|---|---|---|")
    for name in args.cases or CASES:
        preset, words = CASES[name]
        overrides = f"{OVERRIDES} {words} {args.overrides}"
        p, m = predicted(preset, overrides), measured(preset, overrides)
        print(f"| {name} | {p / 1e9:.3f} | {m / 1e9:.3f} | {p / m:.2f} |", flush=True)


if __name__ == "__main__":
    main()
