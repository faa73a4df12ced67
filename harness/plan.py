"""Decides which cells of a sweep run: all are composed, checked and identified before the first starts. Torch-free."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness import lease, matching, needs, outcome, protocols, stale
from harness.compat import incompatible
from harness.identity import Identity, digest, identify
from harness.policy import policy_of
from harness.record import Record
from harness.resolve import NEEDS, PROTOCOL_TASKS, UNTYPED, Resolved, protocol_tasks, resolve, without_hydra
from harness.store import Store
from harness.weights import local_folder
from methods.spec import UserError

MISTAKES = (HydraException, OmegaConfBaseException, UserError)
"""What a user can cause; anything else is a bug and keeps its traceback."""
RUN, DONE, STALE, WAITING, LEASED, SKIPPED, DUPLICATE = "run", "done", "stale", "waiting", "leased", "skipped", "duplicate"
ANEW, MEASURE, REMAKE = "anew", "measure", "remake"
Compose = Callable[[list[str]], DictConfig]


class PlanError(UserError):
    """A wrong cell of a sweep; its cause is the reason."""

    def __init__(self, overrides: Sequence[str], cause: Exception) -> None:
        super().__init__(str(cause))
        self.overrides, self.cause = tuple(overrides), cause


class Verdict(NamedTuple):
    """What is to be done with a cell, and why."""

    state: str
    reason: str = ""
    way: str = ""
    """Of a cell with a record that is to run: `anew`, `measure` (its kept model on protocols that it lacks) or `remake` (its weights
    are gone; it must come out as it was). Empty where there is no record."""


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
    """`run`, `done` (has a record), `stale` (has one of other sources), `waiting` (failed, waits for `retry`), `leased`
    (another sweep runs it), `skipped` (impossible) or `duplicate` (of an earlier cell of the sweep)."""
    reason: str = ""
    """Why it is skipped, stale, waiting, or runs again."""
    needs: tuple["Planned", ...] = ()
    """The cells that must be done before, weights kept."""
    way: str = ""
    """How a finished cell runs again: see `Verdict`."""

    @property
    def cell(self) -> str:
        """The cell id; empty for an impossible cell."""
        return self.identity.cell if self.identity else ""

    @property
    def store(self) -> Store:
        """Where its record goes."""
        return Store(self.resolved.run.store)

    @property
    def folder(self) -> Path:
        """The cell's folder in the store."""
        return self.store.folder(self.cell)

    @property
    def label(self) -> str:
        """What a person calls the cell."""
        cell = self.resolved.cell
        seed = "" if self.identity and self.identity.deterministic else f" seed {cell.seed}"
        return f"{cell.method} {cell.model.name} {cell.task.name}{seed}"

    def with_threads(self, threads: int) -> "Planned":
        """The same cell with this many CPU threads where it asks for no number."""
        if self.resolved.run.threads is not None:
            return self
        container = self.container | {"run": self.container["run"] | {"threads": threads}}
        resolved = replace(self.resolved, run=replace(self.resolved.run, threads=threads))
        return replace(self, container=container, resolved=resolved)

    def with_weights(self) -> "Planned":
        """The same cell as one whose weights another cell needs."""
        container = self.container | {"run": self.container["run"] | {"keep_model": True}}
        resolved = replace(self.resolved, run=replace(self.resolved.run, keep_model=True))
        return _judged(replace(self, container=container, resolved=resolved))

    def with_protocols_of(self, other: "Planned") -> "Planned":
        """The same cell, measured on what `other` asks for too."""
        mine, theirs = self.resolved, other.resolved
        if mine.protocols.items() >= theirs.protocols.items() and set(mine.forgetting) >= set(theirs.forgetting):
            return self
        tasks = self.container.get(PROTOCOL_TASKS, {}) | other.container[PROTOCOL_TASKS]
        before = tuple(dict.fromkeys([*mine.forgetting, *theirs.forgetting]))
        container = self.container | {"protocols": list(tasks), "forgetting": list(before), PROTOCOL_TASKS: tasks}
        typed = protocol_tasks(tasks, mine.cell.task, before)
        resolved = replace(mine, protocols=typed, asked=tuple(typed), forgetting=before)
        return _judged(replace(self, container=container, resolved=resolved))

    def now(self) -> tuple[str, str]:
        """Its state and the reason as the store has them at this moment."""
        return state_of(self.resolved, self.identity)

    def describe(self) -> dict[str, Any]:
        """Its line in the sweep's manifest (`Store.join`)."""
        return {
            "cell": self.cell, "label": self.label, "overrides": list(self.overrides), "state": self.state, "reason": self.reason,
            "dependencies": {name: need.cell for name, need in zip(self.resolved.needs, self.needs, strict=True)},
        }  # fmt: skip


