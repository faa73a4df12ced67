"""Multiple choice against lm-eval 0.4.13 on real rows, against a loop without batches, and its edge cases."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset

from methods.spec import UserError
from tasks.base import EvalOptions
from tasks.choice import Choice
from tasks.likelihood import encode_pair, log_likelihoods
from tasks.spec import ChoiceConfig
from tasks.templates import TEMPLATES

STOCK = {
    "piqa": "piqa/piqa.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "social_iqa": "siqa/siqa.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
}


def config(dataset, **changes):
    split = "test" if dataset in ("arc_easy", "arc_challenge", "openbookqa") else "validation"
    values = {
        "name": f"commonsense/{dataset}",
        "kind": "choice",
        "dataset": dataset,
        "metric": "accuracy",
        "split": split,
        "limit": None,
        "version": 1,
    }
    return ChoiceConfig(**values | changes)


def stock_task(dataset: str, rows: Dataset, work: Path) -> str:
    """A YAML file that includes lm-eval's stock task and reads our rows; returns the task's name."""
    import lm_eval

    if dataset == "boolq":  # the stock task reads SuperGLUE's column
        rows = rows.add_column("label", [int(answer) for answer in rows["answer"]])
    rows.to_parquet(work / "rows.parquet")
    stock = Path(lm_eval.__file__).parent / "tasks" / STOCK[dataset]
    files = {"data_files": {"validation": str(work / "rows.parquet")}, "cache_dir": str(work)}
    place = {"dataset_path": "parquet", "dataset_name": None, "dataset_kwargs": files}
    splits = {"training_split": None, "validation_split": "validation", "test_split": None}
    task = {"include": str(stock), "task": f"local_{dataset}", "tag": "local", **place, **splits}
    (work / f"{dataset}.yaml").write_text(yaml.safe_dump(task))
    return f"local_{dataset}"


def reference(dataset, rows, work, model, tokenizer):
    """Per example: log-likelihoods and the accuracies of `lm_eval.simple_evaluate`."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    name = stock_task(dataset, rows, work)
    lm = HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=8)
    manager = TaskManager(include_path=str(work), include_defaults=False)
    out = simple_evaluate(model=lm, tasks=[name], task_manager=manager, bootstrap_iters=0, log_samples=True)
    samples = sorted(out["samples"][name], key=lambda sample: sample["doc_id"])
    return [[value for value, _ in sample["filtered_resps"]] for sample in samples], samples, out["results"][name]


def compare(dataset, folder, work, model, tokenizer, limit):
    """Both on the first rows; returns the largest difference of a log-likelihood."""
    task = Choice(config(dataset, limit=limit), folder)
    values, samples, results = reference(dataset, task.splits()["evaluation"].data, work, model, tokenizer)
    evaluation = task.evaluate(model, tokenizer, "evaluation", EvalOptions(batch=8))
    ours = evaluation.predictions
    assert len(ours["example"]) == limit == len(values)
    assert ours["prediction"] == [int(np.argmax(v)) for v in values]
    assert ours["score"] == [sample["acc"] for sample in samples]
    assert evaluation.metrics["accuracy"] == pytest.approx(float(results["acc,none"]), abs=1e-12)
    assert ("accuracy_norm" in evaluation.metrics) == ("acc_norm,none" in results)
    if "accuracy_norm" in evaluation.metrics:
        norm = [float(a == b) for a, b in zip(ours["prediction_norm"], ours["label"], strict=True)]
        assert norm == [sample["acc_norm"] for sample in samples]
        assert evaluation.metrics["accuracy_norm"] == pytest.approx(float(results["acc_norm,none"]), abs=1e-12)
    return max(float(np.abs(np.subtract(a, b)).max()) for a, b in zip(ours["loglikelihoods"], values, strict=True))


@pytest.mark.parametrize("dataset", STOCK)
def test_equals_lm_eval_on_real_rows(dataset, folder, tmp_path, tiny, byte_tokenizer):
    limit = 4 if dataset == "boolq" else 12
    assert compare(dataset, folder, tmp_path, tiny("llama", "CausalLM", positions=300), byte_tokenizer, limit) <= 1e-3


