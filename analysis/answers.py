"""What a model answers: per question set and form, accuracy beside the share of the most frequent answer, and how many answers are none."""

import math
from dataclasses import dataclass

import pandas as pd
from scipy.stats import norm

from analysis.load import DONE
from methods.spec import UserError

ABOVE, CHANCE, BELOW = "above", "at chance", "below"
"""An accuracy's interval beside the rate of the most frequent answer: over it, around it, under it."""


@dataclass(frozen=True)
class Answers:
    """One row label on one set of questions; rates in [0, 1], means over `seeds`."""

    label: str
    tasks: str
    """For instance `commonsense_147k/boolq`."""
    form: str
    """How answers are taken: the protocol after its `@`."""
    seeds: int
    n: int
    """Questions."""
    majority: float
    accuracy: float
    low: float
    high: float
    invalid: float | None
    """Share of answers that are none of the choices; None where the form cannot give one."""

    @property
    def verdict(self) -> str:
        """Is the accuracy told from always giving the most frequent answer?"""
        if self.low <= self.majority <= self.high:
            return CHANCE
        return ABOVE if self.low > self.majority else BELOW


def answers(frame: pd.DataFrame) -> list[Answers]:
    """Every label of `frame` (see `load`) on every protocol that recorded a `majority` rate; by questions, then form, then label."""
    done = frame[frame["status"] == DONE]
    if "metric.majority" not in done or done["metric.majority"].isna().all():
        raise UserError("answers needs protocols with a fixed set of choices, such as commonsense8 or piqa; no record has one")
    asked = done[done["metric.majority"].notna()].assign(asked=lambda rows: rows["column"].str.split("@").str[0])
    return [_answers(str(label), str(column), rows) for (_, column, label), rows in asked.groupby(["asked", "column", "label"])]


def wilson(rate: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (1927) of a proportion over `n` draws; scipy's takes whole counts alone, and a mean over seeds is none."""
    z = norm.ppf(0.5 + level / 2)
    middle = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


def _answers(label: str, column: str, rows: pd.DataFrame) -> Answers:
    tasks, form = column.split("@", 1)
    n, accuracy = int(rows["n"].iloc[0]), float(rows["value"].mean())
    invalid = rows.get("metric.invalid", pd.Series(dtype=float)).mean()
    return Answers(
        label, tasks, form, len(rows), n, float(rows["metric.majority"].mean()), accuracy, *wilson(accuracy, n),
        None if pd.isna(invalid) else float(invalid),
    )  # fmt: skip
