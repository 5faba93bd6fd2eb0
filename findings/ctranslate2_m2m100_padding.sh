#!/usr/bin/env bash
# CTranslate2 4.8.5: an M2M100 whose padding is not token 1 is converted with every position one too far.
#
# Good guess: the converter reads `pad_token_id` of the configuration, as transformers does, so a model with another vocabulary than
# Facebook's (its own, where padding is token 0) translates to the same texts after conversion.
# Behaviour: transformers counts positions from padding_idx + 1, the converter from 2, which is right for padding 1 alone. It converts
# without a warning, and the texts are other ones: fluent, so nobody sees it. A trained model with padding 0 gave 4 of 50 texts.
# Output seen: `padding is token 1: 20 of 20 the same · padding is token 0: 15 of 20`
# Mend: cut the rows before padding_idx + 1 off the table of positions before converting, or give padding the id 1; compare texts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ctranslate2==4.8.5 transformers==5.23.0 torch==2.13.0 tokenizers==0.23.3 sentencepiece==0.2.3
"$folder/venv/bin/python" - 2>/dev/null <<'PY'
import sys
import tempfile

import ctranslate2
import torch
from ctranslate2.converters import TransformersConverter
from tokenizers import Tokenizer, models
from transformers import AutoModelForSeq2SeqLM, M2M100Config, PreTrainedTokenizerFast


def same(pad):
    "How many of 20 texts a small random model writes alike before and after conversion."
    torch.manual_seed(0)
    end = 1 - pad
    names = ["</s>", "<pad>"] if pad else ["<pad>", "</s>"]
    words = [*names, "<unk>", *(f"w{i}" for i in range(61))]
    sizes = {f"{part}_{what}": n for part in ("encoder", "decoder")
             for what, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 64))}
    config = M2M100Config(vocab_size=64, d_model=32, pad_token_id=pad, eos_token_id=end, bos_token_id=end,
                          decoder_start_token_id=end, max_position_embeddings=64, init_std=0.2,
                          scale_embedding=False, **sizes)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
                                   bos_token="</s>")
    with tempfile.TemporaryDirectory() as home:
        model.save_pretrained(f"{home}/plain")
        fast.save_pretrained(f"{home}/plain")
        TransformersConverter(f"{home}/plain").convert(f"{home}/made")
        net, equal = ctranslate2.Translator(f"{home}/made"), 0
        for _ in range(20):
            ids = torch.randint(3, 64, (1, 8))
            want = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, num_beams=1,
                                  do_sample=False)
            want = [words[t] for t in want[0, 1:].tolist() if t != end]
            text = [[words[t] for t in ids[0].tolist()]]
            equal += net.translate_batch(text, beam_size=1, max_decoding_length=12)[0].hypotheses[0] == want
    return equal


told = {pad: same(pad) for pad in (1, 0)}
print(f"padding is token 1: {told[1]} of 20 the same · padding is token 0: {told[0]} of 20")
sys.exit(not (told[1] == 20 and told[0] < 20))
PY
