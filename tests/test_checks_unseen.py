"Faults and healthy cases of a gallery that was written without the checks at hand, one assertion each."
from types import SimpleNamespace

import torch
from torch import nn

from workbench.core.checks.attempt import judge_settings, settings_of
from workbench.core.checks.costs import check_counts, collated_apart
from workbench.core.checks.learnt import judge_answers, judge_read


def answered(said, references=("1 7 4", "8 2 1", "0 5 5 6")):
    return [{"uid": str(i), "reference": r, "hypothesis": said} for i, r in enumerate(references)]


def test_one_answer_for_all_is_a_fault_at_the_end_of_the_loss_alone():
    assert judge_answers(answered("8 2 1"), by_heart=True, sure=False).state == "not proven"
    assert judge_answers(answered("8 2 1"), by_heart=True, sure=True).state == "failed"
    assert judge_answers(answered("8 2 1"), by_heart=True, sure=False, ended=True).state == "warned"


def test_one_answer_for_references_much_alike_is_no_fault():
    rows = answered("0 0 0", ("0 0 0", "0 0 1", "0 0 0 0"))
    assert judge_answers(rows, by_heart=True, sure=True, ended=True).state == "not proven"


def test_right_answers_that_follow_the_targets_are_read_off_them():
    a, b = ({"uid": u, "reference": r, "hypothesis": r} for u, r in (("a", "1 7 4"), ("b", "8 2 5")))
    assert "reads the target" in judge_read([(a, b, "8 2 5"), (b, a, "1 7 4")]).says
    assert judge_read([(a, b, "1 7 4"), (b, a, "8 2 5")]) is None


def harmed(harm):
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    with torch.no_grad():
        were, _ = settings_of({"net": net}), harm(net)
        return judge_settings("answers", "predict", {"net": net}, were, lambda: harm(net)), net


def test_what_a_generation_leaves_changed_is_named():
    assert "writes to `net.0.weight`" in harmed(lambda net: net[0].weight.mul_(1.5))[0].says
    off, net = harmed(lambda net: net.requires_grad_(False))
    assert "turns off the gradient" in off.says and net[0].weight.requires_grad
    assert "dropout from 0.1 to 0.0" in harmed(lambda net: setattr(net[1], "p", 0.0))[0].says


def test_adapters_that_are_merged_for_a_generation_are_no_change():
    assert harmed(lambda net: net[0].weight.add_(1.0).sub_(1.0))[0] is None


def few(collate):
    items = [{"uid": "short", "x": torch.arange(3.0)}, None, {"uid": "long", "x": torch.arange(5.0) + 10}]
    batch = lambda *picks: collate([items[i] for i in picks])
    return SimpleNamespace(setup=SimpleNamespace(data=SimpleNamespace(padding={"x": "mask"})),
                           pair=batch(0, 2), batch=batch)


def padded(items):
    n = max(len(i["x"]) for i in items)
    x = torch.stack([nn.functional.pad(i["x"], (0, n - len(i["x"]))) for i in items])
    return {"uid": [i["uid"] for i in items], "x": x,
            "mask": torch.tensor([[k < len(i["x"]) for k in range(n)] for i in items])}


def test_a_collate_that_sorts_some_fields_mixes_rows_and_one_that_sorts_all_does_not():
    assert collated_apart(few(padded)) is None
    assert collated_apart(few(lambda items: padded(items[::-1]))) is None

    def some(items):
        batch = padded(items)
        return batch | {"x": batch["x"].flip(0), "mask": batch["mask"].flip(0)}
    assert "`collate` mixes the rows" in collated_apart(few(some)).says


def test_counts_that_hold_padding_are_named():
    assert "counts padding" in check_counts({"tokens": 12}, {"tokens": 4}, {"tokens": 6}).says
    assert check_counts({"batches": 1}, {"batches": 1}, {"batches": 1}) is None
