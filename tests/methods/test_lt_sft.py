"""LT-SFT: exact rewind, K changed entries inside mu, mu as numpy's top K, K = all is full fine-tuning, L1, iterations, resume, counts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness import cell as spine
from harness import guard
from methods.baselines.full_ft import FullFt
from methods.roles import head_names, norms
from methods.sparse.lt_sft import LtSft
from methods.spec import UserError
from tests.contract.toy import write_toy_data
from tests.contract.trial import Trial, stopping_after, tensors_of
from tests.methods.fakes import FakeContext, batches, build, changed, logits, snapshot, trainable

FAMILIES = ["tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_mixtral"]


def lt_sft(**changes: object) -> LtSft:
    values = {"density": 0.05, "k": None, "iterations": 1, "full_share": 0.5, "l1": 0.0, "selection": "change"}
    return LtSft(LtSft.Config(**(values | changes)))


class Phases(FakeContext):
    """Notes the weights before and after every phase, and draws dropout anew in each as the harness does."""

    def train(self, model: nn.Module, phase: str = "main", **options: object) -> nn.Module:
        self.options = {**getattr(self, "options", {}), phase: options}
        self.states = getattr(self, "states", {})
        self.states[phase, "before"] = snapshot(model)
        torch.manual_seed(11)
        super().train(model, phase)
        self.states[phase, "after"] = snapshot(model)
        return model


def fitted(method: LtSft, name: str = "tiny_bert", **options: float) -> tuple[nn.Module, Phases]:
    model = build(name)
    ctx = Phases(method, batches(3), **options)
    return method.fit(method.prepare(model, ctx), ctx), ctx


def flat(tensors: dict[str, Tensor], names: list[str]) -> np.ndarray:
    return torch.cat([tensors[name].flatten() for name in names]).numpy()


def mask_of(model: nn.Module, names: list[str]) -> np.ndarray:
    return flat({name: model.get_buffer(f"{name}_chosen") for name in names}, names)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_sparse_phase_starts_at_the_loaded_weights_bit_for_bit(name: str) -> None:
    loaded = snapshot(build(name))
    model, ctx = fitted(lt_sft(), name)
    assert ctx.phases == ["full", "sparse"]
    start = ctx.states["sparse", "before"]
    assert all(torch.equal(start[key], value) for key, value in loaded.items())
    assert changed(model, ctx.states["full", "after"])  # the full phase did go somewhere


@pytest.mark.parametrize("name", FAMILIES)
def test_k_entries_train_as_numpy_ranks_the_changes(name: str) -> None:
    method = lt_sft()
    model, ctx = fitted(method, name)
    names, before = method.names, ctx.states["full", "before"]
    moved = np.abs(flat(ctx.states["full", "after"], names) - flat(before, names))
    k = int(0.05 * len(moved))
    mu = mask_of(model, names)
    assert mu.sum() == k == method.chosen
    assert set(np.flatnonzero(mu)) == set(np.argsort(-moved, kind="stable")[:k])
    final = flat(snapshot(model), names) != flat(before, names)
    assert not (final & ~mu).any() and final.sum() > 0.9 * k
    assert method.measure(model, ctx) == {"chosen": k, "changed": final.sum(), "maskable": len(mu), "density": k / len(mu)}


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_are_frozen_and_the_head_is_whole_and_not_counted(name: str) -> None:
    method = lt_sft(k=1)
    model, ctx = fitted(method, name)
    frozen = {id(p) for norm in norms(model).values() for p in norm.parameters()}
    heads = head_names(model)
    assert set(method.names) == {key for key, p in model.named_parameters() if id(p) not in frozen} - heads
    moved = changed(model, ctx.states["full", "before"])
    assert heads <= moved and len(moved - heads) == 1 and mask_of(model, method.names).sum() == 1
    assert all(torch.equal(p, ctx.states["full", "after"][key]) for key, p in model.named_parameters() if id(p) in frozen)


def test_with_every_entry_it_is_a_full_fine_tuning_from_the_loaded_weights() -> None:
    method = lt_sft(density=1.0)
    model, _ = fitted(method)
    plain = FullFt(FullFt.Config())
    reference = build("tiny_bert")
    for norm in norms(reference).values():
        norm.requires_grad_(False)
    Phases(plain, batches(3)).train(reference)
    assert all(torch.equal(p, model.get_parameter(key)) for key, p in reference.named_parameters())


def test_weight_decay_acts_on_chosen_entries_alone() -> None:
    method = lt_sft()
    model, ctx = fitted(method, weight_decay=5.0)
    mu, before = mask_of(model, method.names), flat(ctx.states["full", "before"], method.names)
    after = flat(snapshot(model), method.names)
    assert (after[~mu] == before[~mu]).all()
    without, _ = fitted(lt_sft(), weight_decay=0.0)
    assert (flat(snapshot(without), method.names) != after).any()


def test_gradients_are_masked_before_they_are_clipped() -> None:
    method = lt_sft()
    seen = []

    def probe(model: nn.Module) -> None:
        grads = flat({key: model.get_parameter(key).grad for key in method.names}, method.names)
        seen.append((grads, mask_of(model, method.names) if method.masking else None))

    model = build("tiny_gpt2")
    ctx = Phases(method, batches(3))
    ctx.probe = probe
    method.fit(method.prepare(model, ctx), ctx)
    full, sparse = seen[:3], seen[3:]
    assert all((grads != 0).mean() > 0.3 for grads, _ in full)
    assert all((grads[~mu] == 0).all() and (grads[mu] != 0).mean() > 0.9 for grads, mu in sparse)


def test_optimizer_states_of_the_full_phase_do_not_reach_the_sparse_phase() -> None:
    """One optimizer a phase: with a sparse phase of no steps nothing but the rewind is left."""
    method = lt_sft()
    model = build("tiny_bert")
    ctx = Phases(method, batches(3))
    method.prepare(model, ctx)
    loaded = snapshot(model)
    train = ctx.train

    def no_sparse_steps(model: nn.Module, phase: str = "main", **options: object) -> nn.Module:
        ctx.rows = [] if phase == "sparse" else ctx.rows
        return train(model, phase, **options)

    ctx.train = no_sparse_steps
    method.fit(model, ctx)
    assert ctx.optimizer.state == {} and changed(model, loaded) == set()


def test_iterations_add_new_entries_and_keep_the_earlier_ones() -> None:
    method = lt_sft(k=101, iterations=3, full_share=0.25)
    model, ctx = fitted(method)
    assert ctx.phases == ["full-1", "sparse-1", "full-2", "sparse-2", "full-3", "sparse-3"]
    assert {(round(o["share"], 4), o["select"]) for p, o in ctx.options.items() if p.startswith("full")} == {(0.0833, False)}
    sparse = [ctx.options[f"sparse-{i}"] for i in (1, 2, 3)]
    assert [(o["share"], o["select"]) for o in sparse] == [(0.25, False), (0.25, False), (0.25, True)]
    loaded = flat(ctx.states["full-1", "before"], method.names)
    moved = [flat(ctx.states[f"sparse-{i}", "after"], method.names) != loaded for i in (1, 2, 3)]
    assert (moved[1] | ~moved[0]).all() and (moved[2] | ~moved[1]).all()
    assert [m.sum() for m in moved] == [33, 67, 101] == [101 * i // 3 for i in (1, 2, 3)]
    for i in (1, 2):
        ended, begun = ctx.states[f"sparse-{i}", "after"], ctx.states[f"sparse-{i + 1}", "before"]
        assert all(torch.equal(ended[key], begun[key]) for key in ended)
    assert mask_of(model, method.names).sum() == 101


def test_l1_is_the_gradient_of_the_mean_distance() -> None:
    def gradients(l1: float) -> dict[str, Tensor]:
        method = lt_sft(l1=l1)
        model = build("tiny_bert")
        ctx = FakeContext(method, [])
        method.prepare(model, ctx)
        method.start = {key: p.detach().clone() for key, p in method._maskable(model)}
        draws = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for _, p in method._maskable(model):
                p.add_(0.1 * torch.randint(-1, 2, p.shape, generator=draws))
        total = sum(p.numel() for p in model.parameters())
        distance = sum((p - method.start[key]).abs().sum() for key, p in method._maskable(model)) * 0.3 / total
        loss = model(**batches(1)[0]).loss
        (loss if l1 else loss + distance).backward()
        method.on_gradients(model, 0, ctx)
        return {key: p.grad for key, p in method._maskable(model)}

    ours, reference = gradients(0.3), gradients(0.0)
    assert all(torch.allclose(ours[key], reference[key], atol=1e-9, rtol=1e-5) for key in reference)


def test_random_selection_draws_and_has_no_full_phase() -> None:
    def mu(seed: int) -> np.ndarray:
        method = lt_sft(selection="random")
        model, ctx = fitted(method, seed=seed)
        assert ctx.phases == ["sparse"] and ctx.options["sparse"] == {}
        mask = mask_of(model, method.names)
        before = flat(ctx.states["sparse", "before"], method.names)
        assert mask.sum() == method.chosen and (flat(snapshot(model), method.names)[~mask] == before[~mask]).all()
        return mask

    first, again, other = mu(0), mu(0), mu(1)
    assert (first == again).all()
    assert (first & other).sum() / first.sum() == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize("name", FAMILIES)
def test_finalize_leaves_a_stock_model(name: str) -> None:
    keys, kind = list(build(name).state_dict()), type(build(name))
    method = lt_sft()
    model, ctx = fitted(method, name)
    expected = logits(model)
    final = method.finalize(model, ctx)
    assert type(final) is kind and list(final.state_dict()) == keys
    assert torch.equal(logits(final), expected)
    assert all(p.requires_grad and not p._backward_hooks for p in final.parameters())


def test_published_numbers_of_entries_fit_the_architectures() -> None:
    """What trains is everything but norms; K of the language vectors is 7,667,712, of MultiNLI 14,155,776."""
    model = build("bert_base", device="meta")
    method = lt_sft(k=7_667_712)
    method.prepare(model, FakeContext(method, []))
    assert method.chosen == 7_667_712
    assert sum(trainable(model).values()) == 109_483_778 - 25 * 2 * 768
    random = lt_sft(k=14_155_776, selection="random")
    random.prepare(build("roberta_base", device="meta"), FakeContext(random, []))
    assert random.chosen == 14_155_776


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    root: Path = tmp_path_factory.mktemp("lt_sft")
    return Trial("lt_sft", "tiny_bert", root, write_toy_data(root / "data"))


@pytest.mark.parametrize("stop", [3, 5, 7])
def test_resume_is_exact_wherever_a_life_of_two_iterations_stops(trial: Trial, stop: int) -> None:
    """8 steps, two in each phase: each stop lies behind a finished phase, whose mask is derived again."""
    changes = ("method.iterations=2", "budget.examples=128")
    straight, container = trial.container("whole", *changes), trial.container(f"stopped-{stop}", *changes)
    if not (trial.folder(straight) / "model").exists():
        spine.run_cell(straight)
    with stopping_after(stop), pytest.raises(guard.Interrupted):
        spine.run_cell(container)
    spine.run_cell(container)
    resumed = tensors_of(trial.folder(container))
    assert all(torch.equal(resumed[key], value) for key, value in tensors_of(trial.folder(straight)).items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": 0.0}, r"method.density=0.0 is out of range; allowed: a number in \(0, 1\]"),
        ({"k": 0}, "method.k=0 is out of range"),
        ({"full_share": 1.0}, r"method.full_share=1.0 is out of range; allowed: a number in \(0, 1\)"),
        ({"l1": -0.1}, "method.l1=-0.1 is out of range"),
        ({"selection": "top"}, "method.selection=top is not allowed; allowed: change, random"),
        ({"selection": "random", "iterations": 2}, "method.iterations=2 has no meaning for method.selection=random; give"),
    ],
)
def test_bad_configurations(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        lt_sft(**changes)


def test_more_entries_than_there_are() -> None:
    method: Callable = lt_sft(k=10**9)
    with pytest.raises(UserError, match=r"method.k=1000000000 is more than the \d+ maskable entries of this bert; give fewer"):
        method.prepare(build("tiny_bert"), FakeContext(method, []))


def test_traits() -> None:
    assert lt_sft().config.adjust(LtSft.traits) is LtSft.traits
    assert lt_sft(selection="random").config.adjust(LtSft.traits).randomness == ("mask",)
