"""What leaves of translate and sign: the graphs of every family of models are the models, the program writes
the workbench's own texts in torch and in onnxruntime, and tokenizers give the same pieces."""
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import phrases
import pytest
import signs
import torch
from conftest import WHOLE
from test_map import BRIEF, SMALL

import workbench
from workbench.core.run.folder import config_of
from workbench.core.task import Axis, Graph, Leaving
from workbench.deploy import onnx
from workbench.deploy.ready import run_graph, specs_of
from workbench.deploy.verify import torch_models
from workbench.errors import Refused
from workbench.lab.export import export, leaving_of
from workbench.parts.decoding.search import Settings, search
from workbench.parts.portable.bundle import Bundle, OnnxModel
from workbench.parts.portable.feeds import Unusable
from workbench.parts.portable.greedy import written
from workbench.parts.portable.pieces import opened_pieces
from workbench.parts.text.exported import (
    decoder_parts, encoder_parts, pieces_needs, save_pieces, search_settings)
from workbench.parts.text.seq2seq import encode
from workbench.tasks.sign import program as sign_program
from workbench.tasks.sign.use import frames_of
from workbench.tasks.translate import program as translate_program

WORDS, LONGEST, SOURCE = 60, 24, 30


# A small random model of each family: nonsense of every length, so each text ends at another step

def model_of(kind):
    "A random model whose search follows rules of its own."
    from transformers import CONFIG_MAPPING, AutoModelForSeq2SeqLM, GenerationConfig

    torch.manual_seed(2)
    ids = dict(vocab_size=WORDS, pad_token_id=0, eos_token_id=1, decoder_start_token_id=2)
    sizes = (dict(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_decoder_layers=2, num_heads=4,
                  relative_attention_num_buckets=8, relative_attention_max_distance=20,
                  tie_word_embeddings=kind == "t5") if kind in ("t5", "mt5") else
             dict(d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
                  decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
                  max_position_embeddings=64,
                  init_std=0.3, bos_token_id=3, scale_embedding=kind != "bart", forced_eos_token_id=None))
    model = AutoModelForSeq2SeqLM.from_config(CONFIG_MAPPING[kind](**ids, **sizes)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1 and p.requires_grad:
                p.normal_(0, 0.4)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_()
    del ids["vocab_size"]
    model.generation_config = GenerationConfig(**ids, bad_words_ids=[[7], [9, 8]], suppress_tokens=[11, 12],
                                               forced_bos_token_id=5)
    return model


def leaving_from(model):
    "The graphs of a model without a run."
    return Leaving(graphs={"encoder": Graph(**encoder_parts(model, SOURCE)),
                           "decoder": Graph(**decoder_parts(model, 1 + LONGEST))},
                   axes={"batch": Axis(high=64), "source": Axis(high=SOURCE),
                         "past": Axis(low=0, high=1 + LONGEST, left=True)},
                   program="", expected=None, score=None)


def fixed(leaving):
    "The graphs as a format with fixed lengths calls them: filled up with zeros, one row at a time, and cut."
    def called(name, **arrays):
        graph, rows = leaving.graphs[name], []
        for i in range(len(arrays["mask"])):
            feeds = {}
            for key, array in arrays.items():
                array, widths = array if key == "position" else array[i:i + 1], [(0, 0)] * array.ndim
                for d, axis in graph.axes.get(key, {}).items():
                    if axis != "batch":
                        more = leaving.axes[axis].high - array.shape[d]
                        widths[d] = (more, 0) if leaving.axes[axis].left else (0, more)
                feeds[key] = torch.from_numpy(np.pad(array, widths))
            rows.append({k: t.numpy() for k, t in run_graph(graph, feeds).items()})
        return {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}
    return {name: lambda name=name, **arrays: called(name, **arrays) for name in leaving.graphs}


@pytest.mark.parametrize("kind", ["t5", "mt5", "bart", "mbart", "marian", "m2m_100", "pegasus"])
def test_a_family_leaves(kind, tmp_path):
    "Fifty texts as the workbench searches them: in torch, filled up to fixed lengths, and in onnxruntime."
    model, rng = model_of(kind), np.random.default_rng(0)
    sources = [rng.integers(13, WORDS, n) for n in rng.integers(2, SOURCE, 50)]
    lengths = torch.tensor([len(s) for s in sources])
    mask = (torch.arange(SOURCE) < lengths[:, None]).long()
    ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(s) for s in sources], True)
    mask = mask[:, :ids.shape[1]]
    with torch.no_grad():
        found = search(model, encode(model, ids, mask), mask, torch.full((50, 1), 2),
                       Settings(longest=LONGEST, no_repeat_ngram=2))
    wanted = [list(texts[0].ids) for texts in found]
    assert len(set(map(tuple, wanted))) > 25 and {ids[0] for ids in wanted} == {5}
    leaving = leaving_from(model)
    models = {"torch": torch_models(leaving), "fixed": fixed(leaving)}
    if kind in ("t5", "bart", "m2m_100") or WHOLE:
        files = onnx.write(leaving, tmp_path, "fp32", lambda words: None)
        specs, axes = specs_of(leaving)
        models["onnx"] = {name: OnnxModel(paths[0], name, specs[name], axes, 1)
                          for name, paths in files.items()}
    settings = search_settings(model, LONGEST, 1, no_repeat_ngram=2)
    for name, of in models.items():
        for rows in (1, 7, 50) if name != "fixed" else (50,):
            texts = written(of, settings | {"rows": rows}, "ids", sources, [[2]] * 50)
            assert texts == wanted, (name, rows)


