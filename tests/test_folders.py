"""A run folder that is damaged, or that somebody else made: what is wrong is told by name, nothing outside it
is touched, nothing begins anew in silence."""
import json
import os
import shutil
import signal
import time

import pytest
from runs import config

from workbench.core.run import checkpoint, lock

from workbench.core.train import loop as training
from workbench.errors import Refused
from workbench.core.run.inside import demand_inside
from workbench.core.stages.stages import complete
from workbench.core.setup.resume import load
from workbench.core.run.folder import create, metrics_of, status_of
from workbench.files import read_json, write_json
from workbench.lab.run import launch
from workbench.lab.cli import main
from workbench.lab.compare.tables import facts_of


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    "A run that was stopped after 14 of 24 steps, with checkpoints at 8, 12 and 14."
    folder = tmp_path_factory.mktemp("runs") / "run"
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    create(complete(config("train.epochs=2 train.max_steps=24 valid.every=8")), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOY_TRAP", "term:13")
        assert training.main(folder) == 0
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before):
        signal.signal(number, handler)
    return folder


@pytest.fixture
def run(stopped, tmp_path, monkeypatch):
    "A copy of it, alone in the folder of runs; a resume trains in this process."
    def here(folder, ticket, nproc=1):
        monkeypatch.setenv("WORKBENCH_TICKET", ticket)
        return training.main(folder)

    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(launch, "launch", here)
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    yield shutil.copytree(stopped, tmp_path / "run")
    for number, handler in zip((signal.SIGTERM, signal.SIGINT), before):
        signal.signal(number, handler)


def told(run, capsys):
    "What is said of a run that cannot be resumed."
    try:
        assert launch.resume(run) == 2
    except Refused as e:
        return str(e)
    return capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", "\0\0\0", "{}",
                                  '{"state": "\\u001b[31m<b>", "pid": "x", "step": null}',
                                  '{"state": "running", "pid": -1}',
                                  '{"state": "stopped", "step": "9", "updated": 1e300}'])
def test_a_damaged_status_stops_nothing(run, text, capsys):
    (run / "status.json").write_text(text)
    assert main(["runs"]) == 0 and "run  " in (said := capsys.readouterr().out) and "\x1b" not in said
    assert main(["stop", str(run)]) == 0
    assert launch.resume(run) == 0 and status_of(run)["attempt"] == 2
    assert [r["step"] for r in metrics_of(run, "train")] == list(range(1, 25))


@pytest.mark.parametrize("name, text", [("config.yaml", ""), ("config.yaml", "- a"), ("config.yaml", "{{"),
                                        ("config.yaml", b"\xff"), ("plan.json", "{"),
                                        ("plan.json", "[]"), ("metrics.index", "x\n"),
                                        ("metrics.index", "7\n"), ("metrics.jsonl", "[1]\n5\nx\n\0\n")])
def test_no_damaged_run_ends_the_list(run, stopped, capsys, name, text):
    shutil.copytree(stopped, run.parent / "whole")
    (run / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("whole " in line and "stopped" in line
               for line in lines) == 1 and sum(line.startswith("run ") for line in lines) == 1


def test_damaged_lines_are_left_out(run):
    whole = metrics_of(run)
    lines = (run / "metrics.jsonl").read_bytes().split(b"\n")
    (run / "metrics.jsonl").write_bytes(b"\n".join([*lines[:3], lines[3][:9], b"[1]", *lines[4:]]))
    assert [r["step"] for r in metrics_of(run, "valid")] == [8] and metrics_of(run) == whole[:3] + whole[4:]
    assert facts_of(run)["step"] == 14


def test_a_lost_pointer_is_no_new_beginning(run):
    (run / "checkpoints" / "last").unlink()
    assert checkpoint.find(run).name == "step_00000014" and launch.resume(run) == 0
    assert [r["attempt"] for r in metrics_of(run, "train")] == [1] * 14 + [2] * 10


def test_lost_checkpoints_are_told(run, capsys):
    shutil.rmtree(run / "checkpoints")
    lines = len(metrics_of(run))
    assert ("no checkpoint, and its status.json says that step_00000012 was saved" in told(run, capsys)
            and len(metrics_of(run)) == lines)


@pytest.mark.parametrize("words", ["", "step_00000099", "../../elsewhere/step_00000014", ".", b"\xff\xfe"])
def test_a_pointer_leads_to_a_checkpoint_of_the_run(run, words, capsys):
    shutil.copytree(run / "checkpoints", run.parent / "elsewhere")
    (run / "checkpoints" / "last").write_bytes(words if isinstance(words, bytes) else words.encode())
    says = told(run, capsys)
    assert "last names `" in says and "write its name, as step_00000014, into" in says
    (run / "checkpoints" / "last").write_text("step_00000014")
    (run / "checkpoints" / "best").write_text("step_00000099")
    assert f"Delete {run}/checkpoints/best" in told(run, capsys)
    (run / "checkpoints" / "best").unlink()
    (run / "checkpoints" / "notes.bin").write_bytes(b"\xff\0")  # not ours
    assert launch.resume(run) == 0


@pytest.mark.parametrize("name, harm", [("state.json", "cut"), ("state.json", "{}"),
                                        ("state.json", '{"position": {"step": "x"}}'),
                                        ("net.body.safetensors", "cut"),
                                        ("net.body.safetensors", "short"), ("optim.slow.safetensors", "cut"),
                                        ("optim.slow.safetensors", "gone")])
def test_a_damaged_checkpoint_is_named_and_another_one_serves(run, name, harm, capsys):
    path = run / "checkpoints" / "step_00000014" / name
    if harm == "gone":
        path.unlink()
    elif harm in ("cut", "short"):
        os.truncate(path, 0 if harm == "cut" else 200)
    else:
        path.write_text(harm)
    says = told(run, capsys)
    assert "damaged" in says or f"{path} is missing" in says
    (run / "checkpoints" / "last").write_text("step_00000012")  # as it says
    assert launch.resume(run) == 0 and [r["step"] for r in metrics_of(run, "train")] == list(range(1, 25))


def test_lost_assets_are_told(run, capsys):
    "A tokenizer that is learnt anew is another one."
    state = run / "checkpoints" / "step_00000014" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"kept": ["tokenizer"]}))
    assert f"{run}/assets lacks tokenizer, which its nets were trained with" in told(run, capsys)
    with pytest.raises(Refused, match="lacks tokenizer"):
        load(run, "last")
    (run / "assets" / "tokenizer").mkdir()
    assert launch.resume(run) == 0


