"""What a person sees of a sweep: one line per finished cell, then what was done, skipped and failed."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness import outcome as outcomes
from harness.human import changed
from harness.outcome import Outcome
from harness.plan import DONE, DUPLICATE, LEASED, RUN, SKIPPED, STALE, WAITING, Planned
from harness.store import REPLACED

FAILED = "failed"
PIPED_WIDTH = 200
"""Columns where the output is no terminal, so that a log keeps one row per line."""
console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=PIPED_WIDTH)


def show_plan(cells: Sequence[Planned]) -> None:
    """One line before the sweep starts: how many cells are in which state."""
    count = Counter(cell.state for cell in cells)
    words = {
        RUN: "to run", DONE: "already done", SKIPPED: "skipped", DUPLICATE: "duplicates",
        STALE: "stale", WAITING: "waiting for retry", LEASED: "in another sweep",
    }  # fmt: skip
    always = (RUN, DONE, SKIPPED, DUPLICATE)
    parts = [f"{count[state]} {word}" for state, word in words.items() if state in always or count[state]]
    console.print(f"{len(cells)} cells: {', '.join(parts)}", markup=False)
    for reason, n in Counter(cell.reason for cell in cells if cell.state == RUN and cell.reason.startswith("damaged")).items():
        console.print(f"{n} will be made anew, the old folder is kept under {REPLACED}: {reason}", markup=False)


def show_sweep(cells: Sequence[Planned]) -> int:
    """The summary of a sweep, read from the store; the exit code: 0 only if every cell is done or skipped as impossible."""
    distinct = [cell for cell in cells if cell.state not in (SKIPPED, DUPLICATE)]
    states = {cell.cell: _now(cell) for cell in distinct}
    failed = [cell for cell in distinct if states[cell.cell] == FAILED]
    old = [cell for cell in distinct if states[cell.cell] == STALE]
    skipped = Counter(cell.reason for cell in cells if cell.state == SKIPPED)
    done = len(distinct) - len(failed) - len(old)
    parts = [f"{done} done", f"{sum(skipped.values())} skipped", f"{len(failed)} failed", *([f"{len(old)} stale"] if old else [])]
    console.print(", ".join(parts), markup=False)
    if skipped:
        _print_table(("skipped", "because"), [(str(n), reason) for reason, n in skipped.items()])
    if old:
        _print_table(("stale", "because"), [(cell.label, cell.reason.removeprefix("stale: ")) for cell in old])
        console.print("give run.stale=rerun to make them anew (the old ones are kept aside) or run.stale=keep to take them", markup=False)
    if failed:
        _print_table(("failed", "how", "last line", "log"), [_failure(cell) for cell in failed])
    return 1 if failed or old else 0


def _now(cell: Planned) -> str:
    """A cell after the sweep: a record that was stale when planned and is still that one stays stale.

    A finished cell that was to be measured on more protocols or made again has failed where an outcome lies beside its record.
    """
    tried = cell.state in (RUN, LEASED, WAITING) and outcomes.read(cell.folder) is not None
    if tried or not cell.store.has_record(cell.cell):
        return FAILED
    return STALE if cell.state == STALE else DONE


def show_cell(planned: Planned, outcome: Outcome) -> None:
    """The summary of a single cell."""
    record = planned.store.record(planned.cell)
    console.print(f"cell {planned.cell}  {planned.label}: {outcome.status}, {planned.folder}", markup=False)
    if record is None or outcome.status != DONE:
        _print_table(("how", "last line", "log"), [_failure(planned)[1:]])
        return
    rows = [(r.protocol, r.variant, name, f"{value:.4g}", str(r.n)) for r in record.results for name, value in r.metrics.items()]
    _print_table(("protocol", "variant", "metric", "value", "n"), rows)


def _failure(cell: Planned) -> tuple[str, str, str, str]:
    outcome = outcomes.read(cell.folder)
    name = f"{cell.label} {changed(cell.overrides)}".strip()
    if outcome is None:
        return name, "not started", "", ""
    return name, outcome.status, outcome.lines[-1] if outcome.lines else "", str(cell.folder / "log.txt")


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == "log")  # a path is there to be copied
    for row in rows:
        table.add_row(*[escape(value) for value in row])
    console.print(table)
