#!/usr/bin/env bash
# npm @huggingface/tokenizers 0.2.0: a tokenizer.json in JavaScript beside the Rust library that wrote it.
#
# Good guess: the same file gives the same ids and the same texts in both, since one organisation makes both.
# Behaviour: `byte_fallback` of a Unigram model is not read: a character without a piece becomes `<unk>` (Rust spells it
# as its UTF-8 bytes), so the model reads another source and nothing warns. decode() removes spaces before full stops
# and other marks unless told not to (`clean_up_tokenization_spaces: false`; Rust has no such step), and throws for an
# empty list of ids, where Rust gives an empty text. Of 1,638 sentences in ten languages 5 and 5 differed: few enough to
# miss, and all of them in Chinese, Korean, or about file names.
# Output seen: `Rust [0,237,167,144] JavaScript [0,2] · Rust "a .b" JavaScript "a.b" · token_ids must be a non-empty array of integers.`
# Mend: where the model is Unigram with byte_fallback, put the bytes of `tokens[i]` in the place of each unknown id
# (but not of the unknown piece's own spelling), pass clean_up_tokenization_spaces: false, and give "" for no ids.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q tokenizers==0.23.3
cd "$folder"
npm pack --silent @huggingface/tokenizers@0.2.0 > packed
tar xf "$(cat packed)"
"$folder/venv/bin/python" - <<'PY'
import json

from tokenizers import Tokenizer, decoders, models

pieces = [("a", -1.0), ("b", -2.0), ("<unk>", -9.0), (" .", -3.0), (".", -3.0)]
pieces += [(f"<0x{b:02X}>", -20.0) for b in range(256)]
t = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
t.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
t.save("tokenizer.json")
ids = t.encode("a .b").ids
json.dump({"strange": t.encode("a袋").ids, "ids": ids, "text": t.decode(ids), "none": t.decode([])}, open("rust.json", "w"))
PY
cat > look.mjs <<'JS'
import { readFileSync } from "node:fs";
import { Tokenizer } from "./package/dist/tokenizers.mjs";
const read = (name) => JSON.parse(readFileSync(name)), rust = read("rust.json");
const t = new Tokenizer(read("tokenizer.json"), {});
const js = t.encode("a袋").ids, text = t.decode(rust.ids);
let none = "";
try { t.decode([]); } catch (e) { none = e.message; }
console.log(`Rust ${JSON.stringify(rust.strange)} JavaScript ${JSON.stringify(js)} · ` +
  `Rust ${JSON.stringify(rust.text)} JavaScript ${JSON.stringify(text)} · ${none}`);
process.exit(JSON.stringify(js) !== JSON.stringify(rust.strange) && text !== rust.text && none ? 0 : 1);
JS
node look.mjs
