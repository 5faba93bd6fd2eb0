"""What stages cost beside a hand-written loop: two stages, the same nets and batches, interleaved rounds.

    python bench/stages.py            # flow_tiny: the compressor and the expander with SPADE off, then on
    python bench/stages.py ROUNDS STEPS

Both sides freeze, build an optimiser and a schedule for each stage, clip, average the weights, and drop
what belonged to a stage at its end; the runner also checks for a transition at each step, logs and writes
its status. Checkpoints and validations are left out of both: `loop.py checkpoint` has the former. Prints a
markdown table. Run it on a machine that does nothing else; where others work beside it, only the CPU time
means anything.
"""
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent)]

from loop import table

OVERRIDES = ("check=false valid.every=null train.checkpoint_every=null trackers=[] "
             "pipeline.only=[vae_off,vae_on] "
             "pipeline.steps.vae_off.max_steps={n} pipeline.steps.vae_on.max_steps={n} "
             "pipeline.steps.vae_on.transition_on='{{mode: loss_threshold, metric: vae_loss, threshold: "
             "-1.0}}'")


def hand_written(setup, stage, steps: int) -> list[float]:
    "A stage as one would write it: the seconds of each step."
    import torch

    from workbench.core.step.optim import freeze, named_parameters, update_ema
    from workbench.core.setup.outline import trained_names
    from workbench.core.step.schedule import share
    from workbench.core.task import Ctx
    from workbench.core.setup.state import batch_plan

    cfg, data, nets = stage.cfg.train, setup.data, setup.nets
    (name,) = stage.objectives
    objective = setup.task.objectives(stage.cfg)[name]
    moving = trained_names(stage, {name: objective},
                           freeze(nets, setup.model.trainable, stage.freeze, stage.unfreeze))
    params = {n: p for n, p in named_parameters(nets).items() if n in moving}
    for n, p in named_parameters(nets).items():
        p.requires_grad_(n in params)
    adam = torch.optim.AdamW(params.values(), lr=cfg.lr, betas=cfg.optimizer.betas,
                             weight_decay=cfg.optimizer.weight_decay, fused=True)
    rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda k: share(cfg.scheduler, k, steps))
    average = {n: p.detach().clone() for n, p in params.items()}
    plan, times = batch_plan(setup, stage)(0), []
    for k in range(steps):
        began = time.perf_counter()
        batch = data.collate([data.datasets["train"][int(i), 0] for i in plan[k % len(plan)][0]])
        ctx = Ctx(stage.name, step=k, generator=torch.Generator().manual_seed(k), counts=data.counts(batch),
                  cfg=stage.cfg, data=data, assets=setup.model.assets)
        objective.loss(nets, batch, ctx)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(params.values(), cfg.clip)
        adam.step()
        rate.step()
        adam.zero_grad()
        update_ema(average, params, cfg.ema, k + 1)
        times.append(time.perf_counter() - began)
    return times


def runner(training, stage, steps: int) -> list[float]:
    "The same stage by the runner: the seconds of each step."
    from workbench.core.train import stage as train

    times, last, held = [], [0.0], train.after_step

    def mark(training):
        held(training)
        times.append(time.perf_counter() - last[0])
        last[0] = time.perf_counter()

    at = training.setup.at
    at.stage, at.window = stage.index, []
    at.epoch = at.batch = at.stage_step = at.under = 0
    at.stage_seconds = 0.0
    train.after_step = mark
    last[0] = time.perf_counter()
    with redirect_stdout(StringIO()):
        train.train_stage(training)
        train.end_stage(training)
    train.after_step = held
    assert len(times) == steps
    return times


def both(rounds: int = 6, steps: int = 30):
    "Two stages in turn by hand and by the runner, the order changing from round to round."
    from workbench.core.run import folder as run
    from workbench.core.train.loop import start
    from workbench.core.stages.stages import complete

    with tempfile.TemporaryDirectory() as folder:
        training = start(run.create(complete("flow_tiny", OVERRIDES.format(n=steps)),
                                   Path(folder) / "run"))
        setup = training.setup
        begun = {name: {k: t.clone() for k, t in net.state_dict().items()}
                 for name, net in setup.nets.items()}

        def pass_of(how):
            """(seconds of the whole pass, seconds of each step after a stage's first, CPU seconds of the
            pass)."""
            for name, net in setup.nets.items():
                net.load_state_dict(begun[name])
            began, busy, times = time.perf_counter(), time.process_time(), []
            for stage in setup.job.stages:
                times += how(setup if how is hand_written else training, stage, steps)[1:]
            return time.perf_counter() - began, times, time.process_time() - busy

        pass_of(hand_written)
        found = []
        for i in range(rounds):
            order = (hand_written, runner) if i % 2 else (runner, hand_written)
            got = {how: pass_of(how) for how in order}
            found.append((got[hand_written], got[runner]))
    middle = [1000 * statistics.median(t for one in found for t in one[k][1]) for k in (0, 1)]
    ratio = [statistics.median(a[k] / b[k] for a, b in found)
             for k in (0, 2)] + [statistics.median(sum(a[1]) / sum(b[1]) for a, b in found)]
    spread = [b[0] / a[0] for a, b in found]
    table(["two stages", "median ms a step", "steps: speed × hand-written",
           "whole stages: speed × hand-written", "by CPU time"],
          ["hand-written", f"{middle[0]:.1f}", "1.000", "1.000", "1.000"],
          ["workbench", f"{middle[1]:.1f}", f"{ratio[2]:.3f}", f"{ratio[0]:.3f}", f"{ratio[1]:.3f}"])
    print(f"\n{rounds} rounds of 2 × {steps} steps; time × hand-written by round: "
          f"{', '.join(f'{s:.3f}' for s in spread)}.")


if __name__ == "__main__":
    both(*map(int, sys.argv[1:]))
