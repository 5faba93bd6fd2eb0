"""Real (non-pad) tokens per second of four ways to train one model on the same pairs, in interleaved rounds.

    python bench/throughput.py                          # a T5 on English-German, 3 rounds of an epoch
    python bench/throughput.py --system translate --precision bf16   # `universal_tiny`, as the task makes it
    python bench/throughput.py --steps 20 --rounds 1    # a quick look
    python bench/throughput.py --clock cpu --threads 1  # processor seconds, where others use the machine, too

Equal for all: model and first weights, training rows, AdamW (fused, constant rate 1e-3, no decay),
gradient norm clipped to 1, precision, 32 rows a batch on average, dropout 0.1. What differs: which rows meet,
and the loop. Each arm of each round has a process of its own, since what one leaves of the heap is the next
one's gain. Held-out loss (128 pairs, per target token) is measured on the way with the clock stopped.
Writes results/throughput[_translate][_bf16].csv, the same with _loss, and .png beside this file.
"""
import argparse
import csv
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

if __name__ == "__main__" and "--threads" in sys.argv:  # OpenMP reads it once, when torch is imported
    os.environ["OMP_NUM_THREADS"] = sys.argv[sys.argv.index("--threads") + 1]
os.environ.setdefault("OMP_NUM_THREADS", "2")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import ende  # noqa: E402
import pairs  # noqa: E402
import torch  # noqa: E402

ROWS, RATE, CLIP = 32, 1e-3, 1.0
RESULTS = Path(__file__).parent / "results"


class Probe:
    "A clock that starts after the warm-up, counts tokens, and stands still while held-out loss is measured."

    def __init__(self, system, precision: str, warm: int, steps: int, every: int, clock):
        held = system.rows["valid"]
        self.held = [system.collate(held[i:i + ROWS]) for i in range(0, len(held), ROWS)]
        self.low = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16")
        self.warm, self.steps, self.every, self.clock = warm, steps, every, clock
        self.net, self.real, self.padded, self.ticks, self.paused, self.losses = None, [], [], [], 0.0, []

    def batch(self, batch: dict):
        "A batch was collated."
        self.real.append(ende.real_tokens(batch))
        self.padded.append(batch["input_ids"].numel() + batch["labels"].numel())

    def tick(self):
        "A step begins, or the last one has ended."
        step = len(self.ticks)
        if step % self.every == 0 or step == self.warm + self.steps:
            began = self.clock()
            self.losses.append((step, sum(self.real[:step]), self.held_out()))
            self.paused += self.clock() - began
        self.ticks.append(self.clock() - self.paused)

    @torch.no_grad()
    def held_out(self) -> float:
        self.net.eval()
        counts = [int((b["labels"] != -100).sum()) for b in self.held]
        with self.low():
            means = [float(self.net(**b, use_cache=False).loss) for b in self.held]
        self.net.train()
        return sum(m * n for m, n in zip(means, counts)) / sum(counts)

    def report(self) -> dict:
        window = slice(self.warm, self.warm + self.steps)
        seconds = self.ticks[window.stop] - self.ticks[window.start]
        real, padded = sum(self.real[window]), sum(self.padded[window])
        return {"tokens_per_s": real / seconds, "padding": 1 - real / padded,
                "tokens_per_step": real / self.steps, "ms_per_step": 1000 * seconds / self.steps}


