// Draws the boxes of the flowchart and reports which one was chosen. An anywidget module.
const W = 132, H = 52, DX = 148, DY = 96, X0 = 6, Y0 = 6, NS = "http://www.w3.org/2000/svg";
function make(tag, attributes, parent, text) {
  const e = document.createElementNS(NS, tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  if (text !== undefined) e.textContent = text;
  parent.appendChild(e);
  return e;
}
const namesOf = model => model.get("boxes").map(b => b.name).join("|");
function draw(model, el) {
  const n = model.get("columns"), names = model.get("boxes").map(b => b.name);
  const at = i => [X0 + (i % n) * DX, Y0 + Math.floor(i / n) * DY];
  const root = document.createElement("div");
  root.className = "wb-flow";
  const rows = Math.ceil(names.length / n);
  const size = `${(n - 1) * DX + W + 2 * X0} ${(rows - 1) * DY + H + 2 * Y0}`;
  const svg = make("svg", { viewBox: `0 0 ${size}`, role: "group",
    "aria-label": "Flowchart: stations from plan to export" }, root);
  const head = make("marker", { id: "wb-head", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7,
    markerHeight: 7, orient: "auto-start-reverse" }, make("defs", {}, svg));
  make("path", { d: "M0 0L8 4L0 8z", fill: "var(--jp-ui-font-color2, #666)" }, head);
  for (let i = 0; i + 1 < names.length; i++) {
    const [x, y] = at(i), [u, v] = at(i + 1), mid = y + H + (DY - H) / 2;
    const d = y === v ? `M${x + W} ${y + H / 2}H${u - 2}`
      : `M${x + W / 2} ${y + H}V${mid}H${u + W * 0.7}V${v - 2}`;
    make("path", { class: "arrow", d, "marker-end": "url(#wb-head)" }, svg);
  }
  const test = names.indexOf("quick test");
  if (test >= n) {
    const [x, y] = at(test);
    const d = `M${x + W * 0.25} ${y}V${Y0 + H + 2}`;
    make("path", { class: "arrow back", d, "marker-end": "url(#wb-head)" }, svg);
    make("text", { class: "note", x: x + W * 0.25 + 5, y: y - 6 }, svg, "failed");
  }
  const list = document.createElement("ol");
  list.setAttribute("aria-label", "What has been done, and when");
  const live = document.createElement("div");
  live.className = "live";
  live.setAttribute("aria-live", "polite");
  const choose = name => { model.set("chosen", name); model.save_changes(); };
  const parts = names.map((name, i) => {
    const [x, y] = at(i);
    const box = make("g", { class: "box", tabindex: 0, role: "button", "data-station": name }, svg);
    make("title", {}, box);
    make("rect", { class: "ring", x: x - 4, y: y - 4, width: W + 8, height: H + 8, rx: 9 }, box);
    make("rect", { class: "face", x, y, width: W, height: H, rx: 6 }, box);
    make("rect", { class: "tint", x, y, width: W, height: H, rx: 6 }, box);
    make("rect", { class: "stripe", x, y: y + 6, width: 5, height: H - 12 }, box);
    make("text", { class: "title", x: x + 13, y: y + 22 }, box, name);
    make("text", { class: "said", x: x + 13, y: y + 40 }, box);
    box.addEventListener("click", () => choose(name));
    box.addEventListener("keydown", e => {
      if (e.key === "Enter" || e.key === " ") choose(name);
      else if (e.key === "ArrowRight" || e.key === "ArrowDown") parts[(i + 1) % parts.length].box.focus();
      else if (e.key === "ArrowLeft" || e.key === "ArrowUp")
        parts[(i + parts.length - 1) % parts.length].box.focus();
      else return;
      e.preventDefault();
      e.stopPropagation();
    });
    const item = document.createElement("li"), button = document.createElement("button");
    for (const c of ["mark", "name", "when"]) {
      const span = document.createElement("span");
      span.className = c;
      button.appendChild(span);
    }
    button.addEventListener("click", () => choose(name));
    item.appendChild(button);
    list.appendChild(item);
    return { box, button, state: "" };
  });
  function update() {
    const chosen = model.get("chosen");
    model.get("boxes").forEach((b, i) => {
      const { box, button } = parts[i];
      const said = `${b.glyph} ${b.state}${b.when ? " · " + b.when : ""}`;
      for (const e of [box, button]) {
        e.setAttribute("data-state", b.state);
        e.setAttribute("aria-current", b.name === chosen ? "true" : "false");
      }
      box.setAttribute("aria-label", `${b.name}: ${b.state}. ${b.says}`);
      box.querySelector("title").textContent = b.says || b.state;
      box.querySelector(".said").textContent = said;
      button.title = b.says;
      button.children[0].textContent = b.glyph;
      button.children[1].textContent = b.name;
      const took = b.took ? `, ${b.took}` : "";
      button.children[2].textContent = b.when ? `${b.state} ${b.when}${took}` : b.state;
      if (parts[i].state && parts[i].state !== b.state)
        live.textContent = `${b.name}: ${b.state}. ${b.says}`;
      parts[i].state = b.state;
    });
  }
  root.append(list, live);
  el.appendChild(root);
  update();
  return { root, update, names: namesOf(model) };
}
function render({ model, el }) {
  let chart = draw(model, el);
  function update() {
    if (chart.names !== namesOf(model)) {
      chart.root.remove();
      chart = draw(model, el);
    } else chart.update();
  }
  model.on("change:boxes", update);
  model.on("change:chosen", update);
  return () => { model.off("change:boxes", update); model.off("change:chosen", update); };
}
export default { render };
