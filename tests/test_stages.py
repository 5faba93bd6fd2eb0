"""A run of several stages: what is frozen rests to the bit, each objective moves only its nets, and a
threshold ends a stage."""
import pytest
from runs import again, config, done, end, go, lines, same_bits, tensors

from workbench.core.run import checkpoint

from workbench.core.config import presets
from workbench.errors import Refused
from workbench.core.stages.stages import stages
from workbench.core.run.folder import metrics_of
from workbench.files import read_json
from workbench.core.task import get

window = 4
FREEZING = """norm=true lift=true train.batch_size=8 train.keep=null train.ema=0.9 valid.every=null
 pipeline.steps='[
  {name: head, objectives: [fit], freeze: [body], train: {epochs: 1}},
  {name: body, objectives: [fit, guess], freeze: [head, judge.bias],
   train: {epochs: 1, optimizers: {slow: {type: SGD}}}},
  {name: lift, objectives: [lift], train: {max_steps: 3, ema: null}},
  {name: all, objectives: [fit, guess], freeze: [body], unfreeze: [body.4],
   train: {max_steps: 5}}]'""".replace("\n", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def frozen(folder):
    return done(go(folder / "frozen", FREEZING))


def moved(run):
    "For each stage the tensors that differ between its beginning and its end."
    last, handed = {}, {}  # at the end of a stage, and what the next one begins with: the averaged weights
    for name in sorted(p.name for p in (run / "checkpoints").glob("step_*")):
        state = read_json(checkpoint.find(run, name) / "state.json")
        stage, averages = state["position"]["stage"], tensors(run, name, ["ema"]) if state["ema"] else {}
        last[stage] = tensors(run, name, ["net"])
        handed[stage] = last[stage] | {k.replace("ema.", "net.", 1): t for k, t in averages.items()}
    cfg = presets.load(config(FREEZING))
    nets = get("curve").nets(cfg, None, True)
    before = {f"net.{n}|{k}": t for n, net in nets.items() for k, t in net.state_dict().items()}
    out = []
    for stage, after in sorted(last.items()):
        out.append({k.partition(".")[2].replace("|", ".")
                    for k in after if not (after[k] == before[k]).all()})
        before = handed[stage]
    return out


def test_frozen_bits_rest(frozen):
    "Weights, and the batch statistics of what is frozen."
    head, body, lift, rest = moved(frozen)
    assert head == {"head.out.weight", "head.out.bias"}
    linear = {f"body.{i}.{w}" for i in (0, 1, 4) for w in ("weight", "bias")}
    statistics = {f"body.1.{s}" for s in ("running_mean", "running_var", "num_batches_tracked")}
    # before batch statistics a bias has no slope
    assert body | {"body.0.bias"} == linear | statistics | {"judge.weight"}
    assert lift == {"body.0.weight", "body.0.bias"}  # the objective's part of the net
    assert rest == {"body.4.weight", "body.4.bias", "head.out.weight", "head.out.bias", "judge.weight",
                    "judge.bias"}


def test_each_stage_has_its_own_optimisers(frozen):
    first = {r["stage"]: r for r in reversed(metrics_of(frozen, "train"))}
    assert [*reversed(first)] == ["head", "body", "lift", "all"]
    rates = [{k for k in first[s] if k.startswith("lr")} for s in ("head", "body", "lift", "all")]
    assert rates == [{"lr"}, {"lr/slow", "lr/guess"}, {"lr"}, {"lr/slow", "lr/fast", "lr/guess"}]
    saved = {read_json(p / "state.json")["position"]["stage"]: read_json(p / "state.json")["optimizers"]
             for p in sorted((frozen / "checkpoints").glob("step_*"))}
    assert [*saved[0]] == ["fast"] and [*saved[1]] == ["slow", "guess"] and [*saved[2]] == ["lift"]
    # SGD, then AdamW
    assert saved[1]["slow"]["groups"][0]["momentum"] == 0 and "betas" in saved[3]["slow"]["groups"][0]
    assert {r["step"]
            for r in metrics_of(frozen, "train")} == set(range(1, metrics_of(frozen)[-1]["step"] + 1))


def test_killed_in_a_later_stage(frozen, folder):
    begins = next(r["step"] for r in metrics_of(frozen) if r["stage"] == "lift")
    run = folder / "killed"
    assert end(go(run, FREEZING, trap=f"kill:{begins - 2}"))["state"] == "died"
    assert end(again(run, trap=f"term:{begins + 3}"))["state"] == "stopped"
    done(again(run))
    assert lines(run) == lines(frozen) and same_bits(tensors(run), tensors(frozen))


def test_a_threshold_ends_a_stage_wherever_it_is_killed(folder):
    trial = done(go(folder / "trial", "train.epochs=2 train.log_every=1"))
    losses = [r["fit_loss"] for r in metrics_of(trial, "train")]
    means = {i: sum(losses[i - window:i]) / window for i in range(window, len(losses) + 1)}
    step = max(i for i in means
               if window < i < len(losses) and means[i] < min(means[j] for j in means if j < i))
    below = (means[step] + min(means[j] for j in means if j < step)) / 2
    two = ("train.log_every=1 train.checkpoint_every=2 pipeline.steps='[{name: first, train: {epochs: 2}, "
           "transition_on: "
           f"{{mode: loss_threshold, metric: fit_loss, threshold: {below!r}, window: {window}}}}}, {{name: "
           f"second, train: {{max_steps: 3}}}}]'")
    straight, run = go(folder / "threshold", two), folder / "threshold_killed"
    # in the step that will end the stage
    assert end(go(run, two, trap=f"kill:{step - 1}"))["state"] == "died"
    assert 0 < len(read_json(checkpoint.find(run) / "state.json")["position"]["window"])
    done(again(run))
    assert lines(run) == lines(done(straight))
    ends = {r["stage"]: r["step"] for r in metrics_of(run, "train")}
    assert ends == {"first": step, "second": step + 3}


def test_a_generator_and_a_critic_take_turns(folder):
    """Each objective moves its net alone; a validation in between changes nothing, and leaves both in
    training mode."""
    gan = {"task": "gan", "check": False, "trackers": [], "train": {
        "epochs": 2, "minutes": None, "batch_size": 12, "log_every": 1, "checkpoint_every": 7, "keep": None},
        "dropout": 0.3}
    straight, unwatched = (go(folder / f"gan_{every}", f"valid.every={every}", base=gan)
                           for every in (2, "null"))
    only = done(go(folder / "judge", "train.epochs=null pipeline.steps='[{name: judge, objectives: [judge], "
                                     "train: {epochs: 1}}]'", base=gan))
    nets = get("gan").nets(presets.load(gan), None, True)
    begin = {f"net.{n}|{k}": t for n, net in nets.items() for k, t in net.state_dict().items()}
    changed = {k.split("|")[0]
               for k, t in tensors(only, kinds=["net"]).items() if k in begin and not (t == begin[k]).all()}
    assert changed == {"net.critic"}
    assert same_bits(tensors(done(straight)), tensors(done(unwatched)))
    assert {"fool_loss", "judge_loss", "grad_norm/fool",
            "grad_norm/critic_steps"} <= metrics_of(straight.folder)[0].keys()


def test_a_parameter_without_a_gradient_is_named(folder):
    status = end(go(folder / "spare", "spare=true"))
    assert status["state"] == "failed" and status["refused"]
    assert "Objective `fit` trains head.spare.weight, which got no gradient (2 such" in status["error"]
    done(go(folder / "spare_frozen", "spare=true train.max_steps=1 pipeline.steps='[{name: one, freeze: "
                                     "[head.spare]}]'"))


def refused(steps, **more):
    with pytest.raises(Refused) as e:
        stages(presets.load(config("train.epochs=null") | {"pipeline": {"steps": steps}} | more))
    return str(e.value).splitlines()


def test_every_mistake_of_a_pipeline_in_one_pass():
    found = refused([{"name": "a", "objectives": ["fits", "gues"]},
                     {"name": "a", "train": {"epochs": 2, "keep": 1, "lrr": 1}},
                     {"name": "b", "train": {"epochs": 1, "minutes": 3}}, {"name": "c"}])
    assert len(found) == 8
    for part in ("the name `a` stands twice", "no objective `fits`; did you mean `fit`?",
                 "no objective `gues`", "never ends",
                 "train.lrr", "train.minutes holds for the whole run",
                 "pipeline step `c`: this stage never ends"):
        assert sum(part in line for line in found) >= 1, (part, found)


def test_unknown_names_are_refused_before_a_run_is_made(folder):
    for name, steps, why in (("names", "{name: a, freeze: [bodi], train: {epochs: 1}}",
                              "did you mean `body`?"),
                             ("nothing",
                              "{name: a, objectives: [guess], freeze: [judge], train: {epochs: 1}}",
                              "all of it is frozen")):
        with pytest.raises(Refused, match=why.replace("?", ".")):
            go(folder / name, f"train.epochs=null pipeline.steps='[{steps}]'")
        assert not (folder / name).exists()
    # only the net knows its parts
    status = end(go(folder / "deeper", "train.epochs=null pipeline.steps='[{name: a, freeze: [body.44], "
                                       "train: {epochs: 1}}]'"))
    assert status["refused"] and "freeze: no net or parameter is called `body.44`" in status["error"]
