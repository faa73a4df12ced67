"""Prompts and responses as token ids."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

UNSCORED = -100
"""Label of a token that carries no loss."""


def encode_responses(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], responses: list[str], joint: bool
) -> list[tuple[list[int], int]]:
    """Token ids of each prompt with its response, and how many of them are the prompt's.

    Each by itself, so that the prompt's tokens are those that evaluation reads; or as one text (`joint`), where the prompt counts as
    many tokens as it has alone, although a token may span the border.
    """
    heads = encode_prompts(tokenizer, prompts)
    if joint:
        whole = encode_prompts(tokenizer, [prompt + response for prompt, response in zip(prompts, responses, strict=True)])
        return [(ids, len(head)) for ids, head in zip(whole, heads, strict=True)]
    tails = tokenizer(responses, add_special_tokens=False)["input_ids"]
    return [(head + tail, len(head)) for head, tail in zip(heads, tails, strict=True)]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[list[int]]:
    """Token ids as the tokenizer begins a text, without the end token that some tokenizers add."""
    encoded = tokenizer(prompts, verbose=False)["input_ids"]
    return [ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids for ids in encoded]


def scored_after(context: Sequence[int], scored: Sequence[int], longest: int) -> dict[str, Any]:
    """A training example whose loss is on `scored` alone; beyond `longest` tokens it loses its left end."""
    ids, labels = [*context, *scored][-longest:], [*[UNSCORED] * len(context), *scored][-longest:]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
