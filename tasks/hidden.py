"""Texts as vectors of the measured model itself."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from tasks.base import EvalOptions
from tasks.forward import batches, max_input, measuring


def mean_states(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], options: EvalOptions) -> list[NDArray]:
    """Mean hidden state of the tokens of each text after half of the layers, float32; texts keep their left end where they are too long.

    Virtual tokens that a method puts before a text are read and not averaged.
    """
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"][: max_input(model, tokenizer)] for text in texts]
    found: list[NDArray] = [np.zeros(0)] * len(texts)
    with measuring(model, options):
        for indices in batches([len(ids) for ids in encoded], options.batch):
            width = max(len(encoded[i]) for i in indices)
            ids = torch.tensor([encoded[i] + [0] * (width - len(encoded[i])) for i in indices], device=options.device)
            mask = torch.tensor([[1] * len(encoded[i]) + [0] * (width - len(encoded[i])) for i in indices], device=options.device)
            states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
            middle = states[(len(states) - 1) // 2][:, -width:].float() * mask[..., None]
            for i, vector in zip(indices, (middle.sum(dim=1) / mask.sum(dim=1, keepdim=True)).cpu().numpy(), strict=True):
                found[i] = vector
    return found
