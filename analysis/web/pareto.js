// Quality against one cost: a mark a row, shaped and coloured by family, and the front of what nothing beats in both.
const families = unique(data.blocks.flatMap((block) => block.rows.map((row) => row.family))).sort();
const SHAPES = ["circle", "square", "diamond", "up", "down", "cross"];
const CROWD = 200;
const plot = svg("svg", { id: "plot", class: "plot", role: "group", "aria-label": "quality against cost" });
const pickColumn = el("select", { id: "column" }), pickCost = el("select", { id: "cost" });
const spoken = el("p", { id: "hover", "aria-live": "polite" });
const legend = el("ul", { class: "keys" });
const frontText = el("p", { class: "note", id: "front" });

const familyClass = (family) => `family-${families.indexOf(family) % 8}`;
const shapeOf = (family) => SHAPES[families.indexOf(family) % SHAPES.length];

function shape(kind, x, y, r, attributes) {
  if (kind === "circle") return svg("circle", { cx: x, cy: y, r, ...attributes });
  const s = r * 0.9, d = r * 1.25;
  const outlines = {
    square: [[-s, -s], [s, -s], [s, s], [-s, s]], diamond: [[0, -d], [d, 0], [0, d], [-d, 0]], up: [[0, -d], [d, s], [-d, s]],
    down: [[0, d], [d, -s], [-d, -s]],
    cross: [[-d, -2], [-2, -2], [-2, -d], [2, -d], [2, -2], [d, -2], [d, 2], [2, 2], [2, d], [-2, d], [-2, 2], [-d, 2]],
  };
  return svg("path", { d: `${pathOf(outlines[kind].map(([dx, dy]) => [x + dx, y + dy]))}Z`, ...attributes });
}

function points(at, cost) {
  const wanted = words();
  return data.blocks.filter((block) => block.columns.includes(at)).flatMap((block) => block.rows
    .filter((row) => (!state.family || row.family === state.family) && (!state.model || row.model === state.model) && matches(row.search, wanted))
    .map((row) => ({ row, cell: row.cells[block.columns.indexOf(at)] }))
    .filter(({ cell }) => cell.value !== undefined && cell.costs && cell.costs[cost] !== null)
    .map(({ row, cell }) => ({ row, cell, x: cell.costs[cost], y: cell.value, whole: cell.seeds === cell.of })));
}

// Of each model: complete rows that no other complete row of it beats or equals in cost while beating it in quality.
function fronts(found, higher) {
  const better = (a, b) => (higher ? a > b : a < b);
  return [...byKey(found.filter((point) => point.whole), (point) => point.row.model).values()].map((own) => {
    const front = [];
    const order = [...own].sort((a, b) => a.x - b.x || (higher ? b.y - a.y : a.y - b.y));
    for (const point of order) if (!front.length || better(point.y, front.at(-1).y)) front.push(point);
    return front;
  });
}

function describe(point) {
  const costs = data.costs.map((cost, i) => `${cost.title}: ${short(point.cell.costs[i])}`).join("; ");
  spoken.replaceChildren(el("strong", {}, point.row.label), ` (${point.row.family}) on ${point.row.model}: ${point.cell.text}${point.whole ? "" : ", not ranked"}; ${costs}`);
}

function drawPareto() {
  const at = Math.min(Number(state.column) || 0, data.columns.length - 1);
  const cost = Math.max(0, data.costs.findIndex((one) => one.key === state.cost));
  options(pickColumn, data.columns.map((column, i) => [String(i), columnTitle(column)]), String(at));
  options(pickCost, data.costs.map((one) => [one.key, one.title]), data.costs[cost].key);
  plot.replaceChildren();
  spoken.replaceChildren("Point at a mark, or reach the marks with the Tab key and walk along them with the arrow keys; Enter opens a cell.");
  const found = points(at, cost).sort((a, b) => a.x - b.x);
  $("count").textContent = plural(found.length, "row");
  legend.replaceChildren(...unique(found.map((point) => point.row.family)).sort().map(familyKey));
  frontText.textContent = "";
  if (!found.length) return void plot.append(svg("text", { x: 20, y: 30 }, "No row has this quality and this cost under these filters."));
  drawPoints(found, data.columns[at], data.costs[cost]);
}

