"""Raw texts of every format become a corpus: whole, broken, killed half-way, on the command line and in a
notebook."""
import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from workbench.core.config.presets import load
from workbench.errors import Refused
from workbench.lab import cli
from workbench.parts.corpus.build import build
from workbench.parts.corpus.decide import Plan
from workbench.parts.corpus.filters import Settings
from workbench.parts.corpus.sources import Raw, find_files
from workbench.parts.corpus.store import open_corpus
from workbench.tasks.translate.preparing import corpus_of

home = Path(__file__).parents[1]
# another pair than the samples have: English and Oromo
ROWS = [(f"Open the {noun} number {i}", f"{oromo} lakkoofsa {i} bani") for i in range(12)
        for noun, oromo in (("file", "Faayila"), ("window", "Foddaa"), ("door", "Balbala"))]
ROWS += [('He said "yes", twice', 'Inni "eeyyee" jedhe, yeroo lama'),
         ("Save & close <all>", "Olkaa'i & cufi <hunda>")]


# A pair in each format

def write_tsv(path):
    path.write_text("source\ttarget\n" + "".join(f"{a}\t{b}\n" for a, b in ROWS), encoding="utf8")


def write_csv(path):
    with open(path, "w", newline="", encoding="utf8") as f:
        csv.writer(f).writerows([("om", "en"), *((b, a) for a, b in ROWS)])


def write_jsonl(path):
    path.write_text("".join(json.dumps({"translation": {"en": a, "om": b}}, ensure_ascii=False) + "\n"
                            for a, b in ROWS), encoding="utf8")


def write_gz(path):
    with gzip.open(path, "wt", encoding="utf8") as f:
        f.write("en\tom\n" + "".join(f"{a}\t{b}\n" for a, b in ROWS))


def write_tmx(path):
    from xml.sax.saxutils import escape

    units = "".join(f'<tu><tuv xml:lang="en-US"><seg>{escape(a)}</seg></tuv><tuv '
                    f'xml:lang="om-ET"><seg>{escape(b)}'
                    "</seg></tuv></tu>\n" for a, b in ROWS)
    path.write_text('<?xml version="1.0" encoding="UTF-8"?>\n<tmx version="1.4"><header '
                    f'srclang="en-US"/><body>\n{units}'
                    "</body></tmx>", encoding="utf8")


def write_po(path):
    quoted = lambda text: json.dumps(text, ensure_ascii=False)
    head = 'msgid ""\nmsgstr ""\n"Language: om\\n"\n"Content-Type: text/plain; charset=UTF-8\\n"\n'
    rest = '\n#, fuzzy\nmsgid "Quit"\nmsgstr "Bani"\n\n#~ msgid "Old"\n#~ msgstr "Moofaa"\n'
    path.write_text(head + "".join(f"\nmsgid {quoted(a)}\nmsgstr {quoted(b)}\n" for a, b in ROWS) + rest,
                    encoding="utf8")


def write_moses(path):
    for suffix, side in ((".en", 0), (".om", 1)):
        path.with_suffix(suffix).write_text("".join(row[side] + "\n" for row in ROWS), encoding="utf8")


WRITERS = {"a.tsv": write_tsv, "a.csv": write_csv, "a.jsonl": write_jsonl, "a.tsv.gz": write_gz,
           "a.tmx": write_tmx,
           "a.po": write_po, "a.moses": write_moses}


def texts(corpus):
    "All rows by split."
    return {split: [(r.pair, r.source, r.target) for r in corpus.rows(split)]
            for split in ("train", "valid", "test")}


def listed(path):
    with open(path, newline="", encoding="utf8") as f:
        return list(csv.DictReader(f))


def table(path, rows, head="source\ttarget"):
    "A table, its folder made."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in (head, *("\t".join(row) for row in rows))),
                    encoding="utf8",
                    errors="surrogateescape")
    return path


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_pair_in_every_format_gives_the_same_rows(name, tmp_path):
    if name.endswith(".po"):
        pytest.importorskip("polib")
    raw = tmp_path / "raw"
    raw.mkdir()
    WRITERS[name](raw / name)
    found = build(find_files(raw, ("en", "om")), tmp_path / "corpus", Plan(valid=0.1, test=0.1))
    write_tsv(tmp_path / "en-om.tsv")
    wanted = build(find_files(tmp_path / "en-om.tsv"), tmp_path / "wanted", Plan(valid=0.1, test=0.1))
    assert texts(found) == texts(wanted) and sum(map(len, texts(found).values())) == len(ROWS)
    if name.endswith(".po"):
        assert [r["reason"] for r in listed(tmp_path / "corpus" / "rejected.csv")] == ["fuzzy", "obsolete"]


