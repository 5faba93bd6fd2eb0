"What makes a training step cheaper changes no number that it should not: attention in bf16, kept memory."
import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForSeq2SeqLM, BartConfig, T5Config

from workbench.core.memory.heap import MMAP_MAX, Glibc, growth
from workbench.core.step.attention import widen_attention

@pytest.fixture(autouse=True)
def wide():
    widen_attention()


T5 = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=60, decoder_start_token_id=0,
              dropout_rate=0.0)
BART = BartConfig(
    d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=60, max_position_embeddings=40, dropout=0.0)


def inputs(masked=True):
    torch.manual_seed(1)
    q, k, v = (torch.randn(3, 2, n, 8, requires_grad=True) for n in (5, 7, 7))
    mask = torch.ones(3, 1, 5, 7, dtype=torch.bool)
    mask[1, ..., 4:] = False
    return q, k, v, mask if masked else None


@pytest.mark.parametrize("kind", ["bool", "float", "none"])
def test_wide_attention_is_exact_attention_rounded_once(kind):
    q, k, v, mask = inputs(kind != "none")
    mask = torch.zeros(mask.shape).masked_fill(~mask, -1e9) if kind == "float" else mask
    exact = F.scaled_dot_product_attention(q, k, v, mask)
    with torch.autocast("cpu", torch.bfloat16):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert out.dtype == torch.bfloat16 and torch.equal(out, exact.bfloat16())
    assert torch.equal(F.scaled_dot_product_attention(q, k, v, mask), exact)


def test_recomputed_attention_is_the_same():
    def gradients(call):
        q, k, v, mask = inputs()
        with torch.autocast("cpu", torch.bfloat16):
            out = call(lambda *x: F.scaled_dot_product_attention(*x, mask), q, k, v)
            out.float().square().sum().backward()
        return q.grad, k.grad, v.grad
    plain = gradients(lambda f, *x: f(*x))
    again = gradients(lambda f, *x: checkpoint(f, *x, use_reentrant=False))
    assert all(torch.equal(a, b) for a, b in zip(plain, again))


@pytest.mark.parametrize("config", [T5, BART], ids=["t5", "bart"])
def test_a_model_with_checkpointing_trains_as_without(config):
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config).train()
    ids, labels = torch.randint(3, 60, (2, 6)), torch.randint(3, 60, (2, 5))

    def gradients():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]
    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for a, b in zip(plain, gradients(), strict=True):  # T5 adds those of its one bias in another order
        torch.testing.assert_close(a, b, rtol=1e-2, atol=5e-3)


def test_a_heap_that_keeps_its_pages_is_as_large_as_it_was_at_most():
    heap, sizes = Glibc(0, MMAP_MAX, trims=False), []
    for n in (30 << 20, 30 << 20, 30 << 20):
        heap.alloc(len(sizes), n)
        sizes.append(heap.resident)
    for i in range(3):
        heap.free(i)
    assert heap.resident == heap.peak == max(sizes) and heap.top == 0
    blocks = [(i, 20 << 20) for i in range(1, 5)] + [(-i, 20 << 20) for i in range(1, 5)]
    assert 80 << 20 <= growth(blocks) < 82 << 20
