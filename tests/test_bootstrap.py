"A bootstrap from every family into both forms, and a training that begins with one."
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as hf

from workbench.core.checks.questions import from_scratch
from workbench.core.config.presets import load
from workbench.errors import Refused
from workbench.lab.bootstrap import bootstrap
from workbench.lab.flowchart.worker import Workspace, answer
from workbench.parts.bootstrap.pieces import source_rows
from workbench.parts.bootstrap.shares import ADAPTED, PRETRAINED, RANDOM, counts
from workbench.parts.bootstrap.source import FAMILIES, read_source
from workbench.parts.bootstrap.universal import TARGETS, Choice, fill, put
from workbench.parts.text.pretrained import build_seq2seq
from workbench.parts.text.tokenizer import train_tokenizer
from workbench.tasks.translate.bootstrap import HALVES

WORDS = [("Open the file.", "Ouvrez le fichier."), ("Close the window.", "Fermez la fenêtre."),
         ("Select the printer.", "Choisissez l’imprimante."), ("Press the key.", "Appuyez sur la touche."),
         ("Save your work.", "Enregistrez votre travail."), ("Turn off the screen.", "Éteignez l’écran.")]
bert = dict(vocab_size=60, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=40, layer_norm_eps=1e-5, pad_token_id=0, initializer_range=0.2)
bart = dict(vocab_size=60, d_model=16, encoder_layers=3, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=40,
            pad_token_id=0, eos_token_id=1, bos_token_id=3, decoder_start_token_id=1, init_std=0.2,
            activation_function="gelu")
