"""A recorded search: with which recipe each method is to be reported, from the cells of a search sweep and nothing else.

Choosing looks at the selection rows alone, never at the reported ones. A search is fair where every method had the same number of
trials under one rule; the best of them at the edge of its range is marked. What is chosen are the keys of `recipe` that the trials of a
method differ in (the learning rate, and any other), from a grid or from whatever proposed them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from analysis.load import DONE
from analysis.tuning import described, leaky
from methods.spec import UserError

RATE = "lr"
PREFIX = "recipe."
FIRST_SEED = 100
"""Seeds from here on are for searches; sweeps that are reported use those below."""
Values = dict[str, Any]
"""Key of the recipe -> value."""


@dataclass(frozen=True)
class Pick:
    """The outcome of one method's search."""

    method: str
    model: str
    trials: tuple[tuple[Values, float | None], ...]
    """(what the trial set, metric on the selection rows), in the order of the values; None = the trial failed."""
    chosen: Values
    seeds: tuple[int, ...] = ()
    """Of the trials; every trial of a method had the same ones."""

    @property
    def on_edge(self) -> bool:
        """The best trial has the smallest or the largest of some key's numbers: a better one may lie beyond."""
        tried = {key: {values[key] for values, _ in self.trials} for key, value in self.chosen.items() if isinstance(value, Real)}
        return any(self.chosen[key] in (min(all_), max(all_)) for key, all_ in tried.items())

    @property
    def undecided(self) -> bool:
        """All of several trials scored the same (a model at chance, say): the search tells nothing, so the recipe is kept."""
        return len(self.trials) > 1 and len({score for _, score in self.trials}) == 1

    @property
    def told(self) -> str:
        """Every trial with its metric: `0.001: 0.812, ...` of a search for the learning rate, `lr 0.001 batch 16: 0.812, ...` of others."""
        return ", ".join(f"{values_told(values)}: {'failed' if score is None else f'{score:.3f}'}" for values, score in self.trials)


def picks(frame: pd.DataFrame) -> list[Pick]:
    """One pick per method and model of a search sweep (`analysis.load.load`), by name; the lower rate wins a tie.

    Raises `UserError` where a method has fewer trials than others, two trials of one recipe, no selection rows or those that are
    reported, or a seed that is reported.
    """
    frame = frame[frame["variant"] == "main"].drop_duplicates("cell")
    found = [_pick(method, model, rows) for (method, model), rows in frame.groupby(["method", "model"])]
    most = max(len(pick.trials) for pick in found)
    for pick in found:
        if len(pick.trials) != most:
            raise UserError(f"{pick.method} has {len(pick.trials)} trials and others have {most}; finish the search sweep first")
    return found


def _pick(method: str, model: str, rows: pd.DataFrame) -> Pick:
    columns = _searched(rows)
    if rows[columns].duplicated().any():
        raise UserError(
            f"the search has two cells of {method} on {model} with one {' and '.join(columns)}; "
            "give the name of one search sweep, of trials that differ in their recipe alone"
        )
    done = (rows["status"] == DONE).to_numpy()
    if not done.any():
        raise UserError(f"no trial of {method} on {model} finished; run the search sweep again with run.retry=[error,diverged]")
    if rows.loc[done, "selection"].isna().any():
        raise UserError(f"a trial of {method} has no selection rows; run the search with task.selection=heldout")
    if rows["protocol"].map(leaky).any():
        raise UserError(f"the search chose {method} on the rows that are reported; run it with task.selection=heldout")
    if (rows["seed"] < FIRST_SEED).any():
        raise UserError(f"the search ran {method} on seed {rows['seed'].min()}, which is for reporting; run it with seed={FIRST_SEED}")
    trials = _trials(rows.sort_values(columns), columns)
    best = max(score for _, score in trials if score is not None)
    seeds = tuple(sorted(set(map(int, rows["seed"]))))
    return Pick(method, model, trials, next(values for values, score in trials if score == best), seeds)


def _searched(rows: pd.DataFrame) -> list[str]:
    """The columns of the recipe that the trials differ in, the learning rate first and always."""
    varied = [column for column in rows if column.startswith(PREFIX) and rows[column].nunique(dropna=False) > 1]
    return [PREFIX + RATE, *(column for column in varied if column != PREFIX + RATE)]


def _trials(rows: pd.DataFrame, columns: list[str]) -> tuple[tuple[Values, float | None], ...]:
    scores = [float(score) if status == DONE else None for score, status in zip(rows["selection"], rows["status"], strict=True)]
    values = [{column.removeprefix(PREFIX): _plain(row[column]) for column in columns} for row in rows[columns].to_dict("records")]
    return tuple(zip(values, scores, strict=True))


def _plain(value: Any) -> Any:
    """As a recipe has it: null where it is missing; whole numbers, which a column with missing values keeps as floats, are integers."""
    if pd.isna(value):
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def values_told(values: Values) -> str:
    """The number of a learning rate alone, else each key with its value."""
    return f"{values[RATE]:g}" if list(values) == [RATE] else " ".join(f"{key} {_number(value)}" for key, value in values.items())


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, Real) else str(value)


def matcher(pick: Pick, sweep: str, budget: str) -> dict:
    """The pick as an entry of a method's `recipes`, for cells of `budget` on the searched model."""
    source = described(len(pick.trials), pick.told, pick.on_edge, pick.seeds, sweep)
    return {"when": {"model": pick.model, "budget": budget}, "origin": "tuned", "source": source, "values": pick.chosen}


def write(found: list[Pick], sweep: str, budget: str, folder: Path) -> Iterator[Path]:
    """Add each pick to the `recipes` of `folder/<method>.yaml`, in place of an earlier one of the same sweep; what was written.

    A search that could not tell its trials apart writes nothing: its method's rows stay untuned, and tables say so.
    """
    for pick in (pick for pick in found if not pick.undecided):
        path = folder / f"{pick.method}.yaml"
        if not path.is_file():
            raise UserError(f"{path} does not exist; give the folder of the methods' files, such as conf/method")
        path.write_text(_with_entry(path.read_text(), matcher(pick, sweep, budget)))
        yield path


def _with_entry(text: str, entry: dict) -> str:
    """Text of a method's file, whose last key is `recipes`, with one entry more; all else stays as it is written."""
    head, mark, tail = text.partition("\nrecipes:\n")
    if not mark:
        raise UserError("the file of a method must end in `recipes:`")
    blocks = [block for block in ("\n" + tail.rstrip("\n")).split("\n  - ") if block]
    kept = [block for block in blocks if yaml.safe_load("  - " + block)[0]["when"] != entry["when"]]
    when = ", ".join(f"{key}: {value}" for key, value in entry["when"].items())
    values = ", ".join(f"{key}: {yaml.safe_dump(value).splitlines()[0]}" for key, value in entry["values"].items())
    source = entry["source"].replace("'", "''")
    new = f"when: {{{when}}}\n    origin: {entry['origin']}\n    source: '{source}'\n    values: {{{values}}}"
    return head + mark + "".join(f"  - {block}\n" for block in [*kept, new])
