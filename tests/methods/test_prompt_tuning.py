"""Prompt tuning: counts, equality with the hard prompt and with PEFT, padding, language models, generation, coming apart."""

import copy

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch import Tensor, nn

from methods.adapters.prompt_tuning import Prompted, PromptTuning
from methods.roles import head_names
from methods.spec import UserError
from tests.methods.adapted import FAMILIES, count_on, prepared
from tests.methods.fakes import build, changed, inputs, logits, snapshot, trainable

P = 5


def tuning(**changes: object) -> PromptTuning:
    return PromptTuning(PromptTuning.Config(**({"tokens": P, "init": "vocab"} | changes)))


def hard() -> Tensor:
    return torch.randint(6, 260, (P,), generator=torch.Generator().manual_seed(1))


def hardened(model: Prompted, ids: Tensor) -> Prompted:
    """The prompt set to the embeddings of real tokens."""
    with torch.no_grad():
        model.soft_prompt.copy_(model.base_model.get_input_embeddings()(ids))
    return model


def before(ids: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with real tokens before every row."""
    rows = len(batch["input_ids"])
    mask = torch.cat([torch.ones(rows, P, dtype=torch.long), batch["attention_mask"]], 1)
    return batch | {"input_ids": torch.cat([ids.expand(rows, -1), batch["input_ids"]], 1), "attention_mask": mask}


@pytest.mark.parametrize(("name", "classify", "count"), [("roberta_base", True, 15_360), ("llama2_7b", False, 81_920)])
def test_published_counts(name: str, classify: bool, count: int) -> None:
    assert count_on(tuning(tokens=20), name, classify=classify) == count


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_prompt_and_the_head_train(name: str) -> None:
    head = head_names(build(name))
    model, ctx = prepared(tuning(), build(name))
    assert set(trainable(model)) == {"soft_prompt"} | {f"base_model.{key}" for key in head}
    start = snapshot(model)
    assert changed(ctx.method.fit(model, ctx), start) == set(trainable(model))


@pytest.mark.parametrize("name", [*FAMILIES, "tiny_roberta"])
def test_embeddings_of_real_tokens_are_the_hard_prompt(name: str) -> None:
    """Position ids and right padding included."""
    stock = build(name)
    expected = logits(stock, before(hard(), inputs()))
    model = hardened(prepared(tuning(), stock)[0], hard())
    assert torch.allclose(logits(model), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama", "tiny_opt"])
def test_language_models_keep_their_shapes_labels_and_positions(name: str) -> None:
    stock = build(name, classify=False)
    batch = inputs()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    longer = before(hard(), batch)
    with torch.no_grad():
        expected = stock(**longer, labels=torch.cat([torch.full((4, P), -100), labels], 1))
        model = hardened(prepared(tuning(), stock)[0], hard()).eval()
        out = model(**batch, labels=labels)
        last = model(**batch, logits_to_keep=3)
    assert out.logits.shape[:2] == batch["input_ids"].shape
    assert torch.allclose(out.logits, expected.logits[:, P:], atol=1e-5) and torch.allclose(out.loss, expected.loss, atol=1e-5)
    assert torch.allclose(last.logits, expected.logits[:, -3:], atol=1e-5)


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_generation_and_decoding_from_the_cache_equal_those_after_the_hard_prompt(name: str) -> None:
    stock = build(name, classify=False)
    ids = inputs()["input_ids"][:, :3]
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": 1, "pad_token_id": 1}
    longer = torch.cat([hard().expand(4, -1), ids], 1)
    expected = stock.generate(input_ids=longer, attention_mask=torch.ones_like(longer), **settings)[:, P:]
    model = hardened(prepared(tuning(), stock)[0], hard()).eval()
    written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
    assert torch.equal(written, expected)
    with torch.no_grad():
        first = model(input_ids=ids, use_cache=True)
        second = model(input_ids=written[:, 3:4], past_key_values=first.past_key_values)
        together = model(input_ids=written[:, :4])
    assert torch.allclose(second.logits[:, -1], together.logits[:, -1], atol=1e-5)
    with pytest.raises(UserError, match="use greedy decoding"):
        model.generate(input_ids=ids, past_key_values=first.past_key_values)


def in_peft(name: str, prompt: Tensor, kind: str) -> nn.Module:
    config = PromptTuningConfig(task_type=kind, num_virtual_tokens=P)
    model = get_peft_model(build(name, classify=kind == "SEQ_CLS"), config)
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(prompt)
    return model.eval()


def test_equals_peft() -> None:
    """An encoder on padded rows; a language model, whose logits of the prompt PEFT leaves in."""
    model, _ = prepared(tuning(), build("tiny_bert"))
    assert torch.allclose(logits(model), logits(in_peft("tiny_bert", model.soft_prompt, "SEQ_CLS")), atol=1e-6)
    model, _ = prepared(tuning(), build("tiny_llama", classify=False))
    theirs = logits(in_peft("tiny_llama", model.soft_prompt, "CAUSAL_LM"))
    assert torch.allclose(logits(model), theirs[:, P:], atol=1e-6)


def test_initial_values() -> None:
    table = build("tiny_bert").get_input_embeddings().weight
    model, _ = prepared(tuning(tokens=40), build("tiny_bert"))
    assert all((row == table).all(1).any() for row in model.soft_prompt)
    assert torch.equal(model.soft_prompt, prepared(tuning(tokens=40), build("tiny_bert"))[0].soft_prompt)
    assert not torch.equal(model.soft_prompt, prepared(tuning(tokens=40), build("tiny_bert"), 1)[0].soft_prompt)
    drawn = prepared(tuning(tokens=40, init="random"), build("tiny_bert"))[0].soft_prompt
    assert drawn.std().item() == pytest.approx(1, rel=0.1) and drawn.shape == (40, 32)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_roberta", "tiny_gpt2"])
def test_rows_that_leave_no_room_lose_their_last_tokens(name: str) -> None:
    model, _ = prepared(tuning(), build(name))
    ids = torch.randint(6, 260, (2, 128), generator=torch.Generator().manual_seed(0))
    whole, cut = logits(model, {"input_ids": ids}), logits(model, {"input_ids": ids[:, : 128 - P]})
    assert torch.equal(whole, cut)
    lm, _ = prepared(tuning(), build("tiny_gpt2", classify=False))
    with pytest.raises(UserError, match=r"128 tokens leave no room for the prompt; give rows of at most 123 tokens, or"):
        lm(input_ids=ids)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
def test_comes_apart_and_together(name: str) -> None:
    model, ctx = prepared(tuning(), build(name))
    final = ctx.method.finalize(ctx.method.fit(model, ctx), ctx)
    expected, order = logits(final), [key for key, _ in final.named_parameters()]
    stock, tensors = ctx.method.detach(copy.deepcopy(final))
    assert type(stock) is type(build(name)) and list(stock.state_dict()) == list(build(name).state_dict())
    together = tuning().attach(stock, tensors)
    assert [key for key, _ in together.named_parameters()] == order
    assert torch.equal(logits(together), expected) and torch.equal(logits(final), expected)


def test_no_weight_decay_and_bad_configurations() -> None:
    model, ctx = prepared(tuning(), build("tiny_bert"))
    groups = ctx.method.optimizer(model, ctx.settings).param_groups
    assert [group["weight_decay"] for group in groups if any(p is model.soft_prompt for p in group["params"])] == [0.0]
    with pytest.raises(UserError, match=r"method.init=text is not allowed; allowed: vocab, random"):
        tuning(init="text")
