"The house as it is planned: who imports whom, what a notebook is, what a package file contains."
import ast
import json
import os
import re
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import nbformat
import pytest

home = Path(__file__).parents[1]
package = home / "workbench"
modules = sorted(p for p in package.rglob("*.py") if p.stem != "__init__" and p.name != "_modidx.py")
notebooks = sorted(p for p in (home / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
WIDTH = 110


# What is read, each file once

@cache
def text_of(path):
    return path.read_text(encoding="utf8")


@cache
def tree_of(path):
    return ast.parse(text_of(path))


@cache
def book_of(path):
    return nbformat.reads(text_of(path), 4)


def code_cells(notebook):
    return [c for c in book_of(notebook).cells if c.cell_type == "code"]


def is_exported(cell):
    return bool(re.match(r"\s*#\|\s*exports?\b", cell.source))


@cache
def default_exp(notebook):
    found = [re.search(r"^#\|\s*default_exp\s+(\S+)", c.source, re.M) for c in code_cells(notebook)]
    return [m[1] for m in found if m]


@cache
def library():
    "The notebooks that are the source of a module."
    return [nb for nb in notebooks if default_exp(nb)]


def name_of(path):
    return ".".join(path.relative_to(package).with_suffix("").parts)


def short(path):
    return str(path.relative_to(package))


def in_nbs(path):
    return str(path.relative_to(home / "nbs"))


@cache
def imports(path):
    "Dotted names of what a module imports, at its top or in a function; relative ones resolved."
    here, found = ["workbench", *name_of(path).split(".")], []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names]
        if isinstance(node, ast.ImportFrom):
            base = ".".join(here[:-node.level]) if node.level else ""
            full = ".".join(x for x in (base, node.module) if x)
            found += [f"{full}.{a.name}" for a in node.names]
    return found


@cache
def uses():
    "Module -> the modules of ours that it imports, all without `workbench.`."
    known = {name_of(p) for p in modules}
    return {name_of(p): {m for name in imports(p) if name.startswith("workbench.")
                         for m in (name[10:], name[10:].rpartition(".")[0]) if m in known} for p in modules}


# Who imports whom

BELOW = {"errors": (), "files": ("errors",), "parts": ("errors", "files", "parts"),
         "core": ("errors", "files", "core"), "tasks": ("errors", "files", "core", "parts"),
         "deploy": ("errors", "files", "core", "parts", "deploy"),
         "lab": ("errors", "files", "core", "parts", "deploy", "lab")}
NOT_FOR_TASKS = ("core.train", "core.checks.quick", "core.checks.overfit", "core.checks.check")


def against_the_rule(name, other):
    "Why a module may not import another; nothing where it may."
    mine, its = name.split("."), other.split(".")
    if mine[0] == "tasks" == its[0]:
        return "" if mine[1] == its[1] else "a system knows no other system"
    if mine[0] == "tasks" and other.startswith(NOT_FOR_TASKS):
        return "a system is trained and checked from outside"
    if its[0] == "tasks":
        return f"{mine[0]} knows no task by name"
    return "" if its[0] in BELOW[mine[0]] else f"{mine[0]} stands below {its[0]}"


@pytest.mark.parametrize("path", modules, ids=short)
def test_imports_point_one_way(path):
    wrong = {other: why for other in sorted(uses()[name_of(path)])
             if (why := against_the_rule(name_of(path), other))}
    assert not wrong, f"{short(path)} imports {wrong}"
    stars = [name for name in imports(path) if name.endswith(".*")]
    assert not stars, f"{short(path)} imports {stars}"


def room(module):
    "core.config.schema -> core.config; a module directly in core, parts, tasks or lab is a room itself."
    return ".".join(module.split(".")[:2])


def graph(of):
    "Room -> the other rooms that its modules import."
    found = defaultdict(set)
    for module, others in uses().items():
        found[of(module)] |= {of(m) for m in others} - {of(module)}
    return found


def circle(edges):
    "The names of a circle of imports; an empty list where there is none."
    done, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name):], name]
        if name in done:
            return []
        path.append(name)
        found = next((c for other in sorted(edges[name]) if (c := visit(other))), [])
        path.pop()
        done.add(name)
        return found
    return next((c for name in sorted(edges) if (c := visit(name))), [])


@pytest.mark.parametrize("of", [str, room], ids=["modules", "rooms"])
def test_no_circle_of_imports(of):
    edges = graph(of)
    found = circle(edges)
    why = [f"{m} imports {n}" for a, b in zip(found, found[1:])
           for m, others in sorted(uses().items()) if of(m) == a for n in sorted(others) if of(n) == b]
    assert not found, " -> ".join(found) + "".join(f"\n{line}" for line in why)


