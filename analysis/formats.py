"""A table as markdown, CSV, LaTeX (booktabs) or on the terminal (rich). Every name is escaped for its format."""

import csv
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from analysis.compare import Comparison
from analysis.metrics import LOG_SCALE
from analysis.tables import Block, Cell, Column, Row, Span, Table

DASH = "–"  # noqa: RUF001
TIMES = "×"  # noqa: RUF001
TIED = "†"
SIDES = ("train %", "head %", "zeros %", "MB", "ship MB", "s")
DETECTABLE = "min. detectable difference"
LEGEND = (
    "mean ± standard deviation over seeds (seeds in brackets; k/n: only k of n finished, not ranked); det.: no seed can change it",
    f"bold: best of its model; {TIED}: cannot be told from it (paired over seeds and examples, Holm at 5 %); {DASH}: no record",
    "min. detectable difference of two rows: two-sided 5 %, power 80 %",
    "train and head: trainable parameters of the method and of the head, % of all; zeros: % of the prunable weights, as exported",
    "MB: exported weights; ship MB: what differs from the base model; s: seconds per cell, evaluation included",
)


@dataclass(frozen=True)
class Entry:
    """One cell as text, before escaping."""

    text: str
    bold: bool = False
    tied: bool = False


def header(block: Block) -> list[str]:
    """Titles of the columns of a block."""
    arrow = {True: "↑", False: "↓"}
    return ["model", "method", *(f"{c.name} {c.metric} {arrow[c.higher_is_better]}" for c in block.columns), *SIDES]


def grid(block: Block) -> list[list[Entry]]:
    """Rows of a block, those of a model followed by the differences that its columns can show."""
    lines = []
    for model in block.models:
        lines += [_line(row, block.columns) for row in block.rows if row.model == model]
        lines.append([Entry(model), Entry(DETECTABLE), *(_detectable(c, model) for c in block.columns), *(Entry("") for _ in SIDES)])
    return lines


def _line(row: Row, columns: list[Column]) -> list[Entry]:
    return [Entry(row.model), Entry(row.label), *(entry(row.cells[c.name], c.decimals) for c in columns), *map(Entry, sides(row))]


def entry(cell: Cell, decimals: int) -> Entry:
    """`0.861 ± 0.004 (3)`, `0.500 (det.)`, `0.861 ± 0.004 (2/3)`, or `0/3` where every seed failed.

    A change shows its interval in place of the spread: `+0.02 [-0.01, +0.05] (3)`.
    """
    if not cell.values:
        return Entry(f"0/{cell.attempted}" if cell.attempted else DASH)
    number = f"{cell.center:.{decimals}f}"
    spread = "" if cell.std is None else f" ± {cell.std:.{decimals}f}"
    if cell.interval is not None:
        low, high = cell.interval
        number, spread = f"{cell.center:+.{decimals}f}", f" [{low:+.{decimals}f}, {high:+.{decimals}f}]"
    count = f"{len(cell.values)}" if cell.complete else f"{len(cell.values)}/{cell.attempted}"
    return Entry(f"{number}{spread} ({'det.' if cell.deterministic and cell.complete else count})", cell.best, cell.tied)


def sides(row: Row) -> list[str]:
    """The side columns of a row: one value, or the range over its cells."""
    costs = row.costs
    spans = (costs.trainable_method, costs.trainable_head, costs.sparsity, costs.bytes, costs.bytes_shipped, costs.seconds)
    return [_shown(span, unit) for span, unit in zip(spans, (1, 1, 1, 1e6, 1e6, 1), strict=True)]


def _shown(span: Span | None, unit: float) -> str:
    if span is None:
        return DASH
    ends = (span.low / unit, span.high / unit)
    return DASH.join(dict.fromkeys(f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in ends))


def _detectable(column: Column, model: str) -> Entry:
    value = column.detectable.get(model)
    if value is None:
        return Entry(DASH)
    return Entry(f"{TIMES}{math.exp(value):.{column.decimals}f}" if column.metric in LOG_SCALE else f"{value:.{column.decimals}f}")


def sentence(comparison: Comparison, decimals: int) -> str:
    """`magnitude vs full_ft: -0.012 [-0.031, 0.006], n=3 seeds x 872 examples, p=0.210 (pooled seed variance)`."""
    head = f"{comparison.column}, {comparison.model}: {comparison.a} vs {comparison.b}: "
    found = comparison.difference
    if found is None:
        return f"{head}not compared, since {comparison.problem}"
    scaled = [math.exp(v) if comparison.ratio else v for v in (found.value, found.low, found.high)]
    value, low, high = (f"{v:.{decimals}f}" if comparison.ratio else f"{v:+.{decimals}f}" for v in scaled)
    seeds = "1 seed" if found.seeds == 1 else f"{found.seeds} seeds"
    p = "p<0.001" if found.p < 0.001 else f"p={found.p:.3f}"
    return f"{head}{TIMES if comparison.ratio else ''}{value} [{low}, {high}], n={seeds} x {found.examples} examples, {p} ({found.how})"


def sentences(table: Table) -> list[str]:
    """The comparisons of a table."""
    decimals = {column.name: column.decimals for column in table.columns}
    return [sentence(comparison, decimals[comparison.column]) for comparison in table.comparisons]


