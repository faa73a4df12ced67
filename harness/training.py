"""The one file that knows transformers' Trainer: it calls the method's hooks, saves verified checkpoints and resumes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from harness import checkpoint, distributed, guard, optimizers, sharding
from harness.batching import SHARE, GlobalBatches, TrainLoader
from harness.config import Recipe
from harness.store import write_json
from harness.worker import stop_requested
from methods.base import Context, Method, TrainSettings

SCHEDULERS = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class PhasePlan:
    """Everything that decides how one training phase runs."""

    name: str
    folder: Path
    """Where checkpoints and the finished state of the phase lie."""
    steps: int
    recipe: Recipe
    micro_batch: int
    """Examples per forward pass of each process."""
    device: str
    autocast: bool
    seed: int
    """Seed of the data order and of the trainer."""
    checkpoint_steps: int
    evaluate_at: tuple[int, ...]
    """Updates after which the selection metric is computed; empty = the last state is kept."""
    compute: str = "single"
    """How several processes share the phase: `single` (there is one), `ddp` or `fsdp`."""


@dataclass
class Progress:
    """Counters of a phase that survive a resume."""

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_value: float | None = None


class HostTrainer(Trainer):
    """Trainer whose loss, optimizer, batches and hooks are the method's and ours, and whose checkpoints are ours.

    `whole` is the model that was given; `model` is what trains and what hooks see: the same, or under fsdp a sharded copy of it.
    """

    loss_is_scaled_for_ga = True  # every micro-batch carries its weight in the global batch

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        ctx: Context,
        plan: PhasePlan,
        rows: Any,
        collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]],
        listener: "Listener",
    ) -> None:
        super().__init__(model=model, args=_arguments(plan), train_dataset=rows, data_collator=collate)
        self.whole, self.method, self.ctx, self.plan, self.listener = model, method, ctx, plan, listener
        if plan.compute == "fsdp":
            self.model = self.model_wrapped = sharding.shard(model, plan.device)
        self.progress = Progress()
        self.interrupted = False
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)
        self.add_callback(Hooks(self))

    def get_train_dataloader(self) -> TrainLoader:
        """This process's part of the global batches."""
        plan = self.plan
        where = (distributed.rank(), distributed.world())
        batches = GlobalBatches(self.train_dataset, plan.recipe.batch, plan.micro_batch, plan.seed, *where)
        return TrainLoader(batches, self.data_collator, pin=plan.device != "cpu")

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The method's optimizer; it must hold exactly the trainable parameters."""
        if self.optimizer is None:
            self.optimizer = self.method.optimizer(self.model, self.ctx.settings)
            check_parameters(self.model, self.optimizer)
        return self.optimizer

    def check_wrapper(self) -> None:
        """`RuntimeError` unless the model is wrapped as the plan says: libraries fall back to another wrapper without a word."""
        wrapper, inner = self.model_wrapped, self.model
        right = {
            "single": wrapper is inner and distributed.world() == 1,
            "ddp": isinstance(wrapper, DistributedDataParallel),
            "fsdp": isinstance(wrapper, distributed.Objective) and sharding.is_sharded(inner),
        }
        if not right[self.plan.compute]:
            raise RuntimeError(f"compute={self.plan.compute} trains a {type(wrapper).__name__} of {type(inner).__name__}")

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The method's loss on a micro-batch, weighted so that a step's gradients are those of the global batch's mean."""
        share = inputs.pop(SHARE)
        loss = model(inputs) if isinstance(model, DistributedDataParallel | distributed.Objective) else self._loss(model, inputs)
        return loss * share.weight

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch; after the last of a step the method sees the gradients before they are clipped."""
        self.progress.examples += inputs[SHARE].examples
        self.progress.tokens += inputs[SHARE].tokens
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.method.on_gradients(self.model, self.state.global_step, self.ctx)
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Compute the selection metric and keep the state if it is the best eligible one so far."""
        step = self.state.global_step
        self.gather()
        value = distributed.from_main(lambda: self.listener.selection_metric(self.whole, step))
        progress = self.progress
        better = progress.best_value is None or value > progress.best_value
        if better and self.method.eligible(step, self.ctx):
            progress.best_step, progress.best_value = step, value
            if distributed.is_main():
                checkpoint.write_sealed(self.plan.folder / f"best-{step}", self._write_state)
        distributed.barrier()
        self.model.train()
        # Trainer's own evaluate ends with this callback; without it the flag stays up and the epoch's end evaluates again.
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, {})
        return {}

    def add_parameters(self, parameters: list[nn.Parameter], like: nn.Parameter, restart: bool = False) -> None:
        """As `methods.base.Context.add_parameters`; one process only, since a wrapper would not know the new parameters."""
        if self.plan.compute != "single":
            raise RuntimeError(f"add_parameters works in one process; this phase trains under compute={self.plan.compute}")
        optimizers.join(self.optimizer, self.lr_scheduler, parameters, like, restart)

    def gather(self) -> None:
        """Bring `whole` up to date with what trains."""
        if self.model is not self.whole:
            sharding.gather(self.model, self.whole)

    def _loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Autocast covers this call alone, so the model itself is never wrapped for it."""
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.plan.autocast):
            return self.method.loss(model, inputs, self.ctx)

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """In place of accelerate, which knows no sharding on a CPU and would wrap the model where the method's loss is to be wrapped."""
        if self.plan.compute == "single" or model is not self.model:
            return model
        objective = distributed.Objective(model, self._loss)
        return objective if self.plan.compute == "fsdp" else DistributedDataParallel(objective, forward_sync_buffers=False)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        return sharding.whole(super()._clip_grad_norm(model))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        return sharding.whole(super()._get_grad_norm(model, grad_norm))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.progress.steps = self.state.global_step
        self.progress.seconds = self.listener.seconds()
        self.gather()
        check_parameters(self.model, self.optimizer)
        state = sharding.whole_state(self.optimizer)
        optimizer = optimizers.by_name(state, optimizers.names(self.optimizer, self.model))
        if distributed.is_main():
            folder = self.plan.folder / f"checkpoint-{self.state.global_step}"
            checkpoint.write_sealed(folder, lambda aside: self._write_checkpoint(aside, optimizer))
            _prune(self.plan.folder)
        distributed.barrier()

    def _write_checkpoint(self, folder: Path, optimizer: dict[str, Any]) -> None:
        self._write_state(folder)
        checkpoint.save_optimizer(folder, optimizer)
        write_json(folder / "scheduler.json", self.lr_scheduler.state_dict())
        checkpoint.save_generators(folder)
        write_json(folder / "progress.json", asdict(self.progress))
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def _write_state(self, folder: Path) -> None:
        write_state(folder, self.whole, self.method)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        read_state(folder, self.whole, self.method)
        if self.model is not self.whole:
            sharding.scatter(self.whole, self.model)
        self.progress = Progress(**json.loads((folder / "progress.json").read_text()))

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is None:
            return
        folder = Path(checkpoint_folder)
        state = optimizers.regroup(self.optimizer, self.model, checkpoint.read_optimizer(folder))
        self.optimizer.load_state_dict(sharding.own_state(state, self.optimizer))
        optimizers.reschedule(self.optimizer, self.lr_scheduler)
        self.lr_scheduler.load_state_dict(json.loads((folder / "scheduler.json").read_text()))

    def _load_rng_state(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is not None:
            checkpoint.load_generators(Path(checkpoint_folder))


class Listener:
    """What a phase tells its cell; the default keeps quiet. `harness.context` implements it."""

    def selection_metric(self, model: nn.Module, step: int) -> float:
        """The selection metric now, larger is better."""
        raise NotImplementedError("this phase has no selection rows")

    def history(self, entry: dict[str, Any]) -> None:
        """One line of the learning curve."""

    def seconds(self) -> float:
        """Seconds spent in this phase so far, earlier attempts included."""
        return 0.0


class Hooks(TrainerCallback):
    """Trainer's callbacks mapped to the method's hooks; also the points where a phase may stop."""

    def __init__(self, host: HostTrainer) -> None:
        self.host = host

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.host.check_wrapper()
        distributed.check_alike(checkpoint.trained_tensors(self.host.whole), "before training")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.host.method.on_step(self.host.model, state.global_step, self.host.ctx)
        distributed.own_draws(self.host.plan.seed, state.global_step)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.host.method.on_update(self.host.model, state.global_step + 1, self.host.ctx)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.host.method.on_epoch(self.host.model, round(state.epoch), self.host.ctx)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        plan, step = self.host.plan, state.global_step
        control.should_evaluate = step in plan.evaluate_at
        last = step >= plan.steps
        control.should_save = step % plan.checkpoint_steps == 0 and not last
        if distributed.any_rank(stop_requested()) and not last:
            self.host.interrupted = control.should_save = control.should_training_stop = True
        # Trainer logs before it evaluates or saves: the guard in on_log then sees a bad loss first.
        control.should_log = control.should_log or control.should_evaluate or control.should_save or last

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        for key in ("loss", "grad_norm", "train_loss"):
            if key in logs:
                guard.check_finite(key, float(logs[key]), state.global_step)
        if "loss" in logs:
            keys = ("loss", "grad_norm", "learning_rate", "epoch")
            entry = {key: float(logs[key]) for key in keys if key in logs}
            progress = self.host.progress
            counters = {"step": state.global_step, "examples": progress.examples, "tokens": progress.tokens}
            self.host.listener.history({"phase": self.host.plan.name, **counters, "seconds": self.host.listener.seconds(), **entry})


def run_phase(trainer: HostTrainer) -> Progress:
    """Train to the end of the plan, resuming from the newest verified checkpoint; keep the selected state.

    Raises `guard.Diverged` on a non-finite loss and `guard.Interrupted` after a requested stop was saved.
    """
    plan = trainer.plan
    if distributed.is_main():
        checkpoint.sweep_aside(plan.folder)
    resume = resumable(plan.folder)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if trainer.interrupted:
        raise guard.Interrupted(f"stopped at step {trainer.state.global_step} of {plan.steps}; the next run resumes there")
    check_parameters(trainer.model, trainer.optimizer)
    trainer.gather()
    distributed.check_alike(checkpoint.trained_tensors(trainer.whole), "after training")
    guard.check_weights(trainer.whole)
    trainer.progress.steps = trainer.state.global_step
    return trainer.progress


def resumable(folder: Path) -> Path | None:
    """The newest checkpoint that verifies together with the best state that it refers to."""
    folders = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]), reverse=True)
    return next((f for f in folders if checkpoint.verified(f) and _best_of(f) is not False), None)


