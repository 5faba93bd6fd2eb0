"""How well a listener understands a run of text to speech, what it scores, how fast it speaks and trains.

    python bench/tts.py heard RUN --listener faster-whisper:FOLDER # error rates: speech, recordings, vocoder
    python bench/tts.py scores RUN                                # its scores beside those of trivial answers
    python bench/tts.py speed RUN                                 # real-time factor of `workbench use`
    python bench/tts.py align RUN                                 # alignment search beside the reference
    python bench/tts.py loop [--preset tts_tiny]                  # frames a second beside a bare torch loop

Prints markdown tables. The reference of alignment search is maximum_path_c of Glow-TTS (cython), as `pip
install monotonic-alignment-search` ships it. The last three are timings: run them on a machine that does
nothing else.
"""
import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

here = Path(__file__).parent
sys.path[:0] = [str(here), str(here.parent)]
from loop import beside, table  # noqa: E402


def opened(run):
    "Nets, data and configuration of a run; its scores take the melody and no listener."
    import workbench
    from workbench.core.run.folder import config_of

    nets, data = workbench.load(run, "best")
    cfg = config_of(Path(run))
    return (nets, data,
            cfg.model_copy(update={"speak": cfg.speak.model_copy(update={"f0": True, "asr": None})}))


def answers(run, rows):
    "Split -> spoken rows; of the training set a sample of so many."
    from workbench.core.step.evaluate import predict_rows
    from workbench.core.task import Ctx, get

    nets, data, cfg = opened(run)
    ctx = Ctx(training=False, cfg=cfg, data=data)
    found = {split: predict_rows(get(cfg.task), nets, data, split, ctx, cfg.valid.batch_size,
                                 rows if split == "train" else None) for split in data.datasets}
    return data, cfg, found


def shuffled(texts):
    "The same texts, none at its own place."
    order = random.Random(0).sample(range(len(texts)), len(texts))
    return [texts[b] for _, b in sorted(zip(order, order[1:] + order[:1]))]


def heard(options):
    "Word and character error rates of a listener, in percent."
    from workbench.parts.speech.scores import intelligibility, listener
    from workbench.tasks.tts.evaluation import vocoder_of

    data, cfg, found = answers(options.run, options.rows)
    language, mel, mels = cfg.data.text.language, cfg.data.mel, data.own.mels
    listen = listener(options.listener, language)
    make_wave = vocoder_of(cfg.speak.vocoder, mel)
    groups = {"training": found["train"],
              "held out": [r for split, rows in found.items() if split != "train" for r in rows]}
    lines = []
    for group, rows in groups.items():
        texts = [r["reference"] for r in rows]
        waves = {"speech of the run": [r["hypothesis"].wave for r in rows],
                 "recordings": [mels.wave(r["uid"]) for r in rows],
                 f"recordings through {cfg.speak.vocoder}": [
                     make_wave(torch.tensor(np.asarray(mels[r["uid"]]))[None])[0].cpu().numpy()
                     for r in rows]}
        for what, sounds in waves.items():
            said = listen(sounds, mel.rate)
            rates = intelligibility(texts, said, language) | {
                f"other {k}": v for k, v in intelligibility(shuffled(texts), said, language).items()}
            lines.append([f"{what}, {group}", len(rows), *(f"{100 * rates[k]:.1f}" for k in (
                "asr_wer", "asr_cer", "other asr_wer", "other asr_cer"))])
            if options.verbose and what.startswith("speech"):
                print(*(f"{t}\n    {h}" for t, h in zip(texts, said)), sep="\n", file=sys.stderr)
    table(["what is heard", "sentences", "WER %", "CER %", "WER %, other rows' texts",
           "CER %, other rows' texts"], *lines)


def scores(options):
    "The task's scores, beside the better of two answers that read no text."
    from workbench.tasks.tts.evaluation import baseline, score

    data, _, found = answers(options.run, options.rows)
    columns = {}
    for split, rows in found.items():
        columns[f"{split} ({len(rows)})"] = score(rows, data)
        if split != "train":
            columns[f"{split}, without the text"] = baseline(data, split)
    names = list(next(iter(columns.values())))
    table(["score", *columns], *([name, *(f"{c[name]:.3f}" if name in c else "–" for c in columns.values())]
                                 for name in names))


def speed(options):
    "Real-time factor over the held-out texts, one sentence at a time, text to wave."
    from workbench.lab.use import open_run, use

    voice = open_run(options.run)
    texts = [t for split, texts in voice.data.texts.items() if split != "train" for t in texts]
    list(use(voice, texts[0]))
    rounds, first = [], []
    for _ in range(options.rounds):
        parts = [s for text in texts for s in use(voice, text)]
        rounds.append(sum(s.took for s in parts) / sum(s.made.seconds for s in parts))
        first.append(statistics.median(s.took for s in parts))
    table(["vocoder", "sentences", "real-time factor", "worst round", "ms to a sentence (median)"],
          [voice.ctx.cfg.speak.vocoder, len(texts), f"{statistics.median(rounds):.3f}", f"{max(rounds):.3f}",
           f"{1000 * statistics.median(first):.0f}"])


