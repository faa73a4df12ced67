"""Block-wise calibration: the inputs that it shows are those of a plain forward pass through the model as it is edited."""

import pytest
import torch
from torch import Tensor, nn

from methods.adapters.wrapped import weight_and_bias
from methods.blockwise import walk
from methods.roles import layers, prunable
from methods.spec import UserError
from tests.methods.fakes import build, snapshot

FAMILIES = ["tiny_bert", "tiny_roberta", "tiny_gpt2", "tiny_llama", "tiny_opt", "tiny_neox", "tiny_gemma", "tiny_qwen2", "tiny_deberta"]
"""DeBERTa's query and key maps are called once more, on the table of relative positions."""


class Kept:
    """All inputs of a map."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        self.rows.append(x)


def ids() -> Tensor:
    return torch.randint(6, 260, (3, 12), generator=torch.Generator().manual_seed(0))


def seen(model: nn.Module, edit=None) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, kept: Kept) -> None:
        found[name] = torch.stack(kept.rows) if len({x.shape for x in kept.rows}) == 1 else torch.cat(kept.rows)
        if edit:
            edit(name, module)

    walk(model, ids(), lambda _: Kept(), note)
    return found


def plainly(model: nn.Module, tokens: Tensor | None = None) -> dict[str, Tensor]:
    """Inputs of all maps in one ordinary forward pass over the whole batch."""
    tokens = ids() if tokens is None else tokens
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: found.__setitem__(name, args[0].detach()))
        for name, module in prunable(model).items()
    ]
    with torch.no_grad():
        model.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_without_edits_the_inputs_are_those_of_a_forward_pass(name: str) -> None:
    model = build(name)
    model.train()
    expected = plainly(model)
    model.train()
    before = snapshot(model)
    found = seen(model)
    assert list(found) == list(prunable(model)) and model.training
    twice = {key for key, x in found.items() if x.shape[0] != 3}
    assert all(key.endswith(("query_proj", "key_proj")) for key in twice) and bool(twice) == (name == "tiny_deberta")
    for key in found.keys() - twice:
        torch.testing.assert_close(found[key], expected[key].reshape(found[key].shape), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_a_block_sees_the_edited_blocks_before_it_and_itself_as_it_was(name: str) -> None:
    model, reference = build(name), build(name)
    first = {id(m) for m in layers(reference)[0].modules()}

    def halve(key: str, module: nn.Module) -> None:
        with torch.no_grad():
            module.weight.mul_(0.5)

    found = seen(model, halve)
    dense = plainly(reference)
    for key, module in prunable(reference).items():
        if id(module) in first:
            halve(key, module)
    edited = plainly(reference)
    for key, module in prunable(reference).items():
        expected = (dense if id(module) in first else edited)[key]
        torch.testing.assert_close(found[key], expected.reshape(found[key].shape), rtol=1e-5, atol=1e-6)
    last = list(prunable(model))[-1]
    assert not torch.allclose(found[last], dense[last].reshape(found[last].shape), rtol=1e-3)
    assert torch.equal(weight_and_bias(model.get_submodule(last))[0] * 2, weight_and_bias(build(name).get_submodule(last))[0])


def test_work_between_the_blocks_is_refused() -> None:
    """As DeBERTa's convolution after the first block, which no block holds."""
    model = build("tiny_bert")
    blocks = model.bert.encoder.layer
    original = type(model.bert.encoder).forward

    def between(self, hidden_states, *args, **kwargs):
        hook = blocks[1].register_forward_pre_hook(lambda _, a: (a[0] + 1, *a[1:]), prepend=True)
        try:
            return original(self, hidden_states, *args, **kwargs)
        finally:
            hook.remove()

    model.bert.encoder.forward = between.__get__(model.bert.encoder)
    with pytest.raises(UserError, match="between its blocks"):
        walk(model, ids(), lambda _: Kept(), lambda *_: None)
