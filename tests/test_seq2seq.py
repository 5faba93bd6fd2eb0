"""Every text-to-text family: built, trained for two steps, padded, generated from, saved and built again."""
import math

import pytest
import torch
from torch import nn

from workbench.errors import Refused
from workbench.parts.decoding.search import Settings, search
from workbench.parts.shared import hub
from workbench.parts.text import model_config, pretrained, seq2seq

V, D = 60, 32
BARTISH = {
    "d_model": D, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": V,
    "max_position_embeddings": 40, "init_std": 0.02,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}
T5ISH = {
    "d_model": D, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": V,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}
FAMILIES = {
    "t5": {"model_type": "t5", **T5ISH},
    "t5-v1.1": {"model_type": "t5", **T5ISH, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": {"model_type": "mt5", **T5ISH, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "bart": {"model_type": "bart", **BARTISH},
    "mbart": {"model_type": "mbart", **BARTISH, "scale_embedding": True},
    "m2m100": {"model_type": "m2m_100", **BARTISH, "scale_embedding": True, "encoder_layerdrop": 0.5},
    "nllb": {"model_type": "m2m_100", **BARTISH, "scale_embedding": True, "activation_function": "relu"},
    "pegasus": {"model_type": "pegasus", **BARTISH, "pad_token_id": 0, "eos_token_id": 1,
                "decoder_start_token_id": 0,
                "scale_embedding": True},
    "marian": {"model_type": "marian", **BARTISH, "pad_token_id": 59, "eos_token_id": 0, "bos_token_id": None,
               "decoder_start_token_id": 59, "scale_embedding": True, "activation_function": "swish"},
    "bert-gpt2": {
        "model_type": "encoder-decoder", "decoder_start_token_id": 0, "bos_token_id": 0, "eos_token_id": 2,
        "pad_token_id": 1,
        "encoder": {"model_type": "bert", "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 4,
                    "intermediate_size": 64, "vocab_size": V, "max_position_embeddings": 40},
        "decoder": {"model_type": "gpt2", "n_embd": D, "n_layer": 2, "n_head": 4, "vocab_size": V,
                    "n_positions": 40,
                    "is_decoder": True, "add_cross_attention": True, "bos_token_id": 0, "eos_token_id": 2}},
}
PUBLISHED = {  # tied tables counted once
    "t5-small": 60_506_624, "t5-base": 222_903_552, "t5-large": 737_668_096, "t5-3b": 2_851_598_336,
    "bart-large": 406_291_456, "mbart-large-50": 610_879_488, "mt5-large": 1_229_581_312,
    "bert-base-gpt2": 109_482_240 + 124_439_808 + 12 * 2_363_904,  # BERT base, GPT-2, cross-attention
    "nllb-200-distilled-600M": 615_073_792, "m2m100_418M": 483_905_536, "mt5-small": 300_176_768,
    "opus-mt-en-de": 74_410_496,  # its fixed positions are stored, too
    "universal": 69_458_944, "universal-small": 23_104_512, "universal-tiny": 5_223_424,  # ours
}


def make(family):
    torch.manual_seed(0)
    return pretrained.build_seq2seq(FAMILIES[family])


def batch(model):
    torch.manual_seed(1)
    width = seq2seq.embed_width(model)
    end = model.generation_config.eos_token_id
    labels = torch.tensor([[7, 8, 9, 10, end], [11, 12, end, -100, -100]])
    return torch.randn(2, 9, width), torch.tensor([[1] * 9, [1] * 6 + [0] * 3]), labels


def logits(model, x, mask, labels):
    return seq2seq.decode(model, seq2seq.encode(model, x, mask), mask, seq2seq.shift_right(model, labels))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_parameter_counts(name):
    config = hub.read_config(hub.locate(name, "scratch"))
    model = pretrained.build_seq2seq(config, "meta")
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert seq2seq.start_id(model) == config["decoder_start_token_id"]


def test_every_architecture_is_counted():
    assert set(hub.architectures()) == set(PUBLISHED)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_reach_every_parameter(family):
    model = make(family).train()
    x, mask, labels = batch(model)
    x.requires_grad_()
    unused = pretrained.freeze_unused(model)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = []
    for _ in range(2):
        total, count = seq2seq.token_loss(logits(model, x, mask, labels), labels)
        optimiser.zero_grad()
        (total / count).backward()
        assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        optimiser.step()
        losses.append(float(total.detach() / count))
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert moved == trainable and not moved & set(unused)
    assert losses[1] < losses[0] and x.grad[0].abs().sum() > 0 and float(x.grad[1, 6:].abs().max()) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing(family):
    model = make(family).eval()
    x, mask, labels = batch(model)
    with torch.no_grad():
        plain = logits(model, x, mask, labels)
        wide = nn.functional.pad(x, (0, 0, 0, 7), value=9.0), nn.functional.pad(mask, (0, 7))
        assert (logits(model, *wide, labels) - plain).abs().max() <= 1e-5
        alone = logits(model, x[1:, :6], mask[1:, :6], labels[1:, :3])
        assert (alone - plain[1:, :3]).abs().max() <= 1e-5
        longer = nn.functional.pad(labels, (0, 4), value=-100)
        assert (logits(model, x, mask, longer)[:, :5] - plain)[longer[:, :5] >= 0].abs().max() <= 1e-5


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"bert-gpt2"}))
def test_loss_is_the_models_own(family):
    model = make(family).eval()
    x, mask, labels = batch(model)
    total, count = seq2seq.token_loss(logits(model, x, mask, labels), labels)
    theirs = model(inputs_embeds=x, attention_mask=mask, labels=labels).loss
    assert count == 8 and (total / count - theirs).abs().item() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_loss_is_near_theory(family):
    model = make(family).eval()
    x, mask, labels = batch(model)
    with torch.no_grad():
        out = logits(model, x, mask, labels)
        total, count = seq2seq.token_loss(out, labels)
    real = out[labels >= 0]
    # exact for labels that know nothing of the logits
    theory = float((real.logsumexp(-1) - real.mean(-1)).mean())
    found = float(total / count)
    assert theory > math.log(V) - 1e-4 and abs(found - theory) < 1.5, (found, theory)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_agrees_with_teacher_forcing(family, beams):
    model = make(family).eval()
    x, mask, _ = batch(model)
    with torch.no_grad():
        hidden = seq2seq.encode(model, x, mask)
        texts = written(model, hidden, mask, 8, beams)
        assert len(texts) == 2 and texts == written(model, hidden, mask, 8, beams)
        end, forced = model.generation_config.eos_token_id, model.generation_config.forced_eos_token_id
        forbidden = [i[0] for i in model.generation_config.bad_words_ids or []]
        for i, ids in enumerate(texts if beams == 1 else []):
            whole = torch.tensor([[*ids, end][:8]])
            best = seq2seq.decode(model, hidden[i:i + 1], mask[i:i + 1], seq2seq.shift_right(model, whole))
            best[..., forbidden] = -math.inf
            # Pegasus and Marian end by force at the longest length
            n = whole.shape[1] - (len(ids) >= 7 and forced is not None)
            assert best[0].argmax(-1).tolist()[:n] == whole[0, :n].tolist()


