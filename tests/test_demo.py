"""The page of a run in a real chromium: a task of every kind, wrong files, wrong settings, and what is kept
from the page."""
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import phrases
import pytest
import signs
import soundfile
from PIL import Image
from browser import browser, chromium
from test_caption_use import TINY, pictures as coloured
from test_map import BRIEF, SMALL, pictures
from test_say import SMALL as VOICE, folder_of

import workbench
from workbench.core.config.read_keys import ReadKeys
from workbench.core.task import Answer, Ctx, Task
from workbench.errors import Refused
from workbench.lab.answers import use_into
from workbench.lab.demo import page as pages, serve
from workbench.lab.demo.fields import fields_of
from workbench.lab.use import Opened, answers, open_run, opened_for, use

pytest.importorskip("gradio")
no_chromium = pytest.mark.skipif(not chromium(), reason="no chromium here")


def in_browser(test):
    """A test of the page. On a busy machine a page has waited for its answer in vain, once in some hundred
    tests and in no run alone: such a test is tried again."""
    return pytest.mark.flaky(reruns=2)(no_chromium(test))


direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


# Runs of every kind, trained in seconds

def train(home, kind):
    "(a run, an input for it)."
    if kind == "translate":
        tiny = ("{d_model: 32, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 2, "
                "decoder_attention_heads: 2, encoder_ffn_dim: 64, decoder_ffn_dim: 64}")
        source = phrases.corpus(home / "texts", ["en-de", "en-am"])
        over = (f'pipeline=null model.vocab_size=1500 "model.params={tiny}" data.max_length=30 '
                "generate.max_length=12")
        return workbench.train("universal_tiny",
                               f"{BRIEF} {over} train.batch_tokens=null data.source={source}",
                               run_dir=home / "run"), "the red house sleeps."
    if kind == "tts":
        return workbench.train("tts_tiny", f"{VOICE} data.source={folder_of(home / 'mine', ('Ann', 'Ben'))}",
                               run_dir=home / "run"), "Good morning. Thank them."
    if kind == "sign":
        return workbench.train("t5_tiny", f"{BRIEF} {SMALL['sign']} "
                                          f"data.source={signs.good_folder(home / 'mine')}",
                               run_dir=home / "run"), home / "mine/poses/isr/s0.pose"
    ends = " ".join(f"pipeline.steps.{s}.train.max_steps=2" for s in ("vae_off", "vae_on", "flow"))
    return workbench.train("flow_tiny", f"{BRIEF} {SMALL['flow']} {ends} "
                                        f"data.source={pictures(home / 'mine')}",
                           run_dir=home / "run"), "a red apple"


@pytest.fixture(scope="module", params=["translate", "tts", "sign", "flow"])
def used(request, tmp_path_factory):
    "(kind, the opened run, an input for it)."
    home = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(home / "runs"))
        run, given = train(home, request.param)
        yield request.param, open_run(run, "last"), given


@contextmanager
def shown(opened, width=1280):
    "(the page in a browser, what it asked for, the folder of its uploads)."
    served = serve.Served(lambda: opened, 0, "last")
    asked, files = [], Path(os.environ["GRADIO_TEMP_DIR"])
    try:
        with browser(width, 900) as context:
            page = context.new_page()
            page.on("request", lambda r: asked.append(r.url))
            page.goto(served.address)
            page.wait_for_selector("button:has-text('Run')", timeout=60_000)
            yield page, asked, files
            assert not [url for url in asked if not url.startswith((served.address, "data:", "blob:"))]
    finally:
        served.close()
    assert not files.exists()


def give(page, path):
    """Choose a file, and wait until the page has it: before, Run would say that there is none. Then leave a
    moment: where Run is asked for while the upload is being noted, its answer can be lost."""
    page.set_input_files("input[type=file]", str(path))
    page.wait_for_function("name => [...document.querySelectorAll('a[href], img[src]')].some("
                           "e => decodeURIComponent(e.href || e.src).endsWith('/' + name))", arg=path.name)
    page.wait_for_timeout(1500)


def run_it(page):
    page.get_by_role("button", name="Run", exact=True).locator("visible=true").click()


