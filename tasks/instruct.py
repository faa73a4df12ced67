"""Instruction tuning, then test sets answered by the tuned model (LLM-Adapters, arXiv 2304.01933; MetaMath, arXiv 2309.12284)."""

import logging
from functools import cached_property
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from methods.spec import UserError, choice
from tasks.answers import FORMS
from tasks.base import EvalOptions, Evaluation, Rows, Task
from tasks.encoding import encode_responses
from tasks.forward import max_input
from tasks.hashing import example_hash
from tasks.likelihood import log_likelihoods
from tasks.prompts import TEMPLATES
from tasks.rows import divide, first
from tasks.spec import InstructConfig

log = logging.getLogger(__name__)
HELDOUT_ROWS = 120
"""Selection rows taken out of training, as many as LLM-Adapters takes."""
UNSCORED = -100
"""Label of a token that carries no loss."""
FIELDS = {
    "metamathqa": ("query", "", "response"),
    "gsm8k": ("question", "", "answer"),
}
"""Columns of the instruction, of its input (may be none) and of the response, where they have other names than `DEFAULT_FIELDS`."""
DEFAULT_FIELDS = ("instruction", "input", "output")


class Instruct(Task):
    """Next-token loss on prompt and response, or on the response alone. Each test set and form is a part of its own."""

    config: InstructConfig

    def __init__(self, config: InstructConfig, sources: Any) -> None:
        super().__init__(config, sources)
        self.template = TEMPLATES[config.template]
        self._encoded: dict[str, tuple[PreTrainedTokenizerBase, list[dict[str, Any]]]] = {}

    def splits(self) -> dict[str, Rows]:
        """`train`, `selection` where a checkpoint is selected, and one split per test set under its name."""
        return self._splits

    @cached_property
    def _splits(self) -> dict[str, Rows]:
        reads = self.config.reads()
        train = first(self.sources.rows(*reads.pop("train")), self.config.train_rows)
        tests = {name: first(self.sources.rows(*place), self.config.limit) for name, place in reads.items()}
        if self.config.selection == "last":
            return {"train": train, **tests}
        selection, train = divide(train, min(HELDOUT_ROWS, len(train.data) // 2), "heldout")
        return {"train": train, "selection": selection, **tests}

    def parts(self) -> list[Task]:
        """Every test set in every form, test set by test set."""
        return [FORMS[form](self, name) for name in self.config.evaluations for form in self.config.forms]

    def encode(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """Token ids with the end token, cut to `max_length`; a label is -100 where the prompt is masked.

        Rows that the cut leaves without any label are left out.
        """
        choice("split", split, [name for name in self.splits() if name in ("train", "selection")])
        known = self._encoded.get(split)
        if known is None or known[0] is not tokenizer:
            self._encoded[split] = (tokenizer, self._encode(split, tokenizer))
        return self._encoded[split][1]

    def _encode(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        instructions, inputs, responses = self._columns(split)
        prompts = [self.template.training(*pair) for pair in zip(instructions, inputs, strict=True)]
        encoded = encode_responses(tokenizer, prompts, responses, self.template.joint)
        examples = [self._example(ids, size, tokenizer.eos_token_id) for ids, size in encoded]
        kept = [example for example in examples if any(label != UNSCORED for label in example["labels"])]
        if len(kept) < len(examples):
            log.warning(
                "%d of %d %s rows have prompts of %d tokens or more: left out",
                len(examples) - len(kept), len(examples), split, self.config.max_length,
            )  # fmt: skip
        if not kept:
            raise UserError(f"task.max_length={self.config.max_length} leaves no response of {self.config.dataset}; give a larger one")
        return kept

    def _columns(self, split: str) -> tuple[list[str], list[str], list[str]]:
        data = self.splits()[split].data
        instruction, given, response = FIELDS.get(self.config.dataset, DEFAULT_FIELDS)
        return data[instruction][:], data[given][:] if given else [""] * len(data), data[response][:]

    def _example(self, ids: list[int], prompt: int, end: int) -> dict[str, Any]:
        if ids[-1] != end:
            ids = [*ids, end]
        ids = ids[: self.config.max_length]
        hidden = min(prompt, len(ids)) if self.config.mask_prompt else 0
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [UNSCORED] * hidden + ids[hidden:]}

    def evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, options: EvalOptions) -> Evaluation:
        """`nll`: nats per labelled token over the selection rows. The test sets are measured by `parts`."""
        choice("split", split, [name for name in self.splits() if name == "selection"])
        pairs = [_labelled(example) for example in self.encode(split, tokenizer)]
        values = [-value for value in log_likelihoods(model, pairs, max_input(model, tokenizer), options)]
        tokens = [len(labelled) for _, labelled in pairs]
        columns: dict[str, list] = {
            "example": [example_hash({"ids": context + labelled}) for context, labelled in pairs],
            "score": [value / n for value, n in zip(values, tokens, strict=True)],
            "nll": values,
            "tokens": tokens,
        }
        return Evaluation({"nll": sum(values) / sum(tokens)}, "nll", higher_is_better=False, predictions=columns)


def _labelled(example: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Tokens without and with a loss; the first token of a text is never predicted."""
    hidden = max(1, sum(label == UNSCORED for label in example["labels"]))
    return example["input_ids"][:hidden], example["input_ids"][hidden:]
