"""Batched sampling at a temperature, in which every sample has a seed of its own and does not depend on its batch mates.

Sampling from softmax(z / T) is the argmax of z / T + G with Gumbel noise G, so a greedy search over perturbed scores draws it; the
noise of a row comes from the row's own generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList

from tasks import generation
from tasks.base import EvalOptions
from tasks.forward import measuring
from tasks.generation import Decoding, StopStrings


@dataclass(frozen=True)
class Drawn:
    """One sampled continuation."""

    ids: list[int]
    """As in `generation.Completion`."""
    text: str
    logprob: float
    """Mean log-probability of its tokens (nats, temperature 1), the end token apart; 0 for none."""


class Perturbed(LogitsProcessor):
    """Scores (rows, vocabulary) to z / T + G; keeps the log-probability of what the search then takes."""

    def __init__(self, seeds: Sequence[int], temperature: float) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature = temperature
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Adds the noise of one step."""
        exact = scores.float()
        noise = torch.stack([gumbel(scores.shape[-1], generator) for generator in self.generators]).to(scores.device)
        perturbed = exact / self.temperature + noise
        self.logprobs.append(exact.log_softmax(-1).gather(1, perturbed.argmax(-1)[:, None])[:, 0].cpu())
        return perturbed


def gumbel(size: int, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise: -log(E), E exponential, drawn in float64 so that no tail is cut."""
    return -torch.empty(size, dtype=torch.float64).exponential_(generator=generator).log().float()


def sample(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], seeds: Sequence[int], decoding: Decoding,
    temperature: float, options: EvalOptions,
) -> list[Drawn]:  # fmt: skip
    """A continuation of each prompt under its seed, in their order; `decoding.beams` is 1."""
    result: list[Drawn] = [Drawn([], "", 0.0)] * len(prompts)
    with measuring(model, options):
        for indices in generation.in_batches([len(prompt) for prompt in prompts], decoding, options.batch):
            noise = Perturbed([seeds[i] for i in indices], temperature)
            rows = _draw(model, tokenizer, [list(prompts[i]) for i in indices], noise, decoding, options.device)
            logprobs = torch.stack(noise.logprobs, dim=1).tolist()
            for i, ids, values in zip(indices, rows, logprobs, strict=True):
                result[i] = _drawn(tokenizer, ids, values, decoding)
    return result


def _draw(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], noise: Perturbed, decoding: Decoding, device: str
) -> list[list[int]]:
    end = generation.end_id(tokenizer)
    ids, mask = generation.left_padded(prompts, end, device)
    criteria = [StopStrings(tokenizer, decoding.stop, ids.shape[1])] if decoding.stop else []
    settings = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=decoding.new_tokens, eos_token_id=end, pad_token_id=end)
    with generation.own_settings_alone(model):
        out = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=settings, logits_processor=LogitsProcessorList([noise]),
            stopping_criteria=StoppingCriteriaList(criteria),
        )  # fmt: skip
    return out[:, ids.shape[1] :].tolist()


def _drawn(tokenizer: PreTrainedTokenizerBase, ids: list[int], logprobs: list[float], decoding: Decoding) -> Drawn:
    """A row that ended early is filled up with end tokens, most of which were not drawn: none counts."""
    done = generation.completion(tokenizer, ids, decoding)
    own = logprobs[: len(done.ids)]
    return Drawn(done.ids, done.text, sum(own) / len(own) if own else 0.0)
