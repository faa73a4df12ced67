"""How the learning rate of a row was found, and which rows may be ranked beside each other for it.

A record keeps where its learning rate came from; the recipe in `conf/method` that gave a tuned one tells of its search. Where the recipe
has another rate by now, or the search was not recorded by `analysis.tune`, the number of trials is not known, and said so.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import pandas as pd
import yaml

from analysis.load import DONE

if TYPE_CHECKING:
    from analysis.tables import Cell, Row

TUNED, PAPER = "tuned", "paper"
LEAKY = "dev_best"
"""Protocol form whose checkpoint was chosen on the rows that are reported."""
SOURCE = re.compile(r"best of (?P<trials>\d+) on selection rows \((?P<rates>[^()]*)\)(?:, seeds? (?P<seeds>[\d ]+))?, sweep (?P<sweep>\S+)")
EDGE = ", at the edge of the range"


@dataclass(frozen=True)
class Search:
    """A recorded search, as the source of a tuned recipe tells it."""

    trials: int
    on_edge: bool
    sweep: str
    seeds: tuple[int, ...] = ()
    """Empty where an older source does not say."""


@dataclass(frozen=True)
class Tuning:
    """Where the learning rate of a cell came from."""

    origin: str
    """`paper`, `tuned`, `default` or `override` (given on the command line)."""
    search: Search | None = None
    """Of a tuned one, where its search is recorded."""

    @property
    def chosen(self) -> bool:
        """Somebody searched for it: the project, or the authors of the paper."""
        return self.origin in (TUNED, PAPER)


def described(trials: int, rates: str, on_edge: bool, seeds: Sequence[int], sweep: str) -> str:
    """The `source` of a tuned recipe; `searched` reads it again."""
    ran = f", seed{'s' if len(seeds) > 1 else ''} {' '.join(map(str, seeds))}" if seeds else ""
    return f"best of {trials} on selection rows ({rates}{EDGE if on_edge else ''}){ran}, sweep {sweep}"


def searched(source: str) -> Search | None:
    """The search in the `source` of a recipe; None for a text that `described` did not write."""
    found = SOURCE.fullmatch(source)
    if found is None:
        return None
    seeds = tuple(map(int, (found["seeds"] or "").split()))
    return Search(int(found["trials"]), found["rates"].endswith(EDGE), found["sweep"], seeds)


def tunings(rates: Iterable[tuple[str, str, str, str, float, str]]) -> tuple[Tuning, ...]:
    """What learning rates came from, each once; `rates`: method, model, task, budget, rate, origin of cells (missing: there is none)."""
    return tuple(dict.fromkeys(_tuning(*rate) for rate in dict.fromkeys(rates) if not pd.isna(rate[-1])))


@cache
def _tuning(method: str, model: str, task: str, budget: str, rate: float, origin: str) -> Tuning:
    if origin != TUNED:
        return Tuning(origin)
    names = {"model": model, "task": task, "budget": budget}
    sources = [str(entry.get("source", "")) for entry in _recipes(method) if _gives(entry, names, rate)]
    return Tuning(origin, searched(sources[-1]) if sources else None)


@cache
def _recipes(method: str) -> list[dict]:
    path = files("conf") / "method" / f"{method}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")).get("recipes") or [] if path.is_file() else []


def _gives(entry: dict, names: dict[str, str], rate: float) -> bool:
    holds = all(fnmatchcase(str(names.get(key)), str(pattern)) for key, pattern in (entry.get("when") or {}).items())
    return holds and entry.get("origin") == TUNED and entry.get("values", {}).get("lr") == rate


def leaky(column: str) -> bool:
    """Were the checkpoints of this protocol chosen on the rows that it reports?"""
    return column.partition("@")[2].startswith(LEAKY)


def rankable(cells: Sequence["Cell"]) -> list[bool]:
    """Which cells of a column may be best: beside tuned ones, none whose learning rate nobody searched for."""
    some = any(tuning.chosen for cell in cells for tuning in cell.tuning)
    return [not some or all(tuning.chosen for tuning in cell.tuning) for cell in cells]


def notes(measured: pd.DataFrame, rows: Sequence["Row"]) -> list[str]:
    """What must be said of the tuning of a table's rows."""
    found: list[str] = []
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        found += [f"{model}: {note}" for note in (*_not_ranked(own), *_unequal(own), *_edges(own), *_unrecorded(own))]
    return [*found, *_reused_seeds(measured), *_leaks(rows)]


def of_row(row: "Row") -> tuple[Tuning, ...]:
    """Over the cells of a row."""
    return tuple(dict.fromkeys(tuning for cell in row.cells.values() for tuning in cell.tuning))


def _not_ranked(rows: Sequence["Row"]) -> Iterator[str]:
    """Rows that some column leaves out of its ranking."""
    left: dict[str, str] = {}
    for name in rows[0].cells:
        column = [row for row in rows if row.cells[name].complete]
        for row, ranked in zip(column, rankable([row.cells[name] for row in column]), strict=True):
            if not ranked:
                left[row.label] = next(tuning.origin for tuning in row.cells[name].tuning if not tuning.chosen)
    if left:
        named = ", ".join(f"{label} ({origin})" for label, origin in left.items())
        yield f"not ranked beside tuned rows, since nobody searched for their learning rate: {named}"


def _unequal(rows: Sequence["Row"]) -> Iterator[str]:
    sizes: dict[int, list[str]] = {}
    for row in rows:
        for tuning in of_row(row):
            if tuning.search:
                sizes.setdefault(tuning.search.trials, []).append(row.label)
    if len(sizes) > 1:
        yield "tuned with unequal numbers of trials: " + "; ".join(f"{n}: {', '.join(sizes[n])}" for n in sorted(sizes))


def _edges(rows: Sequence["Row"]) -> Iterator[str]:
    if named := [row.label for row in rows if any(tuning.search and tuning.search.on_edge for tuning in of_row(row))]:
        yield f"the best learning rate lay at the edge of the searched range, a better one may lie beyond: {', '.join(named)}"


def _unrecorded(rows: Sequence["Row"]) -> Iterator[str]:
    if named := [row.label for row in rows if Tuning(TUNED) in of_row(row)]:
        yield f"tuned, but the search is not recorded (number of trials ?): {', '.join(named)}"


def _reused_seeds(measured: pd.DataFrame) -> Iterator[str]:
    keys = ["method", "model", "task", "budget", "recipe.lr", "origin"]
    done = measured[measured["status"] == DONE].reindex(columns=["label", "seed", *keys])
    for (model, label), group in done[done["origin"] == TUNED].groupby(["model", "label"]):
        used = {seed for tuning in tunings(group[keys].itertuples(index=False, name=None)) if tuning.search for seed in tuning.search.seeds}
        if shared := sorted(used & set(map(int, group["seed"]))):
            yield f"{label}, {model}: reported on seed {', '.join(map(str, shared))}, on which its search ran too"


def _leaks(rows: Iterable["Row"]) -> Iterator[str]:
    names = dict.fromkeys(name for row in rows for name, cell in row.cells.items() if cell.leaky)
    yield from (f"{name}: leaky, the checkpoint was chosen on the reported rows" for name in names)
