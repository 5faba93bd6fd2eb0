"""A run is saved before it is validated, and watched to its end: what breaks names the tensor or the row, and
costs no step."""
import signal

import pytest
from conftest import WHOLE
from runs import again, done, end, go, lines, same_bits, tensors

from workbench.core.run import checkpoint
from workbench.core.run.folder import metrics_of
from workbench.files import read_json
from workbench.lab.run import launch

BASE = {"task": "watched", "trackers": [], "check": True, "valid": {"every": 6}, "train": {
    "max_steps": 24, "batch_size": 8, "lr": 1e-2, "log_every": 1, "checkpoint_every": 4}}
HARD = "train.ema=0.9 train.accumulate=2 dropout=0.2 check=false train.scheduler.type=ReduceLROnPlateau " \
       "train.scheduler.patience=0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("watch")


@pytest.fixture(scope="module")
def straight(folder):
    return done(go(folder / "straight", HARD, base=BASE))


def found(run):
    "What the watch has noted: {check: (state, sentence)}."
    return {c["name"]: (c["state"], c["says"]) for c in read_json(run / "checks.json", []) if "step" in c}


def broken(run):
    "The sentence of a run that the watch or a validation has ended."
    status = end(run)
    assert (status["state"], run.process.returncode) == ("failed", 1), launch.log_tail(run.folder, 40)
    return status["error"]


# Saved before validated

