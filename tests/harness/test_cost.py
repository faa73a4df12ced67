"""Counts against independent recounts, on models, on exported files and on the meta device."""

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from harness import cost
from harness import meter as meter_module
from harness.latency import decode_latency, greedy, prefill_latency
from harness.meter import PeakMeter

MEBI = 2**20
HIDDEN, INNER, LAYERS, VOCABULARY = 16, 32, 2, 40


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=INNER)
    return BertForSequenceClassification(config)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=2, n_positions=32))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def mixtral() -> MixtralForCausalLM:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    return MixtralForCausalLM(config)


def lora(model: nn.Module, **options: object) -> nn.Module:
    return get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"], **options))


BERT_BLOCK = 4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER
BERT_HEAD = HIDDEN * HIDDEN + HIDDEN + 2 * HIDDEN + 2


def test_parameters_of_a_stock_classifier() -> None:
    found = cost.count_parameters(bert())
    assert found["head"] == found["trainable_head"] == BERT_HEAD
    block = BERT_BLOCK + 5 * HIDDEN + INNER + 4 * HIDDEN
    embeddings = (VOCABULARY + 512 + 2) * HIDDEN + 2 * HIDDEN
    assert found["total"] == found["trainable"] == embeddings + LAYERS * block + BERT_HEAD
    assert found["trainable_method"] == found["total"] - BERT_HEAD


def test_parameters_of_an_adapter_with_its_head() -> None:
    found = cost.count_parameters(lora(bert(), modules_to_save=["classifier"]))
    assert found["trainable_method"] == LAYERS * 2 * 2 * (HIDDEN + HIDDEN)
    assert found["trainable_head"] == 2 * HIDDEN + 2
    assert found["trainable"] == found["trainable_method"] + found["trainable_head"]


def test_tied_embeddings_count_once_on_cpu_and_on_meta() -> None:
    model = gpt2()
    independent = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    assert cost.count_parameters(model)["total"] == independent
    with torch.device("meta"):
        shapes = GPT2LMHeadModel(model.config)
    shapes.tie_weights()
    assert cost.count_parameters(shapes)["total"] == independent


def test_a_tie_through_shared_memory_counts_once_and_two_slices_count_twice() -> None:
    class Pair(nn.Module):
        def __init__(self, a: torch.Tensor, b: torch.Tensor) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    memory = torch.zeros(6, 4)
    assert set(cost.unique_parameters(Pair(memory, memory.t()))) == {"a"}
    assert set(cost.unique_parameters(Pair(memory[:3], memory[3:]))) == {"a", "b"}


@pytest.mark.parametrize("build", [bert, gpt2, llama, mixtral])
def test_zeros_in_the_exported_files_are_those_of_the_model(build: object, tmp_path: Path) -> None:
    model = build()
    generator = torch.Generator().manual_seed(1)
    independent = 0
    with torch.no_grad():
        for p in model.parameters():
            p.masked_fill_(torch.rand(p.shape, generator=generator) < 0.3, 0.0)
        for p in {id(p): p for p in model.parameters()}.values():
            independent += sum(value != 0 for value in p.flatten().tolist())
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    in_memory, on_disk = cost.count_nonzero(model), cost.count_nonzero_file(tmp_path, cost.exported_names(model))
    assert in_memory["all"]["nonzero"] == independent
    assert on_disk == in_memory
    assert cost.sparsity(on_disk)["prunable"] == pytest.approx(0.3, abs=0.03)


def test_prunable_weights_of_bert_are_the_matrices_of_its_blocks() -> None:
    counts = cost.count_nonzero(bert())
    assert counts["prunable"] == {"total": LAYERS * BERT_BLOCK, "nonzero": LAYERS * BERT_BLOCK}


def test_experts_are_prunable_and_routers_are_not(tmp_path: Path) -> None:
    model = mixtral()
    model.save_pretrained(tmp_path)
    head = HIDDEN // 2
    attention = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * head
    assert cost.count_nonzero_file(tmp_path, cost.exported_names(model))["prunable"]["total"] == LAYERS * (
        attention + 4 * 3 * HIDDEN * INNER
    )


