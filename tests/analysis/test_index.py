"""The index of a store gives what the records say, whatever happened to either; SIMULATED records."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import index
from analysis.compare import Samples
from analysis.load import load, predictions
from analysis.packed import Packed, pack
from harness.store import Store

from .simulate import record, scores, small_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that a sweep has written to, whose files count as settled at once."""
    monkeypatch.setattr(index, "SETTLED", 0.0)
    Store(small_store(tmp_path / "runs")).join("simulated", [], [])
    return tmp_path / "runs"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells whose records are read from their files, as they are read."""
    cells: list[str] = []
    original = Store.record
    monkeypatch.setattr(Store, "record", lambda self, cell: (cells.append(cell), original(self, cell))[1])
    return cells


def test_the_second_time_no_record_is_read_and_the_frame_is_the_same(store, read):
    first = load(store)
    assert len(read) == 13
    pd.testing.assert_frame_equal(load(store), first)
    assert len(read) == 13


def test_only_what_has_changed_is_read_again(store, read):
    before = load(store).set_index("cell")["value"]
    record(store, "lora1", "lora", 1, scores("lora", 1, 0.5), config={"r": 8})
    record(store, "lora9", "lora", 9, scores("lora", 9, 0.6), config={"r": 8})
    read.clear()
    after = load(store).set_index("cell")["value"]
    assert sorted(read) == ["lora1", "lora9"]
    assert (before["lora1"], after["lora1"], after["lora9"]) == (0.84, 0.5, 0.6)
    assert after.drop(["lora1", "lora9"]).equals(before.drop("lora1"))


def test_an_edit_that_hides_behind_size_and_time_is_seen(store):
    load(store)
    path = store / "lora1" / "record.json"
    status = path.stat()
    text = path.read_text()
    path.write_text(text.replace('"seed": 1', '"seed": 7'))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert load(store).attrs["damaged"] == ["lora1"]


def test_damaged_predictions_and_removed_cells_are_not_taken_from_the_index(store):
    load(store)
    (store / "lora1" / "evals" / "lora1.parquet").write_bytes(b"other")
    for path in sorted((store / "lora2").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    frame = load(store)
    assert frame.attrs["damaged"] == ["lora1"] and not {"lora1", "lora2"} & set(frame["cell"])
    assert index.opened(store).entries.keys() == set(frame["cell"])


def test_a_failed_cell_that_was_tried_again_is_done(store):
    assert load(store).set_index("cell")["status"]["bitfit2"] == "diverged"
    record(store, "bitfit2", "bitfit", 2, scores("bitfit", 2, 0.9), trainable=500)
    assert load(store).set_index("cell")["status"]["bitfit2"] == "done"


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100] + b"x" * 100)


def other_code(path: Path) -> None:
    index.write(path, index.read(path).replace_schema_metadata({}))
    table = index.read(path)
    index.pq.write_table(table.replace_schema_metadata({"made_by": "another version"}), path)


@pytest.mark.parametrize("spoil", [damage, other_code, lambda path: path.write_bytes(b""), Path.unlink])
def test_an_index_that_cannot_be_used_is_made_anew(spoil, store, read):
    first = load(store)
    for name in ("rows.parquet", "predictions.parquet"):
        spoil(store / index.FOLDER / name)
    read.clear()
    pd.testing.assert_frame_equal(load(store), first)
    assert len(read) == 13
    load(store)
    assert len(read) == 13


def test_a_folder_of_copied_records_and_one_that_is_not_ours_get_no_index(store, tmp_path):
    copies = small_store(tmp_path / "copies")
    load(copies)
    assert not (copies / index.FOLDER).exists()
    (store / index.FOLDER).write_text("in the way")
    pd.testing.assert_frame_equal(load(store), load(copies))
    assert [path.name for path in store.glob(".*")] == [".index"] or not list(store.glob(".*.parquet*"))


def test_records_of_the_last_moment_are_not_kept(store, monkeypatch, read):
    monkeypatch.setattr(index, "SETTLED", 60.0)
    load(store)
    assert index.opened(store).entries == {}
    read.clear()
    load(store)
    assert len(read) == 13


def test_two_writers_lose_nothing_but_time(store):
    first, second = index.Index(store), index.Index(store)
    rows = load(store)
    for one, cell in ((first, "lora0"), (second, "lora1")):
        one.keep(cell, ["record.json"], [], 1e12)
        one.save(["lora0", "lora1"])
    assert set(index.opened(store).entries) == {"lora1"}
    (store / index.FOLDER / "rows.parquet").unlink()
    pd.testing.assert_frame_equal(load(store), rows)


def test_packed_numbers_are_those_of_the_files(store):
    table = pd.DataFrame({
        "example": ["b", "a", "a"], "score": [1.0, 0.0, -0.0], "nll": [0.1, np.nan, 1e300], "label": [0, 300, -5], "half": [0.5, 0.25, 2.0],
        "right": [True, False, True], "answer": ["x", "y", "z"],
    })  # fmt: skip
    record(store, "mixed", "lora", 5, table, value=1 / 3)
    load(store)
    found = Packed(store).get("mixed", "evals/mixed.parquet")
    assert set(found) == set(table) - {"answer"}
    for name, values in found.items():
        expected = table[name].to_numpy()
        assert name == "example" or values.dtype == expected.dtype
        assert values.tolist() == expected.tolist() or values.tobytes() == expected.tobytes()
    file = store / "mixed" / "evals" / "mixed.parquet"
    table.iloc[:2].to_parquet(file)
    assert Packed(store).get("mixed", "evals/mixed.parquet") is None
    assert Packed(store).get("lora0", "evals/lora0.parquet")["score"].mean() == 0.85
    assert pack(store / "mixed", "evals/none.parquet") is None


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews"])
def test_samples_are_the_same_with_and_without_the_index(metric, store, tmp_path):
    answers = {"yes": 1, "no": 0}
    for root in (store, small_store(tmp_path / "copies")):
        for cell, texts in (("numbers", False), ("texts", True)):
            table = scores("lora", 3, 0.7)
            wanted = {"accuracy": table["score"].mean()}
            if metric != "accuracy":
                from sklearn.metrics import f1_score, matthews_corrcoef

                wanted[metric] = {"f1": f1_score, "matthews": matthews_corrcoef}[metric](table["label"], table["prediction"])
            if texts and metric == "matthews":
                names = {value: key for key, value in answers.items()}
                table = table.assign(label=table["label"].map(names), prediction=table["prediction"].map(names))
            record(root, cell, cell, 3, table, metric=metric, value=wanted[metric])
    frame = load(store)
    assert (store / index.FOLDER / "predictions.parquet").exists()
    for label in ("numbers", "texts"):
        with_index, without = (Samples(load(root), root).get("toy", *key(frame, label)) for root in (store, tmp_path / "copies"))
        assert np.array_equal(with_index.draws, without.draws) and with_index.examples == without.examples
        assert replace(with_index, draws=0, scores=0, values=0) == replace(without, draws=0, scores=0, values=0)


def key(frame: pd.DataFrame, label: str) -> tuple[str, str]:
    """Column and label of a method's row."""
    return frame.set_index("method")["column"][label], label


def test_predictions_are_read_from_their_file(store):
    load(store)
    pd.testing.assert_frame_equal(predictions(store, "lora0", "evals/lora0.parquet"), scores("lora", 0, 0.85))
