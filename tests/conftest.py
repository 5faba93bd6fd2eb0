"Where tests find the toy tasks, which tests run first, and how many of a matrix; each has its own runs."
import os
import sys
from importlib import import_module
from itertools import product
from pathlib import Path
from pkgutil import iter_modules

import pytest

here = Path(__file__).parent
WHOLE = os.environ.get("WORKBENCH_TESTS") == "all"  # `make test-all`
# files of ten seconds and more, longest first: two workers that begin with them end together
LONG = ["test_sign", "test_checks", "test_flowchart", "test_flow", "test_pipelines", "test_lock",
        "test_resume", "test_tts", "test_lab", "test_tts_runs", "test_values", "test_stages", "test_faults",
        "test_watch", "test_checks_losses", "test_checks_steps", "test_checks_answers", "test_checks_data",
        "test_checks_apart", "test_seeded", "test_gallery", "test_say", "test_keys", "test_best",
        "test_export", "test_compare_browser", "test_docs", "test_hub", "test_backup"]
sys.path.insert(0, str(here / "toys"))
# whoever runs the tests trusts them
os.environ["WORKBENCH_TASKS"] = ",".join(path.stem for path in (here / "toys").glob("*.py"))


def some(values, kinds):
    """Those values that are of a kind which none before them is of; all of them in `make test-all`.

    kinds(value) names what a value stands for, so every kind stays proven by the value that is kept."""
    seen, kept = set(), []
    for value in values:
        if WHOLE or not seen >= set(kinds(value)):
            kept.append(value)
        seen |= set(kinds(value))
    return kept


def pairs(first, second):
    """So many of all (a, b) that each a and each b is in one: the i-th with the i-th, the shorter list again.

    All of them in `make test-all`."""
    if WHOLE:
        return list(product(first, second))
    return [(first[i % len(first)], second[i % len(second)]) for i in range(max(len(first), len(second)))]


def check_names():
    """The checks that there are: what the rooms ask, the keys that nothing reads, a refusal, and `watch` for
    any check of a run."""
    from workbench.core import checks

    rooms = [import_module(f"{checks.__name__}.{m.name}") for m in iter_modules(checks.__path__)]
    return {"keys", "refused", "watch"}.union(*(getattr(room, "asks", ()) for room in rooms))


def pytest_collection_modifyitems(items):
    "Long files first; `--no-loadscope-reorder` keeps this order."
    place = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


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
