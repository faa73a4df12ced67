"""Tables of a store with 10,000 SIMULATED records: `python -m pytest -m bench tests/bench/report_scale.py -s`; prints one JSON line.

The first load reads every record; the limits are on what a person waits for afterwards.
"""

import json
import sys
import time
from pathlib import Path

import pytest

from analysis import index
from analysis.layout import layout
from analysis.load import load
from analysis.page_command import report
from analysis.tables import table
from harness.store import Store
from tests.analysis.simulate import grid

METHODS, MODELS, TASKS, SEEDS = 40, 5, 10, 5
TABLE, PAGE = 5.0, 15.0
"""Seconds for load and table from the index, and for the page."""
LARGEST = 25e6
"""Bytes of the page."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 methods on 5 models and 10 tasks with 5 seeds, 200 examples each."""
    root = tmp_path_factory.mktemp("scale") / "runs"
    cells = [{"cell": cell} for cell in grid(root, METHODS, MODELS, TASKS, SEEDS, gain=0.005)]
    Store(root).join("simulated", [], cells)
    time.sleep(index.SETTLED)
    return root


@pytest.mark.bench
def test_a_table_of_10_000_records_takes_seconds(store: Path) -> None:
    measured = {"records": METHODS * MODELS * TASKS * SEEDS}
    started = time.perf_counter()
    load(store)
    measured["first_load_s"] = round(time.perf_counter() - started, 2)
    started, computed = time.perf_counter(), time.process_time()
    frame = load(store)
    measured["load_s"] = round(time.perf_counter() - started, 2)
    made = table(frame, store, layout(None))
    measured["load_and_table_s"] = round(time.perf_counter() - started, 2)
    measured["load_and_table_cpu_s"] = round(time.process_time() - computed, 2)
    started = time.perf_counter()
    text = report(made, frame, store, None, layout(None), None, ["page"])
    measured |= {"page_s": round(time.perf_counter() - started, 2), "page_mb": round(len(text.encode()) / 1e6, 2)}
    sys.stdout.write(json.dumps(measured) + "\n")
    assert len(made.rows) == METHODS * MODELS
    assert measured["load_and_table_s"] < TABLE
    assert measured["page_s"] < PAGE
    assert measured["page_mb"] * 1e6 < LARGEST
