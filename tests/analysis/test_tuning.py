"""Where learning rates came from, and what may be ranked beside what, on SIMULATED records and the shipped search."""

import math
from pathlib import Path

import pytest
import yaml

import conf
from analysis import tuning
from analysis.formats import grid, markdown
from analysis.layout import Layout
from analysis.load import load
from analysis.tables import table
from analysis.tune import picks
from analysis.tuning import Search, Tuning

from .simulate import record, scores

RESULTS = Path(__file__).parents[2] / "sweeps" / "results"
METHODS = Path(conf.__file__).parent / "method"
RECIPES = """name: {name}
recipes:
  - when: {{}}
    origin: default
    values: {{lr: 1.0e-3}}
  - when: {{model: toy, budget: short}}
    origin: tuned
    source: '{source}'
    values: {{lr: 2.0e-3}}
"""


@pytest.fixture
def recipes(monkeypatch):
    """Recipes of simulated methods: name -> the source of a tuned rate of 2e-3."""
    sources: dict[str, str] = {}

    def entries(name):
        return yaml.safe_load(RECIPES.format(name=name, source=sources[name]))["recipes"] if name in sources else []

    monkeypatch.setattr(tuning, "_recipes", entries)
    tuning._tuning.cache_clear()
    yield sources
    tuning._tuning.cache_clear()


def cells(store, method, origin, accuracy=0.8, rate=1e-3, seeds=(0, 1, 2), **keys):
    for seed in seeds:
        record(store, f"{method}{seed}", method, seed, scores(method, seed, accuracy), origin=origin, recipe={"lr": rate}, **keys)


def column(store):
    made = table(load(store), store, Layout())
    return {row.label: next(iter(row.cells.values())) for row in made.rows}, made


def test_the_best_of_the_tuned_rows_is_bold_and_an_untuned_one_beside_them_never(tmp_path, recipes):
    cells(tmp_path, "default", "default", 0.95)
    cells(tmp_path, "given", "override", 0.9)
    cells(tmp_path, "tuned", "tuned", 0.8, 2e-3)
    cells(tmp_path, "theirs", "paper", 0.7)
    record(tmp_path, "none0", "none", 0, scores("none", 0, 0.5), deterministic=True, recipe={})
    found, made = column(tmp_path)
    assert found["tuned"].best and found["theirs"].second
    for label in ("default", "given"):
        assert not (found[label].best or found[label].tied or found[label].second)
    said = "toy: not ranked beside tuned rows, since nobody searched for their learning rate: default (default), given (override)"
    assert said in made.footnotes
    assert "toy: tuned, but the search is not recorded (number of trials ?): tuned" in made.footnotes


def test_a_mean_with_a_task_whose_rate_nobody_searched_for_is_not_ranked_beside_tuned_ones(tmp_path, recipes):
    for method, origins in (("part", ("tuned", "default")), ("a", ("tuned", "tuned")), ("b", ("paper", "tuned"))):
        for task, origin in zip("xy", origins, strict=True):
            predictions = scores(method, 0, 0.9 if method == "part" else 0.8)
            place = {"task": f"toy/{task}", "protocol": f"toy/{task}@heldout"}
            record(tmp_path, f"{method}{task}", method, 0, predictions, origin=origin, recipe={"lr": 2e-3}, **place)
    made = table(load(tmp_path), tmp_path, Layout(means={"both": ["x", "y"]}))
    best = {name: [row.label for row in made.rows if row.cells[name].best] for name in made.rows[0].cells}
    assert best["toy/x@heldout"] == ["part"] and best["toy/both-mean@heldout"] in (["a"], ["b"])


def test_without_a_tuned_row_untuned_ones_are_ranked(tmp_path, recipes):
    cells(tmp_path, "a", "default", 0.95)
    cells(tmp_path, "b", "override", 0.6)
    found, made = column(tmp_path)
    assert found["a"].best and found["b"].second and not any("not ranked" in note for note in made.footnotes)


