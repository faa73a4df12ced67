"""A table as text: what its cells, side columns, comparisons and rankings say, and its CSV. Forms are in `analysis.render`."""

import csv
import io
import math
from collections.abc import Iterable

from rich.console import Group

from analysis import render
from analysis.compare import Comparison
from analysis.metrics import LOG_SCALE
from analysis.render import TIED, TIMES, Entry, Grid, Sheet, natural_width
from analysis.sides import DASH, DEFAULT, SIDES, origin, trials
from analysis.stats import ENOUGH_SEEDS
from analysis.tables import Across, Block, Cell, Column, Row, Table

__all__ = ["DASH", "TIED", "TIMES", "Entry", "natural_width"]

DETECTABLE = "min. detectable difference"
LEGEND = (
    "mean ± standard deviation over seeds (seeds in brackets; k/n: only k of n finished, not ranked); det.: no seed can change it",
    f"bold: best of its model; {TIED}: cannot be told from it (paired over seeds and examples, Holm at 5 %; with fewer than {ENOUGH_SEEDS} "
    f"seeds the seed variance is pooled over the column); {DASH}: no record",
    "min. detectable difference of two rows: two-sided 5 %, power 80 %",
    "train and head: trainable parameters of the method and of the head, % of all; zeros: % of the prunable weights, as exported",
    "MB: exported weights; ship MB: what differs from the base model; s: seconds per cell, evaluation included",
    "trials, origin: where the learning rate came from (tuned: our search of that many trials on selection rows; paper; default; override)",
)


def header(block: Block) -> list[str]:
    """Titles of the columns of a block."""
    return ["model", "method", *map(title, block.columns), *(SIDES[name].title for name in DEFAULT)]


def title(column: Column) -> str:
    """`glue/sst2@heldout accuracy ↑`."""
    return f"{column.name} {column.metric} {'↑' if column.higher_is_better else '↓'}"


def grid(block: Block) -> list[list[Entry]]:
    """Rows of a block, those of a model followed by the differences that its columns can show."""
    lines = []
    for model in block.models:
        lines += [_line(row, block.columns) for row in block.rows if row.model == model]
        lines.append([Entry(model), Entry(DETECTABLE), *(_detectable(c, model) for c in block.columns), *(Entry("") for _ in DEFAULT)])
    return lines


def _line(row: Row, columns: list[Column]) -> list[Entry]:
    return [Entry(row.model), Entry(row.label), *(entry(row.cells[c.name], c.decimals) for c in columns), *map(Entry, sides(row))]


def entry(cell: Cell, decimals: int) -> Entry:
    """`0.861 ± 0.004 (3)`, `0.500 (det.)`, `0.861 ± 0.004 (2/3)`, or `0/3` where every seed failed; `leaky` behind where it is.

    A change shows its interval in place of the spread: `+0.02 [-0.01, +0.05] (3)`.
    """
    if not cell.values:
        return Entry(f"0/{cell.attempted}" if cell.attempted else DASH)
    number = f"{cell.center:.{decimals}f}"
    spread = "" if cell.std is None else f" ± {cell.std:.{decimals}f}"
    if cell.interval is not None:
        low, high = cell.interval
        number, spread = f"{cell.center:+.{decimals}f}", f" [{low:+.{decimals}f}, {high:+.{decimals}f}]"
    return Entry(f"{number}{spread} ({count(cell)}){' leaky' if cell.leaky else ''}", cell.best, cell.tied)


def count(cell: Cell) -> str:
    """`3`, `2/3` or `det.`: what a value is over."""
    if cell.complete:
        return "det." if cell.deterministic else f"{len(cell.values)}"
    return f"{len(cell.values)}/{cell.attempted}"


def sides(row: Row) -> list[str]:
    """The side columns of a row."""
    return [SIDES[name].text(row) for name in DEFAULT]


def side_numbers(row: Row) -> list[float | None]:
    """What its side columns are sorted by."""
    return [SIDES[name].number(row) for name in DEFAULT]


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
    shown = f"{TIMES if comparison.ratio else ''}{value} [{low}, {high}]"
    return f"{head}{shown}, n={seeds} x {found.examples} examples, {p_value(found.p)} ({found.how})"


def p_value(value: float) -> str:
    """`p=0.012`, or `p<0.001`."""
    return "p<0.001" if value < 0.001 else f"p={value:.3f}"


def sentences(table: Table) -> list[str]:
    """The comparisons of a table."""
    decimals = {column.name: column.decimals for column in table.columns}
    return [sentence(comparison, decimals[comparison.column]) for comparison in table.comparisons]