def trainer(probe: Probe, system, precision: str, seed: int, strategy: str):
    "transformers' Seq2SeqTrainer; `strategy` is its train_sampling_strategy ('random' is how it comes)."
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments
    from transformers import TrainerCallback

    pad = DataCollatorForSeq2Seq(system.tokenizer)

    def collate(items):
        batch = pad(items)
        probe.batch(batch)
        return batch

    class Ticks(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            probe.tick()

        def on_train_end(self, args, state, control, **_):
            probe.tick()

    probe.net = system.net()
    with tempfile.TemporaryDirectory() as folder:
        args = Seq2SeqTrainingArguments(
            folder, per_device_train_batch_size=ROWS, max_steps=probe.warm + probe.steps, learning_rate=RATE,
            lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=CLIP,
            train_sampling_strategy=strategy, seed=seed, use_cpu=True,
            bf16=precision == "bf16", save_strategy="no", report_to="none",
            disable_tqdm=True, dataloader_pin_memory=False, logging_strategy="no")
        peer = Seq2SeqTrainer(probe.net, args, data_collator=collate, train_dataset=system.rows["train"],
                              processing_class=system.tokenizer, callbacks=[Ticks])
        peer.remove_callback(PrinterCallback)
        peer.train()


def bare(probe: Probe, system, precision: str, seed: int):
    "A torch loop with nothing in it but the batches of the workbench."
    from workbench.core.data.batches import epoch_plan

    probe.net, table = system.net(), system.rows["train"]
    net = probe.net.train()
    torch.manual_seed(seed)
    parameters = list(net.parameters())
    adam = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)
    lengths = ende.lengths(table)
    plans = (slots for epoch in range(10**6) for slots in epoch_plan(lengths, ROWS, 1, seed, epoch))
    for _ in range(probe.warm + probe.steps):
        probe.tick()
        [rows] = next(plans)
        batch = system.collate([table[i] for i in rows])
        probe.batch(batch)
        with probe.low():
            loss = net(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        adam.step()
        adam.zero_grad()
    probe.tick()


def workbench(probe: Probe, system, precision: str, seed: int):
    "The loop of the workbench, with its run folder, log lines, and random numbers seeded for every forward."
    from dataclasses import replace

    from workbench.core.config import presets

    from workbench.core.run import folder as run

    from workbench.core.train.loop import start
    from workbench.core.train.stage import train_stage

    plain = system.module.task

    def nets(cfg, data, load_weights):
        made = plain.nets(cfg, data, load_weights)
        probe.net = made[system.net_name]
        return made

    def data(cfg, stage):
        made = plain.data(cfg, stage)

        def collate(items):  # the loop asks for a batch when its step begins
            probe.tick()
            batch = made.collate(items)
            probe.batch(system.as_theirs(batch))
            return batch

        return replace(made, collate=collate)

    train = {"epochs": None, "max_steps": probe.warm + probe.steps, "minutes": None, "batch_size": ROWS,
             "batch_tokens": None, "lr": RATE, "clip": CLIP, "optimizer": {"weight_decay": 0.0},
             "precision": precision, "scheduler": {"type": "constant", "warmup": 0, "floor": 0.0},
             "checkpoint_every": None, "log_every": 10}
    system.module.task = replace(plain, data=data, nets=nets)
    cfg = presets.load(system.preset, {"check": False, "pipeline": None, "trackers": [], "seed": seed,
                                       "train": train,
                                       "valid": {"every": None}} | system.settings)
    with tempfile.TemporaryDirectory() as folder:
        train_stage(start(run.create(cfg, Path(folder) / "run")))
        probe.tick()


ARMS = {
    "Seq2SeqTrainer": lambda *a: trainer(*a, "random"),
    "Seq2SeqTrainer, group_by_length": lambda *a: trainer(*a, "group_by_length"),
    "bare torch loop": bare,
    "workbench": workbench,
}
COLOURS = dict(zip(ARMS, ("#999999", "#d95f02", "#7570b3", "#1b9e77")))


def measure(args, arms: list[str]) -> tuple[list[dict], list[dict]]:
    "(a line per arm and round, a line per held-out loss)."
    speeds, losses = [], []
    for turn in range(args.rounds):
        for name in arms if turn % 2 == 0 else arms[::-1]:
            command = [sys.executable, *sys.argv, "--one", name, "--turn", str(turn)]
            done = subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True)
            speed, points = json.loads(done.stdout.splitlines()[-1])
            speeds.append({"arm": name, "round": turn, **speed})
            losses += [{"arm": name, "round": turn, **dict(zip(("step", "tokens", "loss"), point))}
                       for point in points]
            print(f"round {turn}  {name:32} {speeds[-1]['tokens_per_s']:7.0f} tokens/s  "
                  f"held-out loss {losses[-1]['loss']:.3f}", file=sys.stderr, flush=True)
    return speeds, losses


