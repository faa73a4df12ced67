"""When a record is not about today's code, and what has changed."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness import sourcetexts, stale
from harness.record import NUMERICS, SCHEMA, Record, Result
from harness.store import Store


def made(cell: str, method: str = "magnitude", **changes) -> Record:
    """A fresh record of a method, as today's code would make it."""
    identity = {"method": {"name": method}, "task": {"name": "glue/sst2"}}
    result = Result("glue/sst2@heldout", "main", {"accuracy": 0.5}, "accuracy", True, 2, {}, "evals/p.parquet", 1, 0.1)
    fresh = Record(
        SCHEMA, cell, "done", identity, {}, None, 0, False, "", [result], {}, {}, [], {}, {}, {"harness": NUMERICS},
        sourcetexts.sources(method), 2.0,
    )  # fmt: skip
    return replace(fresh, **changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_a_fresh_record_has_no_reasons(store: Store) -> None:
    assert stale.reasons(made("a"), store) == []
    assert stale.difference(made("a"), store) == ""


def test_each_source_is_named_with_what_happened_to_it(store: Store) -> None:
    today = sourcetexts.sources("magnitude")
    own, masks = "methods/prune/magnitude.py", "methods/maths/masks.py"
    assert {own, masks} <= set(today)
    then = {**today, own: "0" * 16, "methods/maths/gone.py": "1" * 16}
    del then[masks]
    reasons = stale.reasons(made("a", sources=then), store)
    assert reasons == ["methods/maths/gone.py has gone from its imports", f"{masks} has joined its imports", f"{own} has changed"]


def test_a_method_that_is_gone_makes_its_records_stale(store: Store) -> None:
    record = made("a")
    record.identity["method"]["name"] = "magnitudo"
    assert stale.reasons(record, store) == ["method magnitudo has gone"]


def test_a_protocol_version_is_read_from_the_task_and_can_be_given(store: Store) -> None:
    assert stale.reasons(made("a"), store, version=2) == ["glue/sst2@heldout is of version 1, now 2"]
    old = made("a")
    old.results[0].version = 0
    assert stale.reasons(old, store) == ["glue/sst2@heldout is of version 0, now 1"]
    unknown = made("a")
    unknown.identity["task"]["name"] = "somebody/elses"
    assert stale.reasons(unknown, store) == []


def test_numerics_count(store: Store) -> None:
    reasons = stale.reasons(made("a", numerics={"harness": NUMERICS + 1}), store)
    assert reasons == [f"the harness computes with numerics {NUMERICS}, it was made with {NUMERICS + 1}"]


def test_a_record_is_stale_with_any_cell_that_it_was_made_from_however_far(store: Store) -> None:
    def depends(on: Record) -> dict:
        return {"teacher": {"cell": on.cell, "checksum": on.checksum}}

    store.write(made("a"))
    store.write(made("b", dependencies=depends(store.record("a"))))
    store.write(made("c", dependencies=depends(store.record("b"))))
    assert [stale.reasons(store.record(cell), store) for cell in "abc"] == [[], [], []]
    store.write(made("a", numerics={"harness": 0}))
    assert stale.reasons(store.record("b"), store) == ["teacher (a) was made anew since"]
    assert stale.reasons(store.record("c"), store) == ["teacher (b) is stale: teacher (a) was made anew since"]
    store.write(made("b", dependencies=depends(store.record("a"))))
    numerics = f"the harness computes with numerics {NUMERICS}, it was made with 0"
    assert stale.reasons(store.record("b"), store) == [f"teacher (a) is stale: {numerics}"]


def test_a_damaged_cell_makes_what_was_made_from_it_stale(store: Store) -> None:
    store.write(made("a"))
    teacher = {"teacher": {"cell": "a", "checksum": store.record("a").checksum}}
    (store.root / "a" / "record.json").write_text("{")
    assert stale.reasons(made("b", dependencies=teacher), store) == ["teacher (a) is damaged"]


def test_the_difference_is_against_the_text_that_made_the_record(store: Store) -> None:
    name = "methods/prune/magnitude.py"
    then = sourcetexts.text(name).replace("class Magnitude", "class Mignitude")
    (store.root / ".sources").mkdir()
    (store.root / ".sources" / "feed.py").write_text(then)
    lines = stale.difference(made("a", sources={**sourcetexts.sources("magnitude"), name: "feed"}), store).splitlines()
    assert lines[:2] == [f"--- {name} (record)", f"+++ {name} (now)"]
    changed = [line for line in lines[2:] if line[0] in "+-"]
    assert [line[:16] for line in changed] == ["-class Mignitude", "+class Magnitude"]