def write_state(folder: Path, model: nn.Module, method: Method) -> None:
    """Write what training may have changed: trainable parameters, buffers, and the method's own tensors."""
    checkpoint.save_tensors(folder / "weights.safetensors", checkpoint.trained_tensors(model))
    checkpoint.save_tensors(folder / "method.safetensors", method.state_dict())


def read_state(folder: Path, model: nn.Module, method: Method) -> None:
    """Take back what `write_state` wrote: the method's state first, since it may change shapes."""
    method.load_state_dict(load_file(folder / "method.safetensors"))
    checkpoint.restore_tensors(model, load_file(folder / "weights.safetensors"))


def check_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The optimizer must hold exactly the trainable parameters: surgery during a run is otherwise ignored silently."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    if held != set(trainable):
        names = [name for key, name in trainable.items() if key not in held]
        raise RuntimeError(f"the optimizer misses {names[:3]} and holds {len(held - set(trainable))} parameters that do not train")


def settings_of(recipe: Recipe) -> TrainSettings:
    """The part of a recipe that an optimizer needs."""
    head_lr = recipe.lr if recipe.head_lr is None else recipe.head_lr
    return TrainSettings(recipe.lr, head_lr, recipe.weight_decay, recipe.beta1, recipe.beta2, recipe.epsilon)


