"""A user's folder of another sign language: pose files of three kinds, tables in three scripts, and
what goes wrong in them."""
import io
import os
import pickle
import unicodedata
from pathlib import Path

import numpy as np

import workbench
from workbench.parts.pose.files import read_pose, select

CLIP = Path(workbench.__file__).parent / "samples/sign/clips/ase/y.pose"
WORDS = {"isr": ["שלום", "בוקר טוב", "תודה רבה", "לילה", "אהבה", "בית ספר", "שָׁלוֹם עליכם", "כלב"],
         "eth": ["ሰላም", "አዲስ አበባ", "እንኳን ደህና መጡ", "ውሃ", "ቤት", "ፍቅር", "ልጅ ነኝ", "አማርኛ"],
         "ukl": ["привіт", "дякую", "їжа", "ґанок і дім", "пес", "щастя", "мова жестів", "ні"]}
# the table has them decomposed, as some keyboards type; they are learnt and scored composed
TEXTS = [(lang, unicodedata.normalize("NFC", t)) for i in range(8)
         for lang, t in ((k, v[i]) for k, v in WORDS.items())]


def motion(n, frames=24, points=76):
    "A motion that no other row has: [frames, points, 2], of a real body in pixels."
    rng = np.random.default_rng(n)
    body = np.nan_to_num(select(read_pose(CLIP), "152").points)
    body = body[np.linspace(0, len(body) - 1, frames).astype(int)] + 1
    drift = np.cumsum(rng.normal(size=(frames, 1, 2)) * 4, 0) + rng.normal(size=(1, points, 2)) * 12
    return (np.resize(body, (frames, points, 2)) + drift).astype(np.float32)


def dot_pose(n, frames=24):
    "Bytes of a .pose file, written by the library: the points of MediaPipe Holistic, moved."
    from pose_format import Pose

    pose = Pose.read(CLIP.read_bytes())
    pick = np.linspace(0, len(pose.body.data) - 1, frames).astype(int)
    rng = np.random.default_rng(n)
    pose.body.data = pose.body.data[pick] + np.cumsum(rng.normal(size=(frames, 1, 1, 1)) * 4, 0)
    pose.body.confidence = pose.body.confidence[pick]
    out = io.BytesIO()
    pose.write(out)
    return out.getvalue()


def save_pose(path, n, frames=24):
    "One motion, in the format that the name asks for."
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pose":
        path.write_bytes(dot_pose(n, frames))
    elif path.suffix == ".pkl":
        points = motion(n, frames)
        path.write_bytes(pickle.dumps({"keypoints": points[:, None],
                                       "scores": np.ones((frames, 1, 76), np.float32)}))
    else:
        np.save(path, motion(n, frames))


class Call:
    "Pickles as a call of any function."

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def write(path, rows, delimiter=",", bom=False, head=("uid", "text")):
    "A table; a field that needs quotes gets them."
    def field(value):
        value = str(value)
        return '"' + value.replace('"', '""') + '"' if any(c in value for c in delimiter + '"\n') else value

    lines = [delimiter.join(map(field, row)) for row in (head, *rows)]
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + ("\r\n".join(lines) + "\r\n").encode("utf8"))


def good_folder(home, test=True):
    """24 rows to train on in three scripts, no table for validation, poses of three formats, some in folders
    of their own."""
    for i, (lang, _) in enumerate(TEXTS):
        save_pose(home / "poses" / (f"{lang}/s{i}" + (".pose", ".npy", ".pkl")[i % 3]), i, 18 + i % 7)
    typed = [(f"{lang}/s{i}", unicodedata.normalize("NFD", t)) for i, (lang, t) in enumerate(TEXTS)]
    write(home / "train.csv", typed, ";", bom=True)
    if test:  # the uids of these rows are the first ones of the training table, their texts are not
        write(home / "test.csv", [(f"{lang}/s{i}", f"{t} {t}") for i, (lang, t) in enumerate(TEXTS[:5])])
    return home


def spoil(home, flag):
    "Add to the training table a row for everything that a pose can be; returns uid -> a word of the reason."
    poses = home / "poses"
    whole = dot_pose(99)
    (poses / "truncated.pose").write_bytes(whole[: len(whole) * 2 // 3])
    np.save(poses / "zeros.npy", np.zeros((20, 76, 2), np.float32))
    np.save(poses / "no_frames.npy", np.zeros((0, 76, 2), np.float32))
    (poses / "evil.pkl").write_bytes(pickle.dumps({"keypoints": Call(os.system, f"touch {flag}")}))
    (poses / "empty.pose").write_bytes(b"")
    (poses / "no_frames_pose.pose").write_bytes(dot_pose(99, 0))
    save_pose(home / "secret.npy", 7)
    rows = [("isr/s0", "פעמיים"), ("silent", ""), ("gone", "где"), ("truncated", "ሰ"), ("zeros", "אפס"),
            ("no_frames", "a"),
            ("no_frames_pose", "b"), ("evil", "c"), ("empty", "d"), ("../secret", "e")]
    with open(home / "train.csv", "ab") as f:
        f.write("".join(f"{u};{t}\r\n" for u, t in rows).encode("utf8"))
    return {"isr/s0": "twice", "silent": "no text", "gone": "no pose gone",
            "truncated": "cut off|not a complete",
            "zeros": "no point is visible", "no_frames": "no frames", "no_frames_pose": "no frames",
            "evil": "refused, it asks for posix.system", "empty": "the file is empty",
            "../secret": "leads out"}
