"Pictures and captions as people have them, and the store that every process reads."
import errno
import io
import json
import multiprocessing
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from workbench.errors import Refused
from workbench.parts.image import picture_cache, store as stores
from workbench.parts.image.byte_range import read_member
from workbench.parts.image.files import fit, read_picture
from workbench.parts.image.rows import read_folder
from workbench.parts.image.shards import write_shards
from workbench.parts.image.sources import has_table, read_pictures
from workbench.parts.image.store import open_store


def picture(n, size=(12, 10)):
    return Image.fromarray(np.random.default_rng(n).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def saved(image, kind="PNG", **how):
    box = io.BytesIO()
    image.save(box, kind, **how)
    return box.getvalue()


def folder_of(home, files):
    "A folder of texts, trees of JSON, and pictures where None stands."
    for n, (name, content) in enumerate(files.items()):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            picture(n).save(home / name)
        else:
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            (home / name).write_text(text, encoding="utf8")
    return home


def captions(rows):
    return {split: {r.uid: r.captions for r in part} for split, part in rows.items()}


# Files of captions as users have them

FLICKR = {"Images/dog.jpg": None, "Images/cat.jpg": None}
BOTH = {"train": {"Images/dog.jpg": ("A dog runs .", "A dog , wet ."), "Images/cat.jpg": ('A "cat" .',)}}
LAYOUTS = {
    "captions.txt": 'image,caption\ndog.jpg,A dog runs .\ndog.jpg,"A dog , wet ."\ncat.jpg,"A ""cat"" ."\n',
    "captions.tsv": 'dog.jpg#0\tA dog runs .\ndog.jpg#1\tA dog , wet .\ncat.jpg#0\tA "cat" .\n',
    "captions.csv": 'image_name| comment_number| caption\ndog.jpg| 0| A dog runs .\ndog.jpg| 1| A dog , wet '
                    '.\n'
                    'cat.jpg| 0| A "cat" .\n',
    "metadata.jsonl": '{"file_name": "dog.jpg", "caption": "A dog runs ."}\n'
                      '{"file_name": "dog.jpg", "caption": "A dog , wet ."}\n\n'
                      '{"file_name": "cat.jpg", "caption": "A \\"cat\\" ."}\n',
    "metadata.json": [{"image": "Images/dog.jpg", "caption": ["A dog runs .", "A dog , wet ."]},
                      {"image": "Images/cat.jpg", "caption": 'A "cat" .'}],
    "captions.json": {"dog.jpg": ["A dog runs .", "A dog , wet ."], "cat.jpg": 'A "cat" .'},
    "annotations/captions_train2017.json": {
        "images": [{"id": 9, "file_name": "dog.jpg"}, {"id": 4, "file_name": "cat.jpg"}],
        "annotations": [{"image_id": 9, "id": 1, "caption": "A dog runs ."},
                        {"image_id": 9, "id": 2, "caption": "A dog , wet ."},
                        {"image_id": 4, "id": 3, "caption": 'A "cat" .'}]}}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_captions_gives_the_same_rows(name, tmp_path):
    home = folder_of(tmp_path, FLICKR | {name: LAYOUTS[name]})
    for how in ({}, {"captions": home / name}):
        rows, rejected = read_pictures(str(home), **how, cache=tmp_path.parent / f"{tmp_path.name}.cache")
        assert captions(rows) == BOTH and not rejected and has_table(str(home), **how)


def test_captions_survive_shards(tmp_path):
    home = folder_of(tmp_path, FLICKR | {"captions.txt": LAYOUTS["captions.txt"]})
    rows, _ = read_pictures(str(home))
    paths = write_shards(rows["train"], tmp_path / "shards")
    again, rejected = read_pictures(paths, cache=tmp_path / "index")
    assert not rejected and [r.captions for r in again["train"]] == [r.captions for r in rows["train"]]
    assert read_pictures(paths, cache=tmp_path / "index")[0] == again


def test_coco_has_two_splits_and_says_what_does_not_fit(tmp_path):
    def coco(*rows):
        return {"images": [{"id": n, "file_name": name} for n, (name, _) in enumerate(rows)] + [
                    {"id": 99, "file_name": "alone.jpg"}],
                "annotations": [{"image_id": n, "caption": c} for n, (_, c) in enumerate(rows)] + [
                    {"image_id": 1000, "caption": "of nothing"}]}

    home = folder_of(tmp_path, {
        "train2017/a.jpg": None, "train2017/alone.jpg": None, "val2017/b.jpg": None,
        "annotations/captions_train2017.json": coco(("a.jpg", "one"), ("gone.jpg", "two"),
                                                    ("b.jpg", "three")),
        "annotations/captions_val2017.json": coco(("b.jpg", "four"))})
    rows, rejected = read_pictures(str(home), home / "annotations/captions_train2017.json")
    assert captions(rows) == {"train": {"train2017/a.jpg": ("one",)}, "valid": {"val2017/b.jpg": ("four",)}}
    reasons = {r["row"]: r["reason"] for r in rejected if "train" in r["row"]}
    assert [next(w for w in ("twice", "no image", "no caption", "no such file") if w in why)
            for _, why in sorted(reasons.items())] == ["no such file", "twice", "no image", "no caption"]


def test_a_name_that_two_folders_have_is_refused_and_a_row_says_its_concept_and_style(tmp_path):
    home = folder_of(tmp_path, {
        "a/1.png": None, "b/1.png": None, "b/2.png": None,
        "train.csv": "image,caption,keywords,group,style\n1.png,x,,,\na/1.png,one,\"uno, "
                     "un\",number,noto\n2.png,two,,,\n"})
    rows, rejected = read_pictures(str(home), column="caption,keywords")
    assert captions(rows) == {"train": {"a/1.png": ("one", "uno, un"), "b/2.png": ("two",)}}
    assert (rows["train"][0].group, rows["train"][0].style) == ("number", "noto")
    assert rejected == [{"row": "train.csv:2", "uid": "1.png", "reason": rejected[0]["reason"]}]
    assert "2 files have this name, a/1.png and b/1.png" in rejected[0]["reason"]


@pytest.mark.parametrize("name, content, why", [
    ("train.json", [{"image": "a.png", "text": "x"}],
     "has no caption; it has image, text: name the right key in data.column"),
    ("train.json", '[{"image": "a.png"', "the JSON cannot be read"),
    ("train.csv", "image,text\na.png,x\n", "column caption is missing"),
    ("train.jsonl", '{"image": "a.png", "caption": "x", "split": "train"}\n'
                    '{"image": "b.png", "caption": "y", "split": "val"}\n',
                    "its column split has train, val")])
def test_a_file_of_captions_that_cannot_be_read_is_refused_whole(name, content, why, tmp_path):
    with pytest.raises(Refused, match="data.source") as e:
        read_pictures(str(folder_of(tmp_path, {"a.png": None, name: content})))
    assert why in str(e.value)


@pytest.mark.parametrize("text, kept", [
    ("<b>A &quot;red&quot;</b> apple<br/>", "<b>A &quot;red&quot;</b> apple<br/>"), ("a\tb\n  c", "a b c"),
    ("ቀይ ፖም።", "ቀይ ፖም።"), ("cafe\u0301", "café"), ("x" * 10_000, "x" * 10_000),
    ("👩‍🚀", "👩‍🚀"),
    ("x" * 10_001, None), ("a\0b", None), ("\ud83d", None), (" \n\t", None)])
def test_the_rule_for_captions_is_one_for_all_layouts(text, kept, tmp_path):
    home = folder_of(tmp_path, {"a.png": None, "b.png": None})
    (home / "metadata.json").write_text(json.dumps({"a.png": "one", "b.png": text}))
    rows, rejected = read_pictures(str(home))
    assert captions(rows)["train"] == {"a.png": ("one",)} | ({"b.png": (kept,)} if kept else {})
    assert [r["uid"] for r in rejected] == ([] if kept else ["b.png"])
    (home / "metadata.json").unlink()
    (home / "a.txt").write_text("one")
    (home / "b.txt").write_bytes(text.encode("utf8", "surrogatepass"))
    rows, rejected = read_pictures(str(home))
    assert captions(rows)["train"].get("b.png") == ((kept,) if kept
                                                    else None) and bool(rejected) != bool(kept)


# Pictures of any mode

def palette(transparency):
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    return saved(image, transparency=transparency)


def cmyk(kind):
    return saved(Image.new("RGB", (16, 16), (200, 40, 20)).convert("CMYK"), kind, quality=100)


def moving():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("data, colour", [
    (saved(Image.new("LA", (8, 8), (0, 0))), (255, 255, 255)),  # the hidden colour is black
    (saved(Image.new("RGBA", (8, 8), (255, 0, 0, 0))), (255, 255, 255)),
    (saved(Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "WEBP", lossless=True, exact=True), (255, 255, 255)),
    (palette(0), (255, 255, 255)), (palette(bytes([128])), (255, 127, 127)),
    (cmyk("JPEG"), (200, 40, 20)), (cmyk("TIFF"), (200, 40, 20)),
    (saved(Image.fromarray(np.full((8, 8), 40_000, np.uint16))), (156, 156, 156)),
    (saved(Image.fromarray(np.full((8, 8), 40_000, np.uint16)), "TIFF"), (156, 156, 156)),
    (saved(Image.new("1", (8, 8), 1)), (255, 255, 255)), (moving(), (255, 0, 0))],
    ids=["LA", "RGBA", "WEBP", "P colour", "P table", "CMYK JPEG", "CMYK TIFF", "I;16 PNG", "I;16 TIFF", "1",
         "GIF"])
def test_any_mode_becomes_rgb_over_white_in_the_store(data, colour, tmp_path):
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "a.txt").write_text("x")
    rows, rejected = read_folder(tmp_path)
    pixels = open_store(rows["train"], 4, tmp_path / "store")[0]
    assert not rejected and np.abs(pixels.astype(int) - colour).max() <= 1


