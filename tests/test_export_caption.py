"""A caption run leaves: pictures are described and captions drawn by numpy and a runtime as the workbench
does it, at sizes and batches that were not used when it was written."""
import json

import numpy as np
import pytest
import torch
from bare import bare_python, ran
from PIL import Image
from test_caption_use import TINY, pictures
from runs import end, go

from workbench.deploy.operators import check_operators, traced
from workbench.errors import Refused
from workbench.lab.export import export
from workbench.lab.use import open_run, use
from workbench.parts.portable.bundle import Bundle
from workbench.parts.portable.feeds import Unusable
from workbench.tasks.caption import exports, program
from workbench.tasks.caption.captions import caption_rules
from workbench.tasks.caption.config import Generate
from workbench.tasks.caption.tokens import of_words
from workbench.parts.text.words import Words

pytest.importorskip("onnxruntime")


def trained(folder, **model):
    base = TINY | {"data": {"source": str(pictures(folder / "data")), "size": 16, "max_length": 12,
                            "captions": str(folder / "data/captions.txt")},
                   "model": {**TINY["model"], **model}}
    if "caption_decoder" in model:  # it has its own layers
        base["model"]["captions"] = {"memory": 2, "hidden": 16, "encoder_layers": 1, "heads": 2}
    run = go(folder / "run", "", base=base)
    assert end(run, 300)["state"] == "finished"
    return run.folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("caption"))


@pytest.fixture(scope="module")
def left(run):
    "(the report, the bundle)."
    report = export(run, "onnx", precision="fp32,int8", say=lambda line: None)
    return report, Bundle(run / "export")


def test_every_call_and_every_answer_is_that_of_torch(left):
    report, _ = left
    plain, small = report["formats"]
    assert plain["agreement"] == plain["agreement with the workbench"] == 1
    assert max(row["difference"] for row in plain["outputs"]) < 1e-4 and small["bytes"] < plain["bytes"]
    assert {row["graph"] for row in plain["outputs"]} == {"image_encoder", "memory", "caption_decoder",
                                                          "caption_encoder", "image_decoder"}


@pytest.mark.parametrize("batch", [1, 5])
def test_pictures_and_captions_in_any_order(run, left, tmp_path, batch):
    "A picture of another size is brought to the model's as the workbench does."
    bundle, opened = left[1], open_run(run)
    answer = program.opened(bundle.models, bundle.settings, bundle.assets)
    draw, given = np.random.default_rng(batch), []
    for i in range(batch):
        Image.fromarray(draw.integers(0, 256, (20 + i, 30, 3), np.uint8)).save(tmp_path / f"{i}.png")
        given += [str(tmp_path / f"{i}.png"), "a red field" if i % 2 else "a blue field high low a"]
    found = answer([program.read_input(word) for word in given])
    for word, mine in zip(given, found):
        theirs, = (a.made for a in use(opened, word, overrides="generate.num_beams=1"))
        if word.endswith(".png"):
            assert mine == theirs
        else:
            assert abs(mine.astype(int) - theirs).max() <= 1


def test_answers_are_shown_or_written(left, tmp_path):
    bundle = left[1]
    answer = program.opened(bundle.models, bundle.settings, bundle.assets)
    text, picture = answer([np.zeros((16, 16, 3), np.uint8), "a red field"])
    assert program.write_answer(text, tmp_path / "a") == text
    written = program.write_answer(picture, tmp_path / "b")
    assert np.array_equal(Image.open(written), picture)


@pytest.mark.parametrize("given,why", [("zebra", "no word that the run knows"),
                                       ("", "no word that the run knows"),
                                       ("/no/such.png", "there is no file")])
def test_what_cannot_be_used_is_one_sentence(left, given, why):
    bundle = left[1]
    with pytest.raises(Unusable, match=why):
        program.opened(bundle.models, bundle.settings, bundle.assets)([program.read_input(given)])


