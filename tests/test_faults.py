"What goes wrong is said in a sentence, in status.json and in the log, and never costs a good checkpoint."
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from runs import again, config, done, end, go, lines, same_bits, surroundings, tensors

from workbench.core.run import checkpoint

from workbench.core.stages import stages as pipeline

from workbench.core.config import presets
from workbench.errors import Failed, Refused
from workbench.core.run.lock import alive, process
from workbench.core.run.folder import create, metrics_of, status_of, update_status
from workbench.files import read_json, write_json
from workbench.lab.run import launch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


STALE = "train.epochs=50 valid.metric=error valid.mode=max valid.every=2 train.early_stopping.patience=3 "
TOGETHER = {  # these runs are short and start at once
    "nan": ("train.log_every=50", "nan:9"), "memory": ("", "memory:5"), "killed": ("", "kill:2"),
    "twice": ("", "twice:6"),
    "patience": (STALE + "train.early_stopping.min_delta=9 train.checkpoint_every=null", ""),
    "keep_2": ("train.keep=2 train.checkpoint_every=3 valid.every=5 valid.metric=error valid.mode=max", ""),
    "keep_all": ("train.keep=null train.checkpoint_every='1 epoch' valid.every=null", ""),
    "board": ("trackers=[tensorboard] train.max_steps=3", ""), "full": ("width=200 train.max_steps=4", "")}


@pytest.fixture(scope="module")
def together(folder):
    runs = {name: go(folder / name, *how) for name, how in TOGETHER.items()}
    for run in runs.values():
        end(run)
    return runs


def test_not_a_number(together):
    run = together["nan"]
    status = end(run)
    assert run.process.returncode == 1 and status["state"] == "failed"
    assert "became nan at step 10" in status["error"] and str(checkpoint.find(run.folder)) in status["error"]
    assert checkpoint.find(run.folder).name == "step_00000008"  # 12 would have been next
    assert all((t == t).all() for t in tensors(run.folder).values())
    with pytest.raises(Failed, match="(?s)became nan at step 10.*log's last lines"):
        launch.wait(run)
    done(again(run.folder))  # without the trap it goes on from there


def test_out_of_memory_names_the_phase_and_what_helps(together):
    status = end(together["memory"])
    assert status["state"] == "failed" and "More lines" not in status["error"]
    for part in ("Out of memory in phase forward (CUDA out of memory. Tried to allocate 2.00 GiB.)",
                 "train.batch_size",
                 "gradient_checkpointing", "train.precision=bf16", "step_00000004"):
        assert part in status["error"]


def test_out_of_memory_is_told_from_other_errors():
    import torch

    from workbench.core.train.ending import out_of_memory

    refusal = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
                           "9 bytes")
    assert all(map(out_of_memory, (MemoryError(), torch.OutOfMemoryError("x"), refusal)))
    assert not any(map(out_of_memory,
                       (RuntimeError("shape mismatch"), OSError(12, "x"), ValueError("out of memory"))))


def limited(folder, megabytes):
    "Start a prepared run where no file may grow beyond a size, as on a full disk."
    code = ("import resource, sys; from workbench.core.train.loop import main; "
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({int(megabytes * 2**20)},) * 2); "
            "sys.exit(main(sys.argv[1]))")
    with surroundings(""):
        return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True,
                              timeout=120)


def test_a_checkpoint_that_finds_no_room(together):
    run = done(together["full"])
    before = tensors(run)
    with surroundings(""):
        cfg = presets.resolve(presets.read_yaml((run / "config.yaml").read_text(), "x"), "x",
                              {"train": {"max_steps": 12}})
    (run / "config.yaml").write_text(presets.dump(cfg))
    out = limited(run, 0.1)
    status = status_of(run)
    assert out.returncode == 1 and status["state"] == "failed"
    for part in ("could not be written", "File too large",
                 f"last good checkpoint is {run}/checkpoints/step_00000004",
                 f"workbench resume {run}"):
        assert part in status["error"]
    assert same_bits(tensors(run), before) and not list((run / "checkpoints").glob(".*"))
    done(again(run))


