"""The README and the index are true: the tree, the links, the lists of notebooks; and every command of the
README runs, with small settings added."""
import ast
import importlib.util
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path

import index_lists
import nbformat
import pytest
import signs
import voices
from transformers import BertConfig, BertModel

from workbench.core.config import presets
from workbench.core.train.loop import attempt
from workbench.files import samples
from workbench.lab import cli, prepare
from workbench.lab.bootstrap import bootstrap
from workbench.lab.docs import serve
from workbench.lab.run import launch
from workbench.parts.text.tokenizer import train_tokenizer

home = Path(__file__).parents[1]
readme = (home / "README.md").read_text(encoding="utf8")
index = nbformat.read(home / "nbs/index.ipynb", 4)
books = {path.relative_to(home).as_posix(): nbformat.read(path, 4).cells
         for path in [home / "nbs/index.ipynb", *sorted((home / "nbs/guides").glob("*.ipynb"))]}
pages = {"README.md": readme} | {name: "\n\n".join(c.source for c in cells) for name, cells in books.items()}


def fenced(language):
    "The lines of the README's blocks in a language, without comments."
    blocks = re.findall(rf"```{language}\n(.*?)```", readme, re.S)
    return [line.partition("  #")[0].strip() for line in "".join(blocks).splitlines() if line.strip()]


# The tree and the links

def test_the_tree_is_that_of_the_repository():
    drawn, above = [], []
    for line in fenced_tree():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        above = [*above[:depth], name]
        drawn.append("".join(above).rstrip("/"))
    assert not [name for name, lines in Counter(drawn).items() if lines > 1], "a line is drawn twice"
    files = subprocess.run(["git", "ls-files"], cwd=home, capture_output=True, text=True, check=True)
    folders = {p.as_posix() for f in files.stdout.splitlines() for p in Path(f).parents} - {"."}
    # a folder for each pack, each model and each run
    inside = re.compile(r"(workbench/(samples|architectures)|tests/old_runs)/")
    same = {f for f in folders if f.startswith("nbs/") and f"workbench/{f[4:]}" in folders}
    assert {*drawn} == {f for f in folders - same if not inside.match(f)} | {"nbs/samples"}


def fenced_tree():
    "The lines of the tree that name a folder."
    tree = re.search(r"```text\n(.*?)```", readme, re.S)[1]
    return [line for line in tree.splitlines() if re.match(r" {0,6}\S+/ ", line)]


def test_what_the_tree_says_beside_a_folder_is_there():
    folder = {"errors.py": "", "files.py": "", "task.py": "core", "show.py": "lab", "use.py": "lab",
              "cli.py": "lab"}
    tree = re.search(r"```text\n(.*?)```", readme, re.S)[1]
    assert {m for m in re.findall(r"\b\w+\.py\b", tree)} == {*folder}
    assert all((home / "workbench" / where / name).exists() for name, where in folder.items())


@pytest.mark.parametrize("page", pages)
def test_every_link_leads_to_a_file(page):
    text = "\n\n".join(c.source
                       for c in books[page] if c.cell_type == "markdown") if page in books else readme
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    links = re.findall(r"\]\(((?!https?:|#|attachment:)[^)\s#]+)[^)]*\)", text)
    lost = [link for link in links if not ((home / page).parent / link).exists()]
    assert not lost, f"{page}: {lost}"


@pytest.mark.parametrize("page", pages)
def test_every_path_that_is_named_exists(page):
    path = r"(?<![\w/])(?:nbs|bench|findings|tests|workbench)/[\w./]*\w\.(?:ipynb|py|sh|md|png|yaml)\b"
    named = re.findall(path, pages[page])
    lost = {path for path in named if not (home / path).exists()}
    assert not lost, f"{page}: {lost}"


@pytest.mark.parametrize("page", pages)
def test_every_module_that_is_named_can_be_imported(page):
    lost = {name for name in re.findall(r"(?<![\w./-])workbench(?:\.[a-z_]\w*)+(?![\w/])", pages[page])
            if not found(name)}
    assert not lost, f"{page}: {lost}"


