"""A task that starts from another one: the same method is run there first, its backbone is taken, the head is new."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from harness import needs
from harness.models import take_backbone
from methods.roles import head_names
from methods.spec import Traits, UserError
from tasks.spec import ClassificationConfig
from tests.trees import Tree


def task(**changes):
    values = {
        "name": "glue/rte", "kind": "classification", "dataset": "glue/rte", "metric": "accuracy", "rows": "official",
        "selection": "heldout", "max_length": 64, "limit": None, "version": 1, "init": "glue/mnli",
    }  # fmt: skip
    return ClassificationConfig(**values | changes)


def resolved(task):
    return SimpleNamespace(cell=SimpleNamespace(task=task, method="lora", method_config=object()), traits=Traits())


def test_the_needed_cell_is_the_same_method_on_the_other_task():
    (spec,) = needs.specs(resolved(task()))
    asked = ["method=lora", "method.r=4", "task=glue/rte", "task.init=glue/mnli", "task.limit=9", "recipe.lr=1", "budget=short", "seed=3"]
    made = needs.overrides_of(spec, asked)
    assert made[: -len(needs.FIXED)] == ["method=lora", "method.r=4", "budget=short", "seed=3", "task=glue/mnli", "task.max_length=64"]
    assert needs.specs(resolved(task(init=None))) == ()


def test_where_it_starts_is_part_of_the_id():
    assert task().protocol() == "glue/rte@heldout-from-mnli-64"
    with pytest.raises(UserError, match=r"task\.init=glue/rte is the task itself"):
        task(init="glue/rte")


def classifier(seed, **changes):
    shape = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model("roberta", **shape | changes))


def test_the_backbone_is_taken_and_the_head_is_not():
    model, other = classifier(0, num_labels=2), classifier(1, num_labels=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    take_backbone(model, other)
    heads, given = head_names(model), other.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name] if name in heads else given[name]), name
    assert any(not torch.equal(before[name], given[name]) for name in before if name not in heads)
    with pytest.raises(UserError, match=r"task\.init: the finished model has no .* of this shape"):
        take_backbone(model, classifier(1, intermediate_size=4))


def test_a_cell_starts_from_the_finished_one(tmp_path: Path):
    tree = Tree(tmp_path)
    argv = ("method=bitfit", "model=tiny_bert", "task=toy/sentiment", "task.init=toy/entailment", "task.limit=8", "budget=smoke")
    done = tree.run(*argv, "precision=float32")
    assert done.returncode == 0, done.stderr
    records = {record.identity["task"]["name"]: record for record in tree.store.records()}
    made, first = records["toy/sentiment"], records["toy/entailment"]
    assert made.dependencies["init"]["cell"] == first.cell and made.identity["dependencies"] == {"init": first.cell}
    assert made.results[0].protocol == "toy/sentiment@last-from-entailment[:8]"
    assert first.results[0].protocol == "toy/entailment@last"
