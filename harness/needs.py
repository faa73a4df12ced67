"""The cells that a method needs first, as changes to the cell that needs them. Torch-free."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.resolve import Resolved
from methods.spec import CellNames, CellSpec, UserError

DEPTH = 16
"""Longest chain of cells that need each other; a longer one is taken for endless."""
DECISIVE = ("method", "model", "task", "budget", "recipe", "seed", "precision", "data_dir")
NOT_PASSED_ON = ("method", "recipe", "protocols", "forgetting", "run.only", "run.force", "run.keep_model")
"""Overrides that are about one cell and not about those that it needs."""
INIT = "init"
"""Name of the cell that gives a task its backbone: of the same method with the same settings."""
FIXED = ("protocols=[]", "forgetting=[]", "run.only=[]", "run.force=false", "run.keep_model=true")
Path = tuple[tuple[str, str], ...]
"""Name and configuration of each cell from the asked one down to the present one."""


def specs(resolved: Resolved) -> tuple[CellSpec, ...]:
    """What the method says that it needs, and the cell that the task starts from; `UserError` where two cells have one name."""
    cell = resolved.cell
    found = _of_task(resolved)
    if hasattr(cell.method_config, "dependencies"):
        names = CellNames(model=cell.model.name, task=cell.task.name, budget=cell.budget.name, seed=cell.seed)
        found = (*found, *cell.method_config.dependencies(names))
    called = [spec.name for spec in found]
    if twice := [name for name in called if called.count(name) > 1]:
        raise UserError(
            f"{cell.method} calls two of the cells that it needs {twice[0]}; give each a name of its own in Config.dependencies"
        )
    return found


def _of_task(resolved: Resolved) -> tuple[CellSpec, ...]:
    """The same method on the task that this one starts from, cut at the same length; none for weights that are finished."""
    task = resolved.cell.task
    if getattr(task, "init", None) is None or resolved.traits.external:
        return ()
    return (CellSpec(name=INIT, method=resolved.cell.method, overrides=(f"task={task.init}", f"task.max_length={task.max_length}")),)


def overrides_of(spec: CellSpec, overrides: Sequence[str]) -> list[str]:
    """The overrides that make a needed cell: those of the cell that needs it, without what the spec or its own nature replaces."""
    own = [*spec.overrides] if spec.name == INIT else [f"method={spec.method}", *spec.overrides]
    replaced = {*NOT_PASSED_ON, *map(_key, own)} - ({"method"} if spec.name == INIT else set())
    kept = [override for override in overrides if not any(_within(_key(override), key) for key in replaced)]
    return [*kept, *own, *FIXED]


def step(path: Path, method: str, container: Mapping[str, Any]) -> Path:
    """The path with one more cell; `UserError` where that cell is on it already, or where it has no end."""
    half = json.dumps({key: container.get(key) for key in DECISIVE}, sort_keys=True, default=str)
    names = " -> ".join([*(name for name, _ in path), method])
    if half in [known for _, known in path]:
        raise UserError(f"a cell needs itself ({names}); break the circle in Config.dependencies of one of these methods")
    if len(path) == DEPTH:
        raise UserError(f"more than {DEPTH} cells need each other ({names}); end the chain in Config.dependencies of one of these methods")
    return (*path, (method, half))


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _within(key: str, block: str) -> bool:
    return key == block or key.startswith(f"{block}.")
