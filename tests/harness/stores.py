"""Stores laid out by hand for the tests of `parebench-sweep`: simulated records, nothing here was measured."""

import json
import time
from pathlib import Path

import pytest

from harness.lease import Lease
from harness.record import NUMERICS, SCHEMA, Phase, Record, Result
from harness.store import SWEEPS, Store, write_json

ENDED, OPEN = True, False


def record(
    cell: str, method: str = "lora", seed: int = 0, *, seconds: float = 10.0, examples: int | None = 64, epochs: float = 3.0,
    budget: str = "smoke", rows: int = 100, dependencies: list[str] | None = None, trained: bool = True, task: str = "demo/sst2",
    size: int = 0, settings: dict | None = None,
) -> Record:  # fmt: skip
    """A simulated record."""
    identity = {
        "method": {"name": method, **(settings or {})}, "model": {"name": "tiny_bert"}, "task": {"name": task, "limit": None},
        "budget": {"name": budget, "examples": examples}, "precision": "float32", "seed": seed,
    }  # fmt: skip
    identity |= {"recipe": {"lr": 0.001, "epochs": epochs, "batch": 32}} if trained else {}
    identity |= {"dependencies": dependencies} if dependencies else {}
    result = Result("sst2@last", "main", {"accuracy": 0.625}, "accuracy", True, 8, {}, "evals/x.parquet", 1, 0.1)
    data = {"train": {"rows": rows}} if trained else {}
    return Record(
        SCHEMA, cell, "done", identity, {}, "s", seed, not trained, "", [result], {}, {"bytes": size},
        [Phase("main", 2, examples or 0, 640, 1.5, 10, 0)], {}, data, {"harness": NUMERICS}, {}, seconds,
    )  # fmt: skip


def begun(store: Store, cell: str, attempts: int = 1, ended: bool = ENDED) -> Path:
    """A cell's folder with its configuration and attempts; the newest has an end or not."""
    folder = store.folder(cell)
    half = record(cell).identity
    write_json(folder / "config.json", half | {"method": half["method"] | {"recipes": []}, "run": {"sweep": "s"}})
    for n in range(1, attempts + 1):
        lease = {"host": "h", "machine": "m", "pid": 1, "start": 0.0, "taken": time.time() - 60, "sweep": "s"}
        write_json(folder / "attempts" / f"{n}.json", lease)
        write_json(folder / "attempts" / f"{n}.worker.json", {"pid": 2, "start": 0.0})
        if n < attempts or ended:
            write_json(folder / "attempts" / f"{n}.end.json", {})
    return folder


def failed(store: Store, cell: str, status: str, last: str = "the last line") -> Path:
    """A cell whose newest attempt failed."""
    folder = begun(store, cell)
    outcome = {"cell": cell, "label": "", "status": status, "code": 4, "lines": ["first", f"  {last}\n", ""], "seconds": 7.25}
    write_json(folder / "outcome.json", outcome)
    return folder


def manifest(store: Store, *cells: str, sweep: str = "s", argv: tuple[str, ...] = (), name: str = "0", written: float = 1.0) -> None:
    """One command of a sweep; a cell is `id` or `id override override ...`, an impossible one begins with a blank."""
    listed = []
    for text in cells:
        cell, *overrides = text.split(" ")
        state, reason = ("run", "") if cell else ("skipped", "it cannot be")
        listed.append({"cell": cell, "label": f"label {cell}".strip(), "overrides": overrides, "state": state, "reason": reason})
    content = {"sweep": sweep, "argv": list(argv), "written": written, "cells": listed}
    write_json(store.root / SWEEPS / sweep / f"{name}.json", content)


def history(folder: Path, *lines: dict, torn: str = "") -> None:
    """A learning curve."""
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def living(monkeypatch: pytest.MonkeyPatch, **sweeps: str) -> dict[str, str]:
    """These cells have a living owner that runs them for a sweep; the mapping may be changed later."""
    taken = time.time() - 60
    monkeypatch.setattr(
        "harness.lease.holder",
        lambda folder: Lease(folder, 1, "h", "m", 1, "0", taken, sweeps[folder.name]) if folder.name in sweeps else None,
    )
    return sweeps
