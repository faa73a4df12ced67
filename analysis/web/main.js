// The frame: navigation, filters, notes, how the page was made.
const FILTERS = { results: ["family", "model", "task"], cost: ["family", "model"], cells: ["family", "model", "task"], claims: ["verdict", "kind"] };
const allRows = data.blocks.flatMap((block) => block.rows);
const any = (texts) => [["", "all"], ...unique(texts).sort(collator.compare).map((text) => [text, text])];
const CHOICES = {
  family: any([...allRows, ...results].map((row) => row.family)), model: any([...allRows, ...results].map((row) => row.model)),
  task: any([...data.columns.map((column) => column.task)]), verdict: any(data.claims.map((claim) => claim.verdict)),
  kind: any(data.claims.map((claim) => claim.kind)),
};

// An address may name what this page does not have: such a filter is none.
function knownFilters(given) {
  const known = Object.entries(CHOICES).map(([key, pairs]) => [key, pairs.some(([value]) => value === given[key]) ? given[key] : ""]);
  return { ...given, ...Object.fromEntries(known) };
}

const tabs = new Map();

function drawFrame(name) {
  if (!tabs.size) for (const [view, { title }] of views) tabs.set(view, el("a", {}, title));
  if (!$("nav").children.length) $("nav").append(...tabs.values());
  for (const [view, link] of tabs) {
    link.href = linkTo({ view, cell: "", sort: "" });
    view === name ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  $("filters").hidden = ["notes", "examples"].includes(name);
  if (document.activeElement !== $("q")) $("q").value = state.q;
  for (const key of Object.keys(CHOICES)) {
    $(`${key}-label`).hidden = !(FILTERS[name] ?? []).includes(key);
    $(key).value = state[key];
  }
  $("theme").value = state.theme;
}

function drawNotes() {
  const parts = [["Paired differences (95 % interval)", data.compared], ["Notes", data.notes], ["How to read the tables", data.legend]];
  const shown = parts.filter(([, texts]) => texts.length).map(([title, texts]) => section(title, listOf(texts, "notes")));
  $("view-notes").replaceChildren($("h-notes"), ...shown);
}

function drawMade() {
  const { when, command, versions, rows, sources, cells } = data.made;
  const files = Object.entries(sources).map(([path, digests]) => [path, digests.join(", ")]);
  const how = [when && `Made ${when}`, cells && `from ${plural(cells, "cell")}`, command && "by "].filter(Boolean).join(" ");
  $("made").append(
    el("h2", {}, "How this page was made"), el("p", {}, how || "Made by ", el("code", {}, command || "parebench-report"), "."),
    el("p", {}, versions.join("; ")),
    folded("Data rows and their hashes", table(["column", "examples", "from", "sha256"], rows)),
    ...(files.length ? [folded("Sources of the methods and their hashes", table(["file", "hash"], files))] : []),
  );
}

function folded(title, content) {
  return el("details", {}, el("summary", {}, title), content);
}

for (const [key, pairs] of Object.entries(CHOICES)) {
  options($(key), pairs, state[key]);
  $(key).addEventListener("change", () => change({ [key]: $(key).value }));
}
$("q").addEventListener("input", () => change({ q: $("q").value }));
$("theme").addEventListener("change", () => change({ theme: $("theme").value }));
// The address holds the state, so the link to the content must not replace it.
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});
if (data.heading) Object.assign($("heading"), { textContent: data.heading, hidden: false });
addView("notes", "Notes", [], drawNotes);
drawMade();
render();
addEventListener("resize", () => state.view === "cost" && drawPareto());
