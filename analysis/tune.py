"""A recorded search: which learning rate each method is to be reported with, from the cells of a search sweep and nothing else.

Choosing looks at the selection rows alone, never at the reported ones. A search is fair where every method had the same number of
trials under one rule; the best of them at the edge of its range is marked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml

from analysis.load import DONE
from analysis.tuning import described, leaky
from methods.spec import UserError

KEY = "recipe.lr"
FIRST_SEED = 100
"""Seeds from here on are for searches; sweeps that are reported use those below."""


@dataclass(frozen=True)
class Pick:
    """The outcome of one method's search."""

    method: str
    model: str
    trials: tuple[tuple[float, float | None], ...]
    """(learning rate, metric on the selection rows), by rate; None = the trial failed."""
    chosen: float
    seeds: tuple[int, ...] = ()
    """Of the trials; every trial of a method had the same ones."""

    @property
    def on_edge(self) -> bool:
        """The best trial has the smallest or the largest rate: a better one may lie beyond."""
        return self.chosen in (self.trials[0][0], self.trials[-1][0])


def picks(frame: pd.DataFrame) -> list[Pick]:
    """One pick per method and model of a search sweep (`analysis.load.load`), by name; the lower rate wins a tie.

    Raises `UserError` where a method has fewer trials than others, two trials of one rate, no selection rows or those that are reported,
    or a seed that is reported.
    """
    frame = frame[frame["variant"] == "main"].drop_duplicates("cell")
    found = [_pick(method, model, rows) for (method, model), rows in frame.groupby(["method", "model"])]
    most = max(len(pick.trials) for pick in found)
    for pick in found:
        if len(pick.trials) != most:
            raise UserError(f"{pick.method} has {len(pick.trials)} trials and others have {most}; finish the search sweep first")
    return found


def _pick(method: str, model: str, rows: pd.DataFrame) -> Pick:
    if rows[KEY].duplicated().any():
        raise UserError(f"the search has two cells of {method} on {model} with one learning rate; give the name of one search sweep")
    done = (rows["status"] == DONE).to_numpy()
    if not done.any():
        raise UserError(f"no trial of {method} on {model} finished; run the search sweep again with run.retry=[error,diverged]")
    if rows.loc[done, "selection"].isna().any():
        raise UserError(f"a trial of {method} has no selection rows; run the search with task.selection=heldout")
    if rows["protocol"].map(leaky).any():
        raise UserError(f"the search chose {method} on the rows that are reported; run it with task.selection=heldout")
    if (rows["seed"] < FIRST_SEED).any():
        raise UserError(f"the search ran {method} on seed {rows['seed'].min()}, which is for reporting; run it with seed={FIRST_SEED}")
    scores = [float(score) if ok else None for score, ok in zip(rows["selection"], done, strict=True)]
    trials = tuple(sorted(zip(map(float, rows[KEY]), scores, strict=True)))
    best = max(score for _, score in trials if score is not None)
    seeds = tuple(sorted(set(map(int, rows["seed"]))))
    return Pick(method, model, trials, next(rate for rate, score in trials if score == best), seeds)


def matcher(pick: Pick, sweep: str, budget: str) -> dict:
    """The pick as an entry of a method's `recipes`, for cells of `budget` on the searched model."""
    rates = ", ".join(f"{rate:g}: {'failed' if score is None else f'{score:.3f}'}" for rate, score in pick.trials)
    source = described(len(pick.trials), rates, pick.on_edge, pick.seeds, sweep)
    return {"when": {"model": pick.model, "budget": budget}, "origin": "tuned", "source": source, "values": {"lr": pick.chosen}}


def write(found: list[Pick], sweep: str, budget: str, folder: Path) -> Iterator[Path]:
    """Add each pick to the `recipes` of `folder/<method>.yaml`, in place of an earlier one of the same sweep; what was written."""
    for pick in found:
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
    source = entry["source"].replace("'", "''")
    new = f"when: {{{when}}}\n    origin: {entry['origin']}\n    source: '{source}'\n    values: {{lr: {entry['values']['lr']:.1e}}}"
    return head + mark + "".join(f"  - {block}\n" for block in [*kept, new])
