"""Poly and MHR: count, routing weights, equivalences, task rows, the second stages, folding and coming apart."""

import copy

import pytest
import torch
from torch import Tensor, nn

from methods.adapters.mhr import Mhr, averaged
from methods.adapters.own_base import wrapped
from methods.adapters.peft_base import ADAPTER, adapted
from methods.roles import head_names
from methods.spec import UserError
from tests.methods.adapted import (
    FAMILIES,
    adapter_count,
    check_half_precision,
    check_lora_export,
    check_merge,
    check_start_and_training,
    count_on,
    in_peft,
    prepared,
    shake,
    weight_of,
)
from tests.methods.fakes import batches, build, inputs, logits, snapshot, trainable

VALUES = {"r": 2, "skills": 3, "heads": 4, "tasks": 1, "targets": ["q", "v"], "stage": "joint", "second": 0.3, "routing_ratio": 10.0}


def mhr(**changes: object) -> Mhr:
    return Mhr(Mhr.Config(**(VALUES | changes)))


def test_published_count() -> None:
    assert count_on(mhr(r=4, skills=8, heads=4, tasks=3), "roberta_base") == 1_181_952


@pytest.mark.parametrize("name", FAMILIES)
def test_start_and_training(name: str) -> None:
    check_start_and_training(mhr(), name, "poly_")


@pytest.mark.parametrize("name", FAMILIES)
def test_merge(name: str) -> None:
    check_merge(mhr(), name)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_lora_export(name: str) -> None:
    check_lora_export(mhr(), name, rank=2)


def test_half_precision() -> None:
    check_half_precision(mhr(), mhr())


def by_hand(layer: nn.Module, task: int) -> Tensor:
    """dW (out, in) of a task, split by split and skill by skill."""
    a, b = layer.poly_lora_A[ADAPTER], layer.poly_lora_B[ADAPTER]
    h, s = a.shape[:2]
    u = torch.sigmoid(layer.poly_router[ADAPTER].module_logits[task].view(h, s))
    rows, columns = [], []
    for split in range(h):
        w = [u[split, j] / sum(u[split]) for j in range(s)]
        assert sum(w).item() == pytest.approx(1, abs=1e-6)
        rows.append(sum(w[j] * a[split, j] for j in range(s)))
        columns.append(sum(w[j] * b[split, j] for j in range(s)))
    return (torch.cat(rows) @ torch.cat(columns, 1)).T / a.shape[-1]


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_formula_in_evaluation_by_task(name: str) -> None:
    model, _ = prepared(mhr(tasks=2), build(name))
    shake(model)
    model.eval()
    tasks = torch.tensor([1, 0])
    for layer in adapted(model).values():
        x = torch.randn(2, 5, layer.in_features)
        y = layer.base_layer(x)
        for row, task in enumerate(tasks):
            y[row] = y[row] + x[row] @ by_hand(layer, task).T
        with torch.no_grad():
            actual = type(layer).forward(layer, x, task_ids=tasks)
        assert torch.allclose(actual, y, atol=1e-5)


