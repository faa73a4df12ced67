"""Deltas of cells: written and read to the last bit, added to a base, composed, removed bit for bit; the command line."""

from pathlib import Path

import pytest
import torch
from torch import nn

from harness import sparse_delta
from harness.config import ModelConfig
from methods.maths import sparse_vector
from methods.roles import head_names
from tests.methods.fakes import build, logits, snapshot

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
BASE = ModelConfig(
    name="tiny", family="encoder", source="config", id=None, revision=None, max_length=32, note="", architecture={}, biases=True,
    classifier=True,
)  # fmt: skip


def moved(name: str, seed: int, **options: bool) -> nn.Module:
    """The model with one in twenty backbone entries changed, and another head."""
    model, draws = build(name, **options), torch.Generator().manual_seed(seed)
    heads = head_names(model)
    with torch.no_grad():
        for key, p in model.named_parameters():
            chosen = torch.rand(p.shape, generator=draws) < (1 if key in heads else 0.05)
            p.add_(chosen * torch.randn(p.shape, generator=draws) * 0.1)
    return model


def same(model: nn.Module, other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(p, other[key]) for key, p in model.named_parameters())


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_mixtral"])
def test_a_delta_makes_the_model_of_the_base_and_leaves_no_trace(name: str, tmp_path: Path) -> None:
    final, base = moved(name, 1), build(name)
    before = snapshot(base)
    told = sparse_delta.write(sparse_delta.between(base, final), final, BASE, tmp_path / "delta")
    heads = head_names(base)
    assert told["entries"] == sum(int((p != before[key]).sum()) for key, p in final.named_parameters() if key not in heads)
    numbers = 8 * told["entries"] + 4 * sum(before[key].numel() for key in heads)
    assert numbers < told["bytes"] < numbers + 20_000
    delta = sparse_delta.read(tmp_path / "delta")
    replaced = sparse_delta.apply(base, [delta])
    assert (logits(base) - logits(final)).abs().max() <= 1e-6
    assert all(torch.equal(base.get_parameter(key), final.get_parameter(key)) for key in heads)
    sparse_delta.remove(base, replaced)
    assert same(base, before)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    base, final = build("tiny_llama"), moved("tiny_llama", 1)
    delta = sparse_delta.between(base, final)
    sparse_delta.write(delta, final, BASE, tmp_path / "delta")
    again = sparse_delta.read(tmp_path / "delta")
    assert again.vector.keys() == delta.vector.keys() and again.head.keys() == delta.head.keys() == head_names(base)
    for name, (index, value) in delta.vector.items():
        assert torch.equal(again.vector[name].index, index) and torch.equal(again.vector[name].value, value)
    assert all(torch.equal(again.head[name], tensor) for name, tensor in delta.head.items())


def test_composed_vectors_are_their_sum_in_any_order() -> None:
    """The head alone is the first one's."""
    base, finals = build("tiny_bert"), [moved("tiny_bert", seed) for seed in (1, 2)]
    deltas = [sparse_delta.between(base, final) for final in finals]
    before, heads = snapshot(base), head_names(base)
    replaced = sparse_delta.apply(base, deltas)
    one = snapshot(base)
    sparse_delta.remove(base, replaced)
    assert same(base, before)
    sparse_delta.apply(base, deltas[::-1])
    for key, p in base.named_parameters():
        if key in heads:
            assert torch.equal(one[key], finals[0].get_parameter(key)) and torch.equal(p, finals[1].get_parameter(key))
        else:
            summed = before[key] + sum(final.get_parameter(key) - before[key] for final in finals)
            assert torch.equal(one[key], p) and torch.allclose(p, summed, atol=1e-6)


def test_a_language_model_has_no_head_and_takes_none(tmp_path: Path) -> None:
    """As a vector of a language and one of a task are composed: the task's head has no place in a language model."""
    task, base = moved("tiny_bert", 1), build("tiny_bert")
    delta = sparse_delta.between(base, task)
    model = build("tiny_llama", classify=False)
    language = sparse_delta.between(model, moved("tiny_llama", 2, classify=False))
    assert language.head == {} and delta.head
    sparse_delta.apply(model, [language])
    with pytest.raises(ValueError, match="which the model has not"):
        sparse_delta.apply(model, [delta])


def test_a_head_of_other_classes_is_refused_before_anything_changes() -> None:
    base, other = build("tiny_bert"), build("tiny_bert", labels=3)
    before = snapshot(base)
    with pytest.raises(ValueError, match=r"the delta's classifier.* has the shape \(3,.*\), the model's \(2,"):
        sparse_delta.apply(base, [sparse_delta.between(other, other)])
    assert same(base, before)


def test_bfloat16_differences_are_exact_here() -> None:
    base, final = build("tiny_llama").bfloat16(), moved("tiny_llama", 1).bfloat16()
    delta = sparse_delta.between(base, final)
    assert sparse_vector.count(delta.vector) > 0
    sparse_delta.apply(base, [delta])
    assert same(base, snapshot(final))


def test_the_command_writes_the_sum_as_a_stock_checkpoint(tmp_path: Path) -> None:
    base, final = build("tiny_bert"), moved("tiny_bert", 1)
    base.bert.save_pretrained(tmp_path / "base")  # a backbone alone: the head comes with the delta
    final.config.architectures = [type(final).__name__]
    sparse_delta.write(sparse_delta.between(base, final), final, BASE, tmp_path / "delta")
    assert sparse_delta.main([str(tmp_path / "base"), str(tmp_path / "delta"), "--out", str(tmp_path / "sum")]) == 0
    again = type(final).from_pretrained(tmp_path / "sum").eval()
    assert torch.allclose(logits(again), logits(final), atol=1e-6)
