"The flowchart as a person meets it: a real JupyterLab in a real browser; and as papermill does, without one."
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

import browser
from workbench.lab.run import launch

home = Path(__file__).parents[1]
here = Path(__file__).parent
toy = """task: spelled
train: {max_steps: 400, epochs: null, minutes: null, batch_size: 8, log_every: 2, checkpoint_every: 100,
        lr: 1e-2}
valid: {every: 100, metric: error, mode: min}
trackers: []
"""
needs_browser = pytest.mark.skipif(not browser.chromium() and not os.environ.get("CI"),
                                   reason="there is no chromium here")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A folder of notebooks, the runs beside it, and a JupyterLab on it; one for all tests."
    folder = tmp_path_factory.mktemp("flowchart")
    notebooks, runs = folder / "nbs", folder / "runs"
    notebooks.mkdir()
    (folder / "toy.yaml").write_text(toy)
    paths = os.pathsep.join([str(here / "toys"), str(home)])
    with browser.jupyter(notebooks, WORKBENCH_RUNS=str(runs), PYTHONPATH=paths, HF_HUB_OFFLINE="1",
                         OMP_NUM_THREADS="1") as server, browser.browser() as context:
        yield folder, server, context
        for run in runs.glob("*/status.json"):  # a failed test may have left one training
            launch.stop(run.parent)


@pytest.fixture
def opened(lab):
    "Open a copy of the notebook with parameters; its page."
    folder, server, context = lab
    pages = []

    def go(config="t5_tiny", overrides="", resume="", name=None):
        book = nbformat.read(home / "nbs/flowchart.ipynb", 4)
        cell = next(c for c in book.cells if "parameters" in c.metadata.get("tags", []))
        cell.source = f"config, overrides, upto, resume = {config!r}, {overrides!r}, 'quick test', {resume!r}"
        name = name or f"flowchart-{time.monotonic_ns()}.ipynb"
        nbformat.write(book, folder / "nbs" / name)
        pages.append(browser.open_notebook(context, server, name))
        pages[-1].wait_for_selector(".wb-flow .box", timeout=90_000)
        return pages[-1]

    yield go
    for page in pages:
        page.evaluate("async () => { await jupyterapp.serviceManager.sessions.shutdownAll() }")
        page.close()


@pytest.fixture
def toy_config(lab):
    return str(lab[0] / "toy.yaml")


def box(page, name):
    return page.locator(f'g.box[data-station="{name}"]')


def state(page, name):
    return box(page, name).get_attribute("data-state")


def wait_state(page, name, *states, seconds=90):
    "Until a box has one of the states."
    wanted = ", ".join(f'g.box[data-station="{name}"][data-state="{s}"]' for s in states)
    page.wait_for_selector(wanted, timeout=1000 * seconds, state="attached")


def button(page, name):
    return page.locator("button.jupyter-button:visible", has_text=re.compile(rf"^\s*{name}\s*$"))


def press(page, name):
    button(page, name).click()


def fill(page, text):
    page.get_by_label("Overrides").fill(text)


def run_upto(page, name, *states):
    box(page, name).click()
    page.wait_for_function("n => document.querySelector('.wb-head h3')?.textContent === n", arg=name)
    press(page, "Run up to here")
    wait_state(page, name, *(states or ("passed", "warned")))


def card(page):
    return page.locator(".wb-card").inner_text()


def last_run(folder):
    return Path(json.loads((folder / "runs/.flowchart/last.json").read_text())["run"])


def status(run):
    return json.loads((run / "status.json").read_text())


@needs_browser
def test_a_preset_is_walked_by_mouse_and_keyboard(opened, lab):
    """Every station of the tiny preset is clicked; changes make stale what depends on them; the training runs
    to its scores."""
    page = opened("t5_tiny", "train.max_steps=40 valid.every=20 valid.rows=20")
    run_upto(page, "quick test")
    for name, words in (("plan", "1.1 M trained parameters"), ("code and backup", "Backed up in"),
                        ("data", "2,000"),
                        ("criterion", "Cross-entropy"), ("forward", "T5Stack"),
                        ("quick test", "two real optimiser steps")):
        box(page, name).click()
        page.wait_for_function("w => document.querySelector('.wb-card')?.innerText.includes(w)", arg=words,
                               timeout=20_000)
        assert state(page, name) in ("passed", "warned"), name
    box(page, "data").click()
    page.wait_for_function("() => [...document.querySelectorAll('.wb-card img')].some(i => i.naturalWidth > "
                           "100)")

    fill(page, "train.max_steps=40 valid.every=20 valid.rows=20 train.lerning_rate=1")
    page.wait_for_function("() => document.querySelector('.wb-message').innerText.includes('unknown key')")
    fill(page, "train.max_steps=40 valid.every=20 valid.rows=20 train.lr=1e-3")
    wait_state(page, "quick test", "stale")
    assert [state(page, n)
            for n in ("plan", "data", "criterion", "forward")] == ["stale", "passed", "passed", "passed"]
    fill(page, "train.max_steps=40 valid.every=20 valid.rows=20 data.step_frames=4")
    wait_state(page, "data", "stale")
    assert state(page, "forward") == "stale" and state(page, "code and backup") == "passed"
    fill(page, "train.max_steps=40 valid.every=20 valid.rows=20")
    wait_state(page, "quick test", "passed", "warned")

    box(page, "plan").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.wb-head h3').textContent === 'data'")
    assert page.evaluate("() => document.activeElement.getAttribute('data-station')") == "data"

    box(page, "training").click()
    press(page, "Start training")
    wait_state(page, "training", "running", seconds=120)
    wait_state(page, "training", "passed", seconds=300)
    assert status(last_run(lab[0]))["step"] == 40
    assert page.locator("svg[role=img]").count() >= 3  # curves
    page.get_by_text("Previews", exact=True).click()
    page.wait_for_function("() => [...document.querySelectorAll('.jupyter-widgets img')].some(i => "
                           "i.naturalWidth > 100)")
    for name, words in (("evaluate", "trivial answer"), ("export", "torch")):
        box(page, name).click()
        button(page, "Run").click()
        page.wait_for_function("w => document.querySelector('.wb-card')?.innerText.includes(w)", arg=words,
                               timeout=180_000)


