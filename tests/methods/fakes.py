"""A context without a harness, and tiny models of every family, for tests of single methods."""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import conf
from methods.base import Batch, Method, TrainSettings

FOLDER = Path(conf.__file__).parent / "model"


class FakeContext:
    """`methods.base.Context` over given batches: a plain loop that calls the method's hooks where the harness would."""

    def __init__(self, method: Method, batches: list[Batch], lr: float = 1e-2, seed: int = 0, weight_decay: float = 0.1) -> None:
        self.method, self.rows, self.seed = method, batches, seed
        self.settings = TrainSettings(lr, 2 * lr, weight_decay, 0.9, 0.999, 1e-8)
        self.total_steps = len(batches)
        self.phases: list[str] = []
        self.probe: Callable[[nn.Module], None] | None = None
        """Called after the method saw the gradients, before they are clipped."""

    def train(self, model: nn.Module, phase: str = "main", *, share: float = 1.0, select: bool = True, order: str = "") -> nn.Module:
        self.phases.append(phase)
        optimizer = self.optimizer = self.method.optimizer(model, self.settings)
        model.train()
        for step, batch in enumerate(self._ordered(order)):
            self.method.on_step(model, step, self)
            optimizer.zero_grad()
            self.method.loss(model, batch, self).backward()
            self.method.on_gradients(model, step, self)
            if self.probe:
                self.probe(model)
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            self.method.on_update(model, step + 1, self)
        return model

    def _ordered(self, order: str) -> list[Batch]:
        shuffled = torch.randperm(len(self.rows), generator=self.generator(order)).tolist() if order else range(len(self.rows))
        return [self.rows[i] for i in shuffled]

    def add_parameters(self, parameters: list[nn.Parameter], like: nn.Parameter, *, restart: bool = False) -> None:
        """There is no schedule that could begin anew."""
        (group,) = (group for group in self.optimizer.param_groups if any(p is like for p in group["params"]))
        self.optimizer.add_param_group({**group, "params": parameters})

    def once(self, name: str, fn: Callable[[], Any]) -> Any:
        return fn()

    def batches(self, split: str, n: int | None = None) -> Iterator[Batch]:
        assert (split, n) == ("train", None)
        yield from self.rows

    def calibration(self) -> torch.Tensor:
        """Eight sequences of 24 random tokens."""
        return torch.randint(6, 260, (8, 24), generator=torch.Generator().manual_seed(self.seed))

    def generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.phases.append(name)
        yield


def build(name: str, *, classify: bool = True, device: str = "cpu", labels: int = 2, seed: int = 0) -> nn.Module:
    """The architecture of `conf/model/<name>.yaml` with random weights, in eval mode."""
    architecture = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))["architecture"]
    auto = AutoModelForSequenceClassification if classify else AutoModelForCausalLM
    config = AutoConfig.for_model(**architecture, **({"num_labels": labels} if classify else {}))
    torch.manual_seed(seed)
    with torch.device(device):
        return auto.from_config(config).eval()


def batches(n: int = 3, rows: int = 4, labels: int = 2, seed: int = 0) -> list[Batch]:
    """Right-padded batches (pad id 0) of random tokens and labels; one label means regression."""
    draws = torch.Generator().manual_seed(seed)
    return [_batch(rows, labels, draws) for _ in range(n)]


def _batch(rows: int, labels: int, draws: torch.Generator) -> Batch:
    lengths = torch.randint(3, 9, (rows, 1), generator=draws)
    mask = (torch.arange(8)[None] < lengths).long()
    ids = torch.randint(6, 260, (rows, 8), generator=draws) * mask
    y = torch.randn(rows, generator=draws) if labels == 1 else torch.randint(0, labels, (rows,), generator=draws)
    return {"input_ids": ids, "attention_mask": mask, "labels": y}


def inputs(seed: int = 7) -> Batch:
    """One batch without labels."""
    return {key: value for key, value in batches(1, seed=seed)[0].items() if key != "labels"}


def logits(model: nn.Module, batch: Batch | None = None) -> torch.Tensor:
    """The logits in eval mode."""
    model.eval()
    with torch.no_grad():
        return model(**(batch or inputs())).logits


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the parameters that differ from a snapshot."""
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def trainable(model: nn.Module) -> dict[str, int]:
    """Sizes of the parameters that require gradients."""
    return {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