def found(name):
    "Whether a dotted name is a module, or what a module defines."
    parent, _, last = name.rpartition(".")
    if importlib.util.find_spec(parent) is None:
        return False
    path = importlib.util.find_spec(parent).submodule_search_locations
    if path and importlib.util.find_spec(name):
        return True
    return hasattr(importlib.import_module(parent), last)


# The index

def test_the_index_lists_the_notebooks_in_reading_order():
    shown = {c.id: c.source for c in index.cells if c.id.startswith("list-")}
    assert shown == index_lists.lists(), "run `python tests/index_lists.py`"
    assert len(index.cells) < 60


def test_no_notebook_is_missing_from_the_index():
    text = pages["nbs/index.ipynb"]
    ours = {p.path.as_posix() for p in index_lists.all_pages()} - {"index.ipynb"}
    assert {path for path in ours if f"]({path})" not in text} == set()


def test_the_index_names_every_system():
    cell = next(c.source for c in index.cells if c.id == "systems")
    systems = sorted(p.parent.name for p in (home / "workbench/tasks").glob("*/task.py"))
    assert sorted(re.findall(r"^\| `(\w+)` \|", cell, re.M)) == systems


# The tables of the README

def first_column(head):
    "The names in the first column of the table that begins with a word."
    return re.findall(r"^\| `(\w+)` \|", readme.split(f"| {head} |")[1].split("\n\n")[0], re.M)


def test_the_presets_are_those_of_the_package():
    for name, words in cli.preset_table().rows:
        assert f"| `{name}` | {words} |" in readme
    assert first_column("preset") == presets.presets()


def test_the_parameters_are_those_of_the_notebook():
    cells = nbformat.read(home / "nbs/train.ipynb", 4).cells
    parameters = next(c for c in cells if "parameters" in c.metadata.get("tags", [])).source
    assert first_column("parameter") == re.findall(r"^(\w+) =", parameters, re.M)


# The commands of the README

BRIEF = ("train.max_steps=2 train.minutes=null train.batch_size=2 train.log_every=1 train.checkpoint_every=2 "
         "valid.every=null valid.batch_size=2 valid.final=[valid] trackers=[] check=false")
SMALL = {"sign": "data.languages=null data.max_lost=1 data.step_frames=4 generate.max_length=4 "
                 "model.init=scratch model.tokenizer_kind=char model.params.d_model=16 model.params.d_kv=8 "
                 "model.params.d_ff=16 model.params.num_layers=1 model.params.num_decoder_layers=1 "
                 "model.params.num_heads=2",
         "translate": "train.batch_tokens=null data.max_length=40 generate.max_length=4 "
                      "model.vocab_size=1500 model.params.d_model=16 model.params.encoder_layers=1 "
                      "model.params.decoder_layers=1 "
                      "model.params.encoder_attention_heads=2 model.params.decoder_attention_heads=2 "
                      "model.params.encoder_ffn_dim=16 model.params.decoder_ffn_dim=16",
         "tts": "data.text.kind=characters speak.f0=false model.width=16 model.layers=1 model.hidden=16 "
                "model.prenet=1 model.decoder.width=16 model.decoder.blocks=1",
         "flow": "data.length=12 sample.steps=1 sample.sizes=[16] model.flow.width=16 model.flow.depth=1 "
                 "model.flow.heads=2 model.vae.width=8 model.vae.hidden=8 model.vae.attention=false "
                 "model.text.vocab=120 model.text.width=16 model.text.layers=1 model.text.heads=2"}


