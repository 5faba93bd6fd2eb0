"""Back-translation is a flow of commands: use a run backwards, prepare what it wrote as synthetic, train on
both."""
import pytest
from bilingual import config, corpus, pairs
from runs import end, go

from workbench.core.stages.stages import complete, stages
from workbench.core.task import get
from workbench.lab import cli
from workbench.parts.corpus.store import open_corpus
from workbench.tasks.translate.preparing import prepare
from workbench.tasks.translate.task import data as data_of

TEXTS = [am for _, am in pairs("en-am", 30, seed=7)]  # one language alone: what there is much of
WRITTEN = [en for en, _ in pairs("en-am", 30, seed=7)]  # what a good model would write of it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("bt") / "parallel", (120, 12, 12), ("en-am",))


def written(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf8")
    return str(path)


@pytest.mark.skipif(get("translate").use is None, reason="translation has no `use` yet")
def test_a_run_backwards_writes_a_line_for_each_line(folder, tmp_path):
    run = tmp_path / "am-en"
    over = "data.pairs=[am-en] train.max_steps=2 valid.final=[] generate.max_length=8"
    assert end(go(run, over, base=config(folder)), 400)["state"] == "finished"
    mono, out = written(tmp_path / "mono.am.txt", TEXTS), tmp_path / "mono.en.txt"
    assert cli.main(["use", str(run), mono, "--to", "en", "--out", str(out)]) == 0
    assert len(out.read_text(encoding="utf8").splitlines()) == len(TEXTS)


def test_synthetic_rows_are_trained_on_are_marked_and_never_held_out(folder, tmp_path):
    sources = [{"path": str(folder), "pair": "en-am"},
               {"source": written(tmp_path / "mono.en.txt", WRITTEN), "pair": "en-am", "split": "train",
                "target": written(tmp_path / "mono.am.txt", TEXTS), "synthetic": True}]
    out = tmp_path / "both"
    prepare(complete(config(folder, prepare={"sources": sources, "out": str(out)})), lambda said: None)
    rows = {split: list(open_corpus(out).rows(split)) for split in ("train", "valid", "test")}
    made = [row for row in rows["train"] if row.synthetic]
    assert {(r.source, r.target) for r in made} == set(zip(WRITTEN, TEXTS))
    assert len(rows["train"]) == 120 + len(made) and not any(r.synthetic for s in ("valid", "test")
                                                             for r in rows[s])

    cfg = complete(config(out))
    data = data_of(cfg, stages(cfg)[0])
    tok, train = data.own.tokenizer, data.datasets["train"]
    begins = {tuple(tok.convert_ids_to_tokens(train[i, 0]["source"][:2])) for i in range(len(train))
              if train[i, 0]["source_text"] in WRITTEN}
    assert begins == {("__en__", "<bt>")}
    others = [train[i, 0] for i in range(len(train)) if train[i, 0]["source_text"] not in WRITTEN]
    assert all(tok.convert_tokens_to_ids("<bt>") not in item["source"] for item in others)
    batch = data.collate([train[i, 0] for i in range(len(train))])
    assert set(data.text_pairs(batch)) >= set(zip(WRITTEN, TEXTS))  # the mark is no part of the text
