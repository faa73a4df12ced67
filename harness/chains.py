"""The steps of a chain, typed: each a method's block with a recipe of its own. Torch-free."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from harness import recipes
from harness.config import Recipe
from harness.registry import CHAIN, load_spec, method_class
from harness.typed import build
from methods.spec import Stage, Traits, UserError

RecipeOf = Callable[[Traits, list[recipes.Matcher], Mapping[str, Any], str], tuple[Recipe, dict[str, str]]]
"""Traits, matchers, the step's own overrides, slug -> recipe and where its values come from."""


def typed(config: Any, recipe_of: RecipeOf) -> tuple[Any, dict[str, str]]:
    """The chain's configuration with a `Stage` in the place of every block, and the origins of all recipe values by step."""
    stages: dict[str, Stage] = {}
    origins: dict[str, str] = {}
    for name in config.order:
        stages[name], own = _stage(name, config.steps[name], recipe_of)
        origins |= {f"{name}.{key}": origin for key, origin in own.items()} | own  # without a step: those of the last that trains
    chained = replace(config, steps=stages)
    if idle := [name for name in config.shares if not stages[name].trains()]:
        raise UserError(f"method.shares.{idle[0]} is given and {stages[idle[0]].method} makes no optimizer steps; leave it out")
    return chained, origins


def counted(config: Any) -> Stage:
    """The last step that trains, else the last."""
    stages = config.stages()
    return next((stage for stage in reversed(stages) if stage.trains()), stages[-1])


def _stage(name: str, block: Any, recipe_of: RecipeOf) -> tuple[Stage, dict[str, str]]:
    where = f"method.steps.{name}"
    if not isinstance(block, dict) or "name" not in block:
        raise UserError(
            f"{where}={block} is no method's block; type '+method@{where}=<method>' or write it in a YAML as conf/method/chain.yaml"
        )
    rest = dict(block)
    slug, entries, own = str(rest.pop("name")), rest.pop("recipes", None), rest.pop("recipe", None)
    spec = load_spec(slug)
    if slug == CHAIN or spec.traits.external:
        raise UserError(f"{where}={slug} cannot be a step of a chain; give a technique")
    try:
        config = build(spec.config, rest, where)
    except UserError as error:
        raise UserError(str(error).replace("method.", f"{where}.") if where not in str(error) else str(error)) from None
    traits = spec.adjusted(config)
    matchers = recipes.base() + recipes.parse(entries or [], f"conf/method/{slug}.yaml")
    recipe, origins = recipe_of(traits, matchers, own or {}, slug)
    return Stage(method=slug, config=config, traits=traits, recipe=recipe, make=lambda: method_class(slug)(config)), origins