def answered(page):
    page.wait_for_selector("#said .took", timeout=60_000)


def refused(page):
    page.wait_for_selector("#said .refused", timeout=60_000)
    return page.locator("#said .refused").inner_text()


def fetched(page, url):
    return page.request.get(url).body()


@in_browser
def test_each_task_has_its_page(used, tmp_path):
    kind, opened, given = used
    how = {"to": "am"} if kind == "translate" else {}
    with shown(opened) as (page, _, files):
        head = page.locator("#head").inner_text()
        assert f"task {opened.ctx.cfg.task}" in head and "checkpoint last, step" in head
        if kind == "sign":
            give(page, given)
        else:
            page.get_by_label("Text", exact=True).fill(given)
        if kind == "translate":
            page.get_by_label("Tgt").click()
            page.get_by_role("option", name="am").click()
        run_it(page)
        answered(page)
        if kind in ("translate", "sign"):
            wanted, = [a.made for a in use(opened, str(given), **how)]
            assert page.locator("#text textarea").input_value() == wanted
        elif kind == "tts":
            use_into(opened, [given], tmp_path / "x.wav")
            page.wait_for_selector("#sound")
            url = page.evaluate("[...document.querySelectorAll('#sound a, #sound audio')].map(e => e.href || "
                                "e.src)"
                                ".find(u => u && u.includes('file='))")
            wave, rate = soundfile.read(io.BytesIO(fetched(page, url)), dtype="int16")
            wanted, its = soundfile.read(tmp_path / "x.wav", dtype="int16")
            assert rate == its and np.array_equal(wave, wanted) and len(wave) > 1000
            page.wait_for_function("document.querySelector('#sound audio') === null || "
                                   "document.querySelector('#sound audio').error === null")
        else:
            use_into(opened, [given], tmp_path / "x.png")
            src = page.locator("#pictures img").first.get_attribute("src")
            found = Image.open(io.BytesIO(fetched(page, src)))
            assert found.format == "PNG" and np.array_equal(found, Image.open(tmp_path / "x.png"))


@in_browser
def test_an_example_and_a_wrong_setting(used):
    kind, opened, _ = used
    section = {"tts": "speak", "flow": "sample"}.get(kind, "generate")
    name, key = {"tts": ("Speed", "speed"),
                 "flow": ("Guidance", "guidance")}.get(kind, ("Num beams", "num_beams"))
    with shown(opened) as (page, *_):
        page.get_by_role("button", name=re.compile("^More settings")).click()
        page.get_by_role("gridcell").or_(page.locator(".gallery-item")).first.click()
        if kind != "sign":
            page.wait_for_function("document.querySelector('textarea').value.length > 1")
            run_it(page)
        answered(page)
        page.get_by_role("spinbutton", name=name).fill("-3")  # a player of sound has a speed, too
        run_it(page)
        said = refused(page)
    with pytest.raises(Refused) as same:
        list(use(opened, "a", overrides=f"{section}.{key}=-3"))
    assert said == str(same.value)


@in_browser
def test_a_run_that_takes_pictures_and_captions(tmp_path, monkeypatch):
    "A picture is described, a caption is drawn, and a file that is no picture is refused by name."
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    flat = lambda tree, above="": [f"{above}{k}={v}" for k, v in tree.items() if not isinstance(v, dict)] + [
        word for k, v in tree.items() if isinstance(v, dict) for word in flat(v, f"{above}{k}.")]
    model = " ".join(word.replace(" ", "") for word in flat({"model": TINY["model"]}))
    run = workbench.train("caption_tiny", f"{BRIEF} {model} data.size=16 data.column=caption "
                          "train.batch_size=8 generate.max_length=8 "
                          f"data.source={coloured(tmp_path / 'mine')} "
                          f"data.captions={tmp_path / 'mine/captions.txt'}", run_dir=tmp_path / "run")
    opened, picture = open_run(run, "last"), tmp_path / "mine/03.png"
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with shown(opened) as (page, *_):
        page.get_by_role("tab", name="Picture").click()
        give(page, picture)
        run_it(page)
        answered(page)
        assert page.locator("#text textarea").input_value() == next(use(opened, str(picture))).made
        page.reload()
        page.get_by_role("tab", name="Picture").click()
        give(page, tmp_path / "broken.png")
        run_it(page)
        assert refused(page).startswith("broken.png: ")
        page.get_by_role("tab", name="Text").click()
        page.get_by_label("Text", exact=True).fill("a red field")
        run_it(page)
        answered(page)
        src = page.locator("#pictures img").first.get_attribute("src")
        drawn = Image.open(io.BytesIO(fetched(page, src)))
        assert np.array_equal(drawn, next(use(opened, "a red field")).made)


