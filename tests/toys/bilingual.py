"""Made-up sentences in English, German and Amharic, which a tiny model learns to translate in seconds.

Words are real and have one translation each; German keeps the order, Amharic turns it round."""
import random

from workbench.core.config.merging import merge
from workbench.core.config.presets import parse_overrides

WORDS = {
    "en": "the house water sees good day dog eats red book small man big sun reads now city old tree loves "
          "and new road "
          "finds not evening child hears white window".split(),
    "de": "das Haus Wasser sieht guter Tag Hund frisst rotes Buch kleiner Mann große Sonne liest jetzt Stadt "
          "alter Baum "
          "liebt und neue Straße findet nicht Abend Kind hört weißes Fenster".split(),
    "am": "ያ ቤት ውሃ ያያል ጥሩ ቀን ውሻ ይበላል ቀይ መጽሐፍ ትንሽ ሰው ትልቅ ፀሐይ ያነባል አሁን ከተማ አሮጌ ዛፍ ይወዳል እና አዲስ መንገድ "
          "ያገኛል አይደለም ምሽት ልጅ ይሰማል ነጭ መስኮት".split()}
TINY = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}


def sentence(concepts, number, language):
    words = [WORDS[language][c] for c in concepts] + [str(number)] * (number > 0)
    return " ".join(words[::-1] if language == "am" else words)


def pairs(pair, n, seed=0):
    "n different pairs of sentences; every third has a number."
    draw, (src, tgt), out = random.Random(f"{pair} {seed}"), pair.split("-"), {}
    while len(out) < n:
        concepts = draw.choices(range(len(WORDS["en"])), k=draw.randint(2, 6))
        number = draw.randint(10, 999) if draw.random() < 1 / 3 else 0
        out.setdefault(sentence(concepts, number, src), sentence(concepts, number, tgt))
    return list(out.items())


def corpus(folder, rows=(400, 60, 60), of=("en-de", "en-am"), change=lambda split, pair, rows: rows):
    "A folder of tables as a user brings them: train/en-de.tsv …; the splits share no sentence."
    for pair in of:
        every, at = pairs(pair, sum(rows)), 0
        for split, n in zip(("train", "valid", "test"), rows):
            (folder / split).mkdir(parents=True, exist_ok=True)
            lines = ["source\ttarget", *("\t".join(r) for r in change(split, pair, every[at:at + n]))]
            (folder / split / f"{pair}.tsv").write_text("\n".join(lines) + "\n", encoding="utf8")
            at += n
    return folder


def config(folder, overrides="", **sections):
    "A configuration that trains on such a folder."
    base = {"task": "translate", "check": False, "trackers": [],
            "data": {"source": str(folder), "max_length": 48},
            "model": {"name": "universal-tiny", "init": "scratch", "vocab_size": 1000, "dropout": 0.0,
                      "params": TINY},
            "generate": {"max_length": 48},
            "valid": {"every": None, "metric": "loss", "batch_size": 60},
            "train": {"max_steps": 20, "minutes": None, "batch_size": 32, "lr": 3e-3, "log_every": 10,
                      "checkpoint_every": None}}
    return merge(merge(base, sections), parse_overrides(overrides))
