"""Perplexity of a text in non-overlapping windows: the convention of GPTQ (arXiv 2210.17323) and Wanda (arXiv 2306.11695)."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from methods.spec import UserError, choice
from tasks.base import EvalOptions, Evaluation, Rows, Task
from tasks.encoding import scored_after
from tasks.forward import max_input
from tasks.hashing import example_hash, tokenizer_hash
from tasks.likelihood import log_likelihoods
from tasks.rows import first
from tasks.spec import PerplexityConfig

SEPARATORS = {"c4": " "}
"""What stands between documents: a blank line but where published numbers use something else (GPTQ's `c4-new`)."""
BLANK_LINE = "\n\n"
COLUMNS = {"ptb": "sentence"}
"""Column of the text where it is not `text`."""


@dataclass(frozen=True)
class Window:
    """`context` consecutive tokens of the text."""

    ids: list[int]
    text: str
    bytes: int
    """UTF-8 bytes of the text after the first token: what the window predicts."""


class Perplexity(Task):
    """exp(mean negative log-likelihood per predicted token).

    The rows are joined (see `SEPARATORS`) and tokenised once; windows do not overlap, what is left at the end is
    dropped, and each window of `context` tokens predicts its last `context - 1`.
    """

    config: PerplexityConfig

    def splits(self) -> dict[str, Rows]:
        """`evaluation`: the first `documents` of the split (`limit` counts windows); `train` where the model is trained on one."""
        return self._splits

    @cached_property
    def _splits(self) -> dict[str, Rows]:
        found = {"evaluation": first(self.sources.rows(self.config.dataset, self.config.split), self.config.documents)}
        return found | ({"train": self.sources.rows(self.config.dataset, self.config.train)} if self.config.train else {})

    def encode(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """All windows of the text, every token a label; raises `UserError` where the text is evaluated only."""
        if self.config.train is None:
            raise UserError(f"task={self.config.name} has no training form; use a method that does not train, for instance method=none")
        return [scored_after([], window.ids, self.config.context) for window in self._windows(split, tokenizer, None)]

    def windows(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[Window]:
        """The first `limit` windows; raises `UserError` where the text is shorter than one."""
        return self._windows(split, tokenizer, self.config.limit)

    def _windows(self, split: str, tokenizer: PreTrainedTokenizerBase, limit: int | None) -> list[Window]:
        choice("split", split, self.splits())
        dataset, size = self.config.dataset, self.config.context
        documents = self.splits()[split].data[COLUMNS.get(dataset, "text")][:]
        text = SEPARATORS.get(dataset, BLANK_LINE).join(documents)
        encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        count = min(len(ids) // size, limit or len(ids))
        if count == 0:
            whole = f"the {self.splits()[split].split} text of {self.config.dataset}, which has {len(ids)} tokens"
            raise UserError(f"task.context={size} is longer than {whole}")
        return [self._window(text, ids[i : i + size], offsets[i : i + size]) for i in range(0, count * size, size)]

    @staticmethod
    def _window(text: str, ids: list[int], offsets: list[tuple[int, int]]) -> Window:
        (start, predicted), end = offsets[0], offsets[-1][1]
        return Window(ids, text[start:end], len(text[predicted:end].encode()))

    def evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, options: EvalOptions) -> Evaluation:
        """`perplexity`, `nll` (nats per token) and `bits_per_byte` over the predicted tokens.

        `predictions` has a row per window: `score` (mean nats per token), `nll` (their sum) and `tokens` (predicted).
        """
        limit = max_input(model, tokenizer)
        if self.config.context > limit:
            raise UserError(
                f"task.context={self.config.context} is more than the model's {limit} tokens; type task.context={limit} or less"
            )
        windows = self.windows(split, tokenizer)
        pairs = [(window.ids[:1], window.ids[1:]) for window in windows]
        nll = [-value for value in log_likelihoods(model, pairs, limit, options)]
        tokens = [len(predicted) for _, predicted in pairs]
        mean = sum(nll) / sum(tokens)
        bits = sum(nll) / math.log(2) / sum(window.bytes for window in windows)
        columns: dict[str, list] = {
            "example": [example_hash({"text": window.text}) for window in windows],
            "score": [total / n for total, n in zip(nll, tokens, strict=True)],
            "nll": nll,
            "tokens": tokens,
        }
        metrics = {"perplexity": torch.tensor(mean, dtype=torch.float64).exp().item(), "nll": mean, "bits_per_byte": bits}
        return Evaluation(metrics, "perplexity", higher_is_better=False, predictions=columns, tokenizer=tokenizer_hash(tokenizer))