@pytest.mark.accept
@pytest.mark.parametrize("dataset", STOCK)
def test_smollm2_chooses_as_lm_eval_does_on_200_rows(dataset, folder, tmp_path, smollm2_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    assert compare(dataset, folder, tmp_path, model, AutoTokenizer.from_pretrained(smollm2_dir), limit=200) <= 1e-3


def test_questions_as_they_are_scored():
    row = {
        "activity_label": "Baking",
        "ctx_a": "[header] How to bake [title] Mix.",
        "ctx_b": "the Cook",
        "endings": ["a [x] b", "c [title] d"],
        "label": "1",
    }
    question = TEMPLATES["hellaswag"].question(row)
    assert question.contexts == ["Baking: How to bake. Mix. The cook"] * 2
    assert question.continuations == [" a b", " c. d"] and question.gold == 1 and question.lengths() == [3, 4]
    row = {"sentence": "Ann helped Bob because _ was kind. ", "option1": "Ann", "option2": "Bob", "answer": "2"}
    question = TEMPLATES["winogrande"].question(row)
    assert question.contexts == ["Ann helped Bob because Ann", "Ann helped Bob because Bob"]
    assert question.continuations == [" was kind."] * 2 and question.gold == 1


def by_hand(model, context, continuation):
    """Sum of the continuation's log-probabilities, one forward pass, no padding."""
    with torch.no_grad():
        scores = model(torch.tensor([context + continuation])).logits[0].double().log_softmax(-1)
    return sum(scores[len(context) + i - 1, token].item() for i, token in enumerate(continuation))


def test_log_likelihoods_equal_single_passes_whatever_the_batch(tiny):
    model = tiny("llama", "CausalLM")
    generator = np.random.default_rng(0)
    contexts = [generator.integers(3, 250, n).tolist() for n in (1, 5, 90, 17, 40)]
    # two of the three continuations of a context share one forward pass
    pairs = [(context, generator.integers(3, 250, n).tolist()) for context in contexts for n in (1, 1, 7)]
    expected = [by_hand(model.eval(), *pair) for pair in pairs]
    for batch in (1, 4, 32):
        assert log_likelihoods(model, pairs, 512, EvalOptions(batch=batch)) == pytest.approx(expected, abs=1e-4)


def test_too_long_inputs_lose_their_left_end(tiny):
    model, tokens = tiny("llama", "CausalLM"), np.random.default_rng(1).integers(3, 250, 40).tolist()
    short, long = (tokens[30:35], tokens[35:]), (tokens[:35], tokens[35:])
    values = log_likelihoods(model, [long, short], 9, EvalOptions())
    assert values[0] == pytest.approx(values[1], abs=1e-5)  # 9 inputs + the last token = the last 10 of 40
    assert log_likelihoods(model, [long], 10, EvalOptions())[0] != pytest.approx(values[0], abs=1e-3)
    with pytest.raises(UserError, match="has 11 tokens; the model takes at most 9"):
        log_likelihoods(model, [(tokens[:3], tokens[:11])], 9, EvalOptions())


def test_space_at_the_end_of_a_context_belongs_to_the_continuation(byte_tokenizer):
    context, continuation = encode_pair(byte_tokenizer, "ab ", "cd")
    assert byte_tokenizer.decode(context) == "<s>ab" and byte_tokenizer.decode(continuation) == " cd"
    with pytest.raises(UserError, match="no tokens of its own"):
        encode_pair(byte_tokenizer, "ab", "")


def piqa_rows(memory):
    rows = {"goal": ["boil water", "go"], "sol1": ["heat the kettle", "no"], "sol2": ["x", "no"], "label": [1, 1]}
    return memory(validation=Dataset.from_dict(rows))


def uniform(model):
    """Every token has probability 1/V: a shorter choice wins the sum, and equal lengths tie."""
    torch.nn.init.zeros_(model.lm_head.weight)
    return model


def test_sum_and_length_normalised_choice_differ_and_ties_go_to_the_first(memory, tiny, byte_tokenizer):
    model = uniform(tiny("llama", "CausalLM"))
    evaluation = Choice(config("piqa", metric="accuracy_norm"), piqa_rows(memory)).evaluate(
        model, byte_tokenizer, "evaluation", EvalOptions()
    )
    nats = np.log(len(byte_tokenizer))
    assert evaluation.predictions["loglikelihoods"][0] == pytest.approx([-16 * nats, -2 * nats], rel=1e-5)
    assert evaluation.predictions["prediction"] == [1, 0]
    assert evaluation.predictions["prediction_norm"] == [0, 0]  # 16/15 against 2/1 tokens per character
    assert evaluation.metrics == {"accuracy": 0.5, "accuracy_norm": 0.0} and evaluation.primary == "accuracy_norm"
    assert evaluation.predictions["score"] == [0.0, 0.0]


def test_rows_are_the_first_of_the_split(memory):
    task = Choice(config("piqa", limit=1), piqa_rows(memory))
    rows = task.splits()["evaluation"]
    assert rows.data["goal"][:] == ["boil water"] and rows.split == "validation[:1]" and set(task.splits()) == {"evaluation"}
    assert task.config.protocol() == "piqa@loglikelihood[:1]"


def test_what_the_task_cannot_do_is_refused(memory, byte_tokenizer):
    with pytest.raises(UserError, match="no training form"):
        Choice(config("piqa"), piqa_rows(memory)).encode("train", byte_tokenizer)
    with pytest.raises(UserError, match=r"task\.metric=accuracy_norm is not allowed; allowed: accuracy"):
        Choice(config("winogrande", metric="accuracy_norm"), None)
    with pytest.raises(UserError, match=r"task\.dataset=copa"):
        Choice(config("copa"), None)