class Place:
    """A folder in which the commands run, with small data and trained runs where the README has FOLDER and
    RUN."""

    def __init__(self, folder):
        self.folder, self.made = folder, {}
        for name in ("nbs", "workbench", "settings.ini"):
            (folder / name).symlink_to(home / name)
        shutil.copy(signs.CLIP, folder / "clip.pose")
        (folder / "papermill_runs").mkdir()
        (folder / "texts.tsv").write_text(texts(300), encoding="utf8")

    def folder_of(self, name):
        "A user's data: `sign`, `translate`, `tts`, `flow`, or `am` for Amharic speech."
        if name not in self.made:
            make = {"sign": signs.good_folder, "am": voices.good_folder, "tts": english,
                    "flow": pictures, "translate": self.corpus}[name]
            self.made[name] = make(self.folder / f"data_{name}")
        return self.made[name]

    def corpus(self, _):
        "What `workbench prepare` makes of texts.tsv, where the README has it."
        out = self.folder / "corpora/own"
        if not out.exists():
            prepare.prepare("universal_tiny",
                            prepare.changes([str(self.folder / "texts.tsv")], "en-am", str(out)))
        return out

    def pretrained(self):
        "A folder with a small BERT and its tokenizer."
        folder = self.folder / "bert"
        if not folder.exists():
            tokenizer = train_tokenizer(texts(300).split("\n"), "unigram", 400)
            tokenizer.save_pretrained(folder)
            config = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1,
                                num_attention_heads=2, intermediate_size=16, max_position_embeddings=64)
            BertModel(config).save_pretrained(folder)
        return folder

    def start(self):
        "What `workbench bootstrap` makes, where the README has it."
        if not (self.folder / "models").exists():
            over = f"{self.small('universal_tiny')} bootstrap.source={self.pretrained()}"
            bootstrap(presets.load("universal_tiny", f"{over} bootstrap.out={self.folder / 'models'}"))

    def small(self, preset):
        "The settings that make a preset small: few rows, two steps of each stage, tiny nets."
        cfg = presets.load(preset)
        data = self.folder_of("am" if preset.startswith("amharic") else cfg.task)
        ends = [f"pipeline.steps.{s.name}.train.max_steps=2"
                for s in (cfg.pipeline.steps if cfg.pipeline else [])]
        return " ".join([f"data.source={data}", SMALL[cfg.task], BRIEF, *ends])

    def run(self, preset, path):
        "A trained run of a preset."
        if path not in self.made:
            self.made[path] = launch.train(preset, self.small(preset), self.folder / path)
        return self.made[path]


def texts(most):
    "A table of real pairs of English and Amharic."
    rows = (samples("translate") / "train/en-am.tsv").read_text(encoding="utf8").splitlines()[:most + 1]
    return "\n".join("\t".join(row.split("\t")[:2]) for row in rows) + "\n"


def english(folder):
    "Real recordings with a table in LJSpeech's layout."
    folder.mkdir()
    lines = sorted((samples("tts") / "en/train.csv").read_text(encoding="utf8").splitlines(), key=len)[80:110]
    for line in lines:
        shutil.copy(samples("tts") / "en" / line.split("|")[0], folder)
    table = [f"{Path(file).name}|{text}" for file, text in (line.split("|") for line in lines)]
    (folder / "metadata.csv").write_text("\n".join(table), encoding="utf8")
    return folder


def pictures(folder):
    "Real pictures with captions, eight of them held out."
    (folder / "images").mkdir(parents=True)
    table = (samples("emoji") / "train.tsv").read_text(encoding="utf8")
    rows = [row for row in table.splitlines() if "\tnoto\t" in row]
    # no letter of a held-out caption is new
    for split, part in (("train", rows[100:116]), ("valid", rows[300:304]), ("test", rows[424:428])):
        table = ["image\tcaption", *("\t".join(row.split("\t")[:2]) for row in part)]
        (folder / f"{split}.tsv").write_text("\n".join(table), encoding="utf8")
        for row in part:
            shutil.copy(samples("emoji") / row.split("\t")[0], folder / "images")
    return folder


def train_here(folder, ticket, nproc=1):
    "`launch.launch` in this process, which has loaded everything."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_TICKET", ticket)
        attempt(folder)
    launch.release(folder, ticket)
    return launch.Run(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("readme"))


