"""What `test_distributed` runs in the processes of a group; with one process the same functions run in the test itself."""

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from harness import cell as spine
from harness import distributed, ranks, training
from harness.batching import collator
from harness.config import Recipe
from harness.seeding import seed_everything
from harness.tiny import byte_tokenizer
from methods.base import Method

STEPS, BATCH = 6, 8
TOKENIZER = byte_tokenizer()
ROWS = [dict(TOKENIZER("row " + "x" * (i % 7))) | {"labels": i % 2} for i in range(33)]
"""An epoch of four whole batches and one of a single row, so that one of two processes is left without."""


class Curve(training.Listener):
    """Keeps the learning curve in memory."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def history(self, entry: dict[str, Any]) -> None:
        self.lines.append(entry)


def model() -> nn.Module:
    """A tiny BERT without dropout, always the same."""
    torch.manual_seed(0)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = {"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(**sizes, **dropout))


def recipe() -> Recipe:
    """AdamW with clipping that bites."""
    return Recipe(1e-3, None, BATCH, 1.0, "linear", 0.1, 0.01, 0.5, 0.9, 0.999, 1e-8)


def train(out: str, folder: str, compute: str, micro: int, steps: int = STEPS, pause: float = 0.0) -> training.HostTrainer:
    """A phase of `steps` steps with checkpoints in `folder`; the first process writes what came out to `out`."""

    class Slow(Method):
        def on_step(self, model: nn.Module, step: int, ctx: Any) -> None:
            time.sleep(pause)

    distributed.start("cpu")
    net, ctx = model(), SimpleNamespace(settings=training.settings_of(recipe()))
    plan = training.PhasePlan("main", Path(folder), steps, recipe(), micro, "cpu", False, 3, 2, (), compute)
    seed_everything(0, "train")
    host = training.HostTrainer(net, Slow(None), ctx, plan, ROWS, collator(TOKENIZER), Curve())
    if pause:
        host.add_callback(_Signal(Path(out)))
    training.run_phase(host)
    wrapper = type(host.model_wrapped).__mro__[0].__name__
    if distributed.leave():
        facts = {"wrapper": wrapper, "model": type(host.model).__name__, "lines": host.listener.lines, **asdict(host.progress)}
        write(Path(out), dict(net.named_parameters()), facts)
    return host


class _Signal(training.TrainerCallback):
    """Leaves a file at the third step."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            self.out.with_suffix(f".{os.getpid()}.started").touch()


def fit(out: str, container: dict[str, Any]) -> None:
    """A cell up to the end of `fit`."""
    bench = spine.set_up(container)
    seed_everything(bench.cell.seed, "prepare")
    model = bench.method.prepare(bench.model, bench.ctx)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seed_everything(bench.cell.seed, "fit")
    model = bench.method.fit(model, bench.ctx)
    if distributed.leave():
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        still = [name for name, p in trained.items() if torch.equal(before[name], p)]
        write(
            Path(out),
            trained,
            {
                "moved": len(trained) - len(still),
                "still": still,
                "phases": [(p.name, p.steps, p.examples, p.tokens) for p in bench.ctx.phases],
            },
        )


def fit_each(cells: list[tuple[str, dict[str, Any]]]) -> None:
    """`fit` of one cell after another, each in a group of its own that meets anew: starting processes takes longer than a tiny cell."""
    rank = ranks.current()
    for number, (out, container) in enumerate(cells):
        replace(rank, meeting=rank.meeting.with_name(f"meeting{number}")).enter(threads=1)
        AcceleratorState._reset_state(reset_partial_state=True)
        fit(out, container)


def once(out: str, container: dict[str, Any]) -> None:
    """What each process gets from `ctx.once`, whose value depends on who computes it."""
    bench = spine.set_up(container)
    calls: list[int] = []
    number = distributed.rank()

    def tensors() -> dict[str, Tensor]:
        calls.append(number)
        return {"who": torch.tensor([number])}

    found = bench.ctx.once("who", tensors)["who"].item(), bench.ctx.once("plain", lambda: [number])
    (Path(out) / f"{number}.json").write_text(json.dumps([*found, calls]))
    distributed.leave()


def fail_alone(number: int) -> None:
    """An error in one process while the others wait for it."""
    distributed.start("cpu")
    if distributed.rank() == number:
        raise ValueError("only here")
    distributed.barrier()


def differ() -> None:
    """Weights that depend on the process."""
    distributed.start("cpu")
    torch.manual_seed(distributed.rank())
    distributed.check_alike(dict(nn.Linear(2, 2).named_parameters()), "before training")


def write(out: Path, weights: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Weights and JSON under one stem."""
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}, out.with_suffix(".safetensors"))
    out.with_suffix(".json").write_text(json.dumps(facts))
