"""When a record is not about today's code: other sources, protocol version, numerics, or a stale cell that it was made from. Torch-free."""

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import yaml

import conf
from harness import sourcetexts
from harness.record import NUMERICS, Record, Result
from harness.store import Store
from methods.spec import UserError

TASKS = Path(conf.__file__).parent / "task"


def reasons(record: Record, store: Store, version: int | None = None, *, protocols: bool = True) -> list[str]:
    """Why a record is stale, each as the end of a sentence; empty = fresh.

    `version`: today's version of the cell's own task, read from conf/task/ where it is None. Without `protocols` the results that
    were measured beside that task do not count: they can be measured again, the model stays.
    """
    numerics = record.numerics.get("harness", NUMERICS)
    found = [f"{name} has {how}" for name, how in _changed(record).items()]
    own = record.identity["task"]["name"]
    old = [(result, today) for result, today in outdated(record, version) if protocols or result.task in ("", own)]
    found += [f"{result.protocol} is of version {result.version}, now {today}" for result, today in old]
    found += [f"the harness computes with numerics {NUMERICS}, it was made with {numerics}"] if numerics != NUMERICS else []
    return list(dict.fromkeys(found + _of_dependencies(record, store)))


def outdated(record: Record, version: int | None = None) -> list[tuple[Result, int]]:
    """The results of another version than today's of their own task, and that version; `version` as in `reasons`."""
    own = record.identity["task"]["name"]
    known = {own: version} if version is not None else {}
    today = [(result, known.get(result.task or own, today_of(result.task or own))) for result in record.results]
    return [(result, now) for result, now in today if now not in (None, result.version)]


def difference(record: Record, store: Store) -> str:
    """Unified diff from the source texts that made a record to today's."""
    today = sourcetexts.of_method(record.identity["method"])
    parts: list[str] = []
    for name in sorted(set(record.sources) | set(today)):
        if record.sources.get(name) != today.get(name):
            then = sourcetexts.kept(record.sources.get(name), store.root)
            now = sourcetexts.text(name) if name in today else ""
            parts += difflib.unified_diff(then.splitlines(True), now.splitlines(True), f"{name} (record)", f"{name} (now)")
    return "".join(parts)


def _changed(record: Record) -> dict[str, str]:
    try:
        today = sourcetexts.of_method(record.identity["method"])
    except UserError:
        return {f"method {record.identity['method']['name']}": "gone"}
    names = [*record.sources, *(name for name in today if name not in record.sources)]
    words = {(True, True): "changed", (True, False): "gone from its imports", (False, True): "joined its imports"}
    return {name: words[name in record.sources, name in today] for name in sorted(names) if record.sources.get(name) != today.get(name)}


def _of_dependencies(record: Record, store: Store) -> list[str]:
    found: list[str] = []
    for name, made in record.dependencies.items():
        try:
            source = store.record(made["cell"])
        except ValueError:
            found.append(f"{name} ({made['cell']}) is damaged")
            continue
        if source is None:
            continue
        if not _same(source, made):
            found.append(f"{name} ({source.cell}) was made anew since")
        elif why := reasons(source, store, protocols=False):
            found.append(f"{name} ({source.cell}) is stale: {why[0]}")
    return found


def _same(source: Record, made: Mapping[str, str]) -> bool:
    """Is it still the model that was read? A record is written anew when a protocol is added, its weights then stay."""
    if source.weights and made.get("weights"):
        return source.weights == made["weights"]
    return source.checksum == made["checksum"]


@cache
def today_of(task: str) -> int | None:
    """Today's version of a task; None where there is no such task any more."""
    path = TASKS / f"{task}.yaml"
    if not path.is_file():
        return None
    version = yaml.safe_load(path.read_text()).get("version")
    return int(version) if version is not None else None
