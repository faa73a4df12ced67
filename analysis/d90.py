"""Intrinsic dimension (Li et al. 2018, arXiv 1804.08838): the smallest subspace that reaches 90 % of full fine-tuning."""

from collections.abc import Mapping

import pandas as pd

from analysis.load import DONE

METHOD, FULL = "intrinsic_dim", "full_ft"
SUBSPACE = ["model", "column", "method.projection", "method.said"]


def smallest(scores: Mapping[int, float], full: float, share: float = 0.9) -> int | None:
    """The smallest d whose score is at least `share` of `full` (larger scores are better); None where no d is large enough."""
    return min((d for d, score in scores.items() if score >= share * full), default=None)


def d90(frame: pd.DataFrame) -> pd.DataFrame:
    """From the records of a sweep (`analysis.load`): per model, column and kind of subspace `full`, `needed` = 0.9 full, and `d90`.

    Scores are means over seeds; each d counts with the learning rate that is best for it. `d90` is missing where no d was enough.
    """
    done = frame[(frame["status"] == DONE) & frame["higher_is_better"].astype(bool)]
    full = done[done["method"] == FULL].groupby(["model", "column"])["value"].mean()
    keys = [*SUBSPACE, "method.d", "recipe.lr"]
    tried = done[done["method"] == METHOD].reindex(columns=[*keys, "value"])  # a store without subspaces lacks their columns
    rates = tried.groupby(keys, as_index=False)["value"].mean()
    rows = []
    for key, group in rates.groupby(SUBSPACE):
        if key[:2] in full.index:
            best = group.groupby("method.d")["value"].max()
            reference = full[key[:2]]
            found = smallest({int(d): score for d, score in best.items()}, reference)
            rows.append({**dict(zip(SUBSPACE, key, strict=True)), "full": reference, "needed": 0.9 * reference, "d90": found})
    return pd.DataFrame(rows, columns=[*SUBSPACE, "full", "needed", "d90"]).astype({"d90": "Int64"})
