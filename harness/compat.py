"""The compatibility matrix: why a method cannot run on a model or a task, from traits alone and before a weight is read."""

from collections.abc import Iterator
from typing import Any

from harness.config import ModelConfig
from harness.resolve import Resolved
from methods.spec import Traits
from tasks.spec import ClassificationConfig, PerplexityConfig


def incompatible(cell: Resolved) -> str | None:
    """The first reason why this cell is impossible, as the end of a sentence; None if it can run."""
    return next(_reasons(cell), None)


def is_moe(model: ModelConfig) -> bool:
    """Whether the feed-forward network is a set of routed experts."""
    return any(key in model.architecture for key in ("num_experts", "num_local_experts"))


def _reasons(resolved: Resolved) -> Iterator[str]:
    cell, traits = resolved.cell, resolved.traits
    yield from _model_reasons(cell.method, traits, cell.model)
    yield from _task_reasons(cell.method, traits, cell.model, cell.task)
    yield from _length_reasons(cell.model, cell.task)


def _length_reasons(model: ModelConfig, task: Any) -> Iterator[str]:
    key = "context" if isinstance(task, PerplexityConfig) else "max_length"
    length = getattr(task, key, 0)
    if length > model.max_length:
        yield f"task.{key}={length} is longer than {model.name} takes; give task.{key} of at most {model.max_length}"


def _model_reasons(method: str, traits: Traits, model: ModelConfig) -> Iterator[str]:
    if model.family not in traits.families:
        yield f"{method} works on {' and '.join(traits.families)} models and {model.name} is of family {model.family}"
    if traits.biases and not model.biases:
        yield f"{method} needs bias parameters and {model.name} has none"
    if not traits.moe and is_moe(model):
        yield f"{method} does not work on fused experts and {model.name} is a mixture of experts"


def _task_reasons(method: str, traits: Traits, model: ModelConfig, task: Any) -> Iterator[str]:
    fresh_head = isinstance(task, ClassificationConfig)
    if not fresh_head and model.family == "encoder":
        yield f"task {task.name} needs a language model and {model.name} is an encoder; use a model of family decoder"
    if fresh_head and not traits.trains:
        yield f"the task needs a trained head; {method} does not train here, so use a method that does or another task"
    if fresh_head and not model.classifier:
        yield f"transformers has no sequence classifier for {model.name}; use another model, or a task without a head"
    if not fresh_head and traits.trains:
        yield f"{method} trains and task {task.name} has no training form; use a classification task or a method that does not train"
