"""Run folders of an older build resume, load and are listed.

tests/old_runs has two that it wrote and stopped,
one in mid-epoch and one in its second stage, and the lines that it wrote itself when it resumed copies of
them."""
import json
import shutil
from pathlib import Path

import pytest
from runs import again, done, lines
from test_golden import differences

import workbench
from workbench.core.run import checkpoint
from workbench.files import read_json
from workbench.lab import cli

OLD = Path(__file__).parent / "old_runs"
NAMES = ["curve", "gan"]


@pytest.fixture
def home(tmp_path):
    "A folder of runs with copies of the old ones."
    for name in NAMES:
        shutil.copytree(OLD / name, tmp_path / "runs" / name)
    return tmp_path / "runs"


def test_they_resume_as_the_old_build_resumed_them(home):
    started = [again(home / name) for name in NAMES]
    for run in started:
        recorded = (OLD / f"{run.folder.name}.resumed.jsonl").read_text(encoding="utf8")
        before = lines(OLD / run.folder.name)
        assert not differences(lines(done(run)), [json.loads(line) for line in recorded.splitlines()])
        assert lines(run.folder)[:len(before)] == before, "what the old build wrote stays"
        assert run.status["attempt"] == 2


@pytest.mark.parametrize("name", NAMES)
def test_they_load(name, home):
    "The nets have the averaged weights of the checkpoint, as those of a new run would."
    folder = checkpoint.find(home / name)
    nets, data = workbench.load(home / name, "last")
    assert read_json(home / name / "status.json")["state"] == "stopped" and len(data.datasets["train"]) > 50
    for net, module in nets.items():
        averages = checkpoint.load_tensors(folder / f"ema.{net}.safetensors")
        assert averages and all((module.state_dict()[k] == t).all() for k, t in averages.items())
        assert not module.training


def test_they_are_listed(home, capsys):
    assert cli.main(["runs"]) == 0
    said = capsys.readouterr().out
    for name in NAMES:
        row = next(line for line in said.splitlines() if name in line)
        assert "stopped" in row, row
