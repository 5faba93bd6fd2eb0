"""A student learns from a teacher: the loss by its identities, and a run in which the teacher is frozen and
kept once."""
import shutil
from types import SimpleNamespace

import pytest
import torch
from bilingual import config, corpus
from runs import again, end, go, tensors

from workbench.core.run import checkpoint
from workbench.core.setup.resume import load
from workbench.core.stages.stages import complete, stages
from workbench.core.task import Ctx
from workbench.errors import Refused
from workbench.files import read_json
from workbench.lab.run.launch import log_tail
from workbench.parts.text.seq2seq import token_loss
from workbench.tasks.translate.distil import (
    distance, require_same_tokens, require_teacher, taught, tokens_print)

B, T, V = 3, 5, 40


@pytest.fixture
def case():
    draw = torch.Generator().manual_seed(0)
    z, w = (torch.randn(B, T, V, generator=draw, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(V, (B, T), generator=draw)
    labels[1, 3:], labels[2, 1:] = -100, -100
    return z.requires_grad_(), w, labels


# The loss

def test_the_distance_is_hintons_formula(case):
    z, w, labels = case
    for temperature in (0.5, 1.0, 4.0):
        p, q = (x / temperature for x in (w, z.detach()))
        p, q = p.softmax(-1), q.softmax(-1)
        each = temperature ** 2 * (p * (p.log() - q.log())).sum(-1)
        found, n = distance(z, w, labels, temperature)
        assert n == (labels != -100).sum() == 9
        assert torch.allclose(found.double(), each[labels != -100].sum(), rtol=1e-4)


def test_a_teacher_that_says_the_same_is_no_distance_away_and_pulls_nowhere(case):
    z, _, labels = case
    found, _ = distance(z, z.detach(), labels)
    [gradient] = torch.autograd.grad(found, z)
    assert abs(float(found)) < 1e-5 and float(gradient.abs().max()) < 1e-6


def test_at_a_high_temperature_logits_are_matched(case):
    z, w, labels = case
    limit = 0.5 * (w - z).var(-1, unbiased=False)[labels != -100].sum()
    errors = [abs(float(distance(z, w, labels, t)[0] / limit) - 1) for t in (4.0, 20.0, 100.0)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02


def test_padding_counts_for_nothing_and_its_gradient_is_zero(case):
    z, w, labels = case
    changed = w.clone()
    changed[labels == -100] = 50.0
    assert distance(z, w, labels)[0] == distance(z, changed, labels)[0]
    [gradient] = torch.autograd.grad(distance(z, w, labels)[0], z)
    assert gradient[labels == -100].abs().max() == 0 < gradient[labels != -100].abs().max()


def test_columns_that_one_has_more_stand_for_no_token(case):
    z, w, labels = case
    wide = torch.cat([w, torch.full((B, T, 8), 9.0, dtype=w.dtype)], -1)
    assert distance(z, wide, labels)[0] == distance(z, w, labels)[0]


def loss_of(z, w, labels, alpha, temperature=4.0, tokens=20.0):
    ctx = SimpleNamespace(cfg=SimpleNamespace(loss=SimpleNamespace(alpha=alpha, temperature=temperature)),
                          counts={"tokens": tokens})
    ce = token_loss(z, labels)[0] / tokens
    return taught({"teacher": w}, {"labels": labels}, z, ce, lambda nets, batch: nets["translator"], ctx), ce


def test_alpha_0_is_plain_cross_entropy_to_the_last_bit(case):
    z, w, labels = (x.float() if x.is_floating_point() else x for x in case)
    z = z.detach().requires_grad_()
    parts, ce = loss_of(z, w, labels, 0.0)
    assert torch.equal(parts["loss"], ce)
    a, b = torch.autograd.grad(parts["loss"], z, retain_graph=True)[0], torch.autograd.grad(ce, z)[0]
    assert torch.equal(a, b)


def test_the_parts_are_mixed_by_alpha_and_are_shares_of_the_step(case):
    z, w, labels = case
    for alpha in (0.5, 1.0):
        parts, ce = loss_of(z, w, labels, alpha)
        assert torch.allclose(parts["loss"], (1 - alpha) * parts["ce"] + alpha * parts["kl"])
        assert torch.equal(parts["ce"], ce)
    half = loss_of(z, w, labels, 1.0, tokens=40.0)[0]["loss"]
    assert torch.allclose(2 * half, parts["loss"])


def test_what_a_teacher_finds_likely_is_worth_more_than_one_drawn_token():
    "The same student, rows and steps: with the probabilities of the teacher it is nearer to the truth."
    draw = torch.Generator().manual_seed(1)
    truth = torch.randn(16, V, generator=draw)
    x, far = (torch.randn(n, 16, generator=draw) for n in (60, 2000))
    labels = torch.multinomial((x @ truth).softmax(-1), 1, generator=draw)
    ends = {}
    for alpha in (0.0, 0.5, 1.0):
        net = torch.zeros(16, V, requires_grad=True)
        step = torch.optim.Adam([net], 0.05)
        for _ in range(200):
            parts, _ = loss_of((x @ net)[:, None], (x @ truth)[:, None], labels, alpha, 2.0, 60.0)
            step.zero_grad()
            parts["loss"].backward()
            step.step()
        p = (far @ truth).softmax(-1)
        ends[alpha] = float(-(p * (far @ net).log_softmax(-1)).sum(-1).mean())
    assert ends[1.0] < ends[0.5] < ends[0.0] - 0.1, ends


# The vocabulary

class Tokens(dict):
    def get_vocab(self):
        return dict(self)


def test_another_vocabulary_is_refused_with_both_checksums():
    mine, other = Tokens(a=0, b=1), Tokens(a=1, b=0)
    require_same_tokens(mine, Tokens(b=1, a=0), "x")
    with pytest.raises(Refused) as refused:
        require_same_tokens(mine, other, "runs/big")
    said = str(refused.value)
    assert "runs/big" in said and tokens_print(mine) in said and tokens_print(other) in said
    assert tokens_print(mine) != tokens_print(other)


def test_a_teacher_in_one_stage_alone_is_refused():
    ctx = Ctx(training=True, cfg=SimpleNamespace(loss=SimpleNamespace(teacher="runs/big")))
    with pytest.raises(Refused, match="stands in one stage alone"):
        require_teacher({"translator": None}, ctx)
    require_teacher({"translator": None, "teacher": None}, ctx)
    ctx.training = False
    require_teacher({"translator": None}, ctx)  # used without its teacher


# A run

def student_of(folder, teacher, more=""):
    "A student's configuration; its vocabulary lies beside the teacher's run, which may go."
    packs = teacher.with_name("packs")
    if not packs.exists():
        shutil.copytree(teacher / "assets" / "vocabulary", packs)
    out = config(folder, f"loss.teacher={teacher} data.vocabulary={packs} {more}")
    del out["model"]["vocab_size"]
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "(corpus, a teacher's run, its student's: checked, averaged, stopped after two steps)."
    home = tmp_path_factory.mktemp("distil")
    data = corpus(home / "data", (60, 8, 8))
    over = "train.max_steps=2 valid.final=[] train.checkpoint_every=1 model.dropout=0.1"
    teacher = go(home / "teacher", over, base=config(data))
    assert end(teacher, 400)["state"] == "finished"
    more = f"{over} check=true train.ema=0.9 model.params.d_model=32 model.params.encoder_ffn_dim=64"
    student = go(home / "student", "", base=student_of(data, teacher.folder, more))
    assert end(student, 400)["state"] == "finished"
    return data, teacher.folder, student.folder


def test_the_checks_pass_and_the_teacher_stays_as_it_was(made):
    _, teacher, student = made
    assert not [c for c in read_json(student / "checks.json") if c["state"] == "failed"]
    base = checkpoint.load_tensors(student / "checkpoints" / "base" / "teacher.safetensors")
    best = checkpoint.net_state(checkpoint.find(teacher), "translator")
    assert base and all(torch.equal(t, best[n]) for n, t in base.items())
    kept = [n for n in tensors(student) if ".teacher|" in n]
    assert not set(base) & {n.split("|")[1] for n in kept} and not any("optim" in n for n in kept)


def test_whoever_uses_the_student_gets_it_alone(made):
    nets, _ = load(made[2], "last")
    assert set(nets) == {"translator"}


def test_the_plan_counts_the_teacher(made):
    from workbench.core.setup.plan import plan

    data, teacher, _ = made
    facts = plan(complete(student_of(data, teacher, "train.max_steps=2")))
    [stage] = facts["stages"]
    assert stage["nets"]["teacher"]["trained"] == 0 < stage["nets"]["teacher"]["frozen"]
    assert stage["nets"]["teacher"]["state"] == "rests"


def test_another_vocabulary_is_refused_before_the_run(made, tmp_path):
    from workbench.tasks.translate.task import data as data_of, nets as nets_of

    other = corpus(tmp_path / "other", (80, 8, 8), ("en-de",))
    cfg = complete(config(other, f"loss.teacher={made[1]}"))
    with pytest.raises(Refused, match="another vocabulary .* data.vocabulary="):
        nets_of(cfg, data_of(cfg, stages(cfg)[0]), True)


def test_a_run_goes_on_although_its_teacher_is_gone(made):
    data, teacher, student = made
    shutil.move(teacher, teacher.with_name("moved"))
    try:
        assert end(again(student, "train.max_steps=3"), 400)["state"] == "finished", log_tail(student)
    finally:
        shutil.move(teacher.with_name("moved"), teacher)
    assert checkpoint.find(student).name == checkpoint.checkpoint_name(3)
