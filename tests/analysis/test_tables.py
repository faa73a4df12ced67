"""What a table ranks, marks and says, on SIMULATED records."""

import numpy as np
import pandas as pd
import pytest

from analysis import stats
from analysis.compare import Samples, compare_with
from analysis.formats import markdown
from analysis.layout import Layout, layout
from analysis.load import load, predictions
from analysis.tables import MEDIANS, table
from harness.store import Store
from methods.spec import UserError

from .simulate import NUMERICS, ROWS, failure, record, scores, small_store

PROTOCOL = "toy/a@heldout"


@pytest.fixture
def store(tmp_path):
    return small_store(tmp_path / "runs")


def built(store, **keys):
    return table(load(store), store, Layout(**keys))


def cell(made, label, name=PROTOCOL):
    return next(row for row in made.rows if row.label == label).cells[name]


def test_means_and_spread_are_those_of_the_seeds(store):
    found = cell(built(store), "full_ft")
    assert found.values == pytest.approx((0.85, 0.86, 0.84))
    assert found.mean == pytest.approx(0.85) and found.std == pytest.approx(0.01)
    assert cell(built(store), "none").std is None and cell(built(store), "none").deterministic


def test_a_layout_may_show_medians_and_says_so(store):
    record(store, "full3", "full_ft", 3, scores("full_ft", 3, 0.5))
    plain, made = built(store), built(store, center="median")
    assert cell(made, "full_ft").center == pytest.approx(0.845) and cell(plain, "full_ft").center == pytest.approx(0.7625)
    assert cell(made, "full_ft").std == cell(plain, "full_ft").std and cell(made, "full_ft").best == cell(plain, "full_ft").best
    assert MEDIANS in made.footnotes and MEDIANS not in plain.footnotes
    assert "0.845" in markdown(made) and "0.845" not in markdown(plain)


def test_equal_methods_are_marked_and_a_clearly_worse_one_is_not(store):
    made = built(store)
    assert cell(made, "full_ft").best and cell(made, "lora").tied
    for worse in ("linear_probe", "none"):
        assert not cell(made, worse).tied and not cell(made, worse).best


def test_a_row_with_a_failed_seed_shows_k_of_n_and_is_not_ranked(store):
    made = built(store)
    found = cell(made, "bitfit")
    assert (len(found.values), found.attempted, found.complete) == (2, 3, False)
    assert found.mean > cell(made, "full_ft").mean and not found.best and not found.tied
    assert f"bitfit, toy, {PROTOCOL}: 1 of 3 seeds diverged; not ranked" in made.footnotes


def test_a_row_whose_seeds_all_failed_says_why(store):
    failure(store, "ia3a", "ia3", 0, kind="oom")
    found = cell(built(store), "ia3")
    assert (found.values, found.attempted, found.missing) == ((), 1, "oom")
    assert f"ia3, toy, {PROTOCOL}: oom" in built(store).footnotes


def test_detectable_difference_and_comparisons_are_those_of_the_statistics(store):
    made, frame = built(store, baseline="full_ft"), load(store)
    rows = {}
    for label in ("full_ft", "linear_probe", "lora", "none"):
        group = frame[(frame["label"] == label)]
        read = {row.seed: predictions(store, row.cell, row.predictions) for row in group.itertuples()}
        rows[label] = stats.sample(label, "accuracy", read, label == "none")
    column = list(rows.values())
    assert made.columns[0].detectable["toy"] == pytest.approx(
        stats.minimum_detectable_difference(column, stats.pooled_seed_variance(column))
    )
    assert [c.a for c in made.comparisons] == ["bitfit", "linear_probe", "lora", "none"]
    probe = made.comparisons[1].difference
    assert probe.value == pytest.approx((0.60 + 0.61 + 0.60) / 3 - 0.85) and probe.high < 0 and (probe.seeds, probe.examples) == (3, 200)


def test_a_baseline_that_is_nowhere_is_refused(store):
    with pytest.raises(UserError, match="no row is called nothing; there are: bitfit, full_ft"):
        built(store, baseline="nothing")


def test_predictions_that_do_not_give_the_recorded_metric_are_not_ranked_on(store):
    record(store, "lora0", "lora", 0, scores("lora", 0, 0.85), value=0.87, config={"r": 8})
    made = built(store, baseline="full_ft")
    assert not any(row.cells[PROTOCOL].best or row.cells[PROTOCOL].tied for row in made.rows)
    assert any("give accuracy 0.850000, recorded is 0.870000" in note for note in made.footnotes)
    assert "recorded is 0.870000" in next(c for c in made.comparisons if c.a == "lora").problem


