"""Words that a method's `Config` and `traits` may use. Torch-free, so that configuration stays fast."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

LINEAR_ROLES = ("q", "k", "v", "qkv", "o", "gate", "up", "down")
"""Roles of the linear maps that an adapter may target (see `methods/roles.py`)."""
PLACED = ("auto", "checkpoint", "adapter")
ALLOCATIONS = ("uniform", "global", "owl")
"""How a sparsity is spread over the layers: equal, by comparing all scores of the dense model, by each block's share of outliers."""
MASK_SCOPES = ("row", "layer", "global")
"""Which weights compete for being kept: those of one output, of one matrix, or all prunable ones."""


class UserError(ValueError):
    """A mistake in what the user gave. Its message is the one sentence that the user sees (exit code 2)."""


class Diverged(RuntimeError):
    """A loss, gradient or weight became NaN or infinite: the cell has no number. The harness raises it, and so may a method."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a method needs and promises; the compatibility matrix and the contract suite are derived from it.

    A `Config` may define `adjust(self, traits) -> Traits` when its values change what holds.
    """

    families: tuple[str, ...] = ("encoder", "decoder")
    """Model families that the method works on: `encoder`, `decoder`."""
    moe: bool = True
    """Works on models whose experts are fused three-dimensional parameters."""
    trains: bool = True
    """Fits parameters on training rows; False = evaluate or compress only, so a fresh head would stay random."""
    trains_head_only: bool = False
    """The backbone is never changed."""
    biases: bool = False
    """Needs a backbone that has bias parameters."""
    exact_at_init: bool = True
    """`prepare` leaves the logits unchanged (to 1e-5 in float32)."""
    folds: bool = True
    """`finalize` returns a stock transformers model with the same logits. Where False, the inserted modules stay; `detach` and `attach`
    take them out for the export and put them back after a reload."""
    recovers: bool = False
    """`finalize` goes back to the model that was loaded and takes what was trained along, so logits change there."""
    reshapes: bool = False
    """With `folds=False`: the finalized model has stock modules, only smaller, so that another technique can follow in a chain."""
    exports_lora: bool = False
    """`lora` gives the final change of the backbone as low-rank factors, which a standard PEFT LoRA adapter holds."""
    gradients: bool = True
    """Needs backward passes."""
    randomness: tuple[str, ...] = ()
    """What the method's own random draws touch: `init`, `data`, `calibration`, `mask`, `forward`; empty = deterministic.

    `forward`: noise in every pass of training, as dropout's, of which each of several processes has its own."""
    calibration: bool = False
    """Looks at calibration text (`ctx.calibration()`), which the block `calibration` names and the cell id then holds."""
    sparse: bool = False
    """Leaves exact zeros in the finalized weights."""
    sparse_delta: bool = False
    """Leaves a stock model whose backbone differs from the loaded one in few entries: the difference is exported as a sparse vector."""
    distributed: tuple[str, ...] = ("ddp",)
    """How several processes may train it beside `single`: `ddp`, `fsdp` (where hooks and losses may see sharded parameters)."""
    external: bool = False
    """Its weights, a task head among them, come finished from where `Config.place` says (`ctx.external()`)."""
    budget_multiplier: float = 1.0
    """How many times the budget's examples the technique needs by nature."""


@dataclass(frozen=True, kw_only=True)
class CellSpec:
    """Another cell that a method needs first (a teacher, an expert, a dense ticket), as a change to the cell that needs it.

    A `Config` says so with `dependencies(self, cell: CellNames) -> tuple[CellSpec, ...]`.
    """

    name: str
    """What the method calls it: `ctx.cell(name)`."""
    method: str
    """The technique that makes it."""
    overrides: tuple[str, ...] = ()
    """As on the command line: `method.r=4`, `model=bert_base`, `seed=1`; all else is as in the cell that needs it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where finished weights lie that no cell made; a `Config` with keys of these names says so with `place(self) -> Place`.

    The cell id holds what lies there, never where.
    """

    path: str | None
    """A local folder."""
    hub: str | None
    """A repository of the Hugging Face hub."""
    revision: str | None
    """Its commit, so that it stays what it is."""
    kind: str
    """What it must hold: a `checkpoint`, a PEFT `adapter` of the cell's model, or either (`auto`)."""

    def __post_init__(self) -> None:
        choice("method.kind", self.kind, PLACED)
        if bool(self.path) == bool(self.hub):
            given = "both are given" if self.path else "neither is given"
            raise UserError(f"method.path and method.hub say where the weights lie and {given}; give one: method.path=<folder>")
        if self.path and self.revision:
            raise UserError(f"method.revision={self.revision} belongs to method.hub; a folder is known by its content, so leave it out")
        if self.hub and not _is_commit(self.revision or ""):
            raise UserError(f"method.revision={self.revision} is no commit; give the 40 hexadecimal digits of a commit of {self.hub}")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One typed step of a chain."""

    method: str
    """Slug."""
    config: Any
    """An instance of the method's own `Config`."""
    traits: Traits
    """As they hold under `config`."""
    recipe: Any
    """The step's `Recipe`."""
    make: Callable[[], Any]
    """The method itself; imports torch."""

    def trains(self) -> bool:
        """Whether it makes optimizer steps."""
        return self.traits.trains and self.traits.gradients


