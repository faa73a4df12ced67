"""Accuracies beside the majority class, with intervals and invalid answers."""

import pandas as pd
import pytest
from scipy.stats import binomtest

from analysis.answers import ABOVE, BELOW, CHANCE, answers, wilson
from methods.spec import UserError


def row(label: str, column: str, accuracy: float, invalid: float | None = None, seed: int = 0, majority: float = 0.5) -> dict:
    """A row as `load` gives it."""
    return {
        "label": label, "column": column, "value": accuracy, "n": 100, "seed": seed, "status": "done", "metric.majority": majority,
        "metric.invalid": invalid,
    }  # fmt: skip


@pytest.mark.parametrize(("correct", "n"), [(0, 20), (7, 20), (100, 100), (53, 100), (1, 1000)])
def test_the_interval_is_wilsons(correct: int, n: int) -> None:
    known = binomtest(correct, n).proportion_ci(method="wilson")
    assert wilson(correct / n, n) == pytest.approx((known.low, known.high), abs=1e-12)


def test_an_accuracy_is_called_by_its_interval_around_the_majority_rate() -> None:
    rows = [row("a", "q@generate", 0.59), row("b", "q@generate", 0.61), row("c", "q@generate", 0.39), row("d", "q@generate", 0.41)]
    assert [found.verdict for found in answers(pd.DataFrame(rows))] == [CHANCE, ABOVE, BELOW, CHANCE]


def test_forms_stand_apart_and_seeds_are_averaged() -> None:
    rows = [
        row("lora", "mix/q@generate", 0.6, 0.02, 0), row("lora", "mix/q@generate", 0.7, 0.04, 1), row("lora", "mix/q@likelihood", 0.5),
    ]  # fmt: skip
    generated, scored = answers(pd.DataFrame(rows))
    assert (generated.tasks, generated.form, generated.seeds) == ("mix/q", "generate", 2)
    assert (generated.accuracy, generated.invalid) == (pytest.approx(0.65), pytest.approx(0.03))
    assert (scored.form, scored.invalid) == ("likelihood", None)


def test_a_sweep_without_choices_is_refused() -> None:
    with pytest.raises(UserError, match="no record has one"):
        answers(pd.DataFrame([row("lora", "wikitext2@ppl-128", 20.0, majority=float("nan"))]))