# What is wrong with a file

DOCTYPE = '<?xml version="1.0"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n<tmx><header/><body></body></tmx>'
ENTITY = '<?xml version="1.0"?>\n<!DOCTYPE tmx [<!ENTITY name "hello">]>\n<tmx><header/><body></body></tmx>'
EXTERNAL = '<?xml version="1.0"?>\n\n<!DOCTYPE tmx [<!ENTITY name SYSTEM "name.txt">]>\n<tmx><header/></tmx>'
PO = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=%s\\n"\n\nmsgid "open"\nmsgstr "öffnen"\n'


@pytest.mark.parametrize("name, data, said, row", [
    ("a.tmx", DOCTYPE, "declares a document type", "2"), ("a.tmx", ENTITY, "document type", "2"),
    ("a.tmx", EXTERNAL, "document type", "3"), ("a.tmx", "<tmx>\n<body>\n<tu>", "it is no XML", "3"),
    ("a.po", (PO % "UTF-8").encode("latin-1"), "charset UTF-8", "5"),
    ("a.po", (PO % "ISO-8859-1").encode(), "its bytes are UTF-8", ""),
    ("a.po", PO % "UTF-99", "which is none", ""),
    ("a.csv", 'en,om\n"open,bani\n', "quotation marks", "2"),
    ("a.tsv", "one\ttwo\tsource\n", "Call the two texts", "")])
def test_a_file_that_cannot_be_read_is_named_with_its_row(name, data, said, row, tmp_path):
    if name.endswith(".po"):
        pytest.importorskip("polib")
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(Refused) as e:
        build([Raw(path, pair=("en", "om"))], tmp_path / "corpus")
    assert str(path) in str(e.value) and said in str(e.value)
    assert not (tmp_path / "corpus").exists()
    entry, = listed(tmp_path / "corpus-rejected.csv")
    assert (entry["file"], entry["row"], entry["reason"]) == (name, row,
                                                              "unreadable") and said in entry["why"]


