"""Commands of the committed records of a sweep, and of SIMULATED ones that no configuration makes."""

import shlex
from pathlib import Path

from analysis import remakes as module
from analysis.load import load
from analysis.remakes import remakes
from analysis.reproduce import reproduction
from harness.store import Store

from .simulate import small_store

RESULTS = Path(__file__).resolve().parents[2] / "sweeps" / "results" / "first_table"


def test_every_seed_has_the_command_that_reproduce_says(monkeypatch):
    asked = []

    def counted(record, store):
        asked.append(record.cell)
        return reproduction(record, store)

    monkeypatch.setattr(module, "reproduction", counted)
    found = remakes(load(RESULTS), RESULTS)
    records = list(Store(RESULTS).records())
    assert set(found) == {record.cell for record in records} and len(asked) == 4 < len(records)
    for record in records[:3]:
        assert shlex.split(found[record.cell]) == shlex.split(reproduction(record, Store(RESULTS)).command)


def test_what_cannot_be_said_any_more_is_a_comment_and_many_are_left_out(tmp_path, monkeypatch):
    store = small_store(tmp_path / "runs")
    found = remakes(load(store), store)
    assert set(found) == {"full_ft0", "full_ft1", "full_ft2", "lora0", "lora1", "lora2", "linear_probe0", "linear_probe1",
                          "linear_probe2", "none0", "bitfit0", "bitfit1"}  # fmt: skip
    assert all(text.startswith("# cell ") and "cannot be said with today's configuration" in text for text in found.values())
    monkeypatch.setattr(module, "CONFIGURATIONS", 4)
    assert remakes(load(store), store) == {}
