// Two rows of one column, example by example, on the seeds that both have.
const picks = Object.fromEntries(["of", "model", "a", "b", "seed"].map((key) => [key, el("select", { id: `examples-${key}` })]));
const counted = el("div", { id: "counted", "aria-live": "polite" });
const differing = grid("differing examples", (title, up) => showExamples(`${title} ${up ? "up" : "down"}`));
let compared = null;

const measuredColumns = data.columns.map((column, at) => ({ column, at })).filter(({ column }) => data.examples[column.name]);
const doneIn = byKey(results.filter((one) => one.status === "done" && one.column >= 0), (one) => JSON.stringify([one.column, one.model]));

// Choices that do not exist under the earlier ones fall back to the first.
function choose(key, pairs) {
  const wanted = pairs.some(([value]) => value === state[key]) ? state[key] : pairs[0]?.[0] ?? "";
  options(picks[key], pairs, wanted);
  return wanted;
}

async function drawExamples() {
  const at = Number(choose("of", measuredColumns.map(({ column, at }) => [String(at), columnTitle(column)])));
  const models = unique(results.filter((one) => one.column === at && one.status === "done").map((one) => one.model));
  const model = models.includes(state.model) ? state.model : models[0];
  options(picks.model, models.map((one) => [one, one]), model);
  const own = doneIn.get(JSON.stringify([at, model])) ?? [];
  const labels = unique(own.map((one) => one.label)).map((label) => [label, label]);
  const a = choose("a", labels);
  const b = choose("b", [...labels.filter(([label]) => label !== a), ...labels.filter(([label]) => label === a)]);
  const pairs = pairsOf(own.filter((one) => one.label === a), own.filter((one) => one.label === b), cellAt(model, a, at), cellAt(model, b, at));
  const seed = choose("seed", [["all", pairs.length > 1 ? `all ${pairs.length} pairs` : "the one pair"], ...pairs.map((pair) => [pair.name, `seed ${pair.name}`])]);
  counted.replaceChildren(el("p", {}, pairs.length ? "Unpacking …" : `${a} and ${b} share no seed.`));
  differing.box.hidden = true;
  if (!pairs.length) return;
  const asked = (compared = {});
  const column = data.columns[at];
  const used = pairs.filter((pair) => seed === "all" || pair.name === seed);
  const [examples, found] = await Promise.all([chunk(data.examples[column.name].set), answersOf(column.name, used)]);
  if (asked === compared) showPairs(Object.assign(compared, { a, b, examples, found, column }));
}

// By seed, each once; one run that no seed can change is paired with every seed of the other.
function pairsOf(as, bs, cellA, cellB) {
  const once = (list) => [...new Map([...list].reverse().map((one) => [one.seed, one])).values()].sort((x, y) => x.seed - y.seed);
  const [left, right] = [once(as), once(bs)];
  if (cellA?.det) return right.map((b) => ({ name: String(b.seed), a: left[0], b }));
  if (cellB?.det) return left.map((a) => ({ name: String(a.seed), a, b: right[0] }));
  return left.flatMap((a) => right.filter((b) => b.seed === a.seed).map((b) => ({ name: String(a.seed), a, b })));
}

async function answersOf(name, pairs) {
  const parts = Object.entries(data.examples[name].parts);
  const load = async (one) => {
    const key = `${one.cell} ${one.variant}`;
    const part = parts.find(([, keys]) => keys.includes(key));
    return part ? (await chunk(Number(part[0])))[key] : null;
  };
  const both = await Promise.all(pairs.map(async (pair) => ({ name: pair.name, a: await load(pair.a), b: await load(pair.b) })));
  return both.filter((pair) => pair.a && pair.b);
}

