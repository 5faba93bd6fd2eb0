"""What the checks' peers say of the gallery's nets, losses, optimisers and batches, in a plain torch loop.

    python -m venv VENV    # beside this repository's packages, which a .pth file in it can name
    VENV/bin/pip install --no-deps torchtest2==0.1.0 torcheck==1.0.1 torch-audit==0.3.0 trainproof==0.22.0
    VENV/bin/python bench/peers.py [pairs voice draw] [--name FAULT …] [--json]

Each peer is used as its own documentation says, with every question switched on that it has: torchtest2's
check_model on one batch (all fields are inputs of a model that returns its loss and what its nets put out);
torcheck's changing, NaN, infinity and range checks through ten steps, with what is meant to train as the user
would name it; torch-audit's autopatch with static and initial rules at each of ten steps; trainproof's
objective, preflight and epoch checks on the log of sixty steps, and its comparison with the healthy log.
A finding that the healthy system has as well counts for nothing. *Named*: a finding of a kind that `SAYS`
sets beside a check that the gallery expects. Prints a table in markdown.
"""
import argparse
import contextlib
import io
import json
import logging
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import nn

from faults import SYSTEMS, configuration, system, table
from workbench.core.task import Ctx, matches

# peer -> our check -> its findings that say the same
SAYS = {
    "torchtest2": {
        "gradients": {"gradient_flow", "loss"}, "coverage": {"optimizer_coverage"},
        "frozen": {"frozen_params"},
        "inputs matter": {"input_dependency", "output_varies"}, "targets": {"input_dependency"},
        "inputs": {"input_dependency", "output_varies"}, "rows": {"batch_independence"},
        "evaluation": {"eval_determinism"}, "first loss": {"initial_loss"}, "overfit": {"overfit_batch"},
        "update": {"params_change", "overfit_batch", "gradient_magnitude"}, "steps": {"params_change"},
        "watch": set()},
    "torcheck": {"coverage": {"not in an optimiser"}, "gradients": {"should change"},
                 "steps": {"should change"},
                 "update": {"should change"}, "inputs": {"NaN", "infinity"}, "frozen": {"should not change"}},
    "torch-audit": {"gradients": {"TA103", "TA104", "TA105", "TA500"}, "range": {"TA301"},
                    "inputs": {"TA302", "TA305", "TA100"}, "target values": {"TA302"}, "update": {"TA102"}},
    "trainproof": {"gradients": {"TP-ZERO-GRAD", "TP-ZERO-LOSS"}, "update": {"TP-ZERO-GRAD", "TP-DIVERGE",
                   "TP-FLAT", "TP-DEAD-RUN"}, "overfit": {"TP-DIVERGE"}, "inputs": {"TP-NAN"},
                   "watch": {"TP-FLOOR-RATIO", "TP-END-RATIO"}, "padding": {"TP-OBJ-IGNORE-INDEX-COLLISION"},
                   "target values": {"TP-PRE-DUPLICATE-TEXT", "TP-OBJ-DEAD-CLASS"}},
}


class Read(dict):
    "A batch that notes which of its fields are read."

    def __init__(self, batch):
        super().__init__(batch)
        self.fields = set()

    def __getitem__(self, field):
        self.fields.add(field)
        return super().__getitem__(field)


def uses(built, objective):
    """(the nets, the fields of a batch) that an objective of a healthy system looks at: what a user gives a
    peer."""
    called, batch = set(), Read(built.batch(0))
    hooks = [m.register_forward_hook(lambda *_, name=name: called.add(name))
             for name, net in built.nets.items() for m in net.modules()]
    with torch.no_grad():
        for k, _ in built.losses(batch):
            if k == objective:
                break
            called.clear(), batch.fields.clear()
    for hook in hooks:
        hook.remove()
    return called, batch.fields


