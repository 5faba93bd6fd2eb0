"A configuration and a run folder are data: what they name is imported only where the user named it, too."
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import config

import workbench
from workbench.core.config import modules
from workbench.core.config import presets
from workbench.errors import Refused
from workbench.core.run.lock import process
from workbench.core.run.folder import create, status_of, update_status
from workbench.files import write_text
from workbench.lab import cli
from workbench.lab.run import launch

toys = Path(__file__).parent / "toys"
MARK = "from pathlib import Path\nPath({mark!r}).touch()\n"


@pytest.fixture
def handed_over(tmp_path, monkeypatch):
    "A run folder with a module in it that its configuration names; the person stands beside it."
    run = create(presets.load(config()), tmp_path / "runs" / "shared")
    update_status(run, state="stopped", **process())
    for name in ("runs/shared/extra.py", "extra.py"):
        write_text(tmp_path / name,
                   MARK.format(mark=str(tmp_path / "it ran")) + (toys / "curve.py").read_text())
    text = (run / "config.yaml").read_text()
    write_text(run / "config.yaml", text.replace("task: curve", "task: runs.shared.extra"))
    write_text(tmp_path / "mine.yaml", text.replace("task: curve", "task: extra"))
    monkeypatch.delenv("WORKBENCH_TASKS")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield run
    for name in [n for n in sys.modules if n == "extra" or n.startswith("runs.shared")]:
        del sys.modules[name]


@pytest.mark.parametrize("words",
                         [["resume", "{run}"], ["say", "{run}", "Hello."], ["use", "{run}", "Hello."],
                                   ["plan", "{run}/config.yaml"], ["check", "{run}/config.yaml"],
                                   ["train", "{run}/config.yaml"], ["plan", "mine.yaml"],
                                   ["plan", "t5_tiny", "--overrides", "task=extra"]])
def test_a_file_alone_imports_nothing(handed_over, tmp_path, capsys, words):
    assert cli.main([w.format(run=handed_over) for w in words]) == 2
    says = capsys.readouterr().err
    assert "--task-from" in says and "WORKBENCH_TASKS=" in says and not (tmp_path / "it ran").exists()


def test_loading_and_the_training_process_import_nothing(handed_over, tmp_path):
    with pytest.raises(Refused, match="imports no other code"):
        workbench.load(str(handed_over))
    done = subprocess.run([sys.executable, "-m", "workbench.core.train.loop", str(handed_over)],
                          capture_output=True, text=True)
    assert (done.returncode == 2 and "--task-from runs.shared.extra" in done.stderr
            and not (tmp_path / "it ran").exists())
    assert status_of(handed_over)["state"] == "failed"


@pytest.mark.parametrize("named", ["extra", "extra.py"])
def test_a_task_that_the_user_named(handed_over, tmp_path, monkeypatch, capsys, named):
    "By its module or its file; the process that trains is told."
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    assert cli.main(["train", "mine.yaml", "--overrides", "train.max_steps=1", "--run-dir", "own",
                     "--task-from", named]) == 0
    assert (tmp_path / "it ran").exists() and status_of(tmp_path / "own")["state"] == "finished"
    assert cli.main(["plan", "mine.yaml", "--task-from",
                     "none.py"]) == 2 and "no such file" in capsys.readouterr().err


def test_a_task_that_this_process_has_imported(monkeypatch):
    monkeypatch.delenv("WORKBENCH_TASKS")
    import curve
    assert presets.task_module("curve") is curve and os.environ["WORKBENCH_TASKS"] == "curve"
    with pytest.raises(Refused, match="did you mean `sign`"):
        presets.task_module("sgin")


def test_a_task_that_a_distribution_offers(handed_over, tmp_path, monkeypatch):
    info = tmp_path / "offers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[workbench.tasks]\nshort = extra\n")
    assert presets.task_module("short").task and (tmp_path / "it ran").exists()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 cannot leave out the current folder")
def test_a_module_of_the_run_folder_does_not_stand_in_for_one_of_python(tmp_path, monkeypatch):
    "The training process starts in the run folder, and none of its files is imported."
    run = create(presets.load(config("train.max_steps=1")), tmp_path / "shadows")
    for name in ("json", "yaml", "torch", "safetensors"):
        write_text(run / f"{name}.py", MARK.format(mark=str(tmp_path / "it ran")))
    monkeypatch.chdir(run)
    with launch.ticket_for(run) as ticket:
        launch.wait(launch.launch(run, ticket))
    assert status_of(run)["state"] == "finished" and not (tmp_path / "it ran").exists()


def test_named_tasks(monkeypatch):
    monkeypatch.setenv("WORKBENCH_TASKS", " one, two.deep ,/some/where/three.py,")
    assert modules.named_tasks() == {"one": "one", "two.deep": "two.deep", "three": "/some/where/three.py"}
