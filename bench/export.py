"""Torch, ONNX, TFLite and CTranslate2 answer the same held-out inputs, in interleaved rounds of one run.

    python bench/export.py RUN                       # a trained run; exported to a temporary folder
    python bench/export.py RUN --bundle DIR          # an export that is there
    python bench/export.py RUN --threads 1 --rounds 5

Each way has a process of its own with the same number of threads, answers 50 texts one at a time and eight at
a time, and counts its own tokens; the rounds go forwards and backwards in turns. Peak memory is that of the
process, its libraries included. Torch is the workbench's own greedy search with its keys and values kept.
CTranslate2 takes part in a translation run where it is installed and its converter takes the model.
Writes results/export_RUN.csv and .png beside this file.
"""
import argparse
import csv
import importlib.util
import json
import os
import pickle
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(Path(__file__).parents[1]))


def converted(run, checkpoint, home, precision):
    "The model as a folder of CTranslate2."
    from ctranslate2.converters import TransformersConverter, transformers

    from workbench.core.run.folder import config_of
    from workbench.deploy.ready import ready
    from workbench.lab.use import read_run

    opened = read_run(run, config_of(run), checkpoint)
    plain, made = home / "plain", home / precision
    ready(opened.nets)["translator"].save_pretrained(plain)
    opened.data.own.tokenizer.save_pretrained(plain)
    # the converter takes it for granted that padding is token 1; where it is 0, places would be one too far
    transformers.M2M100Loader.set_position_encodings = lambda self, spec, module: setattr(
        spec, "encodings", module.weights[module.padding_idx + 1:])
    TransformersConverter(str(plain)).convert(str(made), quantization=precision)
    return made


def serve_converted(model, bundle, threads, inputs):
    "Answer as CTranslate2 does, with the tokenizer and the languages of a bundle."
    sys.path.insert(0, bundle)
    import ctranslate2
    import program
    from pieces import opened_pieces
    from timing import serve

    net = ctranslate2.Translator(model, device="cpu", intra_threads=int(threads))
    settings = json.loads((Path(bundle) / "manifest.json").read_text(encoding="utf8"))["settings"]
    pieces = opened_pieces(Path(bundle) / "assets")
    name, id_of = pieces.inner.id_to_token, pieces.inner.token_to_id

    def answers(texts):
        found = [program.asked(given, settings) for given in texts]
        frames = [settings["pairs"][pair] for _, pair in found]
        sources = [[name(int(i)) for i in program.source_of(text, frame, pieces, settings["most"])]
                   for (text, _), frame in zip(found, frames)]
        # the decoder's start stands in the folder; what is behind it is the prefix
        prefixes = [[name(i) for i in frame["begin"][1:]] for frame in frames]
        results = net.translate_batch(sources, target_prefix=prefixes, beam_size=1,
                                      max_decoding_length=settings["longest"] + 1)
        return [pieces.text([id_of(t) for t in r.hypotheses[0]][len(prefix):])
                for r, prefix in zip(results, prefixes)]

    serve(answers, pickle.loads(Path(inputs).read_bytes()))


def others(run, checkpoint, bundle, home, threads):
    "The ways of CTranslate2: name -> (command, bytes)."
    task = json.loads((bundle / "manifest.json").read_text(encoding="utf8"))["task"]
    if importlib.util.find_spec("ctranslate2") is None or task != "translate":
        return {}
    found = {}
    for precision in ("float32", "int8"):
        made = converted(run, checkpoint, home, precision)
        found[f"ctranslate2 {precision}"] = (
            [sys.executable, __file__, "--serve", str(made), str(bundle), str(threads)],
            (made / "model.bin").stat().st_size)
    return found


def main():
    top = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    top.add_argument("run", type=Path)
    top.add_argument("--bundle", type=Path, help="default: the run is exported for this")
    top.add_argument("--checkpoint", default="best")
    top.add_argument("--rounds", type=int, default=3)
    top.add_argument("--threads", type=int, default=os.cpu_count())
    options = top.parse_args()
    from workbench.core.run.folder import config_of
    from workbench.lab.export import export, leaving_of
    from workbench.lab.export_bench import bench_chart, bench_table, measured

    with tempfile.TemporaryDirectory() as home:
        bundle = options.bundle or Path(home) / "bundle"
        if not options.bundle:
            export(options.run, "onnx,tflite", bundle, options.checkpoint, "fp32,fp16,int8")
        leaving, _ = leaving_of(options.run, config_of(options.run), options.checkpoint)
        more = others(options.run, options.checkpoint, bundle, Path(home), options.threads)
        rows = measured(leaving, options.run, options.checkpoint, bundle, options.rounds,
                        threads=options.threads, others=more)
    RESULTS.mkdir(exist_ok=True)
    name = f"export_{options.run.name}"
    with open(RESULTS / f"{name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    bench_chart(rows).savefig(RESULTS / f"{name}.png", dpi=100)
    print(bench_table(rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve_converted(*sys.argv[2:])
    else:
        main()
