// What is shown is a function of the state, and the state is the part of the address after #: links and the back button work.
const DEFAULTS = {
  view: "results", q: "", family: "", model: "", task: "", sort: "", cells: "", verdict: "", kind: "", cell: "", column: "0",
  cost: data.costs[0].key, of: "", a: "", b: "", seed: "", theme: "auto",
};
const views = new Map();
let state = fromHash();
let pending = 0;

function fromHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(Object.entries(DEFAULTS).map(([key, value]) => [key, given.get(key) ?? value]));
}

function hashOf(values) {
  const told = new URLSearchParams(Object.entries(values).filter(([key, value]) => value !== DEFAULTS[key]));
  return `#${told}`;
}

const linkTo = (patch) => hashOf({ ...state, ...patch });

// A typed filter replaces the address (after a pause, since browsers limit how often); opening something adds to the history.
function change(patch, adds = false) {
  state = { ...state, ...patch };
  clearTimeout(pending);
  if (adds) location.hash = hashOf(state);
  else pending = setTimeout(() => location.replace(hashOf(state)), 200);
  render();
}

addEventListener("hashchange", () => {
  const now = fromHash();
  if (hashOf(now) === hashOf(state)) return;
  state = now;
  render();
});

// A view is drawn again only where a part of the state that it depends on has changed.
function addView(name, title, depends, draw) {
  views.set(name, { title, depends, draw, drawn: null });
}

function render() {
  state = knownFilters(state);
  document.documentElement.dataset.theme = state.theme;
  const name = views.has(state.view) ? state.view : DEFAULTS.view;
  for (const other of views.keys()) $(`view-${other}`).hidden = other !== name;
  drawFrame(name);
  const view = views.get(name);
  const needs = JSON.stringify(view.depends.map((key) => state[key]));
  if (view.drawn !== needs) view.draw();
  view.drawn = needs;
  showCell();
}
