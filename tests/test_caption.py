"""Image + caption in real runs: trained, killed, on two processes, in Amharic, on strange captions.
Each fault of the original has a test that shows it cannot happen; its docstring begins with `Fault`."""
import math
import types

import numpy as np
import pytest
import runs as started
import torch
from PIL import Image
from runs import done, end, lines, same_bits, tensors

import workbench
from workbench.core.config import presets
from workbench.core.run.folder import metrics_of
from workbench.errors import Refused
from workbench.files import read_json, samples
from workbench.lab.run import launch
from workbench.parts.shared.contrastive import Temperature, contrastive
from workbench.tasks.caption import data as caption_data
from workbench.tasks.caption import task as caption
from workbench.tasks.caption.latent import caption_loss

SMALL = {"latent_dim": 16, "embedding_dim": 16, "init": "scratch",
         "pictures": {"widths": [8, 16], "hidden": 16},
         "captions": {"decoder_layers": 1, "heads": 2, "memory": 2, "hidden": 16}}
PLAIN = "loss.from_caption=0 model.captions.dropout=0 model.captions.word_dropout=0 data.augment=0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("caption")


@pytest.fixture(autouse=True)
def one_cache(own_runs, folder, monkeypatch):
    "Pictures are read and made small once for all tests of this module."
    monkeypatch.setenv("WORKBENCH_RUNS", str(folder / "runs"))


@pytest.fixture(scope="module")
def home(folder):
    "Forty-eight real pictures of two styles, with all columns; eight of them held out."
    home, pack = folder / "pictures", samples("emoji")
    head, *rows = (pack / "train.tsv").read_text(encoding="utf8").splitlines()
    (home / "images").mkdir(parents=True)
    for split, part in (("train", rows[100:148]), ("valid", rows[1000:1008]), ("test", rows[1500:1508])):
        (home / f"{split}.tsv").write_text("\n".join([head, *part]) + "\n", encoding="utf8")
        for row in part:
            name = row.split("\t")[0]
            (home / name).write_bytes((pack / name).read_bytes())
    return home


def config(home, overrides="", **more):
    base = {"task": "caption", "check": False, "trackers": [],
            "data": {"source": str(home), "size": 16, "column": "caption, keywords", "together": True,
                     "augment": 0.5, "max_length": 20},
            "model": SMALL, "generate": {"max_length": 6},
            "train": {"minutes": None, "max_steps": 8, "batch_size": 8, "lr": 3e-3, "log_every": 1,
                      "checkpoint_every": 3, "keep": None},
            "valid": {"every": 4, "batch_size": 6}}
    return presets.merge(presets.merge(base, more), presets.parse_overrides(overrides))


def whole(home, overrides="", **more):
    return presets.load(config(home, overrides, **more))


def go(folder, cfg, trap="", nproc=1):
    with started.surroundings(trap):
        return launch.start(cfg, "", folder, nproc)


def read(cfg):
    return caption_data.data(cfg, types.SimpleNamespace(assets=None))


@pytest.fixture(scope="module")
def straight(folder, home):
    "Eight steps, uninterrupted."
    return done(go(folder / "straight", config(home) | {"task": "trapped_caption"}))


# A run

def test_what_a_run_says_and_leaves(straight):
    """Losses by name, all scores of held-out rows beside a trivial answer, and a vocabulary that is loaded
    again."""
    first = lines(straight, "train")[0]
    assert first["loss"] == pytest.approx(first["image"] + first["caption"] + 0.5 * first["alignment"],
                                          rel=1e-5)
    nets, data = workbench.load(straight, "best")
    assert list(nets) == ["image_encoder", "caption_encoder", "image_decoder", "caption_decoder", "alignment"]
    tokens = data.own.tokens
    assert (straight / "assets" / "words.json").is_file() and tokens.inner.words[:4] == (
        "<PAD>", "<START>", "<END>", "<UNK>")
    result = read_json(straight / "results.json")
    assert {"cider", "bleu1", "image_to_caption@5", "mse"} <= set(str(result).replace("'", " ").split())