// 1 = right, 0 = wrong per example; other scores as they are; null where a page keeps none.
function scoresOf(answers, n) {
  if (!answers.bits) return answers.scores ?? null;
  const bytes = atob(answers.bits);
  return Array.from({ length: n }, (_, i) => (bytes.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1);
}

function showPairs({ a, b, examples, found, column }) {
  const n = examples.keys.length;
  const pairs = found.map((pair) => ({ ...pair, x: scoresOf(pair.a, n), y: scoresOf(pair.b, n), binary: Boolean(pair.a.bits && pair.b.bits) }));
  if (!pairs.length || pairs.some((pair) => !pair.x || !pair.y)) {
    return counted.replaceChildren(el("p", {}, "This page keeps no scores of these two rows (it holds too many results, or they are of other examples); use parebench-report compare."));
  }
  const binary = pairs.every((pair) => pair.binary);
  const rows = pairs.map((pair) => [`seed ${pair.name}`, ...(binary ? contingency(pair) : means(pair, column)).map(String)]);
  const titles = binary ? ["pair", "both right", `only ${a} right`, `only ${b} right`, "both wrong"] : ["pair", `mean ${a}`, `mean ${b}`, "difference"];
  counted.replaceChildren(table(titles, rows), el("p", { id: "differ" }));
  compared.rows = examples.keys.map((key, i) => exampleRow(key, i, examples, pairs)).filter((row) => row.gap !== 0);
  compared.pairs = pairs.length;
  compared.binary = binary;
  $("differ").textContent = `${grouped.format(compared.rows.length)} of ${plural(n, "example")} differ${pairs.length > 1 ? " over these seeds" : ""}.`;
  differing.box.hidden = !compared.rows.length;
  showExamples("");
}

function contingency({ x, y }) {
  const count = (right, other) => x.reduce((sum, one, i) => sum + (one === right && y[i] === other), 0);
  return [count(1, 1), count(1, 0), count(0, 1), count(0, 0)];
}

function means({ x, y }) {
  const mean = (list) => list.reduce((sum, one) => sum + one, 0) / list.length;
  return [short(mean(x)), short(mean(y)), short(mean(x) - mean(y))];
}

function exampleRow(key, i, examples, pairs) {
  const said = (side) => unique(pairs.map((pair) => pair[side].answers?.[i]).filter((one) => one !== undefined)).join(" / ");
  const sum = (side) => pairs.reduce((total, pair) => total + pair[side][i], 0);
  return { key, label: examples.labels ? String(examples.labels[i]) : "", saidA: said("a"), saidB: said("b"), a: sum("x"), b: sum("y"), gap: sum("x") - sum("y") };
}

function showExamples(order) {
  const { a, b, rows, pairs, binary } = compared;
  const score = (value) => (binary ? `${value}/${pairs}` : short(value / pairs));
  const text = (title, key) => ({ title, left: true, key: (row) => row[key], show: (row) => row[key] });
  const number = (title, key) => ({ title, down: true, key: (row) => row[key], show: (row) => score(row[key]) });
  const columns = [
    text("example", "key"), text("label", "label"), text(`${a} says`, "saidA"), text(`${b} says`, "saidB"),
    number(`${binary ? "right" : "score"}: ${a}`, "a"), number(`${binary ? "right" : "score"}: ${b}`, "b"),
  ].filter((column) => column.title !== "label" || rows.some((row) => row.label));
  const largest = [...rows].sort((x, y) => Math.abs(y.gap) - Math.abs(x.gap));
  differing.show(largest, columns, order);
}

for (const [key, select] of Object.entries(picks)) select.addEventListener("change", () => change({ [key]: select.value }));
if (measuredColumns.length) {
  const titles = { of: "Measured by", model: "Model", a: "First", b: "Second", seed: "Seeds" };
  $("view-examples").append(
    el("p", { class: "note" }, "Examples that one of two rows gets right and the other wrong, paired by seed."),
    el("div", { class: "tools" }, ...Object.entries(titles).map(([key, title]) => el("label", {}, `${title} `, picks[key]))),
    counted, differing.box,
  );
  addView("examples", "Examples", ["of", "model", "a", "b", "seed"], drawExamples);
}
