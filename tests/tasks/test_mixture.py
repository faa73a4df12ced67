"""Several tasks under one head: losses and predictions are those of each row's own task, under any wrapper."""

import copy

import pytest
import torch
from datasets import Dataset
from omegaconf import OmegaConf
from peft import LoraConfig, PolyConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy

from harness import cell as spine
from harness.batching import collator
from harness.compose import compose
from harness.resolve import resolve
from harness.store import Store
from harness.typed import build as typed
from methods.spec import UserError
from tasks.base import EvalOptions
from tasks.classification import Classification
from tasks.mixture import Mixture, own_task_loss
from tasks.sources import Sources
from tasks.spec import ClassificationConfig, MixtureConfig, trains
from tests.methods.fakes import build

VALUES = {
    "name": "mixture/toy2", "kind": "mixture", "parts": ["toy/sentiment", "toy/entailment"], "sampling": "proportional",
    "selection": "last", "max_length": 128, "limit": 24, "version": 1,
}  # fmt: skip
OWNER = torch.tensor([0, 0, 1, 1, 1])


def config(**changes) -> MixtureConfig:
    return typed(MixtureConfig, VALUES | changes, "task")


@pytest.fixture
def made(tmp_path):
    return lambda **changes: Mixture(config(**changes), Sources(None, tmp_path, offline=True))


@pytest.fixture
def batch(made, byte_tokenizer):
    """Three rows of each task, mixed."""
    mixture = made()
    examples = mixture.encode("train", byte_tokenizer)
    return mixture, collator(byte_tokenizer)([examples[i] for i in (0, 4000, 1, 4001, 2, 4002)])


def expected(logits, batch, sizes):
    """Row by row, on the slice of its own task."""
    losses, offsets = [], [0, sizes[0]]
    for row, task, label in zip(logits, batch["task_ids"].tolist(), batch["labels"].tolist(), strict=True):
        start = offsets[task]
        losses.append(cross_entropy(row[start : start + sizes[task]][None], torch.tensor([label - start])))
    return torch.stack(losses).mean()


def test_the_loss_of_a_row_is_that_of_its_own_task():
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([1, 4, 2, 0])
    loss = own_task_loss(logits, labels, OWNER)
    rows = [(0, slice(0, 2), 1), (1, slice(2, 5), 2), (2, slice(2, 5), 0), (3, slice(0, 2), 0)]
    by_hand = torch.stack([cross_entropy(logits[i, part][None], torch.tensor([label])) for i, part, label in rows]).mean()
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-6)
    loss.backward()
    other = OWNER[None] != OWNER[labels][:, None]
    assert (logits.grad[other] == 0).all() and (logits.grad[~other] != 0).all() and logits.grad.isfinite().all()


def test_rows_carry_task_ids_and_joint_labels(made, byte_tokenizer):
    mixture = made()
    examples = mixture.encode("train", byte_tokenizer)
    assert len(examples) == len(mixture.splits()["train"].data) == 8000
    assert [e["task_ids"] for e in examples] == [0] * 4000 + [1] * 4000
    alone = Classification(single("toy/entailment"), mixture.sources).encode("train", byte_tokenizer)
    assert [e["labels"] for e in examples[4000:]] == [e["labels"] + 2 for e in alone]
    assert [e["input_ids"] for e in examples[4000:4010]] == [e["input_ids"] for e in alone[:10]]
    assert mixture.head.num_labels == 4 and mixture.owner.tolist() == [0, 0, 1, 1]


