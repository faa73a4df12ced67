"""Parameter counts of a method on an architecture, from shapes alone: the meta device, no weights, no data, no network.

The one door from `analysis` to models: `parebench-report params method=lora model=roberta_base` ends in `main`.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn, TypeVar

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel

from harness.compose import compose
from harness.config import Cell
from harness.cost import count_parameters, unique_parameters
from harness.models import on_meta
from harness.registry import load_spec, method_class
from harness.resolve import resolve
from harness.seeding import generator
from methods.base import Batch, TrainSettings
from methods.roles import available, embeddings, head_names, lm_head, norms, prunable_parameters, role_names
from methods.spec import UserError
from tasks.base import Head
from tasks.registry import build

T = TypeVar("T")


class UncountableError(UserError):
    """A method whose `prepare` needs more than shapes."""


class MetaContext:
    """`methods.base.Context` for `prepare` without weights: draws and settings are there, data and training are refused."""

    def __init__(self, cell: Cell) -> None:
        recipe = cell.recipe
        self.method = cell.method
        self.seed = cell.seed
        self.total_steps = max(1, (cell.budget.examples or recipe.batch) // recipe.batch)
        self.settings = TrainSettings(
            lr=recipe.lr, head_lr=recipe.lr if recipe.head_lr is None else recipe.head_lr, weight_decay=recipe.weight_decay,
            beta1=recipe.beta1, beta2=recipe.beta2, epsilon=recipe.epsilon,
        )  # fmt: skip

    def generator(self, name: str) -> torch.Generator:
        """The same generator that a cell gives."""
        return generator(self.seed, "method", name)

    def once(self, name: str, fn: Callable[[], T]) -> T:
        """The value itself: nothing is resumed here."""
        return fn()

    def train(self, model: nn.Module, phase: str = "main", *, share: float = 1.0) -> NoReturn:
        """Refused."""
        self._refuse()

    def batches(self, split: str, n: int | None = None) -> Iterator[Batch]:
        """Refused."""
        self._refuse()

    def calibration(self) -> NoReturn:
        """Refused."""
        self._refuse()

    def external(self) -> NoReturn:
        """Refused."""
        self._refuse()

    def cell(self, name: str) -> NoReturn:
        """Refused."""
        self._refuse()

    def stage(self, name: str, *_: Any) -> AbstractContextManager[None]:
        """Nothing to keep apart."""
        return nullcontext()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Refused."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UncountableError(
            f"method={self.method} needs data before it can be counted; run a cell and read `costs.parameters` of its record"
        )


def method_parameters(cell: Cell, head: Head | None, model: PreTrainedModel | None = None) -> dict[str, Any]:
    """`harness.cost.count_parameters` of the prepared meta model, with `method`, `model`, `prunable` and `roles`.

    `prunable` = weights of the stock model that pruning may zero; `roles` = trainable parameters by where they sit: the table's roles,
    `embeddings`, `norms`, `lm_head`, `head`, `other`. `model`: that of `on_meta`, where it is at hand; `prepare` changes it.
    Raises `UserError` for a method whose `prepare` needs data.
    """
    model = on_meta(cell.model, head) if model is None else model
    prunable = sum(weight.numel() for weight in prunable_parameters(model).values())
    model = method_class(cell.method)(cell.method_config).prepare(model, MetaContext(cell))
    trains = load_spec(cell.method).adjusted(cell.method_config).trains
    roles = trainable_by_role(model) if trains else {}
    counts = {**count_parameters(model, trains), "prunable": prunable}
    return {"method": cell.method, "model": cell.model.name, **counts, "roles": roles}


class Counter:
    """Counts of many configurations in one process: a configuration is counted once, a bare architecture built once."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, ...], dict[str, Any]] = {}
        self.models: dict[str, PreTrainedModel] = {}

    def __call__(self, overrides: Sequence[str]) -> dict[str, Any]:
        """`method_parameters` of the configuration under `overrides`, with the head of its task."""
        key = tuple(overrides)
        if key not in self.counts:
            cell = resolve(OmegaConf.create(compose(key))).cell
            head = build(cell.task, sources=None).head
            self.counts[key] = method_parameters(cell, head, self._model(cell, head))
        return self.counts[key]

    def _model(self, cell: Cell, head: Head | None) -> PreTrainedModel:
        """A copy of the bare architecture: `prepare` changes what it is given."""
        name = repr((cell.model.architecture, head))
        if name not in self.models:
            self.models[name] = on_meta(cell.model, head)
        return copy.deepcopy(self.models[name])


def trainable_by_role(model: nn.Module) -> dict[str, int]:
    """Number of trainable parameters per role, in the order of the roles table; roles without any are left out."""
    places = {name: role for role in available(model) for name in role_names(model, [role])}
    places |= dict.fromkeys(embeddings(model), "embeddings") | dict.fromkeys(norms(model), "norms")
    output, heads = lm_head(model), head_names(model)
    places |= {name: "lm_head" for name, module in model.named_modules() if module is output}
    counts = dict.fromkeys([*available(model), "embeddings", "norms", "lm_head", "head", "other"], 0)
    for name, parameter in unique_parameters(model).items():
        if parameter.requires_grad:
            counts["head" if name in heads else _place(name, places)] += parameter.numel()
    return {role: n for role, n in counts.items() if n}


def _place(name: str, places: dict[str, str]) -> str:
    """The role of the innermost module on the way to parameter `name` that has one."""
    path = name
    while "." in path:
        path = path.rpartition(".")[0]
        if path in places:
            return places[path]
    return "other"


def table(counts: dict[str, Any]) -> Table:
    """The counts as people read them."""
    shown = Table(title=f"{counts['method']} on {counts['model']}", caption="counted from shapes", title_justify="left")
    shown.add_column("what")
    shown.add_column("parameters", justify="right")
    shown.add_column("% of total", justify="right")
    names = {"trainable_method": "trainable, method", "trainable_head": "trainable, head", "head": "head", "total": "total"}
    rows = [(label, counts[key]) for key, label in names.items()]
    rows += [(f"  trainable in {role}", n) for role, n in counts["roles"].items()]
    for label, n in rows:
        shown.add_row(label, f"{n:,}", f"{100 * n / counts['total']:.4f}")
    return shown


def main(argv: list[str]) -> int:
    """`params method=... model=... [overrides]`: print the table; returns the exit code. Errors are the caller's to show."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    Console().print(table(Counter()(argv)))
    return 0
