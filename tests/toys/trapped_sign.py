"The sign task with a trap: a process of a run kills itself, as kill -9 would, when it trains the step $SIGN_TRAP."
import os
import signal
from dataclasses import replace

from workbench.core.task import Objective
from workbench.tasks import sign


def loss(nets, batch, ctx):
    if ctx.training and str(ctx.step) == os.environ.get("SIGN_TRAP"):
        os.kill(os.getpid(), signal.SIGKILL)
    return sign.translate_loss(nets, batch, ctx)


def objectives(cfg):
    return {name: Objective(o.trains, loss) for name, o in sign.objectives(cfg).items()}


task = replace(sign.task, objectives=objectives)