def test_core_has_few_rooms_on_few_floors():
    "A floor is the longest way down: a room stands one above the highest that it imports."
    edges = {a: {b for b in others if b.startswith("core.")} for a, others in graph(room).items()
             if a.startswith("core.")}
    floor = {}
    while len(floor) < len(edges):
        ready = {a: 1 + max((floor[b] for b in edges[a]), default=0) for a in edges
                 if a not in floor and all(b in floor for b in edges[a])}
        assert ready, "rooms import each other in a circle"
        floor |= ready
    plan = "".join(f"\nfloor {n}: {', '.join(sorted(a for a in floor if floor[a] == n))}"
                   for n in sorted(set(floor.values()), reverse=True))
    assert len(floor) <= 10 and max(floor.values()) <= 7, plan


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


# Notebooks

def test_every_module_has_its_notebook():
    given = Counter(name for nb in notebooks for name in default_exp(nb))
    assert not [name for name, n in given.items() if n > 1], "two notebooks export to one module"
    assert {name_of(p) for p in modules} == set(given)


def test_a_notebook_stands_where_its_module_does():
    "core.config.schema is nbs/core/config/NN_schema.ipynb, and no two of a folder have one number."
    wrong, numbers = [], Counter()
    for nb in library():
        folder, _, last = default_exp(nb)[0].rpartition(".")
        numbers[nb.parent, nb.name[:2]] += 1
        if nb.parent != home / "nbs" / folder.replace(".", "/") or not re.fullmatch(rf"\d\d_{last}", nb.stem):
            wrong.append(f"{in_nbs(nb)} exports {default_exp(nb)[0]}")
    wrong += [f"{in_nbs(folder)}: two notebooks have the number {n}"
              for (folder, n), many in numbers.items() if many > 1]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("nb", notebooks, ids=in_nbs)
def test_a_notebook(nb):
    "A kernel to run on, few cells, stable and unique ids, no magics, and no large outputs."
    book = book_of(nb)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert len(book.cells) <= 60, f"{len(book.cells)} cells: split it by idea"
    assert len({c.id for c in book.cells}) == len(book.cells)
    assert book.cells[0].cell_type == "markdown" and book.cells[0].source.startswith("# ")
    assert not [c.source for c in code_cells(nb) if re.search(r"^\s*[%!]", c.source, re.M)]
    assert sum(len(str(c.outputs)) for c in code_cells(nb)) < 200_000


def says_nothing(value):
    "Whether a cell that ends in this expression shows nothing: it prints, or only tests."
    if isinstance(value, ast.Constant) and value.value in (None, ...):
        return True
    named = getattr(value.func, "id", getattr(value.func, "attr", "")) if isinstance(value, ast.Call) else ""
    return named == "print" or named.startswith(("test_", "assert"))


def shows(cell):
    "Whether a cell that is not exported ends in a value or a figure."
    if is_exported(cell) or re.search(r"^#\|\s*eval:\s*false", cell.source, re.M):
        return False
    body = ast.parse(cell.source).body
    return bool(body) and isinstance(body[-1], ast.Expr) and not (
        says_nothing(body[-1].value) or cell.source.rstrip().endswith(";"))


def test_every_library_notebook_shows_its_idea():
    mute = [in_nbs(nb) for nb in library() if not any(map(shows, code_cells(nb)))]
    assert not mute, f"no cell of these ends in a value or a figure: {mute}"


LOCAL = re.compile(r"(?<![\w.~])/(?:home|Users|root|work|tmp|var)/\w+|\b20\d\d-\d\d-\d\d\b")


def written_in(output):
    "The texts that an output consists of, without the bytes of pictures and sounds."
    parts = [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k != "image/png")]
    return re.sub(r"base64,[^\"']+", "", "\n".join(map(str, parts)))


def faults_of_output(cell):
    "What an output that is kept must not be: large, an error, or of one machine or one day."
    size = len(json.dumps(cell.outputs, ensure_ascii=False).encode())
    text = "\n".join(map(written_in, cell.outputs))
    return ([f"{size / 1000:.0f} kB"] * (size > 30_000)
            + ["an error"] * any(o.output_type == "error" for o in cell.outputs)
            + [repr(word) for word in set(LOCAL.findall(text)) if word not in cell.source])


def test_some_library_notebooks_keep_one_small_output():
    "What a reader sees at once on the page of a repository: a picture or a table, the same on every machine."
    kept = {nb: [c for c in code_cells(nb) if c.outputs] for nb in library()}
    wrong = [f"{in_nbs(nb)}: {len(cells)} cells keep an output"
             for nb, cells in kept.items() if len(cells) > 1]
    wrong += [f"{in_nbs(nb)}, cell {c.id} keeps {fault}"
              for nb, cells in kept.items() for c in cells for fault in faults_of_output(c)]
    assert not wrong, "\n".join(wrong)
    many = sum(map(bool, kept.values()))
    assert many >= 30, f"{many} of {len(kept)} library notebooks keep an output"


