"""The hub's folder: plain transformers, in a process that cannot import the workbench, reads it and writes
the run's texts; peft reads the adapters; every other net is loaded from its files alone. And the card."""
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import phrases
import pytest
import signs
import torch
import yaml
from test_map import BRIEF, SMALL
from torch import nn
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, T5Tokenizer

import workbench
from workbench.core.task import Axis, Graph, Leaving
from workbench.deploy import hub
from workbench.deploy.card import card, licences_in, sheets
from workbench.deploy.verify import Call
from workbench.errors import Refused
from workbench.lab.use import open_run
from workbench.parts.text import hub_folder
from workbench.parts.text.lora import add_lora
from workbench.parts.text.pretrained import build_seq2seq
from workbench.parts.text.seq2seq import start_id
from workbench.parts.text.tokenizer import train_tokenizer
from workbench.tasks.sign.translation import translate
from workbench.tasks.translate.translation import beginning_of, items_of, translate_all

ALONE = ("import runpy, sys; sys.modules['workbench'] = None; sys.argv = sys.argv[1:]; "
         "runpy.run_path(sys.argv[0], run_name='__main__')")
T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
      "pad_token_id": 0,
      "eos_token_id": 1, "decoder_start_token_id": 0}


def alone(script, *words):
    "What a script prints where there is no workbench."
    done = subprocess.run([sys.executable, "-I", "-c", ALONE, str(script), *map(str, words)],
                          capture_output=True,
                          text=True, cwd=script.parent)
    assert not done.returncode, done.stderr[-2000:]
    return done.stdout.split("\n")[:-1]


# A translation

@pytest.fixture(scope="module")
def translation(tmp_path_factory):
    "A run, trained for a moment."
    home = tmp_path_factory.mktemp("texts")
    source = phrases.corpus(home / "texts", ["en-de", "en-am"])
    return open_run(workbench.train(
        "universal_tiny", f"{BRIEF} {SMALL['translate']} pipeline=null data.source={source} "
                          "generate.max_length=12 "
                          "train.max_steps=30 train.checkpoint_every=30 train.batch_size=8 train.lr=0.01",
        run_dir=home / "run"))


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_writes_the_run_s_texts(translation, tmp_path, beams):
    own, model = translation.data.own, translation.nets["translator"]
    cfg = translation.ctx.cfg
    g = cfg.generate.model_copy(update={"num_beams": beams})
    ctx = replace(translation.ctx, data=translation.data, cfg=cfg.model_copy(update={"generate": g}))
    pairs = {p: {"before": list(f.before), "after": list(f.after), "begin": list(beginning_of(model, f))}
             for p, f in own.frames.items()}
    hub_folder.save_translator(tmp_path, model, own.tokenizer, g.max_length, pairs, "en-am", num_beams=beams,
                               length_penalty=g.length_penalty)
    texts = [t for t, p in zip(own.sources["train"], own.pairs["train"]) if p == "en-de"][:6]
    for pair in ("en-de", "en-am"):
        mine = [t[0][0] for t in translate_all(translation.nets, items_of(texts, own.tokenizer), pair, ctx)]
        assert alone(tmp_path / "use.py", pair, *texts) == mine and any(mine)
    words = AutoTokenizer.from_pretrained(tmp_path)(texts[0], return_tensors="pt")  # the usual pair by itself
    assert words.input_ids[0].tolist() == [*pairs["en-am"]["before"], *own.tokenizer(
        texts[0], add_special_tokens=False).input_ids, *pairs["en-am"]["after"]]
    found = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).generate(**words)
    assert found[0, :len(pairs["en-am"]["begin"])].tolist() == pairs["en-am"]["begin"]


# Signs, with adapters