@pytest.mark.parametrize("turn", range(1, 9))
def test_an_orientation_of_exif_is_carried_out(turn, tmp_path):
    upright = Image.new("RGB", (20, 30), "white")
    ImageDraw.Draw(upright).rectangle((0, 0, 9, 14), "red")  # above, left
    laid = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(turn)  # Pillow's transposition that the turn undoes
    exif = Image.Exif()
    exif[0x0112] = turn
    (upright if laid is None
     else upright.transpose(Image.Transpose(laid))).save(tmp_path / "a.png", exif=exif)
    (tmp_path / "a.txt").write_text("x")
    row = read_folder(tmp_path)[0]["train"][0]
    pixels = open_store([row], (6, 4), tmp_path / "store")[0]
    assert (row.height, row.width) == (30, 20)
    for place, colour in (((0, 0), (255, 0, 0)), ((5, 0), (255, 255, 255)), ((0, 3), (255, 255, 255))):
        assert np.abs(pixels[place].astype(int) - colour).max() < 20


def test_a_huge_picture_is_refused_by_its_header_without_a_warning(tmp_path):
    for n, side in enumerate((10_000, 65_535)):
        bomb = bytearray(saved(Image.new("L", (2, 2))))
        bomb[16:24] = struct.pack(">II", side, side)
        bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
        (tmp_path / f"{n}.png").write_bytes(bomb)
        (tmp_path / f"{n}.txt").write_text("x")
    code = ("import sys; from workbench.parts.image.rows import read_folder\n"
            "for r in read_folder(sys.argv[1])[1]: print(r['uid'], r['reason'])")
    out = subprocess.run([sys.executable, "-W", "error", "-c", code, tmp_path], capture_output=True,
                         text=True)
    assert out.returncode == 0 and not out.stderr
    assert [line.split()[0] for line in out.stdout.splitlines()] == ["0.png", "1.png"]
    assert all("pixels" in line for line in out.stdout.splitlines())