def written(model, hidden, mask, longest, beams=1, first=None):
    "The best text of each source, without its end."
    begin = torch.full((len(mask), 1), seq2seq.start_id(model))
    found = search(model, hidden, mask, begin, Settings(beams, longest), first=first)
    return [texts[0].ids for texts in found]


@pytest.mark.parametrize("family", ["mbart", "m2m100", "nllb"])
def test_the_language_token_is_forced(family):
    model = make(family).eval()
    x, mask, _ = batch(model)
    texts = written(model, seq2seq.encode(model, x, mask), mask, 4, beams=5, first=13)
    assert [ids[0] for ids in texts] == [13, 13]


def test_the_first_mbart_wraps_its_language_token():
    config = {k: v for k, v in FAMILIES["mbart"].items() if k != "decoder_start_token_id"}
    model = pretrained.build_seq2seq(config).eval()
    labels = torch.tensor([[7, 8, 2, 13], [9, 2, 13, -100]])
    assert seq2seq.start_id(model) is None
    assert seq2seq.shift_right(model, labels).tolist() == [[13, 7, 8, 2], [13, 9, 2, 13]]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_builds_the_same_network_again(family):
    model = make(family).eval()
    same = pretrained.build_seq2seq(pretrained.config_dict(model), initialise=False).eval()
    shapes = {n: p.shape for n, p in model.named_parameters()}
    assert {n: p.shape for n, p in same.named_parameters()} == shapes  # the same tables are tied
    assert same.generation_config.to_dict() == model.generation_config.to_dict()
    same.load_state_dict(model.state_dict())
    x, mask, labels = batch(model)
    assert torch.equal(logits(model, x, mask, labels), logits(same, x, mask, labels))


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_weights_are_read_back(family, tmp_path):
    model = make(family).eval()
    model.save_pretrained(tmp_path)
    source = hub.locate(str(tmp_path), "pretrained")
    assert (source.kind, source.via, source.weights) == ("pretrained", "folder", "safetensors")
    back = pretrained.load_seq2seq(source.at, hub.read_config(source), weights=source.weights).eval()
    x, mask, labels = batch(model)
    assert torch.equal(logits(model, x, mask, labels), logits(back, x, mask, labels))
    config = pretrained.config_dict(back)
    again = pretrained.build_seq2seq(config, initialise=False).eval()
    again.load_state_dict(back.state_dict())  # a tied skeleton would lose one of mT5's two tables here
    assert torch.equal(logits(model, x, mask, labels), logits(again, x, mask, labels))