def test_trials_edges_unequal_searches_and_seeds_that_were_searched_on_are_said(tmp_path, recipes):
    recipes["a"] = "best of 4 on selection rows (0.001: 0.1, 0.002: 0.2, at the edge of the range), seed 1, sweep some_search"
    recipes["b"] = "best of 3 on selection rows (0.001: 0.1, 0.002: 0.2), seeds 100 101, sweep some_search"
    cells(tmp_path, "a", "tuned", 0.8, 2e-3)
    cells(tmp_path, "b", "tuned", 0.8, 2e-3)
    found, made = column(tmp_path)
    assert found["a"].tuning == (Tuning("tuned", Search(4, True, "some_search", (1,))),)
    for note in (
        "toy: tuned with unequal numbers of trials: 3: b; 4: a",
        "toy: the best learning rate lay at the edge of the searched range, a better one may lie beyond: a",
        "a, toy: reported on seed 1, on which its search ran too",
    ):
        assert note in made.footnotes
    assert not any(note.startswith("b, toy: reported on seed") for note in made.footnotes)
    lines = {line[1].text: [entry.text for entry in line[-2:]] for line in grid(made.blocks()[0])}
    assert lines["a"] == ["4", "tuned"] and lines["b"] == ["3", "tuned"]


def test_a_recipe_that_has_another_rate_by_now_does_not_tell_of_the_search(tmp_path, recipes):
    recipes["a"] = "best of 4 on selection rows (0.001: 0.1), seed 100, sweep some_search"
    cells(tmp_path, "a", "tuned", 0.8, 5e-3)
    cells(tmp_path, "b", "default", 0.8)
    found, _ = column(tmp_path)
    assert found["a"].tuning == (Tuning("tuned", None),) and found["b"].tuning == (Tuning("default"),)


def test_cells_whose_checkpoint_was_chosen_on_the_reported_rows_are_marked(tmp_path):
    cells(tmp_path, "a", "default", protocol="toy/a@dev_best[:8]")
    cells(tmp_path / "b", "a", "default", protocol="toy/a@heldout")
    found, made = column(tmp_path)
    assert found["a"].leaky and "(3) leaky |" in markdown(made)
    assert "toy/a@dev_best[:8]: leaky, the checkpoint was chosen on the reported rows" in made.footnotes
    other, made = column(tmp_path / "b")
    assert not other["a"].leaky and "leaky" not in markdown(made)


@pytest.mark.parametrize(
    ("given", "search"),
    [
        ((4, "0.1: 0.5", False, (100,), "s"), Search(4, False, "s", (100,))),
        ((12, "0.1: 0.5, 0.2: failed", True, (100, 101), "a_b"), Search(12, True, "a_b", (100, 101))),
        ((2, "1e-05: 0.5", False, (), "s"), Search(2, False, "s")),
    ],
)
def test_the_source_of_a_tuned_recipe_tells_its_search(given, search):
    assert tuning.searched(tuning.described(*given)) == search
    assert tuning.searched("best of 1e-3, 2e-3 on held-out rows") is None


def test_the_shipped_recipes_tell_of_the_search_that_its_records_show():
    """Every tuned rate of `conf/method` that names the shipped search has as many trials and the seeds that its records have."""
    found = {(pick.method, pick.model): pick for pick in picks(load(RESULTS / "glue_adapters_search", "glue_adapters_search"))}
    told = {}
    for path in sorted(METHODS.glob("*.yaml")):
        for entry in yaml.safe_load(path.read_text()).get("recipes") or []:
            search = tuning.searched(str(entry.get("source", "")))
            if search and search.sweep == "glue_adapters_search":
                told[path.stem, entry["when"]["model"]] = (search, entry["values"])
    assert len(told) > 20 and told == {
        key: (Search(len(pick.trials), pick.on_edge, "glue_adapters_search", pick.seeds), pytest.approx(pick.chosen))
        for key, pick in found.items()
    }


def test_a_frame_without_origins_has_no_tuning():
    assert tuning.tunings([("a", "m", "t", "b", math.nan, None)]) == ()
