"""PaCA: counts, columns, gradients, kept activations, full fine-tuning as the limit, checkpointing, and memory against LoRA."""

import pytest
import torch

from harness.ledger import memory_ledger
from methods.adapters.own_base import wrapped
from methods.sparse.paca import Paca
from methods.spec import UserError
from tests.methods.adapted import FAMILIES, check_half_precision, check_merge, check_start_and_training, count_on, prepared, weight_of
from tests.methods.fakes import batches, build, logits, snapshot
from tests.methods.sparse_memory import dense_slopes, sgd, still, trained_bytes

ALL = ["q", "k", "v", "o", "gate", "up", "down"]


def paca(**changes: object) -> Paca:
    return Paca(Paca.Config(**({"r": 4, "alpha": 16.0, "targets": ALL} | changes)))


@pytest.mark.parametrize(
    ("name", "r", "count"), [("llama2_7b", 8, 10_878_976), ("llama2_7b", 16, 21_757_952), ("roberta_base", 8, 663_552)]
)
def test_published_counts(name: str, r: int, count: int) -> None:
    assert count_on(paca(r=r), name, classify=name != "llama2_7b") == count


DENSE = [name for name in FAMILIES if name != "tiny_mixtral"]


@pytest.mark.parametrize("name", DENSE)
def test_start_and_training(name: str) -> None:
    check_start_and_training(paca(), name, "values")


def test_attention_of_a_mixture_of_experts() -> None:
    check_start_and_training(paca(targets=["q", "o"]), "tiny_mixtral", "values")
    assert paca(targets=["q", "o"]).config.adjust(Paca.traits).moe and not paca().config.adjust(Paca.traits).moe


@pytest.mark.parametrize("name", DENSE)
def test_merge(name: str) -> None:
    check_merge(paca(), name)


def test_half_precision() -> None:
    check_half_precision(paca(), paca())


@pytest.mark.parametrize("alpha", [16.0, 12.0])
def test_logits_at_the_start_are_the_stock_ones(alpha: float) -> None:
    """To the last bit where s is a power of two."""
    stock = build("tiny_bert")
    expected = logits(stock)
    model, _ = prepared(paca(alpha=alpha), stock)
    assert torch.equal(logits(model), expected) if alpha == 16.0 else torch.allclose(logits(model), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2", "tiny_llama"])
def test_only_the_columns_change(name: str) -> None:
    loaded = {key: weight_of(module) for key, module in build(name).named_modules() if getattr(module, "weight", None) is not None}
    model, ctx = prepared(paca(), build(name))
    layers = wrapped(model)
    columns = {key: layer.index.tolist() for key, layer in layers.items()}
    final = ctx.method.finalize(ctx.method.fit(model, ctx), ctx)
    for key, chosen in columns.items():
        moved = (weight_of(final.get_submodule(key)) != loaded[key]).any(0)
        assert len(set(chosen)) == 4 and moved.nonzero().flatten().tolist() == chosen


def test_columns_differ_between_targets_and_seeds() -> None:
    def drawn(seed: int) -> list[list[int]]:
        return [layer.index.tolist() for layer in wrapped(prepared(paca(), build("tiny_bert"), seed)[0]).values()]

    assert drawn(0) == drawn(0) != drawn(1)
    assert len({tuple(columns) for columns in drawn(0)}) > 1


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_deberta", "tiny_gpt2", "tiny_neox"])
def test_gradient_is_s_times_the_dense_one_at_the_columns(name: str) -> None:
    model, _ = prepared(paca(), still(build(name)))
    batch = batches(1)[0]
    slopes = dense_slopes(still(build(name)), list(wrapped(model)), batch)
    model(**batch).loss.backward()
    for key, layer in wrapped(model).items():
        assert torch.allclose(layer.values.grad, 4 * slopes[key][:, layer.index], atol=1e-6) and layer.values.grad.any()
        assert layer.base_layer.weight.grad is None


def test_kept_activations_have_r_features() -> None:
    model, _ = prepared(paca(), build("tiny_bert"))
    layer = next(iter(wrapped(model).values()))
    held: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        layer(torch.randn(2, 8, layer.in_features, requires_grad=True))
    assert [tuple(t.shape) for t in held if t.shape[:2] == (2, 8)] == [(2, 8, 4)]


def test_all_columns_at_s_1_are_full_fine_tuning_of_the_targets() -> None:
    method = paca(r=32, alpha=32.0, targets=["q", "o"])
    model, _ = prepared(method, still(build("tiny_llama")))
    dense = still(build("tiny_llama")).requires_grad_(False)
    names = list(wrapped(model))
    for key in names:
        dense.get_submodule(key).weight.requires_grad_(True)
    model.score.requires_grad_(False)
    sgd(model, batches(4)), sgd(dense, batches(4))
    before = build("tiny_llama")
    for key, layer in wrapped(model).items():
        trained = dense.get_submodule(key).weight
        assert torch.allclose(layer.folded()[0], trained, atol=1e-6)
        assert not torch.allclose(trained, before.get_submodule(key).weight, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
def test_checkpointing_gives_the_same_columns(name: str) -> None:
    trained = []
    for saving in (False, True):
        model, _ = prepared(paca(), still(build(name)))
        if saving:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        trained.append(snapshot(sgd(model.train(), batches(3))))
    assert all(torch.equal(tensor, trained[1][key]) for key, tensor in trained[0].items())


def test_less_memory_than_lora_at_the_same_rank_and_targets() -> None:
    """On MiniLM's architecture: every part is smaller, and all parts together by the 16 % that the paper claims."""
    own, lora = trained_bytes("paca", r=8), trained_bytes("lora", r=8)
    assert all(own[part] < lora[part] for part in ("activations", "gradients", "optimizer", "step_peak"))
    assert own["total"] < (1 - 0.16) * lora["total"] and own["weight_copies"] == 0


def test_less_memory_than_lora_at_as_many_parameters() -> None:
    own, lora = trained_bytes("paca", r=16), trained_bytes("lora", r=8)
    assert own["gradients"] == lora["gradients"] and own["optimizer"] <= lora["optimizer"]
    assert own["activations"] < lora["activations"] and own["total"] < lora["total"]


def test_the_ledger_counts_r_features_a_map_and_no_weight() -> None:
    """More columns cost out + tokens floats each, and nothing else."""
    batch = batches(1)[0]
    held = {}
    for r in (2, 6):
        model, _ = prepared(paca(r=r, targets=["q"]), still(build("tiny_llama")))
        held[r] = memory_ledger(model, batch, lambda m, b: m(**b).loss)["activations"]
    assert held[6] - held[2] == 2 * 4 * (4 * batch["input_ids"].numel())


def test_bad_configurations() -> None:
    with pytest.raises(UserError, match=r"method.r=33 is more than the 32 inputs of .*q_proj; give a smaller method.r"):
        prepared(paca(r=33), build("tiny_llama"))
    with pytest.raises(UserError, match=r"method.alpha=0 is out of range"):
        paca(alpha=0)