def align(options):
    """The search over the run's own batches, ours and the reference's in turn; the same durations are
    asserted."""
    import numba

    from workbench.core.step.evaluate import batches_of
    from workbench.parts.speech.align import search
    from workbench.parts.speech.nets import symbol_scores
    from workbench.tasks.tts.synthesis import encode_text

    try:
        from monotonic_alignment_search.core import maximum_path_c
        from monotonic_alignment_search.path import maximum_path_cython
    except ImportError:
        sys.exit("The reference is not installed: pip install monotonic-alignment-search")
    nets, data, cfg = opened(options.run)
    if "aligner" not in nets:
        sys.exit("This run takes its durations from a file: it searches no alignment.")
    cases = []
    with torch.no_grad():
        for batch in batches_of(data, "train", cfg.train.batch_size, 12 * cfg.train.batch_size, 0, 1,
                                cfg.seed):
            means = nets["aligner"](encode_text(nets, batch)[0])
            s, t = batch["text_lengths"], batch["mel_lengths"]
            cases.append((symbol_scores(nets["decoder"].standardise(batch["mel"]), means, s, t), s, t))
    turned = [q.transpose(1, 2).contiguous() for q, _, _ in cases]  # [B, S, T], as the reference takes them
    masks = [((torch.arange(q.shape[1]) < s[:, None])[:, :, None]
              & (torch.arange(q.shape[2]) < t[:, None])[:, None]).float()
             for q, (_, s, t) in zip(turned, cases)]

    def kernel(k):
        values, paths = turned[k].numpy().copy(), np.zeros(turned[k].shape, np.int32)
        sizes = [n.numpy().astype(np.int32) for n in cases[k][1:]]
        began = time.perf_counter()
        maximum_path_c(paths, values, *sizes)
        return time.perf_counter() - began, paths.sum(2)

    def whole(k):
        began = time.perf_counter()
        path = maximum_path_cython(turned[k], masks[k])
        return time.perf_counter() - began, path.sum(2).long().numpy()

    def ours(k, threads):
        numba.set_num_threads(threads)
        began = time.perf_counter()
        found = search(*cases[k])
        return time.perf_counter() - began, found.numpy()

    threads = numba.config.NUMBA_NUM_THREADS
    ways = {"reference, its compiled loop alone": kernel, "reference, tensor to tensor": whole,
            "workbench, one thread": lambda k: ours(k, 1),
            f"workbench, {threads} threads": lambda k: ours(k, threads)}
    times = {name: [] for name in ways}
    for i in range(-1, options.rounds):  # the first round warms up
        sums = dict.fromkeys(ways, 0.0)
        for k in range(len(cases)):
            found = {}
            for name in list(ways) if i % 2 else reversed(ways):
                took, found[name] = ways[name](k)
                sums[name] += took
            assert all(np.array_equal(found[name], next(iter(found.values())))
                       for name in found), "other durations"
        if i >= 0:
            [times[name].append(took / len(cases)) for name, took in sums.items()]
    base = times["reference, tensor to tensor"]
    table(["search", "ms a batch (median)", "speed × reference, tensor to tensor"],
          *([name, f"{1000 * statistics.median(t):.2f}",
             f"{statistics.median(b / a for a, b in zip(t, base)):.2f}"]
            for name, t in times.items()))
    size = [float(np.mean([q.shape[d] for q, _, _ in cases])) for d in (0, 1, 2)]
    print("\nA batch: {:.0f} rows, {:.0f} frames, {:.0f} symbols on the average.".format(*size))


def loop(options):
    "Training frames per second, bare loop and workbench in turn on the same batches and nets."
    with tempfile.TemporaryDirectory() as folder:
        found = beside(options.preset, options.rounds, options.steps, Path(folder) / "run")

    def rate(steps):
        return sum(c["frames"] for _, c in steps) / sum(t for t, _ in steps)
    rates = [[rate(a), rate(b)] for a, b in found]
    table(["loop", "frames per second (median of rounds)", "× bare (median of rounds)"],
          ["bare torch", f"{statistics.median(a for a, _ in rates):,.0f}", "1.000"],
          ["workbench", f"{statistics.median(b for _, b in rates):,.0f}",
           f"{statistics.median(b / a for a, b in rates):.3f}"])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=["heard", "scores", "speed", "align", "loop"])
    parser.add_argument("run", nargs="?")
    parser.add_argument("--listener", help="a whisper's folder or hub name, or faster-whisper:FOLDER")
    parser.add_argument("--rows", type=int, default=30, help="of the training set")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25, help="of a round of `loop`")
    parser.add_argument("--preset", default="tts_tiny")
    parser.add_argument("--verbose", action="store_true", help="also what was heard of each sentence")
    options = parser.parse_args()
    if options.question != "loop" and not options.run or options.question == "heard" and not options.listener:
        parser.error(f"{options.question} needs a run" + " and --listener" * (options.question == "heard"))
    {"heard": heard, "scores": scores, "speed": speed, "align": align,
     "loop": loop}[options.question](options)


if __name__ == "__main__":
    main()
