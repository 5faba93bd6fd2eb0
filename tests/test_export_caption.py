"""A caption run leaves: pictures are described and captions drawn by numpy and a runtime as the workbench
does it, at sizes and batches that were not used when it was written."""
import numpy as np
import pytest
from PIL import Image
from test_caption_use import TINY, pictures
from runs import end, go

from workbench.lab.export import export
from workbench.lab.use import open_run, use
from workbench.parts.portable.bundle import Bundle
from workbench.parts.portable.feeds import Unusable
from workbench.tasks.caption import program

pytest.importorskip("onnxruntime")


def trained(folder, **model):
    base = TINY | {"data": {"source": str(pictures(folder / "data")), "size": 16, "max_length": 12,
                            "captions": str(folder / "data/captions.txt")},
                   "model": {**TINY["model"], **model}}
    if "caption_decoder" in model:  # GPT-2 has its own
        base["model"]["captions"] = {"memory": 2, "hidden": 16}
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


def test_models_of_the_hub_leave_as_they_are(tmp_path):
    "A vision encoder, a causal text model, and pieces in place of words."
    from transformers import GPT2Config, ViTConfig

    ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16,
              patch_size=8).save_pretrained(tmp_path / "vit")
    GPT2Config(n_embd=16, n_layer=1, n_head=2).save_pretrained(tmp_path / "gpt2")
    run = trained(tmp_path, image_encoder=str(tmp_path / "vit"), caption_decoder=str(tmp_path / "gpt2"),
                  tokenizer="subword", init="scratch")
    report = export(run, "onnx", say=lambda line: None)
    assert report["formats"][0]["agreement with the workbench"] == 1
    assert Bundle(run / "export").settings["whole"]
