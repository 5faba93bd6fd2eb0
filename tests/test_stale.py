"A result of the flowchart is marked stale when a folder that the configuration names was made again."
import os

from workbench.core.config.presets import load
from workbench.lab.flowchart.session import Session, look_again
from workbench.lab.flowchart.stations import key_of, made_mark, named


def test_a_start_that_was_made_again_makes_results_stale(own_runs, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    cfg = load("universal_tiny", f"model.start={models} bootstrap.source=bert bootstrap.out={models}")
    session = Session(cfg=cfg)
    look_again(session)
    before = dict(session.keys)
    assert made_mark(cfg) == {}
    (models / "report.json").write_text("{}")
    look_again(session)
    changed = {name for name in before if before[name] != session.keys[name]}
    assert {"plan", "forward", "quick test", "training"} <= changed
    assert "bootstrap" not in changed  # it is what makes the folder
    report = models / "report.json"
    keys = dict(session.keys)
    os.utime(report, ns=(1, 1))
    assert key_of(named["plan"], cfg, session.source) != keys["plan"]
    look_again(session)
    assert session.keys["plan"] == key_of(named["plan"], cfg, session.source) != keys["plan"]
    assert made_mark(load("t5_tiny")) == {}
