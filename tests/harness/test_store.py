"""Records are whole or absent; a damaged one is reported and never read as a result."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.record import SCHEMA, Phase, Record, Result, from_json
from harness.store import Store, write_json


def record(cell: str = "0123456789ab") -> Record:
    """A record with one of everything."""
    result = Result("t@last", "main", {"accuracy": 0.5}, "accuracy", True, 2, {"rows": 2}, "evals/t.parquet", 1, 0.1)
    phase = Phase("main", 4, 64, 640, 1.5, 10, 0)
    return Record(SCHEMA, cell, "done", {"seed": 0}, {}, None, 0, False, "", [result], {}, {}, [phase], {}, {}, {}, {}, 2.0)


def test_a_record_comes_back_equal(tmp_path: Path) -> None:
    store = Store(tmp_path)
    written = record()
    store.write(written)
    assert len(written.checksum) == 64
    assert store.record("0123456789ab") == written == replace(record(), checksum=written.checksum)
    assert [r.cell for r in store.records()] == ["0123456789ab"]
    assert store.record("ffffffffffff") is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema": 1}', "null"])
def test_a_damaged_record_is_named_and_never_read(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    store.write(record())
    (tmp_path / "0123456789ab" / "record.json").write_text(damage)
    with pytest.raises(ValueError, match=r"0123456789ab.record\.json is damaged"):
        store.record("0123456789ab")


def test_another_schema_is_refused() -> None:
    with pytest.raises(TypeError, match="schema 99"):
        from_json({**record().to_json(), "schema": 99})


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
