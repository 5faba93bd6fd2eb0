"`train.memory`: the cheapest savings with which a run fits, chosen once, told, repeated by a resumed run."
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import again, config, done, end, go, lines, same_bits, tensors

from workbench.core.run import checkpoint
from workbench.core.run.folder import config_of, create
from workbench.core.setup import memory_choice
from workbench.core.setup.memory_choice import MARGIN, choose, needs_of, offers
from workbench.core.setup.plan import plan
from workbench.core.setup.prepare import without_weights
from workbench.core.setup.savings import Savings, checkpointing_key, keys_of, with_keys
from workbench.core.setup.state import batch_plan
from workbench.core.stages.stages import complete
from workbench.core.step.optim import make_optimizer
from workbench.core.config.schema import Optimizer
from workbench.errors import Refused
from workbench.files import read_json

WIDE = ("width=1600 data.rows=4096 data.first=1000 train.batch_size=2048 train.precision=fp32 "
        "train.optimizer.type=AdamW train.epochs=2 train.checkpoint_every=2")  # 50 MB of activations


def planned(cfg, folder, world=1):
    "Data and nets of a configuration, as a process of so many sees them."
    (Path(folder) / "assets").mkdir(exist_ok=True)
    return without_weights(cfg, Path(folder), SimpleNamespace(num_processes=world, device=torch.device("cpu"),
                                                              is_main_process=True))


def needs(cfg, folder, savings, world=1):
    changed = with_keys(cfg, keys_of(cfg.model_dump(), savings, world))
    return needs_of(planned(cfg, folder, world), changed, "cpu")


def limit(cfg, folder, world=1):
    """GB between what a run needs and the least that it needs with smaller micro-batches: the heap of many
    small blocks may be larger than that of few, so two parts do not always need less."""
    plain, *others = (needs(cfg, folder, Savings(parts=n), world) for n in (1, 2, 4, 8))
    less = min(others)
    assert less < plain
    return round(world * MARGIN * (plain + less) / 2 / 1e9, 6)


def chosen(cfg, folder, gb, world=1):
    return choose(planned(with_keys(cfg, {"train.memory": gb}), folder, world))


# What is chosen

def test_off_is_as_before(tmp_path):
    cfg = complete(config(WIDE))
    assert cfg.train.memory is None
    facts = plan(cfg)
    assert facts["memory_choice"] is None and facts["notes"] == []


def test_nothing_is_turned_on_where_it_fits(tmp_path):
    cfg, facts = chosen(complete(config(WIDE)), tmp_path, 50.0)
    assert facts["chosen"] == "nothing" and facts["keys"] == {} and len(facts["sets"]) == 1
    assert cfg.train.memory is None and "changes nothing" in cfg.notes[-1]


@pytest.mark.parametrize("preset, savings", [
    ("t5_tiny", {"bf16", "micro-batches in parts", "gradient checkpointing", "8-bit optimiser"}),
    ("tts_tiny", {"bf16", "micro-batches in parts", "8-bit optimiser"}),
    ("flow_tiny", {"bf16", "micro-batches in parts", "8-bit optimiser"})])
def test_every_task(tmp_path, monkeypatch, preset, savings):
    cfg = complete(preset)
    sets, parts, no = offers(planned(cfg, tmp_path), "cpu")
    every = {"bf16", "micro-batches in parts", "gradient checkpointing", "8-bit optimiser"}
    assert every - set(no) == savings and len(parts) > 1 and len(set(sets)) == len(sets)
    assert bool(checkpointing_key(cfg.model_dump())) == ("gradient checkpointing" in savings)
    plain = needs(cfg, tmp_path, Savings())
    setup = planned(with_keys(cfg, {"train.memory": 0.9 * MARGIN * plain / 1e9}), tmp_path)

    def quick(setup, changed, device, data):  # as if each key saved a half: searching is shown in notebooks
        keys = ("precision", "batch_size", "optimizer")
        return plain // (1 + sum(getattr(changed.train, k) != getattr(cfg.train, k) for k in keys))

    monkeypatch.setattr(memory_choice, "needs_of", quick)
    kept, facts = choose(setup)
    table = {line["savings"]: line for line in facts["sets"]}
    assert table["nothing"]["fits"] is False and table[facts["chosen"]]["fits"] is True
    assert facts["chosen"] in kept.notes[-1] and all(key in kept.notes[-1] for key in facts["keys"])
    least = Savings("bf16" in savings, 2, "gradient checkpointing" in savings)
    assert needs(cfg, tmp_path, least) < plain  # what is chosen is traced: the keys reach the nets


def test_what_the_user_set_stays(tmp_path):
    cfg = complete("t5_tiny", "train.precision=fp32 train.optimizer.type=AdamW "
                              "model.gradient_checkpointing=false")
    _, _, no = offers(planned(cfg, tmp_path), "cpu")
    assert set(no) == {"bf16", "gradient checkpointing", "8-bit optimiser"}


def test_nothing_fits(tmp_path):
    with pytest.raises(Refused, match="nothing fits") as found:
        chosen(complete("t5_tiny"), tmp_path, 0.1)
    assert "model.lora={}" in str(found.value) and "smaller model" in str(found.value)


@pytest.mark.parametrize("value", ["0", "-1", "true", "much"])
def test_no_limit(value):
    with pytest.raises(Refused, match="train.memory"):
        complete(config(f"train.memory={value}"))


