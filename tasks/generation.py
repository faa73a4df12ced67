"""Batched decoding, greedy or by beams: what a prompt is continued with does not depend on its batch mates.

The search is transformers' own `generate`, whose rows are independent of each other (beams, scores and stops are kept per row) once
padding is on the left, masked, and positions are counted from the first token. It reads a prompt once per beam, however; so the
prompt's keys and values are computed once here and copied for the beams, which makes beam search on long prompts several times faster.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from methods.spec import UserError
from tasks.base import EvalOptions
from tasks.forward import batches, measuring

CACHED_TOKENS = 8192
"""Tokens of all rows and beams whose keys and values are held at most: 0.4 GB for a model of 135 M parameters."""


@dataclass(frozen=True)
class Decoding:
    """How a prompt is continued."""

    new_tokens: int
    """Longest completion in tokens, the end token included."""
    beams: int = 1
    """1 = greedy. Finished hypotheses are ranked by their mean log-probability per token."""
    stop: tuple[str, ...] = ()
    """Strings of ASCII characters that end a completion; the text is cut before the first of them."""


@dataclass(frozen=True)
class Completion:
    """What a prompt was continued with."""

    ids: list[int]
    """Tokens without the end token; those of a stop string are included."""
    text: str
    """Without special tokens and cut before a stop string."""


def complete(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], decoding: Decoding, options: EvalOptions
) -> list[Completion]:
    """The completion of each prompt (token ids, at least one), in their order.

    Prompts are decoded in batches of similar length, until every row has ended. Equal to decoding each prompt alone, up to the
    rounding of the model's own arithmetic, which may depend on the shape of a batch where two tokens tie.
    """
    result: list[Completion] = [Completion([], "")] * len(prompts)
    with measuring(model, options):
        for indices in in_batches([len(prompt) for prompt in prompts], decoding, options.batch):
            rows = _decode(model, tokenizer, [list(prompts[i]) for i in indices], decoding, options.device)
            for i, ids in zip(indices, rows, strict=True):
                result[i] = completion(tokenizer, ids, decoding)
    return result


def in_batches(lengths: Sequence[int], decoding: Decoding, rows: int) -> Iterator[list[int]]:
    """Indices in batches of similar length whose cache stays within `CACHED_TOKENS`."""
    for batch in batches(lengths, rows):
        size = max(1, CACHED_TOKENS // (decoding.beams * (lengths[batch[0]] + decoding.new_tokens)))
        yield from (batch[start : start + size] for start in range(0, len(batch), size))


def _decode(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], decoding: Decoding, device: str
) -> list[list[int]]:
    """The tokens after each prompt; rows that ended early are filled up with the end token."""
    end = end_id(tokenizer)
    ids, mask = left_padded(prompts, end, device)
    criteria = [StopStrings(tokenizer, decoding.stop, ids.shape[1])] if decoding.stop else []
    settings = GenerationConfig(
        do_sample=False, num_beams=decoding.beams, max_new_tokens=decoding.new_tokens, early_stopping=False, length_penalty=1.0,
        eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    with own_settings_alone(model):
        out = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings, stopping_criteria=StoppingCriteriaList(criteria),
            **_prefix(model, ids, mask, decoding.beams),
        )  # fmt: skip
    return out[:, ids.shape[1] :].tolist()


def left_padded(prompts: list[list[int]], pad: int, device: str) -> tuple[Tensor, Tensor]:
    """Ids and mask (rows, longest), aligned at their ends."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def _prefix(model: nn.Module, ids: Tensor, mask: Tensor, beams: int) -> dict[str, Any]:
    """Keys and values of all but the prompts' last token, read once and repeated for each beam."""
    if beams == 1 or ids.shape[1] == 1:
        return {}
    inputs = model.prepare_inputs_for_generation(
        ids[:, :-1], attention_mask=mask[:, :-1], position_ids=_positions(mask)[:, :-1], use_cache=True, is_first_iteration=True
    )
    cache = model(**inputs).past_key_values
    cache.batch_repeat_interleave(beams)
    return {"past_key_values": cache}


def _positions(mask: Tensor) -> Tensor:
    """Position of each token counted from the first of its row; 0 for padding."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The end token, which also pads: what follows it in a row is never part of the completion."""
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no end token, without which a completion has no end: set eos_token in the model folder")
    return tokenizer.eos_token_id


@contextlib.contextmanager
def own_settings_alone(model: nn.Module) -> Iterator[None]:
    """Without what the checkpoint says of sampling: `generate` takes from there whatever is left at its default here.

    The model may be wrapped (by PEFT); the module that holds the settings is then inside.
    """
    kept = {module: module.generation_config for module in model.modules() if "generation_config" in vars(module)}
    try:
        for module in kept:
            module.generation_config = GenerationConfig()
        yield
    finally:
        for module, settings in kept.items():
            module.generation_config = settings


class StopStrings(StoppingCriteria):
    """Ends a row as soon as its completion holds one of some strings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str], prompt_length: int) -> None:
        self.tokenizer, self.strings, self.start = tokenizer, tuple(strings), prompt_length
        self.window = max(len(string) for string in strings)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Whether each row has ended; a string of n ASCII characters ends in its newest token and spans at most n tokens."""
        tails = self.tokenizer.batch_decode(input_ids[:, max(self.start, input_ids.shape[1] - self.window) :])
        return torch.tensor([any(s in tail for s in self.strings) for tail in tails], device=input_ids.device)


def completion(tokenizer: PreTrainedTokenizerBase, ids: list[int], decoding: Decoding) -> Completion:
    """Cut at the end token and before the first stop string."""
    end = end_id(tokenizer)
    ids = ids[: ids.index(end)] if end in ids else ids
    text = tokenizer.decode(ids, skip_special_tokens=True)
    cut = min((at for at in map(text.find, decoding.stop) if at >= 0), default=len(text))
    return Completion(ids, text[:cut])
