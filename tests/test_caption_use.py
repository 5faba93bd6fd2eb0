"A run of the caption task describes pictures and draws captions; what it makes can be looked at."
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import end, go

from workbench.core.run import checkpoint
from workbench.errors import Refused
from workbench.lab import cli
from workbench.lab.use import open_run, use
from workbench.parts.text.words import Words
from workbench.tasks.caption import drawings
from workbench.tasks.caption.captions import Steps, caption_rules, describe, searched
from workbench.tasks.caption.config import Generate
from workbench.tasks.caption.tokens import of_words

TINY = {"task": "caption", "trackers": [], "check": False, "seed": 3,
        "model": {"latent_dim": 16, "embedding_dim": 16, "pictures": {"widths": [8, 8], "hidden": 16},
                  "captions": {"decoder_layers": 1, "heads": 2, "memory": 2, "hidden": 16}},
        "train": {"max_steps": 6, "batch_size": 8, "lr": 3e-3, "checkpoint_every": 6},
        "valid": {"every": 6, "metric": "mean_recall@5", "final": []}, "generate": {"max_length": 8}}
COLOURS = {"red": (220, 20, 20), "green": (20, 180, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}

KNOWN = {*COLOURS, "a", "field", "high", "low"}


def pictures(folder, n=24, more=()):
    "A folder with a captions.txt, plain colours with a bar."
    folder.mkdir(parents=True)
    lines = []
    for i in range(n):
        name = list(COLOURS)[i % 4]
        pixels = np.full((20, 20, 3), COLOURS[name], np.uint8)
        pixels[i % 20] = 0
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        lines.append(f"{i:02d}.png\ta {name} field {'high' if i % 20 < 10 else 'low'}")
    (folder / "captions.txt").write_text("\n".join([*lines, *more]) + "\n", encoding="utf8")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caption")
    base = TINY | {"data": {"source": str(pictures(folder / "data")),
                            "captions": str(folder / "data/captions.txt"),
                            "size": 16, "max_length": 12}}
    made = go(folder / "run", "", base=base)
    assert end(made, 300)["state"] == "finished"
    return made.folder


@pytest.fixture(scope="module")
def opened(run):
    return open_run(run)


def picture(path, mode="RGB", size=(40, 30), colour=None, **how):
    Image.new(mode, size, colour or {"RGB": (200, 30, 30), "L": 90, "1": 1}.get(mode, 0)).save(path, **how)
    return str(path)


# Use

def test_the_command_describes_a_picture_and_draws_a_caption(run, tmp_path, capsys):
    apple = tmp_path / "apple.png"
    assert cli.main(["use", str(run), picture(tmp_path / "a.png")]) == 0
    said = capsys.readouterr().out.split()
    assert said and set(said) <= KNOWN
    assert cli.main(["use", str(run), "a red field", "--out", str(apple)]) == 0
    with Image.open(apple) as made:
        assert made.size == (16, 16) and made.mode == "RGB"
    assert cli.main(["use", str(run), picture(tmp_path / "b.png"), "--out", str(tmp_path / "said.txt"),
                     "--overrides", "generate.num_beams=3"]) == 0
    said = (tmp_path / "said.txt").read_text().split()
    assert said and set(said) <= KNOWN


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_answered(opened, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    (tmp_path / "text.jpg").write_text("no picture")
    huge = picture(tmp_path / "huge.png", "1", (20_000, 10_000))
    good = picture(tmp_path / "good.png")
    words = [str(tmp_path / "broken.png"), good, str(tmp_path / "text.jpg"), huge, str(tmp_path / "none.png"),
             "a blue field", " ", "zzxqv qqq", str(tmp_path / "empty")]
    (tmp_path / "empty").mkdir()
    found = list(use(opened, *words))
    assert [a.given for a in found] == words
    assert [bool(a.refused) for a in found] == [True, False, True, True, True, False, True, True, True]
    says = [a.refused for a in found]
    assert "broken.png" in says[0] and "not a picture" in says[2] and "200000000 pixels" in says[3]
    assert "there is no file" in says[4] and "empty caption" in says[6] and "'zzxqv qqq'" in says[7]
    assert "no picture in the folder" in says[8] and isinstance(found[1].made, str)


@pytest.mark.parametrize("mode, how", [("RGBA", {"format": "PNG"}), ("LA", {"format": "PNG"}),
                                       ("P", {"format": "PNG", "transparency": 0}),
                                       ("CMYK", {"format": "JPEG"}),
                                       ("I;16", {"format": "PNG"}), ("1", {"format": "PNG"}),
                                       ("L", {"format": "WEBP"})])
def test_pictures_of_any_kind_are_described(opened, tmp_path, mode, how):
    [answer] = use(opened, picture(tmp_path / f"a.{how['format'].lower()}", mode, **how))
    assert not answer.refused and answer.made.strip()


def test_the_way_a_camera_was_held_does_not_matter(opened, tmp_path):
    "The same picture, lying on its side with an EXIF tag that says so."
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:12] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).rotate(90).save(tmp_path / "b.png", exif=exif)
    a, b = use(opened, str(tmp_path / "a.png"), str(tmp_path / "b.png"))
    nets, read = opened.nets, drawings.picture_latents
    from workbench.parts.image.files import fit, read_picture

    latents = [read(nets, [fit(read_picture(tmp_path / f"{n}.png"), 16, 16)]) for n in "ab"]
    assert a.made == b.made and torch.equal(*latents)


