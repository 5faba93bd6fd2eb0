"""`workbench check-model`: the right verdict, and no weights downloaded for it."""
import json

import pytest
import torch

from test_hub import DEAD, as_hub, server
from test_seq2seq import FAMILIES, make
from workbench.parts.text.check_model import as_text, check_model, look_at_memory, look_at_network, works
from workbench.parts.text import tokenizer as text

pytestmark = pytest.mark.usefixtures("online")


def states(report):
    return {f.about: f.state for f in report}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tested_family_works(family):
    findings, count, _ = look_at_network(FAMILIES[family], frames=30, tokens=20)
    assert works(findings) and count == sum(p.numel() for p in make(family).parameters())
    assert states(findings)["network"] == states(findings)["positions"] == "ok"


def test_positions_are_compared_with_the_frames():
    findings, *_ = look_at_network(FAMILIES["bart"], frames=300, tokens=20)
    assert [f.says for f in findings if f.state == "fail"] == [
        "sources of 300 steps, but 40 positions: lower data.max_frames to 40"]
    assert works(look_at_network(FAMILIES["t5"], frames=300, tokens=500)[0])


def test_a_model_that_takes_no_embeddings_is_found_out():
    config = {"model_type": "fsmt", "src_vocab_size": 50, "tgt_vocab_size": 50, "d_model": 32,
              "encoder_layers": 1,
              "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
              "encoder_ffn_dim": 32,
              "decoder_ffn_dim": 32}
    findings, *_ = look_at_network(config, frames=30, tokens=20)
    assert "cannot be fed with inputs_embeds" in next(f.says for f in findings if f.state == "fail")


@pytest.mark.parametrize("config, words", [
    ({"model_type": "gpt2"}, "gpt2 is no encoder-decoder"),
    ({"model_type": "bert"}, "bert is no encoder-decoder"),
    ({"model_type": "mine", "auto_map": {"AutoModel": "m.M"}}, "no remote code is run"),
    ({"a": 1}, "model_type"),
    ({"model_type": "t5", "feed_forward_proj": "a-b-c"}, "not valid")])
def test_what_will_not_work(config, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = check_model(str(tmp_path), endpoint=DEAD, cache_dir=str(tmp_path))
    assert not works(report) and words in report[-1].says
    assert as_text("it", report).endswith("it: will not work.")


def test_a_folder_is_judged_whole(tmp_path):
    make("t5").save_pretrained(tmp_path)
    assert states(check_model(str(tmp_path)))["tokenizer"] == "warn"
    text.save_tokenizer(text.train_tokenizer(["hello"], "char"), tmp_path)
    report = check_model(str(tmp_path))
    assert works(report) and states(report)["tokenizer"] == states(report)["weights"] == "ok"
    (tmp_path / "model.safetensors").unlink()
    torch.save(make("t5").state_dict(), tmp_path / "pytorch_model.bin")
    assert states(check_model(str(tmp_path)))["weights"] == "warn"


def test_a_wrong_name_is_said_to_be_wrong(tmp_path):
    with server(lambda method, path: (404, {}, b"")) as (url, _):
        report = check_model("no/such", endpoint=url, cache_dir=str(tmp_path))
    assert not works(report) and "the name is wrong" in report[0].says


def test_an_architecture_is_judged_without_a_hub(tmp_path):
    report = check_model("t5-small", endpoint=DEAD, cache_dir=str(tmp_path))
    assert works(report) and states(report)["source"] == "warn" and "60,506,624" in report[1].says


def test_no_weights_are_downloaded(tmp_path, monkeypatch):
    from huggingface_hub import constants

    folder, cache = tmp_path / "made", tmp_path / "cache"
    make("bart").save_pretrained(folder)
    text.save_tokenizer(text.train_tokenizer(["hello"], "char"), folder)
    with server(as_hub(folder, "org/tiny")) as (url, asked):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        report = check_model("org/tiny", frames=30, tokens=20, endpoint=url)
    assert works(report) and states(report)["tokenizer"] == "ok", report
    assert not [path for _, path in asked if "safetensors" in path]
    assert not list(tmp_path.glob("cache/**/*.safetensors"))


def test_memory_is_compared_with_the_machine():
    assert [look_at_memory(n, n).state for n in (1_000_000, 2_000_000_000_000)] == ["ok", "fail"]
