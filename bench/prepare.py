"""What it costs to prepare a corpus, beside `datasets` with the same filters.

    python -m venv --system-site-packages VENV && VENV/bin/pip install datasets==5.2.0
    VENV/bin/python bench/prepare.py memory [--rows 1000000] [--workers 1]    # peak memory, and a second run
    VENV/bin/python bench/prepare.py against [--rows 100000] [--rounds 3]     # × datasets.map and filter

Made-up pairs of English-like and Amharic-like words, of which some lack a side, are in another script, stand twice or
have placeholders. Each run is a process of its own, and the sides take turns. `map` is a pipeline of `datasets`
as its guide has it, a function for a row; `batched` gives the same functions a thousand rows at a time. Both
do what we do: normal form, broken bytes, missing sides, control characters, scripts, lengths, ratio, copies,
placeholders and numbers, repeats, splits by source and leaks; the rows that are kept are the same, or the
measurement ends. Prints a table: seconds by the clock and of the processor, and peak memory.
"""
import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent)]


def generate(path, rows, seed=0):
    "A table of made-up pairs."
    draw = np.random.default_rng(seed)
    letters, signs = "abcdefghijklmnopqrstuvwxyz", [chr(c) for c in range(0x1200, 0x1240)]
    words = [["".join(draw.choice(list(some), draw.integers(low, high))) for _ in range(20_000)]
             for some, low, high in ((letters, 2, 9), (signs, 2, 6))]
    last = ("hello", "ሰላም")
    with open(path, "w", encoding="utf8") as f:
        f.write("source\ttarget\n")
        for i in range(rows):
            at, kind = draw.integers(0, 20_000, draw.integers(4, 14)), draw.random()
            a, b = (" ".join(side[j] for j in at) for side in words)
            if kind < 0.01:
                b = ""
            elif kind < 0.02:
                b = a.upper() + " x"
            elif kind < 0.03:
                a = f"{a}  {i}"
            elif kind < 0.10:
                a, b = last
            elif kind < 0.20:
                a, b = f"{a} %s {i % 97}", f"{b} %s {i % 97}"
            last = (a, b)
            f.write(f"{a}\t{b}\n")


# Ours

def ours(path, out, workers=1):
    from workbench.parts.corpus.build import build
    from workbench.parts.corpus.sources import find_files

    corpus = build(find_files(path), out, workers=workers)
    return {"kept": corpus.splits, "left": corpus.facts["left_out"], "warned": corpus.facts["warnings"]}


# With datasets: a function for a row, as its guide has it

def cleaned(row):
    from workbench.parts.corpus.texts import clean

    return {side: clean(row[side]) for side in ("source", "target")}


def share_in(text, script):
    import regex

    scripted = len(regex.findall(r"[^\p{Zyyy}\p{Zinh}\p{Zzzz}]", text))
    return not scripted or len(regex.findall(rf"\p{{{script}}}", text)) >= 0.5 * scripted


def good(row):
    "Whether a row passes all filters that look at it alone."
    a, b = row["source"], row["target"]
    if not a or not b:
        return False
    if any(c == "\ufffd" or "\ud800" <= c <= "\udfff" or (ord(c) < 0x20 or 0x7f <= ord(c) < 0xa0)
           for c in a + b):
        return False
    if not share_in(a, "Latin") or not share_in(b, "Ethiopic"):
        return False
    if not (1 <= len(a) <= 1000 and 1 <= len(b) <= 1000):
        return False
    x, y = len(a) + 10, 1.5 * len(b) + 10
    return max(x, y) / min(x, y) <= 4 and a.casefold() != b.casefold()


def key_of(text, language):
    import hashlib
    import unicodedata

    bare = "".join(c for c in unicodedata.normalize("NFKC", text.casefold())
                   if unicodedata.category(c)[0] in "LNM")
    return hashlib.blake2b(f"{language}\0{bare or text}".encode(), digest_size=8).digest()


def described(row):
    "The keys of a row, and whether its sides disagree."
    from workbench.parts.corpus.agreement import numbers_of, placeholders_of

    a, b = row["source"], row["target"]
    return {"s": key_of(a, "en"), "t": key_of(b, "am"), "warned": placeholders_of(a) != placeholders_of(b)
            or numbers_of(a) != numbers_of(b)}


def split_of(key):
    "The split of a source key, as the package decides it."
    from workbench.parts.corpus.repeats import mixed

    u = float(mixed(np.frombuffer(key, "<u8"), 0)[0] / 2.0**64)
    return "test" if u < 0.02 else "valid" if u < 0.04 else "train"


