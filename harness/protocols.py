"""More protocols that a cell's model is measured on, beside its own task: composed when planned, added to a finished cell. Torch-free."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from harness.nearmiss import unknown
from harness.record import Record, Result
from harness.resolve import Resolved, protocol_tasks
from harness.typed import plain
from harness.usage import options
from methods.spec import UserError
from tasks.sources import Sources
from tasks.spec import TaskConfig

MAIN = "main"
"""The variant that they are measured on."""
BEFORE = "before"
"""The variant of the model as it is loaded, on which `forgetting` is measured too."""


def blocks(names: Sequence[str], compose: Callable[[list[str]], DictConfig], forgetting: Collection[str] = ()) -> dict[str, Any]:
    """Task configurations by name; `UserError` for a name that is no task."""
    return {name: _block(name, compose, "forgetting" if name in forgetting else "protocols") for name in names}


def _block(name: str, compose: Callable[[list[str]], DictConfig], key: str) -> Any:
    try:
        return OmegaConf.to_container(compose([f"task={name}"]).task, resolve=True)
    except MissingConfigException as error:
        raise UserError(unknown(key, name, {*(error.options or ()), *options("task")})) from error


def missing(record: Record, resolved: Resolved) -> dict[tuple[str, str], str]:
    """(name, variant) -> what is wrong with it, for each asked protocol that a record has no valid result of.

    Raises `UserError` where the rows of an asked protocol are not on this machine.
    """
    found = {}
    for name, task in resolved.protocols.items():
        rows = _rows(resolved, task)
        for variant in (MAIN, BEFORE) if name in resolved.forgetting else (MAIN,):
            found[name, variant] = _fault(name, task, record, rows, variant)
    return {key: fault for key, fault in found.items() if fault}


def before_of_remade(old: Record, tasks: Mapping[str, TaskConfig]) -> tuple[str, ...]:
    """The names of those of `tasks` that a cell was measured on before training."""
    known = {result.protocol for result in old.results if result.variant == BEFORE}
    return tuple(name for name, task in tasks.items() if task.protocol() in known)


def check_rows(resolved: Resolved) -> None:
    """`UserError` where the rows of an asked protocol are not on this machine."""
    for task in resolved.protocols.values():
        _sources(resolved).find(task.dataset, task.split)


def of_remade(old: Record, resolved: Resolved, versions: Callable[[str], int | None]) -> dict[str, TaskConfig]:
    """The asked protocols and those that the cell was measured on before; `versions`: today's version of a task."""
    before = {name: block | {"version": versions(name) or block["version"]} for name, block in old.protocols.items()}
    return protocol_tasks(before, resolved.cell.task) | resolved.protocols


def described(tasks: Mapping[str, TaskConfig]) -> dict[str, Any]:
    """What a record keeps of the protocols that it was measured on."""
    return {name: plain(task) for name, task in tasks.items()}


def _fault(name: str, task: TaskConfig, record: Record, rows: str, variant: str) -> str:
    held = [result for result in record.results if (result.protocol, result.variant) == (task.protocol(), variant)]
    what = f"protocol {name}" if variant == MAIN else f"protocol {name} {variant} training"
    if not held:
        return f"{what} is missing"
    if held[-1].version != task.version:
        return f"{what} is of version {held[-1].version}, now {task.version}"
    return "" if _fits(held[-1], rows) else f"{what} was measured on other rows"


def _fits(result: Result, rows: str) -> bool:
    return rows in (result.rows.get("whole", result.rows["sha256"]), f"hub:{result.rows['revision']}")


def _rows(resolved: Resolved, task: TaskConfig) -> str:
    return _sources(resolved).fingerprint(task.dataset, task.split)


def _sources(resolved: Resolved) -> Sources:
    return Sources(resolved.data_dir, Path(resolved.run.assets), resolved.run.offline)