@pytest.fixture(scope="module")
def signing(tmp_path_factory):
    "A run with adapters."
    home = tmp_path_factory.mktemp("signs")
    return open_run(workbench.train("t5_tiny",
                                    f"{BRIEF} {SMALL['sign']} model.lora.r=4 model.lora.targets=[q,v] "
                                               f"data.source={signs.good_folder(home / 'mine')} "
                                               "generate.max_length=8 generate.num_beams=1 generate.ctc=0 "
                                               "train.lr=0.01",
                                    run_dir=home / "run"))


def test_a_signing_model_reads_frames_and_its_adapters_are_peft_s(signing, tmp_path):
    model, data = signing.nets["translator"], signing.data
    with torch.no_grad():  # so that merging changes something
        for name, p in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.5)
    hub_folder.save_model(tmp_path, model, data.own.tokenizer, 8, [start_id(model)],
                          no_repeat_ngram_size=data.own.no_repeat_ngram)
    hub_folder.save_reader(tmp_path, signing.nets["reader"], data.facts["numbers_per_frame"])
    rows, mine = data.datasets["valid"], []
    for i in range(3):
        frames = torch.from_numpy(np.asarray(rows[i, 0][1], np.float32))
        np.save(tmp_path / f"{i}.npy", frames.numpy())
        with torch.no_grad():
            mine += translate(signing.nets,
                              {"frames": frames[None], "frame_lengths": torch.tensor([len(frames)])},
                              replace(signing.ctx, data=data))
    assert alone(tmp_path / "use.py", *(tmp_path / f"{i}.npy" for i in range(3))) == mine
    (tmp_path / "adapted.py").write_text(
        "import torch\nfrom peft import PeftModel\nfrom transformers import AutoModelForSeq2SeqLM as Auto\n"
        "net = PeftModel.from_pretrained(Auto.from_pretrained('base'), 'adapter').eval()\n"
        "some = dict(input_ids=torch.tensor([[4, 5, 6, 1]]), decoder_input_ids=torch.tensor([[0, 4]]))\n"
        "with torch.no_grad():\n"
        "    a, b, c = (n(**some).logits for n in (net, Auto.from_pretrained('.').eval(), "
        "Auto.from_pretrained('base').eval()))\nprint(float((a - b).abs().max() / b.abs().max()) < 1e-4, "
        "float((b - c).abs().max()) > 0.001)\n")
    assert alone(tmp_path / "adapted.py") == ["True True"]
    assert hasattr(model, "peft_config")  # the run's own stays as it is


# What transformers loses in silence

@pytest.mark.parametrize("tied", [True, False])
def test_a_t5_keeps_its_start_and_its_tables(tmp_path, tied):
    tok = train_tokenizer(["good morning", "the red house"])
    model = build_seq2seq(T5 | {"vocab_size": len(tok), "tie_word_embeddings": tied}).eval()
    hub_folder.save_model(tmp_path, model, tok, 12, [0])
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert (again.lm_head.weight is again.shared.weight) == tied == again.config.scale_decoder_outputs
    assert GenerationConfig.from_pretrained(tmp_path).decoder_start_token_id == 0
    some = torch.tensor([[4, 5, 1]])
    with torch.no_grad():
        assert torch.equal(*(m(input_ids=some, decoder_input_ids=some).logits for m in (model, again)))


def test_another_model_in_the_folder_is_refused(tmp_path):
    tok = train_tokenizer(["good morning", "the red house"])
    model = build_seq2seq(T5 | {"vocab_size": len(tok)}).eval()
    hub_folder.save_model(tmp_path, model, tok, 12, [0])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"scale_decoder_outputs": False}))
    with pytest.raises(Refused, match="transformers computes another output"):
        hub_folder.check_read_back(model, tmp_path)
    with torch.no_grad():
        model.shared.weight[5] += 1
    with pytest.raises(Refused, match="transformers reads another `shared.weight`"):
        hub_folder.check_read_back(model, tmp_path)