def test_the_rules_are_those_of_the_workbench():
    "Over beginnings of several lengths, with a penalty and with trigrams that may not come again."
    tokens, draw = of_words(Words.build_vocab(["a red field", "a blue field"]), {}), np.random.default_rng(0)
    g = Generate(repetition_penalty=1.3, no_repeat_ngram=2)
    settings = {"end": tokens.end, "never": [tokens.pad, tokens.start, tokens.unk], "repetition_penalty": 1.3,
                "no_repeat_ngram": 2}
    for n in range(1, 9):
        lines = np.concatenate([np.full((3, 1), tokens.start), draw.integers(4, len(tokens), (3, n - 1))], 1)
        mine = draw.standard_normal((3, len(tokens))).astype(np.float32)
        theirs = torch.from_numpy(mine.copy())
        for rule in caption_rules(g, tokens):
            theirs = rule(torch.from_numpy(lines), theirs, None)
        for rule in program.rules_of(settings):
            rule(lines, mine)
        assert np.allclose(mine, theirs.numpy())


def test_a_run_without_a_known_held_out_caption_does_not_leave(run):
    opened = open_run(run)
    for row in opened.data.datasets["valid"].rows:
        object.__setattr__(row, "caption", "zebra")
    with pytest.raises(Refused, match="no caption of the .* has a word that the run knows"):
        exports.held_out(opened.data)


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    "Numpy, tokenizers and onnxruntime alone."
    return bare_python(tmp_path_factory.mktemp("bare") / "env")


def used_alone(run, python, folder):
    "A picture file and a caption, by the bundle's example and by the workbench."
    pixels = np.random.default_rng(0).integers(0, 256, (21, 30, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "given.png")
    words = [str(folder / "given.png"), "a red field"]
    out = ran(python, run / "export/example.py", *words, cwd=folder)
    assert (out.returncode, out.stderr) == (0, "")
    text, picture = (a.made for a in use(run, *words, overrides="generate.num_beams=1"))
    lines = [line.strip() for line in out.stdout.splitlines()]
    made = next(folder / line for line in lines if line.endswith(".png") and (folder / line).is_file()
                and folder / line != folder / "given.png")
    assert text in lines and abs(np.asarray(Image.open(made)).astype(int) - picture).max() <= 1


def test_the_example_runs_where_there_is_no_torch(run, left, python, tmp_path):
    used_alone(run, python, tmp_path)


def test_a_vision_model_and_gpt2_leave_with_what_they_keep(python, tmp_path):
    "The vision model has a size of its own, a transformer reads captions, and pieces stand for words."
    from transformers import GPT2Config, ViTConfig

    ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=24,
              patch_size=8).save_pretrained(tmp_path / "vit")
    GPT2Config(n_embd=16, n_layer=2, n_head=2).save_pretrained(tmp_path / "gpt2")
    run = trained(tmp_path, image_encoder=str(tmp_path / "vit"), caption_decoder=str(tmp_path / "gpt2"),
                  tokenizer="subword", init="scratch")
    found = export(run, "onnx", say=lambda line: None)["formats"][0]
    assert found["agreement with the workbench"] == 1
    assert max(row["difference"] for row in found["outputs"]) < 1e-4
    manifest = json.loads((run / "export/manifest.json").read_text())
    assert "memory" in manifest["graphs"] and manifest["needs"] == ["numpy", "tokenizers", "onnxruntime"]
    used_alone(run, python, tmp_path)
    opened = open_run(run)
    leaving = exports.exports(opened.nets, opened.data, opened.ctx)
    for name, graph in leaving.graphs.items():  # no resizing that is changed in silence, no infinite mask
        check_operators(name, traced(name, graph, leaving.axes), graph.net, half=True)


def test_a_writer_without_cross_attention_reads_all_tokens_anew(tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=64).save_pretrained(tmp_path / "llama")
    run = trained(tmp_path, caption_decoder=str(tmp_path / "llama"), tokenizer="subword", init="scratch")
    report = export(run, "onnx", say=lambda line: None)
    assert report["formats"][0]["agreement with the workbench"] == 1
    assert Bundle(run / "export").settings["whole"]