def test_the_vocabulary_is_as_large_as_it_is_reported(straight):
    "Fault: the original reported 8000 words where its tokenizer held 1266."
    nets, data = workbench.load(straight, "best")
    n = len(data.own.tokens.inner.words)
    assert data.facts["vocabulary"] == len(data.own.tokens) == n < 8000
    assert nets["caption_decoder"].head.out_features == n
    assert nets["caption_encoder"].reader.embed.num_embeddings == n
    captions = {c for row in data.datasets["train"].rows for c in row.captions}
    known = {w for c in captions for w in data.own.tokens.inner.decode(data.own.tokens.encode(c, 99)).split()}
    assert "<UNK>" not in known and "0.00%" in data.facts["tokens_train"]


@pytest.mark.parametrize("step", [2, 5])
def test_a_killed_run_goes_on_to_the_same_bits(straight, folder, home, step):
    run = go(folder / f"killed-{step}", config(home) | {"task": "trapped_caption"}, trap=str(step))
    assert end(run)["state"] == "died"
    done(started.again(run.folder))
    assert lines(run.folder) == lines(straight)
    assert same_bits(tensors(run.folder), tensors(straight))


# Two processes

def pairs(n=8):
    torch.manual_seed(0)
    keys = torch.arange(n)[:, None].repeat(1, 2)
    keys[5, 0], keys[7, 1] = keys[1, 0], keys[2, 1]  # one concept on two ranks, one caption on two ranks
    return torch.randn(n, 12), torch.randn(n, 12), keys