def rows_as_lists(function):
    "A function of a row for batches of rows."
    def many(batch):
        found = [function(dict(zip(batch, row))) for row in zip(*batch.values())]
        return {k: [row[k] for row in found] for k in found[0]} if isinstance(found[0], dict) else found
    return many


def peer(path, out, batched=False):
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    of = rows_as_lists if batched else lambda function: function
    rows = Dataset.from_csv(str(path), sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False,
                            cache_dir=str(out / "cache"))
    rows = rows.map(of(cleaned), batched=batched).filter(of(good), batched=batched)
    rows = rows.map(of(described), batched=batched)
    seen = {"train": set(), "valid": set(), "test": set()}
    held = {split: set() for split in seen}
    rows = rows.map(of(lambda row: {"split": split_of(row["s"])}), batched=batched)
    for split in ("valid", "test"):
        for row in rows.filter(of(lambda row: row["split"] == split), batched=batched):
            held[split] |= {row["s"], row["t"]}

    def leaks(row):
        above = {"train": ("valid", "test"), "valid": ("test",), "test": ()}[row["split"]]
        return any(row["s"] in held[split] or row["t"] in held[split] for split in above)

    def first(row):
        if leaks(row):
            return False
        key, known = row["s"] + row["t"], seen[row["split"]]
        new = key not in known
        known.add(key)
        return new

    rows, kept = rows.filter(of(first), batched=batched), {}
    for split in ("train", "valid", "test"):
        part = rows.filter(of(lambda row: row["split"] == split), batched=batched)
        part.save_to_disk(str(out / split))
        kept[split] = len(part)
    return {"kept": kept}


SIDES = {"workbench": ours, "map": peer, "batched": lambda path, out: peer(path, out, True)}


def apart(side, path, out, *more):
    "Run a side in a process of its own: its answer, s by the clock, s of the processor, peak MB."
    began = time.perf_counter()
    with tempfile.NamedTemporaryFile("r", suffix=".json") as answer:
        child = os.spawnv(os.P_NOWAIT, sys.executable,
                          [sys.executable, __file__, "side", side, str(path), str(out),
                                                        answer.name, *map(str, more)])
        _, status, used = os.wait4(child, 0)
        if status:
            raise SystemExit(f"{side} ended with status {status}")
        found = json.load(answer)
    return found, time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def memory(options, home):
    generate(home / "en-am.tsv", options.rows)
    size = (home / "en-am.tsv").stat().st_size / 1e6
    print(f"{options.rows:,} pairs, {size:.0f} MB\n\n| run | s | s of the processor | peak MB "
          "|\n|---|---|---|---|")
    for run in ("first", "second, from the cache"):
        found, clock, used, peak = apart("workbench", home / "en-am.tsv", home / "corpus", options.workers)
        print(f"| {run} | {clock:.1f} | {used:.1f} | {peak:.0f} |", flush=True)
    print(f"\nkept {found['kept']}, left out {found['left']}, warned {found['warned']}")


def against(options, home):
    generate(home / "en-am.tsv", options.rows)
    measured = {side: [] for side in SIDES}
    for turn in range(options.rounds):
        kept = set()
        for side in SIDES:
            out = home / f"{side}-{turn}"
            out.mkdir()
            found, *rest = apart(side, home / "en-am.tsv", out / "corpus" if side == "workbench" else out)
            measured[side].append(rest)
            kept.add(json.dumps(found["kept"], sort_keys=True))
        if len(kept) > 1:
            raise SystemExit(f"the sides keep different rows: {kept}")
    middle = {side: [statistics.median(column) for column in zip(*rows)] for side, rows in measured.items()}
    print(f"{options.rows:,} pairs, {options.rounds} rounds in turns, medians; all keep {kept.pop()}\n")
    print("| side | s | s of the processor | peak MB | × workbench by the clock | of the processor |\n|"
          + "---|" * 6)
    for side, (clock, used, peak) in middle.items():
        print(f"| {side} | {clock:.1f} | {used:.1f} | {peak:.0f} | {clock / middle['workbench'][0]:.2f} | "
              f"{used / middle['workbench'][1]:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, rows in (("memory", 1_000_000), ("against", 100_000)):
        sub = commands.add_parser(name)
        sub.add_argument("--rows", type=int, default=rows)
        sub.add_argument("--workers", type=int, default=1)
        sub.add_argument("--rounds", type=int, default=3)
    side = commands.add_parser("side")
    side.add_argument("given", nargs="+")
    options = parser.parse_args()
    if options.command == "side":
        name, path, out, answer, *more = options.given
        found = SIDES[name](Path(path), Path(out), *map(int, more))
        Path(answer).write_text(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as home:
        {"memory": memory, "against": against}[options.command](options, Path(home))


if __name__ == "__main__":
    main()
