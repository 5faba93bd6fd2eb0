"""Scores of captions, of retrieval and of pictures equal those of the libraries of the field, and their
intervals hold what they should. How caption_scores.json was made: bench/caption_scores.py."""
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from workbench.core.data.intervals import intervals, mean
from workbench.core.data.text_statistics import bleu_statistics, distinct_statistic
from workbench.core.data.metrics import distinct
from workbench.core.step.evaluate import control, evaluation_plan, predict_rows
from workbench.core.task import Ctx, Data
from workbench.errors import Refused
from workbench.files import write_json
from workbench.lab.compare.tables import score_rows
from workbench.lab.run.results import scores
from workbench.parts.image.scores import RandomFeatures, frechet, frechet_influence, mse, psnr, retrieval
from workbench.parts.image.scores import ssim
from workbench.parts.shared.retrieval import chance, cosines, hits, same_things
from workbench.parts.text.caption_scores import caption_words, cider, identical, rouge_l
from workbench.tasks.caption import scores as task_scores

GOLDEN = json.loads((Path(__file__).parent / "caption_scores.json").read_text(encoding="utf8"))
TRUE = [row["references"] for row in GOLDEN["rows"]]
MADE = [row["hypothesis"] for row in GOLDEN["rows"]]


def words(texts):
    return [text.split() for text in texts]


# Captions

def test_the_published_implementation_says_the_same():
    "pycocoevalcap 1.2, on the same words: each row of CIDEr and ROUGE-L, and BLEU of all."
    assert np.allclose(cider([words(of) for of in TRUE], words(MADE)), GOLDEN["cider"], rtol=0, atol=1e-12)
    assert np.allclose(rouge_l([words(of) for of in TRUE], words(MADE)), GOLDEN["rouge_l"], rtol=0,
                       atol=1e-12)
    bleu = [one.value() / 100 for one in bleu_statistics(TRUE, MADE, "none", "none").values()]
    assert np.allclose(bleu, GOLDEN["bleu"], rtol=0, atol=1e-11)


def test_own_words_are_those_of_the_treebank():
    assert [caption_words(row["raw"]) for row in GOLDEN["rows"]] == words(MADE)
    assert "Copyright (c) 2015" in GOLDEN["licence"]


@pytest.mark.parametrize("text, expected", [
    ("ቀይ፡ፖም። ውሻ፤", ["ቀይ", "ፖም", "ውሻ"]), ("赤いリンゴ。", list("赤いリンゴ")), ("빨간 사과", ["빨간", "사과"]),
    ("keycap: 10", ["keycap", "10"]), ("flag: Côte d’Ivoire", ["flag", "côte", "d", "ivoire"]),
    ("<b>bold</b>\ttab", ["b", "bold", "/", "b", "tab"]), ("...", []), ("", [])])
def test_words_of_every_script(text, expected):
    found = [w for w in caption_words(text) if w not in "<>"]
    assert found == expected


def test_captions_of_any_length_have_scores():
    "Nothing, ten thousand characters, markup; and captions without a word in common."
    true = [[["a", "red", "apple"]]] * 4
    made = [[], caption_words("word " * 2000), caption_words("<script>alert(1)</script>"),
            ["a", "red", "apple"]]
    others = true[:3] + [[["a", "dog"]]]
    for of in (cider(others, made), rouge_l(true, made)):
        assert np.isfinite(of).all() and of[0] == 0
    assert rouge_l(true, made)[3] == 1
    assert all(one.value() >= 0 for one in bleu_statistics([["a b"]] * 2, ["", ""], "none", "none").values())


def test_cider_wants_a_true_caption_of_each_picture():
    with pytest.raises(Refused, match="picture 1 has no true caption"):
        cider([[["a"]], []], [["a"], ["b"]])


def test_distinct_is_made_of_rows():
    for n in (1, 2):
        assert abs(distinct_statistic(MADE, n).value() - distinct(MADE, n)) < 1e-12


def test_one_caption_of_everything_is_identical():
    assert identical(["and and and"] * 5,
                     range(5)).all() and not identical(MADE[:1] * 2, ["one", "one"]).any()


# Retrieval