def _arguments(plan: PhasePlan) -> TrainingArguments:
    recipe = plan.recipe
    return TrainingArguments(
        output_dir=str(plan.folder),
        max_steps=plan.steps,
        per_device_train_batch_size=plan.micro_batch,
        gradient_accumulation_steps=recipe.batch // (plan.micro_batch * distributed.world()),
        learning_rate=recipe.lr,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type=SCHEDULERS[recipe.schedule],
        warmup_steps=int(recipe.warmup * plan.steps + 0.5),
        max_grad_norm=recipe.max_grad_norm,
        seed=plan.seed,
        data_seed=plan.seed,
        use_cpu=plan.device == "cpu",
        logging_steps=max(1, min(10, plan.steps // 10)),
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=plan.device != "cpu",
    )


def _best_of(folder: Path) -> Path | bool | None:
    """The best state a checkpoint refers to: its folder, None if it names none, False if it is damaged."""
    step = json.loads((folder / "progress.json").read_text())["best_step"]
    best = folder.parent / f"best-{step}"
    return None if step is None else (best if checkpoint.verified(best) else False)


def _prune(folder: Path) -> None:
    """Keep the newest checkpoints and the best states that they or the running phase may need."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    for old in checkpoints[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old)
    needed = {_best_of(f) for f in checkpoints[-KEPT_CHECKPOINTS:] if checkpoint.verified(f)}
    for best in folder.glob("best-*"):
        if best not in needed:
            shutil.rmtree(best)
