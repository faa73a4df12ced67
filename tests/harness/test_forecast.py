"""Forecasts against arithmetic done by hand."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.forecast import NONE, SAME, SIMILAR, Earlier, Estimate, forecast
from harness.human import columns, duration, size
from harness.preview import text
from harness.store import Store
from tests.harness.stores import record


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """lora in 10, 20 and 60 s and full_ft in 40 s for 64 examples; bitfit in 300 s for 3 epochs of 100 rows; none in 5 and 7 s."""
    store = Store(tmp_path / "runs")
    for cell, seconds in (("l1", 10.0), ("l2", 20.0), ("l3", 60.0)):
        store.write(record(cell, seconds=seconds, size=1000))
    store.write(record("f1", "full_ft", seconds=40.0))
    store.write(record("b1", "bitfit", seconds=300.0, examples=None, budget="paper"))
    store.write(record("n1", "none", seconds=5.0, trained=False))
    store.write(record("n2", "none", seconds=7.0, trained=False))
    return store


def half(method: str, **settings: object) -> dict:
    """What identifies a cell to come."""
    return record("new", method, **settings).identity


def kept(store: Store, cell: str) -> int:
    """Bytes of a cell's only file."""
    return (store.folder(cell) / "record.json").stat().st_size


def test_the_median_of_equal_cells_whatever_their_seed_and_settings(store: Store) -> None:
    earlier = Earlier(store, list(store.records()))
    found = earlier.estimate(half("lora", seed=7, settings={"r": 64}))
    assert found == Estimate(SAME, 20.0, kept(store, "l1"))
    assert earlier.estimate(half("lora"), keep_model=True).bytes == kept(store, "l1") + 1000
    assert earlier.estimate(half("none", trained=False)).seconds == 6.0


def test_other_methods_scaled_by_training_examples(store: Store) -> None:
    """128 examples: 10, 20, 60, 40 s for 64 double, 300 s for 3 * 100 scale by 128/300: 20, 40, 80, 120, 128; the median is 80."""
    found = Earlier(store, list(store.records())).estimate(half("dora", examples=128, budget="short"))
    assert (found.basis, found.seconds) == (SIMILAR, pytest.approx(80.0))


def test_a_budget_in_epochs_uses_the_rows_that_a_record_saw(store: Store) -> None:
    """6 epochs of 100 rows: 600 examples, so 600/64 of 10, 20, 40, 60 s and twice 300 s: 94, 188, 375, 562, 600."""
    found = Earlier(store, list(store.records())).estimate(half("dora", examples=None, epochs=6.0, budget="long"))
    assert found.seconds == pytest.approx(40 * 600 / 64)


def test_an_untrained_cell_is_not_estimated_from_trained_ones(store: Store) -> None:
    assert Earlier(store, list(store.records())).estimate(half("magnitude", trained=False)) == Estimate(
        SIMILAR, 6.0, (kept(store, "n1") + kept(store, "n2")) / 2
    )


def test_no_basis_without_a_record_of_the_model_and_task(store: Store) -> None:
    assert Earlier(store, list(store.records())).estimate(half("lora", task="glue/rte")) == Estimate(NONE)
    assert Earlier(store, []).estimate(half("lora")) == Estimate(NONE)


@pytest.mark.parametrize(("workers", "expected"), [(1, 100.0), (2, 50.0), (4, 40.0)])
def test_wall_time_is_shared_by_the_workers_but_no_shorter_than_one_cell(workers: int, expected: float) -> None:
    found = forecast([Estimate(SAME, 40.0, 3.0), Estimate(SAME, 30.0, 4.0), Estimate(SIMILAR, 30.0, 5.0), Estimate(NONE)], workers)
    assert (found.seconds, found.bytes) == (expected, 12.0)
    assert found.basis == {SAME: 2, SIMILAR: 1, NONE: 1}


def test_the_preview_counts_states_and_says_what_it_rests_on(store: Store) -> None:
    run = SimpleNamespace(store=str(store.root), keep_model=False)
    common = {"resolved": SimpleNamespace(run=run), "label": "x", "overrides": ("method.r=4",), "reason": ""}
    cells = [
        SimpleNamespace(state="run", cell="c1", identity=SimpleNamespace(canonical=half("lora")), **common),
        SimpleNamespace(state="run", cell="c2", identity=SimpleNamespace(canonical=half("lora", task="glue/rte")), **common),
        SimpleNamespace(state="done", cell="c3", identity=None, **common),
        *[SimpleNamespace(state="skipped", cell="", identity=None, **common | {"reason": "it cannot be"})] * 2,
    ]
    lines = text(cells, 2).splitlines()
    assert lines[0] == "5 cells: 2 run, 1 done, 2 skipped"
    assert "2        it cannot be" in lines
    assert lines[-1] == (
        f"about 0:20 with 2 workers and {size(kept(store, 'l1'))} on disk; "
        "of 2 cells: 1 as earlier cells like it, 1 no earlier record (not counted)"
    )
    assert "c3" not in "".join(lines)


def test_durations_sizes_and_columns() -> None:
    assert [duration(s) for s in (None, 7.4, 750, 11045, 183845)] == ["", "0:07", "12:30", "3:04:05", "2 d 03:04"]
    assert [size(n) for n in (0, 999, 1000, 999_600, 20_400_000, 1.5e9)] == ["0 B", "999 B", "1.0 KB", "1.0 MB", "20 MB", "1.5 GB"]
    assert columns([("a", "empty", "b"), ("long", "", "x"), ("y", "", "")]) == "a     b\nlong  x\ny\n"
