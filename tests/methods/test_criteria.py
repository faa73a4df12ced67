"""One-shot pruning by name: what the pruners themselves leave."""

import pytest
import torch

from methods.adapters.wrapped import weight_and_bias
from methods.base import Method
from methods.prune.criteria import prune, pruner
from methods.roles import prunable, prunable_parameters
from tests.methods.fakes import FakeContext, batches, build


def pruned(criterion: str, name: str, pattern: str = "unstructured"):
    model = build(name)
    masks = prune(model, FakeContext(Method(None), batches(1)), criterion, 0.5, pattern)
    return model, masks


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
@pytest.mark.parametrize("criterion", ["magnitude", "random", "wanda", "sparsegpt"])
def test_weights_and_masks_are_the_pruners_own(criterion: str, name: str) -> None:
    method = pruner(criterion, 0.5, "unstructured")
    theirs = method.prepare(build(name), FakeContext(method, batches(1)))
    model, masks = pruned(criterion, name)
    weights = prunable_parameters(theirs)
    assert masks.keys() == weights.keys()
    for key, weight in prunable_parameters(model).items():
        assert torch.equal(weight, weights[key])
        assert torch.equal(masks[key], theirs.get_buffer(f"{key}_mask"))
        assert (weight[~masks[key]] == 0).all() and 0.45 < masks[key].float().mean() < 0.55


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "sparsegpt"])
def test_a_pattern_holds_along_the_inputs(criterion: str) -> None:
    model, _ = pruned(criterion, "tiny_gpt2", "2:4")
    for module in prunable(model).values():
        groups = (weight_and_bias(module)[0] != 0).unflatten(-1, (-1, 4)).sum(-1)
        assert (groups == 2).all()


def test_none_keeps_the_zeros_that_are_there() -> None:
    model = build("tiny_bert")
    first = next(iter(prunable_parameters(model).values()))
    with torch.no_grad():
        first[:, ::3] = 0
    before = {name: weight.clone() for name, weight in prunable_parameters(model).items()}
    masks = prune(model, FakeContext(Method(None), []), "none", 0.5, "unstructured")
    assert all(torch.equal(masks[name], weight != 0) for name, weight in before.items())
    assert all(torch.equal(weight, before[name]) for name, weight in prunable_parameters(model).items())


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(ValueError, match="no pruner for svd"):
        pruner("svd", 0.5, "unstructured")
