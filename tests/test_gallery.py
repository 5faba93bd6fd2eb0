"""The gallery of seeded faults: every fault is in its task, checks find one of each kind by name, healthy
ones pass."""
import sys
from pathlib import Path

import pytest
from conftest import WHOLE, check_names, some

sys.path.append(str(Path(__file__).parents[1] / "bench"))  # last: its names may be those of toys
import faults as bench  # noqa: E402, which also says where the gallery's tasks stand

SEEDED = [(name, fault) for name in bench.SYSTEMS for fault in bench.system(name).FAULTS]
HEALTHY = [(name, variant) for name in bench.SYSTEMS for variant in bench.system(name).VARIANTS]
# not before nets have learnt rows
DEEP = {"overfit", "generation", "shuffled targets", "shuffled inputs", "parts"}


def expected(case):
    "The checks that name a fault before a run."
    return [e for e in bench.system(case[0]).FAULTS[case[1]][0] if not e.startswith("watch")]


def one_of_each(cases):
    "The first fault of each check that stands first for it; `make test-all` asks for all of them."
    return some([c for c in cases if expected(c)], lambda c: expected(c)[:1])


@pytest.mark.parametrize("name", bench.SYSTEMS)
def test_lists(name):
    "Each fault is read somewhere, expects checks that there are, and builds."
    module, source = bench.system(name), (bench.here / "gallery" / f"{name}.py").read_text()
    for fault, (names, sentence) in module.FAULTS.items():
        assert source.count(f'"{fault}"') > 1, fault
        assert names and {n.partition(":")[0] for n in names} <= check_names(), fault
        assert sentence and not sentence.endswith(".")
    for variant in module.VARIANTS:
        assert not variant or source.count(f'"{variant}"') > 1 or variant in getattr(module, "SECOND", ()), (
            variant)
    for fault in module.FAULTS:
        cfg = bench.configuration(name, fault)
        data = module.task.data(cfg, None)
        batch = data.collate([data.datasets["train"][i, 0] for i in range(4)])
        assert batch and data.counts(batch) and module.task.nets(cfg, data, True)
        assert module.task.objectives(cfg)


def test_each_system_has_its_own():
    names = [fault for _, fault in SEEDED]
    assert len(set(names)) == len(names) >= 100 and len(HEALTHY) >= 20


@pytest.mark.parametrize("name, variant", HEALTHY if WHOLE else [c for c in HEALTHY if c[1] in ("", "flow")])
def test_a_healthy_system_passes(name, variant):
    found, *_ = bench.examined(bench.configuration(name, variant=variant), 8 if WHOLE else 0)
    assert [c for c in found if c[1] == "failed"] == []


@pytest.fixture(scope="module")
def usual():
    "What the checks say of a healthy system, asked for once."
    known = {}

    def of(name, fault):
        base = "flow" if fault in getattr(bench.system(name), "SECOND", ()) else ""
        if (name, base) not in known:
            known[name, base] = bench.examined(bench.configuration(name, variant=base), 0)[0]
        return known[name, base]
    return of


@pytest.mark.parametrize("name, fault", one_of_each(SEEDED))
def test_a_fault_is_named(name, fault, usual):
    names = expected((name, fault))
    found, *_ = bench.examined(bench.configuration(name, fault), 8 if DEEP & set(names) else 0)
    verdict, told = bench.verdict(found, names, usual(name, fault))
    assert verdict == "named", told


def test_verdicts():
    "What the healthy system hears as well is no finding; a check of the run counts as the watch."
    found = [("steps", "warned", "`a.bias` is the same."), ("padding", "failed", "`x` costs 2.")]
    assert bench.verdict(found, ("padding",), [])[0] == "named"
    assert bench.verdict(found, ("rows",), [])[0] == "vague"
    assert bench.verdict(found[:1], ("steps",),
                         [("steps", "warned", "`a.bias` is as it was.")])[0] == "missed"
    assert bench.verdict([("frozen stays", "failed", "`b`")], ("watch",), [],
                         [("frozen", "passed", "")])[0] == "named"
    ended = [(bench.ENDED, "failed", "the loss of row r7 is NaN")]
    assert [bench.verdict(ended, (e,), [])[0] for e in ("watch", "watch:r7")] == ["vague", "named"]