def test_a_prunable_weight_that_the_files_lack_is_an_error(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    with pytest.raises(KeyError, match=r"lacks 1 prunable weights, the first is no\.such\.weight"):
        cost.count_nonzero_file(tmp_path, {"no.such.weight"})


def test_a_nan_is_not_a_zero_and_an_empty_group_has_no_sparsity() -> None:
    model = bert()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.fill_(float("nan"))
    counts = cost.count_nonzero(model)["prunable"]
    assert counts["nonzero"] == counts["total"]
    assert cost.sparsity({"prunable": {"total": 0, "nonzero": 0}, "all": {"total": 4, "nonzero": 1}}) == {"prunable": None, "all": 0.75}


def test_effective_bits_are_the_dtype_plus_the_header(tmp_path: Path) -> None:
    for dtype, bits in ((torch.float32, 32), (torch.bfloat16, 16)):
        folder = tmp_path / str(bits)
        bert().to(dtype).save_pretrained(folder)
        file = folder / "model.safetensors"
        weights = sum(t.numel() for t in load_file(file).values())
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        assert cost.bytes_of_folder(folder) == file.stat().st_size == header + weights * bits // 8
        assert cost.bits_per_weight(folder) == pytest.approx(bits + 8 * header / weights)


def test_an_empty_folder_has_no_bytes_to_report(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no"):
        cost.bytes_of_folder(tmp_path)


def test_shipped_is_the_adapter_and_its_head_as_trained() -> None:
    model = lora(bert().to(torch.bfloat16), modules_to_save=["classifier"])
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert cost.shipped(model) == {
        "parameters": LAYERS * 2 * 2 * 2 * HIDDEN + 2 * HIDDEN + 2,
        "bytes": sum(p.numel() * p.element_size() for p in trainable),
    }


def test_a_method_that_does_not_train_ships_nothing_trained() -> None:
    assert cost.shipped(bert(), trains=False) == {"parameters": 0, "bytes": 0}
    found = cost.count_parameters(bert(), trains=False)
    assert (found["trainable"], found["head"]) == (0, BERT_HEAD)


def test_changed_is_empty_for_the_base_under_any_names() -> None:
    model = bert()
    before = cost.content_hashes(model)
    assert cost.changed(before, model) == {"tensors": 0, "parameters": 0, "bytes": 0}
    factors = LAYERS * 2 * 2
    assert cost.changed(before, lora(model, init_lora_weights=False))["tensors"] == factors


def test_changed_finds_an_untrained_mask_and_nothing_else() -> None:
    model = bert().requires_grad_(False)
    before = cost.content_hashes(model)
    weight = model.bert.encoder.layer[1].intermediate.dense.weight
    weight[0, 0] = 0.0
    assert cost.changed(before, model) == {"tensors": 1, "parameters": HIDDEN * INNER, "bytes": 4 * HIDDEN * INNER}
    assert cost.shipped(model)["parameters"] == 0


def test_hashes_tell_shapes_and_types_apart() -> None:
    zeros = {
        cost._content_hash(t) for t in (torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(4).bfloat16())
    }
    assert len(zeros) == 4
    transposed = torch.arange(6.0).reshape(2, 3).t()
    assert cost._content_hash(transposed) == cost._content_hash(transposed.contiguous())


def test_the_block_is_json_and_scales_the_step_to_the_tokens(tmp_path: Path) -> None:
    model = bert()
    model.save_pretrained(tmp_path)
    pieces = {
        "parameters": cost.count_parameters(model),
        "shipped": cost.shipped(model),
        "changed": cost.changed(cost.content_hashes(model), model),
        "nonzero": cost.count_nonzero_file(tmp_path, cost.exported_names(model)),
        "folder": tmp_path,
        "memory": None,
        "forward_flops": {"total": 10, "tokens": 5, "per_token": 2.0},
        "prefill_seconds": 0.5,
        "decode_seconds_per_token": None,
    }
    step = {"forward": 10, "backward": 20, "total": 30, "tokens": 5, "per_token": 6.0}
    block = cost.cost_block(**pieces, training_flops=step, trained_tokens=100, read_tokens=10)
    assert json.loads(json.dumps(block, allow_nan=False)) == block
    assert block["flops"]["training"] == 600.0 + 20.0
    assert block["sparsity"]["prunable"] == 0.0
    assert cost.cost_block(**pieces, training_flops=None, trained_tokens=0, read_tokens=10)["flops"]["training"] == 20.0


def test_decoding_writes_what_generate_writes() -> None:
    model = llama().eval()
    ids = torch.arange(6).reshape(1, 6)
    written, seconds = greedy(model, ids, tokens=5)
    # the first generated token is read off the prompt and not timed
    expected = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)[:, 7:]
    assert torch.equal(written, expected)
    assert seconds > 0


def test_an_encoder_has_no_decoding_latency_and_modes_are_put_back() -> None:
    model = bert().train()
    ids = torch.arange(6).reshape(1, 6)
    assert decode_latency(model, ids) is None
    assert prefill_latency(model, {"input_ids": ids}, runs=1) > 0
    assert model.training
    assert model.bert.encoder.layer[0].attention.self.dropout.training


@pytest.mark.parametrize("resettable", [True, False])
def test_peaks_of_one_meter_do_not_leak_into_the_next_and_nested_ones_add_up(
    resettable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not resettable:
        monkeypatch.setattr(meter_module, "_CLEAR", tmp_path / "absent" / "clear_refs")
    with PeakMeter() as outer:
        with PeakMeter() as first:
            block = np.ones(256 * MEBI, dtype=np.uint8)
            assert first.seconds > 0
        del block
        gc.collect()
        with PeakMeter() as second:
            pass
    assert first.exact <= resettable
    assert first.peak_rss - second.peak_rss > 200 * MEBI
    assert outer.peak_rss >= first.peak_rss
    assert outer.seconds >= first.seconds + second.seconds
    assert first.peak_device == 0


def test_a_meter_closes_when_its_block_fails() -> None:
    with pytest.raises(RuntimeError, match="inside"), PeakMeter() as meter:
        raise RuntimeError("inside")
    assert meter.peak_rss > 0
    assert not meter._watcher.is_alive()
