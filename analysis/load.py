"""Records of a store as one tidy DataFrame: a row = cell x protocol x variant, and a row for each cell that failed."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.labels import add_labels
from harness.record import Record, Result
from harness.registry import title
from harness.store import Store
from methods.spec import UserError

log = logging.getLogger(__name__)

DONE = "done"


def load(store: Path, sweep: str | None = None) -> pd.DataFrame:
    """All records of `store` (of one `sweep`: run for it, or asked for by it and already there), sorted by model, label, protocol and seed.

    Columns: `cell`, `status` (`done`, else the class of the failure, with its last line in `reason`), `sweep`, `seed`, `method`,
    `label`, `model`, `task`, `budget`, `precision`, `method.<key>`, `recipe.<key>`, `protocol`, `column` (see `_columns`), `variant`,
    `metric` (the primary one), `value`, `higher_is_better`, `metric.<name>`, `selection` (the metric on the task's selection rows by which
    the checkpoint was kept, larger is better), `origin` (of the learning rate: paper, tuned, default, override), `n` (examples),
    `predictions` (file in the cell's folder), `tokenizer` (hash; of metrics that count its tokens), `rows`, `data`, `numerics` (dicts),
    `deterministic`, `model_note`, and costs: parameters `trainable_method`, `trainable_head`, `total`; `sparsity_prunable`, `sparsity_all`
    (fractions of zeros); `bytes` (exported weights), `bytes_shipped` (what differs from the base: whole tensors, or a sparse vector where
    the cell left one); `seconds`; `tokens_per_second`; `flops` (training); `peak_memory` (bytes).
    These are the cell's own; the cells that it was made from cost `inherited_flops` and `inherited_seconds`, each as in `inherited`.
    Files that cannot be read are logged by name, listed in `attrs["damaged"]`, and left out. Raises `UserError` if nothing is there.
    """
    if not store.is_dir():
        raise UserError(f"there is no store {store}; give the folder of the records: --store <folder>")
    damaged: list[str] = []
    members = Store(store).members(sweep) if sweep else set()
    rows = [
        row
        for folder in _cells(store)
        for row in _read(Store(store), folder.name, damaged)
        if sweep in (None, row["sweep"]) or row["cell"] in members
    ]
    if not any(row["status"] == DONE for row in rows):
        wanted = f" of sweep {sweep}" if sweep else ""
        raise UserError(f"{store} has no finished cells{wanted}; run `parebench -m +sweeps=<name>` first or give another --store")
    frame = add_labels(pd.DataFrame(_with_protocols(rows)))
    frame["column"] = _columns(frame)
    frame = frame.sort_values(["model", "label", "column", "seed", "cell"], ignore_index=True)
    frame.attrs["damaged"] = damaged
    return frame


def predictions(store: Path, cell: str, file: str) -> pd.DataFrame:
    """Per-example predictions of one result; columns as in `harness.record.Result.predictions`."""
    path = Store(store).folder(cell) / file
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run the cell again with run.force=true") from error


def _cells(store: Path) -> Iterator[Path]:
    """Folders of finished or failed cells."""
    found = {path.parent for name in ("record.json", "outcome.json") for path in store.glob(f"*/{name}")}
    return iter(sorted(found))


def _read(store: Store, cell: str, damaged: list[str]) -> list[dict[str, Any]]:
    """The rows of one cell: one per result, or one for its failure."""
    try:
        record = store.record(cell)
        if record and (damage := store.damage(record)):
            raise ValueError(damage)
        return [_row(record, result) for result in record.results] if record else [_failure(store.folder(cell))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is damaged and was not read: %s", store.folder(cell), error)
        damaged.append(cell)
        return []


def _row(record: Record, result: Result) -> dict[str, Any]:
    return {
        "cell": record.cell, "status": DONE, "reason": "", "sweep": record.sweep, "seed": record.seed,
        **_configuration(record.identity),
        "protocol": result.protocol, "variant": result.variant, "version": result.version,
        "metric": result.primary, "value": result.metrics[result.primary], "higher_is_better": result.higher_is_better,
        **{f"metric.{name}": value for name, value in result.metrics.items()},
        "selection": record.selection.get("metric"), "origin": record.origins.get("lr"),
        "n": result.n, "predictions": result.predictions, "rows": result.rows, "tokenizer": result.tokenizer,
        **_costs(record),
        "deterministic": record.deterministic, "model_note": record.model_note, "data": record.data, "numerics": record.numerics,
    }  # fmt: skip


def _failure(folder: Path) -> dict[str, Any]:
    """A cell without a record: its outcome and the configuration it was started with."""
    outcome = json.loads((folder / "outcome.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    lines = outcome.get("lines") or [""]
    return {
        "cell": folder.name, "status": outcome["status"], "reason": lines[-1].strip(), "sweep": (config.get("run") or {}).get("sweep"),
        "seed": config["seed"], **_configuration(config),
    }  # fmt: skip


def _configuration(half: dict[str, Any]) -> dict[str, Any]:
    """Config columns of a record's identity or of a `config.json`; a cell that does not train has no recipe."""
    method = {key: value for key, value in half["method"].items() if key not in ("name", "recipes")}
    return {
        "method": title(half["method"]), "model": half["model"]["name"], "task": half["task"]["name"],
        "budget": half["budget"]["name"], "precision": half["precision"],
        **_flat("method", method), **_flat("recipe", half.get("recipe") or {}),
        **{f"{text}.source": (half.get(text) or {}).get("source") for text in ("corpus", "calibration") if half.get(text)},
    }  # fmt: skip


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    """Nested keys joined by dots; lists as text, so that every value can be compared."""
    if isinstance(value, dict):
        return {key: leaf for name, part in value.items() for key, leaf in _flat(f"{prefix}.{name}", part).items()}
    return {prefix: ",".join(map(str, value)) if isinstance(value, list) else value}


def _costs(record: Record) -> dict[str, Any]:
    inherited: dict[str, dict[str, Any]] = record.costs.get("inherited") or {}
    costs, training = record.costs, [phase for phase in record.phases if phase.steps > 0]
    parameters, sparsity = costs.get("parameters") or {}, costs.get("sparsity") or {}
    seconds = sum(phase.seconds for phase in training)
    peaks = [phase.peak_device or phase.peak_rss for phase in record.phases]
    return {
        "trainable_method": parameters.get("trainable_method"), "trainable_head": parameters.get("trainable_head"),
        "total": parameters.get("total"),
        "sparsity_prunable": sparsity.get("prunable"), "sparsity_all": sparsity.get("all"),
        "bytes": costs.get("bytes"), "bytes_shipped": (costs.get("delta") or costs.get("changed") or {}).get("bytes"),
        "seconds": record.seconds, "tokens_per_second": sum(p.tokens for p in training) / seconds if seconds else None,
        "flops": (costs.get("flops") or {}).get("training"), "peak_memory": max(peaks, default=None),
        "inherited_flops": sum(made["flops"] for made in inherited.values()),
        "inherited_seconds": sum(made["seconds"] for made in inherited.values()), "inherited": inherited,
    }  # fmt: skip


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
