"""Translation end to end: pairs, tokens and mixing, every family, runs killed, shared and resumed."""
import math
import signal
import types
from pathlib import Path

import numpy as np
import phrases
import pytest
import runs as started
import torch
from runs import done, end, lines, same_bits, tensors
from test_resume import close
from test_seq2seq import FAMILIES

from workbench.core.config import presets
from workbench.core.data.mixing import quotas
from workbench.core.run import checkpoint
from workbench.core.run.folder import status_of
from workbench.core.setup.state import batch_plan, make_accelerator
from workbench.core.stages.stages import stages
from workbench.core.step.evaluate import predict_rows
from workbench.core.step.optim import freeze, named_parameters, set_modes
from workbench.core.step.step import build, optimiser_step, require_gradients
from workbench.core.task import Ctx
from workbench.errors import Refused
from workbench.files import read_json
from workbench.parts.text import model_config, pretrained
from workbench.parts.text.seq2seq import start_id
from workbench.parts.text.tokenizer import save_tokenizer, train_tokenizer
from workbench.parts.vocabulary.packs import extend
from workbench.parts.vocabulary.vocabulary import Vocabulary
from workbench.tasks.translate import task as translate

TINY = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
PRESET = {
    "preset": "mine", "task": "translate", "check": False, "trackers": [],
    "data": {"source": "", "max_length": 40}, "model": {"name": "universal-tiny", "init": "scratch",
                                                        "vocab_size": 1500, "params": TINY},
    "generate": {"num_beams": 1, "max_length": 12},
    "train": {"max_steps": 6, "minutes": None, "batch_size": 8, "lr": 1e-2, "log_every": 1,
              "checkpoint_every": 2,
              "scheduler": {"warmup": 1}},
    "valid": {"every": 5, "batch_size": 8, "metric": "chrf_mean"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("translate")


@pytest.fixture(autouse=True)
def one_cache(own_runs, folder, monkeypatch):
    "Corpora, packs and tokens are made once for all tests of this module."
    monkeypatch.setenv("WORKBENCH_RUNS", str(folder))


@pytest.fixture(scope="module")
def good(folder):
    return phrases.corpus(folder / "good")


def config(home, overrides="", base=PRESET):
    return presets.load(presets.merge(base, {"data": {"source": str(home)}}), overrides)


def data_of(cfg, assets=None):
    return translate.task.data(cfg, types.SimpleNamespace(assets=assets))


def refusal(cfg, assets=None):
    "The message with which data or nets are refused."
    with pytest.raises(Refused) as caught:
        translate.task.nets(cfg, data_of(cfg, assets), True)
    return str(caught.value)


# Pairs

def test_each_pair_is_read_as_it_is_asked_for(good):
    d = data_of(config(good, "data.pairs=[de-en,en-am]"))
    assert {s: len(r) for s, r in d.datasets.items()} == {"train": 72, "valid": 12, "test": 12}
    rows = [d.datasets["train"][i, 0] for i in range(72)]
    assert {r["pair"] for r in rows} == {"de-en", "en-am"} and len(set(d.uids["train"])) == 72
    for r in rows:
        source, target = r["pair"].split("-")
        said = phrases.sentences(source).index(r["source_text"])
        assert r["target_text"] == phrases.sentences(target)[said]
        ids = [d.own.tokenizer.convert_ids_to_tokens(r[k].tolist()) for k in ("source", "labels")]
        assert [x[0] for x in ids] == [f"__{source}__",
                                       f"__{target}__"] and [x[-1] for x in ids] == ["</s>"] * 2
        assert d.own.tokenizer.decode(r["labels"], skip_special_tokens=True) == r["target_text"]
    assert list(d.texts["valid"]) == [r["target_text"]
                                      for r in (d.datasets["valid"][i, 0] for i in range(12))]


def test_both_ways_adds_the_reverse_of_each_pair(good):
    one, both = (data_of(config(good, f"data.both_ways={word}")) for word in ("false", "true"))
    assert len(both.datasets["train"]) == 2 * len(one.datasets["train"])
    turned = {(r["target_text"], r["source_text"])
              for r in (both.datasets["train"][i, 0] for i in range(108, 216))}
    assert turned == {(r["source_text"], r["target_text"])
                      for r in (one.datasets["train"][i, 0] for i in range(108))}
    assert (both.lengths["train"][108:] == one.lengths["train"][:, ::-1]).all()
    assert len(set(both.uids["train"])) == 216


@pytest.mark.parametrize("pairs, words", [
    ("[en-fr]", "the corpus has no `en-fr`"), ("[en-dee]", "did you mean `en-de`"),
    ("[ende]", "write the codes of two languages"), ("[en-de,en-de]", "`en-de` stands twice"),
    ("[]", "at least 1")])
def test_bad_pairs_are_named(good, pairs, words):
    with pytest.raises(Refused) as caught:
        data_of(config(good, f"data.pairs={pairs}"))
    assert words in str(caught.value)


def test_a_text_in_a_script_without_a_pack_is_one_sentence(folder, good):
    data_of(config(good))  # packs of Latin, Ethiopic and Cyrillic
    home = phrases.corpus(folder / "greek", ["en-de"])
    rows = [("the house.", "το σπίτι."), *[("a car.", "ein Auto.")] * 9]
    phrases.write(home / "test" / "en-de.tsv", rows)
    off = "prepare.scripts=0"  # else the preparation has left the row out
    message = refusal(config(home, off))
    assert "1 of 44 rows" in message and "the target" in message and "written in Greek" in message
    assert "no pack 'greek'" in message
    d = data_of(config(home, f"{off} data.max_rejected=0.1"))
    assert len(d.datasets["test"]) == len(d.uids["test"]) and len(d.rejected) == 1
    assert d.rejected[0]["uid"] == "test/en-de.tsv:2"
    assert len(data_of(config(home, f"{off} data.max_rejected=0.1 data.pairs=[de-en]")).rejected) == 1


def test_texts_that_are_cut_are_counted(good):
    whole = data_of(config(good))
    most = int(np.median(whole.lengths["train"][:, 1]))
    d = data_of(config(good, f"data.max_length={most}"))
    rows = [d.datasets["train"][i, 0] for i in range(len(d.datasets["train"]))]
    assert max(len(r[k]) for r in rows for k in ("source", "labels")) == most
    long = whole.lengths["train"][:, 1] > most  # a target that is cut does not teach that it ends there
    assert [bool(r["labels"][-1] != 1) for r in rows] == long.tolist() and long.any() and not long.all()
    assert all(r["source"][-1] == 1 for r in rows)
    cut = int((whole.lengths["train"] > most).any(1).sum())
    assert d.facts["rows_cut_at_max_length"]["train"] == f"{cut:,} of 108"
    assert whole.facts["rows_cut_at_max_length"] == 0


def test_tokens_lie_in_mapped_files(good):
    d = data_of(config(good))
    encoded = d.datasets["train"].encoded
    assert all(isinstance(t, np.memmap) and not t.flags.writeable for t in encoded.tokens.values())
    assert (d.uids["train"][3] == d.datasets["train"].uid(3)
            and d.uids["train"][-2:] == list(d.uids["train"])[-2:])


# Mixing

def test_shares_follow_the_temperature(folder):
    home = phrases.corpus(folder / "uneven", counts={"en-am": 4, "en-ru": 9})
    d = data_of(config(home, "data.temperature=5"))
    kinds = d.datasets["train"].index.pair
    counts, wanted = np.bincount(kinds), quotas(np.bincount(kinds), 5)
    assert sorted(counts) == [4, 9, 36] and wanted.sum() == 49
    weight = counts ** 0.2
    assert np.abs(wanted - 49 * weight / weight.sum()).max() < 1
    setup = types.SimpleNamespace(data=d, cfg=config(home),
                                  accelerator=types.SimpleNamespace(num_processes=1),
                                  job=types.SimpleNamespace(first_world_size=1),
                                  stage=stages(config(home))[0])
    plan = batch_plan(setup)
    for epoch in range(3):
        rows = np.concatenate([slot for step in plan(epoch) for slot in step])
        assert (np.bincount(kinds[rows]) == wanted).all() and sorted(rows) == sorted(d.drawn(0, epoch))
    seen = np.bincount(np.concatenate([d.drawn(0, epoch) for epoch in range(8)]), minlength=49)
    assert all(seen[kinds == k].max() - seen[kinds == k].min() <= 1 for k in range(3))


def test_split_pieces_say_the_same(good):
    plain, dropped = (data_of(config(good, f"data.subword_dropout={p}")) for p in (0, 0.5))
    tok, longer = dropped.own.tokenizer, 0
    for i in range(20):
        a, b, c = (plain.datasets["train"][i, 0], dropped.datasets["train"][i, 0],
                   dropped.datasets["train"][i, 1])
        assert tok.decode(b["source"], skip_special_tokens=True) == a["source_text"]
        assert b["source"].tolist() == dropped.datasets["train"][i, 0]["source"].tolist()
        longer += len(b["source"]) > len(a["source"]) or c["source"].tolist() != b["source"].tolist()
    assert longer > 5
    a, b = (d.datasets["valid"][0, 0]["source"].tolist() for d in (plain, dropped))
    assert a == b  # in training only


# Scores

def test_scores_are_of_each_pair_and_of_their_mean(good):
    import sacrebleu

    d = data_of(config(good))
    rows = [{"uid": u, "pair": p, "reference": t, "hypothesis": t if p == "en-de" else t[:4]}
            for u, p, t in zip(d.uids["test"], d.own.pairs["test"], d.texts["test"])]
    found = translate.score(rows, d)
    each = {p: [r for r in rows if r["pair"] == p] for p in ("en-am", "en-de", "en-ru")}
    for p, some in each.items():
        theirs = sacrebleu.corpus_chrf([r["hypothesis"] for r in some],
                                       [[r["reference"] for r in some]]).score
        assert found[f"chrf/{p}"] == pytest.approx(theirs)
    assert found["chrf/en-de"] == 100 > found["chrf"] > found["chrf/en-am"]
    assert found["chrf_mean"] == pytest.approx(sum(found[f"chrf/{p}"] for p in each) / 3)


def test_the_baseline_is_the_better_of_copying_and_a_constant(folder):
    home = phrases.corpus(folder / "alike", ["en-de", "en-am"])
    phrases.write(home / "test" / "en-de.tsv", [("Auto 7.", "Auto 8."), ("Haus 6.", "Haus 5.")])
    d = data_of(config(home))
    found = translate.baseline(d, "test")
    copied = [{"pair": p, "reference": t, "hypothesis": s}
              for p, t, s in zip(d.own.pairs["test"], d.texts["test"], d.own.sources["test"])]
    assert found["chrf/en-de"] == pytest.approx(translate.score(copied,
                                                                d)["chrf/en-de"]) and found["chrf/en-de"] > 30
    assert found["chrf/en-am"] > translate.score(copied, d)["chrf/en-am"]  # a constant is better there


# Vocabulary

def test_a_vocabulary_of_another_version_is_refused(good, tmp_path):
    d = data_of(config(good))
    d.save(tmp_path / "assets")
    old = Vocabulary.load(tmp_path / "assets" / "vocabulary")
    extend(old, "el", ["το σπίτι είναι μεγάλο"] * 5).save(tmp_path / "newer")
    old.save(tmp_path / "same")
    kept = data_of(config(good, f"data.vocabulary={tmp_path / 'same'}"), tmp_path / "assets")
    assert kept.own.tokens.vocabulary.checksum == old.checksum
    message = refusal(config(good, f"data.vocabulary={tmp_path / 'newer'}"), tmp_path / "assets")
    assert "data.vocabulary is version 2" in message and f"version 1 ({old.checksum})" in message
    alone = data_of(config(good, f"data.vocabulary={tmp_path / 'newer'}"))
    assert alone.facts["tokenizer"]["version"] == 2 and "el" in alone.own.tokens.vocabulary.languages


# Families

CODES = {"mbart": {"en": "en_XX", "de": "de_DE"}, "m2m100": {"en": "__en__", "de": "__de__"},
         "nllb": {"en": "eng_Latn", "de": "deu_Latn"}}
KINDS = ["t5", "mt5", "bart", "mbart", "m2m100", "nllb", "pegasus", "marian", "bert-gpt2"]


@pytest.fixture(scope="module")
def families(folder):
    "A local folder of every family, as save_pretrained writes it: random weights and a tokenizer."
    out, texts = {}, phrases.sentences("en") + phrases.sentences("de")
    for family in KINDS:
        tok = train_tokenizer(texts, "char", languages=tuple(CODES.get(family, {}).values()))
        torch.manual_seed(3)
        fitted = model_config.fit_config(FAMILIES[family], len(tok), tok.pad_token_id, tok.eos_token_id,
                                         tok.bos_token_id)
        if family in CODES:
            fitted["decoder_start_token_id"] = tok.eos_token_id
        out[family] = folder / "families" / family
        pretrained.build_seq2seq(fitted).save_pretrained(out[family])
        save_tokenizer(tok, out[family])
    return out


def family_config(good, families, family, more=""):
    codes = {k: v.strip("_") for k, v in CODES.get(family, {}).items()}
    base = presets.merge(PRESET, {"model": {"params": {}}, "data": {"max_length": 39}})
    base["model"].pop("params")
    base["model"].pop("vocab_size")
    return presets.load(presets.merge(base,
                                      {"data": {"source": str(good), "pairs": ["en-de"], "both_ways": True},
                                             "model": {"name": str(families[family]), "init": "pretrained",
                                                       "dropout": 0.0, "languages": codes}}), more)


def trained(cfg, steps=2):
    "Nets of a configuration after a few steps of the loop's own."
    d = data_of(cfg)
    nets = translate.task.nets(cfg, d, True)
    stage, accelerator = stages(cfg)[0], make_accelerator(cfg, Path("unused"))
    params = named_parameters(nets)
    on = freeze(nets, {n for n, p in params.items() if p.requires_grad})
    before = {n: p.detach().clone() for n, p in params.items()}
    active = build(stage, nets, translate.task.objectives(cfg), on, steps, accelerator)
    set_modes(nets, True)
    batch, losses = d.collate([d.datasets["train"][i, 0] for i in (0, 1, 40, 41)]), []
    for step in range(steps):
        ctx = Ctx(cfg=cfg, data=d, step=step, counts=d.counts(batch))
        losses.append(float(optimiser_step(active, params, [batch], ctx, accelerator, 1.0,
                                           require_gradients)["loss"]))
    moved = {n for n, p in params.items() if not torch.equal(p, before[n])}
    return types.SimpleNamespace(cfg=cfg, data=d, nets=nets, losses=losses, moved=moved, on=on, batch=batch)


@pytest.mark.parametrize("family", KINDS)
def test_a_family_trains_and_translates(good, families, family):
    t = trained(family_config(good, families, family))
    assert all(map(math.isfinite, t.losses)) and t.losses[1] < t.losses[0]
    assert t.moved == t.on  # the encoder's own token table is among them
    rows = predict_rows(translate.task, t.nets, t.data, "test", Ctx(cfg=t.cfg, data=t.data, training=False),
                        4)
    assert {r["pair"] for r in rows} == {"en-de",
                                         "de-en"} and all(isinstance(r["hypothesis"], str) for r in rows)
    if family in CODES:
        tok = t.data.own.tokenizer
        wanted = [tok.convert_tokens_to_ids(CODES[family][p.split("-")[1]]) for p in t.batch["pair"]]
        assert t.batch["labels"][:, 0].tolist() == wanted and len(set(wanted)) == 2


def test_every_translation_begins_with_its_language(good, families, monkeypatch):
    "The rows of a batch may go into different languages."
    from workbench.parts.decoding import search

    t, seen, kept = trained(family_config(good, families, "nllb"), steps=1), {}, search.search

    def seen_search(model, hidden, mask, begin, *more, **named):
        seen["begin"] = begin
        return kept(model, hidden, mask, begin, *more, **named)

    monkeypatch.setattr(search, "search", seen_search)
    with torch.no_grad():
        translate.predict(t.nets, t.batch, Ctx(cfg=t.cfg, data=t.data, training=False))
    wanted = [t.data.own.frames[p].first[0] for p in t.batch["pair"]]
    assert seen["begin"][:, -1].tolist() == wanted and start_id(t.nets["translator"]) == 1


@pytest.mark.parametrize("family, words", [
    ("nllb", ["no language token 'eng'", "nearest: eng_Latn", "model.languages={en: CODE}"]),
    ("mbart", ["no language token 'eng'", "en_XX"])])
def test_a_language_that_a_model_calls_otherwise_is_one_sentence(good, families, family, words):
    cfg = family_config(good, families, family)
    model = cfg.model.model_copy(update={"languages": {"en": "eng"}})
    message = refusal(cfg.model_copy(update={"model": model}))
    assert all(word in message for word in words) and message.count("\n") == 0


def test_adapters_alone_train(good, families):
    t = trained(family_config(good, families, "m2m100", "model.lora.r=4 model.lora.rslora=true"), steps=3)
    assert t.moved == t.on and t.on and all("lora_" in n for n in t.on)


# Real runs

HARD = "model.dropout=0.1 train.accumulate=2 train.ema=0.9 data.temperature=3 data.both_ways=true " \
       "data.subword_dropout=0.2 train.batch_size=20"


def go(home, cfg=None, trap="", nproc=1):
    "Start a run of a configuration, or resume the one in the folder."
    if cfg is None:
        return started.again(home, trap=trap)
    return started.go(home, "", trap, nproc, cfg.model_dump(mode="json") | {"task": "trapped_translate"})


@pytest.fixture(scope="module")
def made(folder, good):
    "All runs of this module, two at a time: name -> folder."
    tiers = {"train": {"max_steps": None}, "pipeline": {"steps": [
        {"name": "near", "data": {"pairs": ["en-de"]}, "train": {"max_steps": 2}},
        {"name": "far", "data": {"pairs": ["en-de", "en-am"]}, "train": {"max_steps": 2}}]}}
    equal = "model.dropout=0 train.max_steps=3 data.temperature=3"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(folder))
        data_of(config(good))  # a corpus is prepared by one process
        straight = go(folder / "straight", config(good, HARD))
        stopped = go(folder / "killed", config(good, HARD), trap="3")
        out = {"straight": done(straight)}
        assert end(stopped)["state"] == "died" and stopped.process.returncode == -signal.SIGKILL
        assert checkpoint.find(stopped.folder).name == checkpoint.checkpoint_name(2)
        again, one = go(stopped.folder), go(folder / "one", config(good, f"{equal} train.accumulate=2"))
        out |= {"killed": done(again), "one": done(one)}
        two = go(folder / "two", config(good, equal), nproc=2)
        stepwise = go(folder / "tiers", config(good, "", presets.merge(PRESET, tiers)))
        return out | {"two": done(two), "tiers": done(stepwise)}


def test_a_killed_run_is_the_run_that_was_never_killed(made):
    "In the middle of an epoch, with mixing, dropout, split pieces and averaged weights."
    one, two = made["straight"], made["killed"]
    steps = read_json(one / "plan.json")["batches"]["steps_per_epoch"]
    assert status_of(two)["attempt"] == 2 and 3 < steps
    assert lines(two) == lines(one) and len(lines(one, "train")) == 6
    assert same_bits(tensors(two), tensors(one)) and same_bits(tensors(two, "best"), tensors(one, "best"))
    assert read_json(two / "results.json") == read_json(one / "results.json")


def test_two_processes_equal_one(made):
    one, two = made["one"], made["two"]
    assert read_json(two / "plan.json")["processes"] == 2
    close(lines(one), lines(two))
    rows = [(r / "predictions/test.csv").read_text().splitlines() for r in (one, two)]
    assert rows[0] == rows[1] and len(rows[0]) > 2


def test_tiers_of_languages_are_stages(made):
    "The packs of a later tier are there from the beginning, so no id moves."
    run = made["tiers"]
    plan = read_json(run / "plan.json")
    assert [s["data"].get("pairs") for s in plan["stages"]] == [["en-de"], ["en-de", "en-am"]]
    vocabulary = Vocabulary.load(run / "assets" / "vocabulary")
    assert {"de", "am"} <= set(vocabulary.languages) and "ethiopic" in vocabulary.packs
    assert "ru" not in vocabulary.languages
    assert {row["stage"] for row in lines(run, "train")} == {"near", "far"}


def test_a_run_says_what_it_was_made_of(made):
    plan = read_json(made["straight"] / "plan.json")
    assert set(plan["data"]["pairs"]) == {"en-am", "am-en", "en-de", "de-en", "en-ru", "ru-en"}
    results = read_json(made["straight"] / "results.json")
    assert "chrf/en-am" in str(results) and "chrf_mean" in str(results)
