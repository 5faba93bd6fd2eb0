"""Freezing, adapters and quantised loading, for every family that has them."""
import contextlib
import json

import pytest
import torch

from test_seq2seq import FAMILIES, batch, logits, make
from workbench.errors import Refused
from workbench.parts.decoding.search import Settings, search
from workbench.parts.shared import hub
from workbench.parts.text import lora, pretrained, seq2seq


def trainable(model):
    return {n for n, p in model.named_parameters() if p.requires_grad}


def step(model, rate=1e-2):
    "One optimiser step on the example batch; returns the loss."
    x, mask, labels = batch(model)
    x.requires_grad_()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    total, count = seq2seq.token_loss(logits(model, x, mask, labels), labels)
    (total / count).backward()
    optimiser.step()
    return float(total.detach() / count)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_freezing_freezes_just_that_side(family, side):
    model = make(family).train()
    pretrained.freeze_unused(model)
    before, everything = {n: p.detach().clone() for n, p in model.named_parameters()}, trainable(model)
    frozen = set(getattr(lora, f"freeze_{side}")(model))
    for _ in range(2):
        step(model)
        model.zero_grad()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert frozen and moved == everything - frozen
    inside = [n for n in everything if f"{side}." in n and "embed_tokens" not in n and "shared" not in n]
    assert inside and not moved & set(inside)
    other = "decoder" if side == "encoder" else "encoder"
    assert [n for n in moved if f"{other}." in n]


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_train_and_nothing_else(family):
    model = make(family).train()
    net = lora.add_lora(model, r=4, dropout=0.0)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    first = step(net)
    net.zero_grad()
    second = step(net)
    moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
    assert moved == trainable(net) and all("lora_" in n for n in moved) and second < first
    x, mask, labels = batch(net.eval())
    with torch.no_grad():
        out = logits(net, x, mask, labels)
        plain = lora.merged(net)
        assert (logits(plain, x, mask, labels) - out).abs().max() < 1e-4 and not hasattr(plain, "peft_config")


@pytest.mark.parametrize("family", ["t5", "bart", "bert-gpt2"])
def test_an_adapted_model_is_built_again_from_its_configuration(family):
    net = lora.add_lora(make(family), r=4)
    step(net)
    config = json.loads(json.dumps(pretrained.config_dict(net)))
    again = lora.add_lora(pretrained.build_seq2seq(config, initialise=False), r=4)
    again.load_state_dict(net.state_dict())
    x, mask, labels = batch(net.eval())
    assert torch.equal(logits(net, x, mask, labels), logits(again.eval(), x, mask, labels))


def test_targets_of_another_family_are_an_error_with_the_names_that_exist():
    with pytest.raises(Refused, match="has no layer q_proj, v_proj; its layers are q, k, v, o, wi, wo"):
        lora.add_lora(make("t5"), targets=["q_proj", "v_proj"])
    with pytest.raises(Refused, match="has no layer nope"):
        lora.add_lora(make("t5"), targets=["q", "nope"])
    with pytest.raises(Refused, match="has no layer q; its layers are k_proj, v_proj, q_proj"):
        lora.add_lora(make("bart"), targets=["q"])
    assert lora.default_targets(make("bert-gpt2")) == ["query", "value", "c_attn", "q_attn"]


@pytest.mark.parametrize("targets, r, expected", [
    (None, 16, 11_796_480), (None, 32, 23_592_960), (["q", "k", "v"], 16, 17_694_720),
    (["q", "k", "v", "o"], 16, 23_592_960), (["q", "k", "v", "o", "wi", "wo"], 16, 50_331_648)])