def test_files_of_unequal_length_are_refused_with_both_counts(tmp_path):
    (tmp_path / "a.en").write_text("one\ntwo\nthree\n")
    (tmp_path / "a.om").write_text("tokko\nlama\n")
    with pytest.raises(Refused, match=r"a.en has 3 lines and .*a.om has 2"):
        build(find_files(tmp_path), tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


# What is wrong with rows

FAULTY = [("Close", "", "missing_side"), ("", "Cufi", "missing_side"), ("Shut", "ዝጋ", "wrong_script"),
          ("Открыть", "Bani", "wrong_script"), ("caf\udce9", "Buna", "broken_utf8"),
          ("Bell \x07", "Bilbila", "control"),
          ("only one cell", None, "unreadable"), ("Lost \ufffd", "Bade", "broken_utf8")]


def test_every_faulty_row_is_listed_with_file_and_row(tmp_path):
    rows = [*ROWS, *((a,) if b is None else (a, b) for a, b, _ in FAULTY), ROWS[0],
            (ROWS[1][0].upper() + "!", ROWS[1][1])]
    path = table(tmp_path / "en-om.tsv", rows)
    corpus = build(find_files(path), tmp_path / "corpus", Plan(max_rejected=0.5, valid=0, test=0))
    found = listed(corpus.folder / "rejected.csv")
    first = len(ROWS) + 2
    wanted = [(str(first + i), reason) for i, (_, _, reason) in enumerate(FAULTY)]
    assert [(r["row"], r["reason"]) for r in found] == [*wanted, (str(first + 8), "duplicate"),
                                                        (str(first + 9), "near_duplicate")]
    assert {r["file"] for r in found} == {"en-om.tsv"} and found[4]["source"] == "caf\\udce9"
    assert found[8]["why"] == "says the same as en-om.tsv:2" and found[5]["why"].endswith("U+0007")
    facts = corpus.facts
    assert facts["read"] == len(rows) == sum(facts["kept"].values()) + sum(facts["left_out"].values())
    assert facts["faulty"] == len(FAULTY)
    examples = json.loads((corpus.folder / "report.json").read_text())["examples"]
    assert [x["row"] for x in examples["wrong_script"]] == [first + 2, first + 3]


def test_too_many_faulty_rows_stop_before_anything_is_written(tmp_path):
    path = table(tmp_path / "en-om.tsv", [*ROWS, *[("Close", "")] * 10])
    with pytest.raises(Refused) as e:
        build(find_files(path), tmp_path / "corpus")
    for words in ("10 of 48 rows are faulty (20.8%)", "10 missing_side", "en-om.tsv, row 40",
                  "corpus-rejected.csv"):
        assert words in str(e.value)
    assert not (tmp_path / "corpus").exists() and len(listed(tmp_path / "corpus-rejected.csv")) == 10
    corpus = build(find_files(path), tmp_path / "corpus", Plan(max_rejected=0.3))
    assert corpus.facts["faulty"] == 10 and not (tmp_path / "corpus-rejected.csv").exists()
    assert len(listed(corpus.folder / "rejected.csv")) == 10


def test_placeholders_are_pointed_out_and_kept(tmp_path):
    path = table(tmp_path / "en-om.tsv", [*ROWS, ("%d files", "Faayiloota")])
    corpus = build(find_files(path), tmp_path / "corpus", Plan(valid=0, test=0))
    assert corpus.splits == {"train": len(ROWS) + 1}
    assert [(r["reason"], r["why"]) for r in listed(corpus.folder / "warnings.csv")][1:] == [
        ("placeholders", "only the source: %d")]  # the first are marks of a page that were translated


# Splits

def test_no_text_of_a_held_out_row_is_trained_on(tmp_path):
    "Neither as source nor as target, in no pair and in no direction, capitals and marks aside."
    raw = tmp_path / "raw"
    table(raw / "train" / "en-om.tsv", ROWS)
    table(raw / "train" / "om-en.tsv", [(b, a) for a, b in ROWS])
    table(raw / "train" / "en-de.tsv", [(ROWS[0][0].lower() + ".", "Datei öffnen"), ("Close", "Schließen")])
    table(raw / "valid" / "en-om.tsv", ROWS[:3])
    table(raw / "test" / "en-om.tsv", ROWS[2:5])
    corpus = build(find_files(raw), tmp_path / "corpus", Plan(valid=0, test=0))
    found = texts(corpus)
    assert corpus.splits == {"train": 2 * (len(ROWS) - 5) + 1, "valid": 2, "test": 3}
    held = {t for split in ("valid", "test") for row in found[split] for t in row[1:]}
    assert not held & {t for row in found["train"]
                       for t in row[1:]} and ("en-de", "Close", "Schließen") in found["train"]
    assert corpus.facts["left_out"] == {"leak": 5 + 5 + 1 + 1}


def test_a_split_by_texts_is_the_same_in_every_pair_and_order(tmp_path):
    raw = tmp_path / "raw"
    table(raw / "en-om.tsv", ROWS)
    table(raw / "en-de.tsv", [(a, f"Nummer {i} öffnen bitte") for i, (a, _) in enumerate(ROWS)])
    plan = Plan(Settings(ratio=None), valid=0.15, test=0.15)
    corpus = build(find_files(raw), tmp_path / "corpus", plan)
    at = {split: {p: {r[1] for r in rows if r[0] == p} for p in corpus.pairs}
          for split, rows in texts(corpus).items()}
    assert all(at[split]["en-om"] == at[split]["en-de"] and at[split]["en-om"] for split in at)
    table(raw / "en-om.tsv", ROWS[::-1])
    again = build(find_files(raw), tmp_path / "again", plan)
    assert {s: sorted(rows)
            for s, rows in texts(again).items()} == {s: sorted(rows) for s, rows in texts(corpus).items()}
    other = build(find_files(raw), tmp_path / "other",
                  Plan(Settings(ratio=None), valid=0.15, test=0.15, seed=1))
    assert texts(other)["test"] != texts(again)["test"]


# A kill, several processes, the cache

def many(path, rows=60_000):
    return table(path,
                 [(f"Line {i} of the {i % 7}th book", f"Toora {i} kitaaba {i % 7}ffaa") for i in range(rows)])


def command(*words):
    return [sys.executable, "-m", "workbench.lab.cli", *map(str, words)]


def test_a_killed_preparation_goes_on_and_ends_with_the_same_bytes(tmp_path):
    path, work = many(tmp_path / "en-om.tsv"), tmp_path / ".corpus.work"
    words = command("prepare", "universal_tiny", path, "--out", tmp_path / "corpus")
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(list(work.glob("*.npz"))) < 2 and child.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it was over before it could be killed"
    assert not (tmp_path / "corpus").exists()
    before = {p: p.stat().st_mtime_ns for p in sorted(work.glob("*.npz"))[:2]}
    rest = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    kept = set()
    while rest.poll() is None:
        kept |= {p for p, t in before.items() if p.exists() and p.stat().st_mtime_ns == t}
        time.sleep(0.02)
    assert rest.returncode == 0, rest.stdout.read()
    assert kept == set(before), "chunks were made twice"
    cfg = load("universal_tiny",
               {"prepare": {"sources": [{"path": str(path)}], "out": str(tmp_path / "whole")}})
    assert content(corpus_of(cfg).folder) == content(tmp_path / "corpus")
    assert not list(tmp_path.glob(".*.work"))


def test_several_processes_write_the_same_bytes_and_a_second_run_writes_nothing(tmp_path):
    path = many(tmp_path / "en-om.tsv", 45_000)
    one = build(find_files(path), tmp_path / "one")
    two = build(find_files(path), tmp_path / "two", workers=2)
    assert content(one.folder) == content(two.folder)
    times = {p: p.stat().st_mtime_ns for p in one.folder.iterdir()}
    assert build(find_files(path), tmp_path / "one").fingerprint == one.fingerprint
    assert {p: p.stat().st_mtime_ns for p in one.folder.iterdir()} == times


# The configuration, the command, the notebook

def test_sources_of_a_configuration(tmp_path):
    path = table(tmp_path / "en-om.tsv", ROWS)
    made = table(tmp_path / "made.tsv",
                 [("A machine wrote this", "Maashiniitu kana barreesse"), ("And this", "Kanas")])
    sources = [{"path": str(path)}, {"path": str(made), "pair": "en-om", "synthetic": True}]
    cfg = load("universal_tiny", {"prepare": {"sources": sources, "vocab_size": 700}})
    corpus = corpus_of(cfg)
    assert [r.source for r in corpus.rows("train") if r.synthetic] == ["A machine wrote this", "And this"]
    assert not corpus.rows("valid").synthetic.any() and (corpus.folder / "vocabulary"
                                                         / "vocabulary.json").is_file()
    assert open_corpus(corpus.folder).fingerprint == corpus.fingerprint
    cfg = load("universal_tiny", {"data": {"source": str(corpus.folder)}})
    assert corpus_of(cfg).fingerprint == corpus.fingerprint


def test_the_command(tmp_path, capsys):
    path = table(tmp_path / "texts.tsv", [*ROWS, ("Close", "")])
    assert cli.main(["prepare", "universal_tiny", str(path), "--out", str(tmp_path / "corpus")]) == 2
    assert "Say what pair it holds" in capsys.readouterr().err
    words = ["prepare", "universal_tiny", str(path), "--pair", "en-om", "--out", str(tmp_path / "corpus")]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "missing_side     1  2.56%  fault" in said and "target: there is no text" in said
    assert cli.main([*words, "--overrides", "prepare.max_rejected=0.01"]) == 2
    assert "1 of 39 rows are faulty (2.6%)" in capsys.readouterr().err
    assert cli.main(["prepare", "t5_tiny"]) == 2 and "nothing to prepare" in capsys.readouterr().err
    assert cli.main(["prepare", "universal_tiny", str(tmp_path)]) == 2  # a folder of other things is no place


def test_two_aligned_files_on_the_command_line(tmp_path, capsys):
    write_moses(tmp_path / "a.moses")
    assert cli.main(["prepare", "universal_tiny", str(tmp_path / "a.en"), str(tmp_path / "a.om"), "--out",
                     str(tmp_path / "corpus")]) == 0
    assert f"{len(ROWS)} rows of en-om" in capsys.readouterr().out


def papermill(out, *arguments):
    "Run prepare.ipynb; (exit status, what papermill said, the executed notebook)."
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-m", "papermill", str(home / "nbs/prepare.ipynb"), str(out), "-k",
                           "python3",
                           "--no-progress-bar", *arguments], capture_output=True, text=True, timeout=300,
                           env=env)
    return done.returncode, done.stdout + done.stderr, nbformat.read(out, 4)


def test_the_notebook(tmp_path):
    path = table(tmp_path / "texts.tsv", [*ROWS, ("Close", "")])
    code, said, notebook = papermill(tmp_path / "out.ipynb", "-p", "files", str(path), "-p", "pair", "en-om",
                                     "-p", "out",
                                     str(tmp_path / "corpus"))
    assert code == 0, said
    shown = [o["data"] for c in notebook.cells for o in c.get("outputs", []) if "data" in o]
    page = "\n".join(str(data) for data in shown)
    assert ("missing_side" in page and "Rows of each pair" in page
            and any("image/png" in data for data in shown))
    assert open_corpus(tmp_path / "corpus").facts["read"] == 39
    code, said, notebook = papermill(tmp_path / "out.ipynb", "-p", "file", str(path))
    assert code != 0 and "no parameter `file`" in said