def test_an_unknown_family_is_refused():
    from transformers import BlenderbotSmallConfig, BlenderbotSmallForConditionalGeneration

    tiny = BlenderbotSmallForConditionalGeneration(BlenderbotSmallConfig(
        vocab_size=30, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16))
    for part in (encoder_parts, decoder_parts):
        with pytest.raises(Refused, match="blenderbot-small does not leave.*t5, mt5, bart"):
            part(tiny, 20)


# Tokenizers

TEXTS = ["the red house sleeps", "a blue river sings", "the river is red and the house is blue"] * 4


def sentencepiece_in(folder):
    "A model of sentencepiece, and ids for its pieces in an order of their own."
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=50,
                                             num_threads=1, minloglevel=2, hard_vocab_limit=False)
    sp = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = sorted(sp.id_to_piece(i) for i in range(3, len(sp)))[:-2]  # two that only sentencepiece knows
    for name in ("source.spm", "target.spm", "spm.model"):
        (folder / name).write_bytes(model.getvalue())
    ids = {p: i for i, p in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces, ">>de<<"])}
    (folder / "vocab.json").write_text(json.dumps(ids))
    return folder


def tokenizer_of(kind, folder):
    from transformers import M2M100Tokenizer, MarianTokenizer

    from workbench.parts.text.tokenizer import train_tokenizer

    if kind in ("char", "unigram", "bpe"):
        return train_tokenizer(TEXTS, kind, 60)
    sentencepiece_in(folder)
    if kind == "marian":
        return MarianTokenizer(*(str(folder / n) for n in ("source.spm", "target.spm", "vocab.json")))
    return M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "spm.model"), src_lang="en",
                           tgt_lang="am")


@pytest.mark.parametrize("kind", ["char", "unigram", "bpe", "marian", "m2m_100"])
@pytest.mark.filterwarnings("ignore:Recommended")
def test_a_tokenizer_leaves(kind, tmp_path):
    "The same ids and the same texts, after calls that padded and cut; unknown letters among them."
    from workbench.parts.text.targets import decode_texts
    from workbench.tasks.translate.tokens import contents

    tok = tokenizer_of(kind, tmp_path)
    tok(TEXTS[:2], padding="max_length", truncation=True, max_length=5)
    (tmp_path / "left").mkdir()
    save_pieces(tok, tmp_path / "left")
    pieces, said = opened_pieces(tmp_path / "left"), [*TEXTS[:3], "a house ያ sleeps", "Zürich", " the  red ",
                                                      ""]
    ids = [list(i) for i in contents(tok, said, False)]
    assert [pieces.ids(text) for text in said] == ids
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, len(tok), 12).tolist() for _ in range(50)]
    known = set(tok.get_vocab().values())
    rows = [*ids, *([i for i in row if i in known] for row in drawn)]
    assert [pieces.text(row) for row in rows] == decode_texts(tok, rows)
    assert pieces_needs(tok)["needs"] == ("sentencepiece" if kind in ("marian", "m2m_100") else "tokenizers",)


# Runs

TINY = ("{d_model: 32, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 2, "
        "decoder_attention_heads: 2, encoder_ffn_dim: 64, decoder_ffn_dim: 64}")


def trained(kind, home, more=""):
    "A run of a few steps."
    if kind == "translate":
        source = phrases.corpus(home / "texts", ["en-de", "en-am"])
        over = (f'{BRIEF} pipeline=null model.vocab_size=1500 "model.params={TINY}" data.max_length=30 '
                f"generate.max_length=20 train.batch_tokens=null data.source={source}")
        return workbench.train("universal_tiny", f"{over} {more}", run_dir=home / "run")
    over = f"{BRIEF} {SMALL['sign']} data.source={signs.good_folder(home / 'mine')}"
    return workbench.train("t5_tiny", f"{over} {more}", run_dir=home / "run")


