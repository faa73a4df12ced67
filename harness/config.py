"""The typed configuration: the cell half (hashed into the cell id) and the run half. Torch-free."""

import re
from dataclasses import dataclass, field
from typing import Any

from methods.spec import UserError, choice, number

PRECISIONS = ("float32", "bf16_autocast", "bfloat16")
SCHEDULES = ("linear", "cosine", "constant")
SWEEP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass
class Top:
    """The keys of the configuration that are no blocks."""

    seed: int
    precision: str
    data_dir: str | None
    """A local folder with datasets in hub columns; null = prefetched assets, then the hub."""


@dataclass
class ModelConfig:
    """A pretrained (or from-config) transformers model and its tokenizer."""

    name: str
    family: str
    """`encoder` or `decoder`; decides with the method's traits what is compatible."""
    biases: bool
    """Whether the backbone has bias parameters (a test compares it with the architecture)."""
    classifier: bool
    """Whether transformers ships a sequence classifier for it (a test compares it with the library)."""
    source: str
    """`hub`, `assets`, `folder` or `config` (random weights from `architecture`)."""
    id: str | None
    """Hub repository, asset name, or folder (relative to `data_dir`'s sibling `models/`, or absolute)."""
    revision: str | None
    """Pinned hub commit."""
    max_length: int
    """Longest input in tokens."""
    note: str
    """Printed under every table that shows the model, for instance how it was dequantised."""
    architecture: dict[str, Any]
    """Fields of the transformers configuration incl. `model_type`: enough to build it on the meta device."""

    def __post_init__(self) -> None:
        choice("model.family", self.family, ("encoder", "decoder"))
        choice("model.source", self.source, ("hub", "assets", "folder", "config"))
        number("model.max_length", self.max_length, 2)


@dataclass
class BudgetConfig:
    """The training examples that a cell may see, all phases and copies together."""

    name: str
    examples: int | None
    """None = as many as the recipe's epochs ask for."""
    evaluations: int
    """How many times a selection metric is computed while training, equally spaced."""

    def __post_init__(self) -> None:
        if self.examples is not None:
            number("budget.examples", self.examples, 1)
        number("budget.evaluations", self.evaluations, 1)


@dataclass
class Recipe:
    """How a cell trains; resolved from the matchers of the method's YAML (see `harness/recipes.py`)."""

    lr: float
    head_lr: float | None
    """None = `lr`."""
    batch: int
    """Global batch in examples per optimizer step."""
    epochs: float
    """Used where the budget gives no number of examples."""
    schedule: str
    warmup: float
    """Fraction of the steps."""
    weight_decay: float
    max_grad_norm: float
    """0 = no clipping."""
    beta1: float
    beta2: float
    epsilon: float

    def __post_init__(self) -> None:
        number("recipe.lr", self.lr, 0)
        if self.head_lr is not None:
            number("recipe.head_lr", self.head_lr, 0)
        number("recipe.batch", self.batch, 1)
        number("recipe.epochs", self.epochs, 0, open_low=True)
        number("recipe.warmup", self.warmup, 0, 1)
        number("recipe.weight_decay", self.weight_decay, 0)
        number("recipe.max_grad_norm", self.max_grad_norm, 0)
        number("recipe.beta1", self.beta1, 0, 1, open_high=True)
        number("recipe.beta2", self.beta2, 0, 1, open_high=True)
        number("recipe.epsilon", self.epsilon, 0, open_low=True)
        choice("recipe.schedule", self.schedule, SCHEDULES)


@dataclass
class RunConfig:
    """What changes where and how a cell runs, never what it measures; not hashed."""

    store: str
    assets: str
    """Folder of prefetched wheels' files and converted models."""
    sweep: str | None
    """Name under which the records are grouped."""
    device: str
    """`auto`, `cpu`, `cuda` or `cuda:<n>`."""
    threads: int | None
    """CPU threads per cell; None = cores // workers."""
    micro_batch: int | None
    """Examples per forward pass; None = the whole global batch."""
    eval_batch: int
    checkpoint_steps: int
    """Optimizer steps between resumable checkpoints."""
    keep_model: bool
    """Keep the exported checkpoint in the cell's folder."""
    force: bool
    """Run again although a record exists; the old record is moved aside, not overwritten."""
    offline: bool
    """Never ask the hub."""

    def __post_init__(self) -> None:
        if not DEVICE.fullmatch(self.device):
            raise UserError(f"run.device={self.device} is not allowed; allowed: auto, cpu, cuda, cuda:<n>")
        if self.sweep is not None and not SWEEP.fullmatch(self.sweep):
            raise UserError(f"run.sweep={self.sweep} is not allowed; allowed: letters, digits, '.', '_' and '-' (it names files)")
        number("run.eval_batch", self.eval_batch, 1)
        number("run.checkpoint_steps", self.checkpoint_steps, 1)
        if self.threads is not None:
            number("run.threads", self.threads, 1)
        if self.micro_batch is not None:
            number("run.micro_batch", self.micro_batch, 1)


@dataclass
class Cell:
    """One (method, model, task, recipe, budget, seed): all that decides the numbers."""

    method: str
    method_config: Any
    """An instance of the method's own `Config`."""
    model: ModelConfig
    task: Any
    """One of `tasks.spec.KINDS`."""
    budget: BudgetConfig
    recipe: Recipe
    seed: int
    precision: str
    origins: dict[str, str] = field(default_factory=dict)
    """Where each recipe value comes from; recorded, not hashed."""

    def __post_init__(self) -> None:
        choice("precision", self.precision, PRECISIONS)
        number("seed", self.seed, 0, 2**31 - 1)
