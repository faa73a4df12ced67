"""Perplexity against a float64 loop written here and against closed forms."""

import copy
import math

import pytest
import torch
from datasets import Dataset

from methods.spec import UserError
from tasks.base import EvalOptions
from tasks.hashing import tokenizer_hash
from tasks.perplexity import Perplexity
from tasks.spec import PerplexityConfig


def config(**changes):
    values = {
        "name": "wikitext2",
        "kind": "perplexity",
        "dataset": "wikitext2",
        "split": "test",
        "context": 16,
        "limit": None,
        "version": 1,
    }
    return PerplexityConfig(**values | changes)


def task(memory, documents, **changes):
    return Perplexity(config(**changes), memory(test=Dataset.from_dict({"text": documents})))


def float64_loop(model, ids, context, windows):
    """Nats of each window's last `context - 1` tokens, one window and one token at a time, in float64."""
    model = model.double().eval()
    totals = []
    for start in range(0, windows * context, context):
        window = ids[start : start + context]
        with torch.no_grad():
            logits = model(torch.tensor([window])).logits[0]
        totals.append(sum((torch.logsumexp(logits[i], 0) - logits[i, window[i + 1]]).item() for i in range(context - 1)))
    return totals


def test_equals_a_float64_loop_on_a_real_model_and_text(folder, shared_models):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = shared_models / "stories15M"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    evaluation = Perplexity(config(context=128, limit=8), folder).evaluate(model, tokenizer, "evaluation", EvalOptions(batch=3))
    text = "\n\n".join(folder.rows("wikitext2", "test").data["text"][:])
    expected = float64_loop(model, tokenizer(text[:20_000])["input_ids"], 128, 8)
    assert evaluation.predictions["nll"] == pytest.approx(expected, rel=1e-4)
    assert evaluation.metrics["perplexity"] == pytest.approx(math.exp(sum(expected) / (8 * 127)), rel=1e-4)
    assert evaluation.predictions["tokens"] == [127] * 8
    assert evaluation.primary == "perplexity" and not evaluation.higher_is_better


