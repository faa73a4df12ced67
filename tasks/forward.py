"""Forward passes for evaluation: the model's mode, batches of similar length, the longest input."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from tasks.base import EvalOptions

BATCH_TOKENS = 4096
"""Padded tokens per batch at most: bounds the logits (0.8 GB in float32 at a vocabulary of 49,152)."""
DEFAULT_MAX_LENGTH = 2048
"""Where neither model nor tokenizer names a limit; the value that lm-eval takes."""


@contextmanager
def measuring(model: nn.Module, options: EvalOptions) -> Iterator[None]:
    """Eval mode, no gradients, and the autocast asked for; afterwards every module has its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    kind = torch.device(options.device).type
    autocast = nullcontext() if options.autocast is None else torch.autocast(kind, options.autocast)
    model.eval()
    try:
        with torch.inference_mode(), autocast:
            yield
    finally:
        for module, training in modes:
            module.training = training


def batches(lengths: Sequence[int], rows: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first: at most `rows` rows and `BATCH_TOKENS` padded tokens."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        size = max(1, min(rows, BATCH_TOKENS // max(1, lengths[order[0]])))
        yield order[:size]
        order = order[size:]


def max_input(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest input in tokens: of the model's configuration, else of the tokenizer, else 2,048."""
    config = getattr(model.config, "text_config", None) or model.config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if isinstance(value := getattr(config, name, None), int):
            return value
    unset = tokenizer.model_max_length > 10**9
    return DEFAULT_MAX_LENGTH if unset else tokenizer.model_max_length
