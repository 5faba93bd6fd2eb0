"""Runs leave as bundles: proven, used without torch, refused in one sentence, and never half-written."""
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import phrases
import pytest
import torch
from bare import bare_python, ran
from runs import again, done, go, surroundings
from test_map import BRIEF

import workbench
from workbench.core.run.folder import config_of
from workbench.core.setup.resume import load
from workbench.deploy import onnx as onnx_files, onnx_half, place
from workbench.deploy.program import imported
from workbench.deploy.ready import far, ready
from workbench.errors import Failed, Refused
from workbench.lab import cli
from workbench.lab.export import export
from workbench.lab.flowchart.examine_export import exported
from workbench.lab.flowchart.headless import read_run
from workbench.lab.use import use
from workbench.parts.portable.bundle import Bundle
from workbench.parts.portable.feeds import Unusable

onnx = pytest.importorskip("onnx")
CIPHER = {"task": "cipher", "check": False, "trackers": [], "train": {
    "epochs": 5, "minutes": None, "batch_size": 16, "lr": 1e-2, "log_every": 10, "checkpoint_every": 50}}
quiet = lambda words: None


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    "Numpy, tokenizers and onnxruntime alone."
    return bare_python(tmp_path_factory.mktemp("bare") / "env")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run of the toy that was stopped early and resumed."
    folder = tmp_path_factory.mktemp("cipher") / "run"
    done(go(folder, "train.max_steps=40", base=CIPHER))
    return done(again(folder, "train.max_steps=110"))


@pytest.fixture(scope="module")
def made(run):
    "Its bundle, in three precisions."
    report = export(run, "onnx", precision="fp32,fp16,int8", say=quiet)
    assert report["folder"] == str(run / "export")
    return run / "export", report


def refusal(action, kind=Refused):
    "What is said."
    with pytest.raises(kind) as e:
        action()
    says = str(e.value)
    assert "\n" not in says and says.endswith((".", "?", "]'"))
    return says


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# What is in it

def test_the_report_says_how_faithful_every_precision_is(made):
    folder, report = made
    assert json.loads((folder / "report.json").read_text())["formats"] == report["formats"]
    assert [(f["format"], f["precision"], f["problem"]) for f in report["formats"]] == [
        ("onnx", p, "") for p in ("fp32", "fp16", "int8")]
    plain, half, eight = report["formats"]
    assert {o["output"] for o in plain["outputs"]} == {"logits", "mean"}
    assert all(o["difference"] <= 1e-5 and o["shapes"] == o["calls"] == 4 for o in plain["outputs"])
    assert plain["agreement"] == plain["agreement with the workbench"] == 1
    assert half["bytes"] < 0.75 * plain["bytes"] > eight["bytes"] / 0.75
    assert (report["torch"]["agreement with the workbench"] == 1
            and report["workbench"]["scores"]["letters"] > 0.9)


def test_the_manifest_says_what_the_files_are(made, run):
    folder, _ = made
    said = json.loads((folder / "manifest.json").read_text())
    on_disk = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert on_disk - said["files"].keys() == {"manifest.json", "report.json", "README.md", "report.png"}
    assert said["opset"] == 20 and said["step"] == 110 and said["checkpoint"] == "step_00000110"
    assert said["graphs"]["net"]["inputs"]["ids"] == {"dtype": "int64", "shape": ["batch", "letters"]}
    assert said["graphs"]["net"]["outputs"]["mean"] == {"dtype": "float32", "shape": ["batch", 64]}
    assert said["axes"]["letters"] | {"exact": False} == {"low": 1, "high": 24, "left": False, "exact": False}
    assert said["metrics"]["letters"] > 0.9 and said["needs"] == ["numpy", "onnxruntime"]
    assert "letters" in (folder / "README.md").read_text()


def test_the_files_hold_dynamic_axes_each_weight_once_and_nothing_of_this_machine(made):
    folder, report = made
    for precision in ("", ".fp16", ".int8"):
        model = onnx.load(folder / f"onnx/net{precision}.onnx")
        shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
                  for v in (*model.graph.input, *model.graph.output)}
        assert shapes == {"ids": ["batch", "letters"], "mask": ["batch", "letters"],
                          "logits": ["batch", "letters", 26], "mean": ["batch", 64]}
        assert {o.version for o in model.opset_import if not o.domain} == {20}
        raw = model.SerializeToString()
        assert not [word
                    for word in (b"stack_trace", b"cipher", b"workbench", b".py", os.sep.encode() + b"home")
                    if word in raw]
    plain = onnx.load(folder / "onnx/net.onnx")
    large = [tuple(t.dims) for t in plain.graph.initializer if np.prod(t.dims) > 1000]
    assert sorted(large) == [(26, 64), (64, 64)]