def markdown(table: Table) -> str:
    """GitHub-flavoured markdown."""
    parts = [f"## {_markdown(table.title)}"] + ([f"**{_markdown(table.heading)}**"] if table.heading else [])
    for block in table.blocks():
        lines = [[_markdown(title) for title in header(block)], ["---"] * 2 + ["---:"] * (len(header(block)) - 2)]
        lines += [[_markdown_entry(e) for e in line] for line in grid(block)]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    if table.comparisons:
        parts.append("Paired differences (95 % interval):\n\n" + "\n".join(f"- {_markdown(text)}" for text in sentences(table)))
    parts.append("Notes:\n\n" + "\n".join(f"- {_markdown(note)}" for note in (*LEGEND, *table.footnotes)))
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    """Backslashes before what markdown would read, entities for what HTML would."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|~#$" else c for c in text)


def _markdown_entry(entry: Entry) -> str:
    text = _markdown(entry.text)
    return (f"**{text}**" if entry.bold else text) + (TIED if entry.tied else "")


def latex(table: Table) -> str:
    """`tabular` environments with booktabs; needs `\\usepackage{booktabs}`."""
    parts = [f"% {_latex(table.title)}"] + ([rf"\textbf{{{_latex(table.heading)}}}\par"] if table.heading else [])
    for block in table.blocks():
        titles = header(block)
        lines = [rf"\begin{{tabular}}{{ll{'r' * (len(titles) - 2)}}}", r"\toprule"]
        lines += [_latex_line(_latex(title) for title in titles), r"\midrule"]
        lines += [_latex_line(_latex_entry(e) for e in line) for line in grid(block)]
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}\par"]))
    notes = (*sentences(table), *LEGEND, *table.footnotes)
    parts.append("\\begin{itemize}\\footnotesize\n" + "\n".join(rf"\item {_latex(note)}" for note in notes) + "\n\\end{itemize}")
    return "\n\n".join(parts) + "\n"


LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "{''}", "±": r"$\pm$", TIMES: r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    TIED: r"$^\dagger$", DASH: "--", **{c: f"\\{c}" for c in "&%$#_{}"}, "[": "{[}", "]": "{]}",
}  # fmt: skip
"""Brackets are wrapped, since one after a line break would be read as its optional argument."""


def _latex(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in " ".join(text.split()))


def _latex_entry(entry: Entry) -> str:
    text = _latex(entry.text)
    return (rf"\textbf{{{text}}}" if entry.bold else text) + (LATEX[TIED] if entry.tied else "")


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def csv_text(table: Table) -> str:
    """One line per row and protocol, numbers in full; text that a spreadsheet would run as a formula is quoted with `'`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_TITLES)
    for row in table.rows:
        for column in table.columns:
            if row.cells[column.name].attempted or row.cells[column.name].missing != "not run":
                writer.writerow([_csv(value) for value in _csv_line(row, column)])
    return out.getvalue()


COSTS = (
    "trainable_parameters", "trainable_method_percent", "trainable_head_percent", "zeros_percent_of_prunable",
    "bytes", "bytes_shipped", "seconds",
)  # fmt: skip
"""Of `analysis.tables.Costs`, in its order; means over the seeds."""
CSV_TITLES = (
    "model", "method", "protocol", "metric", "mean", "std", "seeds", "attempted", "deterministic", "best", "tied", "missing",
    "min_detectable_difference", *COSTS,
)  # fmt: skip


def _csv_line(row: Row, column: Column) -> list[object]:
    cell = row.cells[column.name]
    return [
        row.model, row.label, column.name, column.metric, cell.center if cell.values else None, cell.std, len(cell.values), cell.attempted,
        int(cell.deterministic), int(cell.best), int(cell.tied), cell.missing, column.detectable.get(row.model),
        *(span.mean if span else None for span in vars(cell.costs).values()),
    ]  # fmt: skip


def _csv(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.10g}"
    if not isinstance(value, str):
        return value
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value


def terminal(table: Table) -> Group:
    """What rich prints: one table per model, which is its title."""
    parts: list[Text | RichTable] = [Text(table.title, style="bold"), *([Text(table.heading, style="yellow")] if table.heading else [])]
    for block in table.blocks():
        parts += [_rich(Block(block.columns, [row for row in block.rows if row.model == model])) for model in block.models]
    parts += [Text(f"- {text}") for text in sentences(table)]
    return Group(*parts, *(Text(f"- {note}", style="dim") for note in (*LEGEND, *table.footnotes)))


def _rich(block: Block) -> RichTable:
    shown = RichTable(title=Text(block.models[0]), title_justify="left", box=SIMPLE, padding=(0, 1), pad_edge=False, collapse_padding=True)
    shown.add_column("method", min_width=14, overflow="fold")
    for title in header(block)[2:]:
        shown.add_column(Text(title.replace(" ", "\n", 1)), justify="right", no_wrap=True)
    for line in grid(block):
        shown.add_row(*(Text(e.text + (TIED if e.tied else ""), style="bold green" if e.bold else "") for e in line[1:]))
    return shown


def natural_width(shown: Group) -> int:
    """Columns that the widest table of `terminal(...)` needs: with fewer, rich cuts numbers and drops the methods' names."""
    wide = Console(width=10_000)
    return max((Measurement.get(wide, wide.options, part).maximum for part in shown.renderables if isinstance(part, RichTable)), default=0)


def plain(table: Table, width: int = 160) -> str:
    """The terminal form as text, for a file."""
    out, shown = io.StringIO(), terminal(table)
    Console(width=max(width, natural_width(shown)), file=out, force_terminal=False).print(shown)
    return out.getvalue()
