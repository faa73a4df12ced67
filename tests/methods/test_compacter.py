"""Compacter against dense Kronecker products, a plain low-rank bottleneck at n = 1, and the paper's counts on its own T5-base."""

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoKrConfig, get_peft_model
from torch import nn
from torch.nn.functional import gelu
from transformers import T5Config, T5ForConditionalGeneration

from harness.cost import count_parameters
from methods.adapters.compacter import Compacter, Phm
from methods.adapters.serial import adapter_parameters, serials
from methods.base import parameter_groups
from methods.roles import head_names
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, changed, logits, snapshot, trainable

CONFIG = Compacter.Config(
    bottleneck=8, n=4, rank=1, activation="gelu_new", init_std=1e-4, norms=True, targets=["o", "down"]
)  # fmt: skip


def prepared(name: str = "tiny_bert", device: str = "cpu", **changes: object) -> tuple[nn.Module, FakeContext]:
    ctx = FakeContext(Compacter(replace(CONFIG, **changes)), batches())
    return ctx.method.prepare(build(name, device=device), ctx), ctx


def spread(model: nn.Module) -> None:
    """Random adapters that matter, biases included."""
    torch.manual_seed(1)
    for parameter in adapter_parameters(model).values():
        nn.init.normal_(parameter, std=0.7)


def dense(phi: Phm) -> torch.Tensor:
    """H as the paper writes it."""
    return sum(torch.kron(phi.rule[i], phi.left[i] @ phi.right[i]) for i in range(len(phi.rule)))


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_logits_are_those_of_dense_kronecker_sums(name: str, rank: int) -> None:
    model, _ = prepared(name, rank=rank)
    spread(model)
    stock = build(name)
    for place, layer in serials(model).items():
        down, up = layer.adapter.down, layer.adapter.up
        assert (dense(down).shape, dense(up).shape) == ((32, 8), (8, 32))

        def behind(module: nn.Module, args: tuple, h: torch.Tensor, down: Phm = down, up: Phm = up) -> torch.Tensor:
            return h + gelu(h @ dense(down) + down.bias, approximate="tanh") @ dense(up) + up.bias

        stock.get_submodule(place).register_forward_hook(behind)
    assert torch.allclose(logits(model), logits(stock), atol=1e-5)
    assert not torch.allclose(logits(model), logits(build(name)), atol=1e-3)


def test_logits_start_at_the_base_and_are_equal_where_k_is_zero() -> None:
    base = logits(build("tiny_bert"))
    model, _ = prepared()
    assert torch.allclose(logits(model), base, rtol=0, atol=1e-6)
    nn.init.zeros_(next(iter(serials(model).values())).adapter.down.rule)
    assert torch.equal(logits(model), base)


