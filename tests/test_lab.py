"What a person sees of a run: the command's exit status, the notebook under papermill, and their words."
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

home = Path(__file__).parents[1]
gan = """task: gan
train: {epochs: 2, batch_size: 8, log_every: 1, minutes: null, lr: 1e-2}
valid: {metric: accepted, mode: max}
trackers: []
"""
endless = "train.epochs=100000 train.minutes=4 valid.every=null"  # ends by itself, should a test be killed


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "gan.yaml"
    path.write_text(gan)
    return str(path)


def workbench(*arguments):
    "Run the command; (exit status, stdout, stderr)."
    done = subprocess.run([sys.executable, "-m", "workbench.lab.cli", *arguments], capture_output=True,
                          text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def papermill(out, *arguments):
    "Run train.ipynb; (exit status, what papermill said, the executed notebook)."
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["papermill", str(home / "nbs/train.ipynb"), str(out), "-k", "python3",
               "--no-progress-bar", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    return done.returncode, done.stdout + done.stderr, nbformat.read(out, 4)


def steps_per_epoch(run):
    "As the plan says."
    return json.loads((run / "plan.json").read_text())["batches"]["steps_per_epoch"]


def outputs(notebook):
    "All text of a notebook's outputs."
    found = [o for c in notebook.cells for o in c.get("outputs", [])]
    return "\n".join("".join(o.get("text", "")) + o.get("data", {}).get("text/plain", "")
                     + "\n".join(o.get("traceback", []))
                     for o in found)


def wait_for(run, state, seconds=120):
    "Until status.json says so."
    for _ in range(10 * seconds):
        path = run / "status.json"
        status = json.loads(path.read_text()) if path.exists() else {}
        if status.get("state") == state and status.get("step", 0) > 0:
            return status
        time.sleep(0.1)
    raise AssertionError(f"{run} is not {state}: {status}")


def test_help_is_fast_and_imports_nothing_heavy():
    code = ("import sys, workbench.lab.cli as cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
            "print([m for m in ('torch', 'transformers', 'numpy', 'pydantic', 'yaml') if m in sys.modules])")
    fastest = 9.0
    for _ in range(3):
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        fastest = min(fastest, time.monotonic() - began)
    assert done.stdout.rstrip().endswith("[]"), done.stdout + done.stderr
    assert fastest < 0.3


def test_a_run_in_the_terminal(config, tmp_path):
    run = tmp_path / "run"
    code, out, err = workbench("train", config, "--run-dir", str(run), "--overrides", "seed=3")
    assert code == 0, out + err
    assert "Plan: gan" in out and "42 parameters" in out and "7 of 7 rows" in out
    steps = steps_per_epoch(run)
    assert f"finished after {2 * steps} steps" in err
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert len(err.splitlines()) < 20  # a file gets a line for what matters, not one a second
    code, _, err = workbench("train", config, "--run-dir", str(run))
    assert code == 2 and "workbench resume" in err
    code, out, _ = workbench("resume", str(run), "--overrides", "train.epochs=3")
    assert code == 0 and json.loads((run / "status.json").read_text())["step"] == 3 * steps


@pytest.mark.parametrize("arguments, words", [
    (["train", "t5_bas"], "did you mean `t5_base`?"),
    (["train", "no/such.yaml"], "no configuration file"),
    (["train", "GAN", "--overrides", "train.epoch=2"], "did you mean `train.epochs`?"),
    (["train", "GAN", "--overrides", "train.lr=fast"], "train.lr"),
    (["train", "GAN", "--overrides", "train.lr"], "not of the form a.b=value"),
    (["train", "GAN", "--nproc", "4096"], "nproc is 4096"),
    (["plan", "GAN", "--overrides", "width=narrow"], "width"),
    (["resume", "no_such_run"], "not a run folder"),
    (["stop", "no_such_run"], "not a run folder"),
    (["train", "GAN", "--overrides", "valid.metric=acepted"], "did you mean `accepted`?"),
])
def test_what_a_person_did_wrong_is_one_message(arguments, words, config):
    code, out, err = workbench(*[config if a == "GAN" else a for a in arguments])
    assert code == 2, out + err
    assert words in err and "Traceback" not in out + err
    assert sum(line.startswith("workbench: ") for line in err.splitlines()) == 1


def test_a_failed_run_shows_the_end_of_its_log(config):
    code, out, err = workbench("train", config, "--overrides",
                               "check=false train.lr=1e30 train.clip=null train.epochs=50")
    assert code == 1, out + err
    assert "the log's last lines" in err and "became" in err and "checkpoint" in err


def test_plan_trains_nothing(config, tmp_path):
    code, out, err = workbench("plan", config)
    assert code == 0, err
    assert "33 parameters" in out and re.search(r"until 2 epochs of \d+ steps", out)
    assert not list((tmp_path / "runs").glob("*"))


def test_runs_are_listed(config, tmp_path):
    assert "no runs" in workbench("runs")[1]
    workbench("train", config, "--run-dir", str(tmp_path / "runs" / "first"))
    code, out, _ = workbench("runs")
    assert code == 0 and re.search(r"^first +gan +finished +\d+ +accepted \d", out, re.M), out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_stops_its_run_and_ends_well(number, config, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "workbench.lab.cli", "train", config, "--run-dir", str(run),
               "--overrides",
               endless]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(run, "running")
    process.send_signal(number)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert "Traceback" not in err and "The run is stopped" in out
    assert wait_for(run, "stopped")["reason"] == "asked to stop" and (run / "checkpoints" / "last").exists()


def test_stop_from_elsewhere_ends_the_follower_well(config, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "workbench.lab.cli", "train", config, "--run-dir", str(run),
               "--overrides",
               endless]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(run, "running")
    assert workbench("stop", str(run))[0] == 0
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert "not running" in workbench("stop", str(run))[1]


def test_the_notebook_runs_headless(config, tmp_path):
    code, said, notebook = papermill(tmp_path / "out.ipynb", "-p", "config", config, "-p", "run_dir",
                                     str(tmp_path / "run"))
    assert code == 0, said
    text, steps = outputs(notebook), 2 * steps_per_epoch(tmp_path / "run")
    for words in ("Plan: gan", "s a step, measured on steps", f"finished after {steps} steps",
                  "Scores of step_", "7 of 7 rows",
                  "Predictions on test", "The run is finished"):
        assert words in text, words
    assert (tmp_path / "out.ipynb").stat().st_size < 2_000_000
    follows = [c for c in notebook.cells if "follow(run)" in c.source]
    assert len(follows[0].outputs) == 1  # one bar, updated in place
    assert any("image/png" in o.get("data", {}) for c in notebook.cells for o in c.get("outputs", []))


def test_the_notebook_resumes_and_watches(config, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "workbench.lab.cli", "train", config, "--run-dir",
                                str(run),
                                "--overrides", endless], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    wait_for(run, "running")
    watching = subprocess.Popen(["bash", "-c", f"sleep 8; {sys.executable} -m workbench.lab.cli stop {run}"],
                                stdout=subprocess.DEVNULL)
    code, said, notebook = papermill(tmp_path / "watch.ipynb", "-p", "resume", str(run))
    assert code == 0 and "stopped (asked to stop)" in outputs(notebook), said
    assert process.wait(60) == 0 and watching.wait(60) == 0
    step = json.loads((run / "status.json").read_text())["step"]
    epochs = step // steps_per_epoch(run) + 2
    code, said, notebook = papermill(tmp_path / "resume.ipynb", "-p", "resume", str(run), "-p", "overrides",
                                     f"train.epochs={epochs}")
    assert code == 0, said
    status = json.loads((run / "status.json").read_text())
    assert (status["state"] == "finished" and status["attempt"] == 2
            and status["step"] == epochs * steps_per_epoch(run))


@pytest.mark.parametrize("arguments, words", [
    (["-p", "n_proc", "2"], "no parameter `n_proc`; did you mean `nproc`?"),
    (["-p", "config", "t5_bas"], "did you mean `t5_base`?"),
    (["-p", "overrides", "train.lerning_rate=1"], "unknown key `train.lerning_rate`"),
    (["-p", "minutes", "soon"], "minutes is 'soon'"),
    (["-p", "nproc", "0"], "nproc is 0"),
    (["-p", "check", "perhaps"], "check is 'perhaps'"),
    (["-p", "resume", "no_such_run"], "not a run folder"),
])
def test_a_wrong_parameter_fails_the_notebook_at_once(arguments, words, tmp_path):
    code, said, notebook = papermill(tmp_path / "out.ipynb", *arguments)
    assert code != 0
    failed = [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]
    shown = [o for o in failed if o.ename == "Refused"]
    assert len(shown) == 1 and words in shown[0].evalue, outputs(notebook)
    assert len(shown[0].traceback) == 1  # a sentence, not a page
    assert not (tmp_path / "runs").exists()


def test_a_failing_run_fails_the_notebook(config, tmp_path):
    code, said, notebook = papermill(tmp_path / "out.ipynb", "-p", "config", config, "-p", "overrides",
                                     "check=false train.lr=1e30 train.clip=null train.epochs=50")
    assert code != 0
    text = outputs(notebook)
    assert "the log's last lines" in text and "became" in text
    assert not any("curves(" in c.source and c.outputs for c in notebook.cells if c.cell_type == "code")


def test_the_index_runs(tmp_path):
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    out = tmp_path / "index.ipynb"
    done = subprocess.run(["papermill", str(home / "nbs/index.ipynb"), str(out), "-k", "python3",
                           "--no-progress-bar"],
                          capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    assert "Plan: t5_tiny" in outputs(nbformat.read(out, 4))


def test_notebooks_carry_no_outputs_and_a_kernel():
    for path in sorted((home / "nbs").rglob("*.ipynb")):
        notebook = nbformat.read(path, 4)
        assert notebook.metadata.get("kernelspec", {}).get("name") == "python3", path
        assert path.parent != home / "nbs" or not any(c.get("outputs") for c in notebook.cells), path


def test_overrides_that_stand_twice_count_twice():
    from workbench.lab import cli

    asked = cli.parser().parse_args(["plan", "x", "--overrides", "a=1 b=2", "--overrides", "c=3"])
    assert asked.overrides == "a=1 b=2 c=3" and cli.parser().parse_args(["plan", "x"]).overrides == ""