@pytest.fixture
def here(place, own_runs, monkeypatch):
    "In the folder of the commands, and as a person's terminal: what trains, trains in this process."
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("WORKBENCH_RUNS", str(place.folder / "runs"))
    monkeypatch.setattr(launch, "launch", train_here)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield place
    for number, handler in before.items():
        signal.signal(number, handler)


def with_overrides(words, option, more):
    "Words of a command with settings added; the last of equal ones counts."
    if option in words:
        at = words.index(option) + 1
        return [*words[:at], f"{words[at]} {more}", *words[at + 1:]]
    return [*words, option, more]


def filled(line, place):
    "A line of the README with a real folder and real runs in place of the words in capitals."
    if "runs/voice" in line and "--run-dir" not in line or "OTHER_RUN" in line:
        line = line.replace("OTHER_RUN", str(place.run("tts_tiny", "runs/voice")))
    if re.search(r"\bRUN\b", line) or line == "workbench runs":
        run = place.run(*(("flow_tiny", "runs/pictures") if "flow" in line else
                          ("universal_tiny", "runs/texts") if "--to" in line or "export" in line
                          else ("t5_tiny", "runs/signs")))
        line = re.sub(r"\bRUN\b", str(run), line)
    if "model.start=models" in line:
        place.start()
    if "MODEL" in line:
        line = line.replace("MODEL", str(place.pretrained()))
    return line.replace("FOLDER", str(place.folder_of("flow" if "flow" in line else "tts")))


commands = [line for line in fenced("sh") if line.startswith("workbench ")]
notebooks = [line for line in fenced("sh") if line.startswith("papermill ")]


def test_every_line_of_the_readme_is_run_by_a_test():
    rest = {*fenced("sh")} - {*commands} - {*notebooks}
    assert rest == {"make train", "make test", "make docs", "make docs FAST=1",
                    ".venv/bin/jupyter lab nbs/index.ipynb"}


@pytest.mark.parametrize("line", commands)
def test_a_command_of_the_readme_runs(line, here, capsys, monkeypatch):
    words = shlex.split(filled(line, here))[1:]
    if words[0] in ("train", "plan", "check", "bootstrap"):
        more = here.small(words[1])
        if "model.start" in line:  # its vocabulary is read as it is
            more = more.replace("model.vocab_size=1500 ", "")
        words = with_overrides(words, "--overrides", more)
    if words[0] == "train" and "--run-dir" in words:
        shutil.rmtree(here.folder / "runs/voice", ignore_errors=True)
        here.made["runs/voice"] = here.folder / "runs/voice"
    if words[0] == "resume":
        words += ["--overrides", "train.max_steps=3"]
    if words[0] == "check":
        words[words.index("--deep") + 1] = "1"
    if words[0] == "docs":
        monkeypatch.setattr(serve.ThreadingHTTPServer, "serve_forever", lambda self: None)
        monkeypatch.setattr(serve.webbrowser, "open", lambda address: True)
        (here.folder / "_docs").mkdir()
        (here.folder / "_docs/index.html").touch()
    if words[0] == "demo":  # in a process of its own: gradio and its server change the streams of theirs
        pytest.importorskip("gradio")
        with subprocess.Popen([sys.executable, "-m", "workbench.lab.cli", *words, "--no-browser"], text=True,
                              stdout=subprocess.PIPE) as page:
            said = next(line for line in page.stdout if "http://127.0.0.1:" in line)
            address = re.search(r"http://[\d.:]+/", said)[0]
            with urllib.request.urlopen(address, timeout=60) as answer:
                assert answer.status == 200
            page.send_signal(signal.SIGINT)
            assert page.wait(60) == 130
        return
    code = cli.main(words)
    out, err = capsys.readouterr()
    assert code == 0, out + err
    expected = {"presets": "t5_tiny", "plan": "Plan", "check": "Reality checks", "train": "Scores of step_",
                "runs": "finished", "stop": "is not running", "resume": "Scores of step_00000003",
                "use": "\n",  # a line for each answer
                "say": "Good morning.", "check-model": "t5-small", "docs": "http://127.0.0.1:",
                "prepare": "rows of en-am", "bootstrap": "The new model",
                "export": "largest difference"}
    assert expected[words[0]] in out
    if "--out" in words and words[0] == "use":
        assert Path(words[words.index("--out") + 1]).stat().st_size > 10000


