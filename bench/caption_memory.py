"""Batch size against GPU memory of caption_full, as the planner predicts it, beside what the document of the
original model says: about 12, 20, 35 and 65 GB for 8, 16, 32 and 64 rows.

    python bench/caption_memory.py > bench/results/caption_memory.md

No GPU is needed: the steps run on fake tensors. The rows are made up: captions of 100 tokens of a vocabulary
of 8,000, and pictures of the preset's size, and of twice as many pixels a side.
"""
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

SAID = {8: 12, 16: 20, 32: 35, 64: 65}  # rows -> GB
ROWS, WORDS = 80, 100
REASONS = """
What the document says lies on a line: 4.4 GB, and 0.95 GB a row. The planner's is lower, for two reasons.

- *A row.* The document does not say how large its pictures are. What a row needs grows with their area: at
  1024 × 1024 the same widths in fp32 need what the document says, but for a tenth. Its number of parameters
  fits 512 × 512, though, where a row of this network keeps a quarter of that: the encoder halves the sides in
  its first layer. Captions hardly matter: 100 tokens of 8,000 words are 3 MB of logits.
- *What does not grow.* Weights, gradients and AdamW's two moments. The planner predicts
  `torch.cuda.max_memory_allocated`; `nvidia-smi`, by which most people go, also counts the CUDA context and
  what the allocator keeps for later.

Nothing of this was measured on a GPU.
"""


def pictures(folder: Path):
    "Eighty pictures with captions that hold 8,000 words."
    from PIL import Image

    folder.mkdir()
    lines = []
    for i in range(ROWS):
        Image.new("RGB", (64, 64), (3 * i, 255 - 3 * i, 128)).save(folder / f"{i:03}.png")
        lines.append(f"{i:03}.png\t" + " ".join(f"w{WORDS * i + k}" for k in range(WORDS)))
    (folder / "captions.txt").write_text("\n".join(lines) + "\n", encoding="utf8")


def predicted(home: Path, overrides: str):
    "(parameters, {rows: the peak of a training step on a GPU})."
    import torch

    from workbench.core.memory.predict import resized
    from workbench.core.setup.memory_plan import computes_in, longest_batch, peak_of
    from workbench.core.setup.prepare import without_weights
    from workbench.core.stages.stages import complete

    source = home / "pictures"
    pictures(source)
    cfg = complete("caption_full", f"data.source={source} data.captions={source}/captions.txt {overrides}")
    (home / "run" / "assets").mkdir(parents=True)
    here = SimpleNamespace(num_processes=1, device=torch.device("cpu"), is_main_process=True)
    setup = without_weights(cfg, home / "run", here)
    data, stage = setup.data, setup.stage
    rows = np.arange(len(data.datasets["train"]))
    batch = longest_batch(setup, rows, np.asarray(data.lengths["train"]).reshape(len(rows), -1))
    low = computes_in(stage.cfg.train.precision, "cuda")
    peaks = {n: peak_of(setup, stage, resized(batch, n), data.counts(batch), "cuda", low) for n in SAID}
    return sum(p.numel() for net in setup.nets.values() for p in net.parameters()), peaks


def main():
    sys.path[:0] = [str(Path(__file__).parents[1])]
    head = ["pictures", "precision", "rows", "document, GB", "predicted, GB",
            "of it weights, gradients, moments", "a row adds, GB"]
    lines, counts = [head, ["---"] * len(head)], {}
    for size, low in ((512, "fp32"), (512, "bf16"), (1024, "fp32"), (1024, "bf16")):
        with tempfile.TemporaryDirectory() as home:
            os.environ["WORKBENCH_RUNS"] = home
            counts[size], peaks = predicted(Path(home), f"data.size={size} train.precision={low}")
        slope = (peaks[64].total - peaks[8].total) / 56
        for n, peak in peaks.items():
            fixed = peak.parameters + peak.gradients + peak.optimizer
            lines.append([f"{size} × {size}", low, n, SAID[n], f"{peak.total / 1e9:.1f}",
                          f"{fixed / 1e9:.1f}", f"{slope / 1e9:.2f}"])
    print("# GPU memory of caption_full\n\n"
          + ", ".join(f"{n:,} parameters at {size} × {size}" for size, n in counts.items())
          + "; GB of 10⁹ bytes. By `python bench/caption_memory.py`.\n")
    print("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))
    print(REASONS.rstrip())


if __name__ == "__main__":
    main()
