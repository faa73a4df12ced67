"""What one sweep costs against separate commands: `python -m pytest -m bench tests/bench/sweep_overhead.py -s`; prints one JSON line.

The overhead of a cell is its attempt's wall time (from before its lease is taken until its last process has ended, as the
dispatcher notes it in `attempts/<n>.end.json`) minus the `seconds` of its record (loading, training and evaluation, measured by
the cell itself). So two forked processes, the export's verification, the record and the lease are overhead.
"""

import json
import os
import statistics
import sys
import time
from pathlib import Path

import pytest

from harness import lease
from harness.store import Store
from tests.contract.toy import write_toy_data
from tests.killing import command, start

CELLS, WORKERS = 16, 2
SHARE, OVERHEAD = 0.20, 0.7
"""Wall time of the sweep relative to separate commands; seconds per cell."""


def timed(argv: list[str], log: Path) -> float:
    """Seconds of a whole command that must end well."""
    began = time.perf_counter()
    assert start(argv, log).wait() == 0, log.read_text()
    return time.perf_counter() - began


@pytest.mark.bench
def test_a_sweep_against_separate_commands(tmp_path: Path) -> None:
    log, data = tmp_path / "log", write_toy_data(tmp_path / "data")
    tiny = ["method=lora", "model=tiny_bert", "task=demo/sst2", "task.limit=8", "budget=smoke", f"data_dir={data}"]
    seeds = ",".join(map(str, range(CELLS)))
    together = timed(command(tmp_path / "sweep", *tiny, f"seed={seeds}", f"hydra.launcher.workers={WORKERS}"), log)
    separate = 0.0
    for seed in range(CELLS):
        separate += timed(command(tmp_path / "separate", *tiny, f"seed={seed}", many=False), log)
    store = Store(tmp_path / "sweep")
    overheads = [lease.ending(store.folder(r.cell), r.attempts)["seconds"] - r.seconds for r in store.records()]
    assert len(overheads) == CELLS == len(list(Store(tmp_path / "separate").records()))
    found = {
        "cells": CELLS, "workers": WORKERS, "sweep_seconds": round(together, 1), "separate_seconds": round(separate, 1),
        "ratio": round(together / separate, 3), "overhead_median": round(statistics.median(overheads), 2),
        "overhead_max": round(max(overheads), 2), "load": round(os.getloadavg()[0], 1), "cores": os.cpu_count(),
    }  # fmt: skip
    sys.stdout.write(json.dumps(found) + "\n")
    assert found["ratio"] <= SHARE
    assert found["overhead_median"] <= OVERHEAD
