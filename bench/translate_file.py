"""Seconds to translate a file of real sentences, beside transformers' `generate` in the order of the file.

    python bench/translate_file.py RUN                        # a trained run of universal_tiny; beams 1 and 4
    python bench/translate_file.py RUN --rows 200 --rounds 1  # a quick look

Equal for both: weights, sentences of one pair (held-out ones first), rows a batch, fp32, the longest target,
tokenizer. `generate` gets the batches as they stand in the file. The texts must be identical, row by row;
where two are not, float64 must find their scores equal to 1e-4, so that rounding decided (a batch of
another shape rounds differently). The rounds alternate. Writes results/translate_file.csv beside this file.
"""
import argparse
import copy
import csv
import os
import statistics
import sys
import time
from pathlib import Path

if __name__ == "__main__" and "--threads" in sys.argv:  # OpenMP reads it once, when torch is imported
    os.environ["OMP_NUM_THREADS"] = sys.argv[sys.argv.index("--threads") + 1]
os.environ.setdefault("OMP_NUM_THREADS", "2")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402

from workbench.lab.use import open_run, with_settings  # noqa: E402
from workbench.parts.text.targets import decode_texts  # noqa: E402
from workbench.tasks.translate.tokens import contents  # noqa: E402
from workbench.tasks.translate.translation import (  # noqa: E402
    Item, batch_of, beginning_of, items_of, source_mask, translate_all)

RESULTS = Path(__file__).parent / "results"


def sentences_of(opened, pair: str, rows: int, room: int) -> list[str]:
    "Real sentences of a pair that fit the model whole: held-out ones, then those of training."
    own, found = opened.data.own, []
    for split in ("test", "valid", "train"):
        found += [s for p, s in zip(own.pairs[split], own.sources[split]) if p == pair and s not in found]
        if len(found) >= 2 * rows:
            break
    sizes = [len(ids) for ids in contents(own.tokenizer, found, False)]
    return [s for s, n in zip(found, sizes) if n <= room][:rows]


def ours(opened, pair: str, texts: list[str], rows: int) -> list[str]:
    return [found[0][0]
            for found in translate_all(opened.nets, items_of(texts, opened.data.own.tokenizer), pair,
                                                   opened.ctx, rows)]


@torch.no_grad()
def theirs(opened, pair: str, texts: list[str], rows: int) -> list[str]:
    "transformers' generate, batch after batch of the file."
    own, g, model, out = opened.data.own, opened.ctx.cfg.generate, opened.nets["translator"], []
    begin = torch.tensor([beginning_of(model, own.frames[pair])])
    for at in range(0, len(texts), rows):
        some = texts[at:at + rows]
        batch = batch_of([Item(t, ids) for t, ids in zip(some, contents(own.tokenizer, some, False))], pair,
                         own, "cpu")
        how = {"length_penalty": g.length_penalty} if g.num_beams > 1 else {}
        ids = model.generate(batch["source"], attention_mask=source_mask(batch), num_beams=g.num_beams,
                             do_sample=False,
                             decoder_input_ids=begin.repeat(len(some), 1), max_new_tokens=g.max_length, **how)
        out += decode_texts(own.tokenizer, ids[:, begin.shape[1]:])
    return out


@torch.no_grad()
def apart(opened, pair: str, text: str, both: tuple[str, str], beams: int) -> float:
    "By how much float64 prefers one of two translations: their mean scores, or the first token that differs."
    own = opened.data.own
    model = copy.deepcopy(opened.nets["translator"]).double()
    batch = batch_of([Item(text, contents(own.tokenizer, [text], False)[0])], pair, own, "cpu")
    begin, scores = beginning_of(model, own.frames[pair]), []
    ids = [[*contents(own.tokenizer, [t], False)[0], model.generation_config.eos_token_id] for t in both]
    for some in ids:
        logits = model(input_ids=batch["source"], attention_mask=source_mask(batch),
                       decoder_input_ids=torch.tensor([[*begin, *some[:-1]]])).logits[0, len(begin) - 1:]
        scores.append(logits.log_softmax(-1)[range(len(some)), some])
    if beams > 1:
        return float(abs(scores[0].mean() - scores[1].mean()))
    first = next(i for i, (a, b) in enumerate(zip(*ids)) if a != b)
    return float(abs(scores[0][first] - scores[1][first]))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a trained run of translation")
    parser.add_argument("--pair", default="en-de")
    parser.add_argument("--rows", type=int, default=1000, help="sentences of the file")
    parser.add_argument("--batch", type=int, default=32, help="sentences of a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall",
                        help="cpu: where others use the machine")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    opened, table = open_run(options.run), []
    frame, longest = opened.data.own.frames[options.pair], opened.ctx.cfg.data.max_length
    texts = sentences_of(opened, options.pair, options.rows, longest - len(frame.before) - len(frame.after))
    print(f"{len(texts)} sentences of {options.pair}, {options.batch} a batch, {torch.get_num_threads()} "
          "threads")
    for beams in options.beams:
        asked = with_settings(opened, {"generate": {"num_beams": beams}})
        seconds = {ours: [], theirs: []}
        for turn in range(options.rounds):
            found = {}
            for way in list(seconds)[::1 if turn % 2 else -1]:
                began = clock()
                found[way] = way(asked, options.pair, texts, options.batch)
                seconds[way].append(clock() - began)
            odd = [i for i, both in enumerate(zip(found[ours], found[theirs], strict=True))
                   if both[0] != both[1]]
            for i in odd:
                two = found[ours][i], found[theirs][i]
                assert apart(opened, options.pair, texts[i], two, beams) < 1e-4, f"row {i}: {two}"
            ratio = seconds[theirs][-1] / seconds[ours][-1]
            row = [options.pair, len(texts), options.batch, beams, options.clock, turn,
                   f"{seconds[ours][-1]:.2f}",
                   f"{seconds[theirs][-1]:.2f}", f"{ratio:.2f}"]
            table.append(row)
            print("  ".join(map(str, row)), flush=True)
        print(f"beams {beams}: "
              f"{statistics.median(a / b for a, b in zip(seconds[theirs], seconds[ours])):.2f} × as fast, "
              f"{len(texts) - len(odd)} of {len(texts)} texts identical, rounding decides the others",
              flush=True)
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / "translate_file.csv", "w", newline="") as file:
        csv.writer(file).writerows([["pair", "rows", "batch", "beams", "clock", "round", "workbench_s",
                                     "generate_s",
                                     "times_as_fast"], *table])


if __name__ == "__main__":
    main()
