"""What other code began is moved aside before a cell goes on; what the same code began is resumed."""

import json
from pathlib import Path

import pytest

from harness import origin
from harness.store import Store
from tests.harness.test_store import record

SOURCES = {"methods/a.py": "11", "methods/maths/b.py": "22"}


def begun(folder: Path) -> None:
    """What an interrupted attempt leaves."""
    (folder / "checkpoints" / "main").mkdir(parents=True)
    (folder / "checkpoints" / "main" / "x").touch()
    (folder / "history.jsonl").write_text("{}\n")
    (folder / "log.txt").touch()


def test_the_same_code_goes_on(tmp_path: Path) -> None:
    assert origin.claim(tmp_path, SOURCES, {}) is None
    begun(tmp_path)
    assert origin.claim(tmp_path, dict(SOURCES), {}) is None
    assert (tmp_path / "checkpoints" / "main" / "x").exists()


@pytest.mark.parametrize(
    ("sources", "needs"),
    [
        (SOURCES | {"methods/maths/b.py": "23"}, {}),
        ({"methods/a.py": "11"}, {}),
        (SOURCES, {"teacher": {"cell": "t", "checksum": "new", "weights": "ab"}}),
    ],
    ids=["shared maths edited", "an import gone", "another teacher"],
)
def test_what_other_code_began_is_moved_aside(tmp_path: Path, sources: dict, needs: dict) -> None:
    origin.claim(tmp_path, SOURCES, {})
    begun(tmp_path)
    assert origin.claim(tmp_path, sources, needs) == tmp_path / "superseded-1"
    assert sorted(path.name for path in (tmp_path / "superseded-1").iterdir()) == ["checkpoints", "history.jsonl"]
    assert not (tmp_path / "checkpoints").exists() and (tmp_path / "log.txt").exists()
    assert json.loads((tmp_path / origin.FILE).read_text())["sources"] == sources
    assert origin.claim(tmp_path, sources, needs) is None


def test_a_teacher_whose_record_alone_is_new_is_the_same_teacher(tmp_path: Path) -> None:
    origin.claim(tmp_path, SOURCES, {"teacher": {"cell": "t", "checksum": "old", "weights": "ab"}})
    begun(tmp_path)
    assert origin.claim(tmp_path, SOURCES, {"teacher": {"cell": "t", "checksum": "new", "weights": "ab"}}) is None
    assert origin.claim(tmp_path, SOURCES, {"teacher": {"cell": "t", "checksum": "new", "weights": "cd"}}) == tmp_path / "superseded-1"


def test_work_of_unknown_origin_is_not_resumed(tmp_path: Path) -> None:
    begun(tmp_path)
    assert origin.claim(tmp_path, SOURCES, {}) == tmp_path / "superseded-1"


def test_dependencies_are_named_by_their_record_and_weights(tmp_path: Path) -> None:
    store = Store(tmp_path)
    teacher = record("0123456789ab")
    teacher.weights = "77"
    store.write(teacher)
    found = origin.dependencies(store, {"teacher": "0123456789ab", "gone": "ffffffffffff"})
    assert found["teacher"] == {"cell": "0123456789ab", "checksum": teacher.checksum, "weights": "77"}
    assert found["gone"] == {"cell": "ffffffffffff", "checksum": "", "weights": ""}
