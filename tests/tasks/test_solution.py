"""Worked solutions: what is trained on, what counts as right, and training forms of choices and text."""

import pytest
from datasets import Dataset

from harness.tiny import byte_tokenizer
from methods.spec import UserError
from tasks import solution
from tasks.base import EvalOptions
from tasks.choice import Choice
from tasks.generation import Completion
from tasks.perplexity import Perplexity
from tasks.solution import Solution, extract
from tasks.spec import ChoiceConfig, PerplexityConfig, SolutionConfig, trains

ROWS = {"question": ["1 and 2?", "9 and 8?"], "answer": ["1+2=3\n#### 3", "9+8=17\n#### 17"]}


def config(**changes):
    values = {
        "name": "toy/arithmetic", "kind": "solution", "dataset": "toy/arithmetic-1", "split": "test", "mask_prompt": True,
        "new_tokens": 32, "limit": None, "version": 1,
    }  # fmt: skip
    return SolutionConfig(**values | changes)


@pytest.fixture
def task(memory):
    return lambda **changes: Solution(config(**changes), memory(train=Dataset.from_dict(ROWS), test=Dataset.from_dict(ROWS)))


def scored(tokenizer, example):
    return tokenizer.decode([label for label in example["labels"] if label != -100])


def test_the_loss_is_on_the_solution_or_on_everything(task):
    tokenizer = byte_tokenizer(decoder=True)
    example = task().encode("train", tokenizer)[0]
    assert tokenizer.decode(example["input_ids"]) == "1 and 2?\n1+2=3\n#### 3[EOS]"
    assert scored(tokenizer, example) == "1+2=3\n#### 3[EOS]"
    whole = task(mask_prompt=False).encode("train", tokenizer)[0]
    assert whole["input_ids"] == example["input_ids"] == whole["labels"]


@pytest.mark.parametrize(
    ("text", "number"),
    [("1+1=2\n#### 2", "2"), ("#### 1,234", "1234"), ("####-7", "-7"), ("#### 3\n#### 4", "4"), ("#### x", None), ("12", None), ("", None)],
)
def test_the_number_after_the_last_mark_counts(text, number):
    assert extract(text) == number


def test_exact_match_compares_numbers_and_steps_compare_solutions(task, monkeypatch):
    said = ["1+3=3\n#### 3", "no number"]
    seen = []

    def complete(model, tokenizer, prompts, decoding, options):
        seen.append([tokenizer.decode(ids) for ids in prompts])
        return [Completion([], text) for text in said]

    monkeypatch.setattr(solution, "complete", complete)
    found = task().evaluate(None, byte_tokenizer(decoder=True), "evaluation", EvalOptions())
    assert seen == [["1 and 2?\n", "9 and 8?\n"]]
    assert found.metrics == {"exact_match": 0.5, "invalid": 0.5, "steps": 0.0} and found.predictions["score"] == [1.0, 0.0]
    assert found.predictions["prediction"] == ["3", None] and found.predictions["label"] == ["3", "17"]


def test_protocol_ids_name_loss_and_decoding():
    assert config().protocol() == "toy/arithmetic-1@exact-masked-greedy32"
    assert config(dataset="toy/arithmetic-2:5", mask_prompt=False, limit=9).protocol() == "toy/arithmetic-2:5@exact-whole-greedy32[:9]"
    with pytest.raises(UserError, match=r"task\.dataset=piqa has no worked solutions"):
        config(dataset="piqa")


def test_choices_and_text_train_only_where_a_split_is_named(memory):
    tokenizer = byte_tokenizer(decoder=True)
    row = {"question": "To eat, use", "choices": {"text": ["a pen", "a fork"], "label": ["A", "B"]}, "answerKey": "B"}
    values = ("toy/choice", "choice", "toy/choice", "accuracy", "test", None, 1)
    rows = memory(train=Dataset.from_list([row]), test=Dataset.from_list([row]))
    tuned, measured = ChoiceConfig(*values, "train"), ChoiceConfig(*values)
    example = Choice(tuned, rows).encode("train", tokenizer)[0]
    assert tokenizer.decode(example["input_ids"]) == "To eat, use a fork"
    assert scored(tokenizer, example) == " a fork"
    assert tuned.protocol() == "toy/choice@loglikelihood-tuned" and measured.protocol() == "toy/choice@loglikelihood"
    assert trains(tuned) and not trains(measured) and set(measured.reads()) == {"test"} and set(tuned.reads()) == {"test", "train"}
    text = memory(train=Dataset.from_dict({"text": ["abcdefgh"]}), test=Dataset.from_dict({"text": ["abcd"]}))
    values = ("toy/corpus", "perplexity", "toy/corpus", "test", 3, None, 1)
    windows = Perplexity(PerplexityConfig(*values, "train"), text).encode("train", tokenizer)
    assert [tokenizer.decode(window["input_ids"]) for window in windows] == ["abc", "def"]
    assert all(window["labels"] == window["input_ids"] for window in windows)
    assert PerplexityConfig(*values, "train").protocol() == "toy/corpus@ppl-3-tuned"
