#!/usr/bin/env bash
# transformers 5.23.0: a T5 whose decoder is deeper than its encoder, and the cache that `generate` makes for it.
#
# Good guess: `num_decoder_layers` above `num_layers` is a supported configuration key, it trains, so it generates; the cache has as
# many layers as the decoder.
# Behaviour: `generate` sizes its cache by `num_hidden_layers`, which for T5 (and mT5) is the encoder's `num_layers`. With more decoder
# layers the first generated token is an IndexError inside the cache, so such a model trains well and fails at its first
# validation. BART with unequal depths, T5 with a shallower decoder, and T5 without a cache are right. A cache given by hand
# (EncoderDecoderCache of two DynamicCaches that were made without a configuration) grows as needed and gives the same tokens as no cache.
# Output seen: `2+2 equal, 3+2 equal, 2+3 IndexError, 2+3 with a cache of its own equal`
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.3.5
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PY'
import sys

import torch
from transformers import DynamicCache, EncoderDecoderCache, T5Config, T5ForConditionalGeneration

source = torch.arange(2, 10)[None]


def answer(encoder, decoder, **how):
    torch.manual_seed(0)
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=encoder, num_decoder_layers=decoder,
                      decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    return model.generate(source, attention_mask=torch.ones_like(source), max_new_tokens=6, do_sample=False, **how).tolist()


def compared(encoder, decoder, **how):
    try:
        return "equal" if answer(encoder, decoder, **how) == answer(encoder, decoder, use_cache=False) else "different"
    except IndexError:
        return "IndexError"


own = {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())}
found = [compared(2, 2), compared(3, 2), compared(2, 3), compared(2, 3, **own)]
print("2+2 {}, 3+2 {}, 2+3 {}, 2+3 with a cache of its own {}".format(*found))
sys.exit(0 if found == ["equal", "equal", "IndexError", "equal"] else 1)
PY
