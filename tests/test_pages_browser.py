"The pages of preparing and of bootstrap, and the flowchart's station, as a person uses them in a browser."
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from browser import browser, chromium, jupyter, open_notebook
from workbench.parts.text.tokenizer import train_tokenizer

pytest.importorskip("playwright.sync_api")
# a notebook's page has once shown nothing for two minutes on a busy machine: then it is tried again
pytestmark = [pytest.mark.skipif(not chromium(), reason="no chromium here"), pytest.mark.flaky(reruns=2)]
home = Path(__file__).parents[1]
ROWS = [(f"The house has {i} doors and a roof.", f"Das Haus hat {i} Türen und ein Dach.") for i in range(60)]


@pytest.fixture
def folder(tmp_path):
    "Notebooks, and beside them raw texts: good rows, one without a target, one twice."
    raw = tmp_path / "notebooks" / "raw"
    raw.mkdir(parents=True)
    rows = [f"{s}\t{t}\n" for s, t in [*ROWS, ("No target.", ""), ROWS[0]]]
    (raw / "texts.en-de.tsv").write_text("".join(rows), encoding="utf8")
    return tmp_path / "notebooks"


def with_parameters(folder, name, **values):
    "Copy a notebook; a person has edited its first cell."
    tree = json.loads((home / "nbs" / name).read_text(encoding="utf8"))
    cell = next(c for c in tree["cells"] if "parameters" in c["metadata"].get("tags", []))
    cell["source"] = "".join(cell["source"]) + "".join(f"\n{k} = {v!r}" for k, v in values.items())
    (folder / name).write_text(json.dumps(tree), encoding="utf8")


def pictured(page, name):
    "A picture of the page where a person asks for one."
    if where := os.environ.get("WORKBENCH_TEST_PICTURES"):
        page.screenshot(path=f"{where}/{name}.png")


def test_raw_texts_are_prepared_by_a_form(folder, tmp_path):
    shutil.copy(home / "nbs/prepare.ipynb", folder)
    with jupyter(folder, WORKBENCH_RUNS=str(tmp_path / "runs")) as server, browser() as context:
        page = open_notebook(context, server, "prepare.ipynb")
        page.get_by_label("files", exact=True).fill("nothing.tsv")
        page.get_by_role("button", name="Prepare").click()
        page.wait_for_selector("text=nothing.tsv")
        pictured(page, "prepare_refused")
        page.get_by_label("files", exact=True).fill("raw/texts.en-de.tsv")
        page.get_by_label("out", exact=True).fill("corpora/own")
        page.get_by_role("button", name="Prepare").click()
        page.get_by_text("rows of en-de").first.wait_for(timeout=60_000)
        page.locator("tr", has_text="duplicate").first.wait_for()  # the table of the filters
        page.locator(".jp-OutputArea-output img").first.wait_for()
        pictured(page, "prepare_done")
        assert "Traceback" not in page.content()
    assert (folder / "corpora/own/rejected.csv").is_file()


@pytest.fixture
def settings(folder):
    "The overrides of a small model, and a small BERT that it begins with."
    tok = train_tokenizer([s for s, _ in ROWS], "unigram", 60)
    tok.save_pretrained(folder / "bert")
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tok), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=24)).save_pretrained(folder / "bert")
    params = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
              "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    return " ".join([f"data.source={folder}/raw data.pairs=[en-de] model.vocab_size=700",
                     f"bootstrap.source={folder}/bert bootstrap.out={folder}/models",
                     *(f"model.params.{k}={v}" for k, v in params.items())])


def test_a_model_is_bootstrapped_on_its_page(folder, settings, tmp_path):
    with_parameters(folder, "bootstrap.ipynb", overrides=settings)
    with jupyter(folder, WORKBENCH_RUNS=str(tmp_path / "runs")) as server, browser(height=1900) as context:
        page = open_notebook(context, server, "bootstrap.ipynb")
        page.wait_for_selector(".jp-OutputArea-output img", timeout=120_000)
        pictured(page, "bootstrap")
        assert "encoder self-attention" in page.content() and "Traceback" not in page.content()
    assert (folder / "models/report.json").is_file()


def test_the_station_of_bootstrap_shows_its_shares(folder, settings, tmp_path):
    with_parameters(folder, "flowchart.ipynb", config="universal_tiny", overrides=settings)
    with jupyter(folder, WORKBENCH_RUNS=str(tmp_path / "runs")) as server, browser(height=1900) as context:
        page = open_notebook(context, server, "flowchart.ipynb")
        page.locator('g.box[data-station="bootstrap"]').click(timeout=90_000)
        page.locator("button.jupyter-button:visible", has_text=re.compile(r"^\s*Run\s*$")).click()
        page.wait_for_selector("text=Write this into the overrides", timeout=120_000)
        pictured(page, "station")
        assert "encoder self-attention" in page.content() and "Traceback" not in page.content()
