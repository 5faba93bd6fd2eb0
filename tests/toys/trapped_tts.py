"The text-to-speech task with a trap: a process of a run kills itself, as kill -9 would, when it trains the step $TOY_TRAP."
import os
import signal
from dataclasses import replace

from workbench.core.task import Objective
from workbench.tasks import tts


def loss(nets, batch, ctx):
    if ctx.training and str(ctx.step) == os.environ.get("TOY_TRAP"):
        os.kill(os.getpid(), signal.SIGKILL)
    return tts.speech_loss(nets, batch, ctx)


def objectives(cfg):
    return {name: Objective(o.trains, loss) for name, o in tts.objectives(cfg).items()}


task = replace(tts.task, objectives=objectives)
