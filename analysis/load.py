"""Records of a store as one tidy DataFrame: a row = cell x protocol x variant, and a row for each cell that failed."""

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import staleness
from analysis.index import Index, opened
from analysis.labels import add_labels
from analysis.packed import Packed, pack
from analysis.rows import DONE, of_failure, of_record, with_added
from analysis.where import where
from harness.store import Store
from methods.spec import UserError

log = logging.getLogger(__name__)

RECORD, OUTCOME, CONFIG = "record.json", "outcome.json", "config.json"


def load(store: Path, sweep: str | None = None, condition: str | None = None) -> pd.DataFrame:
    """All records of `store` (of one `sweep`: run for it, or asked for by it and already there), sorted by model, label, protocol and seed.

    `condition` keeps the rows for which it holds (`analysis.where`); labels are those of the rows that are left.

    Columns: `cell`, `status` (`done`, else the class of the failure, with its last line in `reason`), `sweep`, `seed`, `method`, `label`,
    `model`, `task`, `budget`, `precision`, `method.<key>`, `recipe.<key>`, `budget.<key>`, `corpus.<key>`, `calibration.<key>`, `protocol`,
    `column` (see `_columns`), `variant`, `metric` (the primary one), `value`, `higher_is_better`, `metric.<name>`, `selection` (the metric
    on the task's selection rows by which the checkpoint was kept, larger is better), `origin` (of the learning rate: paper, tuned, default,
    override), `n` (examples), `predictions` (file in the cell's folder), `tokenizer` (hash; of metrics that count its tokens), `rows`,
    `data`, `numerics` (dicts), `deterministic`, `model_note`, and costs: parameters `trainable_method`, `trainable_head`, `total`;
    `sparsity_prunable`, `sparsity_all` (fractions of zeros); `bytes` (exported weights), `bytes_shipped` (what differs from the base: whole
    tensors, or a sparse vector where the cell left one); `seconds`; `tokens_per_second`; `flops` (training); `peak_memory` (bytes).
    `stale`: why a record is not about today's code (`analysis.staleness`), empty where it is; from `sources` (dict), `measured_by` (task).
    These are the cell's own; the cells that it was made from cost `inherited_flops` and `inherited_seconds`, each as in `inherited`.
    What stands in the store's index (`analysis.index`) and has not changed since is taken from there.
    Files that cannot be read are logged by name, listed in `attrs["damaged"]`, and left out. Raises `UserError` if nothing is there.
    """
    if not store.is_dir():
        raise UserError(f"there is no store {store}; give the folder of the records: --store <folder>")
    damaged: dict[str, str] = {}
    members = Store(store).members(sweep) if sweep else set()
    rows = with_added(_read_all(store, damaged))
    staleness.mark(rows)
    rows = [row for row in rows if sweep in (None, row["sweep"]) or row["cell"] in members]
    if not any(row["status"] == DONE for row in rows):
        wanted = f" of sweep {sweep}" if sweep else ""
        raise UserError(f"{store} has no finished cells{wanted}; run `parebench -m +sweeps=<name>` first or give another --store")
    frame = _named(pd.DataFrame(_with_protocols(rows)))
    if condition is not None:
        frame = _named(where(frame, condition))
        if not (frame["status"] == DONE).any():
            raise UserError(f"--where {condition!r} leaves no finished cell, only {', '.join(sorted(set(frame['status'])))}")
    frame = frame.sort_values(["model", "label", "column", "seed", "cell"], ignore_index=True)
    frame.attrs |= {"damaged": list(damaged), "unread": damaged}
    return frame


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """With `label` and `column`, which tell apart what differs within the frame."""
    frame = add_labels(frame)
    frame["column"] = _columns(frame)
    return frame


def predictions(store: Path, cell: str, file: str) -> pd.DataFrame:
    """Per-example predictions of one result; columns as in `harness.record.Result.predictions`."""
    path = Store(store).folder(cell) / file
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run the cell again with run.force=true") from error


def _read_all(store: Path, damaged: dict[str, str]) -> list[dict[str, Any]]:
    """The rows of every cell: from the index where its files are as they were then, else from the files."""
    known, cells, new = opened(store), dict(_cells(store)), {}
    found = []
    for cell, file in cells.items():
        rows = known.rows(cell, file)
        if rows is None:
            rows, kept = _read(Store(store), cell, known, damaged)
            names = {row["predictions"] for row in rows if row["status"] == DONE} if kept and known.wanted else ()
            new |= {(cell, name): line for name in names if (line := pack(store / cell, name))}
        found += rows
    if known.wanted:
        known.save(cells)
    if new:
        Packed(store).add(new, cells)
    return found


def _cells(store: Path) -> Iterator[tuple[str, str]]:
    """Ids of finished or failed cells, in order, with the file that says so."""
    with os.scandir(store) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        file = next((file for file in (RECORD, OUTCOME) if os.path.exists(f"{store}/{name}/{file}")), None)  # noqa: PTH110
        if file:
            yield name, file


def _read(store: Store, cell: str, known: Index, damaged: dict[str, str]) -> tuple[list[dict[str, Any]], bool]:
    """The rows of one cell, from its files, and whether the index has them now."""
    began = time.time()
    try:
        record = store.record(cell)
        if record and (damage := store.damage(record)):
            raise ValueError(damage)
        rows = of_record(record) if record else _failure(store.folder(cell))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is damaged and was not read: %s", store.folder(cell), error)
        damaged[cell] = str(error)
        known.forget(cell)
        return [], False
    kept = known.keep(cell, [RECORD, *record.files] if record else [OUTCOME, CONFIG], rows, began)
    return rows, kept


def _failure(folder: Path) -> list[dict[str, Any]]:
    return of_failure(folder.name, *(json.loads((folder / name).read_text()) for name in (OUTCOME, CONFIG)))


def _with_protocols(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Failed cells under each protocol that finished cells of the same model and task were measured on (else none)."""
    known: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["status"] == DONE:
            shared = {key: row[key] for key in ("protocol", "version", "metric", "rows", "tokenizer")}
            known.setdefault((row["model"], row["task"]), {}).setdefault(row["protocol"], shared)
    nowhere = dict.fromkeys(("protocol", "version", "metric", "rows", "tokenizer"))
    return [
        {"variant": "main"} | row | shared
        for row in rows
        for shared in ([{}] if row["status"] == DONE else known.get((row["model"], row["task"]), {"": nowhere}).values())
    ]


def _columns(frame: pd.DataFrame) -> pd.Series:
    """The table column of each row: its protocol, told apart where version, metric, the rows' content or a tokenizer that counts differ."""
    details = pd.DataFrame(
        {
            "protocol": frame["protocol"],
            "version": frame["version"].map(lambda v: "" if pd.isna(v) else f"version {int(v)}"),
            "metric": frame["metric"].fillna(""),
            "rows": frame["rows"].map(lambda r: f"rows {str(r.get('sha256'))[:8]}" if isinstance(r, dict) else ""),
            "tokenizer": frame["tokenizer"].map(lambda t: "" if pd.isna(t) else f"tokenizer {str(t)[:8] or 'unknown'}"),
        }
    )
    names = details["protocol"].copy()
    for part in ("version", "metric", "rows", "tokenizer"):
        mixed = details.groupby("protocol")[part].transform("nunique") > 1
        names = names.where(~mixed, names + " (" + details[part] + ")")
    return names
