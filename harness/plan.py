"""Decides which cells of a sweep run: all are composed, checked and identified before the first starts. Torch-free."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.compat import incompatible
from harness.identity import Identity, identify
from harness.resolve import Resolved, resolve, without_hydra
from harness.store import Store
from harness.weights import local_folder
from methods.spec import UserError

MISTAKES = (HydraException, OmegaConfBaseException, UserError)
"""What a user can cause; anything else is a bug and keeps its traceback."""
RUN, DONE, SKIPPED, DUPLICATE = "run", "done", "skipped", "duplicate"


class PlanError(UserError):
    """A wrong cell of a sweep; its cause is the reason."""

    def __init__(self, overrides: Sequence[str], cause: Exception) -> None:
        super().__init__(str(cause))
        self.overrides, self.cause = tuple(overrides), cause


@dataclass(frozen=True)
class Planned:
    """One composed cell and what is to be done with it."""

    overrides: tuple[str, ...]
    container: dict[str, Any]
    """The resolved configuration as plain values, for the cell's process."""
    resolved: Resolved
    identity: Identity | None
    """None for an impossible cell."""
    state: str
    """`run`, `done` (has a record), `skipped` (impossible), `duplicate` (of an earlier cell of the sweep)."""
    reason: str = ""
    """Why it is skipped."""

    @property
    def cell(self) -> str:
        """The cell id; empty for an impossible cell."""
        return self.identity.cell if self.identity else ""

    @property
    def folder(self) -> Path:
        """The cell's folder in the store."""
        return Store(self.resolved.run.store).folder(self.cell)

    @property
    def label(self) -> str:
        """What a person calls the cell."""
        cell = self.resolved.cell
        seed = "" if self.identity and self.identity.deterministic else f" seed {cell.seed}"
        return f"{cell.method} {cell.model.name} {cell.task.name}{seed}"


def check(cfg: DictConfig, overrides: Sequence[str] = ()) -> Planned:
    """Check and identify one composed configuration; `UserError` on the first thing that is wrong."""
    resolved = resolve(cfg)
    container = {str(key): value for key, value in OmegaConf.to_container(without_hydra(cfg), resolve=True).items()}
    if reason := incompatible(resolved):
        return Planned(tuple(overrides), container, resolved, None, SKIPPED, reason)
    identity = identify(resolved)
    state = RUN if resolved.run.force or not _finished(resolved.run.store, identity.cell) else DONE
    if state == RUN and resolved.cell.model.source == "assets":
        local_folder(resolved.cell.model, resolved.run.assets, resolved.data_dir)  # refused here, not in every cell's process
    return Planned(tuple(overrides), container, resolved, identity, state)


def _finished(store: str, cell: str) -> bool:
    try:
        return Store(store).record(cell) is not None
    except ValueError as error:
        raise UserError(str(error)) from error


def check_all(batch: Iterable[Sequence[str]], compose: Callable[[list[str]], DictConfig]) -> list[Planned]:
    """Plan every cell of a sweep, in order; `PlanError` if any is wrong, so that none starts."""
    planned: list[Planned] = []
    seen: set[str] = set()
    for overrides in batch:
        try:
            one = check(compose(list(overrides)), overrides)
        except MISTAKES as error:
            raise PlanError(overrides, error) from error
        if one.cell and one.cell in seen:
            one = replace(one, state=DUPLICATE)
        seen.add(one.cell)
        planned.append(one)
    return planned


def join(cells: Iterable[Planned]) -> None:
    """Note which sweep asked for these cells, done ones too: a table of the sweep then shows records that an earlier run made."""
    for cell in cells:
        if cell.cell and cell.resolved.run.sweep:
            Store(cell.resolved.run.store).join(cell.resolved.run.sweep, [cell.cell])


def changed(overrides: Sequence[str]) -> str:
    """The single values that a cell's overrides set, without those of the run half: `method.r=4 recipe.lr=0.001`."""
    return " ".join(o for o in overrides if "." in o.partition("=")[0] and not o.startswith(("run.", "+")))