def test_other_examples_are_not_compared(store):
    record(store, "ia30", "ia3", 0, scores("ia3", 0, 0.8).assign(example=[f"other{i}" for i in range(200)]))
    made = built(store, baseline="full_ft")
    assert "not measured on the same examples" in next(c for c in made.comparisons if c.a == "ia3").problem
    assert not any(row.cells[PROTOCOL].best for row in made.rows)


def test_best_is_within_a_model_and_blocks_have_no_columns_of_blanks(store):
    for method, accuracy in (("none", 0.5), ("magnitude", 0.3)):
        record(store, f"lm{method}", method, 0, scores(method, 0, accuracy), model="lm", protocol="piqa", task="piqa", deterministic=True)
    made = built(store)
    assert [(block.models, [c.name for c in block.columns]) for block in made.blocks()] == [(["lm"], ["piqa"]), (["toy"], [PROTOCOL])]
    best = {(row.model, row.label) for row in made.rows for c in row.cells.values() if c.best}
    assert best == {("lm", "none"), ("toy", "full_ft")}


def test_perplexity_is_better_lower_and_compared_as_a_ratio(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.normal(3, 0.2, 40)
    for method, extra in (("none", 0.0), ("magnitude", 1.0)):
        windows = pd.DataFrame({"example": [f"w{i}" for i in range(40)], "score": base + extra, "tokens": 100 + np.arange(40)})
        value = float(np.exp(np.average(windows["score"], weights=windows["tokens"])))
        record(tmp_path, method, method, 0, windows, value=value, metric="perplexity", higher=False, deterministic=True)
    made = built(tmp_path, baseline="none")
    assert cell(made, "none").best and not cell(made, "magnitude").tied and made.columns[0].decimals == 2
    assert made.comparisons[0].ratio and np.exp(made.comparisons[0].difference.value) == pytest.approx(np.e)


def test_perplexities_have_their_logarithms_in_a_footnote(tmp_path):
    windows = pd.DataFrame({"example": ["w"], "score": [1.0], "tokens": [9]})
    for seed, log in ((0, 1.0), (1, 1.5), (2, 2.0)):
        value = float(np.exp(log))
        record(tmp_path, f"wanda{seed}", "wanda", seed, windows, value=value, metric="perplexity", higher=False)
    record(tmp_path, "none", "none", 0, windows, value=2.0, metric="perplexity", higher=False, deterministic=True)
    told = f"{PROTOCOL}, toy: log perplexity, mean ± standard deviation over seeds: none 0.693; wanda 1.500 ± 0.500 (3)"
    assert told in built(tmp_path).footnotes


def test_footnotes_say_what_is_mixed_or_double(store):
    record(store, "lora9", "lora", 0, scores("lora", 0, 0.5), config={"r": 8}, numerics=NUMERICS | {"threads": 2})
    notes = built(store).footnotes
    assert f"{PROTOCOL}: cells ran under different threads" in notes
    assert f"lora, toy, {PROTOCOL}, seed 0: several records; lora0 is shown, lora9 left out" in notes
    assert cell(built(store), "lora").values[0] == pytest.approx(0.85)


def test_data_that_a_model_was_trained_on_is_said_in_the_columns_that_it_touches(tmp_path):
    known = {"glue/qqp": "was trained on duplicate questions", "glue/m*": "was trained on its pairs"}
    for name, dataset in (("a", "glue/qqp"), ("b", "glue/rte")):
        kept = record(tmp_path, name, "lora", 0, scores("lora", 0, 0.5), rows=ROWS | {"dataset": dataset}, protocol=f"{dataset}@heldout")
        kept.data["weights"] = {"source": "assets", "overlap": known}
        Store(tmp_path).write(kept)
    notes = [note for note in built(tmp_path).footnotes if "trained on" in note]
    assert notes == ["glue/qqp@heldout: toy was trained on duplicate questions"]


def test_rows_that_are_not_official_are_said(tmp_path):
    rows = {"dataset": "toy", "split": "validation", "rows": 100, "sha256": "ab", "official": False}
    record(tmp_path, "a", "lora", 0, scores("lora", 0, 0.5), rows=rows)
    assert f"{PROTOCOL}: 100 rows of toy (validation), not the official split" in built(tmp_path).footnotes


def test_training_on_a_part_of_the_official_set_is_said(tmp_path):
    train = {"dataset": "mix", "split": "train", "rows": 20, "sha256": "ab", "official": False}
    record(tmp_path, "a", "lora", 0, scores("lora", 0, 0.5), train=train)
    record(tmp_path, "b", "lora", 0, scores("lora", 0, 0.5), train=train | {"official": True}, task="toy/b", protocol="toy/b@heldout")
    notes = [note for note in built(tmp_path).footnotes if "trained on" in note]
    assert notes == ["toy, toy/a: trained on 20 rows of mix (train), not the official set"]


def test_compare_takes_methods_and_row_labels(store):
    for seed in (0, 1):
        for r in (8, 16):
            record(store, f"dora{r}{seed}", "dora", seed, scores("dora", seed, 0.8), config={"r": r})
    frame = load(store)
    samples = Samples(frame, store)
    found = compare_with(frame, samples, "full_ft", other="dora")
    assert [(c.a, c.b) for c in found] == [("dora (r=16)", "full_ft"), ("dora (r=8)", "full_ft")]
    (one,) = compare_with(frame, samples, "dora (r=8)", other="dora (r=16)")
    assert one.difference.value == 0 and one.difference.p == 1


def test_layouts_come_from_the_sweep_files():
    assert layout("quickstart").heading.startswith("demonstration") and layout("quickstart").baseline == "full_ft"
    assert layout("not-ours") == Layout(title="not-ours") and layout(None) == Layout()


def many_models(store, accuracies, models=12):
    """Each model is a repetition: three seeds of each method, whose examples are drawn anew."""
    for i in range(models):
        for method, accuracy in accuracies.items():
            rng = np.random.default_rng([i, *map(ord, method)])
            for seed in range(3):
                right = (rng.random(200) < accuracy).astype(float)
                predictions = pd.DataFrame({"example": [f"doc{j}" for j in range(200)], "score": right})
                record(store, f"{method}{i}-{seed}", method, seed, predictions, model=f"toy{i}")
    made = built(store)
    return [[row.cells[PROTOCOL] for row in made.rows if row.model == model] for model in dict.fromkeys(row.model for row in made.rows)]


def test_a_table_of_two_equal_methods_marks_them_as_equal_and_one_of_a_clear_difference_does_not(tmp_path):
    equal = many_models(tmp_path / "equal", {"a": 0.8, "b": 0.8})
    assert all(sum(one.best for one in pair) == 1 for pair in equal)
    assert sum(any(one.tied for one in pair) for pair in equal) >= len(equal) - 2
    apart = many_models(tmp_path / "apart", {"a": 0.85, "b": 0.6})
    assert all(a.best and not b.tied and b.second for a, b in apart)


def three_tasks(store):
    for task in ("a", "b", "c"):
        for method, accuracy in (("full_ft", 0.9), ("lora", 0.9), ("bitfit", 0.4)):
            for seed in range(2 if (method, task) == ("bitfit", "c") else 3):
                predictions = scores(method, seed, accuracy).assign(example=[f"{task}{i}" for i in range(200)])
                record(store, f"{method}{task}{seed}", method, seed, predictions, task=task, protocol=f"{task}@heldout")
    return store


def test_rows_that_finished_every_task_on_the_same_seeds_are_ranked_across_them(tmp_path):
    made = built(three_tasks(tmp_path))
    (across,) = made.rankings
    assert (across.model, across.form, across.ranking.tasks) == ("toy", "heldout", ("a@heldout", "b@heldout", "c@heldout"))
    assert [one.label for one in across.ranking.standings] == ["full_ft", "lora"] and across.ranking.groups == (("full_ft", "lora"),)
    assert all((one.wins, one.ties, one.losses) == (0, 3, 0) for one in across.ranking.standings)
    assert "toy, heldout: not ranked across tasks, since not measured on the same seeds throughout: bitfit" in made.footnotes
    text = markdown(made)
    assert "critical difference of mean ranks 1.13 (Nemenyi, 5 %)" in text and "| toy | lora | 1.50 | 0 | 3 | 0 |" in text


def test_a_row_that_lost_a_seed_is_in_no_ranking(tmp_path):
    store = three_tasks(tmp_path)
    failure(store, "lora_b3", "lora", 3, task="b")
    made = built(store)
    assert not made.rankings


def test_costs_have_training_flops_and_peak_memory(store):
    costs = next(row for row in built(store).rows if row.label == "lora").costs
    assert (costs.flops.mean, costs.peak_memory.mean) == (1e9, 1e9)
