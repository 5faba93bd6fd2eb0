"""One search writes the texts of every task: with CTC, with a forced language, and as generate does; what it
does not know is refused."""
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutput

from test_seq2seq import FAMILIES, V
from workbench.errors import Refused
from workbench.parts.decoding.search import Settings, search
from workbench.parts.decoding.steps import Steps
from workbench.parts.text import pretrained, seq2seq
from workbench.parts.text.ctc import JointScores
from workbench.parts.text.tokenizer import train_tokenizer
from workbench.tasks.translate.tokens import Frame, frame_of

LONGEST, ROWS, STEPS = 16, 8, 9
WIDE = {"init_std": 0.35, "initializer_factor": 1.5}


def written_by(family):
    "(model, hidden, mask, logits of a CTC head) of a random model whose texts have many lengths."
    torch.manual_seed(0)
    wide = "init_std" if "init_std" in FAMILIES[family] else "initializer_factor"
    config = FAMILIES[family] | {wide: WIDE[wide]}
    model = pretrained.build_seq2seq(config).eval()
    lengths = torch.randint(3, STEPS + 1, (ROWS,))
    mask = (torch.arange(STEPS) < lengths[:, None]).long()
    with torch.no_grad():
        model.get_output_embeddings().weight[model.generation_config.eos_token_id] *= 3
        hidden = seq2seq.encode(model, torch.randn(ROWS, STEPS, seq2seq.embed_width(model)), mask)
    return model, hidden, mask, lengths, torch.randn(ROWS, STEPS, V)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams, penalty, ngram, first, weight", [
    (1, 1.0, 0, None, 0.3), (5, 0.6, 3, None, 0.3), (3, 1.0, 0, 13, 0.5), (1, 1.0, 3, 13, 0),
    (5, 0.6, 3, 13, 0)])
def test_texts_are_those_of_generate(family, beams, penalty, ngram, first, weight):
    "The same rule judges in both; in `generate` no source ever leaves the batch."
    model, hidden, mask, lengths, logits = written_by(family)
    ids = model.generation_config
    free = () if first is None else (first,)

    def joint():
        return [JointScores(logits, lengths, ids.eos_token_id, weight, ids.pad_token_id, free)] * bool(weight)

    def processors():
        return LogitsProcessorList(lambda tokens, scores, rule=rule: rule(
            tokens, scores, torch.arange(len(tokens)) // beams) for rule in joint())

    theirs = model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=hidden), attention_mask=mask, do_sample=False,
        num_beams=beams, max_new_tokens=LONGEST, no_repeat_ngram_size=ngram, forced_bos_token_id=first,
        logits_processor=processors(), **{"length_penalty": penalty} if beams > 1 else {})[:, 1:]
    begin = torch.full((ROWS, 1), seq2seq.start_id(model))
    how = Settings(beams, LONGEST, penalty, no_repeat_ngram=ngram)
    ours = [texts[0].ids for texts in search(model, hidden, mask, begin, how, first=first, more=joint())]
    end = ids.eos_token_id
    assert ours == [tuple((row + [end])[: (row + [end]).index(end)]) for row in theirs.tolist()]


def test_barts_own_first_token_is_written_and_given_only_once():
    torch.manual_seed(0)
    model, hidden, mask, *_ = written_by("bart")
    model.generation_config.forced_bos_token_id = 7
    start, texts = seq2seq.start_id(model), []
    for begin in ([start], [start, 7]):
        how = Settings(longest=LONGEST - len(begin))
        found = search(model, hidden, mask, torch.tensor([begin] * ROWS), how)
        texts.append([best[0].ids for best in found])
    assert texts[0] == [(7, *ids) for ids in texts[1]]


@pytest.mark.parametrize("settings, words", [
    ({"begin_suppress_tokens": [5]}, "begin_suppress_tokens stands in the generation settings of this bart"),
    ({"sequence_bias": [[[5], 2.0]]}, "sequence_bias stands"),
    ({"eos_token_id": [2, 3]}, r"eos_token_id of this bart is \[2, 3\]")])
def test_what_no_search_here_follows_is_refused(settings, words):
    model = pretrained.build_seq2seq(FAMILIES["bart"])
    model.generation_config = GenerationConfig(**{"eos_token_id": 2} | settings)
    with pytest.raises(Refused, match=words):
        pretrained.keep_only_token_ids(model)
    model.generation_config = GenerationConfig(eos_token_id=[2])
    pretrained.keep_only_token_ids(model)
    assert model.generation_config.eos_token_id == 2


def test_a_model_that_keeps_no_past_is_refused():
    model = pretrained.build_seq2seq(FAMILIES["bart"]).eval()
    forward = model.forward
    model.forward = lambda **given: forward(**given | {"past_key_values": None, "use_cache": False})
    mask = torch.ones(1, 4)
    with pytest.raises(Refused, match="BartForConditionalGeneration keeps what"), torch.no_grad():
        Steps(model, seq2seq.encode(model, torch.randn(1, 4, 32), mask), mask)(torch.tensor([[2]]))


def test_what_a_tokenizer_puts_before_a_text_begins_source_and_target():
    "BART was pretrained on `<s> text </s>`, and its own settings force the `<s>`."
    tok = train_tokenizer(["Open the file."], "char", special_tokens=("<s>",))
    begin, end = tok.convert_tokens_to_ids(["<s>", tok.eos_token])
    assert frame_of(tok, "en-de") == Frame((), (end,), (), (end,))
    tok.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"<s> $A {tok.eos_token}", special_tokens=[("<s>", begin), (tok.eos_token, end)])
    assert frame_of(tok, "en-de") == Frame((begin,), (end,), (begin,), (end,))
