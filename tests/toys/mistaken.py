"""A task for tests: digits are put into reverse order by a small encoder and decoder.

`mistake` brings in one of the mistakes that people make when they bring a task of their own; without it the
task is healthy. Shapes: B rows, S source digits, T target digits and the end, D width, V vocabulary."""
import torch
from torch import nn
from torch.nn.functional import cross_entropy, dropout, log_softmax, nll_loss
from torch.nn.utils.rnn import pad_sequence

from workbench.core.checks.questions import chance_band
from workbench.core.config.section import Section
from workbench.core.task import Data, Objective, Task

PAD, END, V = 0, 9, 10  # 1 … 8 are digits


class MistakenConfig(Section):
    width: int = 24
    mistake: str = ""


class Digits:
    "(id, digits, the same from the last to the first)"

    def __init__(self, split, n, first):
        self.split, self.n, self.first = split, n, first

    def __len__(self):
        return self.n

    def __getitem__(self, at):
        i = self.first + at[0]
        draw = torch.Generator().manual_seed(i)
        digits = torch.randint(1, 9, (int(torch.randint(3, 8, (1,), generator=draw)),), generator=draw)
        return f"{self.split}{i:04d}", digits, digits.flip(0)


def data(cfg, stage):
    sets = {"train": Digits("r", 200, 0), "valid": Digits("v", 40, 1000), "test": Digits("t", 20, 2000)}
    ignored = PAD if cfg.mistake == "labels padded with zero" else -100

    def collate(items):
        uid, x, y = zip(*items)
        y = [torch.cat([t, torch.tensor([END])]) for t in y]
        return {"uid": list(uid), "x": pad_sequence(x, batch_first=True),
                "y": pad_sequence(y, batch_first=True, padding_value=ignored)}

    return Data(datasets=sets, collate=collate, targets=["y"], lengths={
        k: [len(d[i, 0][1]) for i in range(len(d))] for k, d in sets.items()},
        counts=lambda b: {"digits": int((b["y"] != -100).sum())},
        uids={k: [f"{d.split}{d.first + i:04d}" for i in range(len(d))] for k, d in sets.items()})


class Encoder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.symbols, self.places = nn.Embedding(V, width, padding_idx=PAD), nn.Embedding(8, width)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.Tanh())

    def forward(self, x):  # [B, S] -> [B, S, D], [B, S] real
        real = x != PAD
        places = real.flip(1).cumsum(1).flip(1)  # counted from the end
        return self.mix(self.symbols(x) + self.places(places * real)), real


class Decoder(nn.Module):
    def __init__(self, width, mistake):
        super().__init__()
        self.symbols, self.places = nn.Embedding(V, width), nn.Embedding(9, width)
        self.attention = nn.MultiheadAttention(width, 1, batch_first=True)
        self.out, self.mistake = nn.Linear(width, V), mistake

    def forward(self, said, encoded, real):  # [B, T], [B, S, D], [B, S] -> [B, T, V]
        asks = self.symbols(said) + self.places(torch.arange(said.shape[1]).clamp(max=8))
        found = self.attention(asks, encoded, encoded, key_padding_mask=~real, need_weights=False)[0]
        hidden = asks + found
        if self.mistake == "functional dropout":
            hidden = dropout(hidden, 0.3)  # training=self.training is forgotten
        return self.out(hidden)


def nets(cfg, data, load_weights):
    torch.manual_seed(cfg.seed)
    return {"encoder": Encoder(cfg.width), "decoder": Decoder(cfg.width, cfg.mistake)}


def read(nets, x, mistake):
    "Encoded digits [B, S, D] and which of them are real [B, S]."
    if mistake == "encoder without gradients":
        with torch.no_grad():
            return nets["encoder"](x)
    return nets["encoder"](x)


def logits(nets, batch, mistake):
    "What each digit of the answer is said to be, after those before it [B, T, V]."
    y = batch["y"].clamp(min=PAD)
    before = torch.cat([torch.full_like(y[:, :1], PAD), y[:, :-1]], 1)
    return nets["decoder"](y if mistake == "targets not shifted" else before,
                           *read(nets, batch["x"], mistake))


def loss(nets, batch, ctx):
    labels, mistake = batch["y"], ctx.cfg.mistake
    if mistake == "a head of its own" and nets["decoder"].training:
        nets["decoder"].out = nn.Linear(ctx.cfg.width, V)
    said = logits(nets, batch, mistake)
    if mistake == "mean loss":
        return {"loss": cross_entropy(said.flatten(0, 1), labels.flatten())}
    if mistake == "softmax over places":
        said = log_softmax(said, 1)
        total = nll_loss(said.flatten(0, 1), labels.flatten(), reduction="sum")
    else:
        total = cross_entropy(said.flatten(0, 1), labels.flatten(), reduction="sum")
    if mistake == "a number of the loss":
        total = torch.tensor(total.item(), requires_grad=True)
    return {"loss": total / ctx.counts["digits"]}


def predict(nets, batch, ctx):
    if ctx.cfg.mistake == "frozen by predict":
        nets["encoder"].requires_grad_(False)
    encoded, real = nets["encoder"](batch["x"])
    said = torch.full_like(batch["x"][:, :1], PAD)
    for _ in range(batch["x"].shape[1] + 1):
        said = torch.cat([said, nets["decoder"](said, encoded, real)[:, -1:].argmax(-1)], 1)
    text = lambda ids: "".join(map(str, ids)).partition(str(END))[0]
    return [{"uid": u, "reference": text(y), "hypothesis": text(s)}
            for u, y, s in zip(batch["uid"], batch["y"].tolist(), said[:, 1:].tolist())]


def score(rows, data):
    return {"exact": sum(r["reference"] == r["hypothesis"] for r in rows) / len(rows)}


def expect(nets, batch, ctx):
    return {"loss": chance_band(logits(nets, batch, ""), batch["y"])}


task = Task(config=MistakenConfig, data=data, nets=nets, predict=predict, score=score, expect=expect,
            objectives=lambda cfg: {"reverse": Objective(["encoder", "decoder"], loss)},
            baseline=lambda data, split: {"exact": 0.0},
            preview=lambda nets, data, ctx: {"note": f"step {ctx.step}"})
