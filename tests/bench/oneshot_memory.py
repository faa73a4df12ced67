"""Peak memory of one-shot pruning block by block: a llama of 1.1 billion parameters in bfloat16, 16 calibration sequences of 512 tokens.

    python -m pytest -m bench tests/bench/oneshot_memory.py -s

The model is made from TinyLlama's shapes with random weights, in a process of its own whose peak resident size the kernel tells. The
weights alone are 2.2 GB; a whole model's statistics or hidden states of all blocks would not fit. Where a processor has no bfloat16
instructions, products are computed in float32 and rounded: hours become minutes, and the peak only rises, by the copies of one product.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, LlamaConfig

from harness.registry import method_class
from methods.roles import prunable_parameters
from tests.methods.fakes import FakeContext

SHAPE = {
    "vocab_size": 32_000, "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "intermediate_size": 5632,
}  # fmt: skip
SEQUENCES, LENGTH = 16, 512
LIMIT = 8 * 2**30
CONFIGS: dict[str, dict[str, Any]] = {
    "wanda": {"scope": "row", "variant": False},
    "sparsegpt": {"block": 128, "damp": 0.01},
}
SHARED = {"sparsity": 0.5, "pattern": "unstructured", "allocation": "uniform", "owl_times": 5.0, "owl_reach": 0.0, "retrain": False}


class Text(FakeContext):
    """Random tokens in place of calibration text."""

    def calibration(self) -> torch.Tensor:
        return torch.randint(6, SHAPE["vocab_size"], (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0))


class Lifted(TorchFunctionMode):
    """Products of bfloat16 tensors, computed in float32 and rounded."""

    PRODUCTS = frozenset([F.linear, F.scaled_dot_product_attention])

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in self.PRODUCTS:
            return function(*args, **kwargs)
        wide = [_wide(a) for a in args]
        return function(*wide, **{name: _wide(a) for name, a in kwargs.items()}).to(args[0].dtype)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value


def products() -> AbstractContextManager[Any]:
    """bfloat16 as it is where the processor multiplies it, else lifted."""
    return nullcontext() if torch.ops.mkldnn._is_mkldnn_bf16_supported() else Lifted()


def prune(slug: str, out: Any) -> None:
    kind = method_class(slug)
    method = kind(kind.Config(**SHARED | CONFIGS[slug]))
    with torch.device("cpu"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.bfloat16).eval()
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    started = time.perf_counter()
    with products():
        method.prepare(model, Text(method, []))
    zeros = sum(int((w == 0).sum()) for w in prunable_parameters(model).values())
    total = sum(w.numel() for w in prunable_parameters(model).values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    out.put((sum(p.numel() for p in model.parameters()), loaded, peak, zeros / total, time.perf_counter() - started))


@pytest.mark.bench
@pytest.mark.parametrize("slug", list(CONFIGS))
def test_a_billion_parameters_are_pruned_within_eight_gib(slug: str) -> None:
    spawned = multiprocessing.get_context("spawn")
    out = spawned.Queue()
    child = spawned.Process(target=prune, args=(slug, out))
    child.start()
    size, loaded, peak, sparsity, seconds = out.get()
    child.join()
    gib = [f"{n / 2**30:.2f}" for n in (peak, loaded)]
    text = f"{slug}: {size:,} parameters, {SEQUENCES} x {LENGTH} tokens: peak {gib[0]} GiB ({gib[1]} before pruning), {seconds:.0f} s"
    Console(soft_wrap=True).print(text)
    assert size == pytest.approx(1.1e9, rel=0.01)
    assert sparsity == pytest.approx(0.5, abs=1e-3)
    assert peak < LIMIT