def test_a_file_larger_than_any_picture_is_not_read(tmp_path, monkeypatch):
    folder_of(tmp_path, {"a.png": None, "a.txt": "x"})
    monkeypatch.setattr(picture_cache, "LARGEST", 100)
    assert "bytes, more than 100" in read_folder(tmp_path)[1][0]["reason"]


# The store

@pytest.fixture
def rows(tmp_path):
    folder_of(tmp_path / "p",
              {f"{n:02d}.png": None for n in range(30)} | {f"{n:02d}.txt": "x" for n in range(30)})
    return read_folder(tmp_path / "p")[0]["train"]


def plain(rows, size):
    return np.stack([fit(read_picture(r.where), size, size) for r in rows])


def test_a_store_has_the_pixels_that_decoding_gives_and_is_the_same_file_each_time(rows, tmp_path):
    for folder in ("a", "b"):
        store = open_store(rows, 8, tmp_path / folder)
        assert np.array_equal(store[range(30)], plain(rows, 8)) and len(store) == 30
    files = [sorted((tmp_path / folder).glob("[0-9]*")) for folder in "ab"]
    assert len(files[0]) == 2 and [p.name for p in files[0]] == [p.name for p in files[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files))
    assert np.load(store.path).shape == (30, 8, 8, 3)
    again = open_store(rows, 8, tmp_path / "a", read=None)  # nothing is read
    assert np.array_equal(again[3], store[3])
    again[3][:] = 0  # a copy
    assert np.array_equal(again[3], store[3])


