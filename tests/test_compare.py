"compare.ipynb under papermill: two runs of a toy task, what a person did wrong, and texts that are HTML."
import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from runs import done, go
from workbench.core.run.folder import append_metrics, root, update_status
from workbench.files import write_json, write_text

home = Path(__file__).parents[1]
evil = "<img src=x onerror=alert(1)>|`"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Two short runs, read only."
    folder = tmp_path_factory.mktemp("runs")
    a = go(folder / "slow",
           "train.max_steps=12 valid.every=6 train.lr=1e-3 valid.metric=error valid.mode=min")
    b = go(folder / "fast",
           "train.max_steps=12 valid.every=6 train.lr=1e-1 valid.metric=error valid.mode=min")
    return [done(a), done(b)]


@pytest.fixture
def two(trained, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(trained[0].parent))
    return trained


def papermill(out, *arguments):
    "Run compare.ipynb; (exit status, what papermill said, the executed notebook)."
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["papermill", str(home / "nbs/compare.ipynb"), str(out), "-k", "python3",
               "--no-progress-bar", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    return done.returncode, done.stdout + done.stderr, nbformat.read(out, 4)


def outputs(notebook, kind="text/plain"):
    "What a notebook shows, of one kind."
    found = [o for c in notebook.cells for o in c.get("outputs", [])]
    return "\n".join(o.get("data", {}).get(kind, "") for o in found)


def test_two_runs_headless(two, tmp_path):
    code, said, notebook = papermill(tmp_path / "out.ipynb", "-y", "runs: [slow, fast]", "-p", "table",
                                     str(tmp_path / "t.csv"))
    assert code == 0, said
    text, page = outputs(notebook), outputs(notebook, "text/html")
    for words in ("slow", "fast", "curve", "error", "train loss", "valid error", "train worst",
                  "train.lr  0.001  0.1",
                  "test error", "step 12", "2 runs: slow, fast"):
        assert words in text, f"{words}\n{text}"
    assert "dropout" not in text  # equal in both
    assert re.findall(r'<svg role="img" aria-label="([^"]*)"', page)[:2] == ["loss", "error"]
    assert {"worst", "fit_loss", "guess_loss"} <= set(re.findall(r'aria-label="([^"]*)"', page))
    with open(tmp_path / "t.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [r["run"] for r in rows] == ["slow", "fast"] and [r["train.lr"] for r in rows] == ["0.001", "0.1"]
    assert all(float(r["test error"]) > 0 and r["step"] == "12" for r in rows)
    assert "| run | slow | fast |" in (tmp_path / "t.md").read_text()


def test_runs_as_text_and_unfinished_ones(two, tmp_path):
    half = done(go(tmp_path / "half", "train.max_steps=6 valid.every=null", "term:3"), "stopped")
    code, said, notebook = papermill(tmp_path / "out.ipynb", "-p", "runs", f"fast {half}")
    assert code == 0, said
    text = outputs(notebook)
    assert "half is stopped at step" in text and "what there is of it is compared" in text


@pytest.mark.parametrize("arguments, words", [
    (["-y", "runs: [slow, fats]"], "no run `fats`"),
    (["-p", "runs", "slwo"], "did you mean `slow`?"),
    (["-p", "run", "slow"], "no parameter `run`; did you mean `runs`?"),
    (["-p", "by", "epoch"], "write step or minutes"),
    (["-p", "sort", "bets"], "did you mean `best`?"),
    (["-p", "step", "last"], "step is 'last'"),
    (["-p", "runs", "slow fast", "-p", "table", "t.xlsx"], "name a .csv file"),
])
def test_what_a_person_did_wrong_is_one_sentence(arguments, words, two, tmp_path):
    code, said, notebook = papermill(tmp_path / "out.ipynb", *arguments)
    assert code != 0
    failed = [o for c in notebook.cells
              for o in c.get("outputs", []) if o.output_type == "error" and o.ename == "Refused"]
    assert len(failed) == 1 and words in failed[0].evalue, said
    assert len(failed[0].traceback) == 1  # a sentence, not a page
    assert "overrides" not in failed[0].evalue  # this notebook has none


def test_no_runs_at_all(tmp_path):
    code, said, notebook = papermill(tmp_path / "out.ipynb")
    assert code == 0, said
    assert "There are no runs in" in outputs(notebook) and "No run is chosen" in outputs(notebook)


def evil_run(name):
    "A run whose every text is HTML."
    run = root() / name
    (run / "previews" / "step_00000001").mkdir(parents=True)
    write_text(run / "config.yaml", f"task: '{evil}'\npreset: '{evil}{name[-1]}'\nvalid: {{metric: '{evil}', "
                                    f"mode: min}}\n")
    write_text(run / "previews/step_00000001/note.txt", evil)
    write_text(run / "previews/step_00000001" / f"{evil.replace('/', '')}.txt", evil)
    row = {"step": 1, "epoch": 0, "stage": evil, "attempt": 1, "time": 1.0, "loss": 1.0, evil: 2.0}
    for split in ("train", "valid"):
        append_metrics(run, row | {"split": split})
    write_json(run / "plan.json", {"device": evil})
    write_json(run / "manifest.json", {"git": {"commit": evil, "diff": evil}})
    write_json(run / "results.json", {"checkpoint": evil, "splits": {evil: {"scores": {evil: 1.0}}}})
    update_status(run, state=evil, step=1)


def test_text_of_data_is_escaped(tmp_path):
    evil_run("<b>1"), evil_run("<b>2")
    code, said, notebook = papermill(tmp_path / "out.ipynb", "-y", "runs: ['<b>1', '<b>2']", "-p", "table",
                                     str(tmp_path / "t.csv"))
    assert code == 0, said
    page = outputs(notebook, "text/html")
    assert ("&lt;img src=x" in page and "<img src=x" not in page and "<b>1" not in page
            and "&lt;b&gt;1" in page)
    table = (tmp_path / "t.md").read_text()
    assert "<img" not in table and len({line.replace("\\|", "").count("|")
                                        for line in table.splitlines()}) == 1


def test_the_kernel_loads_no_torch(two):
    code = """
import sys
from workbench.lab.compare.page import begin, sections

c = begin([], "slow fast")
for section in sections:
    c.show(section)._repr_html_()
print([m for m in ("torch", "transformers", "matplotlib") if m in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
