"""The services a method is given: what is computed once, which rows come in which order, what is metered."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness import cell as spine
from harness.compose import compose
from harness.context import PhaseListener
from harness.cost import PeakMeter
from harness.costing import CostSheet
from tests.contract.toy import write_toy_data


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> spine.Bench:
    data = write_toy_data(tmp_path_factory.mktemp("toy"))
    store = tmp_path_factory.mktemp("store")
    where = [f"data_dir={data}", f"run.store={store}", "run.eval_batch=16", "run.device=cpu"]
    return spine.set_up(compose(["method=full_ft", "model=tiny_bert", "task=glue/sst2", "budget.examples=48", *where]))


def test_once_computes_tensors_and_json_once(bench: spine.Bench) -> None:
    calls: list[str] = []

    def tensors() -> dict[str, torch.Tensor]:
        calls.append("tensors")
        return {"basis": torch.eye(2)}

    def plain() -> list[int]:
        calls.append("plain")
        return [1, 2]

    for _ in range(2):
        assert torch.equal(bench.ctx.once("basis", tensors)["basis"], torch.eye(2))
        assert bench.ctx.once("ranks", plain) == [1, 2]
    assert calls == ["tensors", "plain"]


def test_a_damaged_value_is_computed_again(bench: spine.Bench) -> None:
    assert bench.ctx.once("rank", lambda: 3) == 3
    (bench.folder / "once" / "rank" / "value.json").write_text("")
    assert bench.ctx.once("rank", lambda: 4) == 4


def test_what_once_metered_is_in_the_record_of_a_resumed_cell_too(bench: spine.Bench) -> None:
    def gradients() -> dict[str, torch.Tensor]:
        with bench.ctx.phase("gradients"):
            return {"rows": torch.tensor([sum(len(batch["labels"]) for batch in bench.ctx.batches("train", 20))])}

    first = bench.ctx.once("gradients", gradients)
    counted = bench.ctx.phases[-1]
    assert (counted.name, counted.examples) == ("gradients", 20)
    resumed = replace(bench.ctx, phases=[], earlier_seconds=0.0)
    for _ in range(2):
        assert torch.equal(resumed.once("gradients", gradients)["rows"], first["rows"])
    assert resumed.phases == [counted]
    assert resumed.earlier_seconds == counted.seconds


def test_batches_are_a_fixed_order_within_the_budget_and_are_counted(bench: spine.Bench) -> None:
    with bench.ctx.phase("calibrate"):
        first = [batch["input_ids"] for batch in bench.ctx.batches("train")]
    again = [batch["input_ids"] for batch in bench.ctx.batches("train", 20)]
    assert sum(len(ids) for ids in first) == 48
    assert [len(ids) for ids in again] == [16, 4]
    assert torch.equal(first[0], again[0])
    phase = bench.ctx.phases[-1]
    assert (phase.name, phase.examples, phase.steps) == ("calibrate", 48, 0)
    assert phase.tokens == sum(int(b["attention_mask"].sum()) for b in bench.ctx.batches("train"))


def test_a_share_of_the_budget_is_a_share_of_the_steps(bench: spine.Bench) -> None:
    batch = bench.cell.recipe.batch
    assert bench.ctx.steps(1.0) == round(48 / batch)
    assert bench.ctx.steps(10.0) == round(480 / batch)
    assert bench.ctx.steps(0.0) == 1


def test_named_generators_do_not_depend_on_earlier_draws(bench: spine.Bench) -> None:
    draws = torch.rand(3, generator=bench.ctx.generator("mask"))
    torch.rand(5)
    assert torch.equal(draws, torch.rand(3, generator=bench.ctx.generator("mask")))
    assert not torch.equal(draws, torch.rand(3, generator=bench.ctx.generator("init")))


def test_a_resume_drops_lines_after_its_checkpoint_and_one_that_a_kill_has_torn(bench: spine.Bench) -> None:
    history = bench.folder / "history.jsonl"
    history.write_text('{"phase": "other", "step": 9}\n{"phase": "main", "step": 2}\n{"phase": "main", "st')
    listener = PhaseListener(bench.ctx, "main", PeakMeter("cpu"), 0.0)
    listener.rewind(bench.ctx._plan("main", 1.0, True, "", bench.folder / "checkpoints" / "main"))
    assert history.read_text() == '{"phase": "other", "step": 9}\n'


def test_parameters_join_only_a_phase_that_runs(bench: spine.Bench) -> None:
    with pytest.raises(RuntimeError, match="running training phase"):
        bench.ctx.add_parameters([torch.nn.Parameter(torch.zeros(1))], next(bench.model.parameters()))


@pytest.mark.parametrize("cache", [True, False])
def test_training_leaves_the_key_value_cache_as_it_was(cache: bool, tmp_path: Path) -> None:
    """The Trainer switches it off in the configuration, which an export would carry to its users."""
    where = [f"data_dir={write_toy_data(tmp_path / 'toy')}", f"run.store={tmp_path / 'store'}", "run.device=cpu", "precision=float32"]
    bench = spine.set_up(compose(["method=linear_probe", "model=tiny_llama", "task=glue/sst2", "budget.examples=32", *where]))
    bench.model.config.use_cache = cache
    trained = bench.ctx.train(bench.model)
    assert bench.ctx.phases[-1].steps == 1 and trained.config.use_cache == cache


@pytest.mark.parametrize(("batch", "rows"), [(8, 8), (32, 16)])
def test_operations_are_counted_on_no_more_rows_than_train_or_are_evaluated_at_once(bench: spine.Bench, batch: int, rows: int) -> None:
    config = replace(bench.ctx.config, recipe=replace(bench.ctx.config.recipe, batch=batch))
    ctx = replace(bench.ctx, config=config)
    sheet = CostSheet(bench.method, bench.traits, ctx, bench.task.head, bench.model)
    sheet.fitted(bench.method.prepare(bench.model, ctx))
    mask = next(ctx.batches("train", rows))["attention_mask"]
    assert len(mask) == rows and sheet.parts["training_flops"]["tokens"] == int(mask.sum())
