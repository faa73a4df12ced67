"""What records say to published numbers: only what they hold, and only comparisons that are fair."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from analysis import cli, evidence
from analysis.claims import (
    LARGE,
    MIXED,
    NOT_REPRODUCED,
    NOT_RUN,
    OPPOSITE,
    REPRODUCED,
    SAME,
    UNTOLD,
    UNVERIFIED,
    Line,
    answered,
    failed,
    judged,
    ours_text,
)
from analysis.evidence import Answer, Evidence, NotAnsweredError, told
from analysis.load import load
from analysis.papers import Against, Claim, Direction, Paper, Published, Query, Setting
from analysis.stats import Difference
from tests.analysis.simulate import failure, record, scores

PAPER = Paper("A", ["B"], 2020, None, "C")
ASKED = {"method": "lora", "model": "toy", "protocol": "toy/a@heldout", "metric": "accuracy", "tolerance": "+-1.0"}


def claim(value: float = 85, unit: str = "points", verified: str = "official code", model: str = "m", **given: object) -> Claim:
    return Claim("c", "quality", "w", Setting(model, "p"), value, unit, "Table 1", verified, against=Against("x", 1.0), **given)


def line(stated: Claim, *stores: Path) -> Line:
    return judged([Published("lora", PAPER, [stated])], ["quality"], {}.__getitem__, [Evidence(load(store), store) for store in stores])[0]


def lora_store(root: Path, accuracies: tuple[float, ...] = (0.85, 0.84, 0.86), **more: object) -> Path:
    for seed, accuracy in enumerate(accuracies):
        record(root, f"lora{seed}", "lora", seed, scores("lora", seed, accuracy), config={"r": 8, "rslora": False}, **more)
    return root


def failed_seed(root: Path, seed: int, **method: object) -> None:
    failure(root, f"failed{seed}", "lora", seed)
    path = root / f"failed{seed}" / "config.json"
    config = json.loads(path.read_text())
    config["method"] |= method
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("value", "tolerance", "verdict"),
    [(85.9, "+-1.0", REPRODUCED), (86.1, "+-1.0", NOT_REPRODUCED), (85, "exact", REPRODUCED), (80, "at least", REPRODUCED)],
)
def test_a_score_is_reproduced_within_its_tolerance(value: float, tolerance: str, verdict: str, tmp_path: Path) -> None:
    found = line(claim(value, query=Query(**ASKED | {"tolerance": tolerance})), lora_store(tmp_path))
    assert found.verdict == verdict and failed([found]) == (verdict == NOT_REPRODUCED)
    assert found.ours == pytest.approx(85.0) and found.source == ("lora0", "lora1", "lora2")


def test_ours_is_the_mean_or_the_median_of_what_the_record_files_hold(tmp_path: Path) -> None:
    """Traced to the JSON of the cells that it names, and gone with them."""
    lora_store(tmp_path, (0.85, 0.84, 0.92))
    record(tmp_path, "other0", "bitfit", 0, scores("bitfit", 0, 0.5))
    for center, by_hand in (("mean", np.mean), ("median", np.median)):
        stated = claim(query=Query(**ASKED | {"center": center}))
        found = line(stated, tmp_path)
        held = [json.loads((tmp_path / cell / "record.json").read_text())["results"][0]["metrics"]["accuracy"] for cell in found.source]
        assert len(held) == 3 and found.ours == pytest.approx(100 * by_hand(held), abs=1e-9)
    for cell in found.source:
        shutil.rmtree(tmp_path / cell)
    gone = line(stated, tmp_path)
    assert (gone.ours, gone.source, gone.verdict, ours_text(gone)) == (None, (), NOT_RUN, "–")  # noqa: RUF001


def test_a_number_without_its_source_cannot_be_made() -> None:
    for ours, source in ((1.0, ()), (None, ("cell",))):
        with pytest.raises(ValueError, match="comes with the count or the cells"):
            Line("lora", claim(not_run="x"), ours, NOT_RUN, source=source)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "big"}, "no record of lora on big under toy/a@heldout"),
        ({"protocol": "toy/a@dev_best"}, "no record of lora on toy under toy/a@dev_best"),
        ({"metric": "f1"}, "no record of lora"),
        ({"budget": "paper"}, "no record of lora"),
        ({"overrides": ["method.r=16"]}, "no record of lora"),
        ({"overrides": ["method.absent=1"]}, "no record of lora"),
    ],
)
def test_another_setting_is_not_an_answer(change: dict, reason: str, tmp_path: Path) -> None:
    found = line(claim(query=Query(**ASKED | change)), lora_store(tmp_path))
    assert (found.verdict, found.ours) == (NOT_RUN, None) and found.reason.startswith(reason)


def test_the_setting_that_is_asked_for_is_found_among_others(tmp_path: Path) -> None:
    lora_store(tmp_path)
    record(tmp_path, "wide0", "lora", 0, scores("wide", 0, 0.7), config={"r": 16, "rslora": True})
    assert line(claim(query=Query(**ASKED)), tmp_path).reason.startswith("several rows answer: lora (r=16, rslora)")
    assert line(claim(query=Query(**ASKED, overrides=["method.r=8", "method.rslora=false"])), tmp_path).ours == pytest.approx(85)
    assert line(claim(query=Query(**ASKED, overrides=["method.r=16", "method.rslora=true"])), tmp_path).ours == pytest.approx(70)


def test_a_failed_seed_is_no_answer(tmp_path: Path) -> None:
    lora_store(tmp_path)
    failed_seed(tmp_path, 3, r=8, rslora=False)
    found = line(claim(query=Query(**ASKED)), tmp_path)
    assert (found.verdict, found.reason) == (NOT_RUN, "only 3 of 4 seeds finished")


def test_memory_gets_no_verdict_and_a_large_model_is_set_apart(tmp_path: Path) -> None:
    lora_store(tmp_path)
    assert line(claim(verified="from memory", query=Query(**ASKED)), tmp_path).verdict == UNVERIFIED
    asked = Query(**ASKED | {"model": "llama2_7b"})
    assert line(claim(model="LLaMA-2-7B", query=asked), tmp_path).verdict == LARGE
    assert line(claim(model="OPT 2.7B to 30B", not_run="no record"), tmp_path).verdict == LARGE
    for model in ("RoBERTa-base", "T0-3B", "LLaMA-3.2-3B"):
        assert line(claim(model=model, query=asked), tmp_path).verdict == NOT_RUN
    unheard = judged([Published("unheard_of", PAPER, [claim(model="X-7B", query=asked)])], ["quality"], {}.__getitem__, [])
    assert unheard[0].reason == "there is no method unheard_of yet"


def pair(root: Path, better: float, worse: float, name: str = "toy", budget: str = "short", lr: float = 1e-3, **more: object) -> Path:
    for method, accuracy in (("dora", better), ("lora", worse)):
        for seed in range(3):
            cell = f"{method}{name}{budget}{lr}{seed}"
            table = scores(method, seed, accuracy + 0.005 * (seed - 1), n=1000)
            record(root, cell, method, seed, table, config={"r": 8}, model=name, budget=budget, recipe={"lr": lr}, **more)
    return root


UP = Direction("dora", "lora", ["*"], equal=["method.r"])


@pytest.mark.parametrize(
    ("better", "worse", "margin", "verdict"),
    [
        (0.85, 0.70, 0.0, SAME), (0.70, 0.85, 0.0, OPPOSITE), (0.80, 0.80, 0.0, UNTOLD),
        (0.80, 0.80, 0.1, SAME), (0.70, 0.85, 0.1, OPPOSITE), (0.60, 0.85, 0.1, OPPOSITE), (0.85, 0.70, 0.1, SAME),
    ],
)  # fmt: skip
def test_a_direction_is_told_by_the_paired_interval_and_the_margin(
    better: float, worse: float, margin: float, verdict: str, tmp_path: Path
) -> None:
    stated = claim(direction=Direction("dora", "lora", ["*"], equal=["method.r"], margin=margin))
    found = line(stated, pair(tmp_path, better, worse))
    assert found.verdict == verdict and found.ours is None and len(found.answers) == 1
    answer = found.answers[0]
    assert answer.comparison.difference.value == pytest.approx(better - worse, abs=1e-9)
    assert answer.gain.value == pytest.approx(better - worse + margin, abs=1e-9)
    assert answer.gain.low == pytest.approx(answer.comparison.difference.low + margin, abs=1e-9)
    assert set(answer.cells) == {f"{method}toyshort0.001{seed}" for method in ("dora", "lora") for seed in range(3)}
    assert answered(found)[0].startswith(f"toy/a@heldout, toy: dora vs lora: {better - worse:+.4f} [")


def test_a_lower_perplexity_is_better(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.gamma(20, 0.15, 60)
    for method, shift in (("dora", -0.2), ("lora", 0.0)):
        table = pd.DataFrame({"example": [f"d{i}" for i in range(60)], "score": base + shift, "tokens": 100})
        value = float(np.exp(table["score"].mean()))
        given = {"value": value, "metric": "perplexity", "higher": False, "protocol": "w@ppl-100", "deterministic": True}
        record(tmp_path, method, method, 0, table, config={"r": 8}, **given)
    found = line(claim(5, "perplexity", direction=UP), tmp_path)
    assert found.verdict == SAME and found.answers[0].comparison.ratio
    assert found.answers[0].comparison.difference.value == pytest.approx(-0.2) and found.answers[0].gain.value == pytest.approx(0.2)


def test_only_fair_pairs_answer(tmp_path: Path) -> None:
    pair(tmp_path, 0.85, 0.70)
    record(tmp_path, "long", "dora", 0, scores("dora", 0, 0.99, n=1000), config={"r": 8}, budget="paper")
    record(tmp_path, "wide", "dora", 0, scores("dora", 0, 0.99, n=1000), config={"r": 64})
    answers = Evidence(load(tmp_path), tmp_path).answers(UP)
    assert [(answer.comparison.a, answer.comparison.b) for answer in answers] == [("dora (r=8, budget=short)", "lora")]
    assert Evidence(load(tmp_path), tmp_path).answers(Direction("dora", "lora", ["other@*"])) == []
    assert Evidence(load(tmp_path), tmp_path).answers(Direction("dora", "lora", ["*"], at={"method.r": [4, 16]})) == []
    assert len(Evidence(load(tmp_path), tmp_path).answers(Direction("dora", "lora", ["toy/?@*"], at={"method.r": [8, 16]}))) == 1


def test_rows_that_differ_in_their_recipe_alone_are_not_chosen_from(tmp_path: Path) -> None:
    pair(tmp_path, 0.85, 0.70)
    pair(tmp_path, 0.70, 0.85, lr=1e-2)
    found = line(claim(direction=UP), tmp_path)
    assert found.verdict == NOT_RUN and [answer.gain for answer in found.answers] == [None]
    assert "dora has 2 recipes there and lora has 2 recipes there, of which none is said to stand for it" in answered(found)[0]


def test_a_failed_seed_is_not_compared(tmp_path: Path) -> None:
    pair(tmp_path, 0.85, 0.70)
    failed_seed(tmp_path, 5, r=8)
    found = line(claim(direction=UP), tmp_path)
    assert found.verdict == NOT_RUN and "not every seed finished" in answered(found)[0]


def test_what_no_record_compares_is_named(tmp_path: Path) -> None:
    asked = Direction("dora", "lora", ["glue/*"], at={"method.r": 8}, worse_at={"method.rslora": False})
    found = line(claim(direction=asked, model="LLaMA-7B"), lora_store(tmp_path))
    assert (found.verdict, found.reason) == (NOT_RUN, "no record compares dora with lora (rslora=False), both (r=8), under glue/*")


def test_one_seed_of_a_random_method_tells_nothing(tmp_path: Path) -> None:
    """However wide the difference: how much a seed changes is not known. Two deterministic methods are told by their examples."""
    for fixed, verdict in ((False, UNTOLD), (True, SAME)):
        root = tmp_path / str(fixed)
        for method, accuracy in (("dora", 0.9), ("lora", 0.5)):
            record(root, method, method, 0, scores(method, 0, accuracy, n=1000), config={"r": 8}, deterministic=fixed)
        found = line(claim(direction=UP), root)
        assert found.verdict == verdict and found.answers[0].comparison.difference.value == pytest.approx(0.4)
        assert ("cannot be told, since no row has two seeds" in answered(found)[0]) != fixed


def test_the_same_cells_in_two_stores_answer_once(tmp_path: Path) -> None:
    one = pair(tmp_path / "a", 0.85, 0.70)
    shutil.copytree(one, tmp_path / "b")
    assert len(line(claim(direction=UP), one, tmp_path / "b").answers) == 1


def test_several_answers_are_corrected_together_and_may_be_mixed(tmp_path: Path) -> None:
    one, two = pair(tmp_path / "a", 0.85, 0.70), pair(tmp_path / "b", 0.70, 0.85, name="other")
    assert line(claim(direction=UP), one).verdict == SAME
    assert line(claim(direction=UP), two).verdict == OPPOSITE
    assert line(claim(direction=UP), one, two).verdict == MIXED


def answer(value: float, error: float = 1.0) -> Answer:
    half = scipy_stats.norm.ppf(0.975) * error
    p = 2 * scipy_stats.norm.sf(abs(value) / error)
    return Answer(None, (), Difference("a", "b", value, value - half, value + half, p, 3, 10, "x"))


def test_what_is_told_is_what_holm_leaves() -> None:
    """z = 2.2 alone is told (p = 0.028); among three with p = 0.02 and 0.9 it is not (2 * 0.028 > 0.05 after 3 * 0.02 > 0.05)."""
    assert told([answer(2.2)]) == [1] and told([answer(-2.2)]) == [-1] and told([answer(1.9)]) == [0]
    assert told([answer(2.2), answer(-2.33), answer(0.1)]) == [0, 0, 0]
    assert told([answer(9.0), Answer(None), answer(0.1)]) == [1, 0, 0]
    assert told([]) == []


def test_a_direction_from_memory_has_no_verdict(tmp_path: Path) -> None:
    found = line(claim(verified="from memory", direction=UP), pair(tmp_path, 0.85, 0.70))
    assert (found.verdict, found.answers) == (UNVERIFIED, ())


def test_a_mean_over_tasks_answers_by_its_mean(tmp_path: Path) -> None:
    for task, accuracy in (("a", 0.6), ("b", 0.8)):
        record(tmp_path, task, "lora", 0, scores(task, 0, accuracy), protocol=f"toy/{task}@heldout", task=f"toy/{task}")
    store = Evidence(load(tmp_path), tmp_path)
    whole = evidence.with_means(store.frame, {"both": ["a", "b"]})
    store.frame = whole.frame
    found = store.value(Query(**ASKED | {"protocol": "toy/both-mean@heldout"}))
    assert found.value == pytest.approx(0.7)


def test_nothing_is_answered_without_records(tmp_path: Path) -> None:
    lora_store(tmp_path)
    with pytest.raises(NotAnsweredError):
        Evidence(load(tmp_path), tmp_path).value(Query(**ASKED | {"method": "dora"}))


def test_the_command_looks_records_up_and_counts_the_classes_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pair(lora_store(tmp_path), 0.85, 0.70, name="other")
    stated = [claim(84.9, query=Query(**ASKED)), claim(direction=UP), claim(model="X-7B", not_run="no record"), claim(not_run="no")]
    monkeypatch.setattr(cli.papers, "published", lambda slug: Published("lora", PAPER, stated))
    assert cli.main(["claims", "lora", "--kind", "quality", "--store", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "by records, 2 claims: 1 reproduced, 1 same direction at another scale" in out
    assert "neither, 2 claims: 1 not run, needs a model of 7B or more, 1 not run" in out
    assert "counted" not in out and "cells lora0, lora1, lora2" in out
    assert cli.main(["claims", "lora", "--kind", "quality"]) == 0
    assert "records are looked up with --store" in capsys.readouterr().out
    assert cli.main(["claims", "lora", "--sweep", "x"]) == 2