def test_a_disk_without_room_for_a_line(tmp_path):
    "A file system of its own, filled to the brim: not even status.json can be written beside itself."
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
                      capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        with surroundings("pause:0.05"):
            run = launch.start(config("train.epochs=50 train.log_every=1 train.keep=1"), "", disk / "run")
        while checkpoint.find(run.folder) is None:
            assert not run.over, launch.log_tail(run.folder)
            time.sleep(0.05)
        with pytest.raises(OSError), open(disk / "filler", "wb", buffering=0) as f:
            while f.write(b"0" * 4096):
                pass
        status = end(run)
        assert status["state"] == "failed" and "No space left on device" in status["error"], status
        assert "last good checkpoint" in status["error"] and run.process.returncode != 0
        good = tensors(run.folder)
        (disk / "filler").unlink()
        assert good and end(again(run.folder, "train.max_steps=30"))["state"] == "finished"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_folder_that_cannot_be_written(folder):
    (folder / "file").write_text("not a folder")
    for place in (folder / "file" / "run", "/proc/run"):
        with pytest.raises(Refused, match=f"The run folder {place} cannot be written: .*run_dir"):
            go(place)
    if os.getuid():
        (folder / "locked").mkdir(mode=0o500)
        with pytest.raises(Refused, match="cannot be written: Permission denied"):
            go(folder / "locked" / "run")


def test_a_folder_that_holds_a_run(folder):
    run = create(presets.load(config()), folder / "taken")
    before = {p: p.read_bytes() for p in run.iterdir() if p.is_file()}
    with pytest.raises(Refused, match="already holds a run: continue it with `workbench resume"):
        go(run)
    assert before == {p: p.read_bytes() for p in run.iterdir() if p.is_file()}


def test_who_is_alive(folder):
    run = create(presets.load(config()), folder / "states")
    assert status_of(run)["state"] == "starting"
    child = subprocess.Popen(["sleep", "60"])
    who = {"pid": child.pid, "pid_started": psutil.Process(child.pid).create_time(),
           "host": process()["host"]}
    update_status(run, state="running", **who)
    assert status_of(run)["state"] == "running"
    with pytest.raises(Refused, match="is running .*: stop it first"):
        again(run)
    update_status(run, pid_started=who["pid_started"] - 100)  # its number was given to another process
    assert status_of(run)["state"] == "died"
    update_status(run, **who)
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert status_of(run)["state"] == "died" and not alive(who)
    child.wait()
    assert status_of(run)["state"] == "died"
    update_status(run, host="elsewhere")
    assert status_of(run)["state"] == "running"  # it cannot be told from here
    with pytest.raises(Refused, match="runs on elsewhere: stop it there"):
        launch.stop(run)
    update_status(run, state="starting")
    write_json(run / "launch.json", who)
    assert status_of(run)["state"] == "died"
    update_status(run, state="finished")
    assert status_of(run)["state"] == "finished" and not launch.stop(run)


def test_killed_without_a_word(together):
    run = together["killed"]
    with pytest.raises(Failed, match="The process is gone without a word"):
        launch.wait(run)
    assert status_of(run.folder)["state"] == "died" and read_json(run.folder
                                                                  / "status.json")["state"] == "running"


def test_a_second_signal_ends_at_once(together):
    run = together["twice"]
    assert end(run)["state"] == "died" and run.process.returncode == -signal.SIGTERM
    assert checkpoint.find(run.folder).name == "step_00000004"
    done(again(run.folder))


def test_a_stop_while_the_run_prepares(folder):
    run = go(folder / "early", trap="pause:0.2")
    while run.status["state"] == "starting":
        time.sleep(0.01)
    assert launch.stop(run.folder)
    status = end(run)
    assert run.process.returncode == 0 and (status["state"], status["reason"]) == ("stopped", "asked to stop")
    assert checkpoint.find(run.folder) and status["step"] <= 3


def test_early_stopping(together):
    run = done(together["patience"])
    valid = [r["step"] for r in metrics_of(run, "valid")]
    assert valid == [2, 4, 6, 8]  # the first is the best, three are not better
    position = read_json(checkpoint.find(run) / "state.json")["position"]
    assert (position["best_step"],
            position["bad"]) == (2, 3) and checkpoint.find(run, "best").name == "step_00000002"
    assert read_json(run / "results.json")["checkpoint"] == "step_00000002"
    assert "no better error in 3 validations" in (run / "log.txt").read_text()


