"""Predicted against measured peak memory of the first training steps of presets, on a CPU.

    python bench/memory.py                       # t5_tiny, t5_small, t5_base, tts_tiny
    python bench/memory.py t5_base               # one of them

Measured: the largest resident set of the training process (getrusage), no validation. Predicted:
`core.memory`, from fake tensors, for the largest micro-batch of the same steps. Prints a markdown table.
"""
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path[:0] = [str(Path(__file__).parents[1])]
STEPS = 4
OVERRIDES = (f"train.max_steps={STEPS} train.minutes=null valid.every=null valid.final=[] "
             "train.checkpoint_every=null check=false")


def overrides(preset: str) -> str:
    "Random weights, where a preset could have others."
    return OVERRIDES + " model.init=scratch" * preset.startswith("t5")


def measured(preset: str) -> int:
    """Bytes of the trainer at its fullest; it runs in a child of a child, so that each preset is measured
    alone."""
    code = ("import resource, subprocess, sys; from workbench.core.config import presets; "
            "from workbench.core.run import folder as run; "
            f"folder = run.create(presets.load({preset!r}, {overrides(preset)!r}), sys.argv[1]); "
            "code = 'import workbench.core.train.loop as t, workbench.core.train.stage as s; "
            "s.save = t.save = t.close_stage = lambda *a, **k: None;"
            " t.final_evaluation = lambda training: None; t.main(' + repr(str(folder)) + ')'; "
            "subprocess.run([sys.executable, '-c', code], check=True, stdout=subprocess.DEVNULL); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)")
    with tempfile.TemporaryDirectory() as folder:
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        out = subprocess.run([sys.executable, "-c", code, f"{folder}/run"], capture_output=True, text=True,
                             check=True, env=env)
    return int(out.stdout.split()[-1])


def predicted(preset: str) -> int:
    from workbench.core.config import presets
    from workbench.core.data.batches import epoch_plan
    from workbench.core.memory.predict import predict
    from workbench.core.stages.stages import stages
    from workbench.core.task import Ctx, get

    cfg = presets.load(preset, overrides(preset))
    with tempfile.TemporaryDirectory() as folder:
        task, stage = get(cfg.task), stages(cfg, Path(folder))[0]
        data = task.data(cfg, stage)
        lengths = np.asarray(data.lengths["train"])
        plan = epoch_plan(lengths, cfg.train.batch_size * cfg.train.accumulate, cfg.train.accumulate,
                          cfg.seed, 0)[:STEPS]
        rows = max((slot for step in plan for slot in step), key=lambda s: len(s) * lengths[s].max(0).sum())
        batch = data.collate([data.datasets["train"][int(i), 0] for i in rows])
        ctx = Ctx(cfg=cfg, data=data, counts=data.counts(batch))
        losses = {n: (lambda nets, b, o=o: o.loss(nets, b, ctx)["loss"], list(o.trains))
                  for n, o in task.objectives(cfg).items()}
        return predict(lambda: task.nets(cfg, data, True), losses, batch,
                       imports=["workbench.core.train.loop"], clip=cfg.train.clip).total


if __name__ == "__main__":
    print("| preset | predicted, GB | measured, GB | predicted / measured |\n|---|---|---|---|")
    for preset in sys.argv[1:] or ["t5_tiny", "t5_small", "t5_base", "tts_tiny"]:
        p, m = predicted(preset), measured(preset)
        print(f"| {preset} | {p / 1e9:.2f} | {m / 1e9:.2f} | {p / m:.2f} |", flush=True)