def test_no_stage_has_its_own():
    with pytest.raises(Refused, match="train.memory holds for the whole run"):
        complete(config() | {"pipeline": {"steps": [
            {"name": "a", "n_epochs": 1, "train": {"memory": "auto"}}]}})


# A step has the same rows

@pytest.mark.parametrize("world", [1, 2])
def test_the_same_rows_make_a_step(tmp_path, world):
    cfg = complete(config("data.rows=400 data.first=1000 train.batch_size=64"))
    cut = with_keys(cfg, keys_of(cfg.model_dump(), Savings(parts=4), world))
    steps = []
    for each in (cfg, cut):
        setup = planned(each, tmp_path, world)
        steps.append([np.concatenate(step).tolist() for step in batch_plan(setup)(0)])
    assert steps[0] == steps[1]


# A run

@pytest.mark.parametrize("nproc", [1, 2])
def test_a_run_is_the_one_with_these_keys(tmp_path, nproc):
    cfg = complete(config(WIDE))
    gb = limit(cfg, tmp_path, nproc)
    run = done(go(tmp_path / "auto", f"{WIDE} train.memory={gb}", nproc=nproc))
    found, kept = read_json(run / "memory.json"), config_of(run)
    assert found["chosen"].startswith("micro-batches in") and kept.train.memory is None
    assert kept.train.batch_size * kept.train.accumulate == 2048 * nproc and kept.train.batch_size < 2048
    facts, manifest = read_json(run / "plan.json"), read_json(run / "manifest.json")
    assert facts["memory_choice"] == manifest["memory_choice"] == found
    assert found["says"] in facts["notes"] and found["says"] in (run / "log.txt").read_text()
    words = " ".join(f"{key}={value}" for key, value in found["keys"].items())
    same = done(go(tmp_path / "keys", f"{WIDE} {words}", nproc=nproc))
    assert lines(run) == lines(same) and same_bits(tensors(run), tensors(same))


def test_a_killed_run_repeats_the_choice(tmp_path):
    cfg = complete(config(WIDE))
    words = f"{WIDE} train.memory={limit(cfg, tmp_path)}"
    straight = done(go(tmp_path / "straight", words))
    run = go(tmp_path / "killed", words, trap="kill:3")
    assert end(run)["state"] == "died" and run.process.returncode == -signal.SIGKILL
    before = config_of(run.folder)
    done(again(run.folder))
    assert config_of(run.folder) == before and same_bits(tensors(run.folder), tensors(straight))


def test_a_run_that_does_not_fit_does_not_begin(tmp_path):
    run = go(tmp_path / "run", f"{WIDE} train.memory=0.01")
    assert end(run)["state"] == "failed" and "nothing fits" in run.status["error"]
    assert checkpoint.find(run.folder) is None and config_of(run.folder).train.memory == 0.01


def test_it_is_not_turned_on_later(tmp_path):
    run = done(go(tmp_path / "run", "train.epochs=1"))
    with pytest.raises(Refused, match="train.memory was None in this run"):
        again(run, "train.epochs=2 train.memory=auto")


# The 8-bit optimiser

def test_eight_bit_moments_come_back_to_the_bit(tmp_path):
    pytest.importorskip("bitsandbytes")
    words = "width=80 train.optimizer.type=AdamW8bit train.lr=1e-3"  # a tensor below 4,096 stays in floats
    straight = done(go(tmp_path / "straight", words))
    run = go(tmp_path / "killed", words, trap="kill:7")
    end(run)
    done(again(run.folder))
    kept = tensors(run.folder, kinds=("optim",))
    assert any(t.dtype == torch.uint8 for t in kept.values())
    assert same_bits(tensors(run.folder), tensors(straight)) and lines(run.folder) == lines(straight)


def test_eight_bit_steps_are_those_of_bitsandbytes():
    made = pytest.importorskip("bitsandbytes").optim.AdamW8bit
    torch.manual_seed(0)
    a = {"w": torch.nn.Parameter(torch.randn(80, 80)), "b": torch.nn.Parameter(torch.randn(80))}
    b = {k: torch.nn.Parameter(p.detach().clone()) for k, p in a.items()}
    ours = make_optimizer(a, Optimizer(type="AdamW8bit", weight_decay=0.1), 1e-2)
    theirs = made([{"params": [b["w"]], "weight_decay": 0.1}, {"params": [b["b"]], "weight_decay": 0.0}],
                  lr=1e-2)
    for step in range(3):
        for nets, optimizer in ((a, ours), (b, theirs)):
            for p in nets.values():
                p.grad = torch.full_like(p, 0.1 * (step + 1)) * p.detach().sign()
            optimizer.step()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_without_the_library(monkeypatch):
    import workbench.core.stages.stage as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(Refused, match="AdamW8bit, which needs bitsandbytes"):
        complete(config("train.optimizer.type=AdamW8bit"))


def test_a_folder_that_has_begun_is_left_alone(tmp_path):
    from workbench.core.setup.memory_choice import settle_memory

    run = create(complete(config()), tmp_path / "run")
    before = (run / "config.yaml").read_bytes()
    settle_memory(run)
    assert (run / "config.yaml").read_bytes() == before and not (run / "memory.json").exists()
