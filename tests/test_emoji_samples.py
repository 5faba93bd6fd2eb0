"""The emoji pack: what its datasheet says is there, no concept is on two sides, no picture is known."""

import csv
import hashlib
import os
import runpy
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import workbench
from workbench.parts.image.rows import read_folder

PACK = Path(workbench.__file__).parent / "samples/emoji"
HOME = Path(__file__).parents[1]
COUNTS = {"train": 2413, "valid": 120, "test": 150, "style": 200}
COLUMNS = ["image", "caption", "keywords", "am", "am_keywords", "group", "style", "category", "subcategory"]


@pytest.fixture(scope="module")
def rows():
    "Split -> rows, each cell by the name of its column."
    found = {}
    for part in COUNTS:
        with open(PACK / f"{part}.tsv", encoding="utf8", newline="") as file:
            table = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            found[part] = list(table)
            assert table.fieldnames == COLUMNS
    return found


@pytest.fixture(scope="module")
def pixels(rows):
    "Split -> [N, 12288] from -1 to 1."
    read = {part: np.stack([np.asarray(Image.open(PACK / row["image"])) for row in found])
            for part, found in rows.items()}
    assert all(p.shape[1:] == (64, 64, 3) and p.dtype == np.uint8 for p in read.values())
    return {part: p.reshape(len(p), -1).astype(np.float32) / 127.5 - 1 for part, p in read.items()}


def test_the_pack_is_the_one_that_was_made():
    lines = (PACK / "SHA256SUMS").read_text(encoding="utf8").splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines)
    there = {p.relative_to(PACK).as_posix(): p
             for p in PACK.rglob("*") if p.is_file() and p.name != "SHA256SUMS"}
    assert set(there) == set(listed)
    for name, path in there.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[name], name
    assert sum(p.stat().st_size for p in there.values()) < 12e6


def test_the_datasheet_says_what_is_there_and_the_licences_are_shipped(rows):
    sheet, notice = ((PACK / "DATASHEET.md").read_text(encoding="utf8"),
                     (HOME / "NOTICE").read_text(encoding="utf8").replace("\n  ", " "))
    for part, found in rows.items():
        style = Counter(row["style"] for row in found)
        groups = len({row["group"] for row in found})
        assert len(found) == COUNTS[part]
        assert f"| {part} | {len(found)} | {groups} | {style['noto']} | {style['twemoji']} |" in sheet
    for words in ("Apache License 2.0", "Attribution 4.0 International", "Copyright Twitter", "MIT",
                  "Unicode License V3"):
        assert words in sheet, words
    for name, first in {"noto-emoji": "Apache License", "twemoji": "Attribution 4.0 International",
                        "emoji-datasource": "The MIT License", "unicode": "UNICODE LICENSE V3"}.items():
        assert first in (PACK / f"LICENSE.{name}").read_text(encoding="utf8")
        assert f"workbench/samples/emoji/LICENSE.{name}" in notice
    credit = (PACK / "LICENSE.twemoji").read_text(encoding="utf8")[:400]
    assert "Copyright Twitter" in credit and "Changed: drawn over white" in credit


def test_every_row_has_every_cell_and_every_picture_stands_once(rows):
    every = [row for found in rows.values() for row in found]
    assert all(all(row.values()) and len(row) == len(COLUMNS) for row in every)
    assert all(Path(row["image"]).stem.endswith(f"-{row['style']}") for row in every)
    names = [row["image"] for row in every]
    assert len(set(names)) == len(names) == len(list((PACK / "images").iterdir()))
    for column in ("keywords", "am_keywords"):
        assert all(word and word == word.strip()
                   for row in every for word in row[column].split(", "))
    said = {}
    for row in every:  # both styles of an emoji have the same words
        uid = row["image"].rsplit("-", 1)[0]
        assert said.setdefault(uid, [row[c] for c in COLUMNS[1:6]]) == [row[c] for c in COLUMNS[1:6]]
    assert len({words[0] for words in said.values()}) == len(said)


def test_a_new_concept_was_trained_in_no_style_and_a_new_style_in_the_other_one_only(rows):
    groups = {part: {row["group"] for row in found} for part, found in rows.items()}
    assert not groups["test"] & (groups["train"] | groups["valid"] | groups["style"])
    assert groups["style"] <= groups["train"] and not groups["style"] & groups["valid"]
    trained = {(row["group"], row["style"]) for row in rows["train"]}
    for part in ("valid", "test", "style"):
        assert len(groups[part]) == len(rows[part]), "a group is asked once"
        assert not any((row["group"], row["style"]) in trained for row in rows[part])
    emoji = {(row["caption"], row["style"]) for row in rows["train"]}
    other = {"noto": "twemoji", "twemoji": "noto"}
    assert all((row["caption"], other[row["style"]]) in emoji for row in rows["style"])
    assert len(groups["valid"] & groups["train"]) == 60


def test_genders_of_one_concept_and_emoji_that_share_a_picture_are_one_group(rows):
    group = {row["caption"]: row["group"] for row in rows["train"]}
    for captions in (("man astronaut", "woman astronaut", "astronaut"), ("vampire", "woman vampire"),
                     ("mermaid", "merman", "merperson"), ("one o’clock", "six-thirty"),
                     ("keycap: 3", "keycap: 8"), ("woman frowning", "woman pouting"),
                     ("family", "family: adult, adult, child")):
        there = [group[caption] for caption in captions if caption in group]
        assert len(there) > 1 and len(set(there)) == 1, captions
    assert len({group[c] for c in ("red apple", "green apple", "dog face", "cat face") if c in group}) > 2


def test_no_picture_that_is_held_out_is_nearly_one_that_was_trained(pixels):
    train = pixels["train"]
    square = (train ** 2).mean(1)
    for part in ("valid", "test", "style"):
        held = pixels[part]
        near = (square + (held ** 2).mean(1)[:, None] - 2 * held @ train.T / train.shape[1]).min()
        assert near >= 0.0099, part


def test_the_pack_is_read_as_any_folder_in_each_of_its_columns():
    for column in ("caption", "keywords", "am", "am_keywords"):
        found, rejected = read_folder(PACK, column=column)
        assert not rejected and {part: len(part_rows) for part, part_rows in found.items()} == COUNTS


@pytest.mark.skipif(not os.environ.get("EMOJI_PACKAGES"), reason="EMOJI_PACKAGES names no folder")
def test_the_notebook_makes_the_pack_again_bit_for_bit(tmp_path, monkeypatch):
    import matplotlib
    import nbformat

    matplotlib.use("Agg")
    cells = nbformat.read(HOME / "nbs/samples/30_emoji.ipynb", 4).cells
    script = tmp_path / "emoji.py"
    script.write_text("\n\n".join(c.source for c in cells if c.cell_type == "code"), encoding="utf8")
    monkeypatch.setenv("EMOJI_PACK", str(tmp_path / "pack"))
    monkeypatch.setenv("PATH", "")  # npm is not to be found: nothing is fetched
    runpy.run_path(str(script))
    assert (tmp_path / "pack/SHA256SUMS").read_bytes() == (PACK / "SHA256SUMS").read_bytes()
    shutil.rmtree(tmp_path / "pack")
