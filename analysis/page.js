"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const search = document.getElementById("search");
const rows = [...document.querySelectorAll("tbody tr")];

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    row.hidden = !words.every((word) => row.dataset.search.includes(word));
    shown += row.hidden ? 0 : 1;
  }
  document.getElementById("count").textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
}

function value(row, index) {
  const cell = row.children[index];
  return "sort" in cell.dataset ? (cell.dataset.sort === "" ? null : Number(cell.dataset.sort)) : cell.textContent;
}

// Empty cells stay last in both directions.
function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
}

function sort(button) {
  const head = button.closest("th");
  const index = [...head.parentNode.children].indexOf(head);
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = head.closest("table").tBodies[0];
  body.append(...[...body.rows].sort((a, b) => compare(value(a, index), value(b, index), up ? 1 : -1)));
}

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, given] of Object.entries(attributes)) made.setAttribute(key, given);
  if (text !== undefined) made.textContent = text;
  return made;
}

const short = (number) => {
  const size = Math.abs(number);
  for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (size >= unit) return +(number / unit).toPrecision(3) + letter;
  return String(+number.toPrecision(3));
};

// Costs of methods span orders of magnitude: a log axis where the positive values differ tenfold, with 0 one decade below them.
function scale(values, low, high, mayLog) {
  const positive = values.filter((x) => x > 0);
  const log = mayLog && Math.min(...values) >= 0 && Math.max(...positive) / Math.min(...positive) >= 10;
  const floor = Math.floor(Math.log10(Math.min(...positive))) - 1;
  const map = (x) => (log ? (x > 0 ? Math.log10(x) : floor) : x);
  const mapped = values.map(map);
  let min = Math.min(...mapped), max = Math.max(...mapped);
  const pad = (max - min) * 0.08 || Math.abs(max) * 0.1 || 1;
  [min, max] = [mayLog && !log && min >= 0 ? Math.max(0, min - pad) : min - pad, max + pad];
  const place = (x) => low + ((map(x) - min) / (max - min)) * (high - low);
  const zero = log && positive.length < values.length;
  return { place, ticks: log ? [...(zero ? [0] : []), ...decades(zero ? floor + 1 : min, max)] : even(min, max) };
}

function decades(min, max) {
  const step = Math.max(1, Math.ceil((max - min) / 6));
  const found = [];
  for (let at = Math.ceil(min); at <= max; at += step) found.push(10 ** at);
  return found;
}

function even(min, max) {
  const step = niceStep((max - min) / 6);
  const found = [];
  for (let at = Math.ceil(min / step) * step; at <= max + 1e-12; at += step) found.push(+at.toPrecision(10));
  return found;
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
}

function axes(plot, x, y, box, labels) {
  for (const tick of x.ticks) {
    plot.append(element("line", { x1: x.place(tick), x2: x.place(tick), y1: box.top, y2: box.bottom }));
    plot.append(element("text", { x: x.place(tick), y: box.bottom + 16, "text-anchor": "middle" }, short(tick)));
  }
  for (const tick of y.ticks) {
    plot.append(element("line", { x1: box.left, x2: box.right, y1: y.place(tick), y2: y.place(tick) }));
    plot.append(element("text", { x: box.left - 6, y: y.place(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  plot.append(element("text", { x: box.right, y: box.bottom + 34, "text-anchor": "end" }, labels.x));
  plot.append(element("text", { x: box.left, y: 16 }, labels.y));
}

function describe(point) {
  const hover = document.getElementById("hover");
  const name = document.createElement("strong");
  name.textContent = point.label;
  hover.replaceChildren(name, ` on ${point.model}: ${point.text}; ${data.costs.map((c) => `${c.title}: ${point[c.key] === null ? "–" : short(point[c.key])}`).join("; ")}`);
}

// A name goes to the right of its mark, else to the left, unless it would lie on another name.
function nameMark(plot, point, at, box, taken) {
  const width = point.label.length * 6.6;
  const left = at.x + 10 + width > box.right;
  const area = { x1: left ? at.x - 10 - width : at.x + 10, x2: left ? at.x - 10 : at.x + 10 + width, y1: at.y - 8, y2: at.y + 8 };
  if (area.x1 < 0 || taken.some((t) => t.x1 < area.x2 && t.x2 > area.x1 && t.y1 < area.y2 && t.y2 > area.y1)) return;
  taken.push(area);
  plot.append(element("text", { class: "name", x: left ? at.x - 10 : at.x + 10, y: at.y + 4, "text-anchor": left ? "end" : "start" }, point.label));
}

function draw() {
  const plot = document.getElementById("plot");
  const group = data.groups[Number(document.getElementById("quality").value)];
  const cost = data.costs[Number(document.getElementById("cost").value)];
  const points = group ? group.points.filter((point) => point[cost.key] !== null) : [];
  plot.replaceChildren();
  if (!points.length) return void plot.append(element("text", { x: 20, y: 30 }, "No record has this cost."));
  const { width, height } = plot.getBoundingClientRect();
  const box = { left: 56, right: width - 16, top: 28, bottom: height - 44 };
  const x = scale(points.map((p) => p[cost.key]), box.left, box.right, true);
  const y = scale(points.flatMap((p) => [p.mean - p.std, p.mean + p.std]), box.bottom, box.top, false);
  axes(plot, x, y, box, { x: cost.title, y: group.metric });
  const placed = points.map((point) => ({ point, x: x.place(point[cost.key]), y: y.place(point.mean) }));
  const taken = placed.map((at) => ({ x1: at.x - 6, x2: at.x + 6, y1: at.y - 6, y2: at.y + 6 }));
  for (const at of placed) {
    const { point } = at;
    if (point.std) plot.append(element("line", { class: "bar", x1: at.x, x2: at.x, y1: y.place(point.mean - point.std), y2: y.place(point.mean + point.std) }));
    const mark = element("circle", { cx: at.x, cy: at.y, r: 6, tabindex: 0, role: "img", "aria-label": `${point.label}: ${point.text}` });
    for (const event of ["mouseenter", "focus", "click"]) mark.addEventListener(event, () => describe(point));
    plot.append(mark);
    nameMark(plot, point, at, box, taken);
  }
}

function choices(id, titles) {
  const select = document.getElementById(id);
  titles.forEach((title, index) => select.append(new Option(title, index)));
  select.addEventListener("change", draw);
}

search.addEventListener("input", filter);
for (const button of document.querySelectorAll("thead button")) button.addEventListener("click", () => sort(button));
choices("quality", data.groups.map((group) => group.title));
choices("cost", data.costs.map((cost) => cost.title));
addEventListener("resize", draw);
filter();
draw();
