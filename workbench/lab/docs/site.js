// Search, the theme, the list of pages on a narrow screen. No library, nothing from the network.
const root = document.body.dataset.root;
const field = document.querySelector("#search input");
const hits = document.querySelector("#hits");

// The words of all pages are a script, read when the search is first used: a page opened as a file may not
// fetch them.
let loading = null;
function load() {
  loading ||= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = root + "words.js";
    script.onload = () => done(window.words);
    script.onerror = failed;
    document.head.append(script);
  });
  return loading;
}

// How well a section fits: every word must be found; a title says more than the text, an equal title most.
function score(section, wanted) {
  const title = section.title.toLowerCase(), text = section.text.toLowerCase();
  const page = `${section.page} ${section.module}`.toLowerCase();
  let sum = 0;
  for (const word of wanted) {
    const at = title.indexOf(word);
    if (at >= 0) sum += title === word ? 12 : at === 0 || /\W|_/.test(title[at - 1]) ? 6 : 4;
    else if (page.includes(word)) sum += 2;
    else if (text.includes(word)) sum += 1;
    else return 0;
  }
  return sum + (title === wanted.join(" ") ? 10 : 0) + 1 / (1 + title.length);
}

// Text with the wanted words marked, around the first of them.
function around(text, wanted) {
  const places = wanted.map((w) => text.toLowerCase().indexOf(w)).filter((n) => n >= 0);
  const first = Math.max(0, Math.min(...places, text.length) - 50);
  const from = first && first < text.length ? text.indexOf(" ", first) + 1 : 0;
  const piece = (from ? "… " : "") + text.slice(from, from + 160);
  const span = document.createElement("span");
  const escaped = wanted.map((w) => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  for (const [n, part] of piece.split(new RegExp(`(${escaped.join("|")})`, "i")).entries()) {
    const node = n % 2 ? document.createElement("mark") : document.createTextNode(part);
    if (n % 2) node.textContent = part;
    span.append(node);
  }
  return span;
}

function hit(section, wanted) {
  const item = document.createElement("li"), link = document.createElement("a");
  link.href = root + section.url;
  const where = document.createElement("span");
  where.className = "where";
  where.textContent = section.module || section.page;
  const words = around(section.text, wanted);
  words.className = "words";
  link.append(where, around(section.title, wanted), words);
  item.append(link);
  return item;
}

async function search() {
  const asked = field.value;
  const wanted = asked.toLowerCase().split(/\s+/).filter(Boolean);
  if (!wanted.length) return close();
  const all = await load();
  if (field.value !== asked) return;
  const scored = all.map((s) => [score(s, wanted), s]).filter(([n]) => n);
  const found = scored.sort((a, b) => b[0] - a[0]).slice(0, 20);
  const none = document.createElement("li");
  none.className = "none";
  none.textContent = "Nothing is found.";
  hits.replaceChildren(...(found.length ? found.map(([, s]) => hit(s, wanted)) : [none]));
  hits.firstChild.classList.toggle("chosen", found.length > 0);
  hits.hidden = false;
}

function close() {
  hits.hidden = true;
}

function choose(step) {
  const items = [...hits.querySelectorAll("li:not(.none)")];
  const at = items.findIndex((i) => i.classList.contains("chosen"));
  if (!items.length) return;
  items[at]?.classList.remove("chosen");
  const next = items[(at + step + items.length) % items.length];
  next.classList.add("chosen");
  next.scrollIntoView({block: "nearest"});
}

field.addEventListener("input", search);
field.addEventListener("focus", () => { load(); if (field.value) search(); });
field.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") choose(event.key === "ArrowDown" ? 1 : -1);
  else if (event.key === "Enter") hits.querySelector(".chosen a")?.click();
  else if (event.key === "Escape") { close(); field.blur(); }
  else return;
  event.preventDefault();
});
hits.addEventListener("click", close);  // a hit on this very page loads nothing
document.addEventListener("click", (event) => { if (!event.target.closest("#search")) close(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    field.focus();
  }
});

document.querySelector("#theme").addEventListener("click", () => {
  const data = document.documentElement.dataset;
  data.theme = data.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("theme", data.theme); } catch { /* a browser that keeps nothing */ }
});

const menu = document.querySelector("#menu");
menu.addEventListener("click", () => {
  const open = document.body.classList.toggle("menu-open");
  menu.setAttribute("aria-expanded", open);
  scrollTo(0, 0);
});

// A heading's own address, for whoever wants to point at it.
for (const heading of document.querySelectorAll("main :is(h2, h3, h4)[id]")) {
  const link = document.createElement("a");
  link.className = "anchor";
  link.href = "#" + heading.id;
  link.textContent = "#";
  link.setAttribute("aria-label", "Address of this heading");
  heading.append(link);
}

const current = document.querySelector("nav [aria-current]");
const list = document.querySelector("nav");
if (current && list.scrollHeight > list.clientHeight)
  list.scrollTop = current.offsetTop - list.clientHeight / 2;
