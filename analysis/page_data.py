"""A table and the frame behind it as the plain JSON that the report page shows."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis.formats import LEGEND, Entry, grid, header, ranked, sentences, side_numbers
from analysis.load import DONE
from analysis.tables import Across, Block, Cell, Column, Row, Table
from harness.registry import CHAIN, files

COSTS = {
    "trainable_method": "trainable parameters (head apart)",
    "bytes_shipped": "bytes shipped",
    "bytes": "bytes exported",
    "peak_memory": "peak memory, bytes",
    "seconds": "seconds per cell",
    "flops_all": "training FLOPs, with those of the cells it was made from",
}
"""Costs that quality is plotted against; keys of the frame, `flops_all` = own + inherited."""

Key = tuple[str, str, str]
"""Model, label, column."""


def contents(table: Table, frame: pd.DataFrame | None = None) -> dict[str, Any]:
    """Everything of the page but the details of cells. Without a frame there are no costs per cell and no list of cells.

    `frame`: that of the table, with its derived columns (`analysis.means`, `analysis.changes`) where it has any.
    """
    names = [column.name for column in table.columns]
    costs = {} if frame is None else mean_costs(frame)
    methods = {} if frame is None else dict(zip(frame["label"], frame["method"], strict=True))
    return {
        "title": table.title, "heading": table.heading, "legend": list(LEGEND), "notes": table.footnotes, "compared": sentences(table),
        "costs": [{"key": key, "title": title} for key, title in COSTS.items()],
        "columns": [_column(column) for column in table.columns],
        "blocks": [_block(block, names, methods, costs) for block in table.blocks()],
        "rankings": [_ranking(across) for across in table.rankings],
        "results": None if frame is None else results(frame, names),
    }  # fmt: skip


def family(method: str) -> str:
    """The folder of the method's file; `chain` for several steps, `unknown` for what this installation does not have."""
    path = files().get(method)
    return CHAIN if "+" in method else path.parent.name if path else "unknown"


def mean_costs(frame: pd.DataFrame) -> dict[Key, list[float | None]]:
    """(model, label, column) -> the mean over its seeds of each of `COSTS`; None where no record has it."""
    done = frame[frame["status"] == DONE].assign(flops_all=frame["flops"] + frame["inherited_flops"].fillna(0.0))
    used = done.sort_values(["seed", "cell"]).drop_duplicates(["model", "label", "column", "seed"])
    numbers = used[list(COSTS)].apply(pd.to_numeric, errors="coerce")
    means = numbers.groupby([used["model"], used["label"], used["column"]]).mean()
    return {key: [_finite(value) for value in row] for key, row in zip(means.index, means.to_numpy().tolist(), strict=True)}


def results(frame: pd.DataFrame, names: list[str]) -> dict[str, Any]:
    """Every result and failure, as lists of equal length; `column` is a position in `names`, -1 = of none; texts are interned."""
    derived = {name for name, group in frame[frame["status"] == DONE].groupby("column") if group["predictions"].isna().all()}
    shown = frame[~frame["column"].isin(derived)].sort_values(["model", "label", "column", "seed", "cell"])
    position = {name: i for i, name in enumerate(names)}
    families = {method: family(method) for method in shown["method"].unique()}
    texts = {
        "model": shown["model"], "label": shown["label"], "family": shown["method"].map(families), "status": shown["status"],
        "reason": shown["reason"], "task": shown["task"], "variant": shown["variant"],
    }  # fmt: skip
    return {
        "cell": shown["cell"].tolist(),
        "seed": [int(seed) for seed in shown["seed"]],
        "value": [_finite(value) for value in shown["value"]],
        "seconds": [_finite(value) for value in shown["seconds"]],
        "column": [position.get(name, -1) for name in shown["column"]],
        **{name: _interned(values) for name, values in texts.items()},
    }


def _interned(values: pd.Series) -> dict[str, list]:
    codes, texts = pd.factorize(values.fillna("").astype(str))
    return {"texts": list(texts), "codes": codes.tolist()}


def _column(column: Column) -> dict[str, Any]:
    return {
        "name": column.name, "metric": column.metric, "higher": column.higher_is_better, "n": column.examples,
        "decimals": column.decimals, "task": column.name.partition("@")[0],
    }  # fmt: skip


def _block(block: Block, names: list[str], methods: dict[str, str], costs: dict[Key, list[float | None]]) -> dict[str, Any]:
    first = 2 + len(block.columns)
    rows = {(row.model, row.label): row for row in block.rows}
    lines = [(rows.get((line[0].text, line[1].text)), line) for line in grid(block)]
    return {
        "models": block.models, "titles": header(block), "columns": [names.index(column.name) for column in block.columns],
        "rows": [_row(row, line, first, block, methods, costs) for row, line in lines if row],
        "feet": [[entry.text for entry in line] for row, line in lines if not row],
    }  # fmt: skip


def _row(
    row: Row, line: list[Entry], first: int, block: Block, methods: dict[str, str], costs: dict[Key, list[float | None]]
) -> dict[str, Any]:
    method = methods.get(row.label, row.label.partition(" (")[0])
    cells = [
        _cell(row.cells[column.name], entry, costs.get((row.model, row.label, column.name)))
        for column, entry in zip(block.columns, line[2:first], strict=True)
    ]
    sides = [[entry.text, number] for entry, number in zip(line[first:], side_numbers(row), strict=True)]
    return {"model": row.model, "label": row.label, "method": method, "family": family(method), "cells": cells, "sides": sides}


def _ranking(across: Across) -> dict[str, Any]:
    shown = ranked(across)
    return {"caption": shown.caption, "titles": shown.titles, "lines": [[entry.text for entry in line] for line in shown.lines]}


def _cell(cell: Cell, entry: Entry, costs: list[float | None] | None) -> dict[str, Any]:
    """What is shown; keys that say nothing are left out, since a page holds thousands."""
    found = {
        "text": entry.text, "value": _finite(cell.center) if cell.values else None, "std": cell.std, "seeds": len(cell.values),
        "of": cell.attempted, "det": cell.deterministic, "best": entry.bold, "tied": entry.tied,
        "second": cell.second, "missing": cell.missing, "costs": costs,
    }  # fmt: skip
    return {key: value for key, value in found.items() if value is not None and value is not False and value != ""}


def _finite(value: Any) -> float | None:
    return None if value is None or pd.isna(value) or not math.isfinite(value) else float(value)


def sources(records: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """Source file of the methods -> its hashes among the records."""
    found: dict[str, set[str]] = {}
    for record in records:
        for path, digest in (record.get("sources") or {}).items():
            found.setdefault(path, set()).add(str(digest))
    return {path: sorted(digests) for path, digests in sorted(found.items())}
