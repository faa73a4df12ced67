"""The method interface: what a technique may override, and the services that it is given."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from methods.roles import head_names
from methods.spec import Traits

T = TypeVar("T")
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class TrainSettings:
    """The resolved recipe of a phase, as a method's optimizer needs it."""

    lr: float
    head_lr: float
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float


@dataclass
class ModelSpec:
    """How the model is about to be loaded; `Method.load` may edit it before any weight is read."""

    dtype: str = "float32"
    attention: str | None = None
    config_edits: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter as its folder holds it."""

    settings: dict[str, Any]
    """`adapter_config.json`."""
    tensors: dict[str, Tensor]
    """On the CPU, under the names of the file."""


class Context(Protocol):
    """Services of the harness. A method never touches disk, devices, the trainer or the global config itself."""

    seed: int
    settings: TrainSettings
    total_steps: int
    """Optimizer steps of the running (or next) training phase."""

    def train(self, model: nn.Module, phase: str = "main", *, share: float = 1.0, select: bool = True, order: str = "") -> nn.Module:
        """Train what requires gradients for `share` of the budget. Idempotent: a finished phase is restored.

        With `select` the best eligible state on the task's selection rows is kept, where the task has such rows. Phases of one `order` see
        the rows in one order, every name another; "" is the order that all methods share.
        """

    def score(self, model: nn.Module) -> float:
        """The task's metric on its selection rows, larger is better; for use inside `once`. `UserError` where the task has no such rows."""

    def once(self, name: str, fn: Callable[[], T]) -> T:
        """The value of `fn()` (tensors or JSON), computed once per cell and kept across a resume.

        Where several processes train the cell the first computes it alone, so `fn` must not train.
        """

    def cell(self, name: str) -> nn.Module:
        """The finished model of a cell that `Config.dependencies` names: on this cell's device in its dtype, frozen, in eval mode.

        Read from disk at every call: call it once, in `prepare`, and keep the model outside of the one that is returned.
        """

    def external(self) -> nn.Module | Adapter:
        """What lies at `Config.place()`, for methods with the trait `external`; a checkpoint is on this cell's device in eval mode.

        `UserError` where it is no checkpoint of the cell's architecture with all its weights, or an adapter of another model.
        """

    def batches(self, split: str, n: int | None = None) -> Iterator[Batch]:
        """Padded batches on the model's device of the first `n` rows of a split in the cell's row order."""

    def calibration(self) -> Tensor:
        """Token ids (sequences, length) on the CPU of the configured calibration text; for methods with the trait `calibration`."""

    def add_parameters(self, parameters: list[nn.Parameter], like: nn.Parameter, *, restart: bool = False) -> None:
        """Train new parameters from the next step on, in an optimizer group of their own with the options of the group of `like`.

        For use in `on_update`, in one process (trait `distributed=()`). With `restart` the recipe's schedule begins anew for them: its
        warmup, then its decay over the steps that are left. On a resume `Method.load_state_dict` gives the model the shapes of the
        checkpoint (also smaller ones, when the best state comes back), `Method.optimizer` meets it, and groups and states go back by name.
        """

    def generator(self, name: str) -> torch.Generator:
        """A CPU generator seeded from (seed, name): equal for equal names whatever was drawn before."""

    def stage(self, name: str, method: "Method", recipe: Any, share: float, selects: bool) -> AbstractContextManager[None]:
        """For chains: inside, phases, `once`, `cell` and generators are `name`'s own, and `train` calls the hooks of `method`.

        It trains under `recipe` for `share` of the budget; without `selects` no checkpoint is chosen by selection rows.
        """

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Meters a block that is not `train` (seconds, examples, memory) under its own name."""


class Method:
    """A technique. The defaults are plain full fine-tuning; subclasses override only what they change."""

    Config: ClassVar[type]
    traits: ClassVar[Traits] = Traits()

    def __init__(self, config: Any) -> None:
        self.config = config

    def load(self, spec: ModelSpec) -> ModelSpec:
        """Edit how the model is loaded (dtype, attention, configuration)."""
        return spec

    def prepare(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Insert adapters, masks or factors; freeze what stays. Parameters that require gradients are trained."""
        return model

    def fit(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Train. Techniques of several stages call `ctx.train` several times."""
        return ctx.train(model)

    def finalize(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Fold into a stock transformers model wherever the technique allows."""
        return model

    def variants(self, model: nn.Module, ctx: Context) -> Iterator[tuple[str, nn.Module]]:
        """The models that one fit yields, by name, from the finalized one, which `main` is.

        Each may be the same module with other weights until the next is asked for; afterwards `model` is `main` again.
        """
        yield "main", model

    def lora(self, model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        """For methods with the trait `exports_lora`: (B (out, r), A (r, in)), float32, with W' = W + B A, by stock module name.

        Called after `fit` and before `finalize`; W is the loaded weight, and no backbone parameter outside these changes.
        """
        return {}

    def detach(self, model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
        """For methods without the trait `folds`: the finalized model taken apart, in place, into the stock model and all other tensors.

        Called once, at export, where the stock model (its trained head and norms included) is saved with these tensors beside it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not fold, so it must define detach and attach")

    def attach(self, model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
        """The inverse of `detach`: puts the tensors, in their own dtype, back into a stock model that was reloaded.

        It runs on a new instance of the method, which knows its configuration alone. The result has its parameters in the order of the
        finalized model and gives its logits to the last bit.
        """
        raise NotImplementedError(f"{type(self).__name__} does not fold, so it must define detach and attach")

    def optimizer(self, model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
        """AdamW over `groups`."""
        betas = (settings.beta1, settings.beta2)
        return torch.optim.AdamW(self.groups(model, settings), lr=settings.lr, betas=betas, eps=settings.epsilon, fused=True)

    def groups(self, model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
        """Optimizer groups: the head has its own learning rate; no weight decay on vectors (biases, norms, gates)."""
        return parameter_groups(model, settings)

    def loss(self, model: nn.Module, batch: Batch, ctx: Context) -> Tensor:
        """The scalar to minimise; default: the model's own loss.

        `batch`: `input_ids`, `attention_mask`, `labels` and whatever else the model takes. Under a mixture of tasks (`task=mixture/...`)
        also `task_ids`, a LongTensor (batch,): pass it on like the rest. The model that `prepare` is given accepts and ignores it, and its
        loss is the mean over rows of each row's own task's loss: labels number the classes of all tasks jointly, so they tell the task
        also where a wrapper keeps `task_ids` to itself (a forward pre-hook of the method, PEFT's Poly). `logits` (batch, classes of all
        tasks) are not masked.
        """
        return model(**batch).loss

    def on_step(self, model: nn.Module, step: int, ctx: Context) -> None:
        """Before the first micro-batch of optimizer step `step` (0 included): sample a rank, a mask, a layer set."""

    def on_gradients(self, model: nn.Module, step: int, ctx: Context) -> None:
        """After the last backward of a step and before clipping."""

    def on_update(self, model: nn.Module, step: int, ctx: Context) -> None:
        """After the optimizer's update number `step`: masks, proximal steps, rank reallocation."""

    def on_epoch(self, model: nn.Module, epoch: int, ctx: Context) -> None:
        """At the end of an epoch."""

    def eligible(self, step: int, ctx: Context) -> bool:
        """May the checkpoint after `step` updates be selected? (Not while a sparsity ramp still runs.)"""
        return True

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """What only the method knows (sparsity reached, rank profile); plain JSON."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors outside the model's parameters and buffers that must survive a resume."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""


def freeze_backbone(model: nn.Module) -> None:
    """Freeze everything except the task head (see the roles table for what counts as head)."""
    heads = head_names(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in heads)


def parameter_groups(model: nn.Module, settings: TrainSettings) -> list[dict[str, Any]]:
    """Optimizer groups of the trainable parameters: (backbone, head) x (decayed matrices, undecayed vectors)."""
    heads = head_names(model)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in heads, parameter.ndim >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": settings.head_lr if is_head else settings.lr,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (is_head, decays), parameters in groups.items()
    ]
