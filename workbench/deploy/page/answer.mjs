// The page's program without a page, for a check where there is Node.js. The argument: the folder of a bundle;
// standard input: a list of {text, pair} as JSON; standard output: a list of {answer, ids} or {refused}.
import { readFile } from "node:fs/promises";
import { text } from "node:stream/consumers";
import { pathToFileURL } from "node:url";

const root = new URL(`${pathToFileURL(process.argv[2])}/`);
const read = async (at, name) => new Uint8Array(await readFile(new URL(name, at)));
const manifest = JSON.parse(await readFile(new URL("manifest.json", root)));
// a .js file is a module in a browser only, so it is handed over as text; it imports nothing
const code = await readFile(new URL("web/loop.js", root));
const { file, Pieces, translator } = await import(`data:text/javascript;base64,${code.toString("base64")}`);
const ort = await import(new URL("web/ort.wasm.min.mjs", root));
const { Tokenizer } = await import(new URL("web/tokenizers.min.mjs", root));

const json = async (name) => JSON.parse(new TextDecoder().decode(await file(root, manifest, name, read)));
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = (await file(root, manifest, "web/ort-wasm-simd-threaded.wasm", read)).buffer;
const models = {};
for (const [name, [path]] of Object.entries(manifest.models.onnx.fp32))
  models[name] = await ort.InferenceSession.create(await file(root, manifest, path, read));
const tree = await json("assets/tokenizer.json");
const pieces = new Pieces(new Tokenizer(tree, {}), tree, await json("assets/pieces.json"));
const translate = translator(ort, models, manifest.settings, pieces);

const answers = [];
for (const { text: words, pair } of JSON.parse(await text(process.stdin))) {
  try {
    answers.push({ answer: await translate(words, pair), ids: pieces.ids(words) });
  } catch (e) {
    answers.push({ refused: e.message });
  }
}
process.stdout.write(JSON.stringify(answers));