@dataclass(frozen=True, kw_only=True)
class CellNames:
    """What a method may know of its own cell when it names the cells that it needs."""

    model: str
    task: str
    budget: str
    seed: int


def _is_commit(text: str) -> bool:
    return len(text) == 40 and set(text) <= set("0123456789abcdef")


def choice(key: str, value: str, allowed: Iterable[str]) -> None:
    """Refuse a `value` outside `allowed`, with one sentence that names the key."""
    allowed = list(allowed)
    if value not in allowed:
        raise UserError(f"{key}={value} is not allowed; allowed: {', '.join(allowed)}")


def number(
    key: str, value: float, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Refuse a non-finite `value` or one outside the interval from `low` to `high` (ends included unless open)."""
    inside = math.isfinite(value) and low <= value <= high
    if inside and not (open_low and value == low) and not (open_high and value == high):
        return
    left, right = "(" if open_low else "[", ")" if open_high else "]"
    raise UserError(f"{key}={value} is out of range; allowed: a number in {left}{low:g}, {high:g}{right}")


def linear_roles(key: str, values: Iterable[str]) -> None:
    """Refuse a list of target roles that is empty or holds another word than `LINEAR_ROLES`."""
    values = list(values)
    if not values:
        raise UserError(f"{key}=[] targets nothing; give at least one of: {', '.join(LINEAR_ROLES)}")
    for value in values:
        choice(key, value, LINEAR_ROLES)


def nm_pattern(key: str, value: str) -> tuple[int, int] | None:
    """(N, M) of a pattern like `2:4` (N kept of each M consecutive inputs), None for `unstructured`; refuse all else."""
    if value == "unstructured":
        return None
    kept, colon, group = value.partition(":")
    if not (colon and kept.isdecimal() and group.isdecimal() and 0 < int(kept) < int(group)):
        raise UserError(f"{key}={value} is not allowed; allowed: unstructured, or N:M with 0 < N < M such as 2:4")
    return int(kept), int(group)


def allocation_rule(allocation: str, times: float, reach: float, sparsity: float, pattern: str) -> None:
    """Refuse an unknown way to spread a sparsity over layers, OWL's values out of range, and any but `uniform` for an N:M pattern."""
    choice("method.allocation", allocation, ALLOCATIONS)
    number("method.owl_times", times, 0, open_low=True)
    number("method.owl_reach", reach, 0)
    if allocation != "uniform" and pattern != "unstructured":
        raise UserError(f"method.pattern={pattern} gives every layer the same sparsity; give method.allocation=uniform with it")
    if allocation == "owl" and not (sparsity - 2 * reach >= 0 and sparsity + 2 * reach < 1):
        limit = min(sparsity, 1 - sparsity) / 2
        raise UserError(f"method.owl_reach={reach} could empty a layer or fill it at method.sparsity={sparsity}; give less than {limit:g}")


def mask_shape(sparsity: float, scope: str, pattern: str) -> None:
    """Refuse a sparsity outside [0, 1), an unknown comparison scope or pattern, and a sparsity that contradicts N:M."""
    number("method.sparsity", sparsity, 0, 1, open_high=True)
    choice("method.scope", scope, MASK_SCOPES)
    nm = nm_pattern("method.pattern", pattern)
    if nm and not math.isclose(sparsity, 1 - nm[0] / nm[1]):
        raise UserError(f"method.sparsity={sparsity} contradicts method.pattern={pattern}; give method.sparsity={1 - nm[0] / nm[1]:g}")
