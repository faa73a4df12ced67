"""What a training step of every adapter costs against PEFT's LoRA of the same rank on the same targets (q and v), in one run.

    python -m pytest -m bench tests/bench/adapter_cost.py -s

Time: processor seconds on one thread of forward, backward, optimizer and the method's own hooks; a step of the technique and one of
LoRA take turns, and the ratio is the median over such pairs, so that whatever else the machine does falls on both. Activations: bytes
that autograd keeps for the backward pass, each storage once, without the storages of parameters and buffers, which are there anyway.

Low-rank techniques (`LOW_RANK`) do what LoRA does and maps of size r x r or r more: x A^T, a core or gates, B. They must cost at most
1.15 of it. Not among them: NOLA, which makes its random bases anew in every pass, SVFit and LoLDU at their published full rank, and
all that forms a matrix of the weight's size (DoRA, SHiRA, RandLoRA, IncreLoRA's scores) or acts elsewhere (Houlsby, Compacter).
"""

import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from harness.registry import files, load_spec, method_class
from methods.base import Batch, Method
from tests.methods.fakes import FOLDER, FakeContext

RANK, ROWS, LENGTH = 8, 8, 64
WARM, PAIRS = 2, 15
"""Steps before any is timed; pairs of steps of a technique and LoRA."""
LIMIT = 1.15
"""Of LoRA's time and activations, for `LOW_RANK`."""
LOW_RANK = ("dylora", "loldu", "lora_sb", "lora_xs", "nlora", "nlora slora", "sora", "svfit")
FAMILIES = ("adapters", "reparam", "sparse", "quantize")
WIDTH = 384
"""Of the model; the full rank of its q and v."""
CHANGES: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": RANK, "target_r": RANK // 2},
    "compacter": {"targets": ["o"]},
    "houlsby_adapter": {"targets": ["o"]},
    "ia3": {"feedforward": []},
    "increlora": {"r": RANK - 1, "target": RANK},
}
"""Where a technique has no `r`, or no place on q and v."""
EXTRA: dict[str, tuple[str, dict[str, Any]]] = {
    "lora again": ("lora", {}),
    "nlora slora": ("nlora", {"mode": "slora"}),
    "svfit full rank": ("svfit", {"r": WIDTH}),
    "loldu full rank": ("loldu", {"r": None}),
}
"""More rows of the table; LoRA against itself shows what the machine adds."""


class Rows(FakeContext):
    """Gives rows of random tokens; its training takes no step, but claims to be so long that nothing ends within this measurement."""

    def __init__(self, method: Method) -> None:
        draws = torch.Generator().manual_seed(0)
        ids = torch.randint(6, 1000, (ROWS, LENGTH), generator=draws)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(ROWS) % 2}
        super().__init__(method, [batch], lr=1e-4)
        self.total_steps = 10_000

    def train(self, model: nn.Module, phase: str = "main", *, share: float = 1.0, select: bool = True) -> nn.Module:
        return model

    def batches(self, split: str, n: int | None = None) -> Iterator[Batch]:
        yield self.rows[0]


@dataclass
class Trainee:
    """One technique on its own copy of the model."""

    method: Method
    step: int = 0
    seconds: list[float] = field(default_factory=list)
    """Of the timed steps, each with `beside` of the LoRA step next to it."""
    beside: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.ctx = Rows(self.method)
        self.model = self.method.fit(self.method.prepare(build(), self.ctx), self.ctx).train()
        self.optimizer = self.ctx.optimizer = self.method.optimizer(self.model, self.ctx.settings)

    def train(self) -> float:
        """Processor seconds of one step."""
        began = time.process_time()
        self.method.on_step(self.model, self.step, self.ctx)
        self.optimizer.zero_grad()
        self.method.loss(self.model, self.ctx.rows[0], self.ctx).backward()
        self.method.on_gradients(self.model, self.step, self.ctx)
        self.optimizer.step()
        self.step += 1
        self.method.on_update(self.model, self.step, self.ctx)
        return time.process_time() - began

    @cached_property
    def activations(self) -> int:
        """Bytes kept for the backward pass of one batch."""
        held: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
            loss = self.method.loss(self.model, self.ctx.rows[0], self.ctx)
        own = {t.untyped_storage().data_ptr() for t in (*self.model.parameters(), *self.model.buffers())}
        kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
        loss.backward()
        return sum(size for place, size in kept.items() if place not in own)

    @property
    def ratio(self) -> float:
        """Median over the pairs of this step's time relative to LoRA's."""
        return statistics.median(own / other for own, other in zip(self.seconds, self.beside, strict=True))