def test_only_the_place_of_a_store_travels_to_a_worker(rows, tmp_path):
    from torch.utils.data import DataLoader

    store = open_store(rows * 2, 64, tmp_path / "s")
    store.pixels()
    assert len(store) == 60 and store.pixels().shape[0] == 30 and len(pickle.dumps(store)) < 30_000
    for context in ("fork", "spawn"):
        found = list(DataLoader(store, 15, num_workers=2, multiprocessing_context=context))
        assert np.array_equal(np.concatenate([b.numpy() for b in found]),
                              np.tile(plain(rows, 64), (2, 1, 1, 1)))


def test_what_changed_is_made_again_and_nothing_else(rows, tmp_path):
    def counted(where):
        asked.append(Path(where).name)
        return read_member(where)

    cache, asked = tmp_path / "cache.json", []
    known = read_folder(tmp_path / "p", cache_file=cache)[0]["train"]
    open_store(known, 8, tmp_path / "s", counted)[0]
    assert len(asked) == 30
    before, path = os.stat(rows[7].where), Path(rows[7].where)
    other = saved(picture(99))
    path.write_bytes(other[:before.st_size].ljust(before.st_size, b"\0"))  # as long as before
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # and as old
    changed = read_folder(tmp_path / "p", cache_file=cache)[0]["train"]
    asked.clear()
    store = open_store(changed, 8, tmp_path / "s", counted)
    assert np.array_equal(store[range(len(changed))], plain(changed, 8)) and asked == [path.name] * len(asked)
    assert len(asked) == len(changed) - 29


def test_a_picture_that_changes_under_the_store_is_named(rows, tmp_path):
    store = open_store(rows, 8, tmp_path / "s")
    picture(99).save(rows[7].where)
    with pytest.raises(Refused, match="The picture 07.png cannot be read: it has changed"):
        store[0]
    picture(7).save(rows[7].where)
    assert np.array_equal(store[range(30)], plain(rows, 8))  # mended: it goes on


def maker(folder, pictures, go, answers):
    "A process that opens a store, and says how many pictures it decoded."
    asked, found = [], read_folder(pictures)[0]["train"]

    def slow(where):
        asked.append(where)
        time.sleep(0.02)
        return read_member(where)

    go.wait()
    answers.put((len(asked), open_store(found, 8, folder, slow)[range(30)].tobytes(), len(asked)))


def test_of_processes_that_start_at_once_one_makes_the_store(rows, tmp_path):
    context = multiprocessing.get_context("spawn")
    go, answers = context.Event(), context.Queue()
    crowd = [context.Process(target=maker, args=(tmp_path / "s", tmp_path / "p", go, answers))
             for _ in range(3)]
    for process in crowd:
        process.start()
    go.set()
    found = [answers.get(timeout=120) for _ in crowd]
    for process in crowd:
        process.join()
    assert sorted(after for *_, after in found) == [0, 0, 30]
    assert {pixels for _, pixels, _ in found} == {plain(rows, 8).tobytes()}
    assert not list((tmp_path / "s").glob(".*.part"))


