"""Only published rows pass as a split: truncated, relabelled and edited ones are refused, a declared part says that it is one."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from methods.spec import UserError
from tasks import published
from tasks.datasets import DATASETS
from tasks.sources import Sources


def put(folder: Path, name: str, table: pa.Table) -> Sources:
    """Sources over a folder with one file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return Sources(folder, folder / "assets", offline=True)


@pytest.fixture
def rte(shared_data: Path) -> pa.Table:
    return pq.read_table(shared_data / "glue/rte/validation.parquet")


def test_published_rows_pass(tmp_path: Path, rte: pa.Table) -> None:
    rows = put(tmp_path, "glue/rte/validation.parquet", rte).rows("glue/rte", "validation")
    assert rows.official is True and len(rows.data) == 277


def test_truncated_rows_are_refused_and_a_declared_part_is_not_official(tmp_path: Path, rte: pa.Table) -> None:
    with pytest.raises(UserError, match=r"has 200 rows and glue/rte validation has 277 as published; replace it, or call it"):
        put(tmp_path, "glue/rte/validation.parquet", rte[:200]).rows("glue/rte", "validation")
    rows = put(tmp_path / "declared", "glue/rte/validation_partial.parquet", rte[:200]).rows("glue/rte", "validation")
    assert (len(rows.data), rows.official, rows.revision) == (200, False, "local:glue/rte/validation_partial.parquet")


def test_a_refused_split_has_no_fingerprint(tmp_path: Path, rte: pa.Table) -> None:
    """So that a sweep ends before its first cell."""
    with pytest.raises(UserError, match="277 as published"):
        put(tmp_path, "glue/rte/validation.parquet", rte[:276]).fingerprint("glue/rte", "validation")


@pytest.mark.parametrize("change", ["one label", "order", "a space"])
def test_rows_of_other_content_are_refused(tmp_path: Path, rte: pa.Table, change: str) -> None:
    rows = rte.to_pylist()
    if change == "one label":
        rows[3]["label"] = 1 - rows[3]["label"]
    elif change == "order":
        rows[0], rows[1] = rows[1], rows[0]
    else:
        rows[5]["sentence1"] += " "
    with pytest.raises(UserError, match=r"has the 277 rows of glue/rte validation but other content than published"):
        put(tmp_path, "glue/rte/validation.parquet", pa.Table.from_pylist(rows)).rows("glue/rte", "validation")


def test_flipped_labels_of_a_training_set_are_refused(tmp_path: Path, shared_data: Path) -> None:
    table = pq.read_table(shared_data / "glue/rte/train.parquet")
    flipped = pa.array([1 - label for label in table["label"].to_pylist()])
    table = table.set_column(table.schema.get_field_index("label"), "label", flipped)
    with pytest.raises(UserError, match=r"\(1241, 1249\) of each label where \(1249, 1241\) are published: relabelled"):
        put(tmp_path, "glue/rte/train.parquet", table).rows("glue/rte", "train")


def test_the_hubs_rows_are_counted_too() -> None:
    table = pa.table({"premise": ["p"], "hypothesis": ["h"], "label": [2]})
    with pytest.raises(UserError, match=r"^hub nyu-mll/glue has 1 rows and glue/mnli validation_matched has 9815 as published"):
        published.check(table, "glue/mnli", "validation_matched", None)


def test_what_is_known_agrees_with_the_counts() -> None:
    assert all(sum(counts) == DATASETS[name].splits[split].rows for (name, split), counts in published.LABELS.items())
    assert all(split in DATASETS[name].splits for name, split in published.HASHES)


def test_local_partial_data_is_declared(shared_data: Path, tmp_path: Path) -> None:
    here = Sources(shared_data, tmp_path, offline=True)
    found = {name: here.rows(name, "train") for name in ("glue/qqp", "hellaswag", "commonsense_147k")}
    assert {name: (len(rows.data), rows.official) for name, rows in found.items()} == dict.fromkeys(found, (20000, False))
