"Backups of real runs: restored and resumed, under a full disk, beside a running run, after a kill."
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runs import done, end, go, lines, surroundings
from workbench.errors import Refused
from workbench.core.run.folder import root, status_of
from workbench.files import read_json, write_text
from workbench.lab.backup import copies as backup
from workbench.lab.backup import restore as restoring
from workbench.lab.backup.restore import restore
from workbench.lab.run import launch


@pytest.fixture
def project(tmp_path):
    "A folder with a file that every backup has, and one that none has."
    folder = tmp_path / "project"
    (folder / "workbench").mkdir(parents=True)
    write_text(folder / "settings.ini", "mine")
    write_text(folder / "workbench" / "own.py", "mine, too")
    return folder


def everything(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_restored_run_goes_on_as_the_first_would_have(tmp_path, project):
    run = done(go(root() / "first"))
    kept = backup.back_up(run, "two epochs more")
    assert backup.differences(kept) == []
    with surroundings(""):
        done(launch.resume(run, "train.epochs=5"))
    assert ("changed", "run/config.yaml") in backup.differences(kept)
    restore(kept, project)
    again = project / "runs" / "first-restored"
    assert status_of(again)["state"] == "stopped" and "restored from" in status_of(again)["reason"]
    with surroundings(""):
        done(launch.resume(again, "train.epochs=5"))
    assert lines(again) == lines(run)


def test_a_running_run_is_refused(tmp_path):
    run = go(root() / "busy", "train.epochs=100000", "pause:0.05")
    try:
        while run.status["state"] != "running" or not run.status.get("step"):
            assert not run.over, launch.log_tail(run.folder)
        with pytest.raises(Refused, match="stop it first"):
            backup.back_up(run.folder)
        kept = backup.back_up(None)  # the code alone
        with pytest.raises(Refused, match="stop it first"):
            restore(kept)  # its processes import from what would be replaced
        assert len(backup.backups()) == 1
    finally:
        launch.stop(run.folder)
        end(run)


def full(monkeypatch, module, name, at):
    "Let a function fail for want of room at its n-th call; returns the calls that were made."
    true, calls = getattr(module, name), []

    def limited(*args, **kwargs):
        calls.append(args)
        if len(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return true(*args, **kwargs)
    monkeypatch.setattr(module, name, limited)
    return calls


def test_a_full_disk_leaves_no_half_backup(monkeypatch):
    calls = full(monkeypatch, shutil, "copy2", 20)
    with pytest.raises(Refused, match="No space left"):
        backup.back_up(None)
    assert len(calls) == 20 and list(backup.backups_folder().iterdir()) == []


@pytest.mark.parametrize("name, at", [("copy2", 30), ("replace", 30)])
def test_a_restoring_that_fails_changes_nothing(monkeypatch, project, name, at):
    kept, was = backup.back_up(None), everything(project)
    before = len(backup.backups())
    module = shutil if name == "copy2" else os
    true = restoring.write_backup

    def then_full(*args, **kwargs):  # the disk is full after the present has been backed up
        folder = true(*args, **kwargs)
        full(monkeypatch, module, name, at)
        return folder
    monkeypatch.setattr(restoring, "write_backup", then_full)
    with pytest.raises(Refused, match="No space left.*Nothing was changed"):
        restore(kept, project)
    assert everything(project) == was
    assert sorted(p.name for p in project.iterdir()) == ["settings.ini", "workbench"]
    assert len(backup.backups()) == before + 1


def test_what_is_replaced_can_be_had_back(project):
    kept, was = backup.back_up(None), everything(project)
    first = restore(kept, project)
    assert ((project / "settings.ini").read_text() != "mine"
            and (project / "workbench/own.py").read_text() == "mine, too")
    restore(first, project)
    assert {p: b for p, b in everything(project).items() if p in was} == was


def test_damage_is_one_sentence(project):
    kept, was = backup.back_up(None), everything(project)
    names = [n for n in read_json(kept / "manifest.json")["files"] if n.endswith(".py")]
    (kept / names[0]).unlink()
    with pytest.raises(Refused, match=f"{names[0]} is missing. Nothing was restored."):
        restore(kept, project)
    (kept / names[0]).symlink_to(kept / names[1])
    with pytest.raises(Refused, match="is missing"):
        restore(kept, project)
    with pytest.raises(Refused, match="not a backup"):
        restore(project)
    assert everything(project) == was


def test_a_killed_backup_is_cleared_away(tmp_path):
    code = """
import os, signal, shutil
from workbench.lab.backup import copies

true, calls = shutil.copy2, []


def trap(*arguments):
    calls.append(arguments)
    os.kill(os.getpid(), signal.SIGKILL) if len(calls) == 9 else true(*arguments)


shutil.copy2 = trap
copies.back_up(None)
"""
    subprocess.run([sys.executable, "-c", code])
    assert len(list(backup.backups_folder().iterdir())) == 1 and backup.backups() == []
    kept = backup.back_up(None)
    assert list(backup.backups_folder().iterdir()) == [kept] and Path(backup.backups()[0]["folder"]) == kept