def killed(folder, pictures, at):
    "A process that dies at a picture, without a word."
    found = read_folder(pictures)[0]["train"]

    def deadly(where):
        if where == found[at].where:
            time.sleep(0.3)  # the pictures before are written
            os.kill(os.getpid(), signal.SIGKILL)
        return read_member(where)

    stores.in_threads = lambda work, items: map(work, items)
    open_store(found, 64, folder, deadly)[0]


def test_a_killed_writer_leaves_nothing_broken_and_is_gone_on_with(rows, tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=killed,
                                                           args=(tmp_path / "s", tmp_path / "p", 20))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not list((tmp_path / "s").glob("*.npy"))
    asked = []
    store = open_store(rows, 64, tmp_path / "s", lambda where: asked.append(where) or read_member(where))
    assert np.array_equal(store[range(30)], plain(rows, 64)) and 10 <= len(asked) <= 12
    whole = open_store(rows, 64, tmp_path / "whole")
    assert whole[0] is not None and whole.path.read_bytes() == store.path.read_bytes()


def test_a_damaged_store_is_made_again(rows, tmp_path):
    store = open_store(rows, 8, tmp_path / "s")
    whole = store[0] is not None and store.path.read_bytes()
    for content in (b"", whole[:50], whole[:-1], b"\x93NUMPY nothing", b"x" * len(whole)):
        store.path.unlink()
        store.path.write_bytes(content)
        assert np.array_equal(open_store(rows, 8, tmp_path / "s")[range(30)], plain(rows, 8))
        assert store.path.read_bytes() == whole


def test_a_full_disk_ends_in_a_sentence_and_room_lets_it_go_on(rows, tmp_path, monkeypatch):
    def full(*how):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stores, "write_store", full)
        with pytest.raises(Refused,
                           match="the disk is full, and the pictures at 8 x 8 need 0.0 GB: make room"):
            open_store(rows, 8, tmp_path / "s")[0]
    assert np.array_equal(open_store(rows, 8, tmp_path / "s")[4], plain(rows, 8)[4])


def test_a_store_that_has_no_room_decodes_each_time(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(stores.shutil, "disk_usage",
                        lambda path: SimpleNamespace(free=2 * 30 * 8 * 8 * 3 - 1))
    store = open_store(rows, 8, tmp_path / "s")
    assert np.array_equal(store[range(30)], plain(rows, 8)) and np.array_equal(store[3], plain(rows, 8)[3])
    assert not list((tmp_path / "s").glob("*.npy"))


def test_stores_that_nobody_opens_go_and_others_stay(rows, tmp_path):
    old, used = (open_store(rows[:n], 8, tmp_path / "s") for n in (5, 6))
    for store in (old, used):
        store.pixels()
        os.utime(store.path, (0, 0))
    open_store(rows[:6], 8, tmp_path / "s").pixels()  # used again
    open_store(rows[:7], 8, tmp_path / "s").pixels()
    assert not old.path.exists() and not old.path.with_suffix(".json").exists() and used.path.exists()
    assert np.array_equal(old[0], plain(rows[:1], 8)[0])  # who maps it keeps it


def test_no_rows_and_one_picture_in_many_rows(rows, tmp_path):
    assert len(open_store([], 8, tmp_path
                          / "s")) == 0 and open_store([], 8, tmp_path / "s").pixels().shape == (0, 8, 8, 3)
    (tmp_path / "p/copy.png").write_bytes(Path(rows[0].where).read_bytes())
    (tmp_path / "p/copy.txt").write_text("y")
    both = read_folder(tmp_path / "p")[0]["train"]
    store = open_store(both, 8, tmp_path / "s")
    assert store.pixels().shape[0] == 30 and len(store) == 31 and np.array_equal(store[0], store[30])
