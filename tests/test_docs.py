"""The pages of `make docs`: every notebook has one, links lead somewhere, nothing comes from elsewhere; in a
browser, a word is found."""
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from html import unescape
from pathlib import Path

import nbformat
import pytest

from browser import browser, chromium
from workbench.lab.docs.execute import key_of
from workbench.lab.docs.pages import read_page, read_pages
from workbench.lab.docs.serve import server
from workbench.lab.docs.site import Links, build, main
from workbench.lab.show import colours

home = Path(__file__).parents[1]
markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The whole site without running a notebook, and what is wrong with it."
    folder = tmp_path_factory.mktemp("site") / "_docs"
    return folder, build(home, folder, fast=True)


def write(folder, name, *cells):
    path = folder / "nbs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), path)
    return path


@pytest.fixture
def small(tmp_path, monkeypatch):
    "A workbench of three notebooks; one of them is a library notebook of ours."
    (tmp_path / "settings.ini").write_text((home / "settings.ini").read_text())
    (tmp_path / "workbench").mkdir()
    write(tmp_path, "index.ipynb", markdown("# Small\n\nSee `check_rejected` and [a "
                                            "guide](guides/one.ipynb#Rows)."))
    write(tmp_path, "guides/one.ipynb", markdown("# One\n\n> A guide.\n\n## Rows"),
          code("import os\nfrom pathlib import "
               "Path\n\n(Path('count')).open('a').write('x')\nos.getcwd().split('/')[-1]", id="where"),
          code("#| eval: false\n1 / 0"))
    write(tmp_path, "run.ipynb", markdown("# Run"), code("1 / 0"))
    (tmp_path / "nbs/.notest").touch()
    rows = next(p for p in read_pages(home / "nbs") if "check_rejected" in p.defines).path
    (tmp_path / "nbs" / rows).parent.mkdir(parents=True)
    shutil.copy(home / "nbs" / rows, tmp_path / "nbs" / rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_whole_site_is_sound(site):
    folder, faults = site
    assert not faults, "\n".join(map(str, faults))
    assert not folder.with_name("_docs.new").exists()
    for page in read_pages(home / "nbs"):
        made = (folder / page.url).read_text(encoding="utf8")
        found = Links(made)
        assert re.search(r"<title>(.*?)</title>", made)[1].strip() and "<h1 " in made, page.url
        assert {n for n in page.defines} <= found.ids, (
            f"{page.url} does not show {set(page.defines) - found.ids}")
        assert not [a for a in found.loads if not a.startswith("data:") and "//" in a]
        assert "<span></span><span class=\"c1\">#| " not in made, f"{page.url} shows a directive"
        assert not re.search(r"\$\$|\\frac|\\mathrm",
                             re.sub(r"<pre.*?</pre>|<code.*?</code>", "", made, flags=re.S)), page.url


def test_addresses_are_those_of_nbdev(site):
    from workbench._modidx import d

    for names in d["syms"].values():
        for url, path in names.values():
            assert (site[0] / url.split("#")[0]).is_file(), url


def test_colours_are_the_workbench_s(site):
    style = (site[0] / "style.css").read_text()
    assert colours["train"] in style and colours["warning"] in style and "{{" not in style


def test_notebooks_run_once_and_again_when_their_code_changes(small, capsys):
    assert main(["--workers", "1"]) == 0, capsys.readouterr().err
    said, page = capsys.readouterr().out, (small / "_docs/guides/one.html").read_text(encoding="utf8")
    assert "3 run" in said and "'guides'" in unescape(page)
    assert "ZeroDivisionError" not in (small / "_docs/run.html").read_text() + page
    assert re.search(r'href="core/\S*rows.html#check_rejected"', (small / "_docs/index.html").read_text())
    guide = nbformat.read(small / "nbs/guides/one.ipynb", 4)
    guide.cells[0].source += "\n\nMore words."
    nbformat.write(guide, small / "nbs/guides/one.ipynb")
    assert main([]) == 0 and "3 notebooks are unchanged, 0 run" in capsys.readouterr().out
    page = (small / "_docs/guides/one.html").read_text(encoding="utf8")
    assert "More words." in page and "'guides'" in unescape(page)
    assert (small / "nbs/guides/count").read_text() == "x"
    before = key_of(read_page(small / "nbs", Path("guides/one.ipynb")), home / "workbench")
    guide.cells[1].source += "\n1"
    nbformat.write(guide, small / "nbs/guides/one.ipynb")
    assert key_of(read_page(small / "nbs", Path("guides/one.ipynb")), home / "workbench") != before


def test_a_notebook_that_fails_is_named(small, capsys):
    write(small, "guides/one.ipynb", markdown("# One\n\n## Rows"), code("x = 1"),
          code("x.nothing", id="wrong"))
    write(small, "guides/two.ipynb", markdown("# Two\n\n[nowhere](three.ipynb) "
                                              "![far](https://example.org/a.png)"))
    for _ in range(2):  # what failed is not kept
        assert main([]) == 1
        said = capsys.readouterr().err
        assert "guides/one.ipynb: cell 3 (`wrong`) failed: AttributeError" in said
    assert ("guides/two.html: the link three.ipynb leads nowhere" in said
            and "it loads https://example.org/a.png" in said)
    page = (small / "_docs/guides/one.html").read_text()
    assert 'class="fault"' in page and "AttributeError" in page
    shutil.copy(small / "nbs/guides/one.ipynb", small / "nbs/guides/10_one.ipynb")
    assert main(["--fast"]) == 2 and "would both become guides/one.html" in capsys.readouterr().err


def test_the_command_serves_the_site(site, tmp_path):
    (tmp_path / "settings.ini").touch()
    command = [sys.executable, "-m", "workbench.lab.cli", "docs", "--no-browser"]
    none = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert none.returncode == 2 and "make docs" in none.stderr and "Traceback" not in none.stderr
    (tmp_path / "_docs").symlink_to(site[0])
    serving = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/", serving.stdout.readline())[0]
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert b"The workbench" in direct.open(address).read()
        taken = subprocess.run([*command, "--port", address.split(":")[-1].strip("/")], cwd=tmp_path,
                               capture_output=True, text=True)
        assert taken.returncode == 2 and "Port" in taken.stderr
    finally:
        serving.terminate()
        serving.wait(10)


@pytest.mark.skipif(not chromium(), reason="no chromium here")
@pytest.mark.parametrize("kind", ["served", "file"])
def test_a_word_is_found_in_a_browser(site, kind):
    pytest.importorskip("playwright.sync_api")
    with server(site[0]) as running, browser(width=1600, height=1000) as context:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        start = (f"http://127.0.0.1:{running.server_port}/" if kind == "served"
                 else site[0].absolute().as_uri() + "/")
        page, wrong = context.new_page(), []
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("request", lambda r: None if r.url.startswith((start, "data:")) else wrong.append(r.url))
        page.goto(start + "index.html")
        page.keyboard.press("/")
        page.keyboard.type("check_rejected")
        page.locator("#hits a").first.click()
        page.wait_for_selector("h3#check_rejected")
        assert (page.url.endswith("rows.html#check_rejected")
                and page.locator("h3#check_rejected").is_visible())
        page.locator("input[type=search]").fill("no such word anywhere")
        page.wait_for_selector("#hits .none")
        page.click("#theme")
        theme = page.evaluate("document.documentElement.dataset.theme")
        page.goto(start + "index.html")
        assert page.evaluate("document.documentElement.dataset.theme") == theme  # it is kept
        for width in (700, 1600):
            page.set_viewport_size({"width": width, "height": 1000})
            for name in ("index.html", "core/config/schema.html"):
                page.goto(start + name)
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (
                    f"{name} is wider than {width}")
            assert page.locator("nav#pages").is_visible() == (width == 1600)
        page.set_viewport_size({"width": 700, "height": 1000})
        page.click("#menu")
        page.locator("nav#pages a", has_text="Train").first.click()
        page.wait_for_selector("h1")
        running.shutdown()
    assert not wrong, wrong
