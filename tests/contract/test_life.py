"""What every method owes, on every tiny model that it claims. Exceptions are declared in traits, never skipped here."""

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from harness import cell as spine
from harness import guard
from harness.checkpoint import trained_tensors
from harness.export import probe_logits
from harness.registry import method_class
from harness.seeding import seed_everything
from methods.roles import prunable_parameters
from tests.contract.trial import STEPS, Trial, buffers, content, nudged_logits, prepared, snapshot, stable, tensors_of

SCALE = 1e-5


def close(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the size of `b`."""
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-6)).item()


def only_pruned(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether entries became zero and nothing else changed."""
    return torch.equal(after, torch.where(after == 0, after, before))


def test_the_yaml_holds_exactly_the_keys_of_the_config(trial: Trial) -> None:
    given = {key for key in trial.base["method"] if key not in ("name", "recipes")}
    assert given == {field.name for field in dataclasses.fields(method_class(trial.method).Config)}


def test_logits_are_unchanged_at_initialisation_where_promised(trial: Trial) -> None:
    seen = trial.observed
    changed = close(seen.logits_prepared, seen.logits_loaded)
    assert changed <= SCALE if trial.traits.exact_at_init else changed > 0


def test_only_declared_parameters_change(trial: Trial) -> None:
    seen = trial.observed
    changed = {n for n, tensor in seen.fitted.items() if n in seen.prepared and not torch.equal(tensor, seen.prepared[n])}
    assert all(trial.traits.sparse and only_pruned(seen.prepared[n], seen.fitted[n]) for n in changed - seen.trainable)
    assert bool(changed & seen.trainable) == trial.traits.trains


def test_the_whole_task_head_trains(trial: Trial) -> None:
    """A fresh head that stays random, or a pooler left frozen under it, spoils every comparison."""
    seen = trial.observed
    if trial.traits.trains_head_only:
        assert seen.trainable <= seen.heads
    else:
        assert seen.heads <= seen.trainable
    moved = {n for n in seen.heads & seen.trainable if not torch.equal(seen.fitted[n], seen.prepared[n])}
    assert moved == seen.heads & seen.trainable


def test_resume_after_two_steps_equals_four_steps_bit_for_bit(trial: Trial) -> None:
    straight, resumed = tensors_of(trial.straight), tensors_of(trial.resumed)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert stable(trial.record(trial.straight)) == stable(trial.record(trial.resumed))


def test_finalize_keeps_the_logits(trial: Trial) -> None:
    kept = close(trial.observed.logits_final, trial.observed.logits_fitted) <= SCALE
    assert kept != trial.traits.recovers


def test_finalized_model_is_a_stock_class_or_comes_apart_into_one(trial: Trial) -> None:
    final = trial.observed.final
    assert trial.traits.folds == _is_stock(final)
    if trial.traits.folds:
        return
    made = method_class(trial.method)
    config = spine.set_up(trial.container("apart")).method.config
    stock, tensors = trial.observed.method.detach(copy.deepcopy(final))
    assert (tensors or trial.traits.reshapes) and _is_stock(stock)
    assert torch.equal(probe_logits(made(config).attach(stock, tensors)), trial.observed.logits_final)


def _is_stock(model: torch.nn.Module) -> bool:
    """A class of transformers whose parameters and buffers are those that it has by itself under its configuration."""
    if getattr(transformers, type(model).__name__, None) is not type(model):
        return False
    with torch.device("meta"):
        stock = type(model)(model.config).state_dict()
    return {name: t.shape for name, t in stock.items()} == {name: t.shape for name, t in model.state_dict().items()}


def test_counts_equal_an_independent_recount(trial: Trial) -> None:
    costs = trial.record(trial.straight).costs
    tensors = tensors_of(trial.straight)
    assert costs["nonzero"]["all"]["total"] == sum(t.numel() for t in tensors.values())
    assert costs["nonzero"]["all"]["nonzero"] == sum(int((t != 0).sum()) for t in tensors.values())
    assert costs["changed"]["parameters"] <= costs["nonzero"]["all"]["total"]  # scores that only train are not shipped
    seen = trial.observed
    assert costs["parameters"]["trainable"] == sum(seen.prepared[n].numel() for n in seen.trainable)


def test_sparsity_is_real_where_promised(trial: Trial) -> None:
    prunable = trial.record(trial.straight).costs["nonzero"]["prunable"]
    share = 1 - prunable["nonzero"] / prunable["total"]
    if trial.traits.reshapes:  # smaller, or a checkpoint of the original shapes with zeros where units were
        loaded = sum(w.numel() for w in prunable_parameters(spine.set_up(trial.container("loaded")).model).values())
        assert 0.4 * loaded < prunable["nonzero"] < 0.99 * loaded
    else:
        assert share == pytest.approx(0.5, abs=0.01) if trial.traits.sparse else share < 0.01


def test_initialisation_depends_on_the_seed_alone(trial: Trial) -> None:
    assert content(prepared(trial.container("prepared-again"), drawn=7)) == content(trial.observed.prepared | trial.observed.buffers)


def test_another_seed_changes_what_the_traits_say(trial: Trial) -> None:
    bench = spine.set_up(trial.container("other-seed", "seed=1"))
    heads = spine.models.head_names(bench.model)
    seed_everything(1, "prepare")
    model = bench.method.prepare(bench.model, bench.ctx)
    names = spine.models.head_names(model)
    mine = {n: t for n, t in (snapshot(model) | buffers(model)).items() if n not in names}
    first = {n: t for n, t in (trial.observed.prepared | trial.observed.buffers).items() if n not in names}
    draws = trial.traits.calibration or {"init", "mask"} & set(trial.traits.randomness)  # another seed calibrates on other text
    changed = content(mine) != content(first)
    if draws and not changed:
        head = {n: t for n, t in trial.observed.prepared.items() if n in names}
        one, other = (nudged_logits(trial.container(f"seed-{seed}", f"seed={seed}"), head) for seed in (0, 1))
        changed = close(one, other) > SCALE
    assert changed == bool(draws)
    assert bool(heads) == trial.traits.trains


def test_bfloat16_runs(trial: Trial) -> None:
    folder = trial.run("bf16", "precision=bfloat16", f"budget.examples={16 * 2}")
    floats = [t for t in tensors_of(folder).values() if t.is_floating_point()]
    assert {t.dtype for t in floats} == {torch.bfloat16}
    assert all(torch.isfinite(t).all() for t in floats)


def test_nan_is_a_typed_failure_and_never_a_number(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    load = spine.models.load

    def poisoned(*args, **kwargs):
        model, tokenizer, info = load(*args, **kwargs)
        model.get_input_embeddings().register_forward_hook(lambda module, args, out: out * float("nan"))
        return model, tokenizer, info

    monkeypatch.setattr(spine.models, "load", poisoned)
    container = trial.container("nan")
    with pytest.raises(guard.Diverged):
        spine.run_cell(container)
    assert not list((trial.root / "nan").glob("*/unsealed.json"))


def test_every_method_sees_the_same_head_rows_and_order(trial: Trial, trials) -> None:
    if trial.form == "text":
        assert set(trial.observed.splits) == {"evaluation"}
        return
    reference = trials("full_ft", trial.model).observed
    seen = trial.observed
    assert (seen.head, seen.splits) == (reference.head, reference.splits)
    order = reference.order["main"]
    plain = [batches == order[: len(batches)] for batches in seen.order.values()]
    assert any(plain) if "data" in trial.traits.randomness else all(plain)
    assert len(order) == STEPS
    assert sum(len(batches) for batches in seen.order.values()) <= max(STEPS, len(seen.order))  # a phase has one step at least


@pytest.mark.parametrize("allowed", [True, False], ids=["eligible", "not-eligible"])
def test_a_checkpoint_that_is_not_eligible_is_never_selected(trial: Trial, allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.9, 0.1])
    extra = ("task.selection=heldout", "budget.evaluations=2") if trial.form == "classification" else ()
    bench = spine.set_up(trial.container(f"eligible-{allowed}", *extra))
    if trial.form == "text" or not _uses_trainer(trial):
        assert bench.ctx.selection == {}
        return
    listener = spine.CellContext.__module__
    monkeypatch.setattr(f"{listener}.PhaseListener.selection_metric", lambda self, model, step: next(scores))
    monkeypatch.setattr(bench.method, "eligible", lambda step, ctx: allowed or step == ctx.total_steps)
    last: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(spine.Evaluator, "run", lambda self, model, variant: last.update(trained_tensors_copy(model)))
    kept: dict[str, dict[str, torch.Tensor]] = {}
    train = bench.ctx.train

    def keeping(model: torch.nn.Module, phase: str = "main", **options: object) -> torch.nn.Module:
        model = train(model, phase, **options)
        kept[phase] = trained_tensors_copy(model)
        return model

    monkeypatch.setattr(bench.ctx, "train", keeping)
    seed_everything(0, "prepare")
    bench.method.fit(bench.method.prepare(bench.model, bench.ctx), bench.ctx)
    chosen = bench.ctx.selection
    if not chosen:  # a method whose phases all train to their end
        assert list(scores) == [0.9, 0.1]
        return
    first = max(1, round(chosen["last_step"] / 2))
    assert chosen["step"] == (first if allowed else chosen["last_step"])
    state = kept[chosen["phase"]]
    assert (state.keys() == last.keys() and all(torch.equal(state[name], last[name]) for name in last)) == (not allowed)
    if allowed:
        best = load_file(bench.folder / "checkpoints" / chosen["phase"] / f"best-{first}" / "weights.safetensors")
        assert all(torch.equal(state[name], best[name]) for name in best)


def trained_tensors_copy(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of what training may have changed."""
    return {name: tensor.clone() for name, tensor in trained_tensors(model).items()}


def _uses_trainer(trial: Trial) -> bool:
    return bool(trial.observed.order)


def test_a_finished_phase_left_no_checkpoints_behind(trial: Trial) -> None:
    assert (trial.straight / "record.json").exists()
    assert not (trial.straight / "checkpoints").exists()


RELOADER = """
import json, sys, torch, transformers
from pathlib import Path
from safetensors.torch import load_file
transformers.logging.set_verbosity_error()
def load(model):
    if (model / "adapter.json").exists():
        from harness.export import reload
        return reload(model)
    name = json.loads((model / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(model, dtype="auto").eval()

for line in sys.stdin:
    folder = Path(line.strip())
    loaded = load(folder / "model")
    probe = load_file(folder / "model.probe.safetensors")
    with torch.inference_mode():
        logits = loaded(input_ids=probe["input_ids"], attention_mask=torch.ones_like(probe["input_ids"])).logits
    print("difference", (logits.float() - probe["logits"]).abs().max().item(), flush=True)
"""


@pytest.fixture(scope="session")
def reloader():
    """One process that reloads every export of this session; it imports parebench only where an adapter lies beside the model."""
    process = subprocess.Popen([sys.executable, "-c", RELOADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def difference(folder: Path) -> float:
        process.stdin.write(f"{folder}\n")
        process.stdin.flush()
        lines = iter(process.stdout.readline, "")
        return float(next(line for line in lines if line.startswith("difference")).split()[1])

    yield difference
    process.stdin.close()
    process.wait()


def test_export_reloads_in_a_process_without_parebench_where_it_folds(trial: Trial, reloader) -> None:
    assert (trial.straight / "model" / "adapter.json").exists() != trial.traits.folds
    assert reloader(trial.straight) <= SCALE