class Built:
    "A system with a fault or variant, as a user's own loop has it."

    def __init__(self, name, fault="", variant=""):
        self.cfg, self.task = configuration(name, fault, variant), system(name).task
        self.data = self.task.data(self.cfg, None)
        self.nets = self.task.nets(self.cfg, self.data, True)
        stage = type("Stage", (), {"cfg": self.cfg})
        self.assets = self.task.begin(stage, self.nets, self.data) if self.task.begin else {}
        every = self.task.objectives(self.cfg)
        on = self.task.active(self.cfg) if self.task.active else list(every)
        self.objectives = {k: every[k] for k in on}
        whole = system(name).task.objectives(configuration(name, "", variant))
        # what the user thinks trains
        self.meant = sorted({p.split(".")[0] for k in on for p in whole[k].trains})
        self.model = nn.ModuleDict(self.nets)
        trained = lambda o: [p for n, p in self.model.named_parameters()
                             if matches(n, o.trains) and p.requires_grad]
        self.optimizers = {k: torch.optim.AdamW(trained(o), lr=self.cfg.train.lr)
                           for k, o in self.objectives.items()}
        self.meant_frozen = sorted(set(self.nets) - set(self.meant))

    def batch(self, step, split="train"):
        "Sixteen rows of a split."
        rows = self.data.datasets[split]
        return self.data.collate([rows[(16 * step + i) % len(rows), step // 5] for i in range(16)])

    def losses(self, batch, step=0, training=True):
        "(objective, its loss) in turn, each made when it is asked for."
        cache = {}
        for k, o in self.objectives.items():
            ctx = Ctx(step=step, training=training, cfg=self.cfg, data=self.data, assets=self.assets,
                      cache=cache,
                      counts=self.data.counts(batch), generator=torch.Generator().manual_seed(step))
            yield k, o.loss(self.nets, batch, ctx)["loss"]

    def modes(self, training):
        "What trains is in training mode, what is frozen in evaluation mode."
        for n, net in self.nets.items():
            net.train(training and any(p.requires_grad for p in net.parameters()))

    def steps(self, n, forward=None, step=None):
        "Plain training; yields (step, loss, gradient norm, held-out loss or None)."
        for i in range(n):
            self.modes(True)
            total, batch = 0.0, self.batch(i)
            norm = 0.0
            for k, loss in self.losses(batch, i):
                self.optimizers[k].zero_grad()
                loss.backward()
                norm += float(nn.utils.clip_grad_norm_([p for g in self.optimizers[k].param_groups
                                                        for p in g["params"]], self.cfg.train.clip or 1e9))
                self.optimizers[k].step()
                total += float(loss.detach())
            held_out = None
            if i % 10 == 9:
                self.modes(False)
                with torch.no_grad():
                    held_out = sum(float(x) for _, x in self.losses(self.batch(0, "valid"), i, False))
            yield i, total, norm, held_out


class Whole(nn.Module):
    "The nets as one model of named fields, which gives its loss and what the nets put out."

    def __init__(self, built, objective, called):
        super().__init__()
        self.trained = nn.ModuleDict({k: net for k, net in built.nets.items() if k in called})
        self.built, self.objective, self.seen = [built], objective, {}
        for name, net in self.trained.items():
            net.register_forward_hook(lambda m, given, out, name=name: self.seen.__setitem__(name, out))

    def forward(self, uid, **fields):
        built, loss = self.built[0], None
        self.seen.clear()
        for k, value in built.losses({"uid": uid, **fields}, 0, self.training):
            loss = value if k == self.objective else loss
        out = {k: v for k, v in self.seen.items() if torch.is_tensor(v) and len(v) == len(uid)}
        return {"loss": loss, **out}


def torchtest2(make):
    import torchtest2 as peer

    found = []
    for k in make().objectives:
        called, fields = uses(make("healthy"), k)
        built = make()
        batch = {n: v for n, v in built.batch(0).items() if n in fields | {"uid"}}
        alone = len(built.objectives) == 1  # else what another objective trains is not this one's
        mine = set(built.meant) if alone else {t.split(".")[0] for t in built.objectives[k].trains}
        for n, p in built.model.named_parameters():
            p.requires_grad_(p.requires_grad and n.split(".")[0] in mine)
        report = peer.check_model(Whole(built, k, called), batch, optimizer=built.optimizers[k],
                                  frozen=[f"trained.{n}" for n in built.meant_frozen if n in called])
        found += [(r.name, r.status.value, r.message) for r in report.failures + report.warnings]
    return found


def torcheck(make):
    from torcheck.registry import Registry

    built, found, peer = make(), [], Registry()
    first = next(iter(built.optimizers.values()))
    if resting := [p for n in built.meant_frozen for p in built.nets[n].parameters()]:
        first.add_param_group({"params": resting})  # else torcheck refuses to look at them
    for optimizer in built.optimizers.values():
        peer.register(optimizer)
    for name in (n for n in built.meant_frozen if any(True for _ in built.nets[n].parameters())):
        peer.add_module_unchanging_check(built.nets[name], name)
    at_rest = {n for n, p in make("meant").model.named_parameters() if not p.requires_grad}
    for full, p in built.model.named_parameters():
        net, _, name = full.partition(".")
        try:
            if net in built.meant and full not in at_rest:
                peer.add_tensor(p, name, net, changing=True, check_nan=True, check_inf=True)
        except RuntimeError as e:
            found.append(("not in an optimiser", "FAIL", f"{full}: {e}"))
    if "decoder" in built.nets:  # logits and frames: no probabilities
        peer.add_module_output_range_check(built.nets["decoder"], (0, 1), negate_range=True,
                                           module_name="decoder")
    try:
        for _ in built.steps(10):
            pass
    except RuntimeError as e:
        said = str(e)
        words = {"should change": "should change", "should not": "should not change", "NaN": "NaN",
                 "inf": "infinity", "shouldn't all": "range"}
        kind = next((k for word, k in words.items() if word in said), "error")
        found.append((kind, "FAIL", said[:300]))
    return found


def torch_audit(make):
    from torch_audit import autopatch

    found = []
    for k in make().objectives:
        called, fields = uses(make("healthy"), k)
        built = make()
        auditor = autopatch(Model(built, k, called), optimizer=built.optimizers[k], every_n_steps=1,
                            reporters=[], run_static=True, run_init=True)
        for i in range(10):
            built.modes(True)
            batch = built.batch(i)
            auditor.audit_data({n: v for n, v in batch.items() if torch.is_tensor(v) and n in fields})
            built.optimizers[k].zero_grad()
            auditor.model(batch, i).backward()
            built.optimizers[k].step()
        found += [(f.rule_id, f.severity.value, f"{f.module_path or ''} {f.message}") for f in
                  auditor.finish(report=False).findings if f.severity.value != "INFO"]
    return sorted(set(found))


class Model(nn.Module):
    "One objective's loss as a model of (batch, step)."

    def __init__(self, built, objective, called):
        super().__init__()
        self.trained = nn.ModuleDict({k: net for k, net in built.nets.items() if k in called})
        self.built, self.objective = [built], objective

    def forward(self, batch, step):
        return next(x for k, x in self.built[0].losses(batch, step) if k == self.objective)


def log_of(built):
    "Sixty steps as lines of JSON."
    lines = []
    for i, loss, norm, held_out in built.steps(60):
        line = {"step": i, "loss": loss, "grad_norm": norm, "lr": built.cfg.train.lr}
        lines.append(line | ({"eval_loss": held_out} if held_out is not None else {}))
    return "\n".join(map(json.dumps, lines))


HEALTHY = {}  # (system, objectives) -> log


def trainproof(make):
    from trainproof.compare import check_compare
    from trainproof.epoch import check_epoch
    from trainproof.objective import check_objective
    from trainproof.preflight import check_preflight

    built = make()
    name, found = built.task.config.__name__, []
    with tempfile.TemporaryDirectory() as folder:
        here, before = Path(folder) / "run.jsonl", Path(folder) / "healthy.jsonl"
        here.write_text(log_of(built))
        found += check_epoch(here)["findings"]
        if built.cfg.fault:  # a healthy variant has no log of itself to be compared with
            stage = name, *built.objectives
            if stage not in HEALTHY:
                HEALTHY[stage] = log_of(make("healthy"))
            before.write_text(HEALTHY[stage])
            found += check_compare(here, before)["findings"]
    if name == "PairsConfig":
        batch = built.batch(0)
        ignored = -100 if (batch["labels"] == -100).any() else 0  # what the loss leaves out
        found += check_objective(12, ignored, batch["labels"])
        rows = [{"text": str(built.data.datasets["train"][i, 0][2].tolist())} for i in range(96)]
        found += check_preflight(rows)["findings"]
    return [(f["id"], f["level"], f"{f['message']} {f['evidence']}"[:300]) for f in found
            if f["level"] in ("FAIL", "WARN")]


PEERS = {"torchtest2": torchtest2, "torcheck": torcheck, "torch-audit": torch_audit, "trainproof": trainproof}


def asked(peer, name, fault="", variant=""):
    "(what a peer finds, s); an error of the task itself is one finding."
    other = {"fault": "", "variant": "flow" if fault in getattr(system(name), "SECOND", ()) else ""}
    given = {"fault": fault, "variant": variant}
    make = lambda which="": Built(name, **(other if which and fault else given))
    began = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = PEERS[peer](make)
    except Exception as e:  # a faulty task may raise anything, in any peer's hands
        found = [("error", "FAIL", f"{type(e).__name__}: {e}"[:300])]
    return found, time.perf_counter() - began


def told(finding):
    "A finding without its numbers, to be compared with another of its kind."
    name, state, says = finding
    return name, state, re.sub(r"[\d.]+(e-?\d+)?", "#", says)


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("systems", nargs="*", default=list(SYSTEMS))
    ask.add_argument("--name", nargs="+", default=[])
    ask.add_argument("--peers", nargs="+", default=list(PEERS))
    ask.add_argument("--json", help="where every finding is written")
    given = ask.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    lines = []
    for name in given.systems:
        module, usual = system(name), {}
        for kind, names in (("variant", module.VARIANTS), ("fault", module.FAULTS)):
            for what in names:
                if given.name and what not in given.name and what not in ("", "flow"):
                    continue
                for peer in given.peers:
                    found, seconds = asked(peer, name, **{kind: what})
                    line = {"system": name, "kind": kind, "name": what, "peer": peer,
                            "seconds": round(seconds, 3)}
                    if kind == "variant":
                        usual[peer, what] = {told(f) for f in found}
                        line["found"] = found
                    else:
                        base = "flow" if what in getattr(module, "SECOND", ()) else ""
                        line["found"] = [f for f in found if told(f) not in usual[peer, base]]
                        same = set().union(*(SAYS[peer].get(e.partition(":")[0], ())
                                             for e in module.FAULTS[what][0]))
                        line["verdict"] = ("named" if {f[0] for f in line["found"]} & same
                                           else "vague" if line["found"] else "missed")
                    lines.append(line)
                    print(f"{peer:12}{kind:8}{what!r:44}{line.get('verdict', ''):8}{seconds:6.2f} s  "
                          + "; ".join(f"{n} {s}" for n, s, _ in line["found"]), file=sys.stderr, flush=True)
    if given.json:
        Path(given.json).write_text("\n".join(json.dumps(x, ensure_ascii=False) for x in lines) + "\n")
    rows = []
    for peer in given.peers:
        faults = [x for x in lines if x["peer"] == peer and x["kind"] == "fault"]
        healthy = [x for x in lines if x["peer"] == peer and x["kind"] == "variant"]
        count = lambda verdict: sum(x["verdict"] == verdict for x in faults)
        alarm = lambda *states: sum(any(f[1] in states for f in x["found"]) for x in healthy)
        seconds = sorted(x["seconds"] for x in healthy)
        rows.append([peer, len(faults), count("named"), count("vague"), count("missed"), len(healthy),
                     alarm("FAIL", "ERROR", "FATAL"), alarm("WARN"), f"{seconds[len(seconds) // 2]:.2f}"])
    print(table(["peer", "faults", "named", "vague", "missed", "healthy variants", "with a failure",
                 "with a warning", "s each"], rows))


if __name__ == "__main__":
    main()
