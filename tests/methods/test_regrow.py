"""Dropping and growing against sets."""

import torch

from methods.maths.regrow import exchange, smallest


def test_smallest_takes_the_first_of_equals() -> None:
    assert smallest(torch.tensor([2.0, 1.0, 3.0, 1.0, 0.0]), 3).tolist() == [4, 1, 3]


def test_the_smallest_leave_for_the_best_candidates() -> None:
    active, sizes = torch.tensor([10, 20, 30, 40]), torch.tensor([0.3, 0.1, 0.4, 0.2])
    candidates, scores = torch.tensor([5, 30, 6, 7]), torch.tensor([1.0, 9.0, 3.0, 2.0])
    slots, chosen = exchange(active, sizes, candidates, scores, 2)  # 20 and 40 leave; 30 is active
    assert slots.tolist() == [1, 3] and candidates[chosen].tolist() == [6, 7]


def test_what_leaves_and_comes_again_keeps_its_slot() -> None:
    active, sizes = torch.tensor([10, 20, 30, 40]), torch.tensor([0.3, 0.1, 0.4, 0.2])
    slots, chosen = exchange(active, sizes, torch.tensor([20, 6]), torch.tensor([9.0, 1.0]), 2)
    assert slots.tolist() == [3] and chosen.tolist() == [1]


def test_where_fewer_come_the_smallest_leave() -> None:
    active, sizes = torch.tensor([10, 20, 30, 40]), torch.tensor([0.3, 0.1, 0.4, 0.2])
    slots, chosen = exchange(active, sizes, torch.tensor([30, 6]), torch.tensor([9.0, 1.0]), 3)
    assert slots.tolist() == [1] and chosen.tolist() == [1]
    assert [t.tolist() for t in exchange(active, sizes, torch.tensor([6]), torch.tensor([1.0]), 0)] == [[], []]


def test_the_result_has_no_repetition_whatever_the_candidates() -> None:
    draws = torch.Generator().manual_seed(0)
    for _ in range(50):
        active, candidates = (torch.randperm(30, generator=draws)[:12] for _ in range(2))
        sizes, scores = torch.rand(2, 12, generator=draws)
        count = int(torch.randint(0, 13, (), generator=draws))
        slots, chosen = exchange(active, sizes, candidates, scores, count)
        after = active.clone()
        after[slots] = candidates[chosen]
        assert len(set(after.tolist())) == 12 and len(slots) == len(chosen) <= count
        kept = set(active[sizes.argsort()[count:]].tolist())
        best = [c for c in candidates[scores.argsort(descending=True)].tolist() if c not in kept][:count]
        assert kept <= set(after.tolist())
        assert set(after.tolist()) >= set(best)
