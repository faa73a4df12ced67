"""Every sweep of ours composes to possible cells, names its table, and `smoke_all` misses no method."""

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

import conf
import sweeps
from analysis.layout import layout
from harness import compat, registry
from harness.cli import register_sweeps
from harness.resolve import Resolved, resolve
from harness.usage import options

SWEEPS = options("sweeps")
METHODS = Path(conf.__file__).parent / "method"


def composed(sweep: str, cells: Sequence[Sequence[str]]) -> list[DictConfig]:
    """The configuration of every cell, Hydra's own part included."""
    register_sweeps()
    with hydra.initialize_config_module("conf", version_base="1.3"):
        return [hydra.compose("config", overrides=[f"+sweeps={sweep}", *cell], return_hydra_config=True) for cell in cells]


@cache
def grid(sweep: str) -> tuple[tuple[str, ...], ...]:
    """The overrides of every cell of a sweep."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path

    from hydra_plugins.parebench import Grid

    conf = composed(sweep, [()])[0].hydra.sweeper
    loader = ConfigLoaderImpl(create_config_search_path("pkg://conf"))
    # Not an instance: Hydra executes its plugins again in the first composition, after which the class is not the imported one.
    sweeper = SimpleNamespace(
        params=dict(conf.params or {}),
        grids=[dict(one) for one in conf.grids],
        hydra_context=SimpleNamespace(config_loader=loader),
        split_arguments=Grid.split_arguments,
    )
    return tuple(tuple(cell) for cell in Grid.products(sweeper, []))


def covering(cells: tuple[tuple[str, ...], ...]) -> list[tuple[str, ...]]:
    """Few cells in which every value but seeds and learning rates occurs, beside every method that it occurs with."""
    seen: set[tuple[str, str]] = set()
    chosen = []
    for cell in sorted(cells, key=hash_of):  # any order in which neighbours differ in more than one value
        method = next(value for value in cell if value.startswith("method="))
        pairs = {(method, value) for value in cell if not value.startswith(("seed=", "recipe.lr="))}
        if pairs - seen:
            seen |= pairs
            chosen.append(cell)
    return chosen


def hash_of(cell: tuple[str, ...]) -> str:
    """The same on every run."""
    return hashlib.sha256(" ".join(cell).encode()).hexdigest()


@cache
def resolved(sweep: str) -> tuple[Resolved, ...]:
    """The covering cells of a sweep, composed and checked; no data is looked for."""
    return tuple(resolve(cfg) for cfg in composed(sweep, covering(grid(sweep))))


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_cell_is_possible_and_belongs_to_the_sweep(sweep: str) -> None:
    assert len(set(grid(sweep))) == len(grid(sweep)), "a cell occurs twice"
    for found in resolved(sweep):
        assert compat.incompatible(found) is None
        assert found.run.sweep == sweep


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_sweep_names_its_table_and_a_baseline_that_it_runs(sweep: str) -> None:
    shown = layout(sweep)
    assert shown.title not in ("", sweep)
    assert f"method={shown.baseline}" in {value for cell in grid(sweep) for value in cell}


def test_the_smoke_sweep_runs_every_method_for_two_steps() -> None:
    cells = [found.cell for found in resolved("smoke_all")]
    own = [slug for slug in registry.files() if not registry.load_spec(slug).traits.external]  # a folder of weights is in no sweep file
    assert sorted(cell.method for cell in cells) == sorted(own)
    for cell in cells:
        assert cell.model.name.startswith("tiny_")
        assert cell.budget.examples / cell.recipe.batch == 2


def test_glue_peft_is_five_methods_on_the_eight_glue_tasks_with_five_seeds() -> None:
    values = {value for cell in grid("glue_peft") for value in cell}
    tasks = {f"task=glue/{path.stem}" for path in (Path(sweeps.__file__).parents[1] / "conf" / "task" / "glue").glob("*.yaml")}
    assert {value for value in values if value.startswith("task=")} == tasks - {"task=glue/wnli"}
    assert len(grid("glue_peft")) == 5 * 8 * 5


def test_pst_length_is_at_another_length_what_pst_glue_is() -> None:
    ours, shared = ({found.cell.method: found.cell for found in resolved(name)} for name in ("pst_length", "pst_glue"))
    assert set(ours) == {"movement", "pst", "magnitude"} and len(grid("pst_length")) == 3
    for method, cell in ours.items():
        assert cell.recipe == shared[method].recipe and cell.budget.examples == 1600 * 16


def test_prune_lm_trains_nothing() -> None:
    calibrated = 3 * 2 * (3 + 1) + 2 * 3 + 3 + 1
    assert len(grid("prune_lm")) == 1 + 2 + calibrated
    calibrated = 3 + 2 * 3 + 2 * 3 + 2 * 3
    assert len(grid("prune_lm_choices")) == 1 + 2 * 3 + 2 + 2 * 3 + 2 + calibrated
    assert not any(found.traits.trains for name in ("prune_lm", "prune_lm_choices") for found in resolved(name))


def test_perp_lm_trains_on_passages_of_three_seeds_and_longer_on_one() -> None:
    trained = [found.cell for found in resolved("perp_lm") if found.traits.trains]
    assert {(cell.method, cell.budget.examples, cell.recipe.batch) for cell in trained} == {("perp", 128, 4), ("perp", 512, 4)}
    assert len(grid("perp_lm")) == 2 + 3 + 1


def test_the_search_of_adapters_tries_the_same_multiples_of_every_recipe() -> None:
    tried = {method: set() for method in adapters("glue_adapters_search")}
    for cell in grid("glue_adapters_search"):
        given = dict(value.split("=", 1) for value in cell)
        tried[given["method"]].add(float(given["recipe.lr"]))
    for method, rates in tried.items():
        (usual,) = [entry["values"]["lr"] for entry in OmegaConf.load(METHODS / f"{method}.yaml").recipes if not entry["when"]]
        assert sorted(rates) == pytest.approx([usual / 4, usual, 4 * usual, 16 * usual])


def test_the_sweeps_of_adapters_hold_the_same_methods() -> None:
    assert adapters("glue_adapters_search") == adapters("glue_adapters_fit") == adapters("glue_adapters")


def adapters(sweep: str) -> set[str]:
    """The methods of a sweep."""
    return {value.removeprefix("method=") for cell in grid(sweep) for value in cell if value.startswith("method=")}
