"""The memory ledger against closed forms."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from harness.dryrun import undisturbed
from harness.ledger import memory_ledger, optimizer_state_bytes, storage_bytes

N, A, B, C = 8, 16, 32, 4
FLOAT, HALF = 4, 2


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(A, B), nn.ReLU(), nn.Linear(B, C))


def rows() -> dict[str, Tensor]:
    return {"x": torch.randn(N, A)}


def summed(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["x"]).sum()


def tiny_bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, max_position_embeddings=32
    )
    return BertForSequenceClassification(config)


def sentences() -> dict[str, Tensor]:
    ids = torch.arange(2 * 10).reshape(2, 10)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1])}


def own_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


def test_an_mlp_keeps_its_hidden_layer_and_nothing_else() -> None:
    ledger = memory_ledger(mlp(), rows(), summed, optimizer_bytes=100)
    weights = FLOAT * (A * B + B + B * C + C)
    assert ledger["activations"] == FLOAT * N * B
    assert ledger["inputs"] == FLOAT * N * A
    assert ledger["weights"] == ledger["gradients"] == weights
    assert ledger["weight_copies"] == 0
    assert ledger["total"] == 2 * weights + 100 + FLOAT * N * (A + B)
    assert (ledger["batch"], ledger["length"], ledger["dtype"], ledger["autocast"]) == (N, A, "float32", None)


def test_the_input_of_a_frozen_layer_is_not_kept() -> None:
    model = nn.Sequential(nn.Linear(A, B), nn.Linear(B, C))
    assert memory_ledger(model, rows(), summed)["activations"] == FLOAT * N * B
    model[1].requires_grad_(False)
    ledger = memory_ledger(model, rows(), summed)
    assert ledger["activations"] == 0
    assert ledger["gradients"] == FLOAT * (A * B + B)


def test_a_tensor_kept_twice_is_counted_once() -> None:
    layer = nn.Linear(A, B)

    def product(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        y = model(batch["x"])
        return (y * y.view(N, B) * y[:, :1]).sum()

    # the multiplication chain keeps y, its view and its slice (one storage), and the product y * y
    assert memory_ledger(layer, rows(), product)["activations"] == 2 * FLOAT * N * B


def test_a_branch_without_influence_on_the_loss_is_not_kept() -> None:
    def detour(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        (model(batch["x"]).exp() * 2).sum()
        return summed(model, batch)

    assert memory_ledger(mlp(), rows(), detour)["activations"] == FLOAT * N * B


def test_casts_of_weights_are_told_from_activations() -> None:
    ledger = memory_ledger(mlp(), rows(), summed, autocast=torch.bfloat16)
    assert ledger["weight_copies"] == HALF * B * C
    assert ledger["activations"] == HALF * (N * A + N * B)
    assert ledger["autocast"] == "bfloat16"


def test_step_peak_sees_a_temporary_that_is_gone_before_the_backward_pass() -> None:
    big = 4000

    def wasteful(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        unused = torch.zeros(big, A).sum()
        return summed(model, batch) + unused

    plain, peaked = memory_ledger(mlp(), rows(), summed), memory_ledger(mlp(), rows(), wasteful)
    assert peaked["step_peak"] == FLOAT * (big * A + 1)
    assert peaked["activations"] == plain["activations"]
    assert plain["step_peak"] >= plain["gradients"]


def test_a_model_that_trains_nothing_keeps_nothing() -> None:
    ledger = memory_ledger(mlp().requires_grad_(False), rows(), summed)
    assert ledger["activations"] == ledger["gradients"] == 0


def test_lora_keeps_less_than_full_fine_tuning() -> None:
    batch = sentences()
    full = memory_ledger(tiny_bert().eval(), batch, own_loss)
    lora = memory_ledger(get_peft_model(tiny_bert(), LoraConfig(r=1, target_modules=["query", "value"], lora_dropout=0.0)), batch, own_loss)
    assert 0 < lora["activations"] < full["activations"]
    assert lora["gradients"] == FLOAT * 3 * 2 * (16 + 16)
    assert full["attention"] == lora["attention"] == "sdpa (math)"


def test_checkpointing_keeps_less_and_the_same_gradients() -> None:
    batch, model = sentences(), tiny_bert()
    plain = memory_ledger(model, batch, own_loss)
    model.gradient_checkpointing_enable()
    saving = memory_ledger(model, batch, own_loss)
    assert saving["activations"] < plain["activations"] / 2
    assert saving["gradients"] == plain["gradients"]


def test_optimizer_state_of_adamw_is_two_copies_and_a_step_per_tensor() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    assert optimizer_state_bytes(optimizer) == 0
    summed(model, rows()).backward()
    optimizer.step()
    assert optimizer_state_bytes(optimizer) == FLOAT * (2 * sum(p.numel() for p in model.parameters()) + 4)


def test_storages_are_counted_once() -> None:
    tensor = torch.zeros(3, 4)
    assert storage_bytes([tensor, tensor.t(), tensor[0]]) == FLOAT * 12


def test_the_ledger_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(A, B), nn.BatchNorm1d(B), nn.Dropout(0.5), nn.Linear(B, C))
    model[1].eval()
    model[0].weight.grad = torch.ones(B, A)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    batch = rows()
    generator = torch.get_rng_state()
    memory_ledger(model, batch, summed)
    assert torch.equal(generator, torch.get_rng_state())
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(model[0].weight.grad, torch.ones(B, A))
    assert model[3].weight.grad is None


def test_an_error_inside_still_restores_the_modes() -> None:
    model = mlp().eval()
    with pytest.raises(RuntimeError, match="inside"), undisturbed(model, training=True):
        raise RuntimeError("inside")
    assert not model.training
