// The page: a sentence in, a sentence out. Everything it loads lies in the bundle.
import * as ort from "./ort.wasm.min.mjs";
import { Tokenizer } from "./tokenizers.min.mjs";
import { file, Pieces, translator } from "./loop.js";

const root = new URL("..", import.meta.url);
const at = (id) => document.getElementById(id);
const say = (words, state = "") => {
  at("note").textContent = words;
  at("note").className = state;
};

async function opened() {
  ort.env.wasm.wasmPaths = new URL(".", import.meta.url).href;
  ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
  const answer = await fetch(new URL("manifest.json", root));
  if (!answer.ok) throw new Error("manifest.json is missing: serve the whole folder of the bundle.");
  const manifest = await answer.json();
  const json = async (name) => JSON.parse(new TextDecoder().decode(await file(root, manifest, name)));
  const precision = new URLSearchParams(location.search).get("precision") ?? "fp32", models = {};
  const files = manifest.models.onnx?.[precision];
  if (!files) throw new Error(`The bundle has no ONNX model in ${precision}.`);
  for (const [name, [path]] of Object.entries(files))
    models[name] = await ort.InferenceSession.create(await file(root, manifest, path));
  const tree = await json("assets/tokenizer.json");
  const pieces = new Pieces(new Tokenizer(tree, {}), tree, await json("assets/pieces.json"));
  return { manifest, translate: translator(ort, models, manifest.settings, pieces) };
}

try {
  const { manifest, translate } = await opened();
  at("title").textContent = `Translate · ${manifest.run}`;
  for (const pair of Object.keys(manifest.settings.pairs))
    at("pair").add(new Option(pair.replace("-", " → "), pair));
  const run = async () => {
    at("run").disabled = true;
    say("…", "busy");
    const began = performance.now();
    try {
      at("answer").textContent = await translate(at("text").value, at("pair").value);
      say(`${((performance.now() - began) / 1000).toFixed(2)} s in this browser`);
    } catch (e) {
      at("answer").textContent = "";
      say(e.message, "refused");
    }
    at("run").disabled = false;
  };
  at("run").addEventListener("click", run);
  at("run").disabled = false;
  say("Ready.");
} catch (e) {
  say(e.message, "refused");
}