def test_routing_is_drawn_in_training_and_fixed_in_evaluation() -> None:
    model, _ = prepared(mhr(), build("tiny_bert"))
    shake(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.manual_seed(0)
    model.train()
    assert not torch.allclose(model(**inputs()).logits, model(**inputs()).logits)
    assert torch.equal(logits(model), logits(model))


def test_initial_values() -> None:
    model, _ = prepared(mhr(skills=8), build("tiny_bert"))
    for layer in adapted(model).values():
        z, a = layer.poly_router[ADAPTER].module_logits, layer.poly_lora_A[ADAPTER]
        assert 0 < z.abs().max() <= 1e-3 and z.shape == (1, 32)
        assert not layer.poly_lora_B[ADAPTER].any()
        assert 0.9 * 8**-0.5 < a.abs().max() <= 8**-0.5


def test_one_skill_and_one_head_is_lora_with_alpha_one() -> None:
    model, _ = prepared(mhr(skills=1, heads=1), build("tiny_bert"))
    shake(model)
    stock = build("tiny_bert")
    for name, layer in adapted(model).items():
        a, b = layer.poly_lora_A[ADAPTER][0, 0], layer.poly_lora_B[ADAPTER][0, 0]
        stock.get_submodule(name).weight.data += (a @ b).T / 2
    assert torch.allclose(logits(model), logits(stock), atol=1e-5)


def test_equal_logits_in_all_splits_are_poly() -> None:
    many, _ = prepared(mhr(), build("tiny_llama"))
    shake(many)
    one, _ = prepared(mhr(heads=1), build("tiny_llama"))
    with torch.no_grad():
        for name, layer in adapted(many).items():
            other, z = adapted(one)[name], torch.randn(3)
            layer.poly_router[ADAPTER].module_logits.copy_(z.repeat(4)[None])
            other.poly_router[ADAPTER].module_logits.copy_(z[None])
            other.poly_lora_A[ADAPTER].copy_(layer.poly_lora_A[ADAPTER].transpose(0, 1).flatten(1, 2)[None])
            other.poly_lora_B[ADAPTER].copy_(layer.poly_lora_B[ADAPTER].permute(1, 2, 0, 3).flatten(2)[None])
    assert torch.allclose(logits(many), logits(one), atol=1e-5)


def test_task_ids_come_from_the_batch_and_are_zero_without() -> None:
    model, ctx = prepared(mhr(tasks=2), build("tiny_bert"))
    shake(model, 1.0)
    rows = inputs()
    first = logits(model, rows | {"task_ids": torch.tensor([0, 0, 0, 0])})
    mixed = logits(model, rows | {"task_ids": torch.tensor([0, 1, 0, 1])})
    assert torch.equal(logits(model, rows), first)
    assert torch.allclose(mixed[::2], first[::2], atol=1e-6) and not torch.allclose(mixed[1::2], first[1::2], atol=1e-4)
    with torch.no_grad():
        for layer in adapted(model).values():
            layer.poly_router[ADAPTER].module_logits[1] += 3 * torch.randn(12)
    again = logits(model, rows | {"task_ids": torch.tensor([0, 1, 0, 1])})
    assert torch.allclose(again[::2], mixed[::2], atol=1e-6) and not torch.allclose(again[1::2], mixed[1::2], atol=1e-4)
    assert ctx.method.loss(model, batches(1)[0] | {"task_ids": torch.tensor([1, 1, 0, 0])}, ctx).requires_grad


def test_z_trains_the_routing_of_the_tasks_it_sees_alone() -> None:
    model, ctx = prepared(mhr(stage="z", tasks=2), build("tiny_bert"))
    shake(model)
    routing = snapshot(model)
    seen = []
    ctx.probe = lambda m: seen.append({name: p.grad for name, p in m.named_parameters() if p.requires_grad})
    model = ctx.method.fit(model, ctx)
    assert ctx.phases == ["skills", "main"]
    heads = head_names(model)
    assert set(seen[0]) - heads == {name for name in routing if "poly_" in name}
    assert adapter_count(model) == 4 * 2 * 4 * 3
    for name in set(seen[-1]) - heads:
        assert "module_logits" in name and seen[-1][name][0].all() and not seen[-1][name][1].any()
    assert all(p.abs().max() < 1 for name, p in model.named_parameters() if "module_logits" in name)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_mu_averages_the_factors_into_one_lora(name: str) -> None:
    method = mhr(stage="mu", tasks=2)
    model, ctx = prepared(method, build(name))
    shake(model)
    means = {
        key: (layer.poly_lora_A[ADAPTER].mean(1).flatten(0, 1), layer.poly_lora_B[ADAPTER].mean(1)) for key, layer in adapted(model).items()
    }
    weights = {key: weight_of(layer.base_layer) for key, layer in adapted(model).items()}
    mean = averaged(model)
    assert type(mean) is type(build(name)) and adapter_count(mean) == sum(2 * sum(w.shape) for w in weights.values())
    for key, layer in wrapped(mean).items():
        a, b = means[key]
        delta = (a @ torch.cat(list(b), 1)).T / 2
        assert torch.allclose(layer.folded()[0], weights[key] + delta, atol=1e-5)
    factors = method.lora(mean)
    assert factors.keys() == weights.keys() and all(b.shape[1] == 2 for b, _ in factors.values())
    expected = logits(mean)
    assert torch.allclose(logits(method.finalize(mean, ctx)), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_mu_is_pefts_lora_of_alpha_one(name: str) -> None:
    """The trained factors as they are, with lora_alpha = 1 in PEFT: the scale 1 / r is there."""
    model, _ = prepared(mhr(stage="mu"), build(name))
    shake(model, 0.5)
    mean = averaged(model)
    expected = logits(mean)
    trained = {key: (layer.lora_b, layer.lora_a) for key, layer in wrapped(mean).items()}
    assert torch.allclose(logits(in_peft(build(name), trained, alpha=1)), expected, atol=1e-6)
    assert not torch.allclose(logits(build(name)), expected, atol=1e-4)


def test_mu_trains_that_lora() -> None:
    model, ctx = prepared(mhr(stage="mu"), build("tiny_bert"))
    model = ctx.method.fit(model, ctx)
    assert {name.rpartition(".")[2] for name in set(trainable(model)) - head_names(model)} == {"lora_a", "lora_b"}
    assert ctx.method.finalize(model, ctx).__class__.__name__ == "BertForSequenceClassification"


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_several_tasks_come_apart_and_together(name: str) -> None:
    model, ctx = prepared(mhr(tasks=2), build(name))
    shake(model)
    tasks = inputs() | {"task_ids": torch.tensor([0, 1, 1, 0])}
    final = ctx.method.finalize(model, ctx)
    expected, order = logits(final, tasks), list(final.state_dict())
    stock, tensors = ctx.method.detach(copy.deepcopy(final))
    assert type(stock) is type(build(name)) and list(stock.state_dict()) == list(build(name).state_dict())
    together = mhr(tasks=2).attach(stock, tensors)
    assert list(together.state_dict()) == order and torch.equal(logits(together, tasks), expected)


def test_learning_rates_traits_and_bad_configurations() -> None:
    model, ctx = prepared(mhr(), build("tiny_bert"))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = ctx.method.optimizer(model, ctx.settings).param_groups
    found = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert {value for name, value in found.items() if "module_logits" in name} == {(0.1, 0.0)}
    assert {value for name, value in found.items() if "poly_lora" in name} == {(0.01, 0.1)}
    folds = {(t, s): mhr(tasks=t, stage=s).config.adjust(Mhr.traits).folds for t in (1, 2) for s in ("joint", "z", "mu")}
    assert [key for key, value in folds.items() if not value] == [(2, "joint"), (2, "z")]
    with pytest.raises(UserError, match=r"method.heads=3 does not divide both sides \(32, 32\) of .*query; give a divisor"):
        prepared(mhr(heads=3), build("tiny_bert"))
    with pytest.raises(UserError, match=r"method.stage=y is not allowed; allowed: joint, z, mu"):
        mhr(stage="y")
