// Axes shared by all plots.
function scale(values, low, high, mayLog) {
  const positive = values.filter((x) => x > 0);
  const log = mayLog && positive.length > 0 && Math.min(...values) >= 0 && Math.max(...positive) / Math.min(...positive) >= 10;
  // Costs span orders of magnitude: a log axis where the positive values differ tenfold, with 0 one decade below them.
  const floor = Math.floor(Math.log10(Math.min(...positive))) - 1;
  const map = (x) => (log ? (x > 0 ? Math.log10(x) : floor) : x);
  const mapped = values.map(map);
  let min = Math.min(...mapped), max = Math.max(...mapped);
  const pad = (max - min) * 0.06 || Math.abs(max) * 0.1 || 1;
  [min, max] = [mayLog && !log && min >= 0 ? Math.max(0, min - pad) : min - pad, max + pad];
  const place = (x) => low + ((map(x) - min) / (max - min)) * (high - low);
  const zero = log && positive.length < values.length;
  return { place, ticks: log ? [...(zero ? [0] : []), ...decades(zero ? floor + 1 : min, max)] : even(min, max) };
}

function decades(min, max) {
  const factors = max - min < 2.2 ? [1, 2, 5] : [1];
  const step = Math.max(1, Math.ceil((max - min) / 6));
  const found = [];
  for (let at = Math.floor(min); at <= max; at += step) found.push(...factors.map((factor) => factor * 10 ** at));
  return found.filter((tick) => Math.log10(tick) >= min && Math.log10(tick) <= max);
}

function even(min, max, count = 6) {
  const rough = (max - min) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let at = Math.ceil(min / step) * step; at <= max + 1e-12; at += step) found.push(+at.toPrecision(10));
  return found;
}

function axes(plot, x, y, box, labels) {
  for (const tick of x.ticks) {
    plot.append(svg("line", { class: "grid", x1: x.place(tick), x2: x.place(tick), y1: box.top, y2: box.bottom }));
    plot.append(svg("text", { x: x.place(tick), y: box.bottom + 16, "text-anchor": "middle" }, short(tick)));
  }
  for (const tick of y.ticks) {
    plot.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y.place(tick), y2: y.place(tick) }));
    plot.append(svg("text", { x: box.left - 6, y: y.place(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  plot.append(svg("text", { x: box.right, y: box.bottom + 34, "text-anchor": "end" }, labels.x));
  plot.append(svg("text", { x: 4, y: 14 }, labels.y));
}

const pathOf = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

// A curve of one value is a sentence; of several, a plot of which the pointer, or the arrow keys, read a point.
function curve(name, steps, values, size) {
  return values.length > 1 ? drawnCurve(name, steps, values, size) : el("p", {}, `${name}: ${short(values[0])} at step ${full(steps[0])}`);
}

function drawnCurve(name, steps, values, size) {
  const box = { left: 52, right: size.width - 10, top: 26, bottom: size.height - 40 };
  const plot = svg("svg", { class: "plot", width: size.width, height: size.height, tabindex: 0, role: "img" });
  const x = scale(steps, box.left, box.right, false), y = scale(values, box.bottom, box.top, false);
  axes(plot, x, y, box, { x: "step", y: name });
  const points = steps.map((step, i) => [x.place(step), y.place(values[i])]);
  const dot = svg("circle", { r: 4, class: "dot", visibility: "hidden" });
  const said = svg("text", { class: "said", x: box.right, y: 14, "text-anchor": "end" });
  plot.append(svg("path", { class: "curve", d: pathOf(points) }), dot, said);
  let at = values.length - 1;
  const read = (i) => {
    at = Math.max(0, Math.min(values.length - 1, i));
    dot.setAttribute("cx", points[at][0]);
    dot.setAttribute("cy", points[at][1]);
    dot.setAttribute("visibility", "visible");
    said.textContent = `${short(values[at])} at step ${full(steps[at])}`;
    plot.setAttribute("aria-label", `${name}: ${short(values[at])} at step ${full(steps[at])}; lowest ${short(Math.min(...values))}, highest ${short(Math.max(...values))}`);
  };
  read(at);
  plot.addEventListener("pointermove", (event) => read(nearest(points, event.clientX - plot.getBoundingClientRect().left)));
  plot.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: values.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    read(to);
  });
  return plot;
}

function nearest(points, x) {
  let best = 0;
  points.forEach((point, i) => { if (Math.abs(point[0] - x) < Math.abs(points[best][0] - x)) best = i; });
  return best;
}
