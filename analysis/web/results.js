// The tables of results, and the list of all cells; both obey the filters.
const words = () => state.q.toLowerCase().split(/\s+/).filter(Boolean);
const matches = (text, wanted) => wanted.every((word) => text.includes(word));

const tables = data.blocks.map((block, number) => {
  for (const row of block.rows) row.search = searchable(row.label, row.model, row.family);
  const made = grid(`results of ${block.models.join(", ")}`, (title, up) => change({ sort: `${title} ${up ? "up" : "down"}` }));
  return { block, number, grid: made, title: el("h3", {}, block.models.length > 1 ? `${block.models.length} models` : block.models[0]) };
});
const rowOf = new Map(data.blocks.flatMap((block) => block.rows.map((row) => [JSON.stringify([row.model, row.label]), { row, block }])));

function cellAt(model, label, column) {
  const found = rowOf.get(JSON.stringify([model, label]));
  return found?.row.cells[found.block.columns.indexOf(column)];
}

const shownColumns = (block) => block.columns.filter((at) => !state.task || data.columns[at].task === state.task);

function kept(row, block, wanted) {
  if (state.family && row.family !== state.family) return false;
  if (state.model && row.model !== state.model) return false;
  if (state.task && !shownColumns(block).some((at) => row.cells[block.columns.indexOf(at)].of)) return false;
  return matches(row.search, wanted);
}

function resultColumns(block) {
  const metrics = shownColumns(block).map((at) => metricColumn(block, at));
  const sides = block.titles.slice(2 + block.columns.length).map((title, i) => ({
    title, key: (row) => row.sides[i][1], show: (row) => row.sides[i][0],
  }));
  return [
    { title: "method", left: true, key: (row) => row.label, show: (row) => row.label },
    { title: "family", left: true, kind: "family", key: (row) => row.family, show: (row) => row.family },
    ...(block.models.length > 1 ? [{ title: "model", left: true, key: (row) => row.model, show: (row) => row.model }] : []),
    ...metrics, ...sides,
  ];
}

function metricColumn(block, at) {
  const column = data.columns[at], own = block.columns.indexOf(at);
  return {
    title: columnTitle(column), down: column.higher, key: (row) => row.cells[own].value ?? null,
    show: (row) => resultButton(row, row.cells[own], at),
    tip: `${grouped.format(column.n)} examples; ${column.higher ? "higher" : "lower"} is better`,
  };
}

function resultButton(row, cell, at) {
  const own = resultsOf.get(keyOf(row.model, row.label, at)) ?? [];
  const kinds = ["cell", cell.best && "best", cell.second && "second", cell.value === undefined && "empty"].filter(Boolean);
  const made = button(cell.text, { class: kinds.join(" "), tabindex: "-1" }, () => own.length && change({ cell: own[0].cell }, true));
  if (cell.tied) made.append(el("sup", {}, "†"));
  return explain(made, () => told(row, cell, data.columns[at], own));
}

// What a cell of the table says beyond its number.
function told(row, cell, column, own) {
  const name = `${row.label}, ${row.model}, ${column.name}`;
  if (cell.value === undefined) return `${name}: ${cell.missing || "no record"}`;
  const marks = [cell.best && "best of its model", cell.second && "second", cell.tied && "cannot be told from the best"].filter(Boolean);
  const spread = cell.det ? "no seed can change it" : cell.std === undefined ? "one seed, no spread" : `sd ${short(cell.std)}`;
  const seeds = own.length ? ` (seeds ${unique(own.map((one) => one.seed)).join(", ")})` : "";
  const missing = cell.missing ? `${cell.of - cell.seeds} ${cell.missing}; not ranked` : "";
  const opens = own.length ? "Enter or tap opens its cells." : "Made from other columns.";
  return [`${name}: ${full(cell.value)}`, spread, `${cell.seeds} of ${plural(cell.of, "seed")}${seeds}`, missing, ...marks, opens].filter(Boolean).join("; ");
}

