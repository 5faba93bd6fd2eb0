"The house as it is planned: who imports whom, what a notebook is, what a package file holds."
import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

home = Path(__file__).parents[1]
package = home / "workbench"
modules = sorted(p for p in package.rglob("*.py") if p.stem != "__init__" and p.name != "_modidx.py")
notebooks = sorted(p for p in (home / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
may_import = {"parts": set(), "core": {"core"}, "tasks": {"core", "parts"},
              "deploy": {"core", "parts", "tasks", "deploy"},
              "lab": {"core", "parts", "tasks", "deploy", "lab"}}


def default_exp(notebook):
    found = [re.search(r"^#\|\s*default_exp\s+(\S+)", c.source, re.M)
             for c in nbformat.read(notebook, 4).cells]
    return [m[1] for m in found if m]


exported = {nb: default_exp(nb) for nb in notebooks}


def imports(path):
    "Dotted names of what a module imports, relative ones resolved."
    here = ["workbench", *path.relative_to(package).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        if isinstance(node, ast.ImportFrom):
            base = ".".join(here[:-node.level]) if node.level else ""
            full = ".".join(x for x in (base, node.module) if x)
            yield from (f"{full}.{a.name}" for a in node.names)


@pytest.mark.parametrize("path", modules, ids=lambda p: str(p.relative_to(package)))
def test_imports_point_one_way(path):
    folder = path.relative_to(package).parts[0]
    allowed = may_import.get(folder, set())
    for name in imports(path):
        if name.startswith("workbench.") and not re.match(r"workbench\.(errors|files)\b", name):
            other = name.split(".")[1]
            # tasks/sign/task.py may use tasks/sign/data.py, never another system
            inside = (folder == "parts" == other
                      or folder == "tasks" == other and name.split(".")[2] == path.parent.name)
            assert inside or other in allowed, f"{path.relative_to(home)} imports {name}"
            assert not (folder == "tasks"
                        and name.startswith("workbench.core.train")), f"{path} imports {name}"
        assert name.rpartition(".")[2] != "*", f"{path.relative_to(home)} imports a star"


def test_no_circle_of_imports():
    known = {"workbench." + ".".join(p.relative_to(package).with_suffix("").parts) for p in modules}
    uses = {}
    for p in modules:
        name = "workbench." + ".".join(p.relative_to(package).with_suffix("").parts)
        uses[name] = {m for i in imports(p) for m in (i, i.rpartition(".")[0]) if m in known}
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, " -> ".join([*open_[open_.index(name):], name])
        if name in done:
            return
        open_.append(name)
        for other in sorted(uses[name]):
            visit(other)
        done.add(open_.pop())
    for name in sorted(uses):
        visit(name)


@pytest.mark.parametrize("module", ["workbench", "workbench.lab.run.launch", "workbench.core.config.presets",
                                    "workbench.core.run.folder"])
def test_the_import_is_cheap(module):
    code = (f"import sys, {module}; print([m for m in ('torch', 'transformers', 'tensorflow', 'matplotlib') "
            "if m in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_list_of_runs_loads_no_schema(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "status.json").write_text('{"state": "finished", "updated": 0, "step": 7, "stage": '
                                                '"train"}')
    best = '{"metric": "cer", "mode": "min"}'
    (tmp_path / "a" / "plan.json").write_text('{"preset": "t5_tiny", "task": "sign", "stages": [{"name": '
                                              '"train", "best": %s}]}' % best)
    code = ("import sys; from workbench.lab import cli; cli.main(['runs']); print([m for m in ('pydantic', "
            "'numpy', 'torch') if m in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], cwd=home,
                         env=os.environ | {"WORKBENCH_RUNS": str(tmp_path)}, capture_output=True, text=True)
    assert out.stdout.splitlines()[-1] == "[]" and "t5_tiny" in out.stdout, out.stdout + out.stderr


def test_every_module_has_its_notebook():
    wanted = {str(p.relative_to(package).with_suffix("")).replace("/", ".") for p in modules}
    given = [name for names in exported.values() for name in names]
    assert len(given) == len(set(given)), (
        f"two notebooks export to {[n for n in given if given.count(n) > 1]}")
    assert wanted == set(given)


@pytest.mark.parametrize("nb", notebooks, ids=lambda p: str(p.relative_to(home / "nbs")))
def test_a_notebook(nb):
    "A kernel to run on, few cells, stable and unique ids, no magics, and (in the library) no large outputs."
    book = nbformat.read(nb, 4)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert len(book.cells) <= 60, f"{len(book.cells)} cells: split it by idea"
    assert len({c.id for c in book.cells}) == len(book.cells)
    code = [c for c in book.cells if c.cell_type == "code"]
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    assert not [c.source for c in code if re.search(r"^\s*[%!]", c.source, re.M)]
    assert sum(len(str(c.outputs)) for c in code) < 200_000


@pytest.mark.parametrize("path", modules, ids=lambda p: str(p.relative_to(package)))
def test_a_module_is_a_small_room(path):
    count = sum(bool(line.strip()) and not line.startswith("# %%") for line in path.read_text().splitlines())
    assert count <= 300, f"{path.relative_to(home)} has {count} lines: split it by idea"
    tree = ast.parse(path.read_text())
    long = [(n.name, n.end_lineno - n.lineno + 1) for n in ast.walk(tree)
            if isinstance(n, ast.FunctionDef) and n.end_lineno - n.lineno >= 60]
    assert not long, f"{path.relative_to(home)}: a function fits a screen, {long}"


def test_no_undefined_or_unused_names():
    out = subprocess.run([sys.executable, "-m", "pyflakes", str(package), str(home / "tests")],
                         capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr


def test_no_path_of_a_machine():
    "Nothing of a home folder, a scratch folder or an address of a private registry in what is tracked."
    names = subprocess.run(["git", "-C", str(home), "ls-files"], capture_output=True, text=True)
    if names.returncode:
        pytest.skip("not a git checkout")
    place = re.compile(r"(?<![\w.~])/(?:home|Users|root|work|tmp/w)/\w+|https?://(?:localhost|10\.|192\.168\.)[\w.:]*/simple")
    for name in names.stdout.splitlines():
        path = home / name
        if path.suffix in (".py", ".ipynb", ".yaml", ".md", ".ini", ".toml", ".txt", ".cfg",
                           "") and path.is_file():
            if path.name == "test_architecture.py":
                continue
            found = place.search(path.read_text(encoding="utf8", errors="ignore"))
            assert not found, f"{name}: {found[0]}"
