"""Adapters on a base in 4 bits, which some CPUs pack for inference at its first evaluation, are told
from a loss that never reaches them, and a run of them trains on after each validation."""
from importlib.util import find_spec
from pathlib import Path

import pytest
from runs import done, go, tensors

from workbench.core.checks.check import check
from workbench.core.config import presets
from workbench.files import read_json

BASE = {"task": "fourbit", "trackers": [], "check": True, "valid": {"every": 10},
        "train": {"max_steps": 30, "lr": 0.01, "batch_size": 16}}
LOST = "`model.mid.lora_B.default.weight` had a gradient of"


def missing():
    "Why this machine cannot show what bitsandbytes does; empty: it can."
    about = Path("/proc/cpuinfo")
    flags = about.read_text() if about.exists() else ""
    return ("bitsandbytes is not installed" if find_spec("bitsandbytes") is None else
            "" if "avx512_bf16" in flags else "bitsandbytes packs layers on CPUs with AVX512-BF16 alone")


real = pytest.mark.skipif(bool(missing()), reason=missing())


def found(more):
    return {c.name: (c.state, c.says) for c in check(presets.load(BASE, more))}


@pytest.mark.parametrize("layers", ["imitation", pytest.param("bitsandbytes", marks=real)])
def test_a_gradient_that_an_evaluation_took_is_told_as_that(layers):
    said = found(f"layers={layers}")
    assert said["after answers"][0] == "failed" and LOST in said["after answers"][1], said
    assert "evaluation changes the nets" in said["after answers"][1]
    assert said["gradients"] == ("not proven", "see after answers.")
    assert [n for n, (state, _) in said.items() if state in ("failed", "warned")] == ["after answers"], said


@real
def test_layers_that_are_kept_from_packing_pass():
    assert not {n: c for n, c in found("layers=guarded").items() if c[0] in ("failed", "warned")}


@real
def test_a_run_that_was_not_checked_names_the_packed_layer_and_trains_on(tmp_path):
    "Packed weights are other bits than those that were saved before the validation."
    packed = done(go(tmp_path / "packed", "layers=bitsandbytes check=false valid.every=6", base=BASE))
    told = {c["name"]: c for c in read_json(packed / "checks.json")}["validation leaves no trace"]
    assert (told["state"] == "warned"
            and "`model.down.base_layer.weight` is frozen and has changed" in told["says"])
    assert told["step"] == 6
    plain = done(go(tmp_path / "plain", "layers=guarded check=true valid.every=6", base=BASE))
    assert {c["state"] for c in read_json(plain / "checks.json")} <= {"passed", "not proven"}
    ours, theirs = tensors(packed, kinds=("net",)), tensors(plain, kinds=("net",))
    lora = [n for n in ours if "mid.lora" in n]
    # packing rounds the scales of the blocks, so they are near and not equal
    assert lora and all((ours[n] - theirs[n]).norm() < 0.3 * theirs[n].norm() for n in lora)