def check(cfg: DictConfig, overrides: Sequence[str] = (), compose: Compose | None = None, path: needs.Path = ()) -> Planned:
    """Check and identify one composed configuration, and the cells that it needs; `UserError` on the first thing that is wrong.

    `compose` makes the configurations of needed cells out of overrides; `path`: the cells that led here, to refuse a circle.
    """
    if compose and (typed := next((key for key in UNTYPED if key in cfg), None)):
        raise UserError(f"{typed} is not a key to type; it follows from {'protocols' if typed == PROTOCOL_TASKS else 'the method'}")
    cfg = matching.settled(cfg)
    resolved = resolve(cfg)
    container = {str(key): value for key, value in OmegaConf.to_container(without_hydra(cfg), resolve=True).items()}
    if compose and resolved.asked:
        container[PROTOCOL_TASKS] = protocols.blocks(resolved.asked, compose, resolved.forgetting)
        typed_tasks = protocol_tasks(container[PROTOCOL_TASKS], resolved.cell.task, resolved.forgetting)
        resolved = replace(resolved, protocols=typed_tasks)
    needed = _needed(resolved, container, [*overrides, *matching.typed(cfg)], compose, path) if compose else {}
    if needed:
        container[NEEDS] = {name: need.container for name, need in needed.items()}
        resolved = replace(resolved, needs={name: need.resolved for name, need in needed.items()})
    found = tuple(needed.values())
    reason = incompatible(resolved) or next((f"it needs {n.label}, and {n.reason}" for n in found if n.state == SKIPPED), None)
    if reason:
        return Planned(tuple(overrides), container, resolved, None, SKIPPED, reason, found)
    return _judged(Planned(tuple(overrides), container, resolved, identify(resolved), RUN, needs=found))


def _judged(one: Planned) -> Planned:
    """A possible cell with what the store says of it. What it lacks on this machine is refused here, not in every cell's process."""
    protocols.check_rows(one.resolved)
    found = verdict(one.resolved, one.identity)
    if found.state == RUN and one.resolved.cell.model.source == "assets":
        local_folder(one.resolved.cell.model, one.resolved.run.assets, one.resolved.data_dir)
    return replace(one, state=found.state, reason=found.reason, way=found.way)


def _needed(
    resolved: Resolved, container: dict[str, Any], overrides: Sequence[str], compose: Compose, path: needs.Path
) -> dict[str, Planned]:
    """The planned cells that a cell needs, by name."""
    longer = needs.step(path, resolved.cell.method, container)
    wanted = {spec.name: needs.overrides_of(spec, overrides) for spec in needs.specs(resolved)}
    return {name: check(compose(changes), changes, compose, longer) for name, changes in wanted.items()}


def state_of(resolved: Resolved, identity: Identity) -> tuple[str, str]:
    """What the store says of a cell, and why: see `Planned.state`."""
    found = verdict(resolved, identity)
    return found.state, found.reason


def verdict(resolved: Resolved, identity: Identity) -> Verdict:
    """What the store says of a cell at this moment."""
    store, policy = Store(resolved.run.store), policy_of(resolved.run)
    if lease.holder(store.folder(identity.cell)) is not None:
        return Verdict(LEASED, "another sweep runs it")
    if policy.force:
        return Verdict(RUN, "forced")
    record, damage = _record(store, identity)
    if damage:
        return Verdict(RUN, damage)
    found = _of_record(record, store, resolved) if record else Verdict(RUN)
    last = outcome.read(store.folder(identity.cell)) if found.state == RUN and found.way != ANEW else None
    if last is not None and not policy.starts(last, identity.sources):
        return Verdict(WAITING, f"{last.status}: {last.last_line}".rstrip(": "))
    return found