@pytest.mark.parametrize("line", notebooks)
def test_a_notebook_of_the_readme_runs(line, here, capsys, monkeypatch):
    """papermill sets the parameters; the cells run in this process. Notebooks under papermill from start to
    end: test_lab, test_flowchart, test_compare, test_pipelines. The page of a run: test_demo."""
    monkeypatch.setattr("workbench.lab.demo.serve.demo", lambda run: None)
    from click.testing import CliRunner
    from papermill.cli import papermill

    words = shlex.split(filled(line, here))[1:]
    if "config" in words:
        more = here.small(words[words.index("config") + 1])
        words = with_overrides(words, "overrides", more)
        if "-p" != words[words.index("overrides") - 1]:
            words.insert(words.index("overrides"), "-p")
    if "nbs/flowchart.ipynb" in words:
        words += ["-p", "upto", "data"]  # the stations after it: test_flowchart
    prepared = CliRunner().invoke(papermill, [*words, "--prepare-only"])
    assert prepared.exit_code == 0, prepared.output
    cells = [c.source for c in nbformat.read(words[1], 4).cells if c.cell_type == "code"]
    namespace = {"__name__": "__main__", "In": [""]}
    for cell in cells:
        namespace["In"].append(cell)
        run_cell(cell, namespace)
    assert capsys.readouterr().out


def run_cell(source, namespace):
    "Run a cell and show the value of its last line, as a notebook does."
    from IPython.display import display

    body = ast.parse(source).body
    last = [body.pop()] if body and isinstance(body[-1], ast.Expr) else []
    exec(compile(ast.Module(body, []), "<cell>", "exec"), namespace)
    for node in last:
        value = eval(compile(ast.Expression(node.value), "<cell>", "eval"), namespace)
        if value is not None:
            display(value)


def test_the_python_of_the_readme_runs(here, capsys, monkeypatch):
    train = launch.train
    monkeypatch.setattr(launch, "train", lambda config,
                        more, **how: train(config, f"{more} {here.small(config)}", **how))
    code = re.search(r"```python\n(.*?)```", readme, re.S)[1]
    assert f"```python\n{code}```" in pages["nbs/index.ipynb"]
    exec(code, names := {})
    assert "clip.pose →" in capsys.readouterr().out and set(names["nets"]) and names["data"].datasets


def test_jupyter_is_installed():
    line = next(line for line in fenced("sh") if "jupyter" in line)
    words = shlex.split(line.replace(".venv/bin/", f"{Path(sys.executable).parent}/"))
    done = subprocess.run([*words, "--version"], cwd=home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and re.match(r"\d+\.", done.stdout), done.stderr
    assert (home / words[-1]).exists()


def test_make_does_what_the_readme_says():
    def recipe(*target):
        done = subprocess.run(["make", "-n", *target], cwd=home, capture_output=True, text=True, check=True)
        return done.stdout

    assert 'papermill nbs/train.ipynb "papermill_runs/t5_tiny-' in recipe("train")
    assert '-p config "t5_tiny"' in recipe("train")
    assert "tests/check.sh" in recipe("test")
    assert "python -m workbench.lab.docs.site \n" in recipe("docs")
    assert "workbench.lab.docs.site --fast" in recipe("docs", "FAST=1")
    for target in ("train", "test", "docs"):  # the environment first, once
        assert re.search(rf"^{target}: \$\(ready\)$", (home / "Makefile").read_text(), re.M)
    assert re.search(r"^CI=true make test$", (home / ".ci/run").read_text(), re.M)