LEARN = ("train.max_steps=80 train.batch_size=36 train.lr=0.005 train.scheduler.warmup=5 "
         "train.scheduler.floor=1")
KINDS = {"translate": LEARN,
         "lora": f"{LEARN} train.max_steps=20 train.lr=0.02 model.lora.r=8 "
                 "model.lora.targets=[q_proj,k_proj,v_proj,out_proj,fc1,fc2]",
         "sign": f"{LEARN} generate.max_length=10 model.strides=[2,1] model.positions=true model.ctc=true"}


@pytest.fixture(scope="module", params=KINDS)
def left(request, tmp_path_factory):
    "(kind, run, its bundle, the report)."
    home = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(home / "runs"))
        run = trained("sign" if request.param == "sign" else "translate", home, KINDS[request.param])
        return request.param, run, home / "out", export(run, "onnx", home / "out", say=lambda words: None)


def test_a_run_writes_the_texts_of_the_workbench(left):
    "In torch and in onnxruntime, and the scores are the same."
    report = left[3]
    row = report["formats"][0]
    assert report["problem"] == "" and row["agreement"] == row["agreement with the workbench"] == 1
    assert row["scores"] == report["workbench"]["scores"] and report["inputs"] >= 4
    assert max(o["difference"] for o in row["outputs"]) <= 1e-4
    assert {o["graph"] for o in row["outputs"]} == {"encoder", "decoder"}


def test_a_bundle_takes_what_was_not_there_at_export(left):
    "Other batch sizes and lengths up to the limit, and one sentence for what is longer."
    kind, run, folder, _ = left
    bundle = Bundle(folder, threads=1)
    leaving, opened = leaving_of(Path(run), config_of(Path(run)), "best")
    s, program = bundle.settings, sign_program if kind == "sign" else translate_program
    write = program.opened(bundle.models, s, bundle.assets)
    if kind == "sign":
        rng = np.random.default_rng(0)
        given = [rng.standard_normal((n, s["numbers"])).astype(np.float32) for n in (1, 2, 3, 40, s["most"])]
        long = np.zeros((s["most"] + 1, s["numbers"]), np.float32)
    else:
        words = " ".join(phrases.sentences("en")).split()
        given = [{"text": " ".join(words[:n]), "src": "en", "tgt": tgt} for n in (1, 2, 5)
                 for tgt in ("de", "am")]
        long = {"text": " ".join(words), "src": "en", "tgt": "de"}
    wanted = list(leaving.expected(given))
    if kind == "lora":  # the base alone writes something else
        with opened.nets["translator"].disable_adapter():
            assert list(leaving.expected(given)) != wanted
    else:
        assert len(set(wanted)) > 1
    assert write(given) == wanted and [write([one])[0] for one in given] == wanted
    with pytest.raises(Unusable, match=f"at most {s['most']}"):
        write([long])


def test_a_bundle_needs_no_torch(left):
    "Its example runs beside nothing but numpy, the tokenizers library and onnxruntime."
    kind, _, folder, _ = left
    bundle = Bundle(folder, threads=1)
    if kind == "sign":
        word, program = str(folder.parent / "frames.npy"), sign_program
        np.save(word, np.ones((5, bundle.settings["numbers"]), np.float32))
    else:
        word, program = json.dumps({"text": "the red house sleeps.", "tgt": "de"}), translate_program
    wanted = program.opened(bundle.models, bundle.settings, bundle.assets)([program.read_input(word)])
    code = ("import runpy, sys; sys.argv = ['example.py', *sys.argv[1:]]\n"
            "for name in ('torch', 'transformers', 'workbench', 'peft'): sys.modules[name] = None\n"
            "sys.path.insert(0, '.'); runpy.run_path('example.py', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code, word], cwd=folder, capture_output=True, text=True,
                          env={"PYTHONIOENCODING": "utf8"})
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{wanted[0]}\n", "")


def test_points_become_the_frames_of_the_task(left):
    "Pose files of three kinds, as the workbench reads them and as the program makes them of their points."
    from workbench.parts.pose.files import read_pose

    kind, run, folder, _ = left
    if kind != "sign":
        pytest.skip("only signs have poses")
    _, opened = leaving_of(Path(run), config_of(Path(run)), "best")
    d, s = opened.ctx.cfg.data, Bundle(folder).settings
    paths = sorted(p for p in (folder.parent / "mine").rglob("*")
                   if p.suffix in (".pose", ".npy", ".pkl"))[:6]
    assert paths
    for path in paths:
        pose = read_pose(path, d.dims, d.layout)
        given = {"points": pose.points, "names": pose.names, "fps": pose.fps}
        assert np.array_equal(sign_program.source_of(given, s),
                              frames_of([path], opened.data, opened.ctx.cfg))