def real(path):
    """A model in float32 and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)


def sum_of_log_probabilities(model, ids, context, windows):
    """Nats of `windows` windows, an independent loop: float32 forward, log-probabilities and their sum in float64."""
    total = 0.0
    for start in range(0, windows * context, context):
        window = torch.tensor(ids[start : start + context])
        with torch.no_grad():
            scores = model.eval()(window[None]).logits[0, :-1].double().log_softmax(-1)
        total -= scores[torch.arange(context - 1), window[1:]].sum().item()
    return total


def compare_with_the_loop(folder, path, context, windows=20):
    """The task on the first windows of WikiText-2 raw against the loop, to 1e-4 relative."""
    model, tokenizer = real(path)
    found = Perplexity(config(context=context, limit=windows), folder).evaluate(model, tokenizer, "evaluation", EvalOptions(batch=4))
    text = "\n\n".join(folder.rows("wikitext2", "test").data["text"][:])
    ids = tokenizer(text[: 12 * context * windows])["input_ids"]
    nats = sum_of_log_probabilities(model, ids, context, windows)
    predicted = windows * (context - 1)
    cut = [ids[i : i + context] for i in range(0, windows * context, context)]
    size = sum(len(tokenizer.decode(window).encode()) - len(tokenizer.decode(window[:1]).encode()) for window in cut)
    assert found.metrics["perplexity"] == pytest.approx(math.exp(nats / predicted), rel=1e-4)
    assert found.metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-3)
    return found.metrics


@pytest.mark.accept
@pytest.mark.parametrize("context", [128, 256])
def test_stories15m_equals_the_loop(folder, shared_models, context):
    compare_with_the_loop(folder, shared_models / "stories15M", context)


@pytest.mark.accept
@pytest.mark.parametrize("context", [512, 2048])
def test_smollm2_equals_the_loop(folder, smollm2_dir, context):
    compare_with_the_loop(folder, smollm2_dir, context)


def test_c4_and_ptb_are_joined_by_their_own_rules(memory, byte_tokenizer):
    c4 = Perplexity(config(dataset="c4", context=4, documents=2), memory(test=Dataset.from_dict({"text": ["ab", "cd", "ef"]})))
    assert [window.text for window in c4.windows("evaluation", byte_tokenizer)] == ["ab "]  # <s>ab| |, "cd" is left over
    assert c4.config.protocol() == "c4-test[:2]@ppl-4"
    ptb = Perplexity(config(dataset="ptb", context=4), memory(test=Dataset.from_dict({"sentence": ["a", "b"]})))
    assert [window.text for window in ptb.windows("evaluation", byte_tokenizer)] == ["a\n\n"]


def test_a_perplexity_names_the_tokenizer_that_it_counts(memory, tiny, byte_tokenizer):
    found = task(memory, ["a" * 100], limit=1).evaluate(tiny("gpt2", "CausalLM"), byte_tokenizer, "evaluation", EvalOptions())
    other = copy.deepcopy(byte_tokenizer)
    assert found.tokenizer == tokenizer_hash(other) and len(found.tokenizer) == 16
    other(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer_hash(other) == found.tokenizer
    other.add_tokens(["abc"])
    assert tokenizer_hash(other) != found.tokenizer


@pytest.mark.parametrize("batch", [1, 4])
def test_batches_do_not_matter(memory, tiny, byte_tokenizer, batch):
    model, documents = tiny("gpt2", "CausalLM"), ["some text", "", "more of it " * 9]
    evaluation = task(memory, documents).evaluate(model, byte_tokenizer, "evaluation", EvalOptions(batch=batch))
    ids = byte_tokenizer("\n\n".join(documents))["input_ids"]
    assert len(evaluation.predictions["nll"]) == len(ids) // 16 == 7
    assert evaluation.predictions["nll"] == pytest.approx(float64_loop(model, ids, 16, 7), rel=1e-5)
    assert evaluation.predictions["score"] == pytest.approx([nll / 15 for nll in evaluation.predictions["nll"]])


def test_a_uniform_model_has_the_vocabulary_as_perplexity(memory, tiny, byte_tokenizer):
    model = tiny("llama", "CausalLM")
    torch.nn.init.zeros_(model.lm_head.weight)
    evaluation = task(memory, ["a" * 100], limit=3).evaluate(model, byte_tokenizer, "evaluation", EvalOptions())
    size = len(byte_tokenizer)
    assert evaluation.metrics["perplexity"] == pytest.approx(size, rel=1e-6)
    assert evaluation.metrics["nll"] == pytest.approx(math.log(size), rel=1e-6)
    assert evaluation.metrics["bits_per_byte"] == pytest.approx(math.log2(size), rel=1e-6)  # one token per byte


def test_windows_cut_the_joined_text_without_overlap(memory, byte_tokenizer):
    found = task(memory, ["abcdefg", "hij", "klmnopqrstuvwxyz"], context=8).windows("evaluation", byte_tokenizer)
    assert [window.text for window in found] == ["abcdefg", "\n\nhij\n\nk", "lmnopqrs"]  # the first token is <s>, "tuvwxyz" is dropped
    assert [window.bytes for window in found] == [7, 7, 7]
    assert found[0].ids[0] == byte_tokenizer.bos_token_id


def test_a_window_longer_than_the_model_or_the_text_is_refused(memory, tiny, byte_tokenizer):
    model = tiny("llama", "CausalLM", positions=32)
    with pytest.raises(UserError, match=r"task\.context=33 is more than the model's 32 tokens; type task.context=32 or less"):
        task(memory, ["a" * 100], context=33).evaluate(model, byte_tokenizer, "evaluation", EvalOptions())
    with pytest.raises(UserError, match=r"task\.context=32 is longer than the test text of wikitext2, which has 31 tokens"):
        task(memory, ["a" * 30], context=32).evaluate(model, byte_tokenizer, "evaluation", EvalOptions())
    assert len(task(memory, ["a" * 31], context=32).evaluate(model, byte_tokenizer, "evaluation", EvalOptions()).predictions["nll"]) == 1


def test_the_id_names_context_and_windows(memory, byte_tokenizer):
    text = task(memory, ["a"], context=1024, limit=24)
    assert text.config.protocol() == "wikitext2@ppl-1024[:24]"
    with pytest.raises(UserError, match="no training form"):
        text.encode("train", byte_tokenizer)
