"""Log-likelihood of continuations under a causal language model, as lm-eval 0.4.13 defines it."""

import inspect

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from methods.spec import UserError
from tasks.base import EvalOptions
from tasks.forward import batches, measuring

Pair = tuple[list[int], list[int]]
"""Token ids of a context and of its continuation."""


def encode_pair(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> Pair:
    """Token ids of context and continuation: the whole text is encoded and cut where the context alone ends.

    White space at the end of the context moves to the continuation first, as tokenizers join it to the next word.
    """
    stem = context.rstrip()
    whole = tokenizer.encode(context + continuation)
    size = len(tokenizer.encode(stem))
    if not stem or not 0 < size < len(whole):
        raise UserError(f"the continuation {continuation!r} of {context[-40:]!r} has no tokens of its own to score")
    return whole[:size], whole[size:]


def log_likelihoods(model: nn.Module, pairs: list[Pair], max_length: int, options: EvalOptions) -> list[float]:
    """log p(continuation | context) in nats, summed over the continuation's tokens, per pair.

    Inputs longer than `max_length` tokens lose their left end. Padding is on the right and masked, so that a value
    does not depend on its batch beyond rounding. The softmax is taken in float32 whatever the model's type.
    """
    if longest := max((len(c) for _, c in pairs if len(c) > max_length), default=0):
        raise UserError(f"a continuation has {longest} tokens; the model takes at most {max_length}")
    inputs: dict[tuple[int, ...], list[int]] = {}  # pairs that differ in their last token alone share one forward pass
    for i, (context, continuation) in enumerate(pairs):
        inputs.setdefault(tuple((context + continuation)[-(max_length + 1) : -1]), []).append(i)
    distinct, owners = list(inputs), list(inputs.values())
    result = [0.0] * len(pairs)
    with measuring(model, options):
        for batch in batches([len(ids) for ids in distinct], options.batch):
            needed = [(row, i) for row, k in enumerate(batch) for i in owners[k]]
            ids = [distinct[k] for k in batch]
            values = _batch(model, ids, [(row, pairs[i][1]) for row, i in needed], options.device)
            for (_, i), value in zip(needed, values, strict=True):
                result[i] = value
    return result


def _batch(model: nn.Module, ids: list[tuple[int, ...]], wanted: list[tuple[int, list[int]]], device: str) -> list[float]:
    """Summed log-probabilities of each (row, continuation), whose last token follows the row's last input."""
    first = min(len(ids[row]) - len(continuation) for row, continuation in wanted)
    logits = _logits(model, ids, first, device)
    values = []
    for row, continuation in wanted:
        end = len(ids[row]) - first
        scores = logits[row, end - len(continuation) : end].float().log_softmax(-1)
        targets = torch.tensor(continuation, device=scores.device)[:, None]
        values.append(scores.gather(1, targets).double().sum().item())
    return values


def _logits(model: nn.Module, ids: list[tuple[int, ...]], first: int, device: str) -> Tensor:
    """Logits (rows, longest - first, vocabulary) of the positions from `first` on, of right-padded inputs."""
    rows = [torch.tensor(row, device=device) for row in ids]
    batch = {
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
    }
    length = batch["input_ids"].shape[1]
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return model(**batch, logits_to_keep=length - first).logits
    return model(**batch).logits[:, first:]