def test_a_t5_tokenizer_is_read_with_its_pieces(tmp_path):
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((c, -3.0) for c in "abdegmnor")]
    tok = T5Tokenizer(vocab=pieces, extra_ids=0)
    model = build_seq2seq(T5 | {"vocab_size": len(tok)}).eval()
    hub_folder.save_model(tmp_path, model, tok, 12, [0])
    ids = AutoTokenizer.from_pretrained(tmp_path)("good morn").input_ids
    assert tok.unk_token_id not in ids and ids == tok("good morn").input_ids
    vocab = json.loads((tmp_path / "tokenizer.json").read_text())
    vocab["model"]["vocab"] = vocab["model"]["vocab"][:5]  # as from a file that says nothing
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocab))
    with pytest.raises(Refused, match="transformers reads another tokenizer"):
        hub_folder.check_tokens(tok, tmp_path)


def test_padding_of_the_last_call_is_not_kept(tmp_path):
    tok = train_tokenizer(["good morning", "the red house"])
    tok(["good", "good morning"], padding="max_length", max_length=30, truncation=True)
    model = build_seq2seq(T5 | {"vocab_size": len(tok)}).eval()
    hub_folder.save_model(tmp_path, model, tok, 12, [0])
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["padding"] is None and saved["truncation"] is None


def test_a_beginning_of_three_tokens_is_refused():
    model = build_seq2seq(T5 | {"vocab_size": 20})
    with pytest.raises(Refused, match="begins with 3 tokens"):
        hub_folder.generation_of(model, 12, [0, 4, 5])


def test_merging_leaves_the_adapted_model_alone(tmp_path):
    model = add_lora(build_seq2seq(T5 | {"vocab_size": 20}), r=2, targets=["q"])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    net = hub_folder.plain_copy(tmp_path, model)
    assert not hasattr(net, "peft_config") and {p.name for p in tmp_path.iterdir()} == {"adapter", "base"}
    assert before.keys() == model.state_dict().keys()


# Every other net

class Tied(nn.Module):
    "A table that is the output layer too."

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids, mask):
        return self.out(self.table(ids) * mask[..., None])


@pytest.fixture
def scorer():
    row = {0: "batch", 1: "source"}
    graph = Graph(Tied().eval(), {"ids": torch.randint(50, (2, 5)), "mask": torch.ones(2, 5)}, ["logits"],
                  {"ids": row, "mask": row, "logits": row})
    return Leaving(graphs={"scorer": graph}, axes={"batch": Axis(1, 8), "source": Axis(1, 64)},
                   program="none",
                   expected=list, score=dict)


def test_a_graph_is_loaded_without_its_class(scorer, tmp_path):
    files = hub.write(scorer, tmp_path, "fp32", str)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "load.py", "scorer.example.safetensors",
                                                    "scorer.pt2", "scorer.safetensors"}
    said, = alone(tmp_path / "load.py")  # another program of torch: to rounding
    assert said.startswith("scorer logits (2, 5, 50) ") and float(said.split()[5]) < 1e-5, said
    assert len((tmp_path / "load.py").read_text().splitlines()) < 25
    assert (tmp_path / "scorer.safetensors").stat().st_size < 50 * 16 * 4 + 200  # once
    feeds = {"ids": np.arange(27).reshape(3, 9), "mask": np.ones((3, 9), np.float32)}
    with torch.no_grad():
        wanted = scorer.graphs["scorer"].net(*map(torch.from_numpy, feeds.values())).numpy()
    found = hub.check(scorer, tmp_path, files, "fp32", [Call("scorer", feeds, {"logits": wanted})])
    assert not found["problem"] and found["outputs"][0]["difference"] == 0
    wrong = hub.check(scorer, tmp_path, files, "fp32", [Call("scorer", feeds, {"logits": wanted + 1})])
    assert "`logits` of `scorer` differs" in wrong["problem"]


class Branches(nn.Module):
    def forward(self, x):
        return x + 1 if bool(x.sum() > 0) else x


