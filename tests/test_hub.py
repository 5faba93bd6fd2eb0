"""Where weights come from: folder, cache, hub and nothing, with a hub of our own on 127.0.0.1 that behaves or
misbehaves."""
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from test_seq2seq import FAMILIES, make
from workbench.errors import Refused
from workbench.parts.shared import hub
from workbench.parts.text import model_config, pretrained
from workbench.parts.text import tokenizer as text

pytestmark = pytest.mark.usefixtures("online")
DEAD = "http://127.0.0.1:9"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def server(answer):
    "A web server; `answer(method, path)` gives (status, headers, body)."
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def reply(self):
            asked.append((self.command, self.path))
            status, headers, body = answer(self.command, self.path)
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = reply

        def log_message(self, *args):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{web.server_port}", asked
    finally:
        web.shutdown()
        web.server_close()


def as_hub(folder: Path, name: str):
    "Answers as the hub gives them for one model whose files lie in a folder."
    files = {p.name: p.read_bytes() for p in folder.iterdir()}

    def answer(method, path):
        path = path.split("?")[0]
        if path.startswith(f"/api/models/{name}/tree/"):
            rows = [{"type": "file", "path": f, "size": len(b), "oid": f"{len(b):040x}"}
                    for f, b in files.items()]
            return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()
        if path.startswith(f"/api/models/{name}"):
            info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}
            return 200, {"Content-Type": "application/json"}, json.dumps(info).encode()
        file = path.rsplit("/", 1)[-1]
        if path.startswith(f"/{name}/resolve/") and file in files:
            tag = f'"{len(files[file]):040x}"'
            return 200, {"X-Repo-Commit": COMMIT, "ETag": tag}, files[file]
        code = "EntryNotFound" if path.startswith(f"/{name}/") else "RepoNotFound"
        return 404, {"X-Error-Code": code}, b""

    return answer


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "made"
    make("t5").save_pretrained(folder)
    text.save_tokenizer(text.train_tokenizer(["hello there", "ሰላም"], "char"), folder)
    return folder


def located(name, init="auto", **more):
    began = time.time()
    try:
        return hub.locate(name, init, **more)
    finally:
        assert time.time() - began < 8


def test_no_hub_is_noticed_in_seconds(tmp_path):
    source = located("t5-base", endpoint=DEAD, cache_dir=str(tmp_path))
    assert (source.kind, source.via) == ("scratch", "architecture")
    assert "does not answer" in source.why and "random weights" in source.why
    with pytest.raises(Refused) as error:
        located("t5-base", "pretrained", endpoint=DEAD, cache_dir=str(tmp_path))
    for way in ("HF_HOME", "local folder", "model.init=scratch"):
        assert way in str(error.value)
    assert "\n" not in str(error.value)


def test_a_silent_hub_is_given_up_after_the_deadline(tmp_path):
    hold = threading.Event()
    with server(lambda method, path: (hold.wait(30), (200, {}, b""))[1]) as (url, _):
        began = time.time()
        source = hub.locate("t5-base", endpoint=url, timeout=1.0, cache_dir=str(tmp_path))
        assert time.time() - began < 3 and source.kind == "scratch"
        hold.set()


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("init", ["auto", "pretrained"])
def test_a_refusal_always_stops(status, init, tmp_path):
    with server(lambda method, path: (status, {}, b"")) as (url, asked):
        with pytest.raises(Refused, match=f"answers {status}, so the name is wrong"):
            located("t5-base", init, endpoint=url, cache_dir=str(tmp_path))
        assert len(asked) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_ill_is_no_reason_to_start_from_scratch(status, tmp_path):
    with server(lambda method, path: (status, {}, b"")) as (url, asked):
        with pytest.raises(Refused, match=f"answers {status}"):
            located("t5-base", endpoint=url, cache_dir=str(tmp_path))
        assert len(asked) == 1


def test_a_page_that_is_no_hub_counts_as_absent(tmp_path):
    page = b"<html>Welcome to the hotel. Please log in.</html>"
    with server(lambda method, path: (200, {"Content-Type": "text/html"}, page)) as (url, _):
        assert located("t5-base", endpoint=url, cache_dir=str(tmp_path)).kind == "scratch"


def test_a_gpu_run_from_scratch_has_to_be_asked_for(tmp_path):
    where = {"endpoint": DEAD, "cache_dir": str(tmp_path)}
    with pytest.raises(Refused, match="on cuda:0 a run from random weights has to be asked for"):
        located("t5-base", "auto", device="cuda:0", **where)
    assert located("t5-base", "scratch", device="cuda:0", **where).kind == "scratch"


