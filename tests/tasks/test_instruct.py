"""Instruction tuning: labels, the loss they give, parts and their ids, scores of perfect and of shuffled answers."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from methods.spec import UserError
from tasks.base import EvalOptions, Rows
from tasks.extraction import gsm8k_gold
from tasks.generation import Completion
from tasks.hashing import content_hash
from tasks.instruct import Instruct
from tasks.spec import InstructConfig
from tasks.suites import COMMONSENSE, SUITES

CONFIG = InstructConfig(
    name="instruct/x", kind="instruct", dataset="commonsense_147k", evaluations=["boolq", "arc_easy"], forms=["generate"],
    template="clean", mask_prompt=False, max_length=400, train_rows=None, selection="last", beams=None, new_tokens=None, limit=None,
    version=1,
)  # fmt: skip
QUESTIONS = {
    "llm_adapters/boolq": [("is ice cold?\n\nAnswer format: true/false", "true"), ("is fire cold?\n\nAnswer format: true/false", "false")],
    "llm_adapters/arc_easy": [("Which?\n\nAnswer1: a Answer2: b Answer3: c\n\nAnswer format: answer1/answer2/answer3", "answer3")],
}


class Toy:
    """Rows in memory by dataset; the training rows are the questions of all test sets."""

    def rows(self, dataset, split):
        pairs = QUESTIONS.get(dataset) or [pair for pairs in QUESTIONS.values() for pair in pairs]
        columns = {"instruction": [q for q, _ in pairs], "answer": [a for _, a in pairs]}
        columns |= {"input": [""] * len(pairs), "output": [f"the correct answer is {a}" for _, a in pairs]}
        data = Dataset.from_dict(columns)
        return Rows(data, "memory", dataset, split, "local", content_hash(data.with_format("arrow")[:]))


def toy(**changes):
    return Instruct(replace(CONFIG, **changes), Toy())


def test_labels_of_whole_and_masked_examples(byte_tokenizer):
    whole, masked = toy().encode("train", byte_tokenizer)[0], toy(mask_prompt=True).encode("train", byte_tokenizer)[0]
    assert whole["labels"] == whole["input_ids"] == masked["input_ids"] and whole["input_ids"][-1] == byte_tokenizer.eos_token_id
    hidden = masked["labels"].count(-100)
    assert masked["labels"] == [-100] * hidden + whole["input_ids"][hidden:]
    prompt = toy().parts()[0].prompts()[0]
    assert byte_tokenizer.decode(masked["input_ids"][1:hidden]) == prompt and prompt.endswith("### Response:\n")
    assert byte_tokenizer.decode(masked["input_ids"][hidden:-1]) == "the correct answer is true"


def test_a_cut_example_loses_its_end_and_one_without_labels_is_left_out(byte_tokenizer, caplog):
    sizes = [len(example["input_ids"]) for example in toy().encode("train", byte_tokenizer)]
    cut = toy(max_length=sizes[0] - 3).encode("train", byte_tokenizer)
    assert [len(e["input_ids"]) for e in cut] == [min(s, sizes[0] - 3) for s in sizes] and cut[0]["labels"][
        -1
    ] != byte_tokenizer.eos_token_id
    assert len(toy(max_length=sizes[0], mask_prompt=True).encode("train", byte_tokenizer)) == 2
    assert "1 of 3 train rows" in caplog.text
    with pytest.raises(UserError, match=r"task\.max_length=8 leaves no response"):
        toy(max_length=8, mask_prompt=True).encode("train", byte_tokenizer)


def test_the_loss_is_the_mean_over_labelled_tokens(tiny, byte_tokenizer):
    from harness.batching import collator

    model, rows = tiny("llama", "CausalLM").eval(), toy(mask_prompt=True).encode("train", byte_tokenizer)
    nats = []
    for row in rows:
        with torch.no_grad():
            scores = model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        nats += [-scores[i - 1, label].item() for i, label in enumerate(row["labels"]) if label != -100]
    with torch.no_grad():
        loss = model(**collator(byte_tokenizer)(rows)).loss.item()
    assert loss == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert len(nats) == sum(len(f"the correct answer is {a}") + 1 for pairs in QUESTIONS.values() for _, a in pairs)


@pytest.mark.parametrize("mask", [True, False])
def test_selection_rows_leave_training_and_are_scored_by_their_loss(mask, tiny, byte_tokenizer):
    task, model = toy(selection="heldout", mask_prompt=mask), tiny("llama", "CausalLM").eval()
    train, selection = task.splits()["train"].data, task.splits()["selection"].data
    assert (len(train), len(selection)) == (2, 1) and not set(train["instruction"]) & set(selection["instruction"])
    example = task.encode("selection", byte_tokenizer)[0]
    with torch.no_grad():
        expected = model(**{key: torch.tensor([value]) for key, value in example.items()}).loss.item()
    found = task.evaluate(model, byte_tokenizer, "selection", EvalOptions())
    assert found.metrics["nll"] == pytest.approx(expected, rel=1e-5) and not found.higher_is_better


def test_each_test_set_and_form_has_an_id_of_its_own():
    task = toy(forms=["generate", "loglikelihood-answer"], limit=1)
    names = [part.protocol() for part in task.parts()]
    assert names[0] == "commonsense_147k/boolq@generate-whole-400-beam4-32[:1]"
    assert names[3] == "commonsense_147k/arc_easy@loglikelihood-answer-whole-400[:1]"
    assert {len(part.splits()["evaluation"].data) for part in task.parts()} == {1}
    changes = [{"mask_prompt": True}, {"max_length": 256}, {"template": "llm_adapters_exact"}, {"train_rows": 2}, {"selection": "heldout"}]
    changes += [{"beams": 1}, {"new_tokens": 8}, {"limit": None}]
    ids = {toy(**({"limit": 1} | change)).parts()[0].protocol() for change in changes}
    assert len(ids) == len(changes) and names[0] not in ids
    assert CONFIG.reads() == {
        "train": ("commonsense_147k", "train"), "boolq": ("llm_adapters/boolq", "test"), "arc_easy": ("llm_adapters/arc_easy", "test"),
    }  # fmt: skip


@pytest.mark.parametrize("template", ["clean", "llm_adapters_exact"])
def test_the_likeliest_answer_by_single_passes(template, tiny, byte_tokenizer):
    model, task = tiny("llama", "CausalLM", positions=1024).eval(), toy(forms=["loglikelihood-answer"], template=template)
    for part in task.parts():
        found = part.evaluate(model, byte_tokenizer, "evaluation", EvalOptions(batch=2))
        for row, (prompt, legal) in enumerate(zip(part.prompts(), part.legal(), strict=True)):
            context, values = byte_tokenizer.encode(f"{prompt}the correct answer is"), []
            for answer in legal:
                ids = context + byte_tokenizer.encode(f" {answer}", add_special_tokens=False)
                with torch.no_grad():
                    scores = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
                values.append(sum(scores[i - 1, ids[i]].item() for i in range(len(context), len(ids))))
            assert found.predictions["loglikelihoods"][row] == pytest.approx(values, abs=1e-3)
            assert found.predictions["prediction"][row] == legal[values.index(max(values))]
        assert found.metrics["accuracy"] == sum(found.predictions["score"]) / len(part.gold)
    assert task.parts()[1].legal() == [["answer1", "answer2", "answer3"]]


def test_answers_are_scored_on_the_tokens_that_training_labels(byte_tokenizer):
    task = toy(forms=["loglikelihood-answer"], mask_prompt=True)
    context, answer = task.parts()[1].pairs(byte_tokenizer)[2]
    assert [*context, *answer, byte_tokenizer.eos_token_id] == task.encode("train", byte_tokenizer)[2]["input_ids"]
    assert byte_tokenizer.decode(answer) == " answer3"


def test_a_model_that_says_nothing_useful_is_invalid_not_only_wrong(tiny, byte_tokenizer):
    model = tiny("llama", "CausalLM")
    found = toy(new_tokens=5).parts()[0].evaluate(model, byte_tokenizer, "evaluation", EvalOptions())
    assert found.metrics == {"accuracy": 0.0, "invalid": 1.0, "majority": 0.5} and found.primary == "accuracy"
    assert found.predictions["extracted"] == ["", ""] and max(found.predictions["completion_tokens"]) <= 5
    prompts = toy().parts()[0].prompts()
    assert found.predictions["prompt_tokens"] == [len(prompt) + 1 for prompt in prompts]
    narrow = tiny("llama", "CausalLM", positions=64)
    cut = toy(new_tokens=14).parts()[0].evaluate(narrow, byte_tokenizer, "evaluation", EvalOptions())
    assert cut.predictions["prompt_tokens"] == [50, 50]
    with pytest.raises(UserError, match=r"task\.new_tokens=64 leaves no room"):
        toy(new_tokens=64).parts()[0].evaluate(narrow, byte_tokenizer, "evaluation", EvalOptions())


def perfect(name, gold):
    """What a model that knows the answer writes."""
    if name == "gsm8k_metamath":
        return f"So it is {gsm8k_gold(gold)}.\nThe answer is: {gsm8k_gold(gold)}"
    if name == "aqua":
        return f"so it is ({gold})"
    return f"the correct answer is {gold}"


def scored(part, texts):
    return part.score([Completion([0], text) for text in texts], [1] * len(texts)).metrics


@pytest.mark.parametrize("name", SUITES)
def test_perfect_answers_score_one_and_shuffled_ones_chance(name, folder):
    part = Instruct(replace(CONFIG, evaluations=[name]), folder).parts()[0]
    assert part.splits()["evaluation"].official
    gold, n = part.gold, len(part.gold)
    texts = [perfect(name, answer) for answer in gold]
    metrics = scored(part, texts)
    assert (metrics["accuracy"], metrics["invalid"]) == (1.0, 0.0)
    chance = sum((count / n) ** 2 for count in Counter(part.suite.extract(text) for text in texts).values())
    metrics = scored(part, random.Random(0).sample(texts, n))
    assert abs(metrics["accuracy"] - chance) < 5 * math.sqrt(chance * (1 - chance) / n) and metrics["invalid"] == 0.0


def test_published_class_balance(folder):
    found = {
        part.name: scored(part, [""] * len(part.gold)) for part in Instruct(replace(CONFIG, evaluations=[*COMMONSENSE]), folder).parts()
    }
    majority = {"boolq": 2033 / 3270, "piqa": 928 / 1838, "winogrande": 639 / 1267, "openbookqa": 138 / 500}
    assert {name: found[name]["majority"] for name in majority} == majority
    assert all(metrics["accuracy"] == 0.0 and metrics["invalid"] == 1.0 for metrics in found.values())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"evaluations": ["copa"]}, r"task\.evaluations=copa is not allowed"),
        ({"evaluations": []}, "give at least one of"),
        ({"evaluations": ["boolq", "boolq"]}, "none twice"),
        ({"forms": ["generate", "chat"]}, r"task\.forms=chat is not allowed"),
        ({"evaluations": ["gsm8k"], "forms": ["loglikelihood-answer"]}, "gsm8k has no list of legal answers"),
        ({"template": "chatml"}, r"task\.template=chatml"),
        ({"dataset": "piqa"}, r"task\.dataset=piqa"),
        ({"beams": 0}, r"task\.beams=0 is out of range"),
        ({"selection": "dev_best"}, r"task\.selection=dev_best"),
    ],
)
def test_what_cannot_be_is_refused(change, sentence):
    with pytest.raises(UserError, match=sentence):
        replace(CONFIG, **change)
