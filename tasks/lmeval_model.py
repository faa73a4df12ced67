"""lm-eval's view of the model in memory. Imported only when an lm-eval task runs: it loads all of lm-eval."""

import copy
from typing import Any

from lm_eval.models.huggingface import HFLM
from torch import nn
from transformers import PreTrainedTokenizerBase

from tasks.base import EvalOptions
from tasks.forward import max_input


def _nothing(*_: Any, **__: Any) -> None:
    """Instead of a model's `tie_weights`."""


class InMemory(HFLM):
    """HFLM on a model that others own: neither the model nor its tokenizer is changed, and nothing is printed."""

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, options: EvalOptions) -> None:
        model.tie_weights = _nothing  # HFLM ties anew, which would undo what a method did to the output layer
        try:
            # a copy of the tokenizer, since HFLM may add a padding token
            super().__init__(
                pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=options.batch, max_length=max_input(model, tokenizer)
            )
        finally:
            del model.tie_weights

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Without a progress bar."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Without a progress bar."""
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Without a progress bar."""
        return super().generate_until(requests, disable_tqdm=True)
