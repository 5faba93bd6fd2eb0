"""What a person sees of a translation: the differences marked, and which words were looked at, in every
script."""
import html
import re

import pytest
import torch
from bilingual import config, corpus

from test_seq2seq import FAMILIES, make
from workbench.core.run.previews import save_previews
from workbench.core.stages.stages import complete, stages
from workbench.core.task import Ctx
from workbench.parts.text.attention import by_words, cross_attention, usual_layer, words_of
from workbench.parts.text.seq2seq import base, shift_right
from workbench.parts.text.tokenizer import train_tokenizer
from workbench.tasks.translate import pictures as p
from workbench.tasks.translate.task import data as data_of, nets as nets_of, preview

TEXTS = {"en": "The window opens when you press the button.", "am": "ቁልፉን ሲጫኑ መስኮቱ ይከፈታል።",
         "ar": "تفتح النافذة عند الضغط على الزر", "zh": "按下按钮时窗口打开。", "ja": "ボタンを押すと開きます",
         "ko": "단추를 누르면 창이 열립니다", "hi": "जब आप बटन दबाते हैं तो खिड़की खुलती है",
         "th": "หน้าต่างเปิดขึ้นเมื่อคุณกดปุ่ม", "ru": "Окно открывается, когда вы нажимаете кнопку"}


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_rows_sum_to_one_and_the_model_is_as_it_was(family):
    model = make(family).eval()
    source, labels = torch.randint(5, 20, (2, 7)), torch.randint(5, 20, (2, 4))
    mask = torch.ones(2, 7).long()
    mask[1, 5:], labels[1, 3] = 0, -100
    run = lambda: base(model)(input_ids=source, attention_mask=mask, use_cache=False,
                              decoder_input_ids=shift_right(model, labels)).logits
    with torch.no_grad():
        before = run()
        weights, layer, layers = cross_attention(model, source, mask, labels)
        assert torch.equal(run(), before) and base(model).config._attn_implementation == "sdpa"
    assert weights.shape == (2, 4, 7) and layer == usual_layer(layers) and not weights.requires_grad
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4), atol=1e-5) and weights[1, :, 5:].max() == 0
    assert torch.equal(cross_attention(model, source, mask, labels, -1)[0],
                       cross_attention(model, source, mask, labels, layers - 1)[0])


def test_the_kind_of_attention_is_put_back_after_an_error():
    model = make("bart").eval()
    with pytest.raises(IndexError):
        cross_attention(model, torch.tensor([[5, 6]]), torch.ones(1, 2).long(), torch.tensor([[5]]), 99)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["char", "unigram", "bpe"])
@pytest.mark.parametrize("language", TEXTS)
def test_pieces_become_words_in_every_script(kind, language):
    tok = train_tokenizer(list(TEXTS.values()), kind, 200, (), ("am_ET",))
    text = TEXTS[language]
    ids = [tok.convert_tokens_to_ids("am_ET"), *tok(text)["input_ids"]]
    words = words_of(tok, ids)
    assert [at for _, places in words for at in places] == list(range(len(ids)))
    assert words[0][0] == "am_ET" and words[-1][0] == "</s>"
    said = [w for w, _ in words[1:-1]]
    assert "".join(said).replace("·", "") == text.replace(" ", "")
    if kind != "char" and language not in ("zh", "ja", "th"):
        assert said == text.split()
    merged = by_words(torch.softmax(torch.randn(len(ids), len(ids)), -1), words, words)
    assert torch.allclose(merged.sum(1), torch.ones(len(words)), atol=1e-5)