def test_fields_are_what_the_use_reads(used):
    "No field changes nothing: each is read, or waits for another one."
    kind, opened, given = used
    noted, cfg = ReadKeys(), opened.ctx.cfg
    how = {"to": "am"} if kind == "translate" else {}
    run = opened_for(opened, **how)
    with noted.during(types.SimpleNamespace(name="use", cfg=run.ctx.cfg)):
        list(answers(run, [given]))
    keys = {f.key for f in fields_of(opened)} - {"seed"}
    idle = set(opened.task.idle(cfg, ()))
    assert keys <= noted.keys["use"] | idle, keys - noted.keys["use"] - idle


# A task of pictures and texts, as a user would bring it

def describe(nets, data, given, ctx):
    from workbench.parts.image.files import read_picture

    for one in given:
        try:
            if isinstance(one, Path):
                yield Answer(str(one), f"{read_picture(one).width} wide <b>&", 0.1)
            else:
                yield Answer(one, np.full((8, 8, 3), len(one), np.uint8), 0.1)
        except Refused as e:
            yield Answer(str(one), refused=str(e))


needed = ("config", "data", "nets", "objectives", "predict", "score", "baseline", "expect", "preview")
task = Task(**dict.fromkeys(needed), use=describe, takes=(".png", ".jpg", "text"))


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "toy_of_pictures", types.SimpleNamespace(task=task))
    monkeypatch.setattr(pages, "head_facts", lambda opened, which: ["task toy"])
    monkeypatch.setattr(pages, "preset_says", lambda opened: "<script>alert(1)</script>")
    Image.new("RGB", (12, 5), "red").save(tmp_path / "held out.png")
    rows = [(tmp_path / "held out.png", "a red board")]
    data = types.SimpleNamespace(inputs={"test": rows}, texts={}, uids={"test": ["u"]}, choices={})
    cfg = types.SimpleNamespace(task="toy_of_pictures", seed=0)
    return Opened(tmp_path / "run", task, {}, data, Ctx(cfg=cfg))


@in_browser
def test_pictures_wrong_files_and_large_ones(toy, tmp_path, monkeypatch):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "notes.pose").write_bytes(b"x")
    (tmp_path / "large.png").write_bytes(os.urandom(21 * 2**20))
    Image.new("1", (10_000, 9_000)).save(tmp_path / "huge.png")
    Image.new("LA", (30, 20)).save(tmp_path / "good.png")
    with shown(toy) as (page, asked, files):
        run_it(page)
        assert refused(page) == "there is no file: choose one (.png, .jpg)."
        page.locator(".gallery-item").first.click()  # the example
        page.wait_for_selector("[data-testid=image] img, .image-frame img")
        run_it(page)
        answered(page)
        assert page.locator("#text textarea").input_value() == "12 wide <b>&"
        page.reload()
        page.wait_for_selector("button:has-text('Run')")
        give(page, tmp_path / "good.png")
        run_it(page)
        answered(page)
        assert page.locator("#text textarea").input_value() == "30 wide <b>&"
        for name, why in (("broken.png", "not a picture of a kind that is known"),
                          ("huge.png", "90000000 pixels|10000 x 9000")):
            page.reload()
            page.wait_for_selector("button:has-text('Run')")
            give(page, tmp_path / name)
            run_it(page)
            said = refused(page)
            assert said.startswith(f"{name}: ") and re.search(why, said) and str(files) not in said
        page.reload()
        page.wait_for_selector("button:has-text('Run')")
        page.set_input_files("input[type=file]", str(tmp_path / "large.png"))
        page.wait_for_selector("text=/maximum|exceed|too large|size/i", timeout=20_000)
        page.reload()
        page.wait_for_selector("button:has-text('Run')")
        page.get_by_role("tab", name="Text").click()
        page.get_by_label("Text", exact=True).fill(str(tmp_path / "good.png"))
        run_it(page)
        assert "the page reads no file of this machine" in refused(page)
        page.get_by_label("Text", exact=True).fill("a" * 10_001)
        run_it(page)
        page.wait_for_selector("text=10,001 characters")
        page.get_by_label("Text", exact=True).fill("seven77")
        run_it(page)
        answered(page)
        src = page.locator("#pictures img").first.get_attribute("src")
        assert (np.asarray(Image.open(io.BytesIO(fetched(page, src)))) == 7).all()


