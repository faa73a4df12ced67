"""Worked solutions of arithmetic problems: the model is trained on them and answers by a greedy continuation."""

import re
from functools import cached_property
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from methods.spec import choice
from tasks.base import EvalOptions, Evaluation, Rows, Task
from tasks.encoding import encode_responses, scored_after
from tasks.generation import Decoding, complete
from tasks.hashing import example_hash
from tasks.rows import first
from tasks.spec import SolutionConfig

MARK = re.compile(r"####\s*(-?[\d,]+(?:\.\d+)?)")


class Solution(Task):
    """A problem is its question and a line break; its solution follows, then the end token."""

    config: SolutionConfig

    def __init__(self, config: SolutionConfig, sources: Any) -> None:
        super().__init__(config, sources)
        self._encoded: tuple[PreTrainedTokenizerBase, list[dict[str, Any]]] | None = None

    def splits(self) -> dict[str, Rows]:
        """`train`, and `evaluation`: the first `limit` rows of the split."""
        return self._splits

    @cached_property
    def _splits(self) -> dict[str, Rows]:
        train, test = (self.sources.rows(self.config.dataset, split) for split in ("train", self.config.split))
        return {"train": train, "evaluation": first(test, self.config.limit)}

    def encode(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """Problem, solution and end token; labels on the solution and the end, or on everything."""
        choice("split", split, ("train",))
        if self._encoded is None or self._encoded[0] is not tokenizer:
            self._encoded = (tokenizer, self._encode(tokenizer))
        return self._encoded[1]

    def _encode(self, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        rows = self.splits()["train"].data
        encoded = encode_responses(tokenizer, _prompts(rows["question"][:]), rows["answer"][:], joint=False)
        hidden = self.config.mask_prompt
        ends = [([*ids, tokenizer.eos_token_id], size if hidden else 0) for ids, size in encoded]
        return [scored_after(ids[:size], ids[size:], tokenizer.model_max_length) for ids, size in ends]

    def evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, options: EvalOptions) -> Evaluation:
        """`exact_match` of the number after `####`, `invalid` (no such number) and `steps` (the whole solution is right, word by word).

        `predictions` beside the usual columns: `completion`.
        """
        choice("split", split, ("evaluation",))
        rows = self.splits()[split].data
        prompts = [ids for ids, _ in encode_responses(tokenizer, _prompts(rows["question"][:]), [""] * len(rows), joint=False)]
        texts = [found.text for found in complete(model, tokenizer, prompts, Decoding(self.config.new_tokens), options)]
        gold, found = [extract(text) for text in rows["answer"][:]], [extract(text) for text in texts]
        right = [float(a is not None and a == b) for a, b in zip(found, gold, strict=True)]
        same = [text.strip() == answer.strip() for text, answer in zip(texts, rows["answer"][:], strict=True)]
        n = len(right)
        metrics = {"exact_match": sum(right) / n, "invalid": sum(a is None for a in found) / n, "steps": sum(same) / n}
        columns: dict[str, list] = {
            "example": [example_hash({"question": text}) for text in rows["question"][:]],
            "score": right, "label": gold, "prediction": found, "completion": texts,
        }  # fmt: skip
        return Evaluation(metrics, "exact_match", higher_is_better=True, predictions=columns)


def extract(text: str) -> str | None:
    """The number after the last `####`, without commas; None where there is none."""
    found = MARK.findall(text)
    return found[-1].replace(",", "") if found else None


def _prompts(questions: list[str]) -> list[str]:
    return [f"{question}\n" for question in questions]
