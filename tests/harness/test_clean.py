"""`clean` takes what is not needed: never a record, never what a cell needs to go on, never anything of a cell that somebody runs."""

import os
import time
from pathlib import Path

import pytest

from harness import clean
from harness.store import Store
from tests.harness import stores

WEEK_AGO = time.time() - 7 * 86400


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """`done` is finished, `open` is not, `live` is finished and run by somebody; all with checkpoints, once, a model and asides."""
    stores.living(monkeypatch, live="s")
    store = Store(tmp_path / "runs")
    for cell in ("done", "open", "live"):
        folder = stores.begun(store, cell, ended=stores.OPEN)
        for name, length in (("checkpoints/main/step-2/m", 100), ("once/x/v", 10), ("model/w", 1000), ("evals/x.parquet", 7)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"x" * length)
        written(folder / ".config.json.0a1b2c3d", 5, WEEK_AGO)
        written(folder / "attempts" / ".3.json.0a1b2c3d", 3, time.time())
        written(folder / "evals" / ".x.aside" / "half", 2, WEEK_AGO)
        os.utime(folder / "evals" / ".x.aside", (WEEK_AGO, WEEK_AGO))
    for cell in ("done", "live"):
        store.write(stores.record(cell))
    return store


def written(path: Path, length: int, when: float) -> None:
    """A file of a size and an age."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * length)
    os.utime(path, (when, when))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_goes_of_each_cell_and_how_much(store: Store) -> None:
    before = {cell: snapshot(store.folder(cell)) for cell in ("done", "open", "live")}
    found = clean.removals(store, None)
    assert clean.by_kind(found) == {clean.CHECKPOINTS: (2, 110), clean.ASIDE: (4, 2 * 5 + 2 * 2)}
    assert clean.remove(store, found) == 124
    assert snapshot(store.folder("live")) == before["live"]
    gone = {cell: before[cell].keys() - snapshot(store.folder(cell)).keys() for cell in ("done", "open")}
    asides = {".config.json.0a1b2c3d", "evals/.x.aside/half"}
    assert gone == {"done": asides | {"checkpoints/main/step-2/m", "once/x/v"}, "open": asides}
    assert clean.removals(store, None) == []


def test_a_damaged_record_keeps_all_it_needs_to_be_made_again(store: Store) -> None:
    (store.folder("done") / "record.json").write_text("{")
    assert clean.CHECKPOINTS not in clean.by_kind(clean.removals(store, None, models=True))


def test_a_cell_that_somebody_begins_after_the_question_is_left_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    found = clean.removals(store, ["done"])
    stores.living(monkeypatch, done="s")
    before = snapshot(store.root)
    assert clean.remove(store, found) == 0
    assert snapshot(store.root) == before


def test_a_young_aside_or_one_with_a_young_file_stays(store: Store) -> None:
    folder = store.folder("open")
    written(folder / "checkpoints" / ".step-4.0a1b2c3d" / "weights", 50, time.time() - 60)
    os.utime(folder / "checkpoints" / ".step-4.0a1b2c3d", (WEEK_AGO, WEEK_AGO))
    assert {one.path.name for one in clean.removals(store, ["open"])} == {".config.json.0a1b2c3d", ".x.aside"}


def test_models_go_on_request_unless_a_record_or_a_planned_cell_depends_on_them(store: Store) -> None:
    def models() -> set[str]:
        return {one.cell for one in clean.removals(store, None, models=True) if one.kind == clean.MODELS}

    assert models() == {"done"}
    store.write(stores.record("child", dependencies=["done"]))
    assert models() == set()
    (store.folder("child") / "record.json").unlink()
    assert models() == {"done"}
    stores.manifest(store, "open")
    path = store.root / ".sweeps" / "s" / "0.json"
    path.write_text(path.read_text().replace('"label": ', '"dependencies": {"teacher": "done"}, "label": '))
    assert models() == set()


def test_what_lies_beside_a_model_goes_with_it(store: Store) -> None:
    for name in ("adapter/a", "delta/delta.safetensors", "model.packed.safetensors"):
        written(store.folder("done") / name, 10, WEEK_AGO)
    found = [one for one in clean.removals(store, ["done"], models=True) if one.kind == clean.MODELS]
    assert {one.path.name: one.bytes for one in found} == {"model": 1000, "adapter": 10, "delta": 10, "model.packed.safetensors": 10}
    clean.remove(store, found)
    assert not any(one.path.exists() for one in found)


def test_a_sweep_cleans_its_own_cells_and_all_cleans_what_is_outside_of_cells(store: Store) -> None:
    written(store.root / ".replaced" / "done-1" / "record.json", 20, WEEK_AGO)
    written(store.root / ".replaced" / "other-1" / "record.json", 40, WEEK_AGO)
    written(store.root / ".sources" / ".x.py.0a1b2c3d", 60, WEEK_AGO)
    written(store.root / ".sources" / "kept.py", 60, WEEK_AGO)
    own = clean.by_kind(clean.removals(store, ["done", "never begun", ""]))
    assert own == {clean.CHECKPOINTS: (2, 110), clean.ASIDE: (2, 7), clean.REPLACED: (1, 20)}
    everything = clean.by_kind(clean.removals(store, None))
    assert everything == {clean.CHECKPOINTS: (2, 110), clean.ASIDE: (5, 74), clean.REPLACED: (2, 60)}


def test_a_link_is_removed_and_not_what_it_points_to(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    written(outside / "precious", 10, WEEK_AGO)
    store.write(stores.record("linked"))
    (store.folder("linked") / "checkpoints").symlink_to(outside)
    clean.remove(store, clean.removals(store, ["linked"]))
    assert (outside / "precious").exists()
    assert not (store.folder("linked") / "checkpoints").is_symlink()