def test_the_collator_makes_a_long_tensor_of_the_ids(batch):
    ids = batch[1]["task_ids"]
    assert ids.dtype == torch.long and ids.tolist() == [0, 1, 0, 1, 0, 1] and batch[1]["labels"].dtype == torch.long


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_roberta", "tiny_llama", "tiny_gpt2"])
def test_every_architecture_takes_the_batch_and_gives_the_own_loss(name, batch):
    mixture, rows = batch
    model = build(name, labels=4)
    mixture.attach(model)
    found = model(**rows)
    assert found.loss.item() == pytest.approx(expected(found.logits, rows, (2, 2)).item(), abs=1e-5)
    plain = cross_entropy(found.logits, rows["labels"])
    assert abs(found.loss.item() - plain.item()) > 0.1
    assert model(**{key: value for key, value in rows.items() if key != "labels"}).loss is None
    assert copy.deepcopy(model)(**rows).loss.item() == pytest.approx(found.loss.item(), abs=1e-6)


def test_attaching_twice_changes_nothing(batch):
    mixture, rows = batch
    model = build("tiny_bert", labels=4)
    for _ in range(2):
        mixture.attach(model)
    assert len(model._forward_hooks) == 1 and model(**rows).loss.isfinite()


def test_a_peft_adapter_passes_the_ids_and_poly_routes_by_them(batch):
    """Poly takes `task_ids` out of the arguments: the loss still is that of the own task, and only the rows' tasks get gradients."""
    mixture, rows = batch
    lora = get_peft_model(prepared(mixture), LoraConfig(target_modules=["query"]))
    found = lora(**rows)
    assert found.loss.item() == pytest.approx(expected(found.logits, rows, (2, 2)).item(), abs=1e-5)
    poly = get_peft_model(prepared(mixture), PolyConfig(task_type="SEQ_CLS", target_modules=["query"], n_tasks=3, n_skills=2, r=2))
    for name, parameter in poly.named_parameters():
        if "poly_lora_B" in name:
            nn.init.normal_(parameter)
    poly.train(False)
    found = poly(**rows)
    assert found.loss.item() == pytest.approx(expected(found.logits, rows, (2, 2)).item(), abs=1e-5)
    found.loss.backward()
    (logits, *_) = [p.grad for name, p in poly.named_parameters() if "module_logits" in name]
    assert (logits[:2].abs().sum(dim=-1) > 0).all() and (logits[2] == 0).all()


def prepared(mixture):
    model = build("tiny_bert", labels=4)
    mixture.attach(model)
    return model


def single(dataset, **changes):
    values = {"name": dataset, "kind": "classification", "dataset": dataset, "metric": "accuracy", "rows": "official", "selection": "last"}
    return ClassificationConfig(**values | {"max_length": 128, "limit": 24, "version": 1} | changes)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_llama"])
def test_a_part_predicts_as_a_classifier_with_its_slice_of_the_head(name, made, byte_tokenizer):
    mixture, joint = made(), build(name, labels=4)
    mixture.attach(joint)
    options = EvalOptions(batch=7)
    for part, dataset in zip(mixture.parts(), VALUES["parts"], strict=True):
        alone = build(name, labels=2)
        taken = {n: t if t.shape == alone.state_dict()[n].shape else t[2 * part.index :][:2] for n, t in joint.state_dict().items()}
        alone.load_state_dict(taken)
        found = part.evaluate(joint, byte_tokenizer, "evaluation", options)
        reference = Classification(single(dataset), mixture.sources).evaluate(alone, byte_tokenizer, "evaluation", options)
        assert found.metrics == reference.metrics and found.predictions["prediction"] == reference.predictions["prediction"]
        assert found.predictions["probability"] == pytest.approx(reference.predictions["probability"], abs=1e-5)
        assert found.predictions["example"] == reference.predictions["example"] and len(set(found.predictions["prediction"])) <= 2


def test_equal_sampling_repeats_the_smaller_tasks(memory, byte_tokenizer):
    mixture = Mixture(config(sampling="equal"), uneven(memory))
    rows = mixture.splits()["train"].data
    assert rows["task"][:].count(0) == rows["task"][:].count(1) == 30
    assert rows["row"][:30] == [i % 12 for i in range(30)] and rows["row"][30:] == list(range(30))
    examples = mixture.encode("train", byte_tokenizer)
    assert examples[0] is examples[12] and examples[0] is not examples[1]
    plain = Mixture(config(), uneven(memory)).splits()["train"]
    assert len(plain.data) == 42 and plain.sha256 != mixture.splits()["train"].sha256


