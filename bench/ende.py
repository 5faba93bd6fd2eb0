"""Real English-German pairs for measurements: Debian's gnome-user-docs (CC-BY-SA-3.0), aligned and tokenised.

A page counts when its sequence of <p>, <title> and <desc> equals that of the English page, credits left
out. Pairs that occur twice and pairs whose sides are equal are dropped: 2,771 remain of version 43.
"""
import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

CACHE = Path(__file__).parent / ".cache"
PACKAGE = "gnome-user-docs"
BLOCKS = {"p", "title", "desc"}


def fetch() -> Path:
    "The unpacked help pages, fetched with apt-get once. RuntimeError where that fails."
    folder = CACHE / PACKAGE
    if not folder.exists():
        CACHE.mkdir(exist_ok=True)
        try:
            subprocess.run(["apt-get", "download", PACKAGE], cwd=CACHE, check=True, capture_output=True)
            [deb] = CACHE.glob(f"{PACKAGE}_*.deb")
            subprocess.run(["dpkg-deb", "-x", deb.name, "unpacking"], cwd=CACHE, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"{PACKAGE} could not be fetched: this needs apt-get with its package lists "
                               f"(apt-get update), or the package unpacked in {folder}") from error
        (CACHE / "unpacking").rename(folder)
    return folder / "usr/share/help"


def blocks(
    page: Path,  # a Mallard page
) -> list[tuple[str, str]]:  # (tag, text with single spaces) of every block, credits left out
    root = ElementTree.parse(page).getroot()
    name = lambda element: element.tag.rpartition("}")[2]
    for parent in list(root.iter()):
        for child in [c for c in parent if name(c) == "credit"]:
            parent.remove(child)
    return [(name(e), " ".join("".join(e.itertext()).split())) for e in root.iter() if name(e) in BLOCKS]


def pairs(
    lang: str = "de",
) -> list[tuple[str, str]]:  # (English, other), each pair once, in the order of the pages
    help_pages, found = fetch(), {}
    for page in sorted((help_pages / "C").rglob("*.page")):
        other = help_pages / lang / page.relative_to(help_pages / "C")
        if not other.exists():
            continue
        ours, theirs = blocks(page), blocks(other)
        if [tag for tag, _ in ours] == [tag for tag, _ in theirs]:
            found.update(dict.fromkeys((a, b) for (_, a), (_, b) in zip(ours, theirs) if a and b and a != b))
    return list(found)


def tokenizer(
    texts: list[str],
    vocab: int = 8000,
):
    "A BPE tokenizer trained on `texts`: 0 <pad>, 1 </s>, 2 <unk>."
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.normalizer = normalizers.NFKC()
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=[*special.values()], show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=512, **special)


def rows(
    lang: str = "de",
    vocab: int = 8000,
    longest: int = 128,  # tokens, </s> included; longer texts are cut
) -> tuple[list[dict], object]:  # [{"input_ids", "labels"}] without padding, the tokenizer
    "The pairs as token ids; kept in the cache folder."
    from transformers import PreTrainedTokenizerFast

    folder = CACHE / f"{lang}-{vocab}-{longest}"
    if not folder.exists():
        corpus = pairs(lang)
        trained = tokenizer([text for pair in corpus for text in pair], vocab)
        ids = [trained(list(side), truncation=True, max_length=longest)["input_ids"] for side in zip(*corpus)]
        trained.save_pretrained(folder)
        (folder / "rows.json").write_text(json.dumps([{"input_ids": s, "labels": t} for s, t in zip(*ids)]))
    return json.loads((folder / "rows.json").read_text()), PreTrainedTokenizerFast.from_pretrained(folder)


def t5(
    vocab: int = 8000,
    seed: int = 0,
):
    "A T5 of 7.6 M parameters with random weights: 3 + 3 layers, width 256, tied embeddings, dropout 0.1."
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    return T5ForConditionalGeneration(T5Config(
        vocab_size=vocab, d_model=256, d_kv=64, d_ff=1024, num_layers=3, num_decoder_layers=3, num_heads=4,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0))


def collate(
    items: list[dict],  # {"input_ids", "labels"}
) -> dict:  # input_ids, attention_mask [B, S]; labels [B, T], -100 where there is padding
    "Rows padded to the longest of the batch."
    import torch
    from torch.nn.utils.rnn import pad_sequence

    padded = lambda key, fill: pad_sequence([torch.tensor(item[key]) for item in items], True, fill)
    source = padded("input_ids", 0)
    return {"input_ids": source, "attention_mask": (source != 0).long(), "labels": padded("labels", -100)}


def real_tokens(
    batch: dict,
) -> int:  # source and target tokens that are not padding
    return int(batch["attention_mask"].sum() + (batch["labels"] != -100).sum())


def lengths(
    table: list[dict],
) -> np.ndarray:  # int [N, 2]: source tokens, target tokens
    return np.array([[len(row["input_ids"]), len(row["labels"])] for row in table])


if __name__ == "__main__":
    table, trained = rows()
    size = lengths(table)
    print(f"{len(table)} pairs, vocabulary {len(trained)}; source and target tokens: mean "
          f"{size.mean(0).round(1)}, median {np.median(size, 0)}, longest {size.max(0)}")
    for row in table[:3]:
        print(trained.decode(row["input_ids"]), "|", trained.decode(row["labels"]))
