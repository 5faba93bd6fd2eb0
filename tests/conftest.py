"Where tests find the toy tasks; each test has its own folder of runs."
import os
import sys
from pathlib import Path

import pytest

here = Path(__file__).parent
sys.path.insert(0, str(here / "toys"))
# whoever runs the tests trusts them
os.environ["WORKBENCH_TASKS"] = ",".join(path.stem for path in (here / "toys").glob("*.py"))


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here / "toys"), str(here.parent)]))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def train_run(tmp_path):
    "Train a configuration in its own process; returns the run folder."
    from workbench.lab.run import launch

    def run(config, overrides="", folder=None, nproc=1):
        return launch.train(config, overrides, folder, nproc)
    return run


@pytest.fixture
def online(own_runs, monkeypatch):
    "For tests that bring a hub of their own on 127.0.0.1, whatever the surroundings say."
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