def _of_record(record: Record, store: Store, resolved: Resolved) -> Verdict:
    run, kept = resolved.run, (store.folder(record.cell) / "model").is_dir()
    why = [] if run.stale == "keep" else stale.reasons(record, store, resolved.cell.task.version, protocols=False)
    if why:
        return Verdict(RUN if run.stale == "rerun" else STALE, f"stale: {'; '.join(why)}", ANEW)
    lacking = list(protocols.missing(record, resolved).values())
    if not lacking and (kept or not run.keep_model):
        return Verdict(DONE)
    return Verdict(RUN, "; ".join(lacking + ([] if kept else ["its weights were not kept"])), MEASURE if kept else REMAKE)


def _record(store: Store, identity: Identity) -> tuple[Record | None, str]:
    """The record of a cell, or what is wrong with it."""
    try:
        record = store.record(identity.cell)
    except ValueError as error:
        return None, f"damaged: {error}"
    if record is None:
        return None, ""
    if digest(record.identity) != identity.cell:
        raise UserError(f"{store.folder(identity.cell)} holds the record of another configuration; give another run.store")
    return record, f"damaged: {damage}" if (damage := store.damage(record)) else ""


def check_all(batch: Iterable[Sequence[str]], compose: Compose) -> list[Planned]:
    """Plan every cell of a sweep, in order, each after the cells that it needs; `PlanError` if any is wrong, so that none starts."""
    asked = [_asked(overrides, compose) for overrides in batch]
    own = _merged(asked)
    planned: list[Planned] = []
    seen: set[str] = set()
    given: set[str] = set()
    for one in asked:
        if one.cell in given:
            planned.append(replace(one, state=DUPLICATE))
            continue
        chosen = own.get(one.cell, one)
        fresh = [cell for cell in (*_all_needs(chosen), chosen) if cell.cell not in seen]
        planned += [own.get(cell.cell, cell) for cell in {cell.cell: cell for cell in fresh}.values()]
        seen |= {cell.cell for cell in fresh if cell.cell}
        given |= {one.cell} - {""}
    needed = {need.cell for one in planned for need in _all_needs(one)}
    return [one.with_weights() if one.cell in needed and one.state != DUPLICATE else one for one in planned]


def _merged(asked: Iterable[Planned]) -> dict[str, Planned]:
    """Each possible cell once, with the protocols of all its mentions; what `run.only` leaves out waits."""
    found: dict[str, Planned] = {}
    for one in asked:
        if one.cell:
            found[one.cell] = found[one.cell].with_protocols_of(one) if one.cell in found else one
    return {name: _chosen(one) for name, one in found.items()}


def _chosen(one: Planned) -> Planned:
    only = one.resolved.run.only
    return replace(one, state=WAITING, reason="not in run.only") if only and one.state == RUN and one.cell not in only else one


def in_order(cells: Iterable[Planned]) -> list[Planned]:
    """The cells that are to be run, each once and after those that it needs."""
    found: dict[str, Planned] = {}
    for cell in cells:
        if cell.state in (RUN, LEASED):
            found |= {one.cell: one for one in (*_all_needs(cell), cell) if one.state in (RUN, LEASED) and one.cell not in found}
    return list(found.values())


def _asked(overrides: Sequence[str], compose: Compose) -> Planned:
    """One cell of a sweep."""
    try:
        return check(compose(list(overrides)), overrides, compose)
    except MISTAKES as error:
        raise PlanError(overrides, error) from error


def _all_needs(one: Planned) -> list[Planned]:
    """The cells that must be looked after before this one, deepest first; a finished need has no needs any more."""
    runs = one.state in (RUN, LEASED) and one.way != MEASURE
    return [cell for need in one.needs for cell in (*_all_needs(need), need)] if runs else []


def join(cells: Sequence[Planned], argv: Sequence[str]) -> None:
    """Note which sweep asked for these cells, done ones too: a table of the sweep then shows records that an earlier run made."""
    noted = [cell.describe() for cell in cells if cell.state != DUPLICATE]
    if any(cell["cell"] for cell in noted):
        cells[0].store.join(cells[0].resolved.run.sweep, argv, noted)
