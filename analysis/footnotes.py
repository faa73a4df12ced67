"""What a reader must know beside the numbers of a table."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.load import DONE
from analysis.metrics import LOG_SCALE

SCHEMAS = re.compile(r"record schema \S+ is not \d+")
"""What `harness.record.from_json` says of a record of another schema."""

if TYPE_CHECKING:
    from analysis.tables import Row


def footnotes(frame: pd.DataFrame, rows: list[Row]) -> list[str]:
    """What a reader must know beside the numbers, each sentence once."""
    done = frame[frame["status"] == DONE]
    done.attrs = {}  # pandas would copy them for every group
    notes = (
        _model_notes(done), _overlaps(done), _missing(rows), _unmatched(frame), _row_notes(done), _training_notes(done), _in_domain(done),
        _made_from(done), _logarithms(done),
        _mixed_numerics(done), _duplicates(done), _stale(done), _unread(frame.attrs.get("unread", {})),
    )  # fmt: skip
    return [note for some in notes for note in some]


def _model_notes(done: pd.DataFrame) -> Iterable[str]:
    notes = done[done["model_note"] != ""][["model", "model_note"]].drop_duplicates()
    return [f"{row.model}: {row.model_note}" for row in notes.itertuples()]


def _overlaps(done: pd.DataFrame) -> Iterable[str]:
    """Columns whose data, or data like it, a model is known to have been pretrained on."""
    for (name, model), group in done.groupby(["column", "model"]):
        known = (group["data"].iloc[0].get("weights") or {}).get("overlap") or {}
        dataset = group["rows"].iloc[0]["dataset"]
        yield from (f"{name}: {model} {reason}" for pattern, reason in known.items() if fnmatchcase(dataset, pattern))


def _missing(rows: list[Row]) -> Iterable[str]:
    for row in rows:
        for name, cell in row.cells.items():
            if cell.missing and cell.values:
                failed = f"{cell.attempted - len(cell.values)} of {cell.attempted} seeds {cell.missing}"
                yield f"{row.label}, {row.model}, {name}: {failed}; not ranked"
            elif cell.missing and cell.missing != "not run":
                yield f"{row.label}, {row.model}, {name}: {cell.missing}"


def _unmatched(frame: pd.DataFrame) -> Iterable[str]:
    for row in frame[frame["protocol"].isna()].itertuples():
        yield f"{row.label}, {row.model}, {row.task}, seed {row.seed}: {row.status} ({row.reason}); no other cell was measured on this task"


def _row_notes(done: pd.DataFrame) -> Iterable[str]:
    """Which rows a protocol was measured on, where the source says that they are not the official ones."""
    for name, group in done.groupby("column"):
        rows = group["rows"].iloc[0]
        if rows.get("official") is False:
            yield f"{name}: {rows['rows']} rows of {rows['dataset']} ({rows['split']}), not the official split"


def _training_notes(done: pd.DataFrame) -> Iterable[str]:
    """What cells were trained on, where the source says that it is not the official set."""
    trained = done[done["flops"].fillna(0) > 0]
    for (model, task), group in trained.groupby(["model", "task"]):
        rows = group["data"].iloc[0].get("train") or {}
        if rows.get("official") is False:
            yield f"{model}, {task}: trained on {rows['rows']} rows of {rows['dataset']} ({rows['split']}), not the official set"


def _in_domain(done: pd.DataFrame) -> Iterable[str]:
    """Rows that were calibrated or trained on another part of the text that they are measured on."""
    for (name, label), group in done.groupby(["column", "label"]):
        measured = _family(group["rows"].iloc[0]["dataset"])
        for role, verb in (("calibration", "calibrated"), ("train", "trained")):
            texts = [data[role] for data in group["data"] if "ids_sha256" in data.get(role, {})]
            near = sorted({f"{text['dataset']} ({text['split']})" for text in texts if _family(text["dataset"]) == measured})
            yield from (f"{name}: {label} was {verb} on {text}, of the domain of the column" for text in near)


def _logarithms(done: pd.DataFrame) -> Iterable[str]:
    """Perplexities on the scale that they are compared on."""
    for (name, model, metric), group in done[done["metric"].isin(LOG_SCALE)].groupby(["column", "model", "metric"]):
        rows = [f"{label} {_spread(own.drop_duplicates('seed')['value'].map(math.log))}" for label, own in group.groupby("label")]
        yield f"{name}, {model}: log {metric}, mean ± standard deviation over seeds: {'; '.join(rows)}"


def _spread(values: pd.Series) -> str:
    """`4.288 ± 0.009 (3)`, or `3.493` of one."""
    return f"{values.mean():.3f} ± {values.std():.3f} ({len(values)})" if len(values) > 1 else f"{values.iloc[0]:.3f}"


def distinct(blocks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Blocks of a record without repetitions, in the order in which they first come."""
    return list({json.dumps(block, sort_keys=True): block for block in blocks}.values())


def _family(dataset: str) -> str:
    """`wikitext2` of `wikitext2_v1`."""
    return dataset.partition("_")[0]


def _made_from(done: pd.DataFrame) -> Iterable[str]:
    """What a row owes to other cells, as the mean over its seeds."""
    for (model, label), group in done[done["inherited"].map(bool)].groupby(["model", "label"]):
        cells = group.drop_duplicates("cell")
        names = sorted({name for made in cells["inherited"] for name in made})
        examples = cells["inherited"].map(lambda made: sum(part["examples"] for part in made.values())).mean()
        flops = cells["inherited_flops"].mean()
        cost = f"{examples:.0f} examples and {flops:.3g} FLOPs of training"
        yield f"{label}, {model}: made from {', '.join(names)}: {cost} not in its own costs"


def _mixed_numerics(done: pd.DataFrame) -> Iterable[str]:
    for name, group in done.groupby("column"):
        blocks = [block for _, block in pd.json_normalize(distinct(group["numerics"])).iterrows()]
        differing = [key for key in blocks[0].index if len({repr(block.get(key)) for block in blocks}) > 1 and key != "precision"]
        if differing:
            yield f"{name}: cells ran under different {', '.join(differing)}"


def _duplicates(done: pd.DataFrame) -> Iterable[str]:
    key = ["model", "column", "label", "seed"]
    for (model, name, label, seed), group in done.loc[done.duplicated(key, keep=False), [*key, "cell"]].groupby(key):
        used, *left_out = sorted(group["cell"])
        yield f"{label}, {model}, {name}, seed {seed}: several records; {used} is shown, {', '.join(left_out)} left out"


def _stale(done: pd.DataFrame) -> Iterable[str]:
    """Records that today's code did not make, together where the reason is the same."""
    if "stale" not in done:
        return
    for why, group in done[done["stale"] != ""].drop_duplicates("cell").groupby("stale", sort=False):
        records = group.groupby("method")["cell"].nunique()
        named = ", ".join(f"{method} ({number})" for method, number in records.items())
        first, *others = why.split("; ")
        more = f" (and {len(others)} more)" if others else ""
        yield f"made by other code than today's: the records of {named}, since {first}{more}"


def _unread(cells: Mapping[str, str]) -> Iterable[str]:
    for cell, why in cells.items():
        schema = SCHEMAS.search(why)
        yield f"cell {cell} was not read: its {schema[0]}" if schema else f"cell {cell} is damaged and was not read"