@pytest.mark.parametrize("family", FAMILIES)
def test_added_tokens_widen_the_vocabulary(family, tmp_path):
    model = make(family).eval()
    model.save_pretrained(tmp_path)
    source = hub.locate(str(tmp_path))
    wide = pretrained.load_seq2seq(source.at, hub.read_config(source), vocab_size=V + 5).eval()
    x, mask, labels = batch(model)
    with torch.no_grad():
        assert torch.equal(logits(wide, x, mask, labels)[..., :V], logits(model, x, mask, labels))
    head, table = wide.get_output_embeddings().weight, wide.get_decoder().get_input_embeddings().weight
    mine = model.get_output_embeddings().weight is model.get_decoder().get_input_embeddings().weight
    assert head.shape[0] == V + 5 and (head is table) == mine
    again = pretrained.build_seq2seq(pretrained.config_dict(wide), initialise=False).eval()
    again.load_state_dict(wide.state_dict())
    assert torch.equal(logits(again, x, mask, labels), logits(wide, x, mask, labels))


@pytest.mark.parametrize("family, source, target", [
    ("t5", None, None), ("m2m100", None, None), ("bart", 40, 40), ("pegasus", 40, 40), ("marian", 40, 40),
    ("bert-gpt2", 40, 40)])
def test_positions(family, source, target):
    model = make(family).eval()
    assert seq2seq.max_positions(model.config) == (source, target)
    x = torch.randn(1, 41, D)
    if source is None:
        assert seq2seq.encode(model, x, torch.ones(1, 41)).shape == (1, 41, D)
        return
    with pytest.raises(Refused, match="40 positions"):
        seq2seq.encode(model, x, torch.ones(1, 41))


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_undefined(family):
    "Memory that torch hands out undefined is filled with NaN: whatever is not initialised shows."
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        model = make(family)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(t.isfinite().all() for t in model.state_dict().values())
    assert all(b.isfinite().all() for b in model.buffers())


def test_dropout_zero_makes_training_mode_deterministic():
    for family, config in FAMILIES.items():
        torch.manual_seed(0)
        model = pretrained.build_seq2seq(model_config.set_dropout(config, 0.0)).train()
        x, mask, labels = batch(model)
        assert torch.equal(logits(model, x, mask, labels), logits(model, x, mask, labels)), family


@pytest.mark.parametrize("family", FAMILIES)
def test_vocabulary_is_fitted_to_a_tokenizer(family):
    config = model_config.fit_config(FAMILIES[family], 31, pad=0, eos=1, bos=3)
    model = pretrained.build_seq2seq(config).eval()
    assert model.get_output_embeddings().weight.shape[0] == 31
    settings = model.generation_config
    assert (settings.pad_token_id, settings.eos_token_id) == (0, 1)
    starts = {"t5": 0, "t5-v1.1": 0, "mt5": 0, "pegasus": 0, "marian": 0, "bert-gpt2": 3}
    assert seq2seq.start_id(model) == starts.get(family, 1)
    x, mask = torch.randn(1, 4, D), torch.ones(1, 4)
    assert len(written(model, seq2seq.encode(model, x, mask), mask, 3)) == 1