def test_exported_cells_are_small():
    lines = {(in_nbs(nb), c.id): len(c.source.strip().splitlines()) - 1
             for nb in library() for c in code_cells(nb) if is_exported(c)}
    long = [f"{nb} {cell}: {n} lines" for (nb, cell), n in lines.items() if n > 80]
    assert not long, f"split at a definition: {long}"
    assert statistics.median(lines.values()) <= 15, f"the median cell has {statistics.median(lines.values())}"


# Package files

@pytest.mark.parametrize("path", modules, ids=short)
def test_a_module_is_a_small_room(path):
    count = sum(bool(line.strip()) and not line.startswith("# %%") for line in text_of(path).splitlines())
    assert count <= 300, f"{short(path)} has {count} lines: split it by idea"
    long = [(n.name, n.end_lineno - n.lineno + 1) for n in ast.walk(tree_of(path))
            if isinstance(n, ast.FunctionDef) and n.end_lineno - n.lineno >= 60]
    assert not long, f"{short(path)}: a function fits a screen, {long}"


def test_a_module_says_in_one_sentence_what_it_is():
    "Its docstring is the quote under its notebook's title."
    wrong = []
    for nb in library():
        first = book_of(nb).cells[0].source
        quotes = [line[1:].strip() for line in first.splitlines() if line.startswith(">")]
        path = package / (default_exp(nb)[0].replace(".", "/") + ".py")
        one = len(quotes) == 1 and not re.search(r"[.!?] +[A-Z`]", quotes[0]) and quotes[0].endswith(".")
        if not one or not path.is_file() or ast.get_docstring(tree_of(path)) != quotes[0]:
            wrong.append(f"{in_nbs(nb)}: {quotes}")
    assert not wrong, "\n".join(wrong)


