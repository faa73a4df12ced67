"""Label words against passes by hand, what is trained on, cuts that leave the wording whole, few-shot draws."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset

from harness.tiny import byte_tokenizer
from methods.spec import UserError
from tasks.base import EvalOptions
from tasks.classification import DATASETS
from tasks.spec import VerbalConfig
from tasks.verbal import Verbal
from tasks.wordings import PROMPT, TEXT

WHOLE = EvalOptions(batch=4)


def config(dataset="toy/sentiment", **changes):
    values = {
        "name": dataset, "kind": "verbal", "dataset": dataset, "metric": "accuracy", "form": "cloze", "shots": None, "draw": 0,
        "selection": "last", "max_length": 128, "limit": None, "version": 1,
    }  # fmt: skip
    return VerbalConfig(**values | changes)


def sentences(n, start=0):
    texts = [f"film {i} was " + "so " * (i % 5) + "good" for i in range(start, start + n)]
    return Dataset.from_dict({"sentence": texts, "label": [i % 2 for i in range(n)]})


@pytest.fixture
def toy(memory):
    def build(train=100, dev=12, **changes):
        return Verbal(config(**changes), memory(train=sentences(train), validation=sentences(dev, 1000)))

    return build


def scored(example):
    return [label for label in example["labels"] if label != -100]


def test_a_cloze_scores_the_word_at_the_mask(toy, tiny):
    tokenizer, model = byte_tokenizer(), tiny("bert", "MaskedLM", positions=200).eval()
    model.resize_token_embeddings(len(tokenizer))
    task = toy()
    found = task.evaluate(model, tokenizer, "evaluation", WHOLE)
    minus, plus = (tokenizer.encode(word, add_special_tokens=False)[0] for word in "-+")
    for row, values in zip(task.splits()["evaluation"].data, found.predictions["logprobs"], strict=True):
        batch = tokenizer(f"{row['sentence']} = [MASK]", return_tensors="pt")
        at = batch["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        with torch.no_grad():
            expected = model(**batch).logits[0, at].log_softmax(-1)
        assert values == pytest.approx(expected[[minus, plus]].tolist(), abs=1e-4)
    best = [int(plus > minus) for minus, plus in found.predictions["logprobs"]]
    assert found.predictions["prediction"] == best and 0 < found.metrics["accuracy"] < 1
    assert found.metrics["accuracy"] == sum(a == b for a, b in zip(best, found.predictions["label"], strict=True)) / 12


def test_a_prompt_scores_the_words_that_follow_it(toy, tiny):
    tokenizer, model = byte_tokenizer(decoder=True), tiny("llama", "CausalLM").eval()
    model.resize_token_embeddings(len(tokenizer))
    task = toy(form="text")
    found = task.evaluate(model, tokenizer, "evaluation", WHOLE)
    row, values = task.splits()["evaluation"].data[0], found.predictions["logprobs"][0]
    context = tokenizer.encode(f"toy sentence: {row['sentence']} answer:")
    for word, value in zip(("negative", "positive"), values, strict=True):
        answer = [*tokenizer.encode(f" {word}"), tokenizer.eos_token_id]
        with torch.no_grad():
            scores = model(torch.tensor([context + answer])).logits[0].double().log_softmax(-1)
        assert value == pytest.approx(sum(scores[len(context) + i - 1, token].item() for i, token in enumerate(answer)), abs=1e-3)


def test_only_the_answer_is_trained_on(toy):
    masked, causal = byte_tokenizer(), byte_tokenizer(decoder=True)
    example = toy().encode("train", masked)[1]
    assert masked.decode(example["input_ids"]) == "[CLS]film 1 was so good = [MASK][SEP]" and masked.decode(scored(example)) == "+"
    assert example["labels"].index(scored(example)[0]) == example["input_ids"].index(masked.mask_token_id)
    example = toy(form="prompt").encode("train", causal)[0]
    assert causal.decode(example["input_ids"]) == "film 0 was good = -" and causal.decode(scored(example)) == " -"
    example = toy(form="text").encode("train", causal)[1]
    assert causal.decode(example["input_ids"]) == "toy sentence: film 1 was so good answer: positive[EOS]"
    assert causal.decode(scored(example)) == " positive[EOS]"


def test_long_texts_are_cut_and_the_wording_stays(memory):
    rows = Dataset.from_dict({"sentence1": ["a" * 300, "bb"], "sentence2": ["c" * 20, "d" * 200], "label": [0, 1]})
    task = Verbal(config("toy/entailment", max_length=60), memory(train=rows, validation=rows))
    tokenizer = byte_tokenizer()
    texts = [tokenizer.decode(example["input_ids"]) for example in task.encode("train", tokenizer)]
    assert texts[0] == f"[CLS]{'a' * 35} [MASK] {'c' * 20}[SEP]" and texts[1] == f"[CLS]bb [MASK] {'d' * 53}[SEP]"
    task = Verbal(config("toy/entailment", form="text", max_length=100), memory(train=rows, validation=rows))
    example = task.encode("train", byte_tokenizer(decoder=True))[0]
    assert byte_tokenizer(decoder=True).decode(example["input_ids"]).endswith(f"sentence2: {'c' * 20} answer: entailment[EOS]")
    assert len(example["input_ids"]) <= 100
    with pytest.raises(UserError, match=r"task\.max_length=8 leaves no room"):
        Verbal(config("toy/entailment", form="text", max_length=8), memory(train=rows, validation=rows)).encode("train", tokenizer)


def test_five_fixed_draws_per_class_and_the_rest_without_labels(toy):
    draws = [toy(shots=16, draw=i, selection="heldout").splits() for i in range(5)]
    for splits in draws:
        assert {role: len(rows.data) for role, rows in splits.items()} == {"train": 32, "evaluation": 12, "selection": 32, "unlabelled": 36}
        assert sum(splits["train"].data["label"][:]) == 16 == sum(splits["selection"].data["label"][:])
        assert splits["unlabelled"].data.column_names == ["sentence"]
        everything = [text for role in ("train", "selection", "unlabelled") for text in splits[role].data["sentence"][:]]
        assert sorted(everything) == sorted(sentences(100)["sentence"])
    assert len({splits["train"].sha256 for splits in draws}) == 5
    assert draws[0]["train"].sha256 == toy(shots=16).splits()["train"].sha256
    task = toy(shots=16)
    assert len(task.splits()["unlabelled"].data) == 68 and not any(map(scored, task.encode("unlabelled", byte_tokenizer())))
    with pytest.raises(UserError, match=r"task\.shots=30 needs 60 rows of class 0 in toy/sentiment, which has 50"):
        toy(shots=30, selection="heldout").splits()


def test_protocol_ids():
    assert config("glue/rte", shots=16, draw=3, selection="heldout").protocol() == "glue/rte@cloze-k16-d3-heldout"
    assert config("glue/rte", form="prompt", shots=0, limit=9).protocol() == "glue/rte@prompt-k0[:9]"
    assert config("glue/stsb", form="text", metric="pearson", max_length=512).protocol() == "glue/stsb@text-last-512"
    with pytest.raises(UserError, match=r"glue/stsb has no label words in the form cloze"):
        config("glue/stsb", metric="pearson")
    with pytest.raises(UserError, match=r"task\.draw=5 is out of range"):
        config(shots=16, draw=5)
    with pytest.raises(UserError, match=r"task\.shots=0 trains nothing to select from"):
        config(shots=0, selection="heldout")


def test_every_class_has_a_word_and_every_column_a_place():
    for table in (PROMPT, TEXT):
        for name, wording in table.items():
            columns = DATASETS[name]
            assert len(wording.words) == (columns.labels if columns.labels > 1 else 26) == len(set(wording.words))
            assert all(f"{{{column}}}" in wording.causal for column in columns.texts)
            assert table is TEXT or all(f"{{{column}}}" in wording.masked for column in columns.texts)
            assert table is TEXT or wording.masked.count("{answer}") == 1
    assert set(TEXT) == set(DATASETS) and set(DATASETS) - set(PROMPT) == {"glue/stsb", "toy/similarity"}


def test_numbers_are_answered_as_the_nearest_fifth(memory):
    rows = Dataset.from_dict({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [3.75, 0.0]})
    task = Verbal(config("glue/stsb", form="text", metric="pearson"), memory(train=rows, validation=rows))
    tokenizer = byte_tokenizer(decoder=True)
    assert [tokenizer.decode(scored(example)) for example in task.encode("train", tokenizer)] == [" 3.8[EOS]", " 0.0[EOS]"]


def test_a_word_of_several_tokens_is_refused_by_a_cloze(memory):
    task = Verbal(config("glue/sst2"), memory(train=sentences(4), validation=sentences(4)))
    with pytest.raises(UserError, match="the label word 'terrible' is no single token"):
        task.encode("train", byte_tokenizer())


def test_real_words_are_single_tokens_of_a_real_vocabulary(folder, minilm_dir: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
    task = Verbal(config("glue/sst2", shots=16), folder)
    assert tokenizer.convert_ids_to_tokens([ids[0] for ids in task.words(tokenizer)]) == ["terrible", "great"]
    ids = task.encode("train", tokenizer)[0]["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[-5:] == ["it", "was", "[MASK]", ".", "[SEP]"]
