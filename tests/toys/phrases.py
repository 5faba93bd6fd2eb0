"Small parallel corpora: three words a sentence, translated word by word, so a tiny model learns them."
import itertools
from pathlib import Path

WORDS = {
    "en": ("the red a blue", "house car tree river", "sleeps grows sings"),
    "de": ("das rote ein blaues", "Haus Auto Holz Ufer", "schläft wächst singt"),
    "am": ("ያ ቀይ አንድ ሰማያዊ", "ቤት መኪና ዛፍ ወንዝ", "ይተኛል ያድጋል ይዘምራል"),
    "ru": ("тот красный один синий", "дом вагон лес берег", "спит растёт поёт"),
}


def sentences(language):
    "All sentences of a language; the same place is the same sentence in each."
    parts = [part.split() for part in WORDS[language]]
    return [" ".join(words) + "." for words in itertools.product(*parts)]


def corpus(home, pairs=("en-de", "en-am", "en-ru"), counts={}):
    "Tables as a user has them: train/en-de.tsv and so on; of 48 sentences the last ones are held out."
    for pair in pairs:
        source, target = pair.split("-")
        rows = list(zip(sentences(source), sentences(target)))
        rows = rows[::5] + [row for i, row in enumerate(rows) if i % 5]
        parts = {"train": rows[:36][:counts.get(pair)], "valid": rows[36:42], "test": rows[42:]}
        for split, some in parts.items():
            write(Path(home) / split / f"{pair}.tsv", some)
    return Path(home)


def write(path, rows):
    "A table of sources and targets."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join("\t".join(row) for row in [("source", "target"), *rows]) + "\n",
                    encoding="utf8")