@pytest.mark.parametrize("caption", ["<b>a red field</b> <script>alert(1)</script>", "a\tred\nfield",
                                     "a red field " * 900, "ቀይ a field", "<END> <PAD> red",
                                     "$\\frac{red}{field}$"])
def test_captions_of_any_kind_are_drawn(opened, caption):
    [answer] = use(opened, caption)
    assert not answer.refused and answer.made.shape == (16, 16, 3) and answer.made.dtype == np.uint8
    assert "<script>" not in answer._repr_html_()
    assert ("only its first 10 words are read" in answer.note) == (len(opened.data.own.tokens.encode(
        caption, 1 << 20)) > 12)


def test_a_caption_is_drawn_the_same_alone_and_among_others(opened):
    [alone] = use(opened, "a red field")
    many = list(use(opened, *[f"a {c} field" for c in COLOURS]))
    assert np.abs(alone.made.astype(int) - many[0].made.astype(int)).max() <= 1


def test_a_folder_stands_for_its_pictures(opened, tmp_path):
    folder = pictures(tmp_path / "some", 3)
    found = list(use(opened, str(folder)))
    assert [a.given for a in found] == [str(folder / f"{i:02d}.png") for i in range(3)]
    assert all(isinstance(a.made, str) for a in found)


# Captions

WORDS = of_words(Words.build_vocab(["a b c d e f"]), {})


class Fixed:
    "Random scores that depend on the latent and the last two words."
    length = 12

    def __call__(self, latent, ids):
        draw = torch.Generator().manual_seed(0)
        tables = torch.randn(2, len(WORDS), len(WORDS), generator=draw, dtype=torch.float64)
        before = torch.cat([ids[:, :1], ids[:, :-1]], 1)
        return 2 * (tables[0][ids] + tables[1][before]) + latent[:, :1, None]


def likelihood(ids, length_penalty=1.0):
    "What a caption scores, word by word, with all words but the forbidden ones and the first end."
    whole = torch.tensor([[WORDS.start, *ids]])
    logp = Fixed()(torch.zeros(1, 1), whole)[0].log_softmax(1)
    return sum(float(logp[i, w]) for i, w in enumerate([*ids, WORDS.end])) / (len(ids) + 1) ** length_penalty


def found(generator=None, n=1, **how):
    return searched(lambda some: Steps(Fixed(), some), torch.zeros(n, 1), Generate(**how), WORDS, 4,
                    generator)


def every_caption():
    "All captions of one to three words that may be written."
    from itertools import product

    return [ids for n in (1, 2, 3) for ids in product(range(4, len(WORDS)), repeat=n)]


def test_wide_beams_find_the_best_of_all_captions():
    best = max(every_caption(), key=likelihood)
    [ids] = found(num_beams=256)
    assert ids == best or likelihood(ids) >= likelihood(best) - 1e-9
    assert likelihood(found(num_beams=4)[0]) >= likelihood(found()[0]) - 1e-9


def test_greedy_takes_the_likeliest_word_each_time():
    ids, greedy = [], found()[0]
    for at in range(len(greedy)):
        scores = Fixed()(torch.zeros(1, 1), torch.tensor([[WORDS.start, *ids]]))[0, -1]
        scores[[WORDS.pad, WORDS.start, WORDS.unk] + [WORDS.end] * (at == 0)] = -1e9
        ids.append(int(scores.argmax()))
    assert tuple(ids) == greedy


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"sample": True}, {"sample": True, "top_p": 0.5},
                                 {"repetition_penalty": 2.0},
                                 {"sample": True, "top_k": 2, "temperature": 3.0}])
