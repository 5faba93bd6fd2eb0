"""A sixth system: the guide is run as a reader runs it, and the task that it writes is used, checked and
walked through the flowchart; a task is found in a file, a package and a module of any name."""
import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import workbench
from workbench.core.config import presets
from workbench.core.config.modules import permit
from workbench.core.config.tasks import systems
from workbench.files import read_json, samples
from workbench.lab import cli

home = Path(__file__).parents[1]
toys = home / "tests/toys"


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    "The folder that the guide writes: kinds.py, kinds.yaml and a trained run."
    folder = tmp_path_factory.mktemp("guide")
    book = nbformat.read(home / "nbs/guides/own_task.ipynb", 4)
    code = "\n".join(c.source for c in book.cells if c.cell_type == "code")
    (folder / "guide.py").write_text(code.replace("tempfile.mkdtemp()", repr(str(folder))), encoding="utf8")
    done = subprocess.run([sys.executable, "guide.py"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


def test_the_guide_writes_a_task_that_learns(guide):
    split = read_json(guide / "run/results.json")["splits"]["test"]
    found, trivial = split["scores"]["accuracy"], split["baseline"]["accuracy"]
    assert found > trivial + 0.1, (found, trivial)
    assert "said.csv" in {p.name for p in guide.iterdir()}


def test_it_is_used_like_every_task(guide, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_TASKS", "")
    picture = next((samples("emoji") / "images").glob("1f34*.webp"))
    words = ["use", str(guide / "run"), str(picture), str(guide / "kinds.yaml"), "--out",
             str(tmp_path / "said.tsv")]
    assert cli.main([*words, "--task-from", str(guide / "kinds.py")]) == 2  # one of two is no picture
    said = capsys.readouterr()
    assert "is no picture" in said.err and f"{picture}: " in said.out
    assert len((tmp_path / "said.tsv").read_text().splitlines()) == 3


def test_it_is_checked_and_walked_through_the_flowchart(guide, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_TASKS", str(guide / "kinds.py"))
    assert cli.main(["check", str(guide / "kinds.yaml")]) == 0
    assert "failed" not in capsys.readouterr().out
    out = tmp_path / "out.ipynb"
    done = subprocess.run([sys.executable, "-m", "papermill", str(home / "nbs/flowchart.ipynb"), str(out),
                           "-p", "config",
                           str(guide / "kinds.yaml"), "-p", "upto", "quick test"], capture_output=True,
                           text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    text = json.dumps(nbformat.read(out, 4), ensure_ascii=False)
    for words in ("plan passed", "forward passed", "quick test passed"):
        assert words in text, words


@pytest.fixture
def clean(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_TASKS", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in [n for n in sys.modules
                 if n not in before and n.split(".")[0] in ("my_task", "my_tasks", "deep_ones")]:
        del sys.modules[name]


@pytest.mark.parametrize("file, named, task", [
    ("my_task.py", "my_task.py", "my_task"),  # a file whose name has an underscore
    ("my_task.py", "my_task", "my_task"),
    ("my_task/__init__.py", "my_task", "my_task"),  # a package that has the task
    ("my_task/task.py", "my_task", "my_task"),  # a folder as those of the workbench
    ("my_task/task.py", "my_task.task", "my_task.task"),
    ("deep_ones/my_tasks/curve_again.py", "deep_ones.my_tasks.curve_again", "deep_ones.my_tasks.curve_again"),
    ("deep_ones/my_tasks/curve_again.py", "deep_ones/my_tasks/curve_again.py", "curve_again"),
    ("deep_ones/my_task/task.py", "deep_ones/my_task", "my_task"),  # a folder by its path
])
def test_a_task_in_a_file_a_package_or_a_module(clean, file, named, task):
    path = clean / file
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in path.relative_to(clean).parents[:-1]:
        (clean / folder / "__init__.py").touch()
    path.write_text((toys / "curve.py").read_text())
    permit(named)
    cfg = presets.load({"task": task, "train": {"max_steps": 1}})
    assert cfg.width == 8 and presets.task_module(task).task.data.__module__.startswith(task.split(".")[0])


def test_a_named_task_trains_in_its_own_process(clean):
    (clean / "my_task").mkdir()
    (clean / "my_task/task.py").write_text((toys / "curve.py").read_text())
    run = workbench.train({"task": "my_task", "check": False, "trackers": [],
                           "train": {"max_steps": 2, "minutes": None}},
                          run_dir=clean / "run", task_from="my_task")
    assert read_json(run / "status.json")["state"] == "finished"


def test_the_systems_of_the_workbench_are_its_folders():
    for name in systems():
        task = presets.task_module(name).task
        assert task.use and set(task.settings) <= set(task.config.model_fields), name