def uneven(memory):
    """12 rows of the first task, 30 of the second, and as many to evaluate."""

    class Uneven(memory):
        def rows(self, dataset, split):
            n = 12 if "sentiment" in dataset else 30
            texts = (
                {"sentence": [f"s{i}" for i in range(n)]} if n == 12 else {f"sentence{j}": [f"{j}{i}" for i in range(n)] for j in (1, 2)}
            )
            self.splits[split] = Dataset.from_dict(texts | {"label": [i % 2 for i in range(n)]})
            return super().rows(dataset, split)

    return Uneven()


def test_heldout_rows_leave_every_task_and_the_metric_is_their_mean(memory, byte_tokenizer):
    mixture = Mixture(config(selection="heldout"), uneven(memory))
    splits = mixture.splits()
    assert len(splits["train"].data) == 42 - 4 and splits["selection"].data["task"][:] == [0, 1, 1, 1]
    found = mixture.evaluate(prepared(mixture), byte_tokenizer, "selection", EvalOptions())
    assert found.primary == "mean" and found.metrics["mean"] == pytest.approx(
        (found.metrics["sentiment"] + found.metrics["entailment"]) / 2
    )
    assert len(found.predictions["example"]) == 4


def test_ids_name_the_tasks_the_rule_and_the_sampling(made):
    ids = [part.protocol() for part in made(selection="heldout", sampling="equal", max_length=64).parts()]
    assert ids == [f"mixture/toy2/{part}@heldout-of-sentiment+entailment-equal-64[:24]" for part in ("sentiment", "entailment")]
    assert config().protocol() == "mixture/toy2@last-of-sentiment+entailment" and trains(config())
    assert config().reads() == {f"toy/{n}:{s}": (f"toy/{n}", s) for n in ("sentiment", "entailment") for s in ("train", "validation")}


def test_a_cell_trains_selects_and_reports_every_task(tmp_path):
    """Trained through PEFT, exported and read again; each task has a result and a prediction per row."""
    argv = ["method=lora", "model=tiny_bert", "task=mixture/toy2", "task.selection=heldout", "task.limit=40", "budget=smoke"]
    values = compose([*argv, f"run.store={tmp_path}", "run.device=cpu", "precision=float32", "recipe.lr=1e-2"])
    spine.run_cell(values)
    resolved = resolve(OmegaConf.create(values))
    record = spine.seal(Store(tmp_path).folder(spine.identify(resolved).cell), "cpu", keep_model=False)
    form = "heldout-of-sentiment+entailment[:40]"
    reported = {(r.protocol, r.variant): r for r in record.results}
    assert {key for key in reported if key[1] == "main"} == {(f"mixture/toy2/{n}@{form}", "main") for n in ("sentiment", "entailment")}
    assert all(r.n == 40 and 0 <= r.metrics["accuracy"] <= 1 for r in record.results)
    assert record.data["train"]["rows"] == 7200 and record.data["sentiment:evaluation"]["rows"] == 40
    assert record.selection["rule"] == "heldout" and record.costs["export"]["class"] == "BertForSequenceClassification"


REFUSED = {
    "regression": ({"parts": ["glue/stsb", "glue/rte"]}, "task.parts=glue/stsb has no classes to number beside those of other tasks"),
    "one": ({"parts": ["glue/rte"]}, "is no mixture; give two tasks or more, none twice"),
    "twice": ({"parts": ["glue/rte", "glue/rte"]}, "is no mixture"),
    "sampling": ({"sampling": "root"}, "task.sampling=root is not allowed; allowed: proportional, equal"),
}


@pytest.mark.parametrize(("changes", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_mixture_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence.replace(".", r"\.")):
        config(**changes)
