"""Every silly value ends in a sentence that names its key, or in a configuration that holds: found by the
plan, in no time, never as a traceback."""
import contextlib
import copy
import dataclasses
import os
import signal
import sys
import types
from functools import cache

import mutations
import pytest
import yaml
from mutations import rng_of

from workbench.core.config import presets
from workbench.errors import Refused
from workbench.core.stages.stages import complete
from workbench.core.setup.plan import plan
from workbench.core.config.presets import load, parse_overrides
from workbench.core.config.yaml12 import read_yaml
from workbench.lab import cli

CASES = int(os.environ.get("WORKBENCH_MUTATIONS", 2000))
SEED = os.environ.get("WORKBENCH_MUTATION_SEED", "0")
NAMES = presets.presets()


def refusal(config, overrides=""):
    "The message with which a configuration is refused."
    with pytest.raises(Refused) as caught:
        complete(config, overrides)
    return str(caught.value)


@contextlib.contextmanager
def within(seconds):
    "No case hangs: a bound that a loaded machine keeps as well."
    def stop(*_):
        raise TimeoutError(f"more than {seconds} s")
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@cache
def held(name):
    "(the file with what it extends, all that the configuration says)."
    raw = presets.read_file(presets.find(name))
    # the file is the package's: only the change was asked for
    return {"preset": name, "asked": [], **raw}, load(name).model_dump()


def value_case(rng):
    """(what to say of it, configuration, change, words of which one must be named, whether it must be
    refused)."""
    name = rng.choice(NAMES)
    raw, full = held(name)
    path, usual = rng.choice(list(mutations.leaves(full)))
    if rng.random() < 0.1:
        path = (*path[:-1], mutations.typo(rng, path[-1]))
        value, sure = rng.choice(mutations.VALUES), False
    else:
        value = mutations.silly(rng, usual)
        sure = mutations.must_be_refused(path, usual, value)
    change = mutations.as_override(path, value) if rng.random() < 0.7 else mutations.nested(path, value)
    return (f"{name} {'.'.join(path)}={value!r:.200}", copy.deepcopy(raw), change,
            [p for p in path if p] if path != ("pipeline",) else [], sure)


def text_case(rng, folder):
    "(what to say of it, the path of a file after an accident)."
    name = rng.choice(NAMES)
    text = presets.find(name).read_text(encoding="utf8")
    path = folder / "changed.yaml"
    data = (mutations.changed_bytes(rng, text) if rng.random() < 0.3
            else mutations.changed_text(rng, text).encode("utf8", "surrogatepass"))
    path.write_bytes(data)
    return f"{name} changed", str(path)


def judged(what, config, change="", names=(), sure=False):
    "The configuration, or None where it was refused by name; anything else fails the test."
    try:
        with within(30):
            found = complete(config, change)
    except Refused as e:
        said = str(e)
        assert said and len(said) < 20_000 and "Traceback" not in said, f"{what}: {said[:300]}"
        named = not names or any(n in said or repr(n)[1:-1] in said
                                 for n in names) or "a.b=value" in said or "overrides" in said
        named = named or names[0] == "loss" and "objective" in said  # a switch is told by what it would train
        assert named, f"{what}: names no key: {said[:300]}"
        return None
    except Exception as e:
        raise AssertionError(f"{what}: {type(e).__name__}: {e}") from e
    assert not sure, f"{what}: nonsense that passes"
    return found


def test_no_mutated_value_is_a_traceback_and_no_nonsense_passes():
    kept = sum(judged(*value_case(rng_of(SEED, i))) is not None for i in range(CASES))
    assert 0 < kept < CASES


