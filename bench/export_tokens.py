"""Tokens a second of an exported translation run, beside transformers' `generate` with the same weights.

    workbench export RUN --to onnx --precision fp32,int8 --out BUNDLE
    python bench/export_tokens.py RUN BUNDLE                    # fp32, batches of 1 and 8
    python bench/export_tokens.py RUN BUNDLE --precision int8

Equal for both: weights, sources of 20 random tokens, texts of exactly 40 tokens (no end ends one), greedy
search, one thread, fp32 for torch. The tokens must be identical in fp32; the rounds alternate. Processor
seconds, so that other programs count for little.
"""
import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # OpenMP reads it once, when torch is imported
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from workbench.deploy.ready import ready  # noqa: E402
from workbench.lab.use import open_run  # noqa: E402
from workbench.parts.portable.bundle import Bundle  # noqa: E402
from workbench.parts.portable.greedy import written  # noqa: E402


def generated(model, ids: np.ndarray, begin: list[int], tokens: int) -> list[list[int]]:
    "Texts of transformers."
    sources = torch.from_numpy(ids)
    with torch.inference_mode():
        found = model.generate(sources, attention_mask=torch.ones_like(sources), do_sample=False, num_beams=1,
                               decoder_input_ids=torch.tensor([begin] * len(ids)), eos_token_id=None,
                               min_new_tokens=tokens, max_new_tokens=tokens)
    return found[:, len(begin):].tolist()


def seconds(call, clock) -> float:
    began = clock()
    call()
    return clock() - began


def main():
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("run", type=Path)
    top.add_argument("bundle", type=Path)
    top.add_argument("--precision", default="fp32")
    top.add_argument("--tokens", type=int, default=40)
    top.add_argument("--rounds", type=int, default=9)
    top.add_argument("--clock", default="cpu", choices=["cpu", "wall"])
    given = top.parse_args()
    torch.set_num_threads(1)
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    bundle = Bundle(given.bundle, "onnx", given.precision, threads=1)
    begin = next(iter(bundle.settings["pairs"].values()))["begin"]
    settings = {"end": -1, "longest": given.tokens}
    model = ready(open_run(given.run).nets)["translator"]
    for rows in (1, 8):
        ids = np.random.default_rng(0).integers(300, model.config.vocab_size, (rows, 20))
        ours = lambda: written(bundle.models, settings | {"rows": rows}, "ids", list(ids), [begin] * rows)
        theirs = lambda: generated(model, ids, begin, given.tokens)
        same = sum(map(list.__eq__, ours(), theirs()))
        assert given.precision != "fp32" or same == rows, f"{rows - same} of {rows} texts differ"
        found = [(seconds(ours, clock), seconds(theirs, clock)) for _ in range(given.rounds)]
        mine, other = (statistics.median(part) for part in zip(*found))
        print(f"{rows} a batch: {rows * given.tokens / mine:,.0f} tokens a second, torch "
              f"{rows * given.tokens / other:,.0f}: {other / mine:.2f} ×; {same} of {rows} texts identical")


if __name__ == "__main__":
    main()