def test_recall_by_hand():
    "Three pictures, two captions of each; ties, several right ones, and both ways."
    table = torch.tensor([[.9, .1, .9, .2, .0, .0], [.5, .5, .5, .5, .5, .5], [.1, .2, .3, .4, .0, .3]])
    right = same_things([0, 1, 2], [0, 0, 1, 1, 2, 2])
    found = hits(table, right, (1, 2))
    assert torch.allclose(found[0], torch.tensor([.5, 1.]).double())  # one right and one wrong one tie
    # six tie, two are right
    assert torch.allclose(found[1], torch.tensor([2 / 6, 1 - 4 * 3 / (6 * 5)]).double())
    # one is nearer, then one right, one wrong
    assert torch.allclose(found[2], torch.tensor([0, .5]).double())
    # third or second
    assert torch.allclose(hits(table.T, right.T, (1, 2))[4], torch.tensor([0, .5]).double())
    assert torch.allclose(chance(right, (1, 5)).mean(0), torch.tensor([1 / 3, 1.]).double())


def test_a_latent_that_says_nothing_is_chance():
    groups = [i // 2 for i in range(50)]
    right, same = same_things(groups, groups), torch.ones(50, 8)
    assert torch.allclose(hits(cosines(same, same), right), chance(right))


def test_drawn_pictures_are_found_by_the_same_rule():
    features = torch.zeros(6, 3)
    found = retrieval(features, features, [f"caption {i // 2}" for i in range(6)])
    right = same_things([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2])
    assert abs(found["retrieval_top1"] - float(chance(right, [1]).mean())) < 1e-9
    assert abs(found["retrieval_rank"] - 0.5) < 1e-9


# Pictures

def pictures():
    "Two pictures in [0, 1] that need no file: [1, 3, 24, 20] each."
    y, x = torch.arange(24).double()[:, None], torch.arange(20).double()[None]
    a = torch.stack([0.5 + 0.5 * (0.7 * y + 0.3 * x + c).sin() for c in range(3)])
    b = (a + 0.2 * torch.stack([(0.5 * y * x + c).cos() for c in range(3)])).clamp(0, 1)
    return a[None], b[None]


def test_pictures_score_as_scikit_image_says():
    """0.26: mean_squared_error, peak_signal_noise_ratio(data_range=1), structural_similarity(Gaussian,
    data_range=1)."""
    a, b = pictures()
    assert abs(float(mse(a, b)) - 0.015853396921855608) < 1e-7
    assert abs(float(psnr(a, b, 1)) - 17.99877666799357) < 1e-4
    assert abs(float(ssim(a, b, 1)) - 0.9117273981843192) < 1e-5


def features():
    k, f = torch.arange(200).double()[:, None], torch.arange(6).double()[None]
    return (1.7 * k * (f + 1)).sin() + 0.1 * f, 1.4 * (2.3 * k * (f + 1) + f).cos() + 0.3


def test_frechet_as_torchmetrics_and_scipy_say():
    """torchmetrics 1.9 (_compute_fid) and scipy 1.17 (sqrtm); also where there are fewer pictures than
    features."""
    a, b = features()
    assert abs(frechet(a, b) - 0.6858517060926559) < 1e-9
    assert abs(frechet(a[:5], b[:5]) - 4.257226933407585) < 1e-6
    assert frechet_influence(a[:5], b[:5]).isfinite().all()


def test_the_influences_give_the_spread_of_the_distance():
    "The deviation over sets that are drawn anew, a thousand each time."
    rng = torch.Generator().manual_seed(0)
    draw = lambda n: (torch.randn(n, 4, generator=rng).double(),
                      1.5 * torch.randn(n, 4, generator=rng).double() + 0.3)
    spread = np.std([frechet(*draw(500)) for _ in range(200)])
    a, b = draw(500)
    told = float((frechet_influence(a, b) + frechet_influence(b, a)).std()) / 500**0.5
    assert 0.75 < told / spread < 1.35, (told, spread)


def test_a_judge_of_few_features_names_itself():
    assert task_scores.feature_net().name == RandomFeatures(axes=32).name
    assert "32 random axes" in task_scores.signatures()["frechet"]


# Intervals

def rows(n=120, right=0.5, seed=0):
    "Answers of a model that is right at times, two pictures of a concept."
    rng = np.random.default_rng(seed)
    names = [f"{a} {b}" for a in ("red", "green", "old", "big", "sad", "new") for b in "abcdefghij"]
    seen, out = rng.integers(0, 256, (60, 12, 12, 3)), []
    latents = rng.normal(size=(60, 8))
    for i in range(n):
        own = i // 2 % 60
        said = own if rng.random() < right else int(rng.integers(60))
        made = np.clip(seen[own] + rng.normal(0, 40, (12, 12, 3)), 0, 255).astype(np.uint8)
        out.append({"uid": i, "reference": names[own], "references": [names[own], f"the {names[own]}"],
                    "hypothesis": names[said], "group": own,
                    "image_latent": latents[own] + rng.normal(size=8),
                    "caption_latent": latents[own], "made": made, "real": seen[own].astype(np.uint8)})
    return out


def test_intervals_of_all_scores():
    found, points = task_scores.intervals(rows(), None), task_scores.score(rows(), None)
    assert list(found) == list(points) == task_scores.scores(None)
    for name, (low, high) in found.items():
        assert low <= points[name] <= high or abs(high - low) < 1e-9, (name, low, points[name], high)
    assert found == task_scores.intervals(rows(), None)


def test_a_better_model_has_its_intervals_apart():
    good, bad = (task_scores.intervals(rows(right=p), None) for p in (0.9, 0.0))
    assert all(good[name][0] > bad[name][1] for name in ("cider", "bleu1", "rouge_l"))


def test_concepts_are_drawn_together():
    "Each row ten times, in groups: the interval is that of the rows alone."
    values = np.random.default_rng(0).normal(size=50)
    alone = intervals({"x": mean(values)})["x"]
    assert np.allclose(intervals({"x": mean(np.repeat(values, 10))}, np.repeat(np.arange(50), 10))["x"],
                       alone)
    assert intervals({"x": mean([1.0])}) == {} == intervals({"x": mean([1.0, 2])}, ["a", "a"])


class Lines:
    def __len__(self): return 10
    def __getitem__(self, at): return float(at[0])


@pytest.mark.parametrize("seed", range(3))
def test_the_control_has_intervals_of_as_many_rows_as_it_says(seed):
    "Also where a short batch comes first: 4, 4 and 2 rows in a random order."
    data = Data(datasets={"valid": Lines()}, uids={"valid": range(10)}, lengths={"valid": np.ones(10, int)},
                collate=lambda xs: {"x": torch.tensor(xs)[:, None], "uid": [int(x) for x in xs]}, counts=dict)
    right = lambda rows: [float(r["reference"] == r["hypothesis"]) for r in rows]
    task = SimpleNamespace(
        predict=lambda nets, b, ctx: [{"uid": u, "reference": str(u), "hypothesis": f"{float(x):.0f}"}
                                      for u, x in zip(b["uid"], b["x"])],
        score=lambda rows, data: {"exact": float(np.mean(right(rows)))})
    ctx = Ctx(cfg=SimpleNamespace(seed=seed), data=data)
    nets = {"m": torch.nn.Linear(1, 1)}
    rows = predict_rows(task, nets, data, "valid", ctx, 4)
    spread = lambda rows, data: intervals({"exact": mean(right(rows))})
    for most in (5, 64):
        found = control(task, nets, data, "valid", ctx, 4, rows, most=most, intervals=spread)
        sizes, wanted = [len(b) for b in evaluation_plan(data.lengths["valid"], 4, None, seed)], 0
        for size in sizes:  # a row alone has no other one to take the input of
            some = min(size, most - wanted)
            wanted += some if some > 1 else 0
        assert found["rows"] == wanted, sizes
        assert found["intervals"] == {"control": {"exact": (0, 0)}, "own": {"exact": (1, 1)}}


def test_intervals_stand_in_the_tables(tmp_path):
    (tmp_path / "config.yaml").write_text("task: caption\n", encoding="utf8")
    split = {"rows": 9, "of": 9, "scores": {"cider": 0.5}, "intervals": {"cider": [0.4, 0.6]},
             "baseline": {"cider": 0.1}, "control": {"cider": 0.2},
             "control_of": {"rows": 9, "own": {"cider": 0.5}, "intervals": {"own": {"cider": [0.4, 0.6]},
                                                                           "control": {"cider": [0.1, 0.3]}}}}
    write_json(tmp_path / "results.json", {"checkpoint": "step_1", "step": 1, "splits": {"style": split}})
    table = scores(tmp_path)
    assert table.rows == [["cider", 0.5, "0.400 to 0.600", 0.1, 0.2, "0.100 to 0.300"]]
    assert "of other rows are apart for cider." in table.note
    assert ["style cider, inputs of other rows, 95 % interval", "0.100 to 0.300"] in score_rows([tmp_path])
