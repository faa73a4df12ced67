"use strict";
// Elements are made from text and attributes alone: no markup is ever parsed from data.
const $ = (id) => document.getElementById(id);
const DASH = "–";
const data = JSON.parse($("data").textContent);

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined && value !== false) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== undefined && child !== null));
  return made;
}
const el = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes = {}, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

function button(text, attributes, pressed) {
  const made = el("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", pressed);
  return made;
}

function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

const PREFIXES = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
function short(number) {
  if (number === null || number === undefined) return DASH;
  if (number && Math.abs(number) < 1e-3) return number.toExponential(2).replace(/\.?0+e/, "e");
  for (const [unit, letter] of PREFIXES) if (Math.abs(number) >= unit) return +(number / unit).toPrecision(3) + letter;
  return String(+number.toPrecision(3));
}
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
function full(value) {
  if (typeof value !== "number") return value === null || value === undefined ? DASH : String(value);
  return Number.isInteger(value) && Math.abs(value) >= 1e4 ? grouped.format(value) : String(+value.toPrecision(8));
}
const plural = (n, what) => `${grouped.format(n)} ${what}${n === 1 ? "" : "s"}`;

// Chunks are unpacked when they are first asked for.
const unpacked = new Map();
function chunk(number) {
  if (!unpacked.has(number)) unpacked.set(number, inflate($(`chunk-${number}`).textContent));
  return unpacked.get(number);
}
async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return JSON.parse(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text());
}

// Results: lists of equal length become objects; the results behind one cell of a table share a key.
const keyOf = (model, label, column) => JSON.stringify([model, label, column]);
function listed(table) {
  if (!table) return [];
  const text = (name, i) => table[name].texts[table[name].codes[i]];
  return table.cell.map((cell, i) => ({
    cell, seed: table.seed[i], value: table.value[i], seconds: table.seconds[i], column: table.column[i], model: text("model", i),
    label: text("label", i), family: text("family", i), status: text("status", i), reason: text("reason", i), task: text("task", i),
    variant: text("variant", i),
  }));
}
function byKey(items, key) {
  const found = new Map();
  for (const item of items) found.has(key(item)) ? found.get(key(item)).push(item) : found.set(key(item), [item]);
  return found;
}
const results = listed(data.results);
const resultsOf = byKey(results, (one) => keyOf(one.model, one.label, one.column));
const resultsIn = byKey(results, (one) => one.cell);
const columnTitle = (column) => `${column.name} ${column.metric} ${column.higher ? "↑" : "↓"}`;
const searchable = (...parts) => parts.join(" ").toLowerCase();
const unique = (values) => [...new Set(values)];

// Small fixed tables and headed sections.
const NUMERIC = /^[-\d.,e]+$/;
function definition(pairs) {
  return el("dl", {}, ...pairs.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)]));
}

function section(title, ...content) {
  return el("section", {}, el("h3", {}, title), ...content);
}

function table(titles, rows) {
  const head = el("tr", {}, ...titles.map((title) => el("th", { scope: "col", class: "text" }, title)));
  const body = rows.map((row) => el("tr", {}, ...row.map((text, i) => (i ? el("td", { class: NUMERIC.test(text) ? "text number" : "text" }, text) : el("th", { scope: "row", class: "text" }, text)))));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": titles.join(", ") }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...body)));
}
