// One cell: what it measured, how it was configured, what it cost, how it trained, what it logged.
const dialog = $("cell");
let opened = "";

function showCell() {
  if (state.cell === opened) return;
  opened = state.cell;
  if (!opened) return void dialog.close();
  const own = resultsIn.get(opened);
  if (!own) return void fillDialog("No such cell", el("p", {}, `This page has no cell ${opened}.`));
  fillDialog(own[0].label, ...summary(own));
  const number = data.details[opened];
  if (number === undefined) return;
  const asked = opened;
  chunk(number).then((cells) => asked === opened && dialog.querySelector(".body").append(...sections(cells[asked])));
}

function fillDialog(title, ...content) {
  const close = button("Close", { class: "close" }, () => dialog.close());
  dialog.replaceChildren(el("div", { class: "top" }, el("h2", { id: "cell-title" }, title), close), el("div", { class: "body" }, ...content));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

dialog.addEventListener("close", () => state.cell && change({ cell: "" }, true));
dialog.addEventListener("click", (event) => void (event.target === dialog && dialog.close()));

function summary(own) {
  const { cell, model, label, family, seed, status, reason, task } = own[0];
  const facts = [["cell", el("code", {}, cell)], ["model", model], ["family", family], ["task", task], ["seed", String(seed)], ["ended", reason ? `${status}: ${reason}` : status]];
  const siblings = unique(results.filter((one) => one.label === label && one.model === model && one.task === task).map((one) => one.cell));
  return [definition(facts), seeds(siblings, cell), ...(status === "done" ? [measured(own)] : [])];
}

function seeds(cells, current) {
  if (cells.length < 2) return null;
  const links = cells.map((cell) => el("a", { href: linkTo({ cell }), "aria-current": cell === current ? "true" : undefined }, `seed ${resultsIn.get(cell)[0].seed}`));
  return el("p", { class: "siblings" }, "This row: ", ...links);
}

function measured(own) {
  const rows = own.map((one) => [columnName(one), one.variant, data.columns[one.column]?.metric ?? "", valueOf(one)]);
  return section("Measured", table(["protocol", "variant", "metric", "value"], rows));
}

// Nested blocks as lines of dotted keys.
function leaves(value, prefix = "") {
  if (value === null || typeof value !== "object") return [[prefix, value]];
  const entries = Array.isArray(value) ? [] : Object.entries(value);
  if (Array.isArray(value)) return value.length ? [[prefix, value.map((one) => (typeof one === "object" ? JSON.stringify(one) : String(one))).join(", ")]] : [];
  return entries.flatMap(([key, own]) => leaves(own, prefix ? `${prefix}.${key}` : key));
}

const lines = (value) => leaves(value).map(([key, own]) => [key, full(own)]);
const filled = (value) => value && Object.keys(value).length > 0;

function sections(found) {
  const made = [];
  const add = (title, value, titles = ["key", "value"]) => void (filled(value) && made.push(section(title, table(titles, lines(value)))));
  if (found.outcome) made.push(section("How it ended", preformatted(found.outcome.lines ?? [])));
  if (found.curves) made.push(section("Learning curves", ...Object.entries(found.curves).map(([name, [steps, values]]) => curve(name, steps, values, curveSize()))));
  if (found.config) add("Configuration", found.config);
  if (found.record) recorded(found.record, made, add);
  if (found.log) made.push(section("End of the log", preformatted(found.log)));
  if (found.record) made.push(section("Make it again", preformatted(remake(opened, found.remake))));
  return made;
}

const preformatted = (texts) => el("pre", { tabindex: "0" }, texts.join("\n"));

// The command that makes it, where the page has it, and the one that also says with what; the cell as a shell takes it.
function remake(cell, command) {
  const quoted = /^[\w.-]+$/.test(cell) ? cell : `'${cell.replaceAll("'", "'\\''")}'`;
  return [...(command ? [command, ""] : []), `parebench-report reproduce ${quoted} ${data.store}`];
}

function recorded(record, made, add) {
  const { recipe, ...configuration } = record.identity;
  add("Metrics", Object.fromEntries(record.results.map((result) => [`${result.protocol} [${result.variant}]`, { ...result.metrics, n: result.n, seconds: result.seconds }])));
  add("Configuration", configuration);
  if (filled(recipe)) made.push(section("Recipe", table(["key", "value", "origin"], recipeLines(recipe, record.origins))));
  add("Selection of the checkpoint", record.selection);
  if (record.phases.length) made.push(section("Phases", phases(record.phases)));
  add("Costs", { ...record.costs, seconds: record.seconds, attempts: record.attempts });
  add("Measured by the method", record.measures);
  add("Made from", record.dependencies);
  add("Environment", record.numerics);
  add("Data", record.data);
  add("Sources of the method (hashes)", record.sources, ["file", "hash"]);
}

function recipeLines(recipe, origins) {
  return leaves(recipe).map(([key, value]) => [key, full(value), origins[key] ?? DASH]);
}

function phases(all) {
  const rows = all.map((one) => [one.name, ...[one.steps, one.examples, one.tokens].map(full), short(one.seconds), short(one.peak_device || one.peak_rss)]);
  return table(["phase", "steps", "examples", "tokens", "seconds", "peak bytes"], rows);
}

function curveSize() {
  const width = Math.min(dialog.clientWidth - 32, 860);
  return { width: width > 640 ? Math.floor(width / 2) - 6 : width, height: 190 };
}