def contrast_of_rank(rank, where, cuts):
    "The loss and the gradients of one process, written to a file."
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{where}/meet", rank=rank, world_size=len(cuts))
    a, b, keys = (x[slice(*cuts[rank])].clone() for x in pairs())
    a.requires_grad_(), b.requires_grad_()
    scale = Temperature()
    loss = contrastive(a, b, scale(), keys, over_ranks=True).sum() / 8
    loss.backward()
    torch.save({"loss": loss.detach(), "a": a.grad, "b": b.grad, "scale": scale.log_scale.grad},
               f"{where}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("cuts", [[(0, 4), (4, 8)], [(0, 5), (5, 8)]])
def test_two_processes_contrast_as_one_does(tmp_path, cuts):
    "Loss and gradients of all rows, of the temperature too, also where the processes have unequal shares."
    a, b, keys = pairs()
    a.requires_grad_(), b.requires_grad_()
    scale = Temperature()
    loss = contrastive(a, b, scale(), keys).sum() / 8
    loss.backward()
    torch.multiprocessing.spawn(contrast_of_rank, (str(tmp_path), cuts), 2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert sum(f["loss"] for f in found) == pytest.approx(loss.item(), rel=1e-6)
    for name, whole_gradient in (("a", a.grad), ("b", b.grad)):
        torch.testing.assert_close(torch.cat([f[name] for f in found]), whole_gradient, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(sum(f["scale"] for f in found), scale.log_scale.grad, rtol=1e-5, atol=1e-7)


def test_a_run_on_two_processes_is_that_on_one(folder, home):
    "The same losses at an equal global batch, step by step, with what held-out rows cost."
    one = done(go(folder / "one", config(home, f"{PLAIN} train.batch_size=16 train.max_steps=4")))
    two = done(go(folder / "two", config(home, f"{PLAIN} train.batch_size=8 train.max_steps=4"), nproc=2))
    for a, b in zip(lines(one, "train"), lines(two, "train"), strict=True):
        for part in ("loss", "image", "caption", "alignment"):
            assert a[part] == pytest.approx(b[part], rel=2e-4), (a["step"], part)
    first, second = tensors(one, kinds=["net"]), tensors(two, kinds=["net"])
    assert max(float((first[k] - second[k]).abs().max()) for k in first) < 2e-3


# Losses

def batch_and_nets(home, overrides=""):
    cfg = whole(home, f"{PLAIN} {overrides}")
    data = read(cfg)
    nets = caption.nets(cfg, data, True)
    batch = data.collate([data.datasets["train"][i, 0] for i in range(8)])
    for net in nets.values():
        net.eval()
    ctx = types.SimpleNamespace(cfg=cfg, counts=data.counts(batch), training=False, data=data)
    return nets, batch, ctx


def test_every_tensor_learns(home):
    "Fault: the original's caption transformer was never called: 72 tensors, 16.8 of 108.7 million numbers."
    nets, batch, ctx = batch_and_nets(home)
    caption_loss(nets, batch, ctx)["loss"].backward()
    idle = [f"{net}.{name}" for net, module in nets.items() for name, p in module.named_parameters()
            if p.grad is None or not p.grad.any()]
    assert idle == []


def test_a_picture_lies_in_the_range_of_its_targets(home):
    "Fault: the original's Tanh gave (-1, 1) where its pictures lie in [0, 1]."
    nets, batch, ctx = batch_and_nets(home)
    made = nets["image_decoder"](100 * torch.randn(8, 16))
    assert 0 <= float(made.min()) and float(made.max()) <= 1
    assert 0 <= float(batch["image"].min()) and float(batch["image"].max()) <= 1


@pytest.mark.parametrize("kind", ["contrastive", "distance"])
def test_the_alignment_compares_the_two_sides(home, kind):
    "Fault: the original's `alignment` was a penalty on the norms, the same whichever caption a picture had."
    nets, batch, ctx = batch_and_nets(home, f"loss.kind={kind}")
    own = caption_loss(nets, batch, ctx)["alignment"]
    moved = caption_loss(nets, batch | {"image": batch["image"].roll(1, 0)}, ctx)["alignment"]
    assert abs(float(own - moved)) > 1e-4 and ("alignment" in nets) == (kind == "contrastive")


def test_pictures_of_one_concept_are_no_mistake_for_each_other(home):
    nets, batch, ctx = batch_and_nets(home)
    same = batch["same"].clone()
    same[:, 0] = 7
    assert float(caption_loss(nets, batch | {"same": same}, ctx)["alignment"]) == pytest.approx(0, abs=1e-6)
    assert float(caption_loss(nets, batch, ctx)["alignment"]) > 0.5


# Captions

def test_amharic_captions(folder, home):
    "Words of Ethiopic letters are learnt, written and read back."
    run = done(go(folder / "amharic", config(home, "data.column=am,am_keywords train.max_steps=3")))
    nets, data = workbench.load(run, "last")
    caption_of = data.datasets["train"].rows[0].caption
    ids = data.own.tokens.encode(caption_of, 20)
    assert data.own.tokens.decode(ids) == caption_of and any("ሀ" <= c <= "፿" for c in caption_of)
    assert data.own.tokens.unk not in ids


STRANGE = {"long": "word " * 1990, "letters": "x" * 9_990, "tabs": "a\tred\t\tapple",
           "html": "<b>a &amp; b</b><script>x</script>", "special": "<END> <PAD> <START>",
           "lines": "a\nred\napple", "marks": "?!…", "chinese": "红苹果", "rtl": "تفاحة حمراء",
           "emoji": "🍎 apple"}


@pytest.mark.parametrize("tokenizer", ["word", "subword"])
def test_captions_that_are_no_captions(folder, tmp_path, tokenizer):
    "Of nearly 10,000 characters, with tabs, HTML, and special tokens spelt out: cut, trained on, written."
    home = tmp_path / "strange"
    home.mkdir()
    draw = np.random.default_rng(0)
    for i in range(3):
        for name, text in STRANGE.items():
            Image.fromarray(draw.integers(0, 256, (20, 20, 3), np.uint8)).save(home / f"{name}{i}.png")
            (home / f"{name}{i}.txt").write_text(f"{text} {i}", encoding="utf8")
    cfg = whole(home, f"data.column=caption model.tokenizer={tokenizer}")
    data = read(cfg)
    rows = {row.uid: data.datasets["train"][i, 0] for i, row in enumerate(data.datasets["train"].rows)}
    assert all(len(item["ids"]) <= 20 and item["ids"][-1] == data.own.tokens.end for item in rows.values())
    for uid, item in rows.items():
        inside = item["ids"][1:-1]
        assert data.own.tokens.end not in inside and data.own.tokens.start not in inside, uid
    run = done(go(tmp_path / "run", config(home, f"data.column=caption model.tokenizer={tokenizer} "
                                                 "train.max_steps=3")))
    assert all(math.isfinite(row["loss"]) for row in metrics_of(run) if "loss" in row)


def test_one_of_several_captions_is_drawn_each_epoch(home):
    data = read(whole(home, "data.together=false data.augment=0"))
    train = data.datasets["train"]
    i = next(i for i, row in enumerate(train.rows) if len(row.captions) > 1)
    drawn = {train[i, epoch]["read"] for epoch in range(40)}
    assert drawn == set(train.rows[i].captions)
    assert all(train[i, e]["read"] == train[i, e]["caption"] for e in range(5))


def test_styles_that_are_trained(home):
    data = read(whole(home, "data.styles=[noto]"))
    assert {row.style for row in data.datasets["train"].rows} == {"noto"}
    with pytest.raises(Refused, match="data.styles names crayon.*noto, twemoji"):
        read(whole(home, "data.styles=[crayon]"))


# Models of the hub, and the presets

def test_models_of_the_hub_read_and_write(folder, home, tmp_path):
    """A vision transformer and GPT-2 of a few thousand numbers, from local configurations, trained and loaded
    again."""
    from transformers import GPT2Config, ViTConfig

    ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16,
              patch_size=8).save_pretrained(tmp_path / "vit")
    GPT2Config(n_embd=16, n_layer=1, n_head=2).save_pretrained(tmp_path / "gpt2")
    cfg = config(home, f"model.image_encoder={tmp_path}/vit model.caption_decoder={tmp_path}/gpt2 "
                       "train.max_steps=3")
    for key in ("decoder_layers", "heads"):  # GPT-2 has its own
        del cfg["model"]["captions"][key]
    run = done(go(folder / "hub", cfg))
    nets, data = workbench.load(run, "last")
    assert nets["caption_decoder"].crosses and nets["caption_decoder"].vocab == len(data.own.tokens)
    assert type(nets["image_encoder"].model).__name__ == "ViTModel"


def test_the_size_of_the_document_is_reconciled():
    "108,708,035 numbers of the document, without a caption encoder; ours has one, and more memory."
    cfg = presets.load("caption_full", "data.source=samples")
    m, vocab = cfg.model, 8000
    with torch.device("meta"):
        own = types.SimpleNamespace(own=types.SimpleNamespace(tokens=range(vocab)), assets=None)
        nets = caption.nets(cfg, own, True)
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    memory = (m.captions.memory - 1) * (m.captions.hidden + 1) * m.embedding_dim
    norms = 2 * 2 * m.embedding_dim  # behind the memory, and behind the decoder
    assert sizes["image_encoder"] == 7_742_272 and sizes["image_decoder"] == 74_717_507
    assert (sizes["image_encoder"] + sizes["image_decoder"] + sizes["caption_decoder"] - memory - norms
            == 108_708_035)
    assert sum(sizes.values()) == 115_169_732


@pytest.mark.parametrize("name", ["caption_tiny", "caption_small", "caption_full", "caption_vit_gpt2"])
def test_presets_are_whole(name):
    cfg = presets.load(name)
    assert (cfg.loss.image, cfg.loss.caption, cfg.loss.alignment) == (1.0, 1.0, 0.5)
    assert cfg.task == "caption" and cfg.loss.kind == "contrastive"


def test_a_plan_names_what_is_unknown(home):
    found = read(whole(home)).facts
    assert "unknown" in found["tokens_valid"] and "concepts" in found["pictures"]["train"]
