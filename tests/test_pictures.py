"Pictures whole and broken, folders, shards and servers: what can be used is used, and the rest is named."
import hashlib
import io
import json
import logging
import os
import random
import struct
import subprocess
import sys
import tarfile
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import workbench
from workbench.errors import Refused
from workbench.parts.shared import fetch
from workbench.parts.image import shards
from workbench.parts.image.picture_cache import examine_files
from workbench.parts.image.rows import read_folder
from workbench.parts.image.files import (
    RATIOS, bucket, examine, fit, grid, read_picture, scaled, size_of, to_pixels)

PACK = Path(workbench.__file__).parent / "samples/emoji"
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


def saved(image, kind="PNG", **how):
    box = io.BytesIO()
    image.save(box, kind, **how)
    return box.getvalue()


def write_tar(path, entries):
    "A tar of (name, bytes), or (name, (type, target)) for another kind of member."
    with tarfile.open(path, "w") as tar:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                member.type, member.linkname = content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return str(path)


# pictures

@pytest.mark.parametrize("image, expected", [
    (Image.new("RGBA", (3, 2), (0, 0, 255, 51)), (204, 204, 255)),
    (Image.new("LA", (3, 2), (0, 128)), (127, 127, 127)),
    (Image.new("L", (3, 2), 77), (77, 77, 77)),
    (Image.new("1", (3, 2), 1), (255, 255, 255)),
    (Image.new("RGBA", (3, 2), (9, 9, 9, 0)).quantize(2), (255, 255, 255)),
    (Image.new("RGB", (3, 2), (10, 20, 30)).quantize(2), (10, 20, 30)),
    (Image.fromarray(np.full((2, 3), 0x8080, np.uint16)), (128, 128, 128))])
def test_every_mode_is_drawn_over_white(image, expected):
    picture = read_picture(saved(image))
    assert picture.mode == "RGB" and picture.size == (3, 2)
    assert np.abs(np.asarray(picture, int) - expected).max() <= 1


