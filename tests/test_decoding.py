"Searches give the texts of transformers' generate, for every family, whatever leaves the batch."
import pytest
import torch
from transformers import (
    BartConfig, BartForConditionalGeneration, M2M100Config, M2M100ForConditionalGeneration, MarianConfig,
    MarianMTModel, MBartConfig, MBartForConditionalGeneration, T5Config, T5ForConditionalGeneration)
from transformers.modeling_outputs import BaseModelOutput

from workbench.parts.decoding.search import Settings, search
from workbench.parts.text.pretrained import keep_only_token_ids
from workbench.parts.text.seq2seq import decode

PAD, EOS, V, LONGEST = 0, 1, 50, 24
sizes = dict(vocab_size=V, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
             decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
             init_std=0.35,
             pad_token_id=PAD, eos_token_id=EOS, bos_token_id=3, decoder_start_token_id=EOS)
FAMILIES = {
    "bart": lambda: BartForConditionalGeneration(BartConfig(**sizes, forced_eos_token_id=EOS)),
    "m2m_100": lambda: M2M100ForConditionalGeneration(M2M100Config(**sizes)),
    "mbart": lambda: MBartForConditionalGeneration(MBartConfig(**sizes, forced_eos_token_id=EOS)),
    "marian": lambda: MarianMTModel(MarianConfig(**sizes, forced_eos_token_id=None, bad_words_ids=[[PAD]])),
    "t5": lambda: T5ForConditionalGeneration(T5Config(
        vocab_size=V, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=2,
        initializer_factor=1.5, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD))}


@pytest.fixture(params=FAMILIES)
def asked(request):
    "(model, hidden, mask, begin) of 20 sources."
    torch.manual_seed(3)
    model = FAMILIES[request.param]().eval()
    keep_only_token_ids(model)
    with torch.no_grad():
        model.get_output_embeddings().weight[EOS] *= 4  # a random model hardly ever ends a text
    lengths = torch.randint(2, 14, (20,))
    mask = (torch.arange(13) < lengths[:, None]).long()
    with torch.no_grad():
        hidden = model.get_encoder()(input_ids=torch.randint(4, V, mask.shape),
                                     attention_mask=mask).last_hidden_state
    start = model.generation_config.decoder_start_token_id
    return model, hidden, mask, torch.tensor([[start, 7]]).repeat(20, 1)


def theirs(model, hidden, mask, begin, **how):
    ids = model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=hidden), attention_mask=mask,
                         decoder_input_ids=begin, max_new_tokens=LONGEST, do_sample=False, **how)
    return [tuple(row[: (row + [EOS]).index(EOS)]) for row in ids[:, begin.shape[1]:].tolist()]


def ours(model, hidden, mask, begin, **how):
    return [texts[0].ids for texts in search(model, hidden, mask, begin, Settings(longest=LONGEST, **how))]


def test_greedy_is_that_of_generate(asked):
    found = ours(*asked)
    assert found == theirs(*asked)
    assert len({len(ids) for ids in found}) > 1, "texts of one length prove nothing"


def test_an_n_gram_never_comes_twice(asked):
    assert ours(*asked, no_repeat_ngram=2) == theirs(*asked, no_repeat_ngram_size=2)


@pytest.mark.parametrize("k,penalty", [(2, 1.0), (4, 0.6), (4, 1.0), (5, 0.0), (3, 2.0)])
def test_beams_are_those_of_generate(asked, k, penalty):
    assert ours(*asked, num_beams=k, length_penalty=penalty) == \
        theirs(*asked, num_beams=k, length_penalty=penalty, early_stopping=False)


def test_one_row_alone_has_the_text_that_it_has_in_the_batch(asked):
    model, hidden, mask, begin = asked
    together = ours(*asked, num_beams=3)
    alone = [ours(model, hidden[i: i + 1], mask[i: i + 1], begin[i: i + 1], num_beams=3)[0]
             for i in range(20)]
    assert alone == together


def test_scores_are_what_teacher_forcing_says(asked):
    model, hidden, mask, begin = asked
    for texts in (search(*asked, Settings(num_beams=4, n_best=4, longest=LONGEST))[0],
                  search(*asked, Settings(longest=LONGEST))[0]):
        for text in texts:
            if len(text.ids) >= LONGEST - 1:
                continue  # cut, or its end was forced
            whole = torch.tensor([[*begin[0].tolist(), *text.ids, EOS]])
            with torch.no_grad():
                logp = decode(model, hidden[:1], mask[:1], whole[:, :-1]).float().log_softmax(-1)[0]
            told = logp[1:].gather(1, whole[0, 2:, None]).sum() / (len(text.ids) + 1)
            assert abs(float(told) - text.score) < 1e-4


def test_what_must_appear_appears_and_what_is_forced_begins(asked):
    model, hidden, mask, begin = asked
    phrases = [[[20, 21], [30]] if i % 2 else [] for i in range(20)]
    found = search(*asked, Settings(num_beams=6, longest=LONGEST), phrases=phrases)
    has = lambda ids, phrase: any(list(ids[i: i + len(phrase)]) == phrase for i in range(len(ids)))
    assert all(has(texts[0].ids, p) for texts, some in zip(found, phrases) for p in some)
    begun = search(*asked, Settings(num_beams=2, longest=LONGEST), beginnings=[[9, 8, 9]] * 10 + [[]] * 10)
    assert all(texts[0].ids[:3] == (9, 8, 9) for texts in begun[:10])
    assert [t[0].ids for t in begun[10:]] == ours(*asked, num_beams=2)[10:]


def test_what_is_drawn_comes_again_with_its_seed(asked):
    drawn = lambda seed: search(*asked, Settings(sample=True, n_best=3, top_p=0.9, longest=LONGEST),
                                generator=torch.Generator().manual_seed(seed))
    assert drawn(0) == drawn(0) != drawn(1)
    assert all(len(texts) == 3 for texts in drawn(0))


def test_impossible_settings_are_refused(asked):
    with pytest.raises(ValueError, match="raise num_beams"):
        search(*asked, Settings(n_best=2))
    with pytest.raises(ValueError, match="needs beams"):
        search(*asked, Settings(), phrases=[[[5]]] * 20)
