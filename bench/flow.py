"""What a run of the flow task has learnt, beside drawings that ignore the caption, and what SPADE gives.

    python bench/flow.py scores RUN     # drawings for held-out captions and for trained ones, by guidance
    python bench/flow.py samplers RUN   # Euler, Heun, adaptive: the same noise, by evaluations of the flow
    python bench/flow.py spade RUN      # a run of spade_off_on: its stages, and bench/results/spade.png

Prints markdown tables. Retrieval: among the real pictures of the split, how near the drawing is to that of
its own caption; `rank` 0 is the nearest, 0.5 is chance. The control is the same drawing, made for another
row's caption.
"""
import sys
from pathlib import Path

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent)]

from loop import table  # noqa: E402

ROWS = 200


def loaded(run):
    "(nets, data, configuration of the last stage, assets) of a run's best checkpoint."
    from workbench.core.run import checkpoint
    from workbench.core.stages.stages import stages
    from workbench.core.setup.resume import load
    from workbench.core.run.folder import config_of

    nets, data = load(run, "best")
    return (nets, data, stages(config_of(Path(run)))[-1].cfg,
            checkpoint.load_tensors(checkpoint.find(Path(run), "best") / "assets.safetensors"))


def drawn(nets, data, cfg, assets, split, **how):
    "(scores, control) of a split's first rows."
    import torch

    from workbench.core.step.evaluate import answer_batch, batches_of, control_rows
    from workbench.core.task import Ctx
    from workbench.tasks.flow.task import task

    cfg = cfg.model_copy(update={"sample": cfg.sample.model_copy(update=how)})
    rows, other, ctx = [], [], Ctx(cfg=cfg, data=data, assets=assets, training=False)
    with torch.no_grad():
        for batch in batches_of(data, split, 51, ROWS):
            own = answer_batch(task, nets, batch, ctx)
            rows, other = rows + own, other + control_rows(task, nets, batch, own, ctx)
    return task.score(rows, data), task.score(other, data)


def scores(run):
    nets, data, cfg, assets = loaded(run)
    lines = []
    for split in ("valid", "test", "style", "seen"):
        for guidance in (1.0, 2.0, 3.0):
            found, other = drawn(nets, data, cfg, assets, split, guidance=guidance)
            lines.append([split, f"{guidance:g}", f"{found['retrieval_rank']:.3f}",
                          f"{other['retrieval_rank']:.3f}", f"{found['retrieval_top5']:.3f}",
                          f"{other['retrieval_top5']:.3f}", f"{found['frechet']:.2f}"])
    table(["split", "guidance", "rank", "rank, control", "top 5", "top 5, control", "frechet"], *lines)


def samplers(run):
    import time

    nets, data, cfg, assets = loaded(run)
    lines, count = [], min(ROWS, len(data.datasets["valid"]))
    for sampler, steps in (("euler", 6), ("euler", 12), ("euler", 24), ("heun", 6), ("heun", 12),
                           ("adaptive", 0)):
        began = time.perf_counter()
        found, _ = drawn(nets, data, cfg, assets, "valid", sampler=sampler, steps=max(1, steps))
        lines.append([sampler, steps or "–", f"{found['retrieval_rank']:.3f}", f"{found['frechet']:.2f}",
                      f"{(time.perf_counter() - began) / count * 1000:.0f}"])
    table(["sampler", "steps", "rank", "frechet", "ms a picture"], *lines)


def spade(run):
    from matplotlib.figure import Figure

    from workbench.core.run.folder import metrics_of
    from workbench.files import read_json

    rows, ends = metrics_of(Path(run),
                            "valid"), {line["stage"]: line for line in read_json(Path(run) / "stages.json")}
    lines = [[name, line["steps"], *(f"{line['valid'][k]:.4g}"
                                     for k in ("psnr", "ssim", "recon_loss", "frechet"))]
                                     for name, line in ends.items()]
    table(["stage", "steps", "psnr, dB", "ssim", "recon_loss", "frechet"], *lines)
    figure, done = Figure(figsize=(6, 3), layout="constrained"), 0
    axes, colours = figure.subplots(), {"off": "tab:grey", "still_off": "tab:blue", "on": "tab:orange"}
    for name, line in ends.items():
        mine = [r for r in rows if r["stage"] == name]
        before = 0 if name == "off" else ends["off"]["steps"]  # both arms go on from its end
        axes.plot([before + r["step"] - done for r in mine], [r["psnr"] for r in mine], "o-", ms=3,
                  color=colours.get(name), label=name.replace("_", " "))
        done += line["steps"]
    axes.set(xlabel="optimiser steps of the arm", ylabel="PSNR of held-out pictures, dB",
             title="The same budget, SPADE still off and on")
    axes.legend()
    (here / "results").mkdir(exist_ok=True)
    figure.savefig(here / "results" / "spade.png", dpi=110)


if __name__ == "__main__":
    {"scores": scores, "samplers": samplers, "spade": spade}[sys.argv[1]](sys.argv[2])
