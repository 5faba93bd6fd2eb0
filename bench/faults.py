"""Which seeded faults the reality checks name, before a run and in it, beside their peers.

    python bench/faults.py                  # every fault and variant of bench/gallery, before a run
    python bench/faults.py --runs           # those that are not named before: 120 steps of a run as well
    python bench/faults.py --peers PYTHON   # torchtest2, torcheck, torch-audit, trainproof on the same nets
    python bench/faults.py --only pairs voice --name "same input" --seconds 4

A fault is *named* where a check that `expected` lists fails or warns (`name:word` where any of its kind says
that word, `watch` where a check of the run does), *vague* where only others do or an error without a check
ends it, and *missed* where all pass. What a check says of the healthy system as well counts for nothing. Each
system is checked in a process of its own. With neither --only nor --name, the tables of README.md and
results/faults.json are written. PYTHON is an interpreter with the peers and the packages of this repository
(peers.py says how).
"""
import argparse
import contextlib
import importlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

here = Path(__file__).parent
SYSTEMS = ("pairs", "voice", "draw")
BAD = ("failed", "warned")
ENDED = "the run ended"
sys.path[:0] = [str(here / "gallery"), str(here.parent)]
os.environ["WORKBENCH_TASKS"] = ",".join([*filter(None, [os.environ.get("WORKBENCH_TASKS")]),
                                          *(str(here / "gallery" / f"{name}.py") for name in SYSTEMS)])

# Kinds of the published lists that are no fault here, or that no check can tell from an intent
ELSEWHERE = {
    "no zero_grad, two backward passes, a step before backward, a schedule never stepped": "the loop does "
                                                                                           "these",
    "a wrong device, a tensor of another precision, a wrong shape without broadcasting": "torch raises",
    "train() or eval() forgotten in the loop": "the loop sets the modes; a task that undoes it is in the "
                                               "gallery",
    "another seed on each worker, data of two ranks in common": "the loop deals the rows out",
    "few training rows, unbalanced or noisy classes, overlapping ones (DeepCrime TRD, TUD, TAN, TCO)":
        "data may be like that; the plan counts them, and held-out scores tell",
    "a share of the labels changed (DeepCrime TCL)": "nobody knows the right ones; held-out scores tell",
    "another optimiser, loss, regularisation, dropout rate, batch size, number of epochs "
    "(DeepCrime OCH, LCH, RAW, RCW, HBS, HNE)": "choices: each is right somewhere",
    "an activation or a bias removed or changed (DeepCrime ARM, ACH, WAB)": "a choice, as long as all is "
                                                                            "reached",
    "the answer copied into the input": "autoencoders and copies do it on purpose; a first loss far below "
                                       "chance tells only when a random net can read it",
    "the same noise in every step": "seeded noise is also a choice",
}


def system(name):
    "The module of a gallery's system."
    return importlib.import_module(name)


def configuration(name, fault="", variant="", more=""):
    "A small training of a system, with a fault or a healthy variant."
    from workbench.core.config import presets

    base = {"task": name, "trackers": [], "fault": fault, "variant": variant,
            "train": {"max_steps": 120, "lr": 0.003, "batch_size": 16}}
    return presets.load(base, f"{getattr(system(name), 'CONFIG', {}).get(fault, '')} {more}".strip())


def caught(call):
    "(what a call gives, or its error as a row of found checks)"
    try:
        return call()
    except Exception as e:  # whatever a faulty task raises is what a user would see
        return [("refused" if type(e).__name__ in ("Refused", "Failed") else "error", "failed",
                 f"{type(e).__name__}: {e}"[:400])]


def examined(cfg, seconds):
    "(what the checks find before a run, s of the quick ones, s of the deep ones)"
    from workbench.core.checks.check import check

    plain = lambda deep: [(c.name, c.state, c.says) for c in check(cfg, deep)]
    began = time.perf_counter()
    found = caught(lambda: plain(0))
    quick, deep = time.perf_counter() - began, 0.0
    if seconds and all(state != "failed" for _, state, _ in found):
        began = time.perf_counter()
        found = caught(lambda: plain(seconds))
        deep = time.perf_counter() - began - quick
    return found, quick, max(0.0, deep)


def run_through(name, **what):
    "What a run of 120 steps with four validations finds: its checks, and the error that ends it."
    from workbench.core.run.folder import create, status_in
    from workbench.core.train.loop import attempt
    from workbench.files import read_json

    cfg = configuration(name, **what, more="valid.every=30")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), \
            contextlib.redirect_stderr(io.StringIO()):
        run = create(cfg, Path(folder) / "run")
        code = attempt(run)
        found = [(c["name"], c["state"], c["says"]) for c in read_json(run / "checks.json", [])]
        error = (status_in(run) or {}).get("error") or ""
    return found + ([(ENDED, "failed", error[:400])] if code else [])


def blamed(check):
    "A check without its numbers: its name, its state and the first thing that it names."
    name, state, says = check
    return name, state, next(iter(re.findall(r"`([^`]+)`", says)), "")


def verdict(found, expected, healthy, before=()):
    "(named | vague | missed, the checks that say something which the healthy system does not hear)"
    usual = {blamed(c) for c in healthy}
    told = [c for c in found if c[1] in BAD and blamed(c) not in usual]
    asked = {c[0] for c in before} | {ENDED}
    names = {n for n, *_ in told} | ({"watch"} if any(n not in asked for n, *_ in told) else set())
    words = [word for name, _, word in (e.partition(":") for e in expected) if word]
    named = names & set(expected) or any(word in says for word in words for *_, says in told)
    return "named" if named else "vague" if told else "missed", told