def test_a_grey_of_32_bit_integers_and_one_of_floats(tmp_path):
    Image.fromarray(np.full((2, 3), 65535, np.int32)).save(tmp_path / "i.tif")
    assert read_picture(tmp_path / "i.tif").getpixel((0, 0)) == (255, 255, 255)
    Image.fromarray(np.ones((2, 3), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(Refused, match="f.tif: .*floats"):
        read_picture(tmp_path / "f.tif")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_picture_cut_off_anywhere_is_named_and_never_half_grey(kind, tmp_path):
    data, rng = saved(PHOTO, kind), random.Random(kind)
    for cut in [0, 1, 8, 30, len(data) - 13, *rng.sample(range(31, len(data) - 13), 12)]:
        (tmp_path / "p").write_bytes(data[:cut])
        try:  # without its end mark alone a picture has all pixels
            assert np.array_equal(read_picture(tmp_path / "p"), read_picture(data)) and cut > len(data) - 40
        except Refused as e:
            assert str(e).startswith(f"{tmp_path}/p: ") and str(e).count("\n") == 0 and "0x" not in str(e)


def test_damaged_bytes_are_a_picture_or_a_sentence():
    rng = random.Random(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        for _ in range(40):
            data = bytearray(saved(PHOTO, kind))
            for _ in range(4):
                data[rng.randrange(len(data))] = rng.randrange(256)
            for work in (read_picture, size_of):
                try:
                    work(bytes(data))
                except Refused as e:
                    assert str(e).startswith("the picture: ")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width, height", [(10000, 9000), (65535, 65535)])
def test_a_bomb_is_refused_by_its_header(width, height):
    bomb = bytearray(saved(PHOTO))
    bomb[16:24] = struct.pack(">II", width, height)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    for work in (size_of, read_picture):
        with pytest.raises(Refused, match="pixels"):
            work(bytes(bomb))


def test_a_disk_that_fails_is_no_fault_of_the_picture(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError):
        read_picture(tmp_path / "folder.png")


def test_the_size_says_what_reading_gives_whatever_the_orientation():
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        for tag in range(0, 10):
            exif = Image.Exif()
            exif[0x0112] = tag
            data = saved(PHOTO, kind, exif=exif)
            assert (size_of(data) == read_picture(data).size[::-1]
                    == ((60, 40) if 5 <= tag <= 8 else (40, 60))), (kind, tag)


def test_buckets_hold_for_any_picture():
    rng = random.Random(0)
    for _ in range(300):
        h, w = rng.randint(1, 4000), rng.randint(1, 4000)
        a, b = bucket(h, w, [64, [96, 64], 128], 16, RATIOS)
        assert a % 16 == b % 16 == 0 and min(a, b) in (64, 128)
        assert bucket(a, b, [64, [96, 64], 128], 16, RATIOS) == (a, b)  # what has the size keeps it
    for h, w, a, b in ((1, 1, 64, 64), (1, 999, 64, 128), (999, 1, 64, 64), (641, 359, 112, 64),
                       (3, 7, 5, 11), (1000, 707, 64, 80)):
        assert (fit(Image.new("RGB", (w, h), "red"), a, b)
                == np.broadcast_to(np.uint8([255, 0, 0]), (a, b, 3))).all()
    rng = random.Random(1)
    for _ in range(2000):
        h, w, a, b = (rng.randint(1, 60) for _ in range(4))
        assert fit(PHOTO.resize((w, h)), a, b).shape == (a, b, 3)
    with pytest.raises(Refused, match="write 64 for 70"):
        bucket(9, 9, [70], 16)


def test_numbers_and_pixels_are_the_same_thing():
    torch = pytest.importorskip("torch")
    pixels = np.asarray(PHOTO)
    images = torch.from_numpy(scaled(pixels))[None]
    assert images.shape == (1, 3, 40, 60) and np.array_equal(to_pixels(images)[0], pixels)
    assert to_pixels(images.bfloat16() * 9).max() == 255


def test_a_grid_has_each_picture_with_its_caption():
    figure = grid([np.zeros((3, 8, 8)), np.ones((3, 8, 16)), -np.ones((3, 8, 8))],
                  ["one", "a caption of many words that goes on " * 3, "x"], 2)
    titles = [ax.get_title() for ax in figure.axes]
    assert len(figure.axes) == 4 and titles[0] == "one" and titles[1].count("\n") == 2 and titles[3] == ""
    assert [ax.images[0].get_array().shape for ax in figure.axes[:3]] == [(8, 8, 3), (8, 16, 3), (8, 8, 3)]


# folders

def test_names_that_climb_and_links_that_lead_out_are_listed(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    PHOTO.save(tmp_path / "secret.png")
    PHOTO.save(folder / "a.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "deep").symlink_to(tmp_path)
    names = ["../secret.png", str(folder / "a.png"), "x/../../secret.png", "..\\secret.png", "link.png",
             "deep/secret.png", "a.png", "./a.png"]
    (tmp_path / "c.txt").write_bytes("\r\n".join(f"{name}\ta caption" for name in names).encode("utf-8-sig"))
    rows, rejected = read_folder(folder, tmp_path / "c.txt")
    assert [r.uid for r in rows["train"]] == ["a.png"] and len(rejected) == 7
    assert all("leads out" in r["reason"] for r in rejected[:6]) and "twice" in rejected[6]["reason"]
    (tmp_path / "c.txt").unlink()
    (folder / "a.txt").write_text("a")
    (folder / "link.txt").write_text("b")
    rows, rejected = read_folder(folder)
    assert ([r.uid for r in rows["train"]] == ["a.png"]
            and {r["uid"] for r in rejected} >= {"link.png", "deep/secret.png"})


def sizes_of(path, cache):
    return [(f.height, f.width) for f in examine_files([path], cache).values()]


def test_the_cache_of_sizes_survives_being_torn_and_sees_a_changed_file(tmp_path):
    PHOTO.save(tmp_path / "a.png")
    cache, key = tmp_path / "sizes.json", str(tmp_path / "a.png")
    assert sizes_of(key, cache) == [(40, 60)]
    for content in ("", "{", "[]", "null", '{"version": 0, "files": 3}', cache.read_text()[:-4]):
        cache.write_text(content)
        assert sizes_of(key, cache) == [(40, 60)]
        assert json.loads(cache.read_text())["files"][key][1][:2] == [40, 60]
    PHOTO.crop((0, 0, 7, 5)).save(tmp_path / "a.png")
    assert sizes_of(key, cache) == [(5, 7)]
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "sizes.json"}


def test_only_the_first_plan_decodes_pictures(tmp_path, monkeypatch):
    rows = read_folder(PACK)[0]["test"][:20]
    for n, row in enumerate(rows):
        Image.open(row.where).save(tmp_path / f"{n}.{('png', 'jpg')[n % 2]}")
        (tmp_path / f"{n}.txt").write_text(row.caption)
    first, _ = read_folder(tmp_path, cache_file=tmp_path / "cache.json")
    paths = shards.write_shards(first["train"], tmp_path / "s", 7)
    packed, _ = shards.index(paths, cache=tmp_path / "index")

    def load(*a):
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    again, _ = read_folder(tmp_path, cache_file=tmp_path / "cache.json")
    indexed, _ = shards.index(paths, cache=tmp_path / "index")
    assert again == first and indexed == packed and len(packed) == 20
    digests = {r.digest for r in indexed}
    assert {r.digest for r in again["train"]} == digests and len(digests) == 20


def holed(data, kind):
    "Pixels that cannot be decoded behind a good header and before a good end."
    data = bytearray(data)
    if kind == "PNG":
        end = data.index(b"IEND") - 8  # the check sum of the pixels
        data[end // 2:end // 2 + 20] = bytes(20)
        data[end:end + 4] = struct.pack(">I", zlib.crc32(data[37:end]))
    else:
        data[len(data) // 3:2 * len(data) // 3] = b""
    return bytes(data)


def bomb():
    data = bytearray(saved(PHOTO))
    data[16:24] = struct.pack(">II", 12000, 9000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_pictures_are_named_before_training_in_folders_and_shards(tmp_path):
    turned, floats = PHOTO.rotate(180), Image.fromarray(np.ones((2, 3), np.float32))
    moving = [(f".{kind.lower()}", saved(PHOTO, kind, save_all=True, append_images=[turned]))
              for kind in ("GIF", "WEBP")]
    usable = [(".png", saved(PHOTO)), (".jpg", saved(PHOTO, "GIF")), *moving]
    spoilt = [(".png", holed(saved(PHOTO), "PNG")), (".webp", holed(saved(PHOTO, "WEBP"), "WEBP")),
              (".jpg", saved(PHOTO, "JPEG")[:900]),
              (".gif", saved(PHOTO, "GIF")[:900]), (".tif", saved(floats, "TIFF")), (".png", b""),
              (".jpg", b"a text"), (".png", bomb())]
    names = [f"{i}{suffix}" for i, (suffix, _) in enumerate(usable + spoilt)]
    for name, (_, data) in zip(names, usable + spoilt):
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).with_suffix(".txt").write_text("a caption")
    rows, rejected = read_folder(tmp_path)
    assert ({r.uid for r in rows["train"]} == set(names[:4])
            and {r["row"] for r in rejected} == set(names[4:]) and all(r["reason"] for r in rejected))
    members = [m for name, (_, d) in zip(names, usable + spoilt)
               for m in ((name, d), (f"{name.split('.')[0]}.txt", b"x"))]
    rows, rejected = shards.index([write_tar(tmp_path / "s.tar", members)])
    assert len(rows) == 4 and {r["row"] for r in rejected} == {f"s.tar:{name}" for name in names[4:]}
    for row in rows:
        read_picture(shards.read_member(row.where))


def test_what_is_examined_is_what_training_can_read():
    rng = random.Random(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        for _ in range(25):
            data = bytearray(saved(PHOTO, kind))
            for _ in range(3):
                data[rng.randrange(len(data))] = rng.randrange(256)
            outcomes = []
            for work in (examine, read_picture):
                try:
                    outcomes.append(bool(work(bytes(data))))
                except Refused:
                    outcomes.append(False)
            assert outcomes[0] == outcomes[1], kind


# shards

def sample(uid, image=None, **more):
    return [(f"{uid}.png", image or saved(PHOTO)),
            (f"{uid}.json", json.dumps({"caption": f"caption {uid}"} | more).encode())]


def test_a_shard_cut_off_at_any_place_keeps_its_whole_samples(tmp_path):
    path = Path(write_tar(tmp_path / "s.tar", [m for uid in "abcd" for m in sample(uid)]))
    data, image = path.read_bytes(), saved(PHOTO)
    with tarfile.open(path) as tar:
        ends = [m.offset_data + m.size for m in tar][1::2]
    near = (end + d for end in ends for d in (-1, 0, 1, 511, 512))
    cuts = {0, 1, 511, 512, 513, len(data) - 1, *near, *random.Random(0).sample(range(len(data)), 60)}
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        rows, rejected = shards.index([str(path)], cache=tmp_path / "cache")
        assert [r.uid for r in rows] == [uid for uid, end in zip("abcd", ends) if end <= cut], cut
        assert all(shards.read_member(r.where) == image and (r.height, r.width) == (40, 60) for r in rows)
        assert all(r["row"].startswith("s.tar") and r["reason"] for r in rejected)
        assert rejected or cut >= ends[-1] + 512


def test_a_damaged_header_in_the_middle_is_told(tmp_path):
    path = Path(write_tar(tmp_path / "s.tar", sample("a") + sample("b")))
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        at = tar.getmembers()[2].offset
    data[at + 150] ^= 1  # its checksum
    path.write_bytes(data)
    rows, rejected = shards.index([str(path)])
    assert [r.uid for r in rows] == ["a"] and f"damaged at byte {at}" in rejected[-1]["reason"]


@pytest.mark.parametrize("entries, member, reason", [
    (sample("b")[:1], "b", "no .json or .txt"), (sample("b")[1:], "b", "no .png"),
    (sample("b", b"not a picture"), "b.png", "not a picture"),
    (sample("b", saved(PHOTO)[:-30]), "b.png", "cannot be read"),
    (sample("b", caption=""), "b.json", "empty caption"),
    (sample("b", caption=["x"]), "b.json", "list, not a text"),
    ([sample("b")[0], ("b.json", b"{")], "b.json", "JSON cannot be read"),
    ([sample("b")[0], ("b.json", b"[" * 100000)], "b.json", "JSON cannot"),
    ([sample("b")[0], ("b.txt", b"\xff\xfe\x00")], "b.txt", "not UTF-8"),
    ([sample("b")[0], ("b.txt", b" \n")], "b.txt", "empty caption"),
    ([("../b.png", saved(PHOTO)), ("../b.json", b"{}")], "../b.png", "leads out"),
    ([("/b.png", saved(PHOTO))], "/b.png", "leads out"),
    ([("x/../../b.png", saved(PHOTO))], "x/../../b.png", "leads out"),
    ([("b.png", (tarfile.SYMTYPE, "/etc/passwd")), sample("b")[1]], "b.png", "a link, to /etc/passwd"),
    ([("b.png", (tarfile.LNKTYPE, "a.png")), sample("b")[1]], "b.png", "a link, to a.png"),
    ([("b.png", (tarfile.FIFOTYPE, "")), sample("b")[1]], "b.png", "no plain file"),
    (sample("b") + sample("b")[:1], "b.png", "stands twice")])
def test_a_sample_that_cannot_be_used_is_named_and_its_neighbours_are_used(entries, member, reason, tmp_path):
    path = write_tar(tmp_path / "s.tar", sample("a") + entries + sample("z"))
    rows, rejected = shards.index([path])
    assert [r.uid for r in rows] == ["a", "z"] and len(rejected) == 1
    assert rejected[0]["row"] == f"s.tar:{member}" and reason in rejected[0]["reason"]


@pytest.mark.parametrize("content, reason", [(b"", "empty"), (b"hello" * 300, "no tar"),
                                             (b"\x1f\x8b\x08" + bytes(600), "gunzip")])
def test_a_file_that_is_no_tar_is_listed(content, reason, tmp_path):
    (tmp_path / "s.tar").write_bytes(content)
    rows, rejected = shards.index([str(tmp_path / "s.tar")])
    assert not rows and len(rejected) == 1 and reason in rejected[0]["reason"]


def test_keys_suffixes_and_captions_as_a_user_names_them(tmp_path):
    both = [("./d.1/x.y.png", saved(PHOTO)), ("d.1/x.JPG", saved(PHOTO, "JPEG")),
            ("d.1/x.meta.json", b'{"a": {"text": "deep"}}'),
            ("d.1/x.txt", "plain\n ሰላም".encode()), ("__index__.json", b"{}"),
            ("d.1", (tarfile.DIRTYPE, ""))]
    path = write_tar(tmp_path / "s.tar", both)
    for keys, caption in (({"label_key": "meta.json", "caption_key": "a.text"}, "deep"),
                          ({"label_key": "txt"}, "plain ሰላም")):
        rows, rejected = shards.index([path], **keys)
        assert [(r.uid, r.caption) for r in rows] == [("d.1/x", caption)] and not rejected
    assert shards.read_member(shards.index([path], "y.png;jpg", "txt")[0][0].where)[:4] == b"\x89PNG"
    with pytest.raises(Refused, match="image_key"):
        shards.index([path], image_key=" ; ")


def test_one_key_in_several_shards_gives_several_uids(tmp_path):
    for name in ("p/s.tar", "q/s.tar", "t.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / name, sample("a"))
    rows, _ = shards.index([str(tmp_path / n) for n in ("p/s.tar", "q/s.tar", "t.tar")])
    assert [r.uid.removeprefix(f"{tmp_path}/") for r in rows] == ["p:s.tar:a", "q:s.tar:a", "t.tar:a"]


def test_the_index_is_read_once_and_a_replaced_shard_again(tmp_path, monkeypatch):
    path, calls, real = write_tar(tmp_path / "s.tar", sample("a")), [], shards.index_shard
    monkeypatch.setattr(shards, "index_shard", lambda *a: calls.append(a) or real(*a))
    first = shards.index([path], cache=tmp_path / "cache")
    assert shards.index([path], cache=tmp_path / "cache") == first and len(calls) == 1
    shards.read_member(first[0][0].where)
    write_tar(tmp_path / "new.tar", sample("b", saved(PHOTO.crop((0, 0, 5, 5)))) + sample("c"))
    os.replace(tmp_path / "new.tar", path)
    rows, _ = shards.index([path], cache=tmp_path / "cache")
    assert ([r.uid for r in rows] == ["b", "c"] and len(calls) == 2
            and shards.read_member(rows[1].where) == saved(PHOTO))
    # other keys, another index
    assert len(shards.index([path], label_key="txt", cache=tmp_path / "cache")[1]) == 2
    for torn in (tmp_path / "cache").iterdir():
        torn.write_text(torn.read_text()[:20])
    assert shards.index([path], cache=tmp_path / "cache")[0] == rows


def digest(where):
    return hashlib.sha256(shards.read_member(where)).hexdigest()


def test_threads_and_forked_workers_read_the_same_bytes(tmp_path):
    rows = read_folder(PACK)[0]["train"][:300]
    found, _ = shards.index(shards.write_shards(rows, tmp_path, 3))  # 100 shards, more than are held open
    expected = [hashlib.sha256(Path(r.where).read_bytes()).hexdigest() for r in rows]
    wheres = [r.where for r in found]
    assert list(map(digest, wheres)) == expected  # the handles are open before the fork
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(digest, wheres * 3)) == expected * 3
    # in a process without threads, as a fork needs it: other tests may have left some in this one
    forked = ("import multiprocessing, test_pictures as t\n"
              f"wheres = {wheres!r}\n"
              "list(map(t.digest, wheres))\n"
              "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
              "    print(*pool.map(t.digest, wheres, chunksize=7))")
    said = subprocess.run([sys.executable, "-c", forked], cwd=Path(__file__).parent, capture_output=True,
                          text=True,
                          timeout=300, check=True)
    assert said.stdout.split() == expected
    Path(found[0].where[0]).write_bytes(b"short")
    with pytest.raises(Refused, match="it has changed"):
        shards.read_member(found[0].where)


def test_webdataset_reads_what_is_written_and_the_other_way_round(tmp_path):
    webdataset = pytest.importorskip("webdataset",
                                     reason="the comparison needs webdataset: pip install webdataset")
    rows = read_folder(PACK)[0]["valid"]
    paths = shards.write_shards(rows, tmp_path / "ours", 40, "pack")
    theirs = list(webdataset.WebDataset(f"{tmp_path}/ours/pack-{{000000..000002}}.tar", shardshuffle=False,
                                        empty_check=False).decode("pil"))
    assert [s["json"]["caption"] for s in theirs] == [r.caption for r in rows]
    assert all(s["webp"].tobytes() == read_picture(r.where).tobytes() for s, r in zip(theirs, rows))
    assert fetch.expand(f"{tmp_path}/ours/pack-{{000000..000002}}.tar") == paths

    with webdataset.ShardWriter(f"{tmp_path}/w-%04d.tar", maxcount=30, verbose=0) as sink:
        for n, row in enumerate(rows):
            sink.write({"__key__": f"sub/{n:05d}", "png": Image.open(row.where),
                        "json": {"prompt": row.caption}})
    with webdataset.TarWriter(str(tmp_path / "z.tar")) as sink:
        sink.write({"__key__": "alone", "jpg": np.asarray(PHOTO) / 255, "json": {"prompt": "noise"}})
    found, rejected = shards.index(fetch.expand(f"{tmp_path}/w-{{0000..0003}}.tar,{tmp_path}/z.tar"),
                                   "png;jpg", "json", "prompt")
    assert not rejected and [r.caption for r in found] == [*(r.caption for r in rows), "noise"]
    assert found[0].uid == "sub/00000" and (found[-1].height, found[-1].width) == (40, 60)
    assert all(read_picture(shards.read_member(a.where)).tobytes() == read_picture(b.where).tobytes()
               for a, b in zip(found, rows))


def test_two_rows_of_one_key_are_refused(tmp_path):
    rows = read_folder(PACK)[0]["valid"]
    with pytest.raises(Refused, match="would have the key"):
        shards.write_shards([rows[0], rows[0]], tmp_path)


# servers

@pytest.fixture
def server(tmp_path):
    "A server of one shard; `plan[path]` are the codes of its first answers, and after them 200."
    shard = Path(write_tar(tmp_path / "served.tar", sample("a") + sample("b"))).read_bytes()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            code = server.plan.get(self.path, []).pop(0) if server.plan.get(self.path) else 200
            if code == "reset":
                # SO_LINGER: the socket closes with a reset
                self.connection.setsockopt(1, 13, struct.pack("ii", 1, 0))
                return self.connection.close()
            self.send_response(200 if code == "short" else code)
            self.send_header("Content-Length", str(len(shard)))
            self.end_headers()
            self.wfile.write(shard[:700] if code == "short" else shard if code == 200 else b"")

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.asked, server.plan, server.at = [], {}, f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("codes", [[503, 503], [500, 429], ["short", "reset"]])
def test_what_passes_is_tried_again_and_logged(codes, server, tmp_path, caplog):
    server.plan["/x-1.tar"] = list(codes)
    with caplog.at_level(logging.WARNING, "workbench.parts.shared.fetch"):
        rows, rejected = shards.index(fetch.expand(f"{server.at}/x-{{0..1}}.tar"), cache=tmp_path / "cache",
                                      wait=0.001)
    assert [r.uid for r in rows] == ["x", "x"] or len({r.uid for r in rows}) == 4
    assert (not rejected and len(rows) == 4
            and read_picture(shards.read_member(rows[3].where)).size == (60, 40))
    said = [r.getMessage() for r in caplog.records if r.name == "workbench.parts.shared.fetch"]
    assert (len(said) == 2 and "x-1.tar" in said[0] and "retry 1 of 5 in 0.001 s" in said[0]
            and "retry 2 of 5 in 0.002 s" in said[1])
    asked = len(server.asked)
    assert asked == 4 and shards.index(fetch.expand(f"{server.at}/x-{{0..1}}.tar"),
                                       cache=tmp_path / "cache")[0] == rows
    assert len(server.asked) == asked  # fetched once


@pytest.mark.parametrize("codes, tries, words", [
    ([503] * 99, 4, "after 4 tries"), (["reset"] * 99, 4, "after 4 tries"),
    ([404] * 99, 1, "says 404"), ([403] * 99, 1, "says 403")])
def test_what_does_not_pass_ends_in_one_sentence_and_leaves_nothing(codes, tries, words, server, tmp_path):
    server.plan["/x.tar"] = list(codes)
    with pytest.raises(Refused, match=words) as e:
        shards.index([f"{server.at}/x.tar"], cache=tmp_path / "cache", retries=3, wait=0.001)
    assert len(server.asked) == tries and "\n" not in str(e.value) and f"{server.at}/x.tar" in str(e.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_server_that_is_not_there_and_a_shard_without_a_cache(tmp_path):
    with pytest.raises(Refused, match="after 2 tries"):
        fetch.fetch("http://127.0.0.1:9/x.tar", tmp_path, retries=1, wait=0.001)
    with pytest.raises(ValueError, match="needs a cache folder"):
        shards.index(["http://127.0.0.1:9/x.tar"])


def test_the_label_that_has_the_caption_counts(tmp_path):
    photo = saved(Image.new("RGB", (8, 8)))
    write_tar(tmp_path / "s.tar", [("a.png", photo), ("a.json", b'{"width": 8}'), ("a.txt", b"from the text"),
                                   ("b.png", photo), ("b.json", b'{"text": "x"}'), ("c.png", photo),
                                   ("c.cls", b"3")])
    rows, rejected = shards.index([str(tmp_path / "s.tar")])
    assert [(r.uid, r.caption) for r in rows] == [("a", "from the text")]
    assert ([r["reason"].rpartition(": ")[2] for r in rejected]
            == ["name the right key in data.caption_key", "name the right one in data.label_key"])
    rows, _ = shards.index([str(tmp_path / "s.tar")], label_key="cls", caption_key="text")
    assert [r.caption for r in rows] == ["3"]


def test_a_training_table_that_is_named_leaves_the_others_beside_it(tmp_path):
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    for table, name in (("train.csv", "a"), ("train.tsv", "b"), ("val.csv", "c")):
        sign = "," if table.endswith(".csv") else "\t"
        (tmp_path / table).write_text(f"image{sign}caption\n{name}.png{sign}x\n")
    rows, _ = read_folder(tmp_path, tmp_path / "train.tsv")
    uids = {split: [r.uid for r in part] for split, part in rows.items()}
    assert uids == {"train": ["b.png"], "valid": ["c.png"]}
    (tmp_path / "train.tsv").rename(tmp_path / "all.tsv")
    assert set(read_folder(tmp_path, tmp_path / "all.tsv")[0]) == {"train"}  # any other table is the whole


def test_what_is_held_out_is_not_trained_on_by_a_column_or_a_folder(tmp_path):
    from workbench.parts.pose.rows import read_table

    for split in ("train", "Dev", "test"):
        (tmp_path / "texts" / split).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "texts" / split / "a.png")
        (tmp_path / "texts" / split / "a.txt").write_text(split)
    rows, rejected = read_folder(tmp_path / "texts")
    assert ({k: [r.caption for r in v] for k, v in rows.items()}
            == {"train": ["train"], "valid": ["Dev"], "test": ["test"]} and not rejected)
    (tmp_path / "texts" / "train").rename(tmp_path / "texts" / "cats")
    assert len(read_folder(tmp_path / "texts")[0]["train"]) == 3  # a kind of pictures may be called test
    (tmp_path / "train.csv").write_text("image,uid,caption,text,Split\na.png,a,x,x,train\nb.png,b,y,y,val\n")
    for read in (read_folder, lambda folder: read_table(folder / "train.csv")):
        with pytest.raises(Refused, match="its column split has train, val: write a table for each"):
            read(tmp_path)
