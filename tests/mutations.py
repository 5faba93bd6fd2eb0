"""A seeded mutator of configurations: values, keys and the text of files.

A tired person, an editor or a disk may leave such files behind."""
import json
import math
import random

HUGE = [10**9, 10**12, 2**63, 2**64, 10**30, 1e300]
NONSENSE = [math.nan, math.inf, -math.inf]
VALUES = [0, -1, -3, 1, 2, 3, 7, 0.5, -0.5, 1.5, *HUGE, *NONSENSE, True, False, None, "", " ", "xyz", "1_000",
          "1:30", "0x1F", "a: b #c", "ä", "/", "~x/y", "a/b/c/d",
          "../..", "*", "\x00", "\ud800", "x" * 300, "y/" * 4000, [], [0], [-1], [1, 2, 3], ["x"],
          [[1, 2], 3], [None], {}, {"a": 1}, {"type": "SGD"}, {"name": []}]
MAY_BE_NEGATIVE = ("data.trim", "data.level", "generate.length_penalty", "transition_on.threshold",
                   "data.keypoints")
SIZES = ("batch_size", "accumulate", "batch_tokens", "width", "layers", "depth", "heads", "hop", "win",
         "n_fft", "bands", "rate", "num_beams", "r", "vocab_size",
         "vocab", "max_frames", "step_frames", "max_length", "length", "latent", "patch", "steps",
         "r1_interval", "kernel", "together")
SPECIALS = "{}[]:,#&*!|>'\"%@`-?\t\n\\<>~. 0123456789aeé\x00\x07\ufeff\u2028"


def leaves(tree, prefix=()):
    "(path, value) of all that stands in a configuration, sections too."
    for key, value in tree.items():
        yield (*prefix, key), value
        if isinstance(value, dict):
            yield from leaves(value, (*prefix, key))


def nested(path, value):
    "{a: {b: value}}"
    for key in reversed(path):
        value = {key: value}
    return value


def deep(rng):
    "A value inside hundreds of lists or mappings."
    value = 1
    for _ in range(rng.choice([70, 300])):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def silly(rng, usual):
    "A value that may be silly for a key with this usual one."
    r = rng.random()
    if r < 0.15 and isinstance(usual, (int, float)) and not isinstance(usual, bool):
        return rng.choice([usual + 1, usual * 3, -usual, usual / 2, usual * 1e6, float(usual), str(usual)])
    if r < 0.2 and isinstance(usual, list):
        return rng.choice([usual * 2, usual[:1], [*usual, *usual, "x"], [rng.choice(VALUES) for _ in usual]])
    return deep(rng) if r > 0.99 else rng.choice(VALUES)


def must_be_refused(path, usual, value):
    "Whether no sane schema takes the value: what the mutator knows for sure."
    key = ".".join(map(str, path))
    free = key.startswith(("model.params", "pipeline", "notes", "on_cpu")) or key in ("preset",)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    counted = isinstance(usual, (int, float)) and not isinstance(usual, bool)
    if free or not number:
        takes_more = (free or "every" in key or key in ("data.keypoints", "model.vae.blocks")
                      or key == "train.minutes" and value == "auto")
        return counted and isinstance(value, (str, list, dict)) and not takes_more
    if isinstance(value, float) and not math.isfinite(value):
        return True
    if value < 0 and key not in MAY_BE_NEGATIVE:
        return True
    sized = path[-1] in SIZES
    return sized and (value == 0 or value > 10**12 or value % 1 != 0)


def typo(rng, word):
    "A key with a slip of the finger."
    i = rng.randrange(len(word))
    return rng.choice([word[:i] + word[i + 1:], word[:i] + word[i] + word[i:],
                       word[:i] + rng.choice("xyz._- ") + word[i + 1:], word.upper(), word + "s"])


def as_override(path, value):
    "A change as text, if it can be written so; else the mapping."
    if isinstance(value, (dict, str)) or any("." in str(k) or "=" in str(k) for k in path):
        return nested(path, value)
    text = {None: "null", True: "true",
            False: "false"}.get(value) if value is None or isinstance(value, bool) else None
    if isinstance(value, float) and not math.isfinite(value):
        text = {math.inf: ".inf", -math.inf: "-.inf"}.get(value, ".nan")
    try:
        text = text or json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return nested(path, value)
    return f"'{'.'.join(map(str, path))}={text}'"


def changed_text(rng, text):
    "A file after an accident."
    for _ in range(rng.choice([1, 1, 2, 5])):
        i, lines = rng.randrange(len(text) + 1), text.splitlines(keepends=True)
        what = rng.randrange(9)
        if what == 0:
            text = text[:i] + rng.choice(SPECIALS) + text[i:]
        elif what == 1:
            text = text[:i] + text[i + rng.choice([1, 3, 30]):]
        elif what == 2 and lines:
            line = rng.choice(lines)
            text = text.replace(line, line * 2, 1)
        elif what == 3 and lines:
            line = rng.choice(lines)
            text = text.replace(line, rng.choice([" ", "   ", "\t", "- "]) + line, 1)
        elif what == 4 and lines:
            line = rng.choice(lines)
            text = text.replace(line,
                                line.replace(": ",
                                             rng.choice([": &x ", ": *x ", ": !!python/object:os.system ",
                                                         ": !y ", ": !!int ", ": |\n", ":", ": - "]), 1), 1)
        elif what == 5:
            text = text[:i]
        elif what == 6:
            text = "".join(rng.sample(lines, len(lines)))
        elif what == 7:
            text = text[:i] + rng.choice(["[" * 3000, "{a: " * 3000, "- " * 3000, "x" * 5000, "9" * 5000,
                                          "&a [*a]", "<<: 1\n", "? [a]\n: 1\n", "1: 2\n",
                                          "~: 1\n"]) + text[i:]
        else:
            text = text[:i] + text[i:i + 200][::-1] + text[i + 200:]
    return text


def changed_bytes(rng, text):
    "A file in another encoding, or with some bits turned."
    how = rng.randrange(6)
    if how < 3:
        return (text + "# ä\n").encode(["latin-1", "utf-16", "utf-8-sig"][how], "replace")
    data = bytearray(text.encode("utf8"))
    for _ in range(rng.choice([1, 3, 20])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def rng_of(*key):
    return random.Random(" ".join(map(str, key)))
