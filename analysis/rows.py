"""One cell as rows of the tidy frame: a record one row for each result, a failure one row. What the columns are: `analysis.load`."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from harness.record import Record, Result
from harness.registry import files, load_spec, title

DONE = "done"


def of_record(record: Record) -> list[dict[str, Any]]:
    """A row for each protocol and variant of a finished cell."""
    return [_row(record, result) for result in record.results]


def of_failure(cell: str, outcome: Mapping[str, Any], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A cell without a record: its `outcome.json` and the configuration it was started with."""
    lines = outcome.get("lines") or [""]
    return [{
        "cell": cell, "status": outcome["status"], "reason": lines[-1].strip(), "sweep": (config.get("run") or {}).get("sweep"),
        "seed": config["seed"], **_configuration(config),
    }]  # fmt: skip


def with_added(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with the keys that methods got later, at the values that records leave out (`harness.typed.plain`)."""
    return [_added(row["method"]) | row for row in rows]


@cache
def _added(method: str) -> dict[str, Any]:
    """`method.<key>` -> value; nothing of chains and of methods that are gone."""
    config = fields(load_spec(method).config) if method in files() else ()
    return {f"method.{key.name}": key.metadata["added"] for key in config if "added" in key.metadata}


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
        "sources": record.sources, "measured_by": result.task or record.identity["task"]["name"],
    }  # fmt: skip


def _configuration(half: dict[str, Any]) -> dict[str, Any]:
    """Config columns of a record's identity or of a `config.json`; a cell that does not train has no recipe."""
    method = {key: value for key, value in half["method"].items() if key not in ("name", "recipes")}
    return {
        "method": title(half["method"]), "model": half["model"]["name"], "task": half["task"]["name"],
        "budget": half["budget"]["name"], "precision": half["precision"],
        **_flat("method", method), **_flat("recipe", half.get("recipe") or {}),
        **_flat("budget", {key: value for key, value in half["budget"].items() if key != "name"}),
        **{key: value for text in ("corpus", "calibration") for key, value in _flat(text, half.get(text) or {}).items()},
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
