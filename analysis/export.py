"""Compact copies of records for committing: what a table needs, nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd

from harness.record import Record
from harness.store import Store, write_json
from methods.spec import UserError


def export_records(store: Path, sweep: str | None, out: Path) -> int:
    """Copy the records of `store` (of one `sweep`) and their predictions to `out`, a store that loads the same; the number of cells.

    Predictions are compressed again, their values unchanged. Failed cells keep their outcome and configuration, so that k/n
    stays true. Raises `UserError` if there is nothing to copy or `out` holds other cells.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; give an empty or new folder: --out <folder>")
    source, target = Store(store), Store(out)
    members = source.members(sweep) if sweep else set()
    try:
        records = [record for record in source.records() if sweep in (None, record.sweep) or record.cell in members]
    except ValueError as error:
        raise UserError(str(error)) from error
    if not records:
        raise UserError(f"{store} has no records{f' of sweep {sweep}' if sweep else ''} to export")
    for record in records:
        _copy(replace(record, sweep=sweep or record.sweep), source, target)
    failures = [path.parent for path in sorted(store.glob("*/outcome.json")) if not (path.parent / "record.json").exists()]
    kept = [folder for folder in failures if sweep in (None, _sweep(folder))]
    for folder in kept:
        _copy_failure(folder, target.folder(folder.name))
    return len(records) + len(kept)


def _copy(record: Record, source: Store, target: Store) -> None:
    for result in record.results:
        path = target.folder(record.cell) / result.predictions
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pd.read_parquet(source.folder(record.cell) / result.predictions)
        table.to_parquet(path, compression="zstd", index=False)
    target.write(record)


def _sweep(folder: Path) -> str | None:
    return json.loads((folder / "config.json").read_text())["run"]["sweep"]


def _copy_failure(folder: Path, target: Path) -> None:
    """Without what holds paths of the machine: of the configuration's run half the sweep's name, of the last lines the last one."""
    config = json.loads((folder / "config.json").read_text())
    kept = {key: config[key] for key in ("method", "model", "task", "budget", "recipe", "seed", "precision")}
    write_json(target / "config.json", kept | {"run": {"sweep": config["run"]["sweep"]}})
    outcome = json.loads((folder / "outcome.json").read_text())
    write_json(target / "outcome.json", outcome | {"lines": outcome["lines"][-1:]})
