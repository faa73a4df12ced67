"""Prefill latency of models that lost heads and channels against the dense one, in one run.

    python -m pytest -m bench tests/bench/structured_latency.py -s

Random weights of real architectures (latency does not look at them), pruned by `llm_pruner` with importance l1 in every block. Processor
seconds on one thread of a forward pass over a prompt that gives the next token's logits; dense and pruned take turns, ratios are medians
over turns, so that whatever else the machine does falls on all.
"""

import statistics
import time

import pytest
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from methods.prune.llm_pruner import LlmPruner
from methods.roles import prunable_parameters
from tests.methods.fakes import FakeContext, build

MODELS = ("opt_125m", "smollm2_135m")
RATIOS = (0.2, 0.5)
LENGTH, WARM, TURNS = 256, 1, 9
OVERHEAD = 0.15
"""What may be left above the share of weights that stay: attention itself, norms, the embedding and the next token's logits."""


def pruned(name: str, ratio: float) -> nn.Module:
    config = LlmPruner.Config(ratio=ratio, first=0.0, last=0.0, importance="l1", reduce="sum", local=True)
    method = LlmPruner(config)
    return method.prepare(build(name, classify=False), FakeContext(method, [])).eval()


def seconds(model: nn.Module, ids: torch.Tensor) -> float:
    start = time.process_time()
    with torch.inference_mode():
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return time.process_time() - start


def weights(model: nn.Module) -> int:
    return sum(p.numel() for p in prunable_parameters(model).values())


@pytest.mark.bench
@pytest.mark.parametrize("name", MODELS)
def test_smaller_models_read_a_prompt_faster(name: str) -> None:
    torch.set_num_threads(1)
    dense = build(name, classify=False)
    models = [dense, *(pruned(name, ratio) for ratio in RATIOS)]
    ids = torch.randint(6, 30_000, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    turns = [[seconds(model, ids) for model in models] for _ in range(WARM + TURNS)][WARM:]
    table = Table("ratio", "weights of the blocks that stay", "ms", "of dense", title=f"{name}, {LENGTH} tokens, one thread")
    for i, model in enumerate(models):
        stay = weights(model) / weights(dense)
        share = statistics.median(turn[i] / turn[0] for turn in turns)
        ms = 1e3 * statistics.median(turn[i] for turn in turns)
        table.add_row(f"{(0.0, *RATIOS)[i]:g}", f"{stay:.3f}", f"{ms:.0f}", f"{share:.3f}")
        assert i == 0 or share < stay + OVERHEAD
    Console().print(table)