@in_browser
def test_what_a_tab_uploaded_ends_with_it(toy, tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "mine.png")
    with shown(toy) as (page, _, files):
        with page.expect_response(lambda r: "/queue/join" in r.url):  # whose upload it is
            give(page, tmp_path / "mine.png")
        assert list(files.rglob("mine.png"))
        until = time.monotonic() + 20
        page.goto("about:blank")
        while list(files.rglob("mine.png")):
            assert time.monotonic() < until, list(files.rglob("*"))
            page.wait_for_timeout(100)


def ask(address, path, body=None, **headers):
    "(status, body) of a request."
    request = urllib.request.Request(address.rstrip("/") + path, body, headers)
    try:
        with direct.open(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


def test_the_page_gives_away_nothing(toy, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    served = serve.Served(lambda: toy, 0, "last")
    try:
        status, html = ask(served.address, "/")
        assert status == 200 and b"<script>alert(1)" not in html
        assert b"fonts.googleapis" not in html and b"cdnjs" not in html
        for path in (f"/gradio_api/file={tmp_path / 'secret.txt'}", "/gradio_api/file=/etc/passwd",
                     "/gradio_api/file=https://example.org/", "/gradio_api/proxy=https://example.org/",
                     "/gradio_api/info", "/docs", "/openapi.json", "/monitoring", "/gradio_api/run/predict"):
            assert ask(served.address, path)[0] == 403, path
        assert ask(served.address, "/", Host="example.org")[0] == 403
        assert ask(served.address, "/", Origin="http://example.org")[0] == 403
        question = json.dumps({"data": [{"path": "https://example.org/a.png"}], "fn_index": 0,
                               "session_hash": "a"}).encode()
        assert ask(served.address, "/gradio_api/queue/join",
                   question, **{"Content-Type": "application/json"})[0] == 403
        port = int(served.address.rstrip("/").rpartition(":")[2])
        others = {a[4][0]
                  for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
        for other in others:
            with pytest.raises(OSError):
                socket.create_connection((other, port), 2)
    finally:
        served.close()


def test_the_command(used, tmp_path):
    "It says where the page is, and ends with Ctrl-C; a port that is taken is one sentence."
    kind, opened, _ = used
    if kind != "sign":
        pytest.skip("one task is enough")
    command = [sys.executable, "-m", "workbench.lab.cli", "demo", str(opened.run), "--no-browser",
               "--checkpoint", "last"]
    around = os.environ | {"WORKBENCH_RUNS": str(opened.run.parent / "runs"), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=around) as running:
        line = running.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert address, running.communicate(timeout=10)
        assert ask(address[0], "/")[0] == 200
        taken = subprocess.run([*command, "--port", address[1]], capture_output=True, text=True, env=around)
        assert taken.returncode == 2 and "cannot be used" in taken.stderr and "Traceback" not in taken.stderr
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    assert running.returncode == 130 and "Traceback" not in errors, errors
    assert not list(tmp_path.glob("workbench-demo-*"))
    wrong = subprocess.run([*command, "--overrides", "generate.num_beams=0"], capture_output=True, text=True,
                           env=around)
    assert wrong.returncode == 2 and "generate.num_beams" in wrong.stderr


def test_without_gradio_it_says_what_to_install(toy, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"workbench\[demo\]"):
        serve.Served(partial(pytest.fail, "loaded"), 0)
