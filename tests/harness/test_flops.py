"""FLOPs against closed forms."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, MixtralConfig, MixtralForCausalLM

from harness.flops import forward_flops, scaled, training_flops

N, A, B, C = 8, 16, 32, 4
ROWS, LENGTH = 2, 12
HIDDEN, INNER, LAYERS, EXPERTS, TOP, VOCABULARY = 16, 24, 2, 4, 2, 40


def summed(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(batch["x"]).sum()


def own_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


def bert() -> BertForSequenceClassification:
    config = BertConfig(vocab_size=50, hidden_size=64, num_hidden_layers=3, num_attention_heads=2, intermediate_size=256)
    return BertForSequenceClassification(config)


def sentences() -> dict[str, Tensor]:
    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1])}


def test_an_mlp_costs_two_per_weight_and_row_forward() -> None:
    model, batch = nn.Sequential(nn.Linear(A, B), nn.ReLU(), nn.Linear(B, C)), {"x": torch.randn(N, A)}
    flops = training_flops(model, batch, summed)
    assert flops["forward"] == 2 * N * (A * B + B * C)
    # gradients of both weights and of the hidden layer; the input needs none
    assert flops["backward"] == 2 * N * (A * B + 2 * B * C)
    assert flops["total"] == flops["forward"] + flops["backward"]
    assert flops["tokens"] == N
    assert scaled(flops, 3 * N) == 3 * flops["total"]


def test_the_weight_gradient_of_a_frozen_layer_is_not_paid() -> None:
    model = nn.Sequential(nn.Linear(A, B), nn.Linear(B, C))
    model[1].requires_grad_(False)
    assert training_flops(model, {"x": torch.randn(N, A)}, summed)["backward"] == 2 * N * (A * B + B * C)


def test_full_fine_tuning_costs_six_lora_about_four_and_a_probe_about_two_per_weight_and_token() -> None:
    probe = bert()
    probe.base_model.requires_grad_(False)
    lora = get_peft_model(bert(), LoraConfig(r=1, target_modules=["query", "value"]))
    full, low, head = (training_flops(model, sentences(), own_loss) for model in (bert(), lora, probe))
    matrices = 3 * (4 * 64 * 64 + 2 * 64 * 256)
    assert full["forward"] == pytest.approx(2 * matrices * ROWS * LENGTH, rel=0.06)
    assert full["total"] / full["forward"] == pytest.approx(3, abs=0.05)
    assert low["total"] / full["forward"] == pytest.approx(2, abs=0.15)
    assert head["total"] / full["forward"] == pytest.approx(1, abs=0.02)


def test_padding_is_charged_to_the_real_tokens() -> None:
    batch = sentences()
    padded = batch | {"attention_mask": (torch.arange(LENGTH) < LENGTH // 2).long().expand(ROWS, LENGTH).clone()}
    full, half = training_flops(bert(), batch, own_loss), training_flops(bert(), padded, own_loss)
    assert (full["tokens"], half["tokens"]) == (ROWS * LENGTH, ROWS * LENGTH // 2)
    assert half["total"] == full["total"]
    assert half["per_token"] == 2 * full["per_token"]


def test_experts_cost_only_those_that_a_token_visits() -> None:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, num_local_experts=EXPERTS, num_experts_per_tok=TOP, max_position_embeddings=64,
    )  # fmt: skip
    ids = torch.arange(ROWS * LENGTH).reshape(ROWS, LENGTH)
    found = forward_flops(MixtralForCausalLM(config), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    t = ROWS * LENGTH
    layer = t * (4 * HIDDEN * HIDDEN + HIDDEN * EXPERTS + TOP * 3 * HIDDEN * INNER) + 2 * t * LENGTH * HIDDEN
    assert found["total"] == 2 * (LAYERS * layer + t * HIDDEN * VOCABULARY)