RANKED = ["model", "method", "mean rank ↓", "wins", "ties", "losses"]


def ranked(across: Across) -> Grid:
    """A ranking across tasks, with what can be told apart in its caption."""
    found = across.ranking
    groups = "; ".join(f"{{{', '.join(group)}}}" for group in found.groups) or "none"
    tasks = ", ".join(task.removesuffix(f"@{across.form}") for task in found.tasks)
    test = "" if found.p is None else f"Friedman {p_value(found.p)}; "
    caption = (
        f"{across.model}, {len(found.tasks)} tasks @{across.form} ({tasks}): {test}critical difference of mean ranks "
        f"{found.critical_difference:.2f} (Nemenyi, 5 %), not told apart by it: {groups}; wins, ties and losses against each other row "
        "on each task (paired, Holm at 5 %)"
    )
    lines = [
        [Entry(text) for text in (across.model, one.label, f"{one.rank:.2f}", str(one.wins), str(one.ties), str(one.losses))]
        for one in found.standings
    ]
    return Grid(RANKED, lines, 2, caption)


def sheet(table: Table) -> Sheet:
    """A table with the model in its first column."""
    blocks = [Grid(header(block), grid(block), 2) for block in table.blocks()]
    return Sheet(table.title, table.heading, blocks + list(map(ranked, table.rankings)), [*LEGEND, *table.footnotes], sentences(table))


def sheet_by_model(table: Table) -> Sheet:
    """A table in one grid per model, which is its caption."""
    parts = [(model, Block(b.columns, [row for row in b.rows if row.model == model])) for b in table.blocks() for model in b.models]
    grids = [Grid(header(part)[1:], [line[1:] for line in grid(part)], 1, model) for model, part in parts]
    across = [Grid(one.titles[1:], [line[1:] for line in one.lines], 1, one.caption) for one in map(ranked, table.rankings)]
    return Sheet(table.title, table.heading, grids + across, [*LEGEND, *table.footnotes], sentences(table))


def markdown(table: Table) -> str:
    """GitHub-flavoured markdown."""
    return render.markdown(sheet(table))


def latex(table: Table) -> str:
    """`tabular` environments with booktabs; needs `\\usepackage{booktabs}`."""
    return render.latex(sheet(table))


def terminal(table: Table) -> Group:
    """What rich prints: one table per model, which is its title."""
    return render.terminal(sheet_by_model(table))


def plain(table: Table, width: int = 160) -> str:
    """The terminal form as text, for a file."""
    return render.plain(sheet_by_model(table), width)


def csv_text(table: Table) -> str:
    """One line per row and protocol, numbers in full; text that a spreadsheet would run as a formula is quoted with `'`."""
    lines = (
        _csv_line(row, column)
        for row in table.rows
        for column in table.columns
        if row.cells[column.name].attempted or row.cells[column.name].missing != "not run"
    )
    return csv_lines([CSV_TITLES, *lines])


COSTS = (
    "trainable_parameters", "trainable_method_percent", "trainable_head_percent", "zeros_percent_of_prunable",
    "bytes", "bytes_shipped", "seconds", "training_flops", "peak_memory_bytes",
)  # fmt: skip
"""Of `analysis.tables.Costs`, in its order; means over the seeds."""
CSV_TITLES = (
    "model", "method", "protocol", "metric", "mean", "std", "seeds", "attempted", "deterministic", "best", "second", "tied", "leaky",
    "missing", "min_detectable_difference", "trials", "origin", *COSTS,
)  # fmt: skip


def _csv_line(row: Row, column: Column) -> list[object]:
    cell = row.cells[column.name]
    own = Row(row.model, row.label, {column.name: cell}, cell.costs)
    return [
        row.model, row.label, column.name, column.metric, cell.center if cell.values else None, cell.std, len(cell.values), cell.attempted,
        int(cell.deterministic), int(cell.best), int(cell.second), int(cell.tied), int(cell.leaky), cell.missing,
        column.detectable.get(row.model), *(None if text == DASH else text for text in (trials(own), origin(own))),
        *(span.mean if span else None for span in vars(cell.costs).values()),
    ]  # fmt: skip


def csv_lines(lines: Iterable[Iterable[object]]) -> str:
    """CSV of any values, each escaped."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([_csv(value) for value in line] for line in lines)
    return out.getvalue()


def _csv(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.10g}"
    if not isinstance(value, str):
        return value
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value