function drawResults() {
  const wanted = words();
  let shown = 0, all = 0;
  for (const { block, grid, title } of tables) {
    const rows = block.rows.filter((row) => kept(row, block, wanted));
    const own = new Set(rows.map((row) => row.model));
    const columns = resultColumns(block);
    const empty = !rows.length || (state.task && !shownColumns(block).length);
    const picked = new Set(columns.map((column) => column.title));
    const feet = block.feet.filter((line) => own.has(line[0])).map((line) => footLine(line, block, picked));
    grid.box.hidden = title.hidden = empty;
    if (!empty) grid.show(rows, columns, state.sort, feet);
    shown += empty ? 0 : rows.length;
    all += block.rows.length;
  }
  $("count").textContent = shown === all ? plural(all, "row") : `${grouped.format(shown)} of ${plural(all, "row")}`;
}

function footLine(line, block, picked) {
  const [model, name, ...texts] = line;
  return [name, "", ...(block.models.length > 1 ? [model] : []), ...texts.filter((_, i) => picked.has(block.titles[i + 2]))];
}

const columnName = (one) => data.columns[one.column]?.name ?? one.task;
const valueOf = (one) => (one.value === null ? DASH : one.value.toFixed(data.columns[one.column]?.decimals ?? 3));
const ending = (one) => (one.reason ? `${one.status}: ${one.reason}` : one.status);
for (const one of results) one.search = searchable(one.cell, one.label, one.model, one.family, one.status, columnName(one));
const cellGrid = grid("all cells", (title, up) => change({ cells: `${title} ${up ? "up" : "down"}` }));
const CELL_COLUMNS = [
  { title: "cell", left: true, key: (one) => one.cell, show: cellButton },
  { title: "method", left: true, key: (one) => one.label, show: (one) => one.label },
  { title: "model", left: true, key: (one) => one.model, show: (one) => one.model },
  { title: "measured", left: true, key: (one) => columnName(one), show: columnName },
  { title: "seed", key: (one) => one.seed, show: (one) => String(one.seed) },
  { title: "value", down: true, key: (one) => one.value, show: valueOf },
  { title: "seconds", down: true, key: (one) => one.seconds, show: (one) => (one.seconds === null ? DASH : short(one.seconds)) },
  { title: "ended", left: true, key: (one) => one.status, show: ending },
];

function cellButton(one) {
  return button(one.cell, { class: "cell code", tabindex: "-1" }, () => change({ cell: one.cell }, true));
}

function keptResult(one, wanted) {
  if (state.family && one.family !== state.family) return false;
  if (state.model && one.model !== state.model) return false;
  if (state.task && (data.columns[one.column]?.task ?? one.task) !== state.task) return false;
  return matches(one.search, wanted);
}

function drawCells() {
  const wanted = words();
  const rows = results.filter((one) => keptResult(one, wanted));
  cellGrid.show(rows, CELL_COLUMNS, state.cells);
  $("count").textContent = rows.length === results.length ? plural(rows.length, "result") : `${grouped.format(rows.length)} of ${plural(results.length, "result")}`;
}

const rankings = data.rankings.flatMap(({ caption, titles, lines }) => [el("h3", {}, "Ranks across tasks"), el("p", { class: "note" }, caption), table(titles, lines)]);
$("view-results").append(...tables.flatMap((one) => [one.title, one.grid.box]), ...rankings, listOf([...data.legend, ...data.notes], "legend"));
$("view-cells").append(el("p", { class: "note" }, "One line for each cell and protocol; open a cell to see how it was made."), cellGrid.box);
addView("results", "Results", ["q", "family", "model", "task", "sort"], drawResults);
if (results.length) addView("cells", "Cells", ["q", "family", "model", "task", "cells"], drawCells);

function listOf(texts, kind) {
  return el("ul", { class: kind }, ...texts.map((text) => el("li", {}, text)));
}