def t5_base(targets: list[str]) -> tuple[nn.Module, int]:
    """The paper's model with its trainable parameters: adapters behind `targets` and all norms; and their number in all."""
    sizes = {"vocab_size": 32_128, "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(**sizes))
    total = sum(p.numel() for p in model.parameters())
    model.requires_grad_(False)
    # a Compacter block of a T5 decoder has self-attention and a feed-forward network; attention to the encoder has no adapter
    ends = [{"o": "SelfAttention.o", "down": "DenseReluDense.wo"}[target] for target in targets]
    names = [name for name, _ in model.named_modules() if name.endswith(tuple(ends))]
    config = replace(CONFIG, bottleneck=24, targets=targets)
    Compacter(config).put(model, names, lambda _: torch.Generator())
    for name, module in model.named_modules():
        if name.endswith("layer_norm"):
            module.requires_grad_(True)
    return model, total


@pytest.mark.parametrize(("targets", "adapters", "share"), [(["down"], 57_088, 0.047), (["o", "down"], 114_112, 0.073)])
def test_the_papers_counts_on_t5_base(targets: list[str], adapters: int, share: float) -> None:
    model, total = t5_base(targets)
    own = sum(p.numel() for p in adapter_parameters(model).values())
    assert own == adapters == len(targets) * 24 * 3 * (768 + 24) + 4**3
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == adapters + 62 * 768
    assert round(100 * trained / total, 3) == share


@pytest.mark.parametrize(("targets", "count"), [(["o", "down"], 57_088), (["down"], 28_576)])
def test_counts_on_roberta_base(targets: list[str], count: int) -> None:
    model, _ = prepared("roberta_base", "meta", bottleneck=24, norms=False, targets=targets)
    assert count_parameters(model)["trainable_method"] == count
    assert set(trainable(model)) == set(adapter_parameters(model)) | head_names(model)


def test_the_slow_weights_are_one_tensor_with_a_gradient_and_once_in_the_optimizer() -> None:
    model, ctx = prepared()
    rules = {id(phi.rule) for layer in serials(model).values() for phi in (layer.adapter.down, layer.adapter.up)}
    assert len(rules) == 1
    spread(model)
    ctx.method.loss(model, batches(1)[0], ctx).backward()
    rule = next(iter(serials(model).values())).adapter.down.rule
    assert rule.grad.abs().sum() > 0
    held = [id(p) for group in parameter_groups(model, ctx.settings) for p in group["params"]]
    assert len(held) == len(set(held)) and held.count(id(rule)) == 1


def test_it_leaves_its_start_although_both_maps_are_nearly_zero() -> None:
    model, ctx = prepared()
    before = snapshot(model)
    ctx.train(model)
    assert changed(model, before) == set(trainable(model))


def test_with_one_block_it_is_a_plain_low_rank_bottleneck_times_a_scalar() -> None:
    """n = 1: H = K s t with a scalar K; q = min(in, out) makes s t any matrix."""
    phi = Phm(6, 4, 4, nn.Parameter(torch.tensor([[[0.5]]])), torch.Generator().manual_seed(0), torch.device("cpu"))
    wanted, x = torch.randn(6, 4), torch.randn(3, 6)
    u, s, vh = torch.linalg.svd(wanted, full_matrices=False)
    phi.left.data, phi.right.data = (u * s)[None], vh[None]
    assert torch.allclose(phi(x), 0.5 * x @ wanted, atol=1e-5)


def test_n_blocks_are_the_sum_of_n_lokr_adapters_of_peft() -> None:
    """PEFT's LoKr adds kron(w1, a b) to a weight (out, in): n of them with w1 = K_i^T, a = t_i^T, b = s_i^T add H^T."""
    n, inputs, outputs = 4, 24, 8
    torch.manual_seed(0)
    phi = Phm(inputs, outputs, 1, nn.Parameter(torch.randn(n, n, n)), torch.Generator().manual_seed(0), torch.device("cpu"))
    stock = nn.Sequential(nn.Linear(inputs, outputs))
    stock[0].weight.data.zero_()
    phi.bias.data.copy_(stock[0].bias)
    config = LoKrConfig(r=1, alpha=1, decompose_factor=n, target_modules=["0"])
    peft = get_peft_model(stock, config, "0")
    for i in range(1, n):
        peft.add_adapter(str(i), config)
    peft.base_model.set_adapter([str(i) for i in range(n)])
    layer = peft.base_model.model[0]
    with torch.no_grad():
        for i in range(n):
            layer.lokr_w1[str(i)].copy_(phi.rule[i].T)
            layer.lokr_w2_a[str(i)].copy_(phi.right[i].T)
            layer.lokr_w2_b[str(i)].copy_(phi.left[i].T)
    x, dy = torch.randn(5, inputs), torch.randn(5, outputs)
    assert torch.allclose(phi(x), peft(x), atol=1e-5)
    (phi(x) * dy).sum().backward(), (peft(x) * dy).sum().backward()
    for i in range(n):
        assert torch.allclose(phi.rule.grad[i], layer.lokr_w1[str(i)].grad.T, atol=1e-4)
        assert torch.allclose(phi.left.grad[i], layer.lokr_w2_b[str(i)].grad.T, atol=1e-4)
        assert torch.allclose(phi.right.grad[i], layer.lokr_w2_a[str(i)].grad.T, atol=1e-4)


def test_fast_weights_start_as_torchs_xavier_of_each_slice() -> None:
    for shape in ((6, 1), (1, 50)):
        phi = Phm(4 * shape[0], 4 * shape[1], 1, nn.Parameter(torch.zeros(4, 4, 4)), torch.Generator().manual_seed(0), torch.device("cpu"))
        for matrices in (phi.left, phi.right):
            like = nn.init.xavier_uniform_(torch.empty(matrices[0].shape), gain=2**0.5)
            bound = (12 / sum(like.shape)) ** 0.5
            assert like.abs().max() <= bound and 0.3 * bound < matrices.abs().max() <= bound


def test_a_trained_model_comes_apart_and_together_with_one_shared_tensor() -> None:
    model, ctx = prepared()
    model = ctx.method.finalize(ctx.train(model), ctx)
    trained = logits(model)
    stock, tensors = ctx.method.detach(copy.deepcopy(model))
    assert sum(name.endswith("rule") for name in tensors) == 1
    again = Compacter(CONFIG).attach(stock, tensors)
    assert torch.equal(logits(again), trained)
    assert len({id(layer.adapter.up.rule) for layer in serials(again).values()}) == 1


def test_a_large_start_is_declared_as_inexact() -> None:
    assert CONFIG.adjust(Compacter.traits).exact_at_init
    large = replace(CONFIG, init_std=0.1)
    assert not large.adjust(Compacter.traits).exact_at_init
    model, _ = prepared(init_std=0.1)
    assert (logits(model) - logits(build("tiny_bert"))).abs().max() > 1e-5


def test_what_n_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.n=3 does not divide method\.bottleneck=8"):
        replace(CONFIG, n=3)
    with pytest.raises(UserError, match="width 32"):
        prepared(n=3, bottleneck=6)
