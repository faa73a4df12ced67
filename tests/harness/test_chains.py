"""Chains: composition and its refusals, namespaces, shared budget, kept zeros, resume."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from harness import cell as spine
from harness import guard, sourcetexts
from harness.compose import compose
from harness.identity import identify
from harness.registry import title
from harness.resolve import Resolved, resolve
from harness.store import Store
from methods.spec import UserError
from tests.contract.toy import write_toy_data
from tests.contract.trial import stopping_after


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("toy"))


def chain(data: Path, *extra: str, **steps: str) -> list[str]:
    """The overrides of a chain of these steps on a tiny model."""
    blocks = [f"+method@method.steps.{name}={slug}" for name, slug in steps.items()]
    small = ["model=tiny_gpt2", "task=glue/sst2", "task.selection=last", "task.max_length=32", "budget=smoke", "recipe.batch=16"]
    text = ["calibration.source=boolq_passages", "calibration.sequences=4", "calibration.length=32", "run.device=cpu"]
    order = f"method.order=[{','.join(steps)}]"
    return ["method=chain", *blocks, order, f"data_dir={data}", "budget.examples=64", "precision=float32", *small, *text, *extra]


def resolved(overrides: list[str]) -> Resolved:
    return resolve(OmegaConf.create(compose(overrides)))


def ran(overrides: list[str], store: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The record as JSON and the exported tensors."""
    container = compose([*overrides, f"run.store={store}", "run.keep_model=true"])
    spine.run_cell(container)
    folder = Store(str(store)).folder(identify(resolve(OmegaConf.create(container))).cell)
    record = spine.seal(folder, "cpu", keep_model=True)
    return record.to_json(), load_file(folder / "model/model.safetensors")


def test_steps_are_typed_with_recipes_and_traits_of_their_own(data: Path) -> None:
    r = resolved(chain(data, "+method.steps.first.recipe.lr=0.003", first="full_ft", prune="wanda", tune="bitfit"))
    steps = r.cell.method_config.steps
    assert [steps[name].method for name in ("first", "prune", "tune")] == ["full_ft", "wanda", "bitfit"]
    alone = resolved([o.replace("method=chain", "method=bitfit") for o in chain(data) if "order" not in o])
    assert (steps["first"].recipe.lr, steps["tune"].recipe.lr) == (0.003, alone.cell.recipe.lr)
    assert r.cell.recipe == steps["tune"].recipe
    assert r.traits.calibration and r.traits.sparse and r.traits.biases and not r.traits.moe
    assert (r.cell.origins["first.lr"], r.cell.origins["tune.lr"]) == ("override", alone.cell.origins["lr"])


def test_identity_holds_every_step_and_its_sources(data: Path) -> None:
    base = chain(data, prune="wanda", tune="bitfit")
    one, other = identify(resolved(base)), identify(resolved([*base, "method.steps.prune.sparsity=0.6"]))
    reordered = identify(resolved(chain(data, tune="bitfit", prune="wanda")))
    shared = identify(resolved([*base, "+method.shares.tune=0.5"]))
    assert len({one.cell, other.cell, reordered.cell, shared.cell}) == 4
    assert json.loads(json.dumps(one.canonical)) == one.canonical
    for slug in ("wanda", "bitfit"):
        assert sourcetexts.sources(slug).items() <= one.sources.items()
    assert "methods/chain.py" in one.sources
    assert title(one.canonical["method"]) == "wanda+bitfit" and title({"name": "lora"}) == "lora"


