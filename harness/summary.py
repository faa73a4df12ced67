"""What a person sees of a sweep: one line per finished cell, then what was done, skipped and failed."""

import threading
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.dispatch import Outcome, read_outcome
from harness.plan import DONE, DUPLICATE, RUN, SKIPPED, Planned, changed
from harness.record import Record
from harness.store import Store

PIPED_WIDTH = 200
"""Columns where the output is no terminal, so that a log keeps one row per line."""
console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=PIPED_WIDTH)


class Progress:
    """Counts the cells of a running sweep across threads."""

    def __init__(self, total: int) -> None:
        self.total, self.ended = total, 0
        self.lock = threading.Lock()

    def line(self, outcome: Outcome, store: Store, values: str) -> None:
        """Print how one cell ended; `values` are those that set it apart."""
        record = store.record(outcome.cell)
        name = f"{outcome.label} {values}".strip()
        ending = f"{outcome.status} in {outcome.seconds:.0f} s{'  ' + headline(record) if record else ''}"
        with self.lock:
            self.ended += 1
            console.print(f"[{self.ended}/{self.total}] {name}: {ending}", markup=False)


def headline(record: Record) -> str:
    """The primary number of each result: `glue/sst2@heldout 0.843`."""
    return ", ".join(f"{r.protocol}{_variant(r.variant)} {r.metrics[r.primary]:.4g}" for r in record.results)


def show_plan(cells: Sequence[Planned]) -> None:
    """One line before the sweep starts."""
    count = Counter(cell.state for cell in cells)
    parts = [f"{count[RUN]} to run", f"{count[DONE]} already done", f"{count[SKIPPED]} skipped", f"{count[DUPLICATE]} duplicates"]
    console.print(f"{len(cells)} cells: {', '.join(parts)}", markup=False)


def show_sweep(cells: Sequence[Planned]) -> int:
    """The summary of a sweep, read from the store; the exit code: 0 only if every cell is done or skipped."""
    distinct = [cell for cell in cells if cell.state in (RUN, DONE)]
    failed = [cell for cell in distinct if Store(cell.resolved.run.store).record(cell.cell) is None]
    skipped = Counter(cell.reason for cell in cells if cell.state == SKIPPED)
    console.print(f"{len(distinct) - len(failed)} done, {sum(skipped.values())} skipped, {len(failed)} failed", markup=False)
    if skipped:
        _print_table(("skipped", "because"), [(str(n), reason) for reason, n in skipped.items()])
    if failed:
        _print_table(("failed", "how", "last line", "log"), [_failure(cell) for cell in failed])
    return 1 if failed else 0


def show_cell(planned: Planned, outcome: Outcome) -> None:
    """The summary of a single cell."""
    record = Store(planned.resolved.run.store).record(planned.cell)
    console.print(f"cell {planned.cell}  {planned.label}: {outcome.status}, {planned.folder}", markup=False)
    if record is None:
        _print_table(("how", "last line", "log"), [_failure(planned)[1:]])
        return
    rows = [(r.protocol, r.variant, name, f"{value:.4g}", str(r.n)) for r in record.results for name, value in r.metrics.items()]
    _print_table(("protocol", "variant", "metric", "value", "n"), rows)


def _failure(cell: Planned) -> tuple[str, str, str, str]:
    outcome = read_outcome(cell.folder)
    name = f"{cell.label} {changed(cell.overrides)}".strip()
    if outcome is None:
        return name, "not started", "", ""
    return name, outcome.status, outcome.lines[-1] if outcome.lines else "", str(cell.folder / "log.txt")


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*[escape(value) for value in row])
    console.print(table)


def _variant(name: str) -> str:
    return "" if name == "main" else f" ({name})"
