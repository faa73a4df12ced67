"""What `parebench-sweep plan` shows of a grid that is not started: cells, skips with reasons, forecasts. Torch-free."""

from collections import Counter
from collections.abc import Sequence

from harness.forecast import NONE, SAME, SIMILAR, Earlier, Estimate, Forecast, forecast
from harness.human import changed, columns, duration, size
from harness.plan import RUN, SKIPPED, Planned
from harness.status import records
from harness.store import Store

BASIS = {SAME: "as earlier cells like it", SIMILAR: "scaled from other methods", NONE: "no earlier record"}


def text(cells: Sequence[Planned], workers: int) -> str:
    """The whole answer, several lines."""
    todo = [cell for cell in cells if cell.state == RUN]
    estimates = _estimates(todo)
    count = Counter(cell.state for cell in cells)
    parts = [f"{len(cells)} cells: {', '.join(f'{n} {name}' for name, n in count.items())}\n"]
    if skipped := Counter(cell.reason for cell in cells if cell.state == SKIPPED):
        parts += ["\n", columns([("skipped", "because"), *((str(n), reason) for reason, n in skipped.items())])]
    if todo:
        rows = [_row(cell, one) for cell, one in zip(todo, estimates, strict=True)]
        parts += ["\n", columns([("to run", "cell", "values", "time", "forecast"), *rows])]
        parts += ["\n", _sentence(forecast(estimates, workers), len(todo), workers)]
    return "".join(parts)


def _estimates(todo: Sequence[Planned]) -> list[Estimate]:
    earlier: dict[str, Earlier] = {}
    for root in {cell.resolved.run.store for cell in todo}:
        earlier[root] = Earlier(Store(root), list(records(Store(root))))
    return [earlier[cell.resolved.run.store].estimate(cell.identity.canonical, cell.resolved.run.keep_model) for cell in todo]


def _row(cell: Planned, one: Estimate) -> tuple[str, ...]:
    seconds = "" if one.basis == NONE else duration(one.seconds)
    return cell.cell, cell.label, changed(cell.overrides), seconds, BASIS[one.basis]


def _sentence(found: Forecast, cells: int, workers: int) -> str:
    """`about 0:40 with 2 workers and 3.1 MB on disk; of 5 cells 3 as earlier cells like it, 2 no earlier record (not counted)`."""
    if found.basis.get(NONE) == cells:
        return "no forecast: the store has no record of such a model and task\n"
    basis = [f"{found.basis[name]} {BASIS[name]}{' (not counted)' * (name == NONE)}" for name in BASIS if found.basis.get(name)]
    on = f"{workers} worker{'s' * (workers != 1)}"
    return f"about {duration(found.seconds)} with {on} and {size(found.bytes)} on disk; of {cells} cells: {', '.join(basis)}\n"
