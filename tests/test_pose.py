"Pose files whole and broken, the sample pack, and the rule that nothing empty passes for a pose."
import collections
import csv
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import workbench
from workbench.errors import Refused
from workbench.parts.pose import arrays, keypoints
from workbench.parts.pose import files as P
from workbench.parts.pose import motion as M

PACK = Path(workbench.__file__).parent / "samples/sign"
LANGUAGES = ("ase", "gsg", "ssp", "ukl")
CLIP = PACK / "clips/ase/y.pose"


def saved(folder, content, name="x.pose"):
    path = Path(folder) / name
    path.write_bytes(content)
    return path


def reason(path, error=Refused):
    "The one sentence with which reading fails; it names the file."
    with pytest.raises(error) as caught: P.read_pose(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def body_of(data):
    "Where the body of a version 0.2 file starts, its frames, people, points and the bytes of one frame."
    from pose_format import Pose
    shape = Pose.read(data).body.data.shape
    return len(data) - 4 * int(np.prod(shape[:3])) * (shape[3] + 1) - 10, shape


# .pose

def test_dot_pose_is_what_the_library_reads():
    from pose_format import Pose
    theirs, ours = Pose.read(CLIP.read_bytes()), P.read_pose(CLIP)
    np.testing.assert_array_equal(ours.points, np.ma.filled(theirs.body.data[:, 0], np.nan))
    np.testing.assert_array_equal(ours.confidence, theirs.body.confidence[:, 0])
    assert ours.fps == 25 and len(ours.names) == ours.points.shape[1] == 150
    assert (np.isnan(ours.points[..., 0]) == (ours.confidence == 0)).all()


def test_a_pose_cut_anywhere_is_an_error(tmp_path):
    data = CLIP.read_bytes()
    for end in [*range(0, 60, 7), *np.linspace(60, len(data) - 1, 60).astype(int)]:
        reason(saved(tmp_path, data[:end]))
    assert "size does not fit" in reason(saved(tmp_path, data + b"\0" * 8))


def old_version(data, frames):
    "The same motion as a version 0.1 file, whose header counts frames in 16 bits."
    at, (T, people, points, dims) = body_of(data)
    header = struct.pack("<f", 0.1) + data[4:at]
    numbers = np.frombuffer(data[at + 10:], dtype="<f4")
    split = T * people * points * dims
    coordinates, confidence = numbers[:split].reshape(T, -1), numbers[split:].reshape(T, -1)
    return header + struct.pack("<HHH", 25, frames, people) + coordinates.tobytes() + confidence.tobytes()


def test_version_0_1_reads_and_a_lost_frame_shows(tmp_path):
    data = CLIP.read_bytes()
    whole, (T, people, points, dims) = old_version(data, 32), body_of(data)[1]
    assert T == 32
    again = P.read_pose(saved(tmp_path, whole))
    np.testing.assert_array_equal(again.points, P.read_pose(CLIP).points)
    exactly_one_frame = 4 * people * points * (dims + 1)
    assert "cut off" in reason(saved(tmp_path, whole[:-exactly_one_frame]))
    assert "cut off" in reason(saved(tmp_path, whole[:-100]))


def test_random_bytes_never_become_a_pose(tmp_path):
    rng, data = np.random.default_rng(0), CLIP.read_bytes()
    for _ in range(100): reason(saved(tmp_path, rng.bytes(rng.integers(1, 3000))))
    at, _ = body_of(data)
    for _ in range(100): # damage in the header
        broken = bytearray(data)
        for i in rng.integers(0, at + 10, 3): broken[i] = rng.integers(256)
        try: pose = P.read_pose(saved(tmp_path, bytes(broken)))
        except Refused as e: assert str(tmp_path) in str(e); continue
        assert np.isfinite(pose.points).any()


@pytest.mark.parametrize("what,words", [("frames", "no frames"), ("people", "no person"),
                                        ("confidence", "no point is"), ("points", "no point is visible")])
def test_an_empty_pose_is_an_error_with_its_reason(tmp_path, what, words):
    data = CLIP.read_bytes()
    at, (T, people, points, dims) = body_of(data)
    numbers = np.frombuffer(data[at + 10:], dtype="<f4").copy()
    counts, split = [T, people], T * people * points * dims
    if what == "frames": counts, numbers = [0, people], numbers[:0]
    if what == "people": counts, numbers = [T, 0], numbers[:0]
    if what == "confidence": numbers[split:] = 0
    if what == "points": numbers[:split] = 0
    content = data[:at] + struct.pack("<fIH", 25, *counts) + numbers.tobytes()
    assert words in reason(saved(tmp_path, content))


def test_what_is_no_pose_file(tmp_path):
    assert "no such pose file" in reason(tmp_path / "absent.pose")
    assert "the file is empty" in reason(saved(tmp_path, b"", "x.npy"))
    assert "not a pose format" in reason(saved(tmp_path, b"uid,text", "x.csv"))
    (tmp_path / "folder.pose").mkdir()
    assert "cannot be read" in reason(tmp_path / "folder.pose")


def test_find_pose(tmp_path):
    saved(tmp_path, b"1", "a.b.npy")
    assert P.find_pose(tmp_path, "a.b").name == P.find_pose(tmp_path, "a.b.npy").name == "a.b.npy"
    with pytest.raises(Refused, match="no pose a "): P.find_pose(tmp_path, "a")
    outside = saved(tmp_path.parent, b"1", "outside.npy")
    for name in ("../outside", str(outside)):
        with pytest.raises(Refused, match="leads out"): P.find_pose(tmp_path, name)


# .npy

def test_npy_shapes(tmp_path):
    xy = np.random.default_rng(0).normal(size=(7, 133, 2)).astype(np.float32)
    xy[2, 5], xy[3, 6] = np.nan, 0
    want = arrays.checked(xy, names=keypoints.COCO_NAMES)
    scored = np.concatenate([xy, np.full((7, 133, 1), 0.5, np.float32)], 2)
    plain = {"points": xy, "flat": xy.reshape(7, 266), "person": xy[:, None], "double": xy.astype("f8")}
    for name, array in plain.items():
        np.save(tmp_path / f"{name}.npy", array)
        got = P.read_pose(tmp_path / f"{name}.npy")
        np.testing.assert_array_equal(got.points, want.points)
        np.testing.assert_array_equal(got.confidence, want.confidence)
        assert got.names == keypoints.COCO_NAMES and got.fps is None
    for name, array in {"score": scored, "flat score": scored.reshape(7, 399)}.items():
        np.save(tmp_path / f"{name}.npy", array)
        got = P.read_pose(tmp_path / f"{name}.npy")
        np.testing.assert_array_equal(got.points, want.points)
        np.testing.assert_array_equal(got.confidence, want.confidence * 0.5)


def test_npy_that_is_no_pose(tmp_path):
    ones = np.ones((4, 5, 2), np.float32)
    bad = {"[4]": np.ones(4), "[4, 5, 7]": np.ones((4, 5, 7)), "no frames": ones[:0],
           "no points": ones[:, :0], "visible": ones * np.nan, "visible in any": ones * 0,
           "data.layout: xy (75 points), xyz (50 points)": np.ones((4, 150)),
           "not hold numbers": np.array([["a", "b"]])}
    for i, (words, array) in enumerate(bad.items()):
        np.save(tmp_path / f"{i}.npy", array)
        assert words in reason(tmp_path / f"{i}.npy")
    assert P.read_pose(tmp_path / "6.npy", dims=3).points.shape == (4, 50, 3)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "not a complete .npy" in reason(tmp_path / "objects.npy")
    np.save(tmp_path / "whole.npy", ones)
    data = (tmp_path / "whole.npy").read_bytes()
    for end in range(1, len(data), 23): reason(saved(tmp_path, data[:end], "cut.npy"))


# .pkl

@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_arrays_of_any_protocol(tmp_path, protocol):
    xy = np.random.default_rng(0).normal(size=(4, 5, 2)).astype(np.float32)
    tracked = collections.OrderedDict(keypoints=xy[:, None], scores=np.ones((4, 1, 5)), n=np.float64(3))
    for content in (xy, np.asfortranarray(xy), list(xy), {"data": xy, "fps": 25.0},
                    {"pose": xy.astype("f8"), "label": {1, "a"}}, tracked):
        got = P.read_pose(saved(tmp_path, pickle.dumps(content, protocol), "x.pkl"))
        np.testing.assert_array_equal(got.points, xy)
    old_name = pickle.dumps(xy, min(protocol, 3)).replace(b"numpy._core", b"numpy.core")
    np.testing.assert_array_equal(P.read_pose(saved(tmp_path, old_name, "old.pkl")).points, xy)


def test_frames_of_a_tracker_that_loses_people(tmp_path):
    one, two = np.ones((1, 133, 2)), np.stack([np.full((133, 2), 2.0), np.full((133, 2), 9.0)])
    content = {"keypoints": [one, two, one[:0]], "scores": [one[..., 0], two[..., 0] / 10, one[:0, :, 0]]}
    got = P.read_pose(saved(tmp_path, pickle.dumps(content), "x.pkl"))
    assert got.points[:2, 0, 0].tolist() == [1, 2] and np.isnan(got.points[2]).all()
    np.testing.assert_allclose(got.confidence[:, 0], [1, 0.2, 0])
    assert got.names == keypoints.COCO_NAMES
    content["keypoints"][1] = np.ones((1, 17, 2))
    assert "same points" in reason(saved(tmp_path, pickle.dumps(content), "x.pkl"))


class Call:
    "Pickles as a call of any function."
    def __init__(self, function, *args): self.function, self.args = function, args
    def __reduce__(self): return self.function, self.args


def test_a_pickle_that_asks_for_code_is_refused(tmp_path):
    flag = tmp_path / "flag"
    calls = {"posix.system": Call(os.system, f"touch {flag}"), "builtins.getattr": Call(getattr, "a", "b"),
             "subprocess.Popen": Call(subprocess.Popen, ["touch", str(flag)]),
             "numpy.load": Call(np.load, "x"), "builtins.eval": Call(eval, f"open({str(flag)!r}, 'w')"),
             "pathlib.PosixPath": tmp_path}
    for name, call in calls.items():
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            objects = np.array([call, None], dtype=object)
            for content in (call, {"keypoints": call}, {"keypoints": objects}, [1, (call,)]):
                message = reason(saved(tmp_path, pickle.dumps(content, protocol), "x.pkl"))
                assert "refused, it asks for " in message
                if protocol > 2: assert f"asks for {name} " in message # older ones write Python 2 names
    assert not flag.exists()


def test_other_pickles_say_what_they_are(tmp_path):
    class_of_pandas = b"cpandas.core.frame\nDataFrame\n."
    assert "pandas.core.frame.DataFrame" in reason(saved(tmp_path, class_of_pandas, "x.pkl"))
    assert "holds a str" in reason(saved(tmp_path, pickle.dumps("abc"), "x.pkl"))
    assert "it has face, hand" in reason(saved(tmp_path, pickle.dumps({"face": 1, "hand": 2}), "x.pkl"))
    assert "scores [4, 6] beside points [4, 5, 2]" in reason(
        saved(tmp_path, pickle.dumps({"pose": np.ones((4, 5, 2)), "scores": np.ones((4, 6))}), "x.pkl"))
    data = pickle.dumps({"keypoints": np.ones((4, 5, 2))})
    for end in range(1, len(data)): reason(saved(tmp_path, data[:end], "x.pkl"))


# selections

def test_the_sets_of_the_public_code():
    "The 76 points and their order as the iSign baselines take them from MediaPipe Holistic."
    dropped = {26, 28, 30, 32, 25, 27, 29, 31, 1, 3, 4, 6, 9, 10, 17, 18, 19, 20, 21, 22, 23, 24}
    pose = P.read_pose(CLIP)
    body = [n for n in pose.names if n.startswith("POSE_LANDMARKS")]
    chosen = P.select(pose, "152").names
    assert list(chosen[42:53]) == [n for i, n in enumerate(body) if i not in dropped]
    assert [n.split("_")[0] for n in chosen[:42]] == ["LEFT"] * 21 + ["RIGHT"] * 21
    assert chosen[53] == "FACE_LANDMARKS:61"
    assert len(P.select(pose, 266).names) == 133


def test_coco_names_are_the_libraries():
    from pose_format.utils.cocowholebody133_header import cocowholebody_components
    theirs = tuple(f"{c.name}:{p}" for c in cocowholebody_components() for p in c.points)
    assert keypoints.COCO_NAMES == theirs


def test_the_two_formats_agree_about_which_point_is_which():
    "The COCO twin of a MediaPipe point is near it on a real face, and the order of the parts is the same."
    pose = P.read_pose(CLIP)
    wide = P.select(pose, "266")
    as_coco = arrays.Pose(wide.points, wide.confidence, wide.fps, keypoints.COCO_NAMES)
    ours, theirs = P.select(pose, "152"), P.select(as_coco, "152")
    np.testing.assert_array_equal(ours.points[:, :53], theirs.points[:, :53])
    width = M.reference(pose.points, pose.names)[1]
    apart = np.nanmax(np.hypot(*(ours.points - theirs.points)[:, 53:].transpose(2, 0, 1)), axis=0) / width
    assert apart.max() < 0.09 and (apart == 0).sum() >= 14


def test_low_confidence_can_be_hidden():
    pose = P.read_pose(CLIP)
    legs = keypoints.keypoints(pose.names, "POSE_LANDMARKS:LEFT_ANKLE")
    assert np.isfinite(pose.points[:, legs]).all()
    assert np.isnan(P.select(pose, "all", min_confidence=0.1).points[:, legs]).all()
    with pytest.raises(Refused, match="no point of the selection"): P.select(pose, "left")
    with pytest.raises(Refused, match="2 coordinates, not 3"): P.select(pose, "152", dims=3)
    nameless = arrays.checked(np.ones((3, 5, 2)))
    assert P.select(nameless, "all").points.shape == (3, 5, 2)
    with pytest.raises(Refused, match="no names"): P.select(nameless, "152")


# the sample pack

def rows(lang, split):
    with open(PACK / lang / f"{split}.csv", encoding="utf8", newline="") as f: return list(csv.DictReader(f))


def test_the_pack_is_the_one_that_was_made():
    lines = (PACK / "SHA256SUMS").read_text(encoding="utf8").splitlines()
    listed = dict(reversed(line.split("  ")) for line in lines)
    there = {p.relative_to(PACK).as_posix() for p in PACK.rglob("*") if p.is_file()} - {"SHA256SUMS"}
    assert there == set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256((PACK / name).read_bytes()).hexdigest() == digest, name
    assert sum((PACK / name).stat().st_size for name in there) < 8e6
    sheet = (PACK / "DATASHEET.md").read_text(encoding="utf8")
    for words in ("spoken-to-signed` 0.4.0", "MIT", "Unicode License V3", "one clip a letter", "composed"):
        assert words in sheet


def test_every_clip_reads_and_serves_both_selections():
    with open(PACK / "clips.csv", encoding="utf8") as f: listed = list(csv.DictReader(f))
    assert len(listed) == len(list(PACK.glob("clips/*/*.pose"))) == 119
    for row in listed:
        pose = P.read_pose(P.find_pose(PACK / "clips", row["clip"]))
        assert len(pose.points) == int(row["frames"]) and abs(pose.fps - float(row["fps"])) < 1e-3
        assert M.reference(pose.points, pose.names)[2] == "shoulders"
        assert [P.select(pose, keep).points.shape[1:] for keep in ("152", "266")] == [(76, 2), (133, 2)]
        right = P.select(pose, "right").points[M.raised(pose.points, pose.names)]
        assert len(right) >= 0.6 * len(pose.points) and np.isfinite(right).mean() > 0.9, row["clip"]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_rows_spell_their_text_and_share_no_word(lang):
    with open(PACK / "clips.csv", encoding="utf8") as f:
        letter = {r["clip"]: r["letter"] for r in csv.DictReader(f)} | {"_": " "}
    seen = {}
    for split, count in (("train", 2000 if lang == "ase" else 1500), ("valid", 150), ("test", 150)):
        table = rows(lang, split)
        assert len(table) == len({r["text"] for r in table}) == len({r["uid"] for r in table}) == count
        assert any("_" in r["pose"] for r in table)
        for row in table:
            assert "".join(letter[c] for c in row["pose"].split("+")) == row["text"] and row["lang"] == lang
            for word in row["text"].split(): assert seen.setdefault(word[:4], split) == split, word


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_shifted_set_lies_outside_the_training_ranges(lang):
    import inspect
    default = {k: p.default for k, p in inspect.signature(M.augment).parameters.items()}
    plain = rows(lang, "test")
    for row, same in zip(rows(lang, "test_shifted"), plain, strict=True):
        assert (row["text"], row["pose"]) == (same["text"], same["pose"])
        assert not default["tempo"][0] <= float(row["tempo"]) <= default["tempo"][1]
        assert abs(float(row["rotate"])) > default["rotate"] and float(row["drop"]) > default["drop"]


def test_a_row_becomes_a_motion_and_a_shifted_one_the_same_for_everybody():
    row = rows("ase", "test_shifted")[0]
    parts = []
    for name in row["pose"].split("+"):
        clip = P.read_pose(P.find_pose(PACK / "clips", name)) if name != "_" else None
        parts.append(clip and M.normalise(clip.points, clip.names)[M.raised(clip.points, clip.names)])
    whole = M.compose(parts)
    gaps = sum(12 if a is None else 4 if b is not None else 0 for a, b in zip(parts, parts[1:]))
    assert len(whole) == sum(len(p) for p in parts if p is not None) + gaps
    step = np.abs(np.diff(whole[:, keypoints.keypoints(clip.names, "right")], axis=0))
    assert np.nanmax(step) < 0.7 # no jump between clips: no point moves this many shoulder widths in a frame
    shifts = {k: float(row[k]) for k in ("tempo", "rotate", "drop")}
    once, again = (M.shifted(whole, **shifts) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    expected = len(whole) / shifts["tempo"] * (1 - shifts["drop"])
    assert abs(len(once) - expected) <= 2
    values, mask = M.fill_missing(once)
    assert np.isfinite(values).all() and 0.3 < mask.mean() < 1


def test_importing_the_parts_is_cheap():
    code = ("import sys; from workbench.parts.pose import files, motion, strip; "
            "print([m for m in ('torch', 'pose_format', 'matplotlib', 'scipy') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What the numbers of an array are

def walk(frames=30, points=17, seed=0):
    "Points in pixels that move: [T, K, 2]."
    rng = np.random.default_rng(seed)
    return (np.cumsum(rng.normal(size=(frames, points, 2)), 0)
            + rng.uniform(100, 400, (1, points, 2))).astype(np.float32)


def mmaction(persons=1, frames=30, **more):
    "A clip as MMAction2 and PYSKL keep it: the persons first."
    xy = np.stack([walk(frames, seed=i) for i in range(persons)])
    score = np.stack([np.full((frames, 17), 0.3 + 0.3 * i) for i in range(persons)])
    return {"frame_dir": "x", "label": 0, "total_frames": frames, "keypoint": xy.astype(np.float16),
            "keypoint_score": score.astype(np.float16)} | more


def test_persons_first(tmp_path):
    for persons in (1, 2):
        got = P.read_pose(saved(tmp_path, pickle.dumps(mmaction(persons)), "x.pkl"))
        assert got.points.shape == (30, 17, 2) and got.persons == persons
        # the one with the higher scores
        np.testing.assert_allclose(got.points, walk(seed=persons - 1), atol=0.2)
        np.testing.assert_allclose(got.confidence, 0.3 * persons, atol=1e-3)
    content = mmaction(2)
    del content["total_frames"]  # the key alone says it
    assert len(P.read_pose(saved(tmp_path, pickle.dumps(content), "x.pkl")).points) == 30
    frames_first = mmaction(1, keypoint=walk()[:, None], keypoint_score=np.ones((30, 1, 17)))
    assert len(P.read_pose(saved(tmp_path, pickle.dumps(frames_first), "x.pkl")).points) == 30
    cut = pickle.dumps(mmaction(keypoint=walk(1), keypoint_score=np.ones((1, 17))))
    assert "says total_frames 30 and holds 1" in reason(saved(tmp_path, cut, "x.pkl"))
    np.save(tmp_path / "one.npy", walk()[None])
    np.save(tmp_path / "two.npy", np.stack([walk(), walk()]))
    assert (len(P.read_pose(tmp_path / "one.npy").points) == 30
            and "save [frames, persons" in reason(tmp_path / "two.npy"))


def test_a_score_is_no_coordinate(tmp_path):
    score = np.full((30, 17, 1), 0.5, np.float32)
    score[3] = 0
    for array, layout in ((np.concatenate([walk(), score], 2), None),
                          (np.concatenate([walk() / 640, score], 2), "xyv"),
                          (np.concatenate([walk() / 640, walk()[..., :1] / 640, score], 2), None),
                          (np.concatenate([walk() / 640, walk()[..., :1] / 640, score], 2).reshape(30, 68),
                           "xyzv")):
        np.save(tmp_path / "x.npy", array)
        got = P.read_pose(tmp_path / "x.npy", 2, layout)
        assert got.points.shape[1] == 17 and np.isnan(got.points[3]).all() and got.confidence[0, 0] == 0.5
    np.save(tmp_path / "x.npy", np.concatenate([walk(), score], 2))
    pose = P.read_pose(tmp_path / "x.npy", 3)
    with pytest.raises(P.Unfit, match="2 coordinates, not 3"): P.select(pose, "all", 3)


@pytest.mark.parametrize("width, dims, layout, points", [
    (126, 3, None, 42), (126, 2, "xyz", 42), (126, 2, "xy", 63), (63, 2, None, 21), (50, 2, None, 25),
    (152, 2, None, 76), (100, 2, "xyzv", 25),
    (132, 2, "xyzv", 33), (258, 3, "33*xyzv+42*xyz", 75), (1662, 2, "33*xyzv+510*xyz", 543),
    (126, 2, None, "xyz (42 points)"), (100, 2, None, "xyzv (25 points)"), (132, 3, None, "xyzv (33 points)"),
    (258, 3, None, "33*xyzv+42*xyz"),
    (7, 2, None, "data.layout"), (126, 2, "xyzv", "126 numbers a frame, which are not xyzv")])
def test_flat_rows(tmp_path, width, dims, layout, points):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).uniform(-0.5, 0.5, (9, width)))
    if isinstance(points, str):
        with pytest.raises(P.Unfit) as e: P.read_pose(tmp_path / "x.npy", dims, layout)
        assert points in str(e.value) and e.value.key == "layout"
    else:
        got = P.read_pose(tmp_path / "x.npy", dims, layout)
        assert got.points.shape[1] == points and got.points.shape[2] >= dims


def test_one_name_in_two_spellings(tmp_path):
    import unicodedata
    composed = "fr/Köln é"
    for there in ("NFC", "NFD"):
        home = tmp_path / there
        path = home / unicodedata.normalize(there, composed)
        path.parent.mkdir(parents=True)
        np.save(f"{path}.npy", walk())
        for asked in ("NFC", "NFD"):
            assert P.find_pose(home, unicodedata.normalize(asked, composed)).is_file()
        with pytest.raises(Refused): P.find_pose(home, "fr/Koln e")
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(Refused): P.find_pose(tmp_path, "pipe")


def test_scores_beside_the_coordinates_choose_the_person(tmp_path):
    points = np.stack([walk(), walk(seed=1)], 1)
    scores = np.broadcast_to(np.array([0.2, 0.9])[:, None, None], (2, 17, 1))
    both = np.concatenate([points, np.broadcast_to(scores, (30, 2, 17, 1))], -1)  # x, y, score in one array
    np.save(tmp_path / "two.npy", both)
    (tmp_path / "two.pkl").write_bytes(pickle.dumps({"keypoint": both.swapaxes(0, 1), "total_frames": 30}))
    np.save(tmp_path / "flat.npy", both[:, 1].reshape(30, -1))
    for name in ("two.npy", "two.pkl", "flat.npy"):
        got = P.read_pose(tmp_path / name, 3 if name == "flat.npy" else None)
        np.testing.assert_allclose(got.points, walk(seed=1), atol=1e-3)
        np.testing.assert_allclose(got.confidence, 0.9, atol=1e-6)


def test_suffixes_in_capitals(tmp_path):
    np.save(tmp_path / "x.npy", walk())
    (tmp_path / "x.npy").rename(tmp_path / "CLIP.NPY")
    assert len(P.read_pose(P.find_pose(tmp_path, "CLIP")).points) == 30


def test_a_table_asks_for_shifts_that_can_be(tmp_path):
    from workbench.parts.pose.rows import read_table

    for header, value in (("tempo", "0"), ("tempo", "nan"), ("rotate", "inf"), ("drop", "1")):
        (tmp_path / "t.csv").write_text(f"uid,text,{header}\na,x,{value}\n")
        with pytest.raises(Refused, match=f"line 2: {header} is {value}: write a number from"):
            read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("uid, text, lang, pose\na, x, ase, p + _ + q\n")
    rows, rejected = read_table(tmp_path / "t.csv", ["ase"])
    assert [r.clips for r in rows] == [("p", "_", "q")] and not rejected


def test_a_rate_that_no_camera_has_is_none(tmp_path):
    for fps, found in ((59.94, 59.94), ("29.97", 29.97), (1e-9, None), (1e12, None), (-5, None),
                       (float("nan"), None), ("25 fps", None)):
        path = saved(tmp_path, pickle.dumps({"keypoints": walk(), "fps": fps}), "x.pkl")
        assert P.read_pose(path).fps == found
    path = saved(tmp_path, pickle.dumps({"keypoint": walk(2000)[None], "total_frames": 2000}), "x.pkl")
    assert len(P.read_pose(path).points) == 2000


def test_a_copy_of_a_training_clip_is_told_whatever_its_name(tmp_path):
    from workbench.core.stages.stages import complete
    from workbench.core.data.rows import shared_rows
    from workbench.tasks.sign.data import data

    for i in range(4):
        np.save(tmp_path / f"c{i}.npy", walk(seed=i))
    np.save(tmp_path / "copy.npy", walk(seed=0))
    (tmp_path / "train.csv").write_text("uid,text\n" + "".join(f"c{i}.npy,word {i}\n" for i in range(4)))
    (tmp_path / "valid.csv").write_text("uid,text\nc1,word 1\ncopy,word 0\n")
    cfg = complete("t5_tiny", f"data.source={tmp_path} data.keypoints=all data.trim=false data.fps=25")
    found = data(cfg, types.SimpleNamespace(assets=None))
    assert "all of 2 rows of valid are training rows" in shared_rows(found)[0]
    assert "data.fps = 25 changes nothing" in found.facts["frames_a_second"]
