"A run goes on with the rows that it was trained on, or says which are others."
from dataclasses import replace

import curve
import pytest
import torch
from runs import config

from workbench.core.run import checkpoint

from workbench.core.config import presets

from workbench.core.setup import resume

from workbench.core.train import loop as train
from workbench.core.stages.changes import changes
from workbench.errors import Refused
from workbench.core.data.batches import data_changes, data_print
from workbench.core.stages.position import Position
from workbench.core.stages.stages import complete
from workbench.core.run.folder import create, metrics_of, status_of
from workbench.files import read_json, write_json

STAGES = [{"name": "a", "train": {"epochs": 1}}, {"name": "b", "data": {"rows": 20}, "train": {"epochs": 2}}]


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    "A run in the middle of an epoch of 16 steps; made in this process, so that the rows can be changed."
    monkeypatch.setattr(train, "stop_on_signals", list)
    run = create(presets.load(config("train.max_steps=10 train.checkpoint_every=9")), tmp_path / "run")
    assert train.main(run) == 0
    cfg = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(cfg.replace("max_steps: 10", "max_steps: 20"))
    return run


def other(monkeypatch, change):
    "From here on the task's data is changed."
    data = curve.data
    monkeypatch.setattr(curve, "task",
                        replace(curve.task, data=lambda cfg, stage: change(data(cfg, stage), stage)))


def fewer(data, stage):
    "Rows of the training split are gone."
    cut = {"train": 30}
    data.datasets["train"].n = 30
    return replace(data, lengths={k: v[:cut.get(k, len(v))] for k, v in data.lengths.items()},
                   uids={k: v[:cut.get(k, len(v))] for k, v in data.uids.items()})


def renamed(data, stage):
    return replace(data, uids=data.uids | {"valid": [f"another {u}" for u in data.uids["valid"]]})


def content(data, stage):
    "The same ids and lengths; the task says that the content is another."
    return replace(data, facts={"source": "moved/elsewhere", "fingerprint": "b" * 16})


@pytest.mark.parametrize("change, says", [(fewer, "train had 66 rows and has 30"),
                                          (renamed,
                                           "valid has 11 rows as before, with other ids or lengths")])
def test_other_rows_are_refused(stopped, monkeypatch, capsys, change, says):
    lines, before = metrics_of(stopped), checkpoint.find(stopped)
    with monkeypatch.context() as m:
        other(m, change)
        assert train.main(stopped) == 2
    error = status_of(stopped)["error"]
    assert says in error and "Restore the data" in error and "begin_from=" in error and str(stopped) in error
    assert metrics_of(stopped) == lines and checkpoint.find(stopped) == before
    assert train.main(stopped) == 0  # restored
    assert status_of(stopped)["step"] == 20


def test_the_same_rows_of_another_content_are_refused(stopped, monkeypatch):
    state = read_json(checkpoint.find(stopped) / "state.json")
    write_json(checkpoint.find(stopped) / "state.json",
               state | {"data": state["data"] | {"fingerprint": "a" * 16}})
    other(monkeypatch, content)
    assert train.main(stopped) == 2
    assert ("the fingerprint was aaaaaaaaaaaaaaaa and is bbbbbbbbbbbbbbbb, so rows have another content"
            in status_of(stopped)["error"])


def test_a_checkpoint_of_an_older_build_knows_no_rows(stopped, monkeypatch):
    "It goes on, unless its place in the epoch is behind the end."
    state = read_json(checkpoint.find(stopped) / "state.json")
    write_json(checkpoint.find(stopped) / "state.json", {k: v for k, v in state.items() if k != "data"})
    with monkeypatch.context() as m:
        other(m, fewer)
        assert train.main(stopped) == 2
    assert ("stands at step 11 of epoch 0, which has 7: its data is not what it was"
            in status_of(stopped)["error"])
    assert train.main(stopped) == 0


def test_each_stage_has_rows_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "stop_on_signals", list)
    cfg = config() | {"pipeline": {"steps": STAGES}}
    cfg["train"].pop("epochs")
    run = create(presets.load(cfg), tmp_path / "run")
    assert train.main(run) == 0
    prints = [read_json(checkpoint.find(run, checkpoint.end_of(s)) / "state.json")["data"]["splits"]["train"]
              for s in "ab"]
    assert [p["rows"] for p in prints] == [66, 20]

    def of_the_first(data, stage):
        return renamed(data, stage) if stage.name == "a" else data
    other(monkeypatch, of_the_first)
    assert train.main(run) == 0  # what it stands in is as it was


def test_of_other_processes_the_place_may_be_the_next_epoch(stopped):
    at = train.prepare(stopped).at
    at.batch = 16
    resume.within_epoch(at, 16, known=True, run=stopped)
    assert (at.epoch, at.batch) == (1, 0)
    with pytest.raises(Refused, match="its data is not what it was"):
        at.batch = 17
        resume.within_epoch(at, 16, known=False, run=stopped)


def test_neither_places_nor_kinds_of_numbers_count():
    data = curve.data(presets.load(config()), None)
    same = replace(data, lengths={k: torch.tensor(v).numpy() for k, v in data.lengths.items()},
                   facts={"source": "there"})
    assert data_changes(data_print(data), data_print(same)) == []


def test_the_same_data_in_another_place(tmp_path):
    """Where the rows stand may change: they are compared before the first step.
    What a checkpoint of an older build was trained on cannot be."""
    there = complete("tts_tiny", f"data.source={tmp_path}")
    assert changes(complete("tts_tiny"), there, Position()) == [f"data.source 'samples' → '{tmp_path}'"]
    pictures = complete("flow_tiny", f"data.source={tmp_path}")
    assert any("data.source 'samples'" in line
               for line in changes(complete("flow_tiny"), pictures, Position(stage=1)))
    with pytest.raises(Refused, match="data.trim was -40"):
        changes(complete("tts_tiny"), complete("tts_tiny", "data.trim=-30"), Position())
