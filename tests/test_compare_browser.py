"compare.ipynb in a real JupyterLab in a real chromium: runs are chosen, every section follows."
import shutil
from pathlib import Path

import pytest

from browser import browser, chromium, jupyter, open_notebook
from runs import done, go

pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(not chromium(), reason="no chromium here")
home = Path(__file__).parents[1]


@pytest.fixture
def page(tmp_path):
    for name, lr in (("slow", "1e-3"), ("fast", "1e-1"), ("third", "1e-2")):
        done(go(tmp_path / "runs" / name, f"train.max_steps=6 valid.every=3 train.lr={lr} valid.metric=error "
                                          "valid.mode=min"))
    (tmp_path / "notebooks").mkdir()
    shutil.copy(home / "nbs/compare.ipynb", tmp_path / "notebooks")
    with jupyter(tmp_path / "notebooks",
                 WORKBENCH_RUNS=str(tmp_path / "runs")) as server, browser() as context:
        yield open_notebook(context, server, "compare.ipynb")


def test_sections_follow_the_choice(page, tmp_path):
    page.wait_for_selector("svg[aria-label=error]", timeout=60_000)
    runs, field = page.locator("select[multiple]"), lambda name: page.get_by_label(name, exact=True)
    assert sorted(runs.locator("option").all_inner_texts()) == ["fast", "slow", "third"]
    assert page.locator("svg[aria-label=loss] g").count() == 4  # two runs, training and validation
    runs.select_option(label=["fast", "slow", "third"])
    page.wait_for_function("() => document.querySelectorAll('svg[aria-label=loss] g').length === 6")
    page.wait_for_selector("tr:has-text('train.lr'):has-text('0.001'):has-text('0.1'):has-text('0.01')")
    field("Axis").select_option(label="minutes of training")
    page.wait_for_selector("svg:has-text('minutes of training')")
    page.wait_for_selector("pre:has-text('step 6')")
    field("Previews").select_option(label="step 3")
    page.wait_for_selector("pre:has-text('step 3')")
    field("Filter").fill("nothing of that name")
    page.wait_for_selector("text=No run fits.")
    field("Table").fill(str(tmp_path / "all.csv"))
    page.get_by_role("button", name="Write table").click()
    page.wait_for_selector("text=3 runs:")
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 4
    runs.select_option(label=[])
    page.wait_for_selector("text=No run is chosen.")
    assert "Traceback" not in page.content()
