"""Starting a finished sweep of 1,000 cells again: `python -m pytest -m bench tests/bench/sweep_restart.py -s`; prints one JSON line."""

import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from harness import plan
from harness.cli import register_sweeps
from harness.compose import Compositions
from harness.plan import Planned
from harness.store import Store
from tests.contract.toy import write_toy_data
from tests.killing import command, done, start

METHODS, RATES, SEEDS = ("lora", "bitfit", "full_ft", "ia3"), ("1e-4", "3e-4", "1e-3", "3e-3", "1e-2"), range(50)
LIMIT = 90.0
"""Seconds of the whole command."""


def planned(overrides: list[str]) -> list[Planned]:
    """The grid's cells as the command plans them."""
    cells = [[*overrides, f"method={m}", f"recipe.lr={lr}", f"seed={seed}"] for m in METHODS for lr in RATES for seed in SEEDS]
    GlobalHydra.instance().clear()
    register_sweeps()
    with hydra.initialize_config_module("conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
        return plan.check_all(cells, Compositions(loader, master))


@pytest.mark.bench
def test_a_finished_sweep_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One real cell runs; its record and predictions stand under every cell's identity."""
    data, log, store = write_toy_data(tmp_path / "data"), tmp_path / "log", Store(tmp_path / "runs")
    tiny = ["model=tiny_bert", "task=demo/sst2", "task.limit=8", "budget=smoke", f"data_dir={data}"]
    fixed = [word for word in command(store.root, *tiny) if "=" in word]
    cells = planned(fixed)
    first = command(store.root, *tiny, "method=lora", "recipe.lr=1e-4", "seed=0", many=False)
    assert start(first, log).wait() == 0, log.read_text()
    (record,) = store.records()
    monkeypatch.setattr(os, "fsync", lambda file: None)  # of the layout only; it is not what is measured
    for cell in cells:
        if cell.cell != record.cell:
            shutil.copytree(store.folder(record.cell), cell.folder)
            seed, identity = cell.resolved.cell.seed, cell.identity
            store.write(replace(record, cell=cell.cell, identity=identity.canonical, sources=identity.sources, seed=seed))
    before = done(store)
    assert len(before) == len(METHODS) * len(RATES) * len(SEEDS) == 1000
    axes = [f"method={','.join(METHODS)}", f"recipe.lr={','.join(RATES)}", f"seed={','.join(map(str, SEEDS))}"]
    log.unlink()
    began = time.perf_counter()
    code = start(command(store.root, *tiny, *axes), log).wait()
    seconds = time.perf_counter() - began
    sys.stdout.write(json.dumps({"cells": len(before), "seconds": round(seconds, 1), "load": round(os.getloadavg()[0], 1)}) + "\n")
    assert code == 0, log.read_text()
    assert "1000 cells: 0 to run, 1000 already done" in log.read_text()
    assert done(store) == before
    assert seconds < LIMIT
