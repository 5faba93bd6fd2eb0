"""A translation bundle in a real chromium: what the page writes is what numpy and onnxruntime write."""
import json
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
from workbench.core.task import Leaving
from workbench.deploy import web
from workbench.errors import Refused
from workbench.lab.export import export
from workbench.parts.portable.bundle import Bundle
from workbench.parts.portable.greedy import written
from workbench.parts.portable.pieces import opened_pieces
from workbench.tasks.translate import program

pytest.importorskip("onnxruntime")
CI = bool(os.environ.get("CI"))
in_browser = pytest.mark.skipif(not chromium() or not (CI or shutil.which("npm")),
                                reason="no chromium or npm here")
in_node = pytest.mark.skipif(not (CI or shutil.which("npm")), reason="no npm here")
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


@in_node
def test_texts_that_the_tokenizer_in_javascript_reads_otherwise(bundle):
    known, odd = Bundle(bundle), ["a <unk> b", "袋袋\n<unk>", "tab\there", "  two  spaces </s>", "😀",
                                  "፲፪ ሰላም ለዓለም።",
                                  "网络设置", "설정을 엽니다."]
    answer, pieces = program.opened(known.models, known.settings, known.assets), opened_pieces(known.assets)
    found = web.answered(bundle, [{"text": text, "pair": "en-am"} for text in odd])
    assert [f["ids"] for f in found] == [pieces.ids(text) for text in odd]
    assert [f["answer"] for f in found] == answer([{"text": text, "src": "en", "tgt": "am"} for text in odd])


def with_settings(bundle, folder, **settings):
    "The bundle with other rules of the search."
    made = shutil.copytree(bundle, folder)
    manifest = json.loads((made / "manifest.json").read_text(encoding="utf8"))
    manifest["settings"] |= settings
    (made / "manifest.json").write_text(json.dumps(manifest), encoding="utf8")
    return made


@in_node
def test_rules_of_the_search_and_an_empty_answer(bundle, tmp_path):
    known = Bundle(bundle)
    frame, pieces = known.settings["pairs"]["en-de"], opened_pieces(known.assets)
    source = program.source_of(TEXTS[0], frame, pieces, known.settings["most"])
    (first, *_), = written(known.models, known.settings, "ids", [source], [frame["begin"]])
    plain, = program.opened(known.models, known.settings, known.assets)([{"text": TEXTS[0], "tgt": "de"}])
    rules = {"many": {"no_repeat_ngram": 1, "last": 7, "suppress": [first], "prefix": [40, 41]},
             "words": {"bad_words": [[*frame["begin"], first], [9, 8]]},
             "empty": {"prefix": [known.settings["end"]]}}
    for name, settings in rules.items():
        own = with_settings(bundle, tmp_path / name, **settings)
        its = Bundle(own)
        wanted, = program.opened(its.models, its.settings, its.assets)([{"text": TEXTS[0], "tgt": "de"}])
        assert [f["answer"]
                for f in web.answered(own, [{"text": TEXTS[0], "pair": "en-de"}])] == [wanted], name
        assert wanted != plain and (wanted == "") == (name == "empty"), name


@in_node
def test_a_page_that_answers_otherwise_is_not_proven(bundle, tmp_path):
    made = with_settings(bundle, tmp_path / "bundle")
    leaving = Leaving(graphs={}, axes={}, program="workbench.tasks.translate.program", expected=None,
                      score=None,
                      settings=Bundle(made).settings, inputs=[{"text": text, "tgt": "de"} for text in TEXTS])
    assert web.check(leaving, made / "web", {}, "fp32")["problem"] == ""
    loop = (made / "web/loop.js").read_text(encoding="utf8")
    worst = loop.replace("score > scores[b]", "score < scores[b]")
    assert worst != loop
    (made / "web/loop.js").write_text(worst, encoding="utf8")
    assert "and the bundle's program with" in web.check(leaving, made / "web", {}, "fp32")["problem"]
    (made / "web/loop.js").unlink()
    lost = {"page": [made / "web/loop.js"]}
    assert web.check(leaving, made / "web", lost, "fp32")["problem"] == "the page lacks loop.js."


def test_a_page_needs_onnx_and_npm(tmp_path, monkeypatch):
    from workbench.deploy.bundle import wanted

    with pytest.raises(Refused, match="write onnx beside web"):
        wanted(["web"], ["fp32"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Refused, match="install Node.js"):
        web.fetched(web.PACKAGES[0], lambda line: None)