@pytest.mark.parametrize("language", TEXTS)
def test_marks_leave_both_texts_whole(language):
    reference, hypothesis = TEXTS[language], TEXTS[language][:4] + TEXTS[language][7:] + " <b>&"
    parts = p.changes(reference, hypothesis)
    assert "".join(x.text for x in p.side(parts, "extra")) == reference
    assert "".join(x.text for x in p.side(parts, "missing")) == hypothesis
    assert all(x.kind == "same" for x in p.changes(reference, reference))
    row = {"pair": "en-xx", "source": "<script>", "reference": reference, "hypothesis": hypothesis}
    said = p.marked_html(row)
    assert "<script>" not in said and "<b>" not in said and 'dir="auto"' in said
    plain = html.unescape(re.sub("</?(del|ins)>", "", said))
    assert f">{reference}<" in plain and f">{hypothesis}<" in plain


def words_in(figure):
    axes = figure.axes[0]
    return [[t.get_text() for t in ticks] for ticks in (axes.get_xticklabels(), axes.get_yticklabels())]


def test_an_alignment_names_each_word_on_both_axes_and_arabic_reads_from_the_right(tmp_path):
    source, target = ["__ar__", *TEXTS["ar"].split(), "</s>"], ["__en__", "$5", "up_to", "$9", "</s>"]
    figure = p.alignment_figure(torch.full((len(target), len(source)), 1 / len(source)), source, target, "t")
    save_previews(tmp_path / "previews" / "step_1", {"a": figure})
    assert (tmp_path / "previews" / "step_1" / "a.png").stat().st_size > 2000
    across, down = words_in(figure)
    assert across == source and [w.replace("\\", "") for w in down] == target
    assert figure.axes[0].xaxis_inverted()
    assert not p.alignment_figure(torch.ones(1, 2), ["a", "b"], ["c"]).axes[0].xaxis_inverted()


def test_words_without_a_font_are_numbered_and_the_font_is_named(monkeypatch):
    from workbench.parts.shared import fonts

    monkeypatch.setattr(fonts, "FONTS", ())
    fonts.font_families.cache_clear()
    try:
        figure = p.alignment_figure(torch.eye(2), ["a", "b"], ["c", "መስኮቱ"])
        assert words_in(figure)[1] == ["c", "#2"] and "Noto Sans Ethiopic" in figure.axes[0].get_xlabel()
        assert not p.drawable("a", "መስኮቱ") and p.drawable("a", TEXTS["ar"])
    finally:
        fonts.font_families.cache_clear()


def test_forty_words_are_readable():
    words = [f"word{i}" for i in range(40)]
    figure = p.alignment_figure(torch.eye(40), words, words)
    figure.canvas.draw()
    places = [t.get_window_extent() for t in figure.axes[0].get_yticklabels()]
    assert all(a.y0 >= b.y1 - 1 for a, b in zip(places, places[1:]))  # no label lies on the next
    assert all(t.get_fontsize() >= 8 for t in figure.axes[0].get_xticklabels())
    assert figure.get_size_inches().max() < 16


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    cfg = complete(config(corpus(tmp_path_factory.mktemp("pictures"), (60, 12, 12))))
    found = data_of(cfg, stages(cfg)[0])
    nets = nets_of(cfg, found, True)
    nets["translator"].eval()
    return cfg, found, nets


def test_previews_show_held_out_rows_of_both_pairs(made, tmp_path):
    cfg, found, nets = made
    out = preview(nets, found, Ctx(training=False, cfg=cfg, data=found))
    assert "en-de" in out["texts"] and "en-am" in out["texts"] and "differences" in out["texts"]
    assert sum(name.startswith("alignment_") for name in out) == 4
    save_previews(tmp_path / "previews" / "step_1", out)
    batch = found.collate([found.datasets["valid"][0, 0]])
    weights, source, target, layer = p.attended(nets, batch, "das Haus", found)
    assert torch.allclose(weights.sum(1), torch.ones(len(target)), atol=1e-5)
    assert target[0] in ("__de__", "__am__") and target[1:] == ["das", "Haus",
                                                                "</s>"] and layer == "decoder layer 1 of 1"
    assert source[1:-1] == batch["source_text"][0].split()
