"""A translation bundle in a real chromium: what the page writes is what numpy and onnxruntime write."""
import os
import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import phrases
import pytest
from browser import browser, chromium
from test_map import BRIEF

import workbench
from workbench.deploy import web
from workbench.errors import Refused
from workbench.lab.export import export
from workbench.parts.portable.bundle import Bundle
from workbench.tasks.translate import program

pytest.importorskip("onnxruntime")
CI = bool(os.environ.get("CI"))
in_browser = pytest.mark.skipif(not chromium() or not (CI or shutil.which("npm")), reason="no chromium or npm here")
TEXTS = ["the red house sleeps.", "a bird sings", "Öl, 袋 and ሰላም! x.y", "I do not know “it”."]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(folder):
    "(address, paths asked for) of a plain file server."
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    "A bundle with its page, of a model that was trained for two steps."
    home = tmp_path_factory.mktemp("page")
    tiny = ("{d_model: 32, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 2, "
            "decoder_attention_heads: 2, encoder_ffn_dim: 64, decoder_ffn_dim: 64}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(home / "runs"))
        run = workbench.train(
            "universal_tiny", f'{BRIEF} pipeline=null model.vocab_size=1500 "model.params={tiny}" '
            "data.max_length=30 generate.max_length=12 generate.no_repeat_ngram=2 train.batch_tokens=null "
            f"data.source={phrases.corpus(home / 'texts', ['en-de', 'en-am'])}", run_dir=home / "run")
        export(run, "onnx,web", home / "bundle", "last", "fp32,int8", say=lambda line: None)
    return home / "bundle"


def opened(page, address, query=""):
    page.goto(f"{address}web/{query}")
    page.wait_for_selector("#note:not(.busy)", timeout=60_000)
    return page.locator("#note").inner_text()


def translated(page, text, pair):
    page.locator("#text").fill(text)
    page.locator("#pair").select_option(pair)
    page.locator("#run").click()
    page.wait_for_selector("#note:not(.busy)", timeout=60_000)
    return page.locator("#answer").inner_text()


@in_browser
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_sentence_in_a_sentence_out(bundle, precision):
    known = Bundle(bundle, precision=precision)
    answer = program.opened(known.models, known.settings, known.assets)
    with served(bundle) as address, browser(900, 700) as context:
        page, asked = context.new_page(), []
        page.on("request", lambda r: asked.append(r.url))
        assert opened(page, address, f"?precision={precision}") == "Ready."
        for text in TEXTS:
            for src, tgt in (("en", "de"), ("en", "am")):
                wanted, = answer([{"text": text, "src": src, "tgt": tgt}])
                assert translated(page, text, f"{src}-{tgt}").strip() == wanted.strip()
        assert not [url for url in asked if not url.startswith(address)]
        translated(page, "house " * 40, "en-de")
        assert "and the model reads at most 30" in page.locator("#note").inner_text()
        translated(page, "  ", "en-de")
        assert "nothing to translate" in page.locator("#note").inner_text()


@in_browser
def test_a_damaged_file_is_named(bundle, tmp_path):
    broken = shutil.copytree(bundle, tmp_path / "broken")
    data = bytearray((broken / "onnx/decoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (broken / "onnx/decoder.onnx").write_bytes(data)
    with served(broken) as address, browser(900, 700) as context:
        said = opened(context.new_page(), address)
    assert said.startswith("onnx/decoder.onnx is damaged") and "sha256" in said


def test_a_page_needs_onnx_and_npm(tmp_path, monkeypatch):
    from workbench.deploy.bundle import wanted

    with pytest.raises(Refused, match="write onnx beside web"):
        wanted(["web"], ["fp32"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Refused, match="install Node.js"):
        web.fetched(web.PACKAGES[0], lambda line: None)