@pytest.mark.parametrize("where", ["valid_loss:12", "predict:12", "preview:24"])
def test_a_kill_within_a_validation(straight, folder, where):
    "The checkpoint was written before; the resumed run validates first and is the run that nothing stopped."
    run = go(folder / f"killed_{where[:5]}", HARD, trap=f"{where}:kill", base=BASE)
    assert end(run)["state"] == "died" and run.process.returncode == -signal.SIGKILL
    state = checkpoint.state_of(checkpoint.find(run.folder))["position"]
    step = int(where.partition(":")[2])
    assert (state["step"], state["validating"], state["validated"]) == (step, True, step - 6)
    assert [r["step"] for r in metrics_of(run.folder, "valid")] == [6, 12, 18][:step // 6 - 1]
    done(again(run.folder))
    assert lines(run.folder) == lines(straight)
    assert same_bits(tensors(run.folder), tensors(straight))
    assert same_bits(tensors(run.folder, "best"), tensors(straight, "best"))
    strip = lambda folder: checkpoint.state_of(checkpoint.find(folder))["position"] | {"stage_seconds": 0}
    assert strip(run.folder) == strip(straight)
    assert read_json(run.folder / "results.json") == read_json(straight / "results.json")


def test_a_killed_validation_at_the_end_of_a_stage(straight, folder):
    run = go(folder / "end", f"{HARD} valid.every=7", trap="predict:24:kill", base=BASE)
    assert end(run)["state"] == "died" and checkpoint.find(run.folder).name == "step_00000024"
    done(again(run.folder))
    other = done(go(folder / "end_straight", f"{HARD} valid.every=7", base=BASE))
    assert lines(run.folder) == lines(other) and same_bits(tensors(run.folder), tensors(other))
    assert checkpoint.find(run.folder, checkpoint.end_of("train")).name == "step_00000024"


def test_tensors_are_written_once(straight, monkeypatch, tmp_path):
    "A checkpoint that is due with a validation is written once; what the validation found out is added."
    from workbench.core.train import loop

    wrote = []
    real = checkpoint.save_tensors
    monkeypatch.setattr(checkpoint, "save_tensors", lambda path, state: (wrote.append(path.parent.name),
                                                                         real(path, state)))
    from runs import surroundings
    from workbench.core.run.folder import create
    from workbench.core.stages.stages import complete
    with surroundings(""):
        run = create(complete({**BASE, "check": False}, "train.checkpoint_every=6"), tmp_path / "run")
        assert loop.attempt(run) == 0
    written = [name for name in wrote if "step_" in name and name.count("step_00000012")]
    files = len(list((checkpoint.find(run)).glob("*.safetensors")))
    assert len(written) == files
    assert checkpoint.state_of(checkpoint.find(run))["position"]["validating"] is False


RAISES = {"valid_loss": "the loss `fit`", "predict": "`predict`", "preview": "`preview`", "score": "`score`"}


@pytest.mark.parametrize("what", RAISES)
def test_an_error_in_a_validation_names_function_and_row(straight, folder, what):
    run = go(folder / f"raises_{what}", HARD, trap=f"{what}:12:raise", base=BASE)
    said = broken(run)
    assert f"{RAISES[what]} raised KeyError in the validation of step 12" in said and "watched.py" in said
    assert ("row `v003`" in said) == (what != "preview") and "step_00000012 was saved before" in said
    assert f"workbench resume {run.folder}" in said and "Traceback" in (run.folder / "log.txt").read_text()
    done(again(run.folder))  # mended
    assert lines(run.folder) == lines(straight) and same_bits(tensors(run.folder), tensors(straight))


def test_an_error_in_the_final_evaluation(straight, folder):
    run = go(folder / "raises_at_the_end", HARD, trap="predict:test:raise", base=BASE)
    said = broken(run)
    assert "`predict` raised KeyError in the final evaluation" in said and "row `t003`" in said
    done(again(run.folder))
    assert lines(run.folder) == lines(straight)


# A loss that is not finite

def test_not_a_number_names_the_row(folder):
    run = go(folder / "nan", "fault=nan valid.every=null check=false train.accumulate=2 train.log_every=30",
             base=BASE)
    said = broken(run)
    assert "became nan at step" in said and "row `r017` alone is not finite" in said


@pytest.mark.parametrize("nproc", [1, 2])
def test_not_a_number_in_the_data_names_the_field(folder, nproc):
    run = go(folder / f"nan_data{nproc}", "fault=nan_data check=false", base=BASE, nproc=nproc)
    assert "`x` of row `r017` holds NaN or infinity" in broken(run)


def test_a_root_at_zero_has_a_loss_and_no_gradient(folder):
    said = broken(go(folder / "root", "fault=root check=false", base=BASE))
    assert "row `r017` alone is not finite" in said and "grad" in said


def test_a_rate_that_is_too_high_is_told_from_a_row(folder):
    said = broken(go(folder / "rate", "train.lr=1e30 train.optimizer.type=SGD train.clip=null check=false",
                     base=BASE))
    assert "finite alone" in said and "Lower train.lr" in said


# The watch

def test_a_healthy_run_is_watched_to_its_end(folder):
    run = done(go(folder / "healthy", "train.ema=0.9 norm=true", base=BASE))
    assert {state for state, _ in found(run).values()} <= {"passed", "not proven"}, found(run)
    assert set(found(run)) == {"gradients stay", "weights move", "frozen stays", "modes stay",
                               "validation leaves no trace", "reads its input"}
    assert {"reads/loss", "reads/noise"} <= metrics_of(run, "valid")[-1].keys()


def test_the_watch_changes_no_bit(folder, straight):
    watched = done(go(folder / "watched", HARD.replace("check=false", "check=true"), base=BASE))
    bare = lambda run: [{k: v for k, v in r.items() if not k.startswith("reads/")} for r in lines(run)]
    assert bare(watched) == bare(straight) and same_bits(tensors(watched), tensors(straight))


@pytest.mark.parametrize("fault, check, words, last", [
    ("gone", "gradients stay", "`body.0.weight` got no gradient at step 7", "step_00000006"),
    ("zeroed", "gradients stay", "exactly zero for 3 steps", "step_00000008"),
    ("drifts", "frozen stays", "`still.weight` is frozen and has changed by step 12", "step_00000008"),
    ("statistics", "frozen stays", "`still_norm.running_mean` is frozen and has changed", "step_00000006"),
    ("lost", "weights move", "`judge.weight` and all 2 tensors", "step_00000016")])
def test_a_breach_stops_before_harm_is_saved(folder, fault, check, words, last):
    more = "train.optimizers.guess.type=SGD train.optimizers.guess.weight_decay=0" if fault == "lost" else ""
    run = go(folder / fault, f"fault={fault} {more}", base=BASE)
    said = broken(run)
    assert said.startswith(f"{check}: ") and words in said, said
    assert checkpoint.find(run.folder).name == last and found(run.folder)[check][0] == "failed"
    if WHOLE or fault in ("gone", "drifts"):  # without checks it is a warning
        run = done(go(folder / f"{fault}_all_the_same", f"fault={fault} {more} check=false", base=BASE))
        assert found(run)[check][0] == "warned"


@pytest.mark.parametrize("fault, check, words", [
    ("eval", "modes stay", "`body.2` is in evaluation mode"),
    ("training", "validation leaves no trace", "`norm.running_mean` changed while the validation of step 6"),
    ("others", "reads its input", "what was learnt does not come from the input")])
def test_what_may_be_meant_is_a_warning(folder, fault, check, words):
    more = ("norm=true" if fault == "training" else "train.max_steps=600 valid.every=25" if fault == "others"
            else "")
    run = done(go(folder / fault, f"fault={fault} dropout=0.2 {more}", base=BASE))
    assert found(run)[check][0] == "warned" and words in found(run)[check][1], found(run)


def test_a_validation_that_writes_to_the_nets_can_be_resumed(folder):
    "What it wrote is put back: the resumed run is the run that never stopped."
    whole = done(go(folder / "writes", "fault=training norm=true", base=BASE))
    run = go(folder / "writes_killed", "fault=training norm=true", trap="train:14:kill", base=BASE)
    assert end(run)["state"] == "died"
    done(again(run.folder))
    assert lines(run.folder) == lines(whole) and same_bits(tensors(run.folder), tensors(whole))


@pytest.mark.parametrize("variant", ["teacher", "rows", "hinge", "stages"])
def test_healthy_variants_are_left_alone(folder, variant):
    two = ("pipeline.steps='[{name: a, train: {max_steps: 12}, freeze: [body]}, {name: b, train: "
           "{max_steps: 12}, freeze: [judge], objectives: [fit]}]' train.max_steps=null")
    more = two if variant == "stages" else ""
    run = done(go(folder / variant, f"variant={variant} {more}", base=BASE))
    odd = {name for name, (state, _) in found(run).items() if state not in ("passed", "not proven")}
    assert odd == ({"frozen stays"} if variant == "teacher" else set()), found(run)


def test_two_ranks_are_watched_alike(folder):
    run = done(go(folder / "two", "", base=BASE, nproc=2))
    assert found(run)["frozen stays"][0] == "passed"
    said = broken(go(folder / "two_drift", "fault=drifts", base=BASE, nproc=2))
    assert "`still.weight` is frozen" in said
