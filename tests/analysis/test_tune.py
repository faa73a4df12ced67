"""A search is judged by its selection rows alone, and its outcome becomes a recipe."""

import pandas as pd
import pytest
import yaml

from analysis.tune import matcher, picks, write
from analysis.tuning import searched
from harness.recipes import parse, resolve
from methods.spec import UserError


def cells(method: str, scores: dict[float, float | None], values: float = 0.5) -> list[dict]:
    """Rows of a search as `load` gives them; None = the cell failed."""
    return [
        {
            "cell": f"{method}{rate}{score}", "method": method, "model": "minilm", "variant": "main", "recipe.lr": rate, "seed": 100,
            "protocol": "glue/sst2@heldout",
            "status": "diverged" if score is None else "done", "selection": score, "value": values / (1 + i),
        }
        for i, (rate, score) in enumerate(scores.items())
    ]  # fmt: skip


def test_the_best_on_the_selection_rows_wins_whatever_the_reported_rows_say() -> None:
    rows = cells("lora", {1e-3: 0.6, 4e-3: 0.8, 2e-2: 0.7}) + cells("vera", {1e-3: 0.5, 4e-3: 0.6, 2e-2: 0.9})
    lora, vera = picks(pd.DataFrame(rows))
    assert (lora.method, lora.chosen, lora.on_edge) == ("lora", {"lr": 4e-3}, False)
    assert (vera.method, vera.chosen, vera.on_edge) == ("vera", {"lr": 2e-2}, True)


def test_failed_trials_count_as_trials_and_ties_go_to_the_lower_rate() -> None:
    (pick,) = picks(pd.DataFrame(cells("lora", {1e-3: 0.7, 4e-3: 0.7, 2e-2: None})))
    assert pick.chosen == {"lr": 1e-3} and len(pick.trials) == 3 and pick.trials[2] == ({"lr": 2e-2}, None)


def test_a_search_whose_trials_are_all_equal_writes_no_recipe(tmp_path) -> None:
    rows = cells("lora", {1e-3: 0.6, 4e-3: 0.7}) + cells("movement", {1e-3: 0.542, 4e-3: 0.542})
    for slug in ("lora", "movement"):
        (tmp_path / f"{slug}.yaml").write_text("name: any\nrecipes:\n  - when: {}\n    values: {lr: 1.0}\n")
    lora, movement = picks(pd.DataFrame(rows))
    assert (lora.undecided, movement.undecided) == (False, True)
    assert list(write([lora, movement], "search", "brief", tmp_path)) == [tmp_path / "lora.yaml"]
    assert "tuned" not in (tmp_path / "movement.yaml").read_text()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (cells("lora", {1e-3: 0.6, 4e-3: 0.8}) + cells("vera", {1e-3: 0.5}), "vera has 1 trials and others have 2"),
        (cells("lora", {1e-3: 0.6}) + cells("lora", {1e-3: 0.7}), "two cells of lora on minilm with one recipe.lr"),
        (cells("lora", {1e-3: None}), "no trial of lora on minilm finished"),
        ([{**cells("lora", {1e-3: 0.5})[0], "selection": None}], "no selection rows; run the search with task.selection=heldout"),
        ([{**cells("lora", {1e-3: 0.5})[0], "protocol": "glue/sst2@dev_best[:8]"}], "chose lora on the rows that are reported"),
        ([{**cells("lora", {1e-3: 0.5})[0], "seed": 2}], "ran lora on seed 2, which is for reporting; run it with seed=100"),
    ],
)
def test_an_unfair_search_is_refused(rows: list[dict], message: str) -> None:
    with pytest.raises(UserError, match=message):
        picks(pd.DataFrame(rows))


METHOD = """name: lora
r: 8
recipes:
  - when: {}
    origin: default
    source: 'a, b: c'
    values: {lr: 5.0e-4}
  - when: {model: minilm, budget: brief}
    origin: tuned
    source: 'an earlier search'
    values: {lr: 9.0e-1}
  - when: {task: 'glue/*'}
    origin: paper
    source: 'it''s theirs'
    values: {warmup: 0.06}
"""


def test_a_pick_becomes_the_recipe_of_its_budget_and_replaces_an_earlier_one(tmp_path) -> None:
    path = tmp_path / "lora.yaml"
    path.write_text(METHOD)
    found = picks(pd.DataFrame(cells("lora", {1e-3: 0.6, 4e-3: None, 2e-2: 0.71234})))
    assert list(write(found, "search", "brief", tmp_path)) == [path]
    once = path.read_text()
    assert list(write(found, "search", "brief", tmp_path)) and path.read_text() == once
    assert once.startswith(METHOD.partition("  - when: {model")[0]) and "earlier" not in once and "it''s theirs" in once
    recipes = parse(yaml.safe_load(once)["recipes"], "lora.yaml")
    assert (
        recipes[-1].source
        == "best of 3 on selection rows (0.001: 0.600, 0.004: failed, 0.02: 0.712, at the edge of the range), seed 100, sweep search"
    )
    names = {"task": "glue/stsb", "model": "minilm", "budget": "brief"}
    assert resolve(recipes, names, {})[0]["lr"] == 2e-2
    assert resolve(recipes, names | {"budget": "short"}, {})[0]["lr"] == 5e-4
    assert matcher(found[0], "search", "brief")["when"] == {"model": "minilm", "budget": "brief"}


def grid(scores: dict[tuple[float, int], float]) -> pd.DataFrame:
    """A search over learning rate and batch, beside a method that has no recipe (so that the column of batches holds floats)."""
    rows = [{**cells("lora", {rate: score})[0], "recipe.batch": batch} for (rate, batch), score in scores.items()]
    other = [{**cells("none", {0.0: 0.5})[0], "recipe.lr": float(trial)} for trial in range(len(rows))]
    return pd.DataFrame([*rows, *other]).assign(cell=range(2 * len(rows)))


def test_every_key_of_the_recipe_that_trials_differ_in_is_chosen(tmp_path) -> None:
    frame = grid({(1e-3, 16): 0.6, (1e-3, 32): 0.7, (4e-3, 16): 0.9, (4e-3, 32): 0.8, (2e-2, 16): 0.5, (2e-2, 32): 0.5})
    lora, none = picks(frame)
    assert lora.chosen == {"lr": 4e-3, "batch": 16} and isinstance(lora.chosen["batch"], int) and lora.on_edge
    assert lora.told.startswith("lr 0.001 batch 16: 0.600, lr 0.001 batch 32: 0.700")
    (tmp_path / "lora.yaml").write_text(METHOD)
    assert list(write([lora], "search", "brief", tmp_path))
    recipes = parse(yaml.safe_load((tmp_path / "lora.yaml").read_text())["recipes"], "lora.yaml")
    assert recipes[-1].values == {"lr": 4e-3, "batch": 16}
    found = searched(recipes[-1].source)
    assert (found.trials, found.on_edge, found.sweep, found.seeds) == (6, True, "search", (100,))
    assert none.chosen == {"lr": 0} and len(none.trials) == 6


def test_a_rate_is_written_with_all_its_digits(tmp_path) -> None:
    """As a sampler proposes it, not on a grid."""
    rate = 0.00123456789
    (tmp_path / "lora.yaml").write_text(METHOD)
    assert list(write(picks(pd.DataFrame(cells("lora", {rate: 0.6}))), "search", "brief", tmp_path))
    assert yaml.safe_load((tmp_path / "lora.yaml").read_text())["recipes"][-1]["values"] == {"lr": rate}