def test_scratch_asks_nobody():
    with server(lambda method, path: (200, {}, b"")) as (url, asked):
        assert located("t5-base", "scratch", endpoint=url).via == "architecture"
        assert located("t5", "auto", endpoint=url).via == "numbers"
        assert asked == []


def test_a_hub_model_without_readable_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tf_model.h5").write_text("")
    with server(as_hub(tmp_path, "org/flax")) as (url, _):
        with pytest.raises(Refused, match="no weights that can be read here .*tf_model.h5"):
            located("org/flax", endpoint=url, cache_dir=str(tmp_path))


@pytest.mark.parametrize("need, lacks", [("weights", "config.json or complete model.safetensors"),
                                         ("tokenizer", "tokenizer.json")])
def test_an_incomplete_folder_is_never_replaced_by_random_weights(need, lacks, tmp_path):
    with pytest.raises(Refused, match=lacks):
        located(str(tmp_path), "auto", need=need)


def test_a_folder_lends_its_configuration_to_a_scratch_run(model_folder):
    source = located(str(model_folder), "scratch")
    assert (source.kind, source.via, source.weights) == ("scratch", "folder", "")
    assert hub.read_config(source)["d_model"] == FAMILIES["t5"]["d_model"]
    assert located(str(model_folder), "scratch", need="tokenizer").kind == "scratch"


SCRIPT = """
import json, sys, time
from workbench.parts.shared import hub
from workbench.parts.text import pretrained
from workbench.parts.text import tokenizer as text
began = time.time()
source = hub.fetch(hub.locate("org/tiny", "auto"))
words = hub.fetch(hub.locate("org/tiny", "auto", need="tokenizer"), "tokenizer")
model = pretrained.load_seq2seq(source.at, hub.read_config(source), weights=source.weights)
tok = text.load_tokenizer(words.at)
print(json.dumps({**source.record(), "seconds": time.time() - began, "sum": float(model.shared.weight.sum()),
                  "ids": tok("hello").input_ids}))
"""


def run_script(home, **env):
    env = {**os.environ, "HF_HOME": str(home), "PYTHONPATH": str(Path(__file__).parent.parent), **env}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_hub_then_cache_then_offline(model_folder, tmp_path):
    expected = make("t5").shared.weight.sum().item()
    with server(as_hub(model_folder, "org/tiny")) as (url, _):
        first = run_script(tmp_path / "home", HF_ENDPOINT=url, HF_HUB_DISABLE_XET="1")
    assert (first["kind"], first["via"], first["revision"]) == ("pretrained", "hub", COMMIT)
    for env in ({"HF_ENDPOINT": DEAD}, {"HF_HUB_OFFLINE": "1"}):
        again = run_script(tmp_path / "home", **env)
        assert (again["kind"], again["via"], again["revision"]) == ("pretrained", "cache", COMMIT)
        assert again["sum"] == first["sum"] == pytest.approx(expected) and again["ids"] == first["ids"]


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_is_never_executed(model_folder, tmp_path):
    state = make("t5").state_dict()
    (model_folder / "model.safetensors").unlink()
    torch.save(state, model_folder / "pytorch_model.bin")
    source = located(str(model_folder))
    assert source.weights == "bin"
    model = pretrained.load_seq2seq(source.at, hub.read_config(source), weights="bin")
    assert torch.equal(model.shared.weight, state["shared.weight"])
    torch.save({**state, "x": Payload(tmp_path / "ran")}, model_folder / "pytorch_model.bin")
    with pytest.raises(Refused, match="cannot be read"):
        pretrained.load_seq2seq(source.at, hub.read_config(source), weights="bin")
    assert not (tmp_path / "ran").exists()


def test_remote_code_is_never_run(model_folder):
    config = {"model_type": "mine", "auto_map": {"AutoModelForSeq2SeqLM": "evil.Model"}}
    (model_folder / "config.json").write_text(json.dumps(config))
    (model_folder / "evil.py").write_text("raise SystemExit('executed')")
    with pytest.raises(Refused, match="no remote code is run"):
        pretrained.load_seq2seq(str(model_folder), hub.read_config(located(str(model_folder))))


def test_weights_that_do_not_fit_are_named(model_folder):
    source = located(str(model_folder))
    config = hub.read_config(source)
    with pytest.raises(Refused, match="lack"):
        pretrained.load_seq2seq(source.at, model_config.override(config, {"num_layers": 3}))
    with pytest.raises(Refused):
        pretrained.load_seq2seq(source.at, model_config.override(config, {"d_ff": 48}))
    (model_folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(Refused, match="cannot be read"):
        pretrained.load_seq2seq(source.at, config)
