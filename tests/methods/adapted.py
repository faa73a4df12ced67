"""Checks that every adapter owes, whichever technique it is; the tests of single techniques call them."""

import copy
import warnings

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from methods.adapters.peft_base import ADAPTER, wrap
from methods.base import Method
from methods.roles import head_names, weight_is_transposed
from tests.methods.fakes import FakeContext, batches, build, changed, logits, snapshot, trainable

FAMILIES = ["tiny_bert", "tiny_deberta", "tiny_gpt2", "tiny_opt", "tiny_llama", "tiny_mixtral"]


def prepared(method: Method, model: nn.Module, seed: int = 0, steps: int = 3) -> tuple[nn.Module, FakeContext]:
    """The prepared model and its context, with any warning an error."""
    ctx = FakeContext(method, batches(steps), seed=seed)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return method.prepare(model, ctx), ctx


def adapter_count(model: nn.Module) -> int:
    """Number of trainable parameters outside the task head."""
    heads = head_names(model)
    return sum(size for name, size in trainable(model).items() if name not in heads)


def count_on(method: Method, name: str, *, classify: bool = True) -> int:
    """`adapter_count` on a real architecture of the meta device."""
    model, _ = prepared(method, build(name, classify=classify, device="meta"))
    return adapter_count(model)


@torch.no_grad()
def shake(model: nn.Module, size: float = 0.2) -> None:
    """Move every trainable parameter outside the head by normal draws."""
    draws, heads = torch.Generator().manual_seed(3), head_names(model)
    for name, p in model.named_parameters():
        if p.requires_grad and name not in heads:
            p.add_(size * torch.randn(p.shape, generator=draws))


def weight_of(module: nn.Module) -> Tensor:
    """A copy of the weight as (out, in)."""
    weight = module.weight.detach()
    return (weight.T if weight_is_transposed(module) else weight).clone()


def check_start_and_training(method: Method, name: str, mark: str, *, every: bool = True) -> None:
    """Unchanged logits at first; parameters with `mark` in their names and the head train and nothing else moves.

    With `every` all of them move; without it the head does (a technique may set parameters back).
    """
    stock = build(name)
    expected, head = logits(stock), head_names(stock)
    model, ctx = prepared(method, stock)
    assert torch.allclose(logits(model), expected, atol=1e-5)
    adapter = {key for key in trainable(model) if mark in key}
    assert set(trainable(model)) == adapter | head_names(model)
    assert {key.removeprefix("base_model.model.") for key in head_names(model)} == head
    before = snapshot(model)
    model = ctx.method.fit(model, ctx)
    moved = changed(model, before)
    assert moved <= set(trainable(model)) and head_names(model) <= moved and moved & adapter
    assert adapter <= moved or not every


def check_merge(method: Method, name: str, size: float = 0.2) -> None:
    """A shaken adapter merges into a stock model that gives the same logits, all of its parameters trainable again."""
    stock = build(name)
    kind, keys, start = type(stock), list(stock.state_dict()), logits(stock)
    model, ctx = prepared(method, stock)
    shake(model, size)
    expected = logits(model)
    effect = (expected - start).abs().max()
    assert effect > 2e-5
    final = ctx.method.finalize(model, ctx)
    assert type(final) is kind and list(final.state_dict()) == keys and not hasattr(final, "peft_config")
    assert (logits(final) - expected).abs().max() <= min(1e-5, 0.02 * effect)
    assert all(p.requires_grad for p in final.parameters())


def check_half_precision(method: Method, twin: Method) -> None:
    """Over bfloat16 weights the adapter stays float32, and merging rounds once: the float32 merge of the same adapter, rounded."""
    half, half_ctx = prepared(method, build("tiny_llama").bfloat16())
    exact, ctx = prepared(twin, build("tiny_llama").bfloat16().float())
    heads = head_names(half)
    assert {p.dtype for n, p in half.named_parameters() if p.requires_grad and n not in heads} == {torch.float32}
    shake(half)
    with torch.no_grad():
        for p, q in zip([*exact.parameters(), *exact.buffers()], [*half.parameters(), *half.buffers()], strict=True):
            p.copy_(q)
    merged, reference = half_ctx.method.finalize(half, half_ctx), ctx.method.finalize(exact, ctx)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    for (name, p), q in zip(merged.named_parameters(), reference.parameters(), strict=True):
        assert torch.equal(p, q.bfloat16()), name


def check_lora_export(method: Method, name: str, rank: int) -> None:
    """`lora` gives factors of at most `rank` with W' = W + B A, W the loaded weight; every other backbone parameter stays."""
    stock = build(name)
    loaded, heads = snapshot(stock), head_names(stock)
    model, ctx = prepared(method, stock)
    shake(model)
    factors = ctx.method.lora(model)
    final = ctx.method.finalize(model, ctx)
    for key, (b, a) in factors.items():
        module = final.get_submodule(key)
        before = loaded[f"{key}.weight"].T if weight_is_transposed(module) else loaded[f"{key}.weight"]
        assert b.shape[1] == a.shape[0] <= rank and b.dtype == a.dtype == torch.float32
        assert torch.allclose(before + b @ a, weight_of(module), atol=1e-6)
    touched = changed(final, loaded)
    assert touched - heads == {f"{key}.weight" for key in factors}


def check_merge_is_pefts(method: Method, name: str, size: float = 0.2) -> None:
    """`finalize` of a shaken adapter gives every weight of PEFT's own `merge_and_unload`."""
    model, ctx = prepared(method, build(name))
    shake(model, size)
    reference = copy.deepcopy(model).merge_and_unload()
    final = ctx.method.finalize(model, ctx)
    moved = changed(reference, snapshot(build(name)))
    assert moved - head_names(reference)
    for (key, p), (other, q) in zip(final.named_parameters(), reference.named_parameters(), strict=True):
        assert key == other and torch.allclose(p, q, atol=1e-6), key


def in_peft(stock: nn.Module, factors: dict[str, tuple[Tensor, Tensor]], alpha: float | None = None) -> PeftModel:
    """A stock model under PEFT's LoRA with these (B, A), each of its own rank; scaled by 1 unless `alpha` is given."""
    factors = {name: pair for name, pair in factors.items() if len(pair[1])}
    ranks = {name: len(down) for name, (_, down) in factors.items()}
    alphas = {name: alpha or rank for name, rank in ranks.items()}
    transposed = weight_is_transposed(stock.get_submodule(next(iter(ranks))))
    config = LoraConfig(target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=alphas, fan_in_fan_out=transposed)
    model = wrap(stock, config)
    with torch.no_grad():
        for name, (up, down) in factors.items():
            layer = model.base_model.model.get_submodule(name)
            layer.lora_A[ADAPTER].weight.copy_(down)
            layer.lora_B[ADAPTER].weight.copy_(up)
    return model