def written_by_nbdev(source):
    "Numbers of the lines that nbdev makes: marks of cells, and the list of names."
    spans = [range(n.lineno, n.end_lineno + 1) for n in ast.parse(source).body
             if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"]
    marks = [i for i, line in enumerate(source.splitlines(), 1)
             if line.startswith(("# %%", "# AUTOGENERATED"))]
    return {*marks, *(i for span in spans for i in span)}


def too_wide(text, passed=()):
    return [i for i, line in enumerate(text.splitlines(), 1) if len(line) > WIDTH and i not in passed]


def test_lines_fit_the_page():
    files = [p for folder, kinds in (("workbench", ("py", "js", "css", "html")), ("tests", ("py", "sh")),
                                     ("bench", ("py",)), ("findings", ("py",)))
             for kind in kinds for p in sorted((home / folder).rglob(f"*.{kind}"))
             if p.name != "_modidx.py" and "samples" not in p.parts]
    wrong = [f"{p.relative_to(home)}, line {i}" for p in files for i in
             too_wide(text_of(p), written_by_nbdev(text_of(p)) if p.suffix == ".py" else ())]
    wrong += [f"{in_nbs(nb)}, cell {c.id}, line {i}"
              for nb in notebooks for c in code_cells(nb) for i in too_wide(c.source)]
    assert not wrong, f"over {WIDTH} characters:\n" + "\n".join(wrong)


def definitions(kinds):
    "(module, node) of what stands at the top of every module."
    return [(name_of(p), n) for p in modules for n in tree_of(p).body if isinstance(n, kinds)]


@pytest.mark.parametrize("name", ["Refused", "Failed", "Check"])
def test_one_class_of_a_name(name):
    found = [module for module, node in definitions(ast.ClassDef) if node.name == name]
    assert len(found) == 1, found


def statements(node):
    return node.body[ast.get_docstring(node) is not None:]


def without_words(node):
    "A function's arguments and statements, its docstring left out, as a text to compare."
    parts = [node.args, *node.decorator_list, *statements(node)]
    return "\n".join(map(ast.dump, parts))


def test_no_function_stands_twice():
    "No two of one name that do the same, and none of four lines or more under two names."
    found = defaultdict(list)
    for module, node in definitions(ast.FunctionDef):
        lines = sum(n.end_lineno - n.lineno + 1 for n in statements(node))
        found["" if lines >= 4 else node.name, without_words(node)].append(f"{module}.{node.name}")
    twice = [names for names in found.values() if len(names) > 1]
    assert not twice, twice


def test_no_block_stands_twice():
    "No more than six lines in a row, imports left out, stand in two places."
    seen, twice = {}, []
    for path in modules:
        passed = {i for n in ast.walk(tree_of(path)) if isinstance(n, (ast.Import, ast.ImportFrom))
                  for i in range(n.lineno, n.end_lineno + 1)} | written_by_nbdev(text_of(path))
        lines = [(i, line.strip()) for i, line in enumerate(text_of(path).splitlines(), 1)
                 if line.strip() and i not in passed]
        for at in range(len(lines) - 6):
            block = tuple(line for _, line in lines[at:at + 7])
            if block in seen and not (twice and twice[-1][2] == path and lines[at][0] - twice[-1][1] < 9):
                twice.append((seen[block], lines[at][0], path))
            seen.setdefault(block, f"{short(path)}, line {lines[at][0]}")
    assert not twice, "\n".join(f"{first} and {short(path)}, line {line}" for first, line, path in twice)


# Errors

FOREIGN = {  # function -> whose broad error it catches where what a person gave is at fault
    "core.config.presets.find": "pathlib: a name that no file can have",
    "core.config.presets.parse_overrides": "shlex",
    "core.config.yaml12.read_yaml": "PyYAML's scanner",
    "deploy.onnx.converted": "torch.onnx, of a net with an operator that ONNX has not",
    "deploy.tflite.traced": "torch.export",
    "files.read_json": "json",
    "lab.compare.tables.named": "shlex",
    "parts.image.caption_json.parse_json": "json",
    "parts.image.hub_nets.build_hub": "transformers",
    "parts.image.rows.inside": "os.path: a name that no file can have",
    "parts.pose.arrays.from_array": "numpy: what is no array of numbers",
    "parts.pose.arrays.read_pickle": "numpy: frames of several shapes",
    "parts.pose.arrays.unpickled": "pickle, of damaged bytes",
    "parts.pose.files.read_dot_pose": "pose-format, of damaged bytes",
    "parts.pose.files.read_pose": "numpy's reader of headers",
    "parts.pose.rows.stated_shift": "float",
    "parts.speech.phone_times.parse_time": "float",
    "parts.speech.phone_times.phone_tier": "float, and the decoding of a file",
    "parts.speech.scores.whisper": "transformers",
    "parts.speech.vocoder.from_transformers": "transformers",
    "parts.speech.wave.write_wave": "soundfile",
    "parts.text.lora.add_lora": "peft",
    "parts.text.model_config.config_object": "transformers",
    "parts.text.pretrained.build_seq2seq": "transformers",
    "parts.text.tokenizer.load_tokenizer": "transformers and tokenizers",
    "parts.text.words.read_words": "tokenizers",
}


def redresses(handler):
    "Whether a broad error becomes `Refused` here, and none of its kinds is raised again as it is."
    caught = handler.type or ast.Name("BaseException")
    kinds = {n.id for n in ast.walk(caught) if isinstance(n, ast.Name)}
    raised = [n.exc and getattr(getattr(n.exc, "func", n.exc), "id", "")
              for n in ast.walk(handler) if isinstance(n, ast.Raise)]
    broad = kinds & {"Exception", "BaseException", "ValueError"}
    return bool(broad) and "Refused" in raised and None not in raised


def redressing(path):
    "The functions of a module that do so."
    functions = (n for n in ast.walk(tree_of(path)) if isinstance(n, ast.FunctionDef))
    return [f"{name_of(path)}.{f.name}" for f in functions for n in ast.walk(f)
            if isinstance(n, ast.ExceptHandler) and redresses(n)]


def test_a_mistake_of_the_program_keeps_its_traceback():
    found = {name for p in modules for name in redressing(p)}
    new, gone = sorted(found - FOREIGN.keys()), sorted(FOREIGN.keys() - found)
    assert not new, f"whoever finds a mistake raises Refused; no other error becomes one: {new}"
    assert not gone, f"take these off the list: {gone}"


def test_no_undefined_or_unused_names():
    out = subprocess.run([sys.executable, "-m", "pyflakes", str(package), str(home / "tests")],
                         capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr


def test_no_path_of_a_machine():
    "Nothing of a home folder, a scratch folder or an address of a private registry in what is tracked."
    names = subprocess.run(["git", "-C", str(home), "ls-files"], capture_output=True, text=True)
    if names.returncode:
        pytest.skip("not a git checkout")
    place = re.compile(r"(?<![\w.~])/(?:home|Users|root|work|tmp/w)/\w+"
                       r"|https?://(?:localhost|10\.|192\.168\.)[\w.:]*/simple")
    for name in names.stdout.splitlines():
        path = home / name
        if path.suffix in (".py", ".ipynb", ".yaml", ".md", ".ini", ".toml", ".txt", ".cfg",
                           "") and path.is_file():
            if path.name == "test_architecture.py":
                continue
            found = place.search(path.read_text(encoding="utf8", errors="ignore"))
            assert not found, f"{name}: {found[0]}"