def test_program_files_import_what_a_bundle_has(made):
    folder, _ = made
    names = {p.stem for p in folder.glob("*.py")}
    assert names == {"bundle", "cipher_program", "example", "feeds", "timing"}
    for path in folder.glob("*.py"):
        code = path.read_text()
        assert "workbench" not in imported(code) and "%%" not in code
        assert imported(code) <= {*sys.stdlib_module_names, "numpy", "onnxruntime", "lite", *names}, path


# Used without torch

def test_the_example_runs_where_there_is_no_torch(made, run, python, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "far away")
    for precision in ("fp32", "fp16", "int8"):
        out = ran(python, folder / "example.py", "abcxyz", "q", "hello", "--precision", precision,
                  cwd=tmp_path)
        assert (out.returncode, out.stdout.split(), out.stderr) == (0, ["bcdyza", "r", "ifmmp"], "")


@pytest.mark.parametrize("words, says", [
    (["a" * 25], "`net` takes 1 to 24 of `letters` and was given 25: shorten the input."),
    (["a b"], "` ` is no letter of this cipher: write a to z."),
    (["abc", "--kind", "tflite"], "has no tflite model in fp32; it has: onnx fp32, onnx fp16, onnx int8.")])
def test_the_example_refuses_in_one_sentence(made, python, words, says):
    out = ran(python, made[0] / "example.py", *words)
    assert out.returncode == 2 and out.stderr.startswith("example.py: ") and says in out.stderr
    assert len(out.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["onnx/net.onnx", "assets/letters.txt", "manifest.json"])
def test_a_damaged_file_is_named(made, python, tmp_path, name):
    folder = shutil.copytree(made[0], tmp_path / "export")
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw if name != "manifest.json" else raw[:-9])
    out = ran(python, folder / "example.py", "abc")
    assert out.returncode == 2 and f"{folder / name} is damaged" in out.stderr
    (folder / name).unlink()
    assert Path(name).name in refusal(lambda: Bundle(folder).models["net"], Unusable)


