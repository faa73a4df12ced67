"""The compatibility matrix: why a method cannot run on a model or a task, from traits alone and before a weight is read."""

from collections.abc import Iterator
from typing import Any

from harness.config import Cell, ModelConfig
from harness.resolve import Resolved, steps
from methods.spec import Traits
from tasks.spec import HeadedConfig, InstructConfig, PerplexityConfig, SolutionConfig, TaskConfig, VerbalConfig, trains


def incompatible(cell: Resolved) -> str | None:
    """The first reason why this cell is impossible, as the end of a sentence; None if it can run."""
    return next(_reasons(cell), None)


def is_moe(model: ModelConfig) -> bool:
    """Whether the feed-forward network is a set of routed experts."""
    return any(key in model.architecture for key in ("num_experts", "num_local_experts"))


def _reasons(resolved: Resolved) -> Iterator[str]:
    cell, traits = resolved.cell, resolved.traits
    yield from _model_reasons(cell.method, traits, cell.model)
    yield from _task_reasons(cell.method, traits, cell.model, cell.task, cell.corpus is not None)
    yield from _length_reasons(cell.model, cell.task)
    yield from _compute_reasons(cell.method, traits, resolved.compute.kind)
    for name, task in resolved.protocols.items():
        yield from _protocol_reasons(name, task, cell)
    if cell.calibration is not None and (length := cell.calibration.length or 0) > cell.model.max_length:
        longest = cell.model.max_length
        yield f"calibration.length={length} is longer than {cell.model.name} takes; give calibration.length of at most {longest}"
    if cell.corpus is not None and (cell.corpus.length or 0) > cell.model.max_length:
        longest = cell.model.max_length
        yield f"corpus.length={cell.corpus.length} is longer than {cell.model.name} takes; give corpus.length of at most {longest}"


def _compute_reasons(method: str, traits: Traits, kind: str) -> Iterator[str]:
    if kind == "single":
        return
    if not steps(traits):
        yield f"{method} makes no optimizer steps, so compute={kind} would repeat its work in every process; use compute=single"
    elif kind not in traits.distributed:
        yield f"{method} is not proved under compute={kind}; allowed: {', '.join(('single', *traits.distributed))}"


def _protocol_reasons(name: str, task: TaskConfig, cell: Cell) -> Iterator[str]:
    """A model keeps the form that its own task gave it: a classifier scores no text, and a language model has no trained head."""
    if isinstance(task, HeadedConfig | InstructConfig):
        what = "a head that was trained for it" if isinstance(task, HeadedConfig) else "a model that may be trained for it"
        yield f"protocol {name} needs {what}; give it a cell of its own with task={name}"
    elif trains(task):
        yield f"protocol {name} is a number after training on it; give it a cell of its own with task={name}"
    elif isinstance(cell.task, HeadedConfig):
        yield f"protocol {name} needs a language model and under task {cell.task.name} {cell.model.name} is a classifier; leave it out"
    else:
        yield from _family_reasons(cell.model, task)
    if isinstance(task, PerplexityConfig) and task.context > cell.model.max_length:
        yield f"protocol {name} reads {task.context} tokens at once and {cell.model.name} takes {cell.model.max_length}; leave it out"


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


def _task_reasons(method: str, traits: Traits, model: ModelConfig, task: Any, corpus: bool) -> Iterator[str]:
    fresh_head = isinstance(task, HeadedConfig)
    yield from _family_reasons(model, task)
    if fresh_head and not traits.trains and not traits.external:
        yield f"the task needs a trained head; {method} does not train here, so use a method that does or another task"
    if fresh_head and not model.classifier:
        yield f"transformers has no sequence classifier for {model.name}; use another model, or a task without a head"
    if fresh_head:
        return
    if traits.trains and not trains(task) and not corpus:
        yield (
            f"{method} trains and task {task.name} has no training form; give corpus.source=<text> to train on, use a classification task "
            "or a method that does not train"
        )
    if traits.trains and traits.trains_head_only:
        yield f"{method} trains a task head and task {task.name} has none; use a classification task or another method"
    if trains(task) and not traits.trains and not traits.external and not isinstance(task, InstructConfig):
        untrained = {VerbalConfig: "task.shots=0 task.selection=last or ", SolutionConfig: ""}.get(type(task), "task.train=null or ")
        yield f"{method} does not train and {task.protocol()} is a number after training; give {untrained}a method that trains"


def _family_reasons(model: ModelConfig, task: Any) -> Iterator[str]:
    if isinstance(task, VerbalConfig) and task.form == "cloze":
        if model.family != "encoder":
            yield f"a cloze needs a masked model and {model.name} is of family {model.family}; use task.form=prompt"
    elif not isinstance(task, HeadedConfig) and model.family == "encoder":
        yield f"task {task.name} needs a language model and {model.name} is an encoder; use a model of family decoder"
