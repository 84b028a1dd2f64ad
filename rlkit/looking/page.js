"use strict";
// What the page does beside showing: values under the pointer, and transcripts that are filtered. All text goes in as text.

function make(tag, className, text) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  return e;
}

function short(x) {
  return x === null || x === undefined ? "none" : Math.abs(x) >= 1000 ? x.toFixed(0) : String(+x.toPrecision(4));
}

// -- values under the pointer: the places of a line's points, back through the scale of its picture

function values(svg) {
  const [x0, x1, y0, y1] = svg.dataset.scale.split(" ").map(Number);
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  const axis = svg.querySelector(".axis").getAttribute("d").match(/[\d.]+/g).map(Number); // left, top, bottom, right
  const x = (px) => x0 + ((px - axis[0]) / (axis[3] - axis[0])) * (x1 - x0);
  const y = (py) => y0 + ((axis[2] - py) / (axis[2] - axis[1])) * (y1 - y0);
  const lines = [...svg.querySelectorAll("polyline[data-label]")].map((p) => ({
    label: p.dataset.label,
    points: [...p.points].map((q) => [q.x, q.y]),
  }));
  return { width, height, x, y, lines };
}

for (const svg of document.querySelectorAll("svg.chart")) {
  let known = null, tip = null;
  svg.addEventListener("mousemove", (event) => {
    known = known || values(svg);
    const box = svg.getBoundingClientRect(), px = ((event.clientX - box.left) / box.width) * known.width;
    const near = known.lines.map((line) => [line.label, line.points.reduce((a, b) => (Math.abs(b[0] - px) < Math.abs(a[0] - px) ? b : a))]);
    if (!near.length) return;
    if (!tip) svg.parentElement.append((tip = make("div", "tip")));
    tip.textContent = [`${short(known.x(near[0][1][0]))}`, ...near.map(([label, p]) => `${label}  ${short(known.y(p[1]))}`)].join("\n");
    const left = event.clientX - box.left;
    tip.style.left = `${left > box.width / 2 ? left - tip.offsetWidth - 12 : left + 14}px`;
    tip.style.top = `${event.clientY - svg.parentElement.getBoundingClientRect().top + 10}px`;
  });
  svg.addEventListener("mouseleave", () => { if (tip) tip.remove(); tip = null; });
}

// -- transcripts

const DATA = JSON.parse(document.getElementById("transcripts").textContent);
const PAGE = 20;
const by = (id) => document.getElementById(id);
let shown = PAGE;

function wanted() {
  const low = by("low").value === "" ? -Infinity : +by("low").value, high = by("high").value === "" ? Infinity : +by("high").value;
  const from = by("from").value === "" ? -Infinity : +by("from").value, to = by("to").value === "" ? Infinity : +by("to").value;
  const text = by("text").value.toLowerCase(), kind = by("kind").value, prompt = by("prompt").value, run = by("run").value;
  const rows = DATA.rows.filter((r) =>
    (kind === "" || r.kind === kind) && (prompt === "" || r.id === prompt) && (run === "" || r.run === +run) &&
    r.step >= from && r.step <= to && (text === "" || `${r.asked}\n${r.said}`.toLowerCase().includes(text)) &&
    (r.reward === null ? by("low").value === "" && by("high").value === "" : r.reward >= low && r.reward <= high));
  const key = { new: (r) => -r.step, step: (r) => r.step, best: (r) => -(r.reward ?? -Infinity), worst: (r) => r.reward ?? -Infinity,
    long: (r) => -r.tokens, kl: (r) => -(r.kl ? r.kl.reduce((a, b) => a + b, 0) : -Infinity) }[by("order").value];
  return rows.map((r, i) => [key(r), i, r]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).map((x) => x[2]);
}

function coloured(row, what) {
  const said = make("div", "said"), marks = row[what];
  if (!marks) { said.textContent = row.said; return said; }
  row.pieces.forEach((piece, k) => {
    const x = marks[k], strength = Math.min(1, Math.abs(x) / DATA.scale[what]) * 0.6, span = make("span", "", piece);
    const colour = what === "surprise" ? "204, 121, 167" : x < 0 ? "0, 114, 178" : "230, 159, 0";
    if (strength > 0.04) span.style.background = `rgba(${colour}, ${strength.toFixed(2)})`;
    if (strength > 0.59) span.style.borderBottom = "2px solid"; // at the end of the scale or beyond it
    span.title = `${x} nats`;
    said.append(span);
  });
  return said;
}

function card(row) {
  const c = make("div", "card"), head = make("div", "head");
  const add = (text, className) => head.append(make("span", className, text));
  add(`step ${row.step}`);
  if (DATA.runs.length > 1) add(DATA.runs[row.run]);
  add(DATA.kinds[row.kind]);
  add(row.reward === null ? "no reward" : `reward ${short(row.reward)}`, row.reward === null ? "" : row.reward > DATA.middle ? "good" : "bad");
  for (const [name, x] of Object.entries(row.parts)) add(`${name} ${short(x)}`);
  add(`${row.tokens} tokens${row.finish === "stop" ? "" : `, ended by ${row.finish}`}`);
  if (row.kl) add(`KL ${short(row.kl.reduce((a, b) => a + b, 0))} nats`);
  if (row.answer !== null) add(`answer: ${row.answer}`);
  if (row.error) add(row.error, "bad");
  const same = make("button", "", "this prompt over steps");
  same.addEventListener("click", () => { by("prompt").value = row.id; by("order").value = "step"; draw(true); });
  head.append(same);
  c.append(head, make("div", "asked", row.asked), coloured(row, by("colour").value));
  return c;
}

function draw(anew) {
  if (anew) shown = PAGE;
  const rows = wanted(), cards = by("cards");
  cards.replaceChildren(...rows.slice(0, shown).map(card));
  by("found").textContent = `${Math.min(shown, rows.length)} of ${rows.length} shown`;
  by("more").hidden = rows.length <= shown;
  const what = by("colour").value;
  by("scale").className = `scale${what === "surprise" ? " one" : ""}`;
  by("scale").parentElement.hidden = what === "";
  by("ends").textContent = what === "" ? "" : what === "kl" ? `from −${short(DATA.scale.kl)} to ${short(DATA.scale.kl)} nats` : `up to ${short(DATA.scale.surprise)} nats`;
}

if (by("cards")) {
  for (const e of document.querySelectorAll(".filters input, .filters select")) e.addEventListener("input", () => draw(true));
  by("more").addEventListener("click", () => { shown += PAGE; draw(false); });
  by("clear").addEventListener("click", () => {
    for (const e of document.querySelectorAll(".filters input")) e.value = "";
    for (const e of document.querySelectorAll(".filters select")) e.selectedIndex = 0;
    draw(true);
  });
  draw(true);
}
