// A sortable table that makes rows as they are scrolled to. Within it the arrow keys move from cell to cell.
const STEP = 60;
const collator = new Intl.Collator("en", { numeric: true });

function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null); // empty cells stay last in both directions
  return sign * (typeof a === "number" ? a - b : collator.compare(a, b));
}

class Grid {
  // columns: { title, key(row) -> number, text or null, show(row) -> text or element, left, down, kind, tip }; sorted: (title, up) => void
  constructor(caption, sorted) {
    this.head = el("tr");
    this.body = el("tbody");
    this.foot = el("tfoot");
    this.table = el("table", { role: "grid", "aria-label": caption }, el("thead", {}, this.head), this.body, this.foot);
    this.box = el("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" }, this.table);
    this.sorted = sorted;
    this.box.addEventListener("scroll", () => this.more());
    this.table.addEventListener("keydown", (event) => this.move(event));
    this.table.addEventListener("focusin", (event) => this.rove(event.target.closest("tbody button")));
  }

  // order: "title up", "title down" or "" (as given).
  show(rows, columns, order = "", feet = []) {
    this.columns = columns;
    const at = order.lastIndexOf(" ");
    const title = order.slice(0, at), up = order.slice(at + 1) === "up";
    const by = columns.find((column) => column.title === title);
    this.rows = by ? sortedBy(rows, by.key, up ? 1 : -1) : rows;
    this.table.setAttribute("aria-rowcount", rows.length + 1 + feet.length);
    this.head.replaceChildren(...columns.map((column) => this.title(column, column === by ? up : null)));
    this.body.replaceChildren();
    this.foot.replaceChildren(...feet.map((line) => el("tr", {}, ...line.map((text, i) => cellOf(columns[i], i, text)))));
    this.box.scrollTop = 0;
    if (!rows.length) this.body.append(el("tr", {}, el("td", { class: "text", colspan: columns.length }, "Nothing matches these filters.")));
    this.extend(STEP);
    this.rove(this.body.querySelector("button"));
  }

  title(column, up) {
    const next = up === null ? !(column.down ?? false) : !up;
    const made = button(column.title, {}, () => this.sorted(column.title, next));
    if (column.tip) explain(made, () => column.tip);
    const sort = up === null ? undefined : up ? "ascending" : "descending";
    return el("th", { scope: "col", class: classOf(column), "aria-sort": sort }, made);
  }

  extend(count) {
    const from = this.body.rows.length;
    const made = this.rows.slice(from, from + count).map((row, i) => this.line(row, from + i));
    this.body.append(...made);
  }

  line(row, index) {
    return el("tr", { "aria-rowindex": index + 2 }, ...this.columns.map((column, i) => cellOf(column, i, column.show(row))));
  }

  more() {
    const near = this.box.scrollTop + 2 * this.box.clientHeight > this.box.scrollHeight;
    if (near && this.body.rows.length < this.rows.length) this.extend(STEP);
  }

  all() {
    this.extend(this.rows.length);
  }

  // One cell of the table is reached by the Tab key, the others from it.
  rove(to) {
    if (!to || to === this.current) return;
    this.current?.setAttribute("tabindex", "-1");
    this.current = to;
    to.setAttribute("tabindex", "0");
  }

  move(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    const cell = event.target.closest("tbody th, tbody td");
    if (!step || !cell) return;
    event.preventDefault();
    const next = this.next(cell, ...step);
    next?.focus();
    next?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  next(cell, down, right) {
    let row = cell.parentNode.sectionRowIndex, at = cell.cellIndex;
    while (true) {
      row += down;
      at += right;
      if (row >= this.body.rows.length - 1) this.extend(STEP);
      const found = this.body.rows[row]?.cells[at];
      if (!found) return null;
      if (found.querySelector("button")) return found.querySelector("button");
    }
  }
}

function sortedBy(rows, key, sign) {
  const keyed = rows.map((row) => [key(row), row]);
  return keyed.sort((a, b) => compare(a[0], b[0], sign)).map((pair) => pair[1]);
}

const classOf = (column) => [column.left && "text", column.kind].filter(Boolean).join(" ") || undefined;

function cellOf(column, index, content) {
  const kind = classOf(column);
  return index ? el("td", { class: kind }, content) : el("th", { scope: "row", class: kind }, content);
}

// Printing shows every row of the view that is open.
const grids = [];
function grid(caption, sorted) {
  grids.push(new Grid(caption, sorted));
  return grids.at(-1);
}
addEventListener("beforeprint", () => {
  for (const one of grids) if (one.box.checkVisibility()) one.all();
});