def test_no_mutated_file_is_a_traceback(tmp_path):
    for i in range(CASES // 5):
        judged(*text_case(rng_of(SEED, "text", i), tmp_path))


def test_a_mutated_configuration_that_holds_is_planned():
    "What is accepted is planned, or refused by name where the data say more."
    planned = refused = i = 0
    while planned + refused < CASES // 100:
        i += 1
        what, raw, change, names, sure = value_case(rng_of(SEED, "plan", i))
        if raw["preset"] not in ("t5_tiny", "tts_tiny", "flow_tiny") or "mel" in names:
            continue
        cfg = judged(what, raw, change, names, sure)
        if cfg is None or len(presets.flat(cfg.model_dump())) < 5:
            continue
        try:
            with within(120):
                assert plan(cfg)["stages"], what
            planned += 1
        except Refused as e:
            assert any(n in str(e) for n in names), f"{what}: {e}"
            refused += 1
        except Exception as e:
            raise AssertionError(f"{what}: {type(e).__name__}: {e}") from e
    assert planned


@pytest.mark.parametrize("override", [
    "train.lr=1000", "train.batch_size=65536", "train.accumulate=66", "train.clip=1e-30",
    "train.ema=0.999999999", "train.optimizer.betas=[0,0]",
    "train.optimizer.eps=1", "train.scheduler.warmup=10000000",
    "'train.scheduler={type: MultiStepLR, milestones: [1, 9000000000]}'", "train.optimizer.type=Lion",
    "'train.scheduler={type: exponential, gamma: 1e-300}'", "seed=18446744073709551615",
    "train.keep=9000000000", "valid.every=9000000000", "dropout=0.99", "width=1"])
def test_an_extreme_value_that_is_allowed_trains_two_steps(override, tmp_path):
    from workbench.core.run.folder import create, metrics_of
    from workbench.core.train.loop import start, train

    cfg = complete({"task": "curve", "check": False, "trackers": []},
                   f"train.max_steps=2 train.log_every=1 valid.rows=3 {override}")
    training = start(create(cfg, tmp_path / "run"))
    assert train(training)[0] == "finished" and training.setup.at.step == 2
    assert len(metrics_of(training.run, "train")) == 2


# The reader


@pytest.mark.parametrize("text, words", [
    ("task: curve\n" + "".join(" " * i + "a:\n" for i in range(300)), "levels"),
    ("task: curve\na: " + "[" * 4000 + "]" * 4000, "levels"),
    ("task: 5", "`task` is 5"), ("task: [curve]", "`task` is ['curve']"),
    ("task: curve\non_cpu: 5", "`on_cpu` is 5"), ("extends: 5", "`extends` is 5"),
    ("extends: {a: 1}", "`extends`"), ("extends: ''", "`extends`"), ("", "the key `task` is missing"),
    ("- task: curve", "found a list"), ("curve", "found a str"),
    ("task: curve\n1: 2", "write it in quotes"), ("task: curve\n[a]: 2", "a key is a word"),
    ("task: curve\n? {a: 1}\n: 2", "a key is a word"), ("task: curve\n~: 2", "a key is a word"),
    ("task: curve\na: \0", "U+0000"), ('task: curve\nnotes: ["\\0"]', "U+0000"),
    ("task: curve\na: &a {b: *a}", "an alias of itself"),
    ("task: curve\nseed: 18446744073709551616", "`seed`"), ("task: curve\nseed: -1", "`seed` is -1"),
    ("task: curve\nseed: 1_000", "in digits alone and without quotes: 1000"),
    ("task: curve\nseed: 1:30", "`seed` is '1:30'"),
    ("task: curve\nseed: !!python/object/apply:os.getcwd []", "is not read here"),
    ("task: curve\ntrain: 5", "`train` is 5: write its keys"),
    ("task: curve\npipeline: {steps: 5}", "`pipeline.steps`"),
    ("task: curve\npipeline: {steps: [5]}", "pipeline.steps[0]"), ("task: curve\ntraining: 5", "`training`"),
    ("task: curve\npipeline: {datasets: 5, steps: [{name: a}]}", "`datasets`"),
    ("task: no such thing", "`task`"), ("task: .curve", "`task`"),
    ("task: curve\nnotes: [" + "9" * 5000 + "x, 1]", "`notes"),
    ("task: curve\nseed: " + "9" * 5000, "`seed`"), ("a\n" * 600_000, "bytes"),
])
def test_a_file_that_is_wrong_is_a_sentence_and_exit_status_2(text, words, tmp_path, capsys):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with within(30):
        assert cli.main(["plan", str(path)]) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said and len(said) < 3000, said


def test_bytes_paths_and_bombs_are_sentences(tmp_path, capsys):
    def told(config, overrides=""):
        with within(30):
            assert cli.main(["plan", config, "--overrides", overrides]) == 2
        return capsys.readouterr().err
    path = tmp_path / "x.yaml"
    for data, words in (("task: curve # ä".encode("latin-1"), "Latin-1"),
                        ("task: curve".encode("utf-16"), "UTF-16"),
                        ("task: curve".encode("utf-16-be"), "UTF-16"), (b"\xff\xfe\x00", "UTF-16")):
        path.write_bytes(data)
        assert words in told(str(path))
    path.write_text("task: curve\na0: &a0 [x, x]\n"
                    + "".join(f"a{i}: &a{i} {{k: *a{i - 1}, l: *a{i - 1}, m: *a{i - 1}}}\n"
                              for i in range(1, 60)))
    assert "more than 20,000 values" in told(str(path))
    assert "no configuration file" in told("y/" * 10_000 + "x.yaml")
    assert "no preset" in told("y" * 20_000).replace("no configuration file", "no preset")
    assert "is a folder" in told(str(tmp_path)) and "no configuration file" in told("~no.such.user/x.yaml")
    assert "a.b=value" in told("t5_tiny", ".".join("a" * 3000) + "=1")
    assert "closing quotation" in told("t5_tiny", "data.prefix='x")
    assert "`train` is 5" in told("t5_tiny", "train=5")
    path.write_bytes(b"\xef\xbb\xbftask: curve\nwidth: 032\ntrain: &t {max_steps: 0x10}\n")
    assert load(str(path)).width == 32 and load(str(path)).train.max_steps == 16
    path.write_text("task: curve\ntrain: &t {max_steps: 5}\npipeline: {steps: [{name: a, train: *t}, {name: "
                    "b, train: {<<: *t, lr: 1}}]}")
    assert [s.train["max_steps"] for s in load(str(path)).pipeline.steps] == [5, 5]  # harmless aliases


def test_mappings_from_python_are_judged_as_files_are():
    loop = {"task": "curve"}
    loop["train"] = loop
    tree = 1
    for _ in range(5000):
        tree = {"a": tree}
    for config, words in ((loop, "levels"), ({"task": "curve", "a": tree}, "levels"),
                          ({"task": "curve", 5: 1}, "a key is a word"),
                          ({"task": "curve", "train": {None: 1}}, "a key is a word"),
                          ({"task": "curve", "notes": ["\ud800"]}, "U+D800")):
        assert words in refusal(config)


def test_an_override_is_the_text_that_the_shell_leaves():
    words = ("'data.prefix=emoji #1' \"data.source=/my #2 set\" data.column=#x 'sample.captions=[a #b, \"c, "
             "d\"]' 'data.prefix2=a: b' 'notes=[x]' 'a=@x' b=%y 'c=`z`' 'd=a\tb' e=*f")
    found = parse_overrides(words)
    assert found["data"] == {"prefix": "emoji #1", "source": "/my #2 set", "column": "#x",
                             "prefix2": "a: b"} and found["sample"] == {"captions": ["a #b", "c, d"]}
    assert (found["a"], found["b"], found["c"], found["d"], found["e"]) == ("@x", "%y", "`z`", "a\tb", "*f")
    cfg = load("flow_tiny", "'data.prefix=emoji #1'")
    assert cfg.data.prefix == "emoji #1" and load(read_yaml(presets.dump(cfg), "x")).data.prefix == "emoji #1"
    # a run folder keeps texts as texts
    for text in ("1e5", "0o17", "032", "on", "~", "1:30", "#", "a: b", " x "):
        kept = cfg.model_copy(update={"data": cfg.data.model_copy(update={"prefix": text})})
        assert (read_yaml(presets.dump(kept), "x")["data"]["prefix"] == text
                == yaml.safe_load(presets.dump(kept))["data"]["prefix"])


# Keys, one by one


@pytest.mark.parametrize("name, override, words", [
    *(("flow_tiny", f"train.minutes={v}", "above 0")
      for v in ("-3", "0", ".nan", ".inf", "-.inf", "true", "soon")),
      ("flow_tiny", "train.lr=.inf", "`train.lr` is inf"),
    ("t5_tiny", "train.optimizer.betas=[2,3]", "`train.optimizer.betas"),
    ("t5_tiny", "train.optimizer.weight_decay=.inf", "weight_decay"),
    ("t5_tiny", "train.clip=.inf", "`train.clip`"),
    ("t5_tiny", "train.scheduler.milestones=[-5]", "milestones"),
    ("t5_tiny", "train.scheduler.milestones=[200,100]", "rise"),
    ("t5_tiny", "train.scheduler.warmup=1e9", "warmup"),
    ("tts_tiny", "data.trim=.nan", "`data.trim`"), ("tts_tiny", "loss.mel_weight=.inf", "`loss.mel_weight`"),
    ("flow_tiny", "data.sizes=0", "`data.sizes"), ("flow_tiny", "data.sizes=[[32,0]]", "`data.sizes"),
    ("flow_tiny", "data.sizes=100000", "`data.sizes"),
    ("t5_tiny", "model.strides=[1000000000]", "`model.strides"),
    ("t5_tiny", "model.strides=[64,64]", "model.strides"),
    ("t5_tiny", "train.workers=1000000", "`train.workers`"),
    ("t5_tiny", "train.workers=1024", "cores"),
    ("t5_tiny", "valid.metric=xyz", "There are: loss, ce, ctc, bleu1"),
    ("t5_tiny", "valid.metric=time", "which nothing reports"),
    ("t5_tiny", "valid.metric=rows", "nothing reports"),
    ("tts_tiny", "valid.metric=mdc", "did you mean `mcd`?"), ("flow_tiny", "valid.metric=bleu4", "vae_off"),
    ("tts_tiny", "model.heads=5", "write heads: 4"),
    ("flow_tiny", "model.flow.heads=3", "`model.flow`: width 128"),
    ("flow_tiny", "model.text.width=130", "`model.text`: width 130"),
    ("flow_tiny", "model.flow.kind=unet model.flow.heads=7", "`model.flow`"),
    ("flow_tiny", "sample.sampler=ddim", "cosine path"), ("tts_tiny", "data.mel.win=2048", "`data.mel`"),
    ("t5_tiny", "model.params=5", "`model.params`"), ("t5_tiny", "data.languages=[]", "`data.languages`"),
    ("t5_tiny", "data.source=''", "`data.source`"),
    ("flow_tiny", "model.vae.multiply=[1,2,3,4,5]", "multiply"),
    ("flow_tiny", "pipeline.steps.vae_off.gan_training=true model.critic.layers=6", "model.critic.layers"),
    ("t5_tiny", "train.epochs=true", "not true"), ("t5_tiny", "'train.lr=\"1e-4\"'", "without quotes: 1e-4"),
    ("t5_tiny", "train.scheduler.type=MultiStepLR", "milestones"),
    ("t5_tiny", "train.scheduler.type=ReduceLROnPlateau train.scheduler.factor=1", "below 1"),
    ("t5_tiny", "trackers=[tensorboard,tensorboard]", "stands twice"),
    ("t5_tiny", "task=workbench.core", "There is no task `workbench.core`"),
])
def test_a_silly_value_is_told_by_its_key(name, override, words):
    assert words in refusal(name, override)


def test_a_schedule_and_a_patience_that_never_come_are_notes():
    "The number of steps may be an estimate, so they are no refusal."
    toy = {"task": "curve", "trackers": [], "valid": {"every": 5},
           "train": {"minutes": None, "max_steps": 20, "early_stopping": {"patience": 4}}}
    for spec, says in (({"type": "MultiStepLR", "milestones": [10, 20]}, "milestones is 20"),
                       ({"type": "StepLR", "step_size": 30}, "step_size is 30")):
        notes = plan(complete(toy | {"train": toy["train"] | {"scheduler": spec}}))["notes"]
        assert ([says in notes[0], "validated 4 times: it never stops early" in notes[1]] == [True] * 2
                and len(notes) == 2), notes
    steps = [{"name": name, "train": {"max_steps": 4}} for name in "ab"]
    only = lambda name: [n for n in plan(complete({"task": "curve", "trackers": [],
                                                   "pipeline": {"steps": steps, "only": [name]}}))["notes"]
                                                   if "untrained" in n]
    assert only("a") == [] and "a stand before it, and are left out by pipeline.only" in only("b")[0]


@pytest.mark.parametrize("override, words", [
    ("data.keypoints=xyz", "data.keypoints is xyz, which fits none of"), ("data.dims=3", "data.dims is 3"),
    ("valid.final=[nosuch]", "Splits: train, valid, test"),
    ("model.params.d_model=0", "model.params.d_model is 0"),
    ("model.params.num_layers=0", "model.params.num_layers"), ("model.params.num_layers=x", "a whole number"),
    ("model.params.num_layers=1000000", "from 1 to 512"), ("model.params.nm_layers=1", "num_layers"),
    ("model.name=bart-large model.params=null 'model.params={encoder_attention_heads: 5}'", "model.params"),
])
def test_what_only_data_and_nets_can_tell_is_told_by_the_plan(override, words):
    with pytest.raises(Refused, match=None) as caught:
        plan(complete("t5_tiny", override))
    assert words in str(caught.value)


def test_a_split_that_the_default_names_may_be_missing_and_that_is_said(monkeypatch):
    import curve

    def data(cfg, stage):
        found = curve.data(cfg, stage)
        del found.datasets["test"]
        return found

    monkeypatch.setitem(sys.modules, "testless",
                        types.SimpleNamespace(task=dataclasses.replace(curve.task, data=data)))
    facts = plan(complete({"task": "testless", "trackers": [],
                           "train": {"max_steps": 2, "scheduler": {"warmup": 9}}}))
    assert "There is no split test: the final scores are of valid." in facts["notes"]
    assert any("warmup is 9 steps, and stage train has 2" in n for n in facts["notes"])


def test_a_task_that_says_no_scores_is_asked_before_the_first_step(tmp_path):
    from workbench.core.checks.check import check

    quiet = {"task": "curve", "trackers": [], "train": {"max_steps": 2}}
    for metric in ("time", "rows", "step", "xyz"):
        with pytest.raises(Refused, match=f"valid.metric is `{metric}`, which nothing reports.*There are: "
                                          "loss, .*error") as caught:
            check(complete(quiet, f"valid.metric={metric} valid.mode=min"))
        assert "time" not in str(caught.value).partition("There are")[2]
    assert check(complete(quiet, "valid.metric=error valid.mode=min"))


def test_every_number_of_every_section_is_bounded():
    """No section of ours takes a number without an end, a text for a number, or a truth: the mechanism, not
    the key."""
    from workbench.core.config.mistakes import keys_of
    from workbench.tasks.flow import config as flow_config
    from workbench.tasks.sign import config as sign_config
    from workbench.tasks.tts import config as tts_config

    for section in (sign_config.SignConfig, tts_config.TtsConfig, flow_config.FlowConfig):
        more = {"sample": {"sampler": "heun"}} if section is flow_config.FlowConfig else {}
        cfg = presets.schema_of(section)(task="x", **more)
        full = cfg.model_dump()
        numbers = [p for p, v in mutations.leaves(full)
                   if isinstance(v, (int, float)) and not isinstance(v, bool)]
        assert len(numbers) > 30 and len(keys_of(section)) > 30
        for path in numbers:
            for value in (float("nan"), float("inf"), "1_0", 10**400, True):
                with pytest.raises(ValueError):
                    type(cfg).model_validate({"task": "x", **mutations.nested(path, value)})
