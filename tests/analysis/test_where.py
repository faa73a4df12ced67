"""Conditions on the rows: what pandas says of them, and what is refused; stale and unknown records in footnotes. SIMULATED records."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.cli import main
from analysis.layout import layout
from analysis.load import load
from analysis.tables import table
from analysis.where import where
from harness import sourcetexts
from harness.store import Store
from methods.spec import UserError

from .simulate import record, scores, small_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return small_store(tmp_path / "runs")


FRAME = pd.DataFrame({
    "cell": list("abcdef"), "method": ["lora", "lora", "dora", "none", "full_ft", "it's `q`"], "seed": [0, 1, 0, 0, 2, 3],
    "recipe.lr": [0.1, 0.2, 0.1, None, 0.3, 0.4], "method.r": [8, 8, 4, None, None, 1],
    "method.scope": ["layer", None, "all", None, None, None],
    "deterministic": [False, False, False, True, False, False],
})  # fmt: skip


@pytest.mark.parametrize(
    ("condition", "cells"),
    [
        ("method == 'lora'", "ab"), ('method in ["lora", "none"] and seed == 0', "ad"), ("`recipe.lr` < 0.15", "ac"),
        ("`method.r` != 8", "cdef"), ("not (seed > 0)", "acd"), ("0 < seed <= 2", "be"), ("seed == 0 & method == 'dora'", "c"),
        ("seed == 2 | method == 'none'", "de"), ("deterministic", "d"), ("not deterministic and method not in ['lora']", "cef"),
        ("`recipe.lr` * 10 > seed + 0.5", "abcef"), ("seed - 1 == -1", "acd"), ("method == \"it's `q`\"", "f"),
        ("`method.scope` == 'all'", "c"),
    ],
)  # fmt: skip
def test_a_condition_keeps_the_rows_that_fulfil_it(condition, cells):
    assert "".join(where(FRAME, condition)["cell"]) == cells


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("methd == 'lora'", "column methd is unknown; did you mean method?"), ("`recipe.lt` > 1", "did you mean recipe.lr? allowed: cell"),
        ("recipe.lr > 1", "names with dots stand in backticks"), ("seed <", "cannot be read"), ("seed", "is no condition on the rows"),
        ("seed + 1", "is no condition"), ("True", "is no condition"), ("@seed == 1", "cannot be read"), ("a @ b", "holds matmult"),
        ("method.str.len() > 1", "holds call"), ("method.__class__ == 1", "holds attribute"), ("__import__('os')", "holds call"),
        ("[x for x in method]", "holds listcomp"), ("(lambda: seed)()", "holds call"), ("seed ** 99 > 1", "holds pow"),
        ("method[0] == 'l'", "holds subscript"), ("f'{seed}' == '1'", "holds joinedstr"), ("(seed := 1) == 1", "holds namedexpr"),
        ("seed == 1; seed", "cannot be read"), ("`method", "cannot be read"), ("method > 3", "cannot be evaluated"),
        ("method == 'nix'", "holds for none of the 6 cells; there are method: dora, full_ft, it's `q`, lora, none"), ("", "cannot be read"),
        ("seed ==\n1", "cannot be read"),
        ("__pd_eval_local_x == 1", "column __pd_eval_local_x is unknown"), ("index == 1", "column index is unknown"),
        ("(" * 500, "cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_or_is_not_allowed_is_one_sentence(condition, words):
    with pytest.raises(UserError) as found:
        where(FRAME, condition)
    assert words in str(found.value) and "\n" not in str(found.value).replace(condition, "")


def test_labels_are_those_of_the_rows_that_are_left(store):
    record(store, "wide", "lora", 0, scores("lora", 0, 0.8), config={"r": 64})
    assert set(load(store, None, "method == 'lora'")["label"]) == {"lora (r=8)", "lora (r=64)"}
    assert set(load(store, None, "`method.r` == 8")["label"]) == {"lora"}
    with pytest.raises(UserError, match="leaves no finished cell, only diverged"):
        load(store, None, "status != 'done'")


def test_the_command_takes_a_condition(store, capsys):
    assert main(["table", "--store", str(store), "--format", "csv", "--where", "method in ['lora', 'none']"]) == 0
    found = capsys.readouterr().out
    assert "lora" in found and "none" in found and "full_ft" not in found
    assert main(["table", "--store", str(store), "--where", "methd == 'lora'"]) == 2
    assert "did you mean method?" in capsys.readouterr().err


def made_by(store: Path, cell: str, method: str, sources: dict[str, str], **changes) -> None:
    """A record that keeps these sources."""
    Store(store).write(replace(record(store, cell, method, 9, scores(method, 9, 0.8)), sources=sources, **changes))


def test_records_of_other_code_are_named_with_the_reason(store):
    today = sourcetexts.sources("lora")
    own = "methods/adapters/lora.py"
    made_by(store, "fresh", "lora", today)
    made_by(store, "edited", "lora", today | {own: "0" * 16})
    made_by(store, "again", "lora", today | {own: "1" * 16})
    made_by(store, "gone", "no_such_method", {own: "0" * 16})
    made_by(store, "numerics", "bitfit", sourcetexts.sources("bitfit"), numerics={"harness": 99})
    chain = sourcetexts.of_method({"name": "chain", "steps": {"a": {"name": "wanda"}, "b": {"name": "lora"}}})
    steps = {"order": ["a", "b"], "steps": {"a": {"name": "wanda"}, "b": {"name": "lora"}}}
    made = record(store, "chained", "chain", 9, scores("c", 9, 0.8), config=steps)
    inherited = {"source": {"cell": "edited", "flops": 1.0, "seconds": 1.0, "examples": 1}}
    Store(store).write(replace(made, sources=chain, costs=made.costs | {"inherited": inherited}))
    stale = load(store).set_index("cell")["stale"].to_dict()
    assert {cell: why for cell, why in stale.items() if why} == {
        "edited": f"{own} has changed", "again": f"{own} has changed", "gone": "method no_such_method is gone",
        "numerics": "the harness computes with numerics 1, it was made with 99", "chained": "source (edited) is stale",
    }  # fmt: skip
    notes = table(load(store), store, layout(None)).footnotes
    assert f"made by other code than today's: the records of lora (2), since {own} has changed" in notes
    assert sum("other code than today's" in note for note in notes) == 4


def test_a_record_of_an_older_protocol_is_stale(store):
    made = record(store, "old", "none", 0, scores("none", 0, 0.8), task="glue/sst2", protocol="glue/sst2@heldout", deterministic=True)
    Store(store).write(replace(made, results=[replace(made.results[0], version=0)]))
    assert load(store).set_index("cell")["stale"]["old"] == "glue/sst2@heldout is of version 0, now 1"


def test_records_of_two_schemas_are_told_apart_and_missing_later_fields_are_empty(store):
    newer = store / "lora1" / "record.json"
    newer.write_text(json.dumps(json.loads(newer.read_text()) | {"schema": 2}))
    older = store / "lora2" / "record.json"
    later = ("attempts", "files", "dependencies", "weights", "protocols", "remade", "checksum")
    older.write_text(json.dumps({key: value for key, value in json.loads(older.read_text()).items() if key not in later}))
    frame = load(store)
    assert "lora2" in set(frame["cell"]) and "lora1" not in set(frame["cell"])
    assert "cell lora1 was not read: its record schema 2 is not 1" in table(frame, store, layout(None)).footnotes


def test_two_records_of_one_seed_are_named_and_one_is_taken(store):
    record(store, "zwei", "lora", 1, scores("lora", 5, 0.5), config={"r": 8})
    made = table(load(store), store, layout(None))
    (row,) = [row for row in made.rows if row.label == "lora"]
    assert row.cells["toy/a@heldout"].values == (0.85, 0.84, 0.85)
    assert "lora, toy, toy/a@heldout, seed 1: several records; lora1 is shown, zwei left out" in made.footnotes