def test_nothing_outside_the_folder_is_written(run, capsys):
    mine = run.parent / "diary.txt"
    mine.write_text("mine " * 1000)
    for name in ("metrics.jsonl", "log.txt", ".rejected.csv", "checkpoints/step_00000001", "lock",
                 "assets/deep/link"):
        path = run / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(mine)
        assert f"{path} is a link to {mine}, out of the run folder" in told(run, capsys)
        assert training.main(run) == 2
        path.unlink()
    os.mkfifo(run / "pause")
    assert "neither a file nor a folder" in told(run, capsys) and mine.read_text() == "mine " * 1000
    os.unlink(run / "pause")
    (run / "wandb").mkdir()
    (run / "wandb" / "debug.log").symlink_to("/gone/debug.log")  # W&B's own
    (run / "newest").symlink_to("checkpoints")
    demand_inside(run)


@pytest.mark.parametrize("text", ["", "[]", "null", "{{", '{"pid": "x"}', '{"pid": -1, "pid_started": 0}',
                                  '{"ticket": [], "host": 5}'])
def test_a_damaged_lock_is_an_old_one_after_a_silence(run, text, monkeypatch):
    (run / "lock").write_text(text)
    # a time to come: the clock was set back, or the file is a copy
    for shift in (-lock.silence - 1, 400 * 86400):
        os.utime(run / "lock", (time.time() + shift,) * 2)
        assert not lock.has_living_holder(lock.read_lock(run), time.time())
    assert launch.resume(run) == 0


def test_a_process_of_another_container_is_not_signalled(run, monkeypatch):
    "Two containers of one host name: the number is another process here."
    monkeypatch.setattr(launch.os, "kill", lambda *a: pytest.fail("signalled"))
    write_json(run / "status.json", read_json(run / "status.json") | lock.process()
               | {"state": "running", "space": "pid:[1]", "updated": time.time()})
    with pytest.raises(Refused, match="in another container: stop it there"):
        launch.stop(run)


def test_what_a_preset_calls_itself_is_one_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    for name in ("../out", "a/b c", ".hidden", "x" * 300):
        made = create(complete(config() | {"preset": name}))
        assert made.parent == tmp_path / "runs" and not made.name.startswith(".")


def test_control_characters_never_reach_a_terminal(capsys):
    assert main(["plan", "t5_tiny", "--overrides",
                 "'tr\x1b[2Jain'=5"]) == 2 and "\x1b" not in capsys.readouterr().err


def test_json_of_ours_is_told_by_name(run):
    for text in ("{", "[]", "[" * 100_000, b"\xff"):
        (run / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(Refused, match="manifest.json is damaged .*: delete it"):
            read_json(run / "manifest.json", {})
    assert json.loads((run / "status.json").read_text()) == status_of(run)


def test_a_budget_without_a_step_is_no_training(tmp_path, capsys):
    run = create(complete(config("train.minutes=1e-9")), tmp_path / "run")
    assert training.main(run) == 2 and "the time was over before the first step" in status_of(run)["error"]
    assert not (run / "results.json").exists()