def test_a_time_budget_ends_inside_itself(folder):
    run = go(folder / "budget", "train.epochs=null train.minutes=0.1 valid.rows=5 train.log_every=20",
             trap="pause:0.01")
    status = end(run)
    assert run.process.returncode == 0 and (status["state"], status["reason"]) == ("stopped", "time budget")
    manifest = read_json(run.folder / "manifest.json")
    took = status["updated"] - time.mktime(time.strptime(manifest["time"][:19], "%Y-%m-%dT%H:%M:%S"))
    assert took < 6 + 1  # manifest.json tells whole seconds
    test = read_json(run.folder / "results.json")["splits"]["test"]
    assert (test["rows"],
            test["of"]) == (5, 7) and test["scores"]["loss"] > 0 and test["baseline"] == {"error": 1.0}
    with open(run.folder / "predictions/test.csv") as f:
        assert len(list(csv.DictReader(f))) == 5
    steps, before = status["step"], lines(run.folder, "train")
    again(run.folder, f"train.minutes=null train.max_steps={steps + 5}")
    done(launch.Run(run.folder))  # attached by its folder alone
    assert lines(run.folder,
                 "train")[:len(before)] == before and metrics_of(run.folder)[-1]["step"] <= steps + 5


def test_which_checkpoints_are_kept(together):
    names = lambda run: sorted(p.name for p in (run / "checkpoints").glob("step_*"))
    run = done(together["keep_2"])
    best, last = (checkpoint.find(run, which).name for which in ("best", "last"))
    scores = {r["step"]: r["error"] for r in metrics_of(run, "valid")}
    assert best == checkpoint.checkpoint_name(max(scores, key=scores.get))
    assert (last == checkpoint.checkpoint_name(max(scores)) and {best, last} <= set(names(run))
            and len(names(run)) <= 3)
    run = done(together["keep_all"])
    rows = lines(run, "train")
    ends = [after["step"] for row, after in zip(rows, rows[1:]) if after["epoch"] > row["epoch"]]
    assert names(run) == [checkpoint.checkpoint_name(step) for step in ends] and len(ends) == 3


def test_a_tracker_that_is_not_there(folder, monkeypatch):
    monkeypatch.setattr(pipeline, "find_spec", lambda name: None if name == "wandb" else True)
    with pytest.raises(Refused, match="trackers names wandb, which is not installed: `pip install wandb`"):
        go(folder / "wandb", "trackers=[tensorboard,wandb]")
    assert not (folder / "wandb").exists()


def test_tensorboard_gets_the_lines(together):
    run = done(together["board"])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = list((run / "events").rglob("events.out.tfevents.*"))
    board = EventAccumulator(str(max(files, key=lambda p: p.stat().st_size).parent))
    board.Reload()
    seen = [(e.step, e.value) for e in board.Scalars("train/loss")]
    assert seen == [(r["step"], pytest.approx(r["loss"], rel=1e-6))
                    for r in metrics_of(run, "train")] and len(seen) == 3
    assert "valid/error" in board.Tags()["scalars"] and "test/loss" in board.Tags()["scalars"]
    json.loads((run / "plan.json").read_text())


def test_a_folder_that_is_deleted_while_it_trains(folder):
    "A failure in one sentence; nothing of the folder is made again."
    run = go(folder / "deleted", "train.epochs=2000", trap="pause:0.02")
    while not metrics_of(run.folder):
        assert not run.over, launch.log_tail(run.folder)
        time.sleep(0.05)
    shutil.move(run.folder, folder / "moved")
    with pytest.raises(Failed, match="was deleted or moved while the run trained"):
        launch.wait(run)
    assert run.process.wait(60) == 1 and not run.folder.exists()
    log = (folder / "moved" / "log.txt").read_text().splitlines()
    assert "was deleted or moved while the run trained" in log[-1] and "Traceback" not in "\n".join(log)


def test_folders_that_git_left_out_are_made_again(folder):
    run = end(go(folder / "empty", trap="kill:2")) and folder / "empty"
    for name in ("checkpoints", "previews", "predictions", "assets"):
        shutil.rmtree(run / name)
    done(again(run))
