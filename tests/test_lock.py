"One process at a time trains in a run folder, whoever starts it and however the one before ended."
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from runs import again, done, end, go, surroundings

from workbench.core.run import lock
from workbench.errors import Refused
from workbench.core.run.folder import metrics_of, status_of
from workbench.files import read_json
from workbench.lab.run import launch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lock")


@pytest.fixture(scope="module")
def stopped(folder):
    "A run that was killed in the middle."
    run = go(folder / "run", "train.epochs=4", trap="kill:9")
    assert end(run)["state"] == "died" and lock.read_lock(run.folder)["pid"] == run.process.pid
    return run.folder


def command(*words, trap=""):
    "A process of its own, as from a terminal."
    with surroundings(trap):
        return subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)


def test_of_two_resumes_one_trains(stopped):
    "The lock of the killed process is taken over by one of them."
    racers = [command("workbench.lab.cli", "resume", str(stopped), trap="pause:0.02") for _ in range(3)]
    ends = [(p.communicate(timeout=120), p.returncode) for p in racers]
    assert sorted(code for _, code in ends) == [0, 2, 2], ends
    says = [err for (_, err), code in ends if code == 2]
    assert all("is held by process" in line and "since 2" in line and "workbench stop" in line
               for line in says), says
    status = status_of(stopped)
    assert (status["state"], status["attempt"]) == ("finished", 2) and not lock.read_lock(stopped)
    steps = [r["step"] for r in metrics_of(stopped, "train")]
    assert steps == sorted(set(steps)) and (stopped
                                            / "log.txt").read_text().count(f"train step {steps[-1]:>6}") == 1


def test_nothing_is_written_where_another_trains(folder):
    run = go(folder / "busy", "train.epochs=2000", trap="pause:0.05")
    while not metrics_of(run.folder):
        assert not run.over, launch.log_tail(run.folder)
        time.sleep(0.05)
    with pytest.raises(Refused, match=f"is held by process {run.process.pid} of this machine since .*: stop "
                                      "it first"):
        again(run.folder)
    with pytest.raises(Refused, match="already holds a run|is held by process"):
        go(run.folder)
    for words in (["workbench.core.train.loop"],
                  ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
                   "workbench.core.train.loop"]):
        second = command(*words, str(run.folder))
        assert "is held by process" in second.communicate(timeout=120)[1] and second.returncode
    assert read_json(run.folder / "status.json")["pid"] == run.process.pid
    assert launch.stop(run.folder) and end(run)["state"] == "stopped"
    assert run.status["attempt"] == 1 and "is held" not in (run.folder / "log.txt").read_text()


def test_a_holder_elsewhere_is_dead_after_a_silence(stopped, monkeypatch):
    "Its process cannot be looked up; the clock of the disk counts."
    place, foreign = stopped / "lock", lock.process() | {"ticket": "theirs", "host": "another",
                                                         "since": time.time()}
    status = (stopped / "status.json").read_text()
    place.write_text(json.dumps(foreign))
    os.utime(place, (time.time() - 40,) * 2)
    with pytest.raises(Refused, match="of host another since .*last heard of 4. s ago.*silent for 120 s, or "
                                      "delete"):
        again(stopped)
    assert (stopped / "status.json").read_text() == status
    os.utime(place, (time.time() - lock.silence - 1,) * 2)
    done(again(stopped))
    assert not place.exists()


def test_who_was_taken_for_dead_ends_at_once(folder):
    "A process that slept with its host finds another's ticket, and writes nothing more."
    run = go(folder / "slept", "train.epochs=2000", trap="pause:0.02")
    while not metrics_of(run.folder):
        assert not run.over, launch.log_tail(run.folder)
        time.sleep(0.05)
    os.kill(run.process.pid, signal.SIGSTOP)
    (run.folder / "lock").write_text(json.dumps(lock.read_lock(run.folder) | {"ticket": "theirs"}))
    os.kill(run.process.pid, signal.SIGCONT)
    assert run.process.wait(60) == 1 and "taken over by another process" in launch.log_tail(run.folder)
    assert (lock.read_lock(run.folder)["ticket"] == "theirs"
            and read_json(run.folder / "status.json")["state"] == "running")