function drawPoints(found, column, cost) {
  const { width, height } = plot.getBoundingClientRect();
  const box = { left: 52, right: width - 14, top: 28, bottom: height - 42 };
  const x = scale(found.map((point) => point.x), box.left, box.right, true);
  const y = scale(found.flatMap(({ y, cell }) => [y - (cell.std ?? 0), y + (cell.std ?? 0)]), box.bottom, box.top, false);
  axes(plot, x, y, box, { x: cost.title, y: column.metric });
  const lines = fronts(found, column.higher);
  for (const front of lines) plot.append(svg("path", { class: "front", d: stairs(front, x, y, box) }));
  const onFront = new Set(lines.flat());
  frontText.textContent = `On the front: ${lines.flat().map((point) => point.row.label).join(", ")}. Hollow marks are not ranked (a seed failed).`;
  const placed = found.map((point) => ({ point, x: x.place(point.x), y: y.place(point.y) }));
  const taken = placed.map((at) => ({ x1: at.x - 7, x2: at.x + 7, y1: at.y - 7, y2: at.y + 7 }));
  for (const at of placed) {
    const spread = at.point.cell.std;
    if (spread) plot.append(svg("line", { class: `bar ${familyClass(at.point.row.family)}`, x1: at.x, x2: at.x, y1: y.place(at.point.y - spread), y2: y.place(at.point.y + spread) }));
  }
  placed.forEach((at, i) => plot.append(markOf(at, i === 0)));
  // Names of the front first: where there is room for few, those are read; among very many marks, no others.
  const ordered = [...placed].sort((a, b) => onFront.has(b.point) - onFront.has(a.point));
  for (const at of ordered) if (placed.length <= CROWD || onFront.has(at.point)) nameMark(at, box, taken);
}

// The front goes on to the right at its best quality, and each step is as high as what is had for that cost.
function stairs(front, x, y, box) {
  const corners = front.flatMap((point, i) => [...(i ? [[x.place(point.x), y.place(front[i - 1].y)]] : []), [x.place(point.x), y.place(point.y)]]);
  return pathOf([...corners, [box.right, y.place(front.at(-1).y)]]);
}

function markOf(at, first) {
  const { row, cell, whole } = at.point;
  const kinds = `mark ${familyClass(row.family)} ${whole ? "" : "hollow"}`;
  const made = shape(shapeOf(row.family), at.x, at.y, 6, { class: kinds, tabindex: first ? 0 : -1, role: "button", "aria-label": `${row.label}, ${row.model}: ${cell.text}` });
  const open = () => {
    const own = resultsOf.get(keyOf(row.model, row.label, Number(state.column) || 0));
    if (own) change({ cell: own[0].cell }, true);
  };
  for (const event of ["pointerenter", "focus"]) made.addEventListener(event, () => describe(at.point));
  made.addEventListener("click", open);
  made.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault(); // else the key also presses what has the focus in the opened cell
    open();
  });
  return made;
}

plot.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
  const marks = [...plot.querySelectorAll(".mark")];
  const to = marks[marks.indexOf(event.target) + step];
  if (!step || !to) return;
  event.preventDefault();
  event.target.setAttribute("tabindex", "-1");
  to.setAttribute("tabindex", "0");
  to.focus();
});

// A name goes to the right of its mark, else to the left, unless it would lie on a mark or on another name.
function nameMark(at, box, taken) {
  const width = at.point.row.label.length * 6.4;
  for (const [x1, anchor, x] of [[at.x + 10, "start", at.x + 10], [at.x - 10 - width, "end", at.x - 10]]) {
    const area = { x1, x2: x1 + width, y1: at.y - 15, y2: at.y + 1 };
    const free = x1 >= box.left && area.x2 <= box.right && !taken.some((t) => t.x1 < area.x2 && t.x2 > area.x1 && t.y1 < area.y2 && t.y2 > area.y1);
    if (!free) continue;
    taken.push(area);
    return void plot.append(svg("text", { class: "name", x, y: at.y - 4, "text-anchor": anchor }, at.point.row.label));
  }
}

function familyKey(family) {
  const sample = svg("svg", { width: 16, height: 16, "aria-hidden": "true" }, shape(shapeOf(family), 8, 8, 5, { class: `mark ${familyClass(family)}` }));
  return el("li", {}, sample, family);
}

pickColumn.addEventListener("change", () => change({ column: pickColumn.value }));
pickCost.addEventListener("change", () => change({ cost: pickCost.value }));
$("view-cost").append(
  el("div", { class: "tools" }, el("label", { class: "wide" }, "Quality ", pickColumn), el("label", { class: "wide" }, "Cost ", pickCost)),
  legend, plot, spoken, frontText,
);
if (results.length) addView("cost", "Cost", ["q", "family", "model", "column", "cost"], drawPareto);