@needs_browser
def test_a_failing_check_blocks_training_and_says_why(opened, toy_config):
    page = opened(toy_config, "blind=true")
    run_upto(page, "quick test", "failed")
    assert "failed" in card(page)
    box(page, "training").click()
    page.wait_for_function("() => document.querySelector('.wb-notice').innerText.includes('blocked: quick "
                           "test failed')")
    assert button(page, "Start training").is_disabled()


@needs_browser
def test_a_training_outlives_its_kernel(opened, lab, toy_config):
    """Started, the kernel restarted, attached again; two notebooks on one run; pause, go on, stop and save,
    extend."""
    page = opened(toy_config, "sleep=0.05 train.max_steps=5000")
    run_upto(page, "quick test")
    box(page, "training").click()
    press(page, "Start training")
    wait_state(page, "training", "running", seconds=120)
    run = last_run(lab[0])
    while not status(run).get("step"):
        assert status(run)["state"] in ("starting", "running")
        time.sleep(0.1)
    pid = status(run)["pid"]
    browser.restart(page)
    page.wait_for_selector(".wb-flow .box", timeout=60_000)
    wait_state(page, "training", "running")
    assert status(run)["pid"] == pid and state(page, "quick test") in ("passed", "warned")
    box(page, "training").click()
    other = opened(toy_config, "sleep=0.05 train.max_steps=5000", resume=str(run))
    wait_state(other, "training", "running")
    box(other, "training").click()
    press(other, "Pause")
    wait_state(page, "training", "paused")
    press(page, "Go on")
    wait_state(other, "training", "running")
    press(page, "Stop and save")
    wait_state(other, "training", "warned", seconds=30)
    assert status(run)["state"] == "stopped" and (run / "checkpoints/last").exists()
    step = status(run)["step"]
    page.get_by_label("extend with").fill(f"train.max_steps={step + 20}")
    press(page, "Extend")
    wait_state(page, "training", "passed", "stale", seconds=180)
    assert status(run)["state"] == "finished" and status(run)["step"] == step + 20


@needs_browser
def test_text_of_the_data_does_nothing(opened, toy_config):
    "Captions, ids and reasons that are markup are seen as they are written."
    page = opened(toy_config, "train.max_steps=20 valid.every=10")
    run_upto(page, "forward")
    for name in ("plan", "data", "forward"):
        box(page, name).click()
        page.wait_for_function("() => document.querySelector('.wb-card')?.innerText.includes('onerror')",
                               timeout=10_000)
    fill(page, "<img/src=x/onerror=window.harmed=1>")
    page.wait_for_function("() => document.querySelector('.wb-message').innerText.includes('<img/src')")
    assert page.evaluate("() => window.harmed") is None


def papermill(out, *arguments):
    "Run flowchart.ipynb; (exit status, what was said, the executed notebook's text)."
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["papermill", str(home / "nbs/flowchart.ipynb"), str(out), "-k", "python3",
               "--no-progress-bar", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    found = [o for c in nbformat.read(out, 4).cells for o in c.get("outputs", [])]
    text = "\n".join(o.get("data", {}).get("text/plain", "") + "".join(o.get("text", ""))
                     + "\n".join(o.get("traceback", []))
                     for o in found)
    return done.returncode, done.stdout + done.stderr, text


@pytest.fixture
def small(tmp_path):
    (tmp_path / "toy.yaml").write_text(toy)
    return str(tmp_path / "toy.yaml")


def test_the_notebook_walks_without_a_browser(small, tmp_path):
    code, said, text = papermill(tmp_path / "out.ipynb", "-p", "config", small, "-p", "overrides",
                                 "train.max_steps=20",
                                 "-p", "upto", "evaluate")
    assert code == 0, said
    for words in ("plan passed", "code and backup passed", "criterion", "quick test",
                  "two real optimiser steps", "Scores of"):
        assert words in text, words


def test_a_failing_station_fails_the_notebook(small, tmp_path):
    code, said, text = papermill(tmp_path / "out.ipynb", "-p", "config", small, "-p", "overrides",
                                 "blind=true")
    assert code != 0 and "quick test failed" in text, said
    assert not list((tmp_path / "runs").glob("toy-*"))


@pytest.mark.parametrize("arguments, words", [
    (["-p", "upto", "quik test"], "did you mean `quick test`?"),
    (["-p", "nproc", "2"], "no parameter `nproc`"),
    (["-p", "resume", "nowhere"], "not a run folder"),
])
def test_a_wrong_parameter_fails_at_once(arguments, words, tmp_path):
    code, said, text = papermill(tmp_path / "out.ipynb", *arguments)
    assert code != 0 and words in text, text