t5 = dict(vocab_size=60, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_decoder_layers=2, num_heads=2,
          pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
sources = {
    "bert": (hf.BertModel, hf.BertConfig, bert), "roberta": (hf.RobertaModel, hf.RobertaConfig, bert),
    "xlm-roberta": (hf.XLMRobertaModel, hf.XLMRobertaConfig, bert),
    "camembert": (hf.CamembertModel, hf.CamembertConfig, bert),
    "bart": (hf.BartForConditionalGeneration, hf.BartConfig, bart),
    "mbart": (hf.MBartForConditionalGeneration, hf.MBartConfig, bart | {"scale_embedding": True}),
    "marian": (hf.MarianMTModel, hf.MarianConfig, bart), "m2m_100": (hf.M2M100ForConditionalGeneration,
                                                                      hf.M2M100Config, bart),
    "t5": (hf.T5ForConditionalGeneration, hf.T5Config, t5), "mt5": (hf.MT5ForConditionalGeneration,
                                                                    hf.MT5Config, t5)}
own = [(i,) for i in range(60)]


def saved(family, folder):
    "A model of a family with random weights, and its folder."
    kind, config, sizes = sources[family]
    torch.manual_seed(0)
    model = kind(config(**sizes)).eval()
    model.save_pretrained(folder)
    return model


def new(family="bart", **sizes):
    torch.manual_seed(1)
    return build_seq2seq({"model_type": family, **bart, **sizes}).eval()


def test_every_family_that_is_read_is_tried():
    assert {*sources} == {*FAMILIES} and {"bart", "m2m_100"} <= {*TARGETS}


@pytest.mark.parametrize("family", sources)
def test_a_family_fills_both_forms_at_every_width(family, tmp_path):
    saved(family, tmp_path)
    source = read_source(tmp_path)
    for target in ("bart", "m2m_100"):
        for sizes in ({}, {"d_model": 8, "encoder_layers": 2, "encoder_ffn_dim": 10},
                      {"d_model": 32, "decoder_layers": 4, "decoder_attention_heads": 4,
                       "decoder_ffn_dim": 40},
                      {"d_model": 24, "encoder_attention_heads": 3, "decoder_attention_heads": 1}):
            model = new(target, **sizes)
            filled, notes = fill(model, source, own[:50] + [(1, 2)] * 4 + [()] * 6,
                                 Choice(cross_attention="self"))
            table = put(model, filled)
            assert {n for n, p in model.named_parameters() if p.requires_grad} == {*filled}
            for row in table:
                assert row["pretrained"] + row["adapted"] + row["random"] == pytest.approx(1), row
            whole = table[-1]
            assert whole["elements"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
            assert whole["elements"] == sum(r["elements"] for r in table[:-1])
            assert (whole["pretrained"] > 0.5) == (not sizes and family not in ("t5", "mt5")) or family in (
                "t5", "mt5"), whole
            ids = torch.randint(4, 60, (2, 7))
            with torch.no_grad():
                assert model(ids, torch.ones_like(ids), decoder_input_ids=ids).logits.isfinite().all()
            crossed = source.post != (target == "bart")
            assert any("norm and the new model" in n for n in notes) == crossed, notes


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert"])
def test_a_copied_encoder_gives_the_hidden_states_of_its_source(family, tmp_path):
    source, model = saved(family, tmp_path), new()
    put(model, fill(model, read_source(tmp_path), own)[0])
    ids = torch.randint(4, 60, (3, 11))
    mask = (torch.arange(11) < torch.tensor([[11], [7], [4]])).long()
    with torch.no_grad():
        theirs = source(ids.masked_fill(mask == 0, 0), mask, output_hidden_states=True).hidden_states
        ours = model.get_encoder()(ids, mask, output_hidden_states=True).hidden_states
    for a, b in zip(theirs, ours, strict=True):
        assert float((a - b)[mask.bool()].abs().max()) < 1e-5


@pytest.mark.parametrize("family", ["bart", "m2m_100", "mbart", "marian"])
def test_a_copied_encoder_decoder_gives_the_logits_of_its_source(family, tmp_path):
    source = saved(family, tmp_path)
    model = new(family, scale_embedding=source.config.scale_embedding)
    table = put(model, fill(model, read_source(tmp_path), own)[0])
    ids = torch.randint(4, 60, (3, 11))
    with torch.no_grad():
        a, b = (m(ids, torch.ones_like(ids), decoder_input_ids=ids[:, :6]).logits for m in (source, model))
    assert torch.allclose(a, b, atol=1e-5) and table[-1]["pretrained"] > 0.99


def test_marks_are_what_happened(tmp_path):
    "Elements that differ between two draws are marked random; pretrained rows are rows of the source."
    saved("bert", tmp_path)
    source, rows = read_source(tmp_path), own[:40] + [(1, 2)] * 5 + [()] * 15
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = build_seq2seq({"model_type": "bart", **bart, "encoder_ffn_dim": 40,
                               "decoder_attention_heads": 4})
        found.append(fill(model, source, rows, seed=seed)[0])
    for name, f in found[0].items():
        differs = f.value != found[1][name].value
        assert not (differs & (f.kind != RANDOM)).any(), name
    table = found[0]["model.shared.weight"]
    assert (torch.equal(table.value[:40], source.table[:40])
            and torch.equal(table.value[41], (source.table[1] + source.table[2]) / 2))
    assert counts(table) == (40 * 16, 5 * 16, 15 * 16)
    assert [int(k) for k in (table.kind[0, 0], table.kind[40, 0],
                             table.kind[59, 0])] == [PRETRAINED, ADAPTED, RANDOM]


def test_what_is_left_out_stays_as_a_new_model_has_it(tmp_path):
    saved("bart", tmp_path)
    source = read_source(tmp_path)
    for part, names in (("embeddings", ("embeddings",)), ("positions", ("positions",)),
                        ("encoder", ("encoder self-attention", "encoder feed-forward")),
                        ("decoder", ("decoder self-attention", "decoder feed-forward")),
                        ("cross_attention", ("cross-attention",))):
        model = new()
        table = {r["part"]: r for r in put(model, fill(model, source, own, Choice((part,)))[0])}
        for name, row in table.items():
            if name not in ("norms", "all"):
                assert (row["pretrained"] > 0.9) == (name in names), (part, name)
                assert name in names or row["random"] == 1, (part, name)


# what follows goes through the task, as a person does

@pytest.fixture
def given(tmp_path):
    "Texts, a pretrained BERT with its tokenizer, and a configuration that names them."
    texts = tmp_path / "texts"
    texts.mkdir()
    ends = {"train": ("now maintenant", "today aujourd’hui", "again encore", "later ensuite",
                      "first d’abord"),
            "valid": ("here ici",), "test": ("there là",)}
    for split, pairs in ends.items():
        rows = [f"{s[:-1]} {en}.\t{t[:-1]} {fr}.\ten\tfr" for s, t in WORDS
                for en, fr in map(str.split, pairs)]
        (texts / f"{split}.tsv").write_text("source\ttarget\tsrc\ttgt\n" + "\n".join(rows) + "\n",
                                            encoding="utf8")
    tok = train_tokenizer([s for s, _ in WORDS], "unigram", 60)
    torch.manual_seed(0)
    hf.BertModel(hf.BertConfig(**bert | {"vocab_size": len(tok)})).save_pretrained(tmp_path / "bert")
    tok.save_pretrained(tmp_path / "bert")
    params = {k: v for k, v in bart.items() if k.endswith(("layers", "heads", "ffn_dim"))} | {
        "d_model": 24, "max_position_embeddings": 40}
    overrides = {"pipeline": None, "data": {"source": str(texts), "max_length": 24},
                 "generate": {"max_length": 24},
                 "model": {"vocab_size": 700, "params": params},
                 "train": {"max_steps": 4, "batch_size": 8, "batch_tokens": None, "log_every": 1,
                           "checkpoint_every": 2,
                           "precision": "fp32", "scheduler": {"type": "constant", "warmup": 0}},
                 "valid": {"every": 2, "rows": 4, "batch_size": 4},
                 "bootstrap": {"source": str(tmp_path / "bert"), "out": str(tmp_path / "models")}}
    return SimpleNamespace(overrides=overrides, models=tmp_path / "models", home=tmp_path)


def merged(given, **changes):
    return {"pipeline": None} | {k: given.overrides.get(k, {}) | changes.get(k, {})
                                 for k in {*given.overrides, *changes} - {"pipeline"}}


def beginning(given, **model):
    "The configuration of a training that begins with the bootstrap, whose vocabulary is not learnt again."
    out = merged(given, model={"start": str(given.models)} | model)
    return out | {"model": {k: v for k, v in out["model"].items() if k != "vocab_size"}}


def test_a_training_begins_with_it_resumes_and_says_so(given, train_run):
    from workbench.core.setup.resume import load as load_run
    from workbench.lab.run import launch

    report = bootstrap(load("universal_tiny", given.overrides))
    assert json.loads((given.models / "report.json").read_text())["id"] == report["id"]
    assert all((given.models / name / file).is_file() for name in HALVES.values()
               for file in ("config.json", "model.safetensors"))
    run = train_run("universal_tiny", beginning(given), given.home / "run")
    run = Path(getattr(run, "folder", run))
    weights = json.loads((run / "manifest.json").read_text())["weights"]
    whole = report["parts"][-1]
    assert weights["kind"] == "bootstrapped" and weights["name"] == str(given.home / "bert")
    assert weights["shares"] == {k: round(whole[k], 4) for k in ("pretrained", "adapted", "random")}
    trained = load_run(run, "last")[0]["translator"]
    start = hf.AutoModelForSeq2SeqLM.from_pretrained(given.models)
    first, began = (m.model.encoder.layers[0].self_attn.q_proj.weight for m in (trained, start))
    assert 0 < float((first - began).detach().norm() / began.detach().norm()) < 0.5  # trained on from there
    (given.models / "report.json").unlink()  # a run that has begun needs the start no more
    launch.wait(launch.resume(run, "train.max_steps=6"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(x["step"] for x in lines) == 6


def test_a_start_that_does_not_fit_is_refused_by_name(given):
    from workbench.core.setup.plan import plan

    bootstrap(load("universal_tiny", given.overrides))
    with_start = beginning(given)
    facts = plan(load("universal_tiny", with_start))
    assert facts["weights"]["kind"] == "bootstrapped" and "bootstrapped from" in facts["weights"]["why"]
    setup = SimpleNamespace(at=SimpleNamespace(step=0), stage=SimpleNamespace(begin_from=None), nets={},
                            task=SimpleNamespace(origin=lambda nets: facts["weights"]))
    assert not from_scratch(setup)  # a first loss outside its band is then a warning
    same = merged(given, model={"start": str(given.models)})  # the configuration of the bootstrap, as it is
    assert plan(load("universal_tiny", same))["weights"]["kind"] == "bootstrapped"
    same["model"]["vocab_size"] = 900
    with pytest.raises(Refused, match="is 900, and the vocabulary of model.start was learnt with 700"):
        plan(load("universal_tiny", same))
    wide = given.overrides["model"]["params"] | {"d_model": 32}
    with pytest.raises(Refused, match="d_model = 24, and this model has 32"):
        plan(load("universal_tiny", beginning(given, params=wide)))
    report = json.loads((given.models / "report.json").read_text())
    report["vocabulary"]["checksum"] = "0" * 16
    (given.models / "report.json").write_text(json.dumps(report))
    with pytest.raises(Refused, match="rows of its weights would stand for other pieces"):
        plan(load("universal_tiny", with_start))
    (given.models / "report.json").unlink()
    with pytest.raises(Refused, match="not made by `workbench bootstrap`"):
        plan(load("universal_tiny", with_start))


def test_a_source_that_will_not_do_is_refused_by_name(given, tmp_path):
    ask = lambda **keys: bootstrap(load("universal_tiny", merged(given, bootstrap=keys)))
    with pytest.raises(Refused, match="bootstrap.source is empty"):
        ask(source=None)
    with pytest.raises(Refused, match="bootstrap.source is './nothing': no such folder"):
        ask(source="./nothing")
    hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=8, n_layer=1, n_head=2,
                                     vocab_size=60)).save_pretrained(tmp_path / "gpt2")
    train_tokenizer([s for s, _ in WORDS], "unigram", 60).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(Refused, match="is a gpt2, which cannot be the beginning"):
        ask(source=str(tmp_path / "gpt2"))
    saved("bart", tmp_path / "bare")
    with pytest.raises(Refused, match="lacks tokenizer.json.*bootstrap.tokenizer"):
        ask(source=str(tmp_path / "bare"))
    assert ask(source=str(tmp_path / "bare"), tokenizer=str(tmp_path / "bert"))["parts"][-1]["random"] < 1
    big = train_tokenizer([s + t for s, t in WORDS], "unigram", 120)
    big.save_pretrained(tmp_path / "big")
    with pytest.raises(Refused, match="it is the tokenizer of another model"):
        ask(tokenizer=str(tmp_path / "big"))
    with pytest.raises(Refused, match="the task sign begins with the weights"):
        bootstrap(load("t5_tiny"))


def test_the_command_and_the_station(given, monkeypatch):
    words = [f"{k}.{key}={json.dumps(v)}"
             for k, keys in given.overrides.items() if k in ("data", "bootstrap", "model")
             for key, v in keys.items()]
    command = [sys.executable, "-m", "workbench.lab.cli", "bootstrap", "universal_tiny", "--overrides",
               " ".join(f"'{w}'" for w in words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "encoder self-attention" in done.stdout and f"model.start={given.models}" in done.stdout
    done = subprocess.run([*command[:-2]], capture_output=True, text=True)
    assert done.returncode == 2 and "bootstrap.source is empty" in done.stderr
    space = Workspace()
    card = answer(space, "bootstrap", "universal_tiny", " ".join(f"'{w}'" for w in words))
    space.close()
    assert card["state"] == "passed" and "pretrained" in card["says"], card
    assert {p["kind"] for p in card["parts"]} >= {"table", "file", "words"}


def test_the_notebook_without_a_screen(given, tmp_path):
    home, out = Path(__file__).parents[1], tmp_path / "out.ipynb"
    config = tmp_path / "own.yaml"
    config.write_text(json.dumps({"extends": "universal_tiny", **given.overrides}))
    done = subprocess.run(["papermill", str(home / "nbs/bootstrap.ipynb"), str(out), "-k", "python3", "-p",
                           "config", str(config)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "encoder self-attention" in out.read_text() and "image/png" in out.read_text()


def test_pieces_of_every_kind_of_tokenizer_are_found():
    "The same words in WordPiece, byte-level BPE, SentencePiece and letters."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    def fast(inner):
        return hf.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>",
                                          eos_token="</s>")

    special = ["<pad>", "<unk>", "</s>"]
    piece = fast(Tokenizer(models.WordPiece({t: i
                                             for i, t in enumerate([*special, "open", "##ing", "é", "##é"])},
                                             unk_token="<unk>")))
    pairs = Tokenizer(models.BPE({t: i for i, t in enumerate([*special, "Ġ", "open", "Ġopen", "ing", "Ã", "©",
                                                              "Ã©"])}, [("Ã", "©")]))
    pairs.pre_tokenizer, pairs.decoder = (pre_tokenizers.ByteLevel(add_prefix_space=False),
                                          decoders.ByteLevel())
    ours = fast(Tokenizer(models.Unigram([*((t, 0.0) for t in special), ("▁open", -1.0), ("ing", -1.0),
                                          ("é", -1.0), ("<0xC3>", -9.0)], 1)))
    for theirs, wanted in ((piece, {"▁open": "open", "ing": "##ing", "é": "##é"}),
                           (fast(pairs), {"▁open": "Ġopen", "ing": "ing", "é": "Ã©", "<0xC3>": "Ã"})):
        rows, names = source_rows(ours, theirs), ours.get_vocab()
        found = {p: theirs.convert_ids_to_tokens(list(rows[i])) for p, i in names.items()}
        assert {p: found[p] for p in wanted} == {p: [t] for p, t in wanted.items()}, found
        assert found["</s>"] == ["</s>"] and found["<pad>"] == ["<pad>"]