def test_what_torch_cannot_follow_is_refused(tmp_path):
    odd = Leaving(graphs={"odd": Graph(Branches(), {"x": torch.ones(2, 3)}, ["y"], {})}, axes={},
                  program="none",
                  expected=list, score=dict)
    with pytest.raises(Refused, match="`odd` cannot be written as operators of torch"):
        hub.write(odd, tmp_path, "fp32", str)


# The card

MANIFEST = {"task": "translate", "run": "mine", "checkpoint": "best", "step": 1200,
            "needs": ["numpy", "tokenizers"],
            "metrics": {"chrf": 24.5, "chrf/en-am": 14.0}, "baseline": {"chrf": 15.5}, "files": {},
            "fingerprint": {"source": "samples"}, "axes": {"source": {"low": 1, "high": 100}}}
REPORT = {"inputs": 50,
          "formats": [{"format": "onnx", "precision": "int8", "bytes": 2_000_000, "agreement": 0.98,
                                     "outputs": [{"difference": 0.02}], "problem": ""}]}


def front(page):
    "The head of a card, as the hub reads it."
    return yaml.safe_load(page.split("---\n")[1])


def test_the_head_of_a_card():
    assert front(card(MANIFEST, REPORT)) == {
        "license": "other", "license_name": "as-its-data", "license_link": "README.md#data",
        "language": ["am", "en"],
        "library_name": "pytorch", "metrics": ["chrf"], "tags": ["translate"]}
    files = {"hub/config.json": {}, "hub/use.py": {}}
    assert front(card(MANIFEST | {"files": files}, REPORT))["library_name"] == "transformers"
    assert front(card(MANIFEST | {"files": files | {"hub/load.py": {}}}, REPORT))["library_name"] == "pytorch"


def test_a_card_quotes_the_datasheet_of_samples_and_not_its_checksums():
    page = card(MANIFEST, REPORT)
    assert "CC-BY-SA-3.0" in page and "BSD-3-Clause" in page and "who are to be named" in page
    assert "One domain" in page and "0d635a840747958c" not in page
    sheet = sheets({"source": "samples", "samples": "emoji"}, "flow", {})[0].read_text()
    assert licences_in(sheet) == ["cc-by-4.0", "mit", "apache-2.0", "unicode-3.0"]


def test_a_card_of_data_of_one_s_own_claims_no_licence():
    page = card(MANIFEST | {"fingerprint": {"source": "clips/mine"}}, REPORT)
    assert ("Your own data: clips/mine. Its licence is yours to state" in page
            and front(page)["license"] == "other")


def test_a_card_shows_scores_beside_trivial_ones_and_what_was_proven(tmp_path):
    (tmp_path / "config.yaml").write_text("task: translate\ndata: {source: samples}\n")
    (tmp_path
     / "plan.json").write_text(json.dumps({"data": {"source": "samples"}, "weights": {"kind": "scratch"}}))
    (tmp_path / "results.json").write_text(json.dumps({"splits": {"test": {
        "rows": 100, "of": 200, "scores": MANIFEST["metrics"], "baseline": {}, "control": {"chrf": 12.5}}}}))
    (tmp_path / "checks.json").write_text(json.dumps([
        {"name": "inputs", "state": "passed", "says": "finite."},
        {"name": "padding", "state": "failed", "says": "padding changes the loss by 3 %."}]))
    page = card(MANIFEST, REPORT, tmp_path)
    assert "On `test`, 100 of 200 rows" in page and "| chrf | 24.5 | 15.5 | 12.5 |" in page
    assert "1 passed, 1 failed." in page and "- padding: failed. padding changes the loss by 3 %." in page
    assert "| onnx | int8 | 2.00 | 0.02 | 98.0% | passed |" in page and "1 to 100 long" in page
    assert "random start" in page
    bare = card(MANIFEST | {"metrics": {}}, REPORT)
    assert "has not been evaluated" in bare and "No reality checks were made" in bare
