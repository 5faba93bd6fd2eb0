"""CIDEr, BLEU and ROUGE-L beside pycocoevalcap, on the example files of CIDEr's own repository, and what
intervals cost.

    python bench/caption_scores.py PACKAGE CIDER [--write tests/caption_scores.json]

PACKAGE is a folder that holds `pycocoevalcap` 1.2 (its unpacked wheel; its tokenizer wants Java), CIDER a
checkout of github.com/vrama91/cider (commit f281464). `--write` keeps 60 pictures with 5 true captions of
each and the package's numbers for the tests.
"""
import argparse
import contextlib
import io
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from workbench.core.data.intervals import intervals, mean
from workbench.core.data.text_statistics import bleu_statistics
from workbench.parts.text.caption_scores import caption_words, cider, rouge_l

ORIGIN = ("Captions of abstract scenes (Vedantam, Zitnick and Parikh 2015): abstract48S.json and "
          "abstract_candsB.json of github.com/vrama91/cider, commit f281464, split by pycocoevalcap 1.2's "
          "PTBTokenizer; scores by its Bleu, Cider and Rouge")


def read(cider_home):
    "(true captions, what was written) of each picture."
    found = []
    for name in ("abstract48S", "abstract_candsB"):
        of = defaultdict(list)
        for row in json.loads((cider_home / f"data/{name}.json").read_text(encoding="utf8")):
            of[row["image_id"]].append({"caption": row["caption"]})
        found.append(of)
    true, made = found
    return {k: true[k] for k in made}, {k: of[:1] for k, of in made.items()}


def theirs(true, made):
    "Scores of pycocoevalcap, and of each picture."
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    with contextlib.redirect_stdout(io.StringIO()):
        bleu = Bleu(4).compute_score(true, made)[0]
        (_, ciders), (_, rouges) = (of.compute_score(true, made) for of in (Cider(), Rouge()))
    return bleu, ciders, rouges


def ours(true, made):
    "The same of this house."
    bleu = bleu_statistics(list(true.values()), [made[k][0] for k in true], "none", "none")
    words = [[text.split() for text in of] for of in true.values()]
    said = [made[k][0].split() for k in true]
    return [one.value() / 100 for one in bleu.values()], cider(words, said), rouge_l(words, said)


def compare(true, made):
    "Print the greatest differences, and the processor time in three rounds in turns; returns their scores."
    times, found = defaultdict(float), {}
    for _ in range(3):
        for of in (theirs, ours):
            began = time.process_time()
            found[of.__name__] = of(true, made)
            times[of.__name__] += time.process_time() - began
    far = [np.abs(np.subtract(a, b)).max() for a, b in zip(found["theirs"], found["ours"])]
    print(f"{len(true)} pictures, {len(next(iter(true.values())))} true captions of each: CIDEr "
          f"{found['theirs'][1].mean():.4f}; greatest difference of BLEU {far[0]:.1e}, CIDEr {far[1]:.1e}, "
          "ROUGE-L "
          f"{far[2]:.1e}; time, ours / theirs: {times['ours'] / times['theirs']:.2f}")
    return found["theirs"]


def cost_of_intervals(rows=1000):
    "Seconds for 1,000 draws of so many rows."
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(500)]
    made = [" ".join(rng.choice(vocabulary, 8)) for _ in range(rows)]
    true = [[" ".join(rng.choice(vocabulary, 8)), text] for text in made]
    words = [[text.split() for text in of] for of in true]
    began = time.perf_counter()
    ciders = cider(words, [text.split() for text in made])
    parts = {**bleu_statistics(true, made, "none", "none"), "cider": mean(ciders)}
    middle = time.perf_counter()
    intervals(parts, rng.integers(0, rows // 2, rows))
    print(f"{rows:,} rows, BLEU-1..4 and CIDEr: what each row adds {middle - began:.2f} s, 1,000 draws "
          f"{time.perf_counter() - middle:.2f} s")


def main():
    asked = argparse.ArgumentParser()
    for name in ("package", "cider"):
        asked.add_argument(name, type=Path)
    asked.add_argument("--write", type=Path)
    given = asked.parse_args()
    sys.path.insert(0, str(given.package))
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    raw_true, raw_made = read(given.cider)
    true, made = (PTBTokenizer().tokenize(of) for of in (raw_true, raw_made))
    pairs = [(raw["caption"], text) for k in true for raw, text in zip(raw_true[k], true[k])]
    same = sum(" ".join(caption_words(raw)) == text for raw, text in pairs)
    print(f"{same:,} of {len(pairs):,} captions are split as PTBTokenizer splits them")
    for n in (48, 5, 1):
        compare({k: of[:n] for k, of in true.items()}, made)
    cost_of_intervals()
    if given.write:
        some = {k: of[:5] for k, of in list(true.items())[:60]}
        bleu, ciders, rouges = compare(some, {k: made[k] for k in some})
        given.write.write_text(json.dumps({
            "origin": ORIGIN, "licence": (given.cider / "license.txt").read_text(encoding="utf8"),
            "bleu": bleu, "cider": list(ciders), "rouge_l": list(rouges),
            "rows": [{"raw": raw_made[k][0]["caption"], "hypothesis": made[k][0], "references": of}
                     for k, of in some.items()]}, indent=0) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