def one(args) -> list:  # [speed, held-out losses]
    "One arm of one round, in this process."
    system = pairs.SYSTEMS[args.system](args.source)
    steps = args.steps or -(-len(system.rows["train"]) // ROWS)
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[args.clock]
    probe = Probe(system, args.precision, args.warm, steps, max(1, steps // 6), clock)
    ARMS[args.one](probe, system, args.precision, args.turn)
    return [probe.report(), probe.losses]


def table_of(speeds: list[dict], arms: list[str]) -> str:
    "Medians over the rounds as a markdown table; ratios are medians of the ratios within a round."
    of = lambda arm, key: [line[key] for line in speeds if line["arm"] == arm]
    middle = lambda arm, key: statistics.median(of(arm, key))
    peers = arms[:3]
    head = ["loop", "tokens/s", "padding", "tokens a step", "ms a step", *(f"× {peer}" for peer in peers)]
    out = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for arm in arms:
        speed = of(arm, "tokens_per_s")
        ratios = [statistics.median(a / b for a, b in zip(speed, of(peer, "tokens_per_s"))) for peer in peers]
        out.append([arm, f"{middle(arm, 'tokens_per_s'):.0f}", f"{middle(arm, 'padding'):.1%}",
                    f"{middle(arm, 'tokens_per_step'):.0f}", f"{middle(arm, 'ms_per_step'):.0f}",
                    *(f"{ratio:.2f}" for ratio in ratios)])
    return "\n".join("| " + " | ".join(line) + " |" for line in out)


def figure(losses: list[dict], speeds: list[dict], arms: list[str], path: Path):
    "Held-out loss against steps, tokens and seconds (tokens over median speed), mean of the rounds."
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True)
    for arm in arms:
        mine = [line for line in losses if line["arm"] == arm]
        speed = statistics.median(line["tokens_per_s"] for line in speeds if line["arm"] == arm)
        steps = sorted({line["step"] for line in mine})
        mean = lambda step, key: statistics.mean(line[key] for line in mine if line["step"] == step)
        loss, tokens = [mean(s, "loss") for s in steps], [mean(s, "tokens") for s in steps]
        for axis, x in zip(axes, (steps, tokens, [t / speed for t in tokens])):
            axis.plot(x, loss, marker="o", markersize=3, color=COLOURS[arm], label=arm)
    for axis, name in zip(axes, ("optimiser steps", "real tokens, source and target", "seconds of training")):
        axis.set_xlabel(name)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("held-out loss, nats per target token")
    axes[0].legend(frameon=False, fontsize=8)
    drawn.tight_layout()
    drawn.savefig(path, dpi=90)


def write(path: Path, lines: list[dict]):
    with open(path, "w", newline="", encoding="utf8") as f:
        out = csv.DictWriter(f, list(lines[0]))
        out.writeheader()
        short = lambda value: round(value, 4) if isinstance(value, float) else value
        out.writerows({key: short(value) for key, value in line.items()} for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, help="measured steps a round (default: one epoch of 32 rows)")
    parser.add_argument("--warm", type=int, default=5, help="steps before the clock starts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--system", choices=list(pairs.SYSTEMS), default="ende")
    parser.add_argument("--source", default="samples", help="the pairs of --system translate: data.source")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--one", choices=list(ARMS), help=argparse.SUPPRESS)
    parser.add_argument("--turn", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*log_with.*")
    torch.set_num_threads(args.threads)
    if args.one:
        return print(json.dumps(one(args)))
    speeds, losses = measure(args, args.arms)
    RESULTS.mkdir(exist_ok=True)
    name = "throughput" + "_translate" * (args.system == "translate") + "_bf16" * (args.precision == "bf16")
    write(RESULTS / f"{name}.csv", speeds)
    write(RESULTS / f"{name}_loss.csv", losses)
    figure(losses, speeds, args.arms, RESULTS / f"{name}.png")
    print(table_of(speeds, args.arms))


if __name__ == "__main__":
    main()