def test_a_missing_runtime_says_what_to_install(made, tmp_path):
    python = bare_python(tmp_path / "env", ["numpy"])
    assert ran(python, made[0] / "example.py", "abc").stderr == (
        "example.py: the runtime is missing: pip install onnxruntime\n")


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (1, 24), (64, 2), (9, 13)])
@pytest.mark.parametrize("precision, limit", [("fp32", 1e-5), ("fp16", 5e-3), ("int8", 0.05)])
def test_lengths_and_batches_that_were_not_used_at_export(made, run, shape, precision, limit):
    nets, _ = load(run)
    draw = torch.Generator().manual_seed(0)
    ids, mask = torch.randint(26, shape, generator=draw), torch.ones(shape)
    mask[0, shape[1] // 2 + 1:] = 0
    with torch.no_grad():
        wanted = dict(zip(("logits", "mean"), nets["net"](ids, mask)))
    found = Bundle(made[0], precision=precision).models["net"](ids=ids.numpy(), mask=mask.numpy())
    for name, value in wanted.items():
        assert abs(found[name] - value.numpy()).max() <= limit * float(value.abs().max())


def test_weights_of_a_large_model_lie_beside_it(run, python, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_half, "one_file", 10_000)
    report = export(run, out=tmp_path / "export", precision="fp32,fp16,int8", say=quiet)
    names = {p.name for p in (tmp_path / "export/onnx").iterdir()}
    assert names >= {"net.onnx", "net.weights", "net.fp16.onnx"} and not report["problem"]
    (tmp_path / "export").rename(tmp_path / "moved")
    assert ran(python, tmp_path / "moved/example.py", "hello").stdout == "ifmmp\n"
    with open(tmp_path / "moved/onnx/net.weights", "r+b") as file:
        file.write(b"?")
    out = ran(python, tmp_path / "moved/example.py", "hello")
    assert out.returncode == 2 and "net.weights is damaged" in out.stderr


# Proven, whole or not at all

def test_an_export_that_is_interrupted_leaves_the_old_bundle(made, run):
    before = contents(made[0])

    def say(words):
        if words.startswith("Checking"):
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        export(run, say=say)
    assert contents(made[0]) == before and not [*run.glob(".export*")]


def test_what_a_kill_has_left_is_deleted_by_the_next_export(made, run, tmp_path):
    out, process = tmp_path / "export", subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    dead, alive = (tmp_path / f".export.{pid}" for pid in (process.pid, os.getppid()))
    dead.mkdir()
    alive.mkdir()
    export(run, out=out, say=quiet)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([alive.name, "export"])


def test_a_bundle_is_replaced_without_a_moment_in_which_there_is_none(tmp_path):
    folder, seen, over = tmp_path / "export", [], threading.Event()
    folder.mkdir()

    def watch():
        while not over.is_set():
            seen.append(folder.is_dir())
    watcher = threading.Thread(target=watch)
    watcher.start()
    for n in range(200):
        other = tmp_path / f"made{n}"
        other.mkdir()
        (other / "n").write_text(str(n))
        place.put(other, folder)
    over.set()
    watcher.join()
    assert all(seen) and len(seen) > 200 and (folder / "n").read_text() == "199"
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


def test_a_system_without_exchange_replaces_too(tmp_path, monkeypatch):
    monkeypatch.setattr(place, "exchanged", lambda one, other: False)
    for name in ("made", "export"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "n").write_text(name)
    place.put(tmp_path / "made", tmp_path / "export")
    assert [p.name
            for p in tmp_path.iterdir()] == ["export"] and (tmp_path / "export/n").read_text() == "made"


def test_a_folder_of_something_else_is_never_replaced(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    assert "holds something that is no bundle" in refusal(lambda: export(run, out=tmp_path, say=quiet))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_that_differs_is_found_named_and_set_beside(made, run, monkeypatch):
    "The layer `inner` is damaged: the first tensor inside that differs is its output."
    before, tie = contents(made[0]), onnx_files.tie

    def damaged(model):
        tie(model)
        for tensor in model.graph.initializer:
            if tuple(tensor.dims) == (64, 64):
                weight = onnx.numpy_helper.to_array(tensor).copy()
                weight[3, 5] += 1
                tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    monkeypatch.setattr(onnx_files, "tie", damaged)
    says = refusal(lambda: export(run, say=quiet), Failed)
    assert "`logits` of the graph `net` differs by" in says and "ids [1, " in says
    assert re.search(r"The first tensor inside that differs is `(linear|addmm|val_\d+)`, of the operator",
                     says)
    failed = run / "export.failed"
    assert contents(made[0]) == before and json.loads((failed / "report.json").read_text())["problem"] in says
    assert not [*run.glob(".export*")]
    shutil.rmtree(failed)


def test_a_program_that_is_not_the_workbench_fails(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_EXPORT", "program")
    says = refusal(lambda: export(run, out=tmp_path / "export", say=quiet), Failed)
    assert "The program answers" in says and "otherwise than the workbench, in torch already" in says
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export.failed"]


# Adapters

@pytest.mark.parametrize("layer", ["inner", "head"])
def test_adapters_are_merged_or_refused(tmp_path, layer):
    folder = done(go(tmp_path / "run", f"lora={layer} train.max_steps=30", base=CIPHER))
    if layer == "head":
        says = refusal(lambda: export(folder, say=quiet))
        assert "`table` shares its weight with a module that has an adapter" in says
        assert not [*folder.glob("*export*")]
        return
    report = export(folder, say=quiet)
    assert report["formats"][0]["agreement with the workbench"] == 1
    names = {t.name for t in onnx.load(folder / "export/onnx/net.onnx").graph.initializer}
    assert not [name for name in names if "lora" in name]


@pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
def test_adapters_on_a_base_in_4_bits_are_merged_into_float32(tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(vocab_size=100, d_model=64, d_kv=16, num_heads=4, d_ff=128,
                                        num_layers=1,
                                        decoder_start_token_id=0)).save_pretrained(tmp_path)
    base = T5ForConditionalGeneration.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32))
    net = get_peft_model(base, LoraConfig(r=4, target_modules=["q", "v"], init_lora_weights=False)).eval()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        wanted = net(input_ids=ids, decoder_input_ids=ids[:, :4]).logits
        left = ready({"model": net})["model"]
        found = left(input_ids=ids, decoder_input_ids=ids[:, :4]).logits
    assert {p.dtype for p in left.parameters()} == {torch.float32} and not hasattr(left, "peft_config")
    assert far(found, wanted) < 0.01  # the scales of the blocks are rounded in 4 bits


# Refused, before anything is made

@pytest.mark.parametrize("words, says", [
    (dict(to="tensorrt"), "there is no format `tensorrt`; there are onnx, coreml, tflite, hub, web."),
    (dict(precision="int4"), "there is no precision `int4`; there are fp32, fp16, int8."),
    (dict(to="tflite", precision="fp16"), "tflite is not written in fp16; it has fp32, int8."),
    (dict(to=""), "no format is named"),
    (dict(checkpoint="step_7"), "has no checkpoint `step_7`; there:")])
def test_words_that_are_wrong_are_refused(run, tmp_path, words, says):
    assert says in refusal(lambda: export(run, out=tmp_path / "export", say=quiet, **words))
    assert not [*tmp_path.iterdir()]


def test_a_run_that_cannot_leave_is_refused(run, tmp_path, monkeypatch):
    assert "is not a run folder" in refusal(lambda: export(tmp_path))
    bare = shutil.copytree(run, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints", "export"))
    assert "has no checkpoint yet: train it" in refusal(lambda: export(bare))
    young = shutil.copytree(run, tmp_path / "young", ignore=shutil.ignore_patterns("export"))
    for path in young.glob("checkpoints/*/state.json"):
        state = json.loads(path.read_text())
        state["position"]["step"] = 0
        path.write_text(json.dumps(state))
    assert "is not trained: its checkpoint" in refusal(lambda: export(young))
    other = shutil.copytree(bare, tmp_path / "curve")
    (other / "config.yaml").write_text((other
                                        / "config.yaml").read_text().replace("task: cipher", "task: curve")
                                       .replace("width: 64\n", "").replace("lora: ''\n", ""))
    assert "the task `curve` has no `exports`" in refusal(lambda: export(other))
    monkeypatch.setenv("TOY_EXPORT", "stage")
    assert "the stage `warm` has no net that answers" in refusal(lambda: export(run, out=tmp_path / "export"))
    assert not (tmp_path / "export").exists() and not [*tmp_path.glob(".export*")]


def test_an_operator_without_a_form_in_onnx_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_EXPORT", "operator")
    says = refusal(lambda: export(run, out=tmp_path / "export", say=quiet))
    assert says == ("the graph `net` cannot be written as ONNX: the operator aten.linalg_eig of the graph "
                    "itself "
                    "(Trapped) has no form in ONNX.")
    assert not [*tmp_path.iterdir()]


def test_a_missing_package_is_said_with_the_line_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "find_spec", lambda name: None if name == "onnxscript" else True)
    assert refusal(lambda: export(run, out=tmp_path / "export")) == (
        "ONNX needs onnxscript: pip install 'workbench[export]'")


def test_the_command(run, tmp_path, capsys):
    assert cli.main(["export", str(run), "--out", str(tmp_path / "export"), "--precision", "fp32,int8"]) == 0
    said = capsys.readouterr().out
    assert "largest difference" in said and f"python {tmp_path}/export/example.py INPUT" in said
    assert cli.main(["export", str(run), "--to", "onyx"]) == 2
    assert capsys.readouterr().err.startswith("workbench: there is no format `onyx`")


def test_the_card_of_the_flowchart_exports_and_shows_the_report(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    with surroundings(""):
        card = read_run(run, "export")
    assert card.content["state"] == "passed" and "its answers are those of torch" in card.content["says"]
    assert "onnx" in str(card) and "example.py INPUT" in capsys.readouterr().out
    monkeypatch.setenv("TOY_EXPORT", "stage")
    state, says, parts = exported(config_of(run), run)
    assert (state, parts) == ("warned", []) and "the stage `warm` has no net" in says


# A real task

@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    home = tmp_path_factory.mktemp("translate")
    tiny = ("{d_model: 32, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 2, "
            "decoder_attention_heads: 2, encoder_ffn_dim: 64, decoder_ffn_dim: 64}")
    source = phrases.corpus(home / "texts", ["en-de", "en-am"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(home / "runs"))
        return Path(workbench.train("universal_tiny", (
            f'{BRIEF} pipeline=null model.vocab_size=1500 "model.params={tiny}" data.max_length=30 '
            f"generate.max_length=12 train.batch_tokens=null data.source={source}"), run_dir=home / "run"))


def test_a_translation_leaves_and_writes_what_the_workbench_writes(translator, python, tmp_path):
    report = export(translator, "onnx", tmp_path / "export", precision="fp32,int8", say=quiet)
    plain, eight = report["formats"]
    assert plain["agreement"] == plain["agreement with the workbench"] == 1 and report["inputs"] > 10
    assert max(o["difference"] for o in plain["outputs"]) <= 1e-4 and eight["bytes"] <= 0.5 * plain["bytes"]
    texts = ["the red house sleeps.", "a green bird"]
    words = [json.dumps({"text": text, "src": "en", "tgt": "de"}) for text in texts]
    out = ran(python, tmp_path / "export/example.py", *words, cwd=tmp_path)
    assert (out.returncode, out.stderr) == (0, "")
    wanted = [str(a) for a in use(translator, *texts, overrides="generate.num_beams=1 generate.tgt=de")]
    assert [line.strip() for line in out.stdout.splitlines()] == [line.strip() for line in wanted]
