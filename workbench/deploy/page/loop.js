// The program of an exported translation run in a browser: the steps of program.py and greedy.py.

const LAST = -Infinity;

/** Bytes as the hexadecimal digits of their sha256. */
async function sha256(bytes) {
  if (!globalThis.crypto?.subtle)
    throw new Error("A browser checks files on https and on localhost alone: open the page from there.");
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((b) => b.toString(16).padStart(2, "0")).join("");
}

/** The bytes of a file, by a file server. */
async function fetched(root, name) {
  const answer = await fetch(new URL(name, root));
  if (!answer.ok) throw new Error(`${name} is missing: copy the bundle whole, or export the run again.`);
  return answer.arrayBuffer();
}

/** A file of the bundle, which must be the one that was exported. */
export async function file(root, manifest, name, read = fetched) {
  const bytes = await read(root, name);
  if (await sha256(bytes) !== manifest.files[name].sha256)
    throw new Error(`${name} is damaged, its sha256 is another: copy the bundle again, or export the run ` +
      "again.");
  return bytes;
}

/** The tokenizer of the bundle. A character without a piece becomes its bytes, which the library omits. */
export class Pieces {
  constructor(tokenizer, tree, facts) {
    this.inner = tokenizer;
    this.silent = new Set(facts.silent);
    this.piece = tree.model.unk_id == null ? tree.model.unk_token : tree.model.vocab[tree.model.unk_id][0];
    this.unknown = tree.model.byte_fallback ? tokenizer.token_to_id(this.piece) : undefined;
  }

  ids(text) {
    const found = this.inner.encode(text, { add_special_tokens: false });
    const bytes = (piece) => [...new TextEncoder().encode(piece)]
      .map((b) => this.inner.token_to_id(`<0x${b.toString(16).toUpperCase().padStart(2, "0")}>`));
    // a text that spells the piece itself is no unknown character
    const strange = (id, i) => id === this.unknown && found.tokens[i] !== this.piece;
    return found.ids.flatMap((id, i) => (strange(id, i) ? bytes(found.tokens[i]) : [id]));
  }

  text(ids) {
    const said = ids.filter((id) => !this.silent.has(id));
    if (!said.length) return ""; // which the library refuses
    return this.inner.decode(said, { skip_special_tokens: true, clean_up_tokenization_spaces: false }).trim();
  }
}

/** Rules of the search: (tokens so far, scores) change the scores, in the order of transformers. */
export function rulesOf(settings, begun) {
  const rules = [];
  const forced = (token, length) => (tokens, scores) => {
    if (tokens.length !== length) return;
    scores.fill(LAST);
    scores[token] = 0;
  };
  const never = (phrases) => (tokens, scores) => {
    for (const phrase of phrases) {
      const before = phrase.slice(0, -1);
      const from = tokens.length - before.length;
      if (from >= 0 && before.every((t, i) => tokens[from + i] === t))
        scores[phrase.at(-1)] = LAST;
    }
  };
  const n = settings.no_repeat_ngram;
  if (n) rules.push((tokens, scores) => {
    const last = tokens.slice(tokens.length - n + 1).join();
    for (let i = 0; i + n <= tokens.length; i++)
      if (tokens.slice(i, i + n - 1).join() === last) scores[tokens[i + n - 1]] = LAST;
  });
  if (settings.bad_words?.length) rules.push(never(settings.bad_words));
  if (settings.first != null) rules.push(forced(settings.first, 1));
  if (settings.last != null) rules.push(forced(settings.last, begun + settings.longest - 1));
  if (settings.suppress?.length) rules.push(never(settings.suppress.map((token) => [token])));
  (settings.prefix ?? []).forEach((token, i) => rules.push(forced(token, begun + i)));
  return rules;
}

/** Keys or values with one more place: [1, H, P, D] and [1, H, 1, D]. */
function longer(past, fresh) {
  const [, heads, places, size] = past.dims;
  const data = new Float32Array(heads * (places + 1) * size);
  for (let h = 0; h < heads; h++) {
    data.set(past.data.subarray(h * places * size, (h + 1) * places * size), h * (places + 1) * size);
    data.set(fresh.data.subarray(h * size, (h + 1) * size), (h * (places + 1) + places) * size);
  }
  return { data, dims: [1, heads, places + 1, size] };
}

/** A function from a text and a pair of languages to its translation. */
export function translator(ort, models, settings, pieces) {
  const whole = (values, dims) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
  const float = (array) => new ort.Tensor("float32", array.data, array.dims);

  async function write(source, begin) {
    const mask = { data: new Float32Array(source.length).fill(1), dims: [1, source.length] };
    const cross = await models.encoder.run({ ids: whole(source, [1, source.length]), mask: float(mask) });
    const names = Object.keys(cross).map((name) => name.replace("cross_", ""));
    const past = Object.fromEntries(names.map((name) => {
      const [, heads, , size] = cross[`cross_${name}`].dims;
      return [name, { data: new Float32Array(0), dims: [1, heads, 0, size] }];
    }));
    const tokens = [...begin], rules = rulesOf(settings, begin.length);
    let at = 0, scores;
    const read = async () => {
      for (; at < tokens.length; at++) {
        const before = { data: new Float32Array(at).fill(1), dims: [1, at] };
        const found = await models.decoder.run({
          ids: whole([tokens[at]], [1, 1]), position: whole([at], [1]),
          mask: float(mask), past_mask: float(before), ...cross,
          ...Object.fromEntries(names.map((name) => [`past_${name}`, float(past[name])])),
        });
        for (const name of names) past[name] = longer(past[name], found[`new_${name}`]);
        scores = Float32Array.from(found.logits.data);
      }
    };
    while (tokens.length - begin.length < settings.longest) {
      await read();
      for (const rule of rules) rule(tokens, scores);
      const best = scores.reduce((b, score, i) => (score > scores[b] ? i : b), 0);
      if (best === settings.end) break;
      tokens.push(best);
    }
    return tokens.slice(begin.length);
  }

  return async (text, pair) => {
    if (!text.trim()) throw new Error("There is nothing to translate in the text.");
    const frame = settings.pairs[pair];
    if (!frame)
      throw new Error(`${pair} is not translated; there are ${Object.keys(settings.pairs).join(", ")}.`);
    const source = [...frame.before, ...pieces.ids(text), ...frame.after];
    if (source.length > settings.most)
      throw new Error(`The text has ${source.length} tokens, and the model reads at most ${settings.most}: ` +
        "cut it into sentences.");
    return pieces.text(await write(source, frame.begin));
  };
}