def test_trainable_parameters_of_t5_3b(targets, r, expected):
    config = hub.read_config(hub.locate("t5-3b", "scratch"))
    with torch.device("meta"):
        net = lora.add_lora(pretrained.build_seq2seq(config, "meta"), r=r, targets=targets)
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_quantised_weights_with_adapters_train_two_steps(family, bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    wide = {"t5": {"d_model": 64, "d_kv": 16, "d_ff": 128}, "bart": {"d_model": 64}}[family]
    torch.manual_seed(0)
    whole = pretrained.build_seq2seq({**FAMILIES[family], **wide}).eval()
    whole.save_pretrained(tmp_path)
    source = hub.locate(str(tmp_path), "pretrained")
    settings = lora.quantization(bits, source.kind)
    model = pretrained.load_seq2seq(source.at, hub.read_config(source), quantization=settings)
    kinds = {type(m).__name__ for m in model.modules()}
    assert ("Linear8bitLt" if bits == 8 else "Linear4bit") in kinds
    x, mask, labels = batch(model)
    with torch.no_grad():
        exact, rough = (logits(m.eval(), x, mask, labels) for m in (whole, model))
    assert 0 < float((exact - rough).abs().max()) < 2.0
    net = lora.add_lora(lora.prepare_quantized(model), r=4, dropout=0.0).train()
    frozen = {n: p.detach().clone() for n, p in net.named_parameters() if not p.requires_grad}
    first = step(net)
    net.zero_grad()
    assert step(net) < first and all("lora_" in n for n in trainable(net))
    assert all(torch.equal(p, frozen[n]) for n, p in net.named_parameters() if n in frozen)
    hidden = seq2seq.encode(net.eval(), x, mask)
    begin = torch.full((2, 1), seq2seq.start_id(net))
    assert len(search(net, hidden, mask, begin, Settings(5, 4))) == 2


def quantised(folder, bits=4):
    "A small BART, loaded in so many bits."
    pretrained.build_seq2seq({**FAMILIES["bart"], "d_model": 64}).save_pretrained(folder)
    source = hub.locate(str(folder), "pretrained")
    return pretrained.load_seq2seq(source.at, hub.read_config(source),
                                   quantization=lora.quantization(bits, source.kind))


def gradients(net):
    "The gradients of the adapters on the example batch."
    net.zero_grad()
    x, mask, labels = batch(net)
    total, count = seq2seq.token_loss(logits(net, x.requires_grad_(), mask, labels), labels)
    (total / count).backward()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("bits", [8, 4])
def test_an_evaluation_leaves_quantised_weights_trainable(bits, tmp_path, monkeypatch):
    """bitsandbytes packs 4-bit layers for inference on a CPU with AVX512-BF16; here every CPU says that it is
    one."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    small = lora.prepare_quantized(quantised(tmp_path, bits))
    net = lora.add_lora(small, r=4, dropout=0.0, bias="all").train()
    before = gradients(net)
    with torch.no_grad():
        x, mask, labels = batch(net.eval())
        first = logits(net, x, mask, labels)
    after = gradients(net.train())
    assert len(before) > 8 and all(torch.equal(after[n], g) for n, g in before.items())
    assert max(float(g.abs().max()) for n, g in after.items() if "lora_B" in n) > 0
    with torch.no_grad():
        assert torch.equal(logits(net.eval(), x, mask, labels), first)


def test_bitsandbytes_still_packs_a_layer_that_is_not_guarded(tmp_path, monkeypatch):
    "Else the guard guards nothing, and `keep_training_layout` sets a flag that nobody reads."
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    monkeypatch.setattr(pretrained, "keep_training_layout", lambda model: None)
    layer = next(m for m in quantised(tmp_path).modules() if isinstance(m, modules.Linear4bit)).eval()
    # other CPUs lack the kernel for it
    with torch.no_grad(), contextlib.suppress(RuntimeError, AttributeError):
        layer(torch.randn(2, layer.in_features))
    assert layer.weight.quant_state.packing_format_for_cpu


def test_quantised_loading_says_what_is_missing(monkeypatch):
    with pytest.raises(Refused, match="needs pretrained weights"):
        lora.quantization(4, "scratch")
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(Refused, match="needs bitsandbytes: pip install"):
        lora.quantization(8)
