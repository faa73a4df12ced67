"""Whole cells on a tiny model and a toy folder in LLM-Adapters' layout: trained, measured on every part, sealed."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from harness import cell as spine
from harness.compat import incompatible
from harness.compose import compose
from harness.resolve import resolve
from harness.store import Store


@pytest.fixture
def data(tmp_path):
    """Eight questions whose answer is in the question, for training and for two test sets."""

    def rows(question, legal):
        answers = [legal[i % len(legal)] for i in range(8)]
        return [
            {
                "instruction": f"{question} {a}\n\nAnswer format: {'/'.join(legal)}",
                "input": "",
                "output": f"the correct answer is {a}",
                "answer": a,
            }
            for a in answers
        ]

    boolq, piqa = rows("Is it", ["true", "false"]), rows("Choose", ["solution1", "solution2"])
    files = {"commonsense_147k_partial": boolq + piqa, "dataset/boolq/test_partial": boolq, "dataset/piqa/test_partial": piqa}
    for name, content in files.items():
        path = tmp_path / "data" / "llm_adapters" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return tmp_path / "data"


def container(data, store, *overrides):
    task = ["task=instruct/commonsense8_147k", "task.evaluations=[boolq,piqa]", "task.max_length=128", "task.new_tokens=8", "task.beams=2"]
    run = [f"data_dir={data}", f"run.store={store}", "run.device=cpu", "budget=smoke", "precision=float32"]
    return compose(["model=tiny_llama", *task, *run, *overrides])


def run(values):
    spine.run_cell(values)
    resolved = resolve(OmegaConf.create(values))
    folder = Store(resolved.run.store).folder(spine.identify(resolved).cell)
    return spine.seal(folder, "cpu", keep_model=False), folder


def test_a_cell_reports_every_test_set_in_both_forms(data, tmp_path):
    lora = run(container(data, tmp_path / "store", "method=lora", "recipe.lr=1e-2", "recipe.batch=8"))
    none = run(container(data, tmp_path / "store", "method=none"))
    ids = [
        f"commonsense_147k/{name}@{form}"
        for name in ("boolq", "piqa")
        for form in ("generate-whole-128-beam2-8", "loglikelihood-answer-whole-128")
    ]
    for record, folder in (lora, none):
        assert [result.protocol for result in record.results] == ids and {result.n for result in record.results} == {8}
        for result in record.results:
            table = pq.read_table(folder / result.predictions).to_pydict()
            assert result.metrics["accuracy"] == sum(table["score"]) / 8 and result.metrics["majority"] == 0.5
            assert result.rows["dataset"] == f"llm_adapters/{result.protocol.split('/')[1].split('@')[0]}"
        assert set(record.data) == {"train", "boolq", "piqa", "weights"} and set(record.identity["data"]) == {"train", "boolq", "piqa"}
    assert [phase.examples for phase in lora[0].phases] == [64] and none[0].phases == []
    before, after = (pq.read_table(folder / record.results[1].predictions)["loglikelihoods"].to_pylist() for record, folder in (none, lora))
    assert min(abs(a - b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)) > 0.1


def test_selection_keeps_the_state_with_the_lowest_loss(data, tmp_path):
    record, folder = run(container(data, tmp_path / "store", "method=lora", "recipe.lr=1e-2", "recipe.batch=8", "task.selection=heldout"))
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert record.selection["rule"] == "heldout" and record.selection["metric"] == -min(
        h["selection/nll"] for h in history if "selection/nll" in h
    )
    assert [result.variant for result in record.results] == ["last"] * 4 + ["main"] * 4


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["method=linear_probe", "model=tiny_llama"], "trains a task head and task instruct/commonsense8_147k has none"),
        (["method=lora", "model=tiny_bert"], "needs a language model"),
        (["method=lora", "task.max_length=256"], "task.max_length=256 is longer than tiny_llama takes"),
        (["method=lora"], None),
        (["method=none"], None),
    ],
)
def test_what_trains_on_instructions_needs_a_language_model(data, tmp_path, overrides, reason):
    found = incompatible(resolve(OmegaConf.create(container(data, tmp_path, "recipe.lr=1e-3", *overrides))))
    assert found is None if reason is None else reason in found


def test_an_instruction_task_is_no_protocol_of_another_cell(data, tmp_path):
    resolved = resolve(OmegaConf.create(container(data, tmp_path, "method=none")))
    asked = replace(resolved, protocols={"instruct/alpaca": resolved.cell.task})
    assert "protocol instruct/alpaca needs a model that may be trained for it" in incompatible(asked)
