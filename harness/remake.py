"""A finished cell whose weights are gone is made again, and must come out as it was. Torch-free."""

from pathlib import Path
from typing import Any

from harness.record import Record, Result
from harness.store import REPLACED, Store

MARK = "reproduce"
"""A file in a folder that was set aside: the cell that takes its place is held to it."""


class NotReproducedError(RuntimeError):
    """A cell was made again from equal sources under equal numerics, and its metrics are others."""


def mark(folder: Path) -> None:
    """Hold the next cell of this id to the record in `folder`, which is about to be set aside."""
    (folder / MARK).touch()


def release(store: Store, cell: str) -> None:
    """Hold a cell to no earlier record any more."""
    for folder in store.replaced(cell):
        (folder / MARK).unlink(missing_ok=True)


def awaited(store: Store, cell: str) -> tuple[Path, Record] | None:
    """The folder and the record that a cell in the making must reproduce; None where it is free."""
    marked = [folder for folder in store.replaced(cell) if (folder / MARK).exists()]
    record = Store(store.root / REPLACED).record(marked[-1].name) if marked else None
    return (marked[-1], record) if record else None


def compare(old: Record, new: Record, folder: Path) -> dict[str, Any]:
    """What the new record notes: the folder it `replaces`, and what `differs` in how it was made (then its metrics may differ too).

    Raises `NotReproducedError` where nothing differs and a metric of the old record has another value. Results of another protocol
    version or of other rows are not compared.
    """
    differs = [key for key in sorted({*old.numerics, *new.numerics}) if old.numerics.get(key) != new.numerics.get(key)]
    differs += ["sources"] if old.sources != new.sources else []
    differs += ["dependencies"] if _weights(old) != _weights(new) else []
    if not differs:
        for result in old.results:
            _compare(result, new, folder)
    return {"replaces": folder.name, "differs": differs}


def _compare(was: Result, new: Record, folder: Path) -> None:
    now = next((r for r in new.results if (r.protocol, r.variant) == (was.protocol, was.variant)), None)
    if now is not None and (now.version, now.rows["sha256"]) != (was.version, was.rows["sha256"]):
        return
    for metric, value in was.metrics.items():
        found = now.metrics.get(metric) if now else None
        if found != value:
            raise NotReproducedError(
                f"cell {new.cell} was made again and does not reproduce {was.protocol} ({was.variant}): {metric} was {value}, now {found}; "
                f"the old record is kept in {folder}; give run.force=true to take the new one"
            )


def _weights(record: Record) -> dict[str, str]:
    return {name: made.get("weights", "") for name, made in record.dependencies.items()}
