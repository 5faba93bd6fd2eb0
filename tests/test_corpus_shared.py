"Two processes that start at once on the same raw texts make one corpus, and a run keeps to its own."
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from workbench.core.config.presets import load
from workbench.errors import Refused
from workbench.parts.corpus import store
from workbench.parts.corpus.journal import inputs_of
from workbench.parts.corpus.store import is_corpus, open_corpus
from workbench.tasks.translate.preparing import corpus_of

home = Path(__file__).parents[1]
PROGRAM = """
import sys, time
from workbench.parts.corpus import build, journal
from workbench.parts.corpus.sources import find_files

slow, kept = float(sys.argv[3]), journal.work_on
def work_on(*given):
    print("working", flush=True)
    time.sleep(slow)
    return kept(*given)
journal.work_on = work_on
say = lambda sentence: print(sentence, flush=True)
corpus = build.build(find_files(__import__("pathlib").Path(sys.argv[1])), sys.argv[2], waits=say)
print("corpus", corpus.fingerprint, flush=True)
"""


def start(raw, out, slow):
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(raw), str(out), str(slow)], cwd=home,
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture
def raw(tmp_path):
    (tmp_path / "raw").mkdir()
    rows = [f"The house has {i} doors.\tDas Haus hat {i} Türen.\n" for i in range(60)]
    (tmp_path / "raw/texts.en-de.tsv").write_text("".join(rows), encoding="utf8")
    return tmp_path / "raw"


@pytest.mark.parametrize("killed", [False, True])
def test_the_second_waits_for_the_first_and_uses_its_corpus(raw, tmp_path, killed):
    first = start(raw, tmp_path / "out", 600 if killed else 6)
    assert first.stdout.readline() == "working\n"
    second = start(raw, tmp_path / "out", 0)
    assert "another process prepares this corpus" in second.stdout.readline()
    if killed:
        os.kill(first.pid, signal.SIGKILL)
    said, there = second.communicate(timeout=120)[0].splitlines(), first.communicate(timeout=120)[0]
    assert second.returncode == 0 and is_corpus(tmp_path / "out")
    if killed:  # then it works itself
        assert said[0] == "working" and first.returncode == -signal.SIGKILL
    else:
        assert said == there.splitlines() == [f"corpus {open_corpus(tmp_path / 'out').fingerprint}"]
    assert not (tmp_path / ".out.work").exists()


def test_a_run_goes_on_with_the_corpus_that_it_began_with(raw, tmp_path, own_runs, monkeypatch):
    """Fault: a new version of the filters changed the fingerprint of raw texts, and a run could not go on."""
    assets = tmp_path / "assets"
    assets.mkdir()
    cfg = load("universal_tiny", f"data.source={raw}")
    began = corpus_of(cfg, assets=assets)
    finish = store.Writer.finish
    monkeypatch.setitem(inputs_of.__kwdefaults__, "version", 2)
    monkeypatch.setattr(store.Writer, "finish",
                        lambda self: (self.files.append("of a later version"), finish(self)))
    other = corpus_of(cfg)
    assert other.folder != began.folder and other.fingerprint != began.fingerprint
    again = corpus_of(cfg, assets=assets)
    assert (again.folder, again.fingerprint) == (began.folder, began.fingerprint)
    shutil.rmtree(began.folder)
    with pytest.raises(Refused, match="this run began with the corpus .* begin a new run"):
        corpus_of(cfg, assets=assets)
    more = raw / "more.en-de.tsv"
    more.write_text("One more house.\tNoch ein Haus.\n", encoding="utf8")
    assert corpus_of(cfg, assets=assets).fingerprint != other.fingerprint  # the core sees that it is another
