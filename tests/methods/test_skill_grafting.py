"""Grafting: exact ends, patch size, dL/dS by finite differences, all entries = fine-tuned, best step kept, rows within the budget."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from methods.base import Batch
from methods.maths import graft
from methods.roles import head_names, layers
from methods.sparse.skill_grafting import SkillGrafting
from methods.spec import UserError
from tests.methods.fakes import FakeContext, batches, build, changed, logits, snapshot

FAMILIES = ["tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_mixtral"]


def grafting(**changes: object) -> SkillGrafting:
    values = {"share": 0.5, "patch": 0.01, "rows": 4, "iterations": 2, "mask_lr": 1e7, "bias": 10.0}
    return SkillGrafting(SkillGrafting.Config(**(values | changes)))


class Counting(FakeContext):
    """Gives the first rows asked for, counts those read inside `phase`, and keeps what fine-tuning left."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.read, self.metered = 0, False

    def batches(self, split: str, n: int | None = None) -> Iterator[Batch]:
        for batch in self.rows if n is None else self.rows[: -(-n // 4)]:
            self.read += len(batch["input_ids"]) if self.metered else 0
            yield batch

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.phases.append(name)
        self.metered = True
        yield
        self.metered = False

    def train(self, model: nn.Module, phase: str = "main", **options: object) -> nn.Module:
        super().train(model, phase)
        self.tuned = snapshot(model)
        return model


def fitted(method: SkillGrafting, name: str = "tiny_bert", steps: int = 6) -> tuple[nn.Module, Counting, dict[str, torch.Tensor]]:
    model = build(name)
    loaded = snapshot(model)
    ctx = Counting(method, batches(steps))
    return method.fit(method.prepare(model, ctx), ctx), ctx, loaded


@pytest.mark.parametrize("name", FAMILIES)
def test_no_entries_are_the_loaded_model_and_all_are_the_fine_tuned_one(name: str) -> None:
    method = grafting()
    model, ctx, loaded = fitted(method, name)
    heads = head_names(model)
    for value, reference in ((False, loaded), (True, ctx.tuned)):
        method._put(model, {key: torch.full_like(mask, value) for key, mask in method.patch.items()})
        for key, p in model.named_parameters():
            assert torch.equal(p, (ctx.tuned if key in heads else reference)[key])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_graft_changes_its_entries_alone(name: str) -> None:
    method = grafting()
    model, ctx, loaded = fitted(method, name)
    blocks = {id(p) for block in layers(model) for p in block.parameters()}
    names = {key for key, p in model.named_parameters() if id(p) in blocks}
    assert set(method.names) == names and ctx.phases == ["fine_tune", "graft"]
    assert changed(model, loaded) <= names | head_names(model)
    for key in names:
        taken = method.gamma[key]
        p = model.get_parameter(key)
        assert torch.equal(p[taken], ctx.tuned[key][taken]) and torch.equal(p[~taken], loaded[key][~taken])
    told = method.measure(model, ctx)
    assert told["entries"] == sum(int(mask.sum()) for mask in method.gamma.values()) > 0
    assert told["density"] == told["entries"] / sum(loaded[key].numel() for key in names) == told["entries"] / told["considered"]
    assert told["entries"] == told["patch_entries"] + told["added"] - told["removed"]


@pytest.mark.parametrize("level", [0.001, 0.01, 0.5])
def test_the_base_patch_holds_the_entries_that_moved_most(level: float) -> None:
    method = grafting(patch=level, iterations=0)
    _, ctx, loaded = fitted(method)
    moved = torch.cat([(ctx.tuned[key] - loaded[key]).abs().flatten() for key in method.names])
    patch = torch.cat([method.patch[key].flatten() for key in method.names])
    assert patch.sum() == int(level * len(moved)) == method.measure(nn.Module(), ctx)["entries"]
    assert moved[patch].min() >= moved[~patch].max()
    assert graft.overlap(method.gamma, method.patch) == 1.0


def test_the_gradient_of_s_by_finite_differences() -> None:
    method = grafting(bias=1.0, patch=0.2, iterations=0)
    model, ctx, _ = fitted(method)
    model.double()
    method.before, method.after = ({key: t.double() for key, t in side.items()} for side in (method.before, method.after))
    draws = torch.Generator().manual_seed(0)
    s = {key: torch.rand(t.shape, generator=draws, dtype=torch.float64) * 2 for key, t in method.before.items()}
    rows = batches(2, seed=3)

    def loss() -> float:
        with torch.no_grad():
            for key, before in method.before.items():
                gamma = graft.relaxed(method.patch[key], s[key], 1.0)
                model.get_parameter(key).copy_(before + gamma * (method.after[key] - before))
        return method._loss(model, iter(rows), ctx)

    gradient = method.mask_gradients(model, s, rows, ctx)
    for key in method.names[::5]:
        flat, place = s[key].view(-1), int(gradient[key].abs().argmax())
        value, step = flat[place].item(), 1e-2
        ends = []
        for sign in (1, -1):
            flat[place] = value + sign * step
            ends.append(loss())
        flat[place] = value
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert gradient[key].view(-1)[place].item() == pytest.approx(numeric, rel=2e-3, abs=1e-9), key


@pytest.mark.parametrize("name", FAMILIES)
def test_all_moved_entries_give_the_fine_tuned_models_logits(name: str) -> None:
    method = grafting(patch=1.0, iterations=0)
    model, ctx, _ = fitted(method, name)
    tuned = build(name)
    tuned.load_state_dict(model.state_dict() | ctx.tuned, strict=False)
    assert torch.equal(logits(model), logits(tuned))


def test_the_best_rounded_step_is_kept_and_helps() -> None:
    """A small b lets S flip entries at once; each step's loss is that of its rounded model on the rows."""
    seen = []

    class Watching(SkillGrafting):
        def _loss(self, model: nn.Module, rows: Iterator[Batch], ctx: Counting) -> float:
            seen.append(({key: model.get_parameter(key).detach().clone() for key in self.names}, super()._loss(model, rows, ctx)))
            return seen[-1][1]

    method = Watching(SkillGrafting.Config(share=0.2, patch=0.01, rows=4, iterations=3, mask_lr=1e9, bias=10.0))
    model, ctx, _ = fitted(method, steps=10)
    losses = [loss for _, loss in seen]
    assert method.losses == losses and len(losses) == 3
    best = seen[losses.index(min(losses))][0]
    assert all(torch.equal(model.get_parameter(key), value) for key, value in best.items())
    assert method.measure(model, ctx)["added"] > 0
    before = grafting(share=0.2, iterations=0)
    bare, _, _ = fitted(before, steps=10)
    assert min(losses) < before._loss(bare, iter(ctx.rows[:1]), ctx)


def test_rows_stay_within_what_fine_tuning_leaves() -> None:
    """24 rows: half of them, 12, pay for one step of 4 rows read twice; a smaller rest makes the rows fewer."""
    for share, rows, iterations, expected in ((0.5, 4, 10, (4, 1)), (0.5, 2, 2, (2, 2)), (0.75, 64, 10, (3, 1)), (0.99, 4, 10, (1, 0))):
        method = grafting(share=share, rows=rows, iterations=iterations)
        assert method._affordable(Counting(method, batches(6))) == expected
    method = grafting(share=0.25, iterations=10)
    _, ctx, _ = fitted(method)
    assert len(method.losses) == 2 and ctx.read == 2 * 2 * 4 <= 0.75 * 24


def test_variants_are_the_fine_tuned_model_and_the_patch_and_leave_the_graft() -> None:
    method = grafting(share=0.2, mask_lr=1e9)
    model, ctx, _ = fitted(method, steps=10)
    final = method.finalize(model, ctx)
    graft_logits = logits(final)
    found = {name: logits(one) for name, one in method.variants(final, ctx)}
    assert list(found) == ["main", "fine_tuned", "base_patch"]
    assert torch.equal(found["main"], graft_logits) and torch.equal(logits(final), graft_logits)
    tuned = build("tiny_bert")
    tuned.load_state_dict(model.state_dict() | ctx.tuned, strict=False)
    assert torch.equal(found["fine_tuned"], logits(tuned))
    assert len({round(float(t.sum()), 6) for t in found.values()}) == 3
    assert all(p.requires_grad for p in final.parameters())


def test_the_number_of_entries_that_compete_on_roberta() -> None:
    method = grafting()
    model = method.prepare(build("roberta_base", device="meta"), FakeContext(method, []))
    heads = head_names(model)
    assert sum(p.numel() for key, p in model.named_parameters() if p.requires_grad and key not in heads) == 85_054_464
    assert int(1e-4 * 85_054_464) == 8505


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 1.0}, r"method.share=1.0 is out of range; allowed: a number in \(0, 1\)"),
        ({"patch": 0.0}, r"method.patch=0.0 is out of range; allowed: a number in \(0, 1\]"),
        ({"rows": 0}, "method.rows=0 is out of range"),
        ({"mask_lr": 0.0}, "method.mask_lr=0.0 is out of range"),
    ],
)
def test_bad_configurations(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        grafting(**changes)
