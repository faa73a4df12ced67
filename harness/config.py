"""The typed configuration: the cell half (hashed into the cell id) and the run half. Torch-free."""

import re
from dataclasses import dataclass, field
from typing import Any

from methods.spec import UserError, choice, number
from tasks.calibration import SOURCES

DTYPES = {"float32": "float32", "bf16_autocast": "float32", "bfloat16": "bfloat16"}
"""Precision of a cell -> type of its weights."""
PRECISIONS = tuple(DTYPES)
SCHEDULES = ("linear", "cosine", "constant")
TRACKERS = ("none", "offline", "online")
STALE = ("report", "keep", "rerun")
FAILURES = ("oom", "diverged", "timeout", "error", "disk_full", "interrupted")
"""How a cell can end without a record."""
COMPUTE = ("single", "ddp", "fsdp")
CALIBRATION_LENGTH = 2048
"""Tokens of a calibration sequence where the model takes as many, as SparseGPT and Wanda use."""
SWEEP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
PROJECT = re.compile(r"[^/\\#?%:]{1,128}")


@dataclass
class Top:
    """The keys of the configuration that are no blocks."""

    seed: int
    precision: str
    data_dir: str | None
    """A local folder with datasets in hub columns; null = prefetched assets, then the hub."""
    protocols: list[str]
    """More tasks that the model is measured on; not hashed."""
    forgetting: list[str]
    """Likewise, measured on the model as it is loaded too, before the method touches it; not hashed."""


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
    overlap: dict[str, str] = field(default_factory=dict)
    """Dataset (or a glob) -> what of it, or like it, the model is known to have been trained on; not hashed, footnoted in tables."""

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
    """Examples per forward pass of each process; None = its whole part of the global batch."""
    eval_batch: int
    checkpoint_steps: int
    """Optimizer steps between resumable checkpoints."""
    keep_model: bool
    """Keep the exported checkpoint in the cell's folder."""
    force: bool
    """Run again although a record exists; the old record is moved aside, not overwritten."""
    offline: bool
    """Never ask the hub."""
    time_limit_minutes: float | None
    """Wall time of one attempt of a cell; it is asked to save, then ends as `timeout`."""
    memory_limit_gb: float | None
    """Memory (GB = 10^9 bytes) that a cell's processes may hold, pages of mapped files not counted; more ends them as `oom`."""
    gpus: int | None
    """Accelerators per cell; None = one where CUDA is used."""
    stale: str
    """What a record of other sources is worth: `report` (named, not done), `keep` (done), `rerun` (moved aside and made anew)."""
    retry: list[str]
    """Failure classes that run again; the others wait (see `harness.policy`)."""
    only: list[str]
    """Cell ids to run; empty = all of the grid."""

    def __post_init__(self) -> None:
        choice("run.stale", self.stale, STALE)
        for failure in self.retry:
            choice("run.retry", failure, FAILURES)
        for name, limit in (("time_limit_minutes", self.time_limit_minutes), ("memory_limit_gb", self.memory_limit_gb)):
            if limit is not None:
                number(f"run.{name}", limit, 0, open_low=True)
        if self.gpus is not None:
            number("run.gpus", self.gpus, 0)
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
class ComputeConfig:
    """How many processes train a cell together, and how they share the work; not hashed: the global batch stays the recipe's."""

    kind: str
    """`single`, `ddp` (each holds the model and a part of the batch) or `fsdp` (weights, gradients and optimizer state cut too)."""
    processes: int | None
    """None = one per accelerator given to the cell; one where `kind` is `single`."""

    def __post_init__(self) -> None:
        choice("compute.kind", self.kind, COMPUTE)
        if self.processes is not None:
            number("compute.processes", self.processes, 1)
        if self.kind == "single" and self.processes not in (None, 1):
            raise UserError(f"compute.processes={self.processes} needs several processes; give compute=ddp or compute=fsdp with it")


@dataclass
class TrackerConfig:
    """Where Weights & Biases mirrors the store to; not hashed, and never needed for a cell to run."""

    kind: str
    """`none`, `offline` (files that `wandb sync` or `parebench-sweep sync` sends later) or `online`."""
    project: str
    entity: str | None
    """Team or user; None = the default of whoever's key is used."""
    folder: str
    """Where W&B's own files lie, offline runs among them."""
    timeout: float
    """Seconds that a sweep waits for W&B at its end, and W&B for its server."""

    def __post_init__(self) -> None:
        choice("tracker.kind", self.kind, TRACKERS)
        if not PROJECT.fullmatch(self.project):
            raise UserError(f"tracker.project={self.project} is not allowed; allowed: 1 to 128 characters without / \\ # ? % :")
        number("tracker.timeout", self.timeout, 0, open_low=True)


@dataclass
class CalibrationConfig:
    """The text that a one-shot compression method looks at; part of a cell only where the method does."""

    source: str = "c4"
    """Key of `tasks.calibration.SOURCES`, all of them training text."""
    sequences: int = 128
    length: int | None = None
    """Tokens per sequence; None = the model's longest input, at most `CALIBRATION_LENGTH`."""
    seed: int | None = None
    """Of the draw; None = the cell's seed."""

    def __post_init__(self) -> None:
        if re.split("[:/]", self.source)[0] in SOURCES and self.source not in SOURCES:
            names = ", ".join(SOURCES)
            raise UserError(f"calibration.source={self.source} names a split, and each text has its own; allowed: {names}")
        choice("calibration.source", self.source, SOURCES)
        number("calibration.sequences", self.sequences, 1)
        if self.length is not None:
            number("calibration.length", self.length, 2)
        if self.seed is not None:
            number("calibration.seed", self.seed, 0, 2**31 - 1)


@dataclass
class CorpusConfig:
    """The text that a language model trains on where its task has no training rows; part of a cell only where it does."""

    source: str | None = None
    """Key of `tasks.calibration.SOURCES`; None = there is none."""
    length: int | None = None
    """Tokens per row; None = the model's longest input, at most `CALIBRATION_LENGTH`."""

    def __post_init__(self) -> None:
        if self.source is not None:
            choice("corpus.source", self.source, SOURCES)
        if self.length is not None:
            number("corpus.length", self.length, 2)


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
    """Where each recipe value comes from, and what a solved key of the method was matched to; recorded, not hashed."""
    calibration: CalibrationConfig | None = None
    """With its length resolved; None where the method's traits ask for no calibration text."""
    corpus: CorpusConfig | None = None
    """With its length resolved; None where the cell does not train on a text."""

    def __post_init__(self) -> None:
        choice("precision", self.precision, PRECISIONS)
        number("seed", self.seed, 0, 2**31 - 1)