def build() -> nn.Module:
    """MiniLM's architecture with few words, random weights and no dropout, whose masks are activations too."""
    architecture = OmegaConf.to_container(OmegaConf.load(FOLDER / "minilm.yaml"))["architecture"]
    still = {"vocab_size": 1000, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**architecture | still, num_labels=2))


def configured(slug: str, changes: dict[str, Any]) -> Method:
    """The method at its defaults except for targets and rank."""
    cls = method_class(slug)
    names = {f.name for f in fields(cls.Config)}
    given = OmegaConf.to_container(OmegaConf.load(FOLDER.parent / "method" / f"{slug}.yaml"))
    same = {key: value for key, value in {"targets": ["q", "v"], "r": RANK}.items() if key in names}
    values = {key: given[key] for key in names} | same | CHANGES.get(slug, {}) | changes
    return cls(cls.Config(**values))


def techniques() -> dict[str, Method]:
    """Every registered technique that trains on target maps beside a frozen backbone, by its row's name."""
    slugs = [slug for slug, path in files().items() if path.parent.name in FAMILIES and adapts_targets(slug)]
    return {slug: configured(slug, {}) for slug in slugs} | {row: configured(slug, changes) for row, (slug, changes) in EXTRA.items()}


def adapts_targets(slug: str) -> bool:
    """Has it targets, and does it train?"""
    spec = load_spec(slug)
    return spec.traits.trains and "targets" in {f.name for f in fields(spec.config)}


def take_turns(trainees: dict[str, Trainee], reference: Trainee) -> None:
    """Alternately LoRA first and the technique first."""
    for trainee in trainees.values():
        for _ in range(WARM):
            trainee.train()
    for turn in range(PAIRS):
        for trainee in trainees.values():
            first, second = (reference, trainee) if turn % 2 else (trainee, reference)
            times = {id(first): first.train(), id(second): second.train()}
            trainee.seconds.append(times[id(trainee)])
            trainee.beside.append(times[id(reference)])


def show(trainees: dict[str, Trainee], reference: Trainee) -> None:
    """The table, cheapest first."""
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    table = Table(title=f"a training step against PEFT's LoRA, r = {RANK}, {ROWS} x {LENGTH} tokens, {PAIRS} pairs; {load}")
    for column in ("technique", "time", "activations", "ms", "MiB"):
        table.add_column(column, justify="left" if column == "technique" else "right")
    for name, trainee in sorted(trainees.items(), key=lambda item: item[1].ratio):
        memory, seconds = trainee.activations, statistics.median(trainee.seconds)
        shown = f"{name} *" if name in LOW_RANK else name
        table.add_row(
            shown, f"{trainee.ratio:.2f}", f"{memory / reference.activations:.3f}", f"{1e3 * seconds:.0f}", f"{memory / 2**20:.1f}"
        )
    Console(width=120).print(table, f"* low-rank: at most {LIMIT}")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The processor seconds of waiting threads would be counted too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.bench
@pytest.mark.usefixtures("one_thread")
def test_low_rank_techniques_cost_what_lora_costs() -> None:
    reference = Trainee(configured("lora", {}))
    trainees = {name: Trainee(method) for name, method in techniques().items() if name != "lora"}
    take_turns(trainees, reference)
    show(trainees, reference)
    assert {name: trainees[name].ratio for name in LOW_RANK if trainees[name].ratio > LIMIT} == {}
    assert [name for name in LOW_RANK if trainees[name].activations > LIMIT * reference.activations] == []
