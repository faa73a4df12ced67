"""`parebench-sweep retry`: the commands of a sweep once more, for just the cells that were asked for. Torch-free."""

import re
from collections.abc import Callable, Sequence

from harness import manifest
from harness.nearmiss import unknown
from harness.status import FAILED, UNFINISHED, Status
from harness.store import Store
from methods.spec import UserError

CLASSES = (*FAILED, "interrupted")
REPLACED = re.compile(r"\+*(run\.(retry|only|store)|hydra\.sweeper\.dry)=")
"""What of a stored command gives way to what `retry` says."""
PLAIN = re.compile(r"[A-Za-z0-9_./-]+")
"""Text that Hydra reads as it stands; all other is quoted."""


def chosen(cells: Sequence[Status], asked: Sequence[str]) -> list[Status]:
    """The cells of these classes and ids (a unique beginning is enough); none named = all that failed or were interrupted.

    Raises `UserError` for a name that is neither, and for a cell that cannot be retried: done, stale, running or skipped.
    """
    classes = set(asked) & set(CLASSES) if asked else set(CLASSES)
    ids = {_cell(cells, name).cell for name in asked if name not in CLASSES}
    return [cell for cell in cells if cell.state in classes or (cell.cell and cell.cell in ids)]


def commands(store: Store, sweep: str, cells: Sequence[Status]) -> list[list[str]]:
    """One command line of `parebench` per command of the sweep that has any of the cells; each cell in the newest that has it."""
    left = {cell.cell: cell.state for cell in cells}
    lines = []
    for command in reversed(manifest.commands(store.root, sweep)):
        own = {cell["cell"]: left.pop(cell["cell"]) for cell in command.cells if cell["cell"] in left}
        if own:
            lines.append(_line(command.argv, store, own))
    return lines[::-1]


def launch(lines: Sequence[Sequence[str]], run: Callable[[Sequence[str]], int]) -> int:
    """Run the command lines one after the other; the largest exit code. An interrupted one is the last."""
    worst = 0
    for line in lines:
        code = run(line)
        worst = max(worst, code)
        if code == 130:
            break
    return worst


def _line(argv: Sequence[str], store: Store, own: dict[str, str]) -> list[str]:
    classes = sorted(set(own.values()) & set(FAILED))  # an interrupted cell goes on without being told
    return [
        *(argument for argument in argv if not REPLACED.match(argument)),
        f"run.store={_quoted(str(store.root))}",
        f"run.retry=[{','.join(classes)}]",
        f"run.only=[{','.join(repr(cell) for cell in own)}]",  # quoted, since an id may look like a number
    ]


def _quoted(text: str) -> str:
    return text if PLAIN.fullmatch(text) else "'" + re.sub(r"(\\*)'", r"\1\1\'", text) + "'"


def _cell(cells: Sequence[Status], prefix: str) -> Status:
    found = [cell for cell in cells if cell.cell.startswith(prefix) and cell.cell]
    if not found:
        raise UserError(f"{unknown('the class', prefix, CLASSES, sign=' ')}, or the beginning of a cell id of the sweep")
    if len(found) > 1:
        raise UserError(f"{prefix} begins the ids of {', '.join(cell.cell for cell in found)}; give more of it")
    if found[0].state not in (*UNFINISHED, "missing"):
        raise UserError(f"cell {found[0].cell} is {found[0].state} and cannot be retried; run.force=true runs a finished cell again")
    return found[0]
