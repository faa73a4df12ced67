"""Seconds that the finalized model takes: reading a prompt, and writing one token."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def _serving(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _seconds(fn: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, with the accelerator's queue drained before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    fn()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def prefill_latency(model: nn.Module, batch: dict[str, Tensor], runs: int = 5) -> float:
    """Median seconds of a forward pass on `batch` over `runs`, after one warm-up pass."""
    device = next(model.parameters()).device
    with _serving(model):
        model(**batch)
        return statistics.median(_seconds(lambda: model(**batch), device) for _ in range(runs))


def decode_latency(model: nn.Module, input_ids: Tensor, tokens: int = 8, runs: int = 3) -> float | None:
    """Median seconds per token of greedy decoding with a key-value cache after the prompt `input_ids` (B, T).

    None for models that do not generate (encoders, classifiers). The prompt's own pass is not timed; one warm-up run.
    """
    if not getattr(model, "can_generate", lambda: False)():
        return None
    with _serving(model):
        greedy(model, input_ids, 1)
        return statistics.median(greedy(model, input_ids, tokens)[1] / tokens for _ in range(runs))


def greedy(model: nn.Module, input_ids: Tensor, tokens: int) -> tuple[Tensor, float]:
    """The `tokens` greedy continuations (B, tokens) after the first predicted one, and the seconds they took.

    The first is the prompt's own argmax and costs no decoding step; then each step feeds one token and the cache.
    """
    out = model(input_ids=input_ids, use_cache=True)
    written = [out.logits[:, -1:].argmax(-1)]
    seconds = 0.0

    def step() -> None:
        nonlocal out
        out = model(input_ids=written[-1], past_key_values=out.past_key_values, use_cache=True)
        written.append(out.logits[:, -1:].argmax(-1))

    for _ in range(tokens):
        seconds += _seconds(step, input_ids.device)
    return torch.cat(written[1:], dim=1), seconds
