"""Pictures of the flowchart for the README, taken from the real thing: `python bench/screenshots.py`.
A JupyterLab, a browser, the tiny preset; light and dark. They are written to nbs/images/."""
import os
import shutil
import sys
import tempfile
from pathlib import Path

home = Path(__file__).parents[1]
sys.path.insert(0, str(home / "tests"))
import browser  # noqa: E402

alone = """() => { jupyterapp.shell.collapseLeft(); jupyterapp.shell.collapseRight();
  document.querySelectorAll('.jp-Cell').forEach(c => {
    if (!c.querySelector('.wb-flow')) c.style.display = 'none';
    else c.querySelector('.jp-Cell-inputWrapper').style.display = 'none'; }) }"""


def press(page, name):
    page.locator("button.jupyter-button:visible", has_text=name).first.click()


def walk(page):
    "From the plan to a training on its way."
    page.wait_for_selector(".wb-flow .box")
    page.locator('g[data-station="quick test"]').click()
    press(page, "Run up to here")
    page.wait_for_selector('g[data-station="quick test"][data-state=passed]', timeout=120_000)
    page.locator('g[data-station="training"]').click()
    press(page, "Start training")
    page.wait_for_selector('g[data-station="training"][data-state=running]', timeout=60_000)


def take(page, name, folder):
    page.evaluate(alone)
    page.wait_for_timeout(1500)
    page.locator(".jp-Notebook .jp-OutputArea:has(.wb-flow)").first.screenshot(path=str(folder
                                                                                        / f"{name}.png"))


def main(folder):
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        (scratch := Path(scratch) / "nbs").mkdir()
        shutil.copy(home / "nbs/flowchart.ipynb", scratch)
        env = {"WORKBENCH_RUNS": str(scratch.parent / "runs"), "PYTHONPATH": str(home), "HF_HUB_OFFLINE": "1"}
        for dark in (False, True):
            with browser.jupyter(scratch, dark=dark, **env) as server, browser.browser(1150, 1250) as context:
                page = browser.open_notebook(context, server, "flowchart.ipynb")
                page.wait_for_selector(".wb-flow .box", timeout=60_000)
                if not dark:
                    page.get_by_label("Overrides").fill("train.max_steps=200 valid.every=50 valid.rows=20")
                    walk(page)
                page.locator('g[data-station="training"]').click()
                page.wait_for_selector('g[data-station="training"][data-state=passed]', timeout=240_000)
                take(page, "flowchart_dark" if dark else "flowchart", folder)
                if not dark:
                    page.set_viewport_size({"width": 1150, "height": 2000})
                    page.locator('g[data-station="data"]').click()
                    take(page, "data", folder)
    for path in sorted(folder.glob("*.png")):
        shrink(path)
        print(path.relative_to(home), os.path.getsize(path), "bytes")


def shrink(path):
    "Few colours are enough for a picture of a page."
    from PIL import Image

    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    main(home / "nbs" / "images")
