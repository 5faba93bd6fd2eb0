"A sixth task for tests: the curve, with keys that are read in one place each, and one that nothing reads."
from dataclasses import dataclass, replace

import curve
from workbench.core.config.section import Section


class Look(Section):
    color: str = "blue"
    width: float = 1.0


class HeedlessConfig(curve.CurveConfig):
    look: Look = Look()  # passed on as a whole, by the preview
    ghost: float = 0.0  # nothing reads it
    jitter: float = 0.0  # a row reads it, when it is made
    power: float = 2.0  # the loss
    digits: int = 6  # the prediction
    norm_of: str = "abs"  # the score
    trivial: float = 1.0  # the trivial answer


class Jittered(curve.Curve):
    def __init__(self, n, cfg, first=0):
        super().__init__(n, first)
        self.cfg = cfg

    def __getitem__(self, at):
        uid, x, y = super().__getitem__(at)
        return uid, x + self.cfg.jitter, y


@dataclass(frozen=True)
class Own:
    cfg: HeedlessConfig  # the score and the trivial answer depend on it


def data(cfg, stage):
    out = curve.data(cfg, stage)
    out.datasets["train"] = Jittered(cfg.data.rows, cfg, cfg.data.first)
    out.own = Own(cfg)
    return out


def fit(nets, batch, ctx):
    parts = curve.fit(nets, batch, ctx)
    return parts | {"loss": parts["loss"] * ctx.cfg.power}


def predict(nets, batch, ctx):
    return [row | {"hypothesis": f"{float(row['hypothesis']):.{ctx.cfg.digits}f}"}
            for row in curve.predict(nets, batch, ctx)]


def score(rows, data):
    return {"error" if data.own.cfg.norm_of == "abs" else "other": curve.score(rows, data)["error"]}


task = replace(curve.task, config=HeedlessConfig, data=data, predict=predict, score=score,
               objectives=lambda cfg: curve.objectives(cfg)
               | {"fit": replace(curve.objectives(cfg)["fit"], loss=fit)},
               baseline=lambda data, split: {"error": data.own.cfg.trivial},
               preview=lambda nets, data, ctx: {"note": str(ctx.cfg.look.model_dump())})