def healthy_line(name, what, seconds, runs, healthy):
    "A variant: whatever fails or warns is a false alarm."
    found, quick, deep = examined(configuration(name, variant=what), seconds)
    healthy[what] = found
    line = {"quick": quick, "deep": deep, "found": [c for c in found if c[1] in BAD]}
    if runs and all(c[1] != "failed" for c in found):
        healthy[f"run {what}"] = through = run_through(name, variant=what)
        known = set(map(blamed, found))
        line["run"] = [c for c in through if c[1] in BAD and blamed(c) not in known]
    return line


def fault_line(name, what, seconds, runs, healthy):
    "A fault: by the checks before a run, then, where they let it begin without naming it, by a run."
    module = system(name)
    expected, base = module.FAULTS[what][0], "flow" if what in getattr(module, "SECOND", ()) else ""
    found, quick, deep = examined(configuration(name, what), seconds)
    said, told = verdict(found, expected, healthy[base])
    line = {"quick": quick, "deep": deep, "verdict": said, "when": "before" if said == "named" else "",
            "expected": expected, "found": told}
    if runs and said != "named" and all(c[1] != "failed" for c in found):
        usual = healthy[base] + healthy.get(f"run {base}", [])
        later, line["run"] = verdict(run_through(name, fault=what), expected, usual, found)
        line |= {"verdict": later,
                 "when": "in the run" if later == "named" else ""} if later != "missed" else {}
    return line


def of_system(name, seconds, runs, only=()):
    "A line of JSON for each fault and variant of a system, healthy ones first."
    module, healthy = system(name), {}
    examined(configuration(name), 0)  # what is loaded once is in nobody's seconds
    cases = [("variant", what) for what in module.VARIANTS if not only or what in (*only, "", "flow")]
    cases += [("fault", what) for what in module.FAULTS if not only or what in only]
    for kind, what in cases:
        ask = healthy_line if kind == "variant" else fault_line
        line = {"system": name, "kind": kind, "name": what} | ask(name, what, seconds, runs, healthy)
        line |= {part: round(line[part], 3) for part in ("quick", "deep")}
        print(json.dumps(line, ensure_ascii=False), flush=True)
        told = "; ".join(f"{n} {s}" for n, s, _ in line["found"] + line.get("run", []))
        print(f"{kind:8}{what!r:44}{line.get('verdict', ''):8}{line['quick']:6.2f} s{line['deep']:6.2f} s  "
              f"{told}",
              file=sys.stderr, flush=True)


def table(header, rows):
    "A markdown table."
    bar = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [header, bar, *rows])


def summary(lines):
    "The tables of README.md."
    rows = []
    for name in [n for n in SYSTEMS if any(x["system"] == n for x in lines)] + ["all"]:
        mine = [x for x in lines if name in ("all", x["system"])]
        faults = [x for x in mine if x["kind"] == "fault"]
        healthy = [x for x in mine if x["kind"] == "variant"]
        said = lambda state: sum(c[1] == state for x in healthy for c in x["found"] + x.get("run", []))
        count = lambda verdict, when=None: sum(x["verdict"] == verdict and when in (None, x["when"])
                                               for x in faults)
        middle = lambda part: f"{statistics.median([x[part] for x in healthy]):.2f}" if healthy else "–"
        rows.append([name, len(faults), count("named", "before"), count("named", "in the run"),
                     count("vague"),
                     count("missed"), len(healthy), said("failed"), said("warned"), middle("quick"),
                     middle("deep")])
    out = [table(["system", "faults", "named before", "named in a run", "vague", "missed", "healthy variants",
                  "failed of them", "warned", "quick, s", "deep, s"], rows), ""]
    for verdict_ in ("vague", "missed"):
        names = {n: [x["name"] for x in lines if x["system"] == n and x.get("verdict") == verdict_]
                 for n in SYSTEMS}
        out.append(f"*{verdict_}*: "
                   + ("; ".join(f"{n}: {', '.join(v)}" for n, v in names.items() if v) or "none")
                   + ".")
    alarms = [f"{x['system']}, {x['name'] or 'as it is'}: {c[0]} {c[1]}"
              for x in lines if x["kind"] == "variant"
              for c in x["found"] + x.get("run", [])]
    return "\n".join([*out, "*healthy variants*: " + ("; ".join(alarms) or "none fails or warns") + "."])


def put(mark, text):
    "Put a text between README.md's comments of that mark, where they stand."
    path = here / "README.md"
    old = path.read_text()
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    if begin in old:
        path.write_text(f"{old.split(begin)[0]}{begin}\n{text}\n{end}{old.split(end)[1]}")


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--only", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    ask.add_argument("--name", nargs="+", default=[], help="these faults and variants alone")
    ask.add_argument("--seconds", type=float, default=8.0, help="that the deep checks may take; 0: none")
    ask.add_argument("--runs", action="store_true")
    ask.add_argument("--peers", metavar="PYTHON")
    ask.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)  # this process checks it
    given = ask.parse_args()
    if given.system:
        of_system(given.system, given.seconds, given.runs, given.name)
        return
    lines = []
    for name in given.only:
        command = [sys.executable, __file__, "--system", name, "--seconds", str(given.seconds)]
        command += ["--runs"] * given.runs + ["--name", *given.name] * bool(given.name)
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        lines += [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    print(summary(lines))
    whole = not given.name and set(given.only) == set(SYSTEMS)
    if whole:
        (here / "results" / "faults.json").write_text(
            "\n".join(["[", ",\n".join(json.dumps(x, ensure_ascii=False) for x in lines), "]", ""]))
        put("faults", summary(lines))
    if given.peers:
        said = subprocess.run([given.peers, str(here / "peers.py"), *given.only], check=True,
                              stdout=subprocess.PIPE, text=True).stdout
        print(said)
        if whole:
            put("peers of the checks", said.strip())


if __name__ == "__main__":
    main()