@pytest.mark.parametrize(
    ("extra", "steps", "message"),
    [
        ([], {"prune": "wanda", "tune": "lora"}, r"steps\.tune=lora folds a dense change over the zeros of method\.steps\.prune=wanda"),
        ([], {"tune": "houlsby_adapter", "prune": "wanda"}, r"method\.steps\.tune=houlsby_adapter does not fold"),
        (["method.steps.prune.sparsity=1.5"], {"prune": "wanda"}, r"method\.steps\.prune\.sparsity=1\.5 is out of range"),
        (["+method.steps.prune.sparsty=0.5"], {"prune": "wanda"}, r"method\.steps\.prune\.sparsty is unknown; did you mean"),
        (["method.order=[prune,tune]"], {"prune": "wanda"}, r"method\.order=\['prune', 'tune'\] must name each"),
        (["+method.shares.prune=0.5"], {"prune": "wanda", "tune": "bitfit"}, r"method\.shares\.prune is given and wanda makes no"),
        (["+method.shares.a=0.7", "+method.shares.b=0.7"], {"a": "full_ft", "b": "bitfit"}, r"more than the whole budget"),
        (["method.zeros=drop"], {"prune": "wanda"}, r"method\.zeros=drop is not allowed; allowed: keep, mask, fill"),
        (["+method.steps.tune.recipe.lrr=1"], {"tune": "bitfit"}, r"recipe\.lrr is unknown; did you mean lr"),
        ([], {"a": "external"}, r"method\.steps\.a=external cannot be a step"),
    ],
)  # fmt: skip
def test_impossible_chains_are_refused_at_composition(data: Path, extra: list[str], steps: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = resolved(chain(data, *extra, **steps)).traits


def test_an_empty_chain_says_what_to_type() -> None:
    with pytest.raises(UserError, match=r"method\.order=\[\] chains nothing; give method\.order=\[a,b\]"):
        resolved(["method=chain"])


def test_budget_phases_and_zeros_of_a_whole_chain(data: Path, tmp_path: Path) -> None:
    """Fine-tune, prune, retrain under the mask, prune more: the zeros of each step hold to the end."""
    steps = {"warm": "full_ft", "prune": "wanda", "tune": "full_ft", "last": "magnitude"}
    more = ["method.steps.last.retrain=false", "method.steps.last.sparsity=0.75", "+method.shares.warm=0.25", "+method.shares.tune=0.5"]
    record, tensors = ran(chain(data, *more, **steps), tmp_path)
    phases = {phase["name"]: phase["steps"] for phase in record["phases"]}
    assert phases == {"warm.main": 1, "prune.calibrate": 0, "tune.main": 2}
    assert record["costs"]["sparsity"]["prunable"] == pytest.approx(0.75, abs=1e-3)
    measures = record["measures"]
    assert [measures[name]["method"] for name in steps] == list(steps.values())
    assert measures["last"]["zeros_before"] == measures["prune"]["prunable"] // 2 == 12288
    assert record["costs"]["parameters"]["trainable_method"] > 30_000
    weight = tensors["transformer.h.0.mlp.c_fc.weight"]
    assert int((weight == 0).sum()) == round(0.75 * weight.numel())


def test_retraining_changes_kept_weights_and_no_zero(data: Path, tmp_path: Path) -> None:
    _, pruned = ran(chain(data, "method.steps.tune.subset=all", prune="wanda", tune="bitfit"), tmp_path)
    _, tuned = ran(chain(data, "+method.steps.tune.recipe.lr=0.01", prune="wanda", tune="full_ft"), tmp_path)
    for name, weight in pruned.items():
        if name.endswith("weight") and ".h." in name and "ln" not in name:
            assert torch.equal(weight == 0, tuned[name] == 0) and not torch.equal(weight, tuned[name])


@pytest.mark.parametrize(("zeros", "sparsity"), [("mask", 0.5), ("fill", 0.0)])
def test_a_dense_fold_over_zeros_is_pruned_again_or_fills_them(data: Path, tmp_path: Path, zeros: str, sparsity: float) -> None:
    extra = [f"method.zeros={zeros}", "method.steps.tune.targets=[q,k,v,o,up,down]", "+method.steps.tune.recipe.lr=0.01"]
    record, _ = ran(chain(data, *extra, prune="wanda", tune="lora"), tmp_path)
    assert record["costs"]["sparsity"]["prunable"] == pytest.approx(sparsity, abs=1e-3)


def test_a_stopped_chain_goes_on_where_it_stopped_and_ends_the_same(data: Path, tmp_path: Path) -> None:
    overrides = chain(data, warm="full_ft", prune="wanda", tune="full_ft")
    whole, expected = ran(overrides, tmp_path / "whole")
    container = compose([*overrides, f"run.store={tmp_path / 'cut'}", "run.keep_model=true"])
    with stopping_after(3), suppress(guard.Interrupted):  # in the second step's second update
        spine.run_cell(container)
    found, tensors = ran(overrides, tmp_path / "cut")
    assert all(torch.equal(expected[name], tensor) for name, tensor in tensors.items())
    counts = [[(p["name"], p["steps"], p["examples"]) for p in record["phases"]] for record in (found, whole)]
    assert counts[0] == counts[1]


def test_a_step_that_does_not_fold_may_come_last(data: Path, tmp_path: Path) -> None:
    record, _ = ran(chain(data, prune="wanda", tune="houlsby_adapter"), tmp_path)
    assert record["costs"]["export"]["adapter"] == "houlsby_adapter"
    assert record["costs"]["sparsity"]["prunable"] == pytest.approx(0.5, abs=1e-3)


def test_two_equal_steps_draw_differently(data: Path, tmp_path: Path) -> None:
    """Generators carry the step's name: random masks of 50 %, one after another, leave a quarter."""
    extra = [f"method.steps.{name}.retrain=false" for name in ("a", "b")]
    record, _ = ran(chain(data, *extra, a="random_mask", b="random_mask", tune="bitfit"), tmp_path)
    assert record["costs"]["sparsity"]["prunable"] == pytest.approx(0.75, abs=0.02)


def test_a_smaller_model_is_tuned_and_comes_back_small(data: Path, tmp_path: Path) -> None:
    """Structured pruning leaves stock modules, so LoRA can follow; blocks of unequal widths need the list of kept units beside them."""
    model = ["model=tiny_llama", "method.steps.prune.last=0"]
    sizes = {}
    for first in (0, 1):
        own = [f"method.steps.prune.first={first / 2}", "method.steps.prune.ratio=0.5", "+method.steps.tune.recipe.lr=0.01"]
        overrides = [o for o in chain(data, *own, prune="llm_pruner", tune="lora") if not o.startswith(("model=", "task"))]
        text = ["task=wikitext2", "task.context=32", "task.limit=2", "corpus.source=boolq_passages", "corpus.length=32"]
        record, tensors = ran([*overrides, *model, *text], tmp_path)
        sizes[first] = record["costs"]["parameters"]["total"]
        assert record["measures"]["prune"]["parameters_removed"] > 0.1
        assert tensors["model.layers.0.mlp.up_proj.weight"].shape[0] == (64 if first else 32)
        rows = tensors["model.layers.1.mlp.up_proj.weight"]
        assert rows.shape[0] == (64 if first else 32) and int((rows == 0).all(1).sum()) == (32 if first else 0)
        assert record["costs"]["export"]["max_abs_difference"] < 1e-5
    assert sizes[0] < sizes[1]
