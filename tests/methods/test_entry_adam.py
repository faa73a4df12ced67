"""AdamW with ages, against a written-down update and torch's."""

import copy

import pytest
import torch

from methods.maths.entry_adam import EntryAdamW


def gradients(steps: int) -> list[torch.Tensor]:
    return list(torch.randn(steps, 5, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("aged", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_updates_are_those_of_the_formula(aged: bool, decay: float) -> None:
    p = torch.nn.Parameter(torch.linspace(-1, 1, 5))
    optimizer = EntryAdamW([{"params": [p], "weight_decay": decay, "aged": aged}], lr=0.1, betas=(0.9, 0.95), eps=1e-2)
    expected, m, v = p.detach().double().clone(), torch.zeros(5).double(), torch.zeros(5).double()
    for t, g in enumerate(gradients(4), 1):
        p.grad = g.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        expected -= 0.1 * (1 - 0.95**t) ** 0.5 / (1 - 0.9**t) * m / (v.sqrt() + 1e-2)
        expected *= 1 - 0.1 * decay
        assert torch.allclose(p.detach().double(), expected, atol=1e-6)
    assert optimizer.state[p]["t"].shape == ((5,) if aged else ())


def test_without_eps_it_is_torchs() -> None:
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    optimizers = EntryAdamW([ours], 0.1, (0.9, 0.95), 1e-12), torch.optim.AdamW([theirs], 0.1, (0.9, 0.95), 1e-12, weight_decay=0.0)
    for g in gradients(5):
        ours.grad, theirs.grad = g.clone(), g.clone()
        for optimizer in optimizers:
            optimizer.step()
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_an_age_is_the_number_of_updates_of_an_entry() -> None:
    """An entry that starts anew in the middle of a run moves as in a run of its own."""
    p, alone = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    first = EntryAdamW([{"params": [p], "aged": True}], 0.1, (0.9, 0.99), 1e-8)
    second = EntryAdamW([alone], 0.1, (0.9, 0.99), 1e-8)
    for step, g in enumerate(gradients(6)):
        if step == 3:
            for tensor in (p.data, *first.state[p].values()):
                tensor[1] = 0.0
        p.grad = g[:2].clone()
        first.step()
        if step >= 3:
            alone.grad = g[1:2].clone()
            second.step()
            assert torch.allclose(p[1:], alone, atol=1e-7)
    assert first.state[p]["t"].tolist() == [6, 3]


def test_state_survives_a_round_trip() -> None:
    p = torch.nn.Parameter(torch.zeros(5))
    optimizer = EntryAdamW([{"params": [p], "aged": True, "weight_decay": 0.1}], 0.1, (0.9, 0.99), 1e-8)
    slopes = gradients(4)
    for g in slopes[:2]:
        p.grad = g.clone()
        optimizer.step()
    q = torch.nn.Parameter(p.detach().clone())
    again = EntryAdamW([{"params": [q]}], 0.5, (0.0, 0.0), 1.0)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for g in slopes[2:]:
        p.grad, q.grad = g.clone(), g.clone()
        optimizer.step(), again.step()
    assert torch.equal(p, q)
