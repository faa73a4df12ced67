"""Status of a store with 10,000 records: run as `python -m pytest -m bench tests/bench/sweep_scale.py -s`; prints one JSON line."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.record import NUMERICS, SCHEMA, Phase, Record, Result
from harness.sourcetexts import sources
from harness.store import SWEEPS, Store, write_json

ROOT = Path(__file__).resolve().parents[2]
CELLS = 10_000
LIMIT = 3.0
"""Seconds in which `parebench-sweep status` has to answer."""
ROWS = {"dataset": "glue/sst2", "official": True, "revision": "local:glue/sst2/validation.parquet", "rows": 872, "sha256": "5eed" * 16}
RECIPE = {"lr": 1e-3, "head_lr": None, "batch": 32, "epochs": 3.0, "schedule": "linear", "warmup": 0.06, "weight_decay": 0.01}


def template() -> Record:
    """A record of the size that real ones have: about 5 KB."""
    identity = {
        "method": {"name": "lora", "r": 8, "alpha": 16.0, "dropout": 0.0, "targets": ["q", "v"]},
        "model": {"name": "minilm", "family": "encoder", "max_length": 512, "weights": "wheel:" + "b9a0" * 16},
        "task": {"name": "glue/sst2", "kind": "classification", "limit": None, "version": 1},
        "data": {"train": "3727" * 16, "validation": "3bf2" * 16},
        "budget": {"name": "short", "examples": 19200, "evaluations": 5},
        "recipe": RECIPE,
        "precision": "bf16_autocast",
    }
    metrics = {"accuracy": 0.84, "f1": 0.85, "loss": 0.4}
    results = [
        Result("glue/sst2@heldout", name, metrics, "accuracy", True, 872, ROWS, "evals/x.parquet", 1, 2.6) for name in ("main", "last")
    ]
    counts = {name: {"total": 22787714, "nonzero": 22713983} for name in ("all", "prunable", "head", "method")}
    costs = dict.fromkeys(("parameters", "nonzero", "memory", "flops", "changed", "shipped"), counts)
    numerics = {"harness": NUMERICS, "device": "cpu", "threads": 1, "packages": {f"package{n}": "1.2.3" for n in range(8)}}
    return Record(
        SCHEMA, "", "done", identity, dict.fromkeys(RECIPE, "default"), "big", 0, False, "a note", results, {"rule": "heldout"},
        costs, [Phase("main", 600, 19200, 255840, 290.4, 10**9, 0)], {}, dict.fromkeys(("train", "evaluation", "selection"), ROWS),
        numerics, sources("lora"), 298.5,
    )  # fmt: skip


def lay_out(root: Path) -> None:
    """The store of a finished sweep: records, configurations, one ended attempt each, one manifest."""
    store, record = Store(root), template()
    ids = [f"{n:012x}" for n in range(CELLS)]
    for n, cell in enumerate(ids):
        folder = store.folder(cell)
        store.write(replace(record, cell=cell, seed=n))
        (folder / "attempts").mkdir()
        (folder / "attempts" / "1.json").write_text("{}")
        (folder / "attempts" / "1.end.json").write_text("{}")
        (folder / "config.json").write_text(json.dumps(record.identity | {"seed": n}))
    cells = [
        {"cell": c, "label": f"lora minilm glue/sst2 seed {n}", "overrides": ["method=lora", f"seed={n}"], "state": "run", "reason": ""}
        for n, c in enumerate(ids)
    ]
    write_json(root / SWEEPS / "big" / "0.json", {"sweep": "big", "argv": [], "written": time.time(), "cells": cells})


def measure(root: Path, *arguments: str) -> tuple[float, str]:
    """Seconds of the whole command, its interpreter's start included, and what it printed."""
    command = [sys.executable, "-m", "harness.sweep_cli", "status", *arguments, "--store", str(root)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": path})
    return time.perf_counter() - started, done.stdout


@pytest.mark.bench
def test_status_of_ten_thousand_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # of the layout only; it is not what is measured
    lay_out(tmp_path)
    table, text = measure(tmp_path, "big")
    overview, _ = measure(tmp_path)
    assert text.count("\n") >= CELLS
    bytes_each = (tmp_path / f"{0:012x}" / "record.json").stat().st_size
    found = {"cells": CELLS, "record_bytes": bytes_each, "sweep_seconds": round(table, 2), "overview_seconds": round(overview, 2)}
    sys.stdout.write(json.dumps(found) + "\n")
    assert max(table, overview) < LIMIT