def test_a_caption_says_something_and_nothing_that_is_no_word(how):
    draw = torch.Generator().manual_seed(0)
    for ids in found(draw, 50 if how.get("sample") else 1, **how):
        assert ids and set(ids) <= set(range(4, len(WORDS)))


def test_top_p_keeps_to_the_fewest_words_with_its_share():
    scores = Fixed()(torch.zeros(1, 1), torch.tensor([[WORDS.start]]))[0, -1]
    scores[[WORDS.pad, WORDS.start, WORDS.unk, WORDS.end]] = -1e9
    ranked = scores.softmax(0).sort(descending=True)
    kept = ranked.indices[:int((ranked.values.cumsum(0) < 0.6).sum()) + 1].tolist()
    drawn = {ids[0] for ids in found(torch.Generator().manual_seed(0), 400, sample=True, top_p=0.6)}
    assert drawn == set(kept)


def test_a_penalty_on_repetition_is_that_of_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    ids, scores = torch.tensor([[1, 5, 6]]), torch.randn(1, len(WORDS),
                                                         generator=torch.Generator().manual_seed(0))
    ours = scores.clone()
    for rule in caption_rules(SimpleNamespace(repetition_penalty=1.7, no_repeat_ngram=0), WORDS):
        ours = rule(ids, ours, None)
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(ids, scores.clone())
    assert torch.equal(ours[0, 4:], theirs[0, 4:]) and torch.isinf(ours[0, [0, 1, 3]]).all()


def test_drawn_captions_are_the_same_for_a_seed(opened, tmp_path):
    path = picture(tmp_path / "a.png")
    say = lambda seed: [a.made for a in use(opened, path, seed=seed, overrides="generate.sample=true")]
    assert say(1) == say(1) and len({tuple(say(s)) for s in range(12)}) > 1
    assert describe(opened.nets, torch.zeros(2, 16), opened.ctx)[0]


# Drawings

def test_drawn_latents_have_the_mean_and_the_spread_of_the_pictures():
    torch.manual_seed(0)
    basis = torch.randn(3, 8)  # pictures fill three directions of eight
    latents = torch.randn(500, 3) @ basis + 5
    spread = drawings.Spread.of(latents)
    noise = torch.randn(20_000, 500) @ spread.apart / 499 ** 0.5
    assert torch.allclose(noise.T.cov(), latents.T.cov(), atol=0.06 * float(latents.T.cov().abs().max()))
    made = spread.drawn(100, torch.Generator().manual_seed(0))
    outside = torch.linalg.svd(torch.cat([basis, torch.ones(1, 8)])).Vh[4:]
    assert (made @ outside.T).abs().max() < 1e-4  # no direction in which no picture lies
    assert torch.allclose(made.norm(dim=1), torch.full((100,), 8 ** 0.5), atol=1e-4)


def test_the_way_between_two_latents_begins_and_ends_at_them():
    a, b = drawings.on_sphere(torch.randn(2, 32, generator=torch.Generator().manual_seed(0),
                                          dtype=torch.float64))
    way = drawings.between(a, b, 7)
    assert torch.allclose(way[[0, -1]], torch.stack([a, b])) and torch.allclose(way[3], drawings.on_sphere(
        (a + b)[None])[0])
    assert torch.equal(drawings.between(a, a, 4), a.expand(4, -1))


def test_pixels_and_numbers_are_the_same_both_ways():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    images = drawings.images_of(pixels)
    assert images.shape == (2, 3, 5, 4) and float(images.min()) >= 0 and float(images.max()) <= 1
    assert np.array_equal(drawings.pixels_of(images), pixels)


# Pictures

def test_the_previews_are_four_grids_that_are_not_empty(run):
    [folder] = (run / "previews").iterdir()
    assert {p.name for p in folder.iterdir()} == {f"{n}.png"
                                                  for n in ("pictures", "drawings", "between", "samples")}
    for path in folder.iterdir():
        with Image.open(path) as made:
            assert made.width > 300 and np.asarray(made.convert("L")).std() > 10, path.name


def test_signs_of_mathematics_in_a_caption_are_drawn_as_they_are(opened):
    from workbench.tasks.caption.pictures import shown

    figure = shown([np.zeros((8, 8, 3), np.uint8)] * 2, ["$\\frac{a}{", "<b>\tቀይ"], 2, "two")
    figure.savefig("/dev/null", format="png")
    assert len(figure.axes) == 2


def test_a_run_that_cannot_be_read_is_refused(tmp_path, run):
    with pytest.raises(Refused):
        open_run(tmp_path)
    assert checkpoint.find(run, "best").is_dir() and json.loads((run / "results.json").read_text())
