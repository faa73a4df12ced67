"""Mean columns over the tasks of a suite, on SIMULATED records."""

from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from analysis.compare import Samples
from analysis.formats import csv_text, markdown
from analysis.layout import Layout, layout
from analysis.load import load
from analysis.means import with_means
from analysis.stats import NotComparable, compare, mcnemar
from analysis.tables import Table, table
from methods.spec import UserError

from .simulate import ROWS, failure, record, scores

TASKS = ("boolq", "piqa", "arc_easy")
SUITE = {"three": list(TASKS)}
MEAN = "mix/three-mean@generate[:200]"


def put(store: Path, method: str, seed: int, task: str, accuracy: float, n: int = 200, form: str = "generate[:200]", **keys) -> None:
    predictions = scores(f"{method}{task}", seed, accuracy, n)
    predictions["example"] = f"{task}-" + predictions["example"]
    rows = ROWS | {"dataset": f"mix/{task}", "sha256": f"{task:0<64}"[:64]}
    name = f"{method}{seed}{task}{crc32(form.encode())}"
    record(store, name, method, seed, predictions, task="mix", protocol=f"mix/{task}@{form}", **{"rows": rows} | keys)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for seed in (0, 1):
        for task, good, bad in zip(TASKS, (0.8, 0.7, 0.6), (0.5, 0.4, 0.6), strict=True):
            put(tmp_path, "lora", seed, task, good + 0.02 * seed)
            put(tmp_path, "bitfit", seed, task, bad)
    return tmp_path


def built(store: Path, **keys) -> Table:
    return table(load(store), store, Layout(means=SUITE, **keys))


def cell(made: Table, label: str, name: str = MEAN):
    return next(row for row in made.rows if row.label == label).cells[name]


def test_the_mean_is_unweighted_and_per_seed(store):
    put(store, "lora", 0, "extra", 0.1)
    made = built(store)
    assert cell(made, "lora").values == pytest.approx((0.7, 0.72)) and cell(made, "bitfit").values == pytest.approx((0.5, 0.5))
    assert cell(made, "lora").std == pytest.approx(np.std([0.7, 0.72], ddof=1)) and cell(made, "lora").best
    column = next(c for c in made.columns if c.name == MEAN)
    assert (column.metric, column.higher_is_better, column.examples) == ("mean accuracy", True, 600)
    note = f"{MEAN}: unweighted mean over " + ", ".join(f"mix/{task}@generate[:200] (accuracy)" for task in TASKS)
    assert note in made.footnotes and "0.710 ± 0.014 (2)" in markdown(made)
    line = next(line for line in csv_text(made).splitlines() if line.startswith(f"toy,lora,{MEAN}"))
    assert line.split(",")[4] == "0.71"


def test_tasks_of_unequal_size_count_the_same(tmp_path):
    for task, n, accuracy in (("boolq", 400, 0.5), ("piqa", 100, 0.8), ("arc_easy", 200, 0.8)):
        put(tmp_path, "lora", 0, task, accuracy, n)
    assert cell(built(tmp_path), "lora").values == pytest.approx((0.7,))


def test_an_incomplete_row_says_what_it_lacks(store):
    put(store, "dora", 0, "boolq", 0.9)
    put(store, "ia3", 0, "boolq", 0.9)
    for task in TASKS:
        put(store, "ia3", 1, task, 0.9)
    made = built(store)
    assert (cell(made, "dora").values, cell(made, "dora").missing) == ((), "without piqa, arc_easy")
    assert f"dora, toy, {MEAN}: without piqa, arc_easy" in made.footnotes
    found = cell(made, "ia3")
    assert (len(found.values), found.attempted, found.best, found.tied) == (1, 2, False, False)
    assert f"ia3, toy, {MEAN}: 1 of 2 seeds without piqa, arc_easy; not ranked" in made.footnotes


def test_a_failed_cell_has_no_mean(store):
    failure(store, "lora9", "lora", 9, kind="oom", task="mix")
    found = cell(built(store), "lora")
    assert (len(found.values), found.attempted, found.missing) == (2, 3, "without boolq, piqa, arc_easy")


def test_forms_are_never_mixed(store):
    for task in TASKS:
        put(store, "lora", 0, task, 0.9, form="loglikelihood-answer[:200]")
    put(store, "bitfit", 0, "boolq", 0.9, form="generate")
    made = built(store)
    assert {c.name for c in made.columns if "-mean" in c.name} == {MEAN, "mix/three-mean@loglikelihood-answer[:200]"}
    assert cell(made, "lora", "mix/three-mean@loglikelihood-answer[:200]").values == pytest.approx((0.9,))
    assert "mix/three-mean@generate: no mean, since no row was measured on piqa, arc_easy" in made.footnotes


def test_other_rows_under_the_same_protocol_are_no_mean(store):
    put(store, "dora", 0, "boolq", 0.9, rows=ROWS | {"sha256": "0ther" * 12})
    made = built(store)
    assert not any("-mean" in c.name for c in made.columns)
    assert any(note.startswith(f"{MEAN}: no mean, since ") and "not the same measurement" in note for note in made.footnotes)


def test_exact_protocols_may_have_different_forms_and_metrics(tmp_path):
    for task, form in (("sst2", "dev_best"), ("rte", "dev_best-from-mnli")):
        put(
            tmp_path,
            "lora",
            0,
            task,
            0.8 if task == "rte" else 0.9,
            form=form,
            metric="matthews" if task == "rte" else "accuracy",
            value=0.5,
        )
    asked = {"glue2": ["mix/sst2@dev_best", "mix/rte@dev_best-from-mnli"]}
    made = table(load(tmp_path), tmp_path, Layout(means=asked))
    assert cell(made, "lora", "glue2-mean").values == pytest.approx((0.5,)) and made.columns[0].metric == "mean"


def test_what_is_no_score_is_refused(tmp_path):
    for task in TASKS:
        put(tmp_path, "lora", 0, task, 0.5, metric="perplexity" if task == "piqa" else "accuracy", higher=task != "piqa", value=1.0)
    with pytest.raises(UserError, match=r"takes in mix/piqa@generate\[:200\], whose perplexity is no score"):
        built(tmp_path)


def test_the_interval_of_a_mean_difference_has_the_variance_of_independent_tasks(store):
    """Var(mean over T tasks) = sum Var_t / T^2, against the variance of each task's own paired difference."""
    means = with_means(load(store), SUITE)
    samples = Samples(means.frame, store, means.columns)
    rows = {label: samples.get("toy", MEAN, label) for label in ("lora", "bitfit")}
    gap = (rows["lora"].draws - rows["bitfit"].draws).mean(axis=0)
    parts = []
    for task in TASKS:
        a, b = (samples.get("toy", f"mix/{task}@generate[:200]", label) for label in ("lora", "bitfit"))
        parts.append((a.draws - b.draws).mean(axis=0).var(ddof=1))
    assert gap.var(ddof=1) == pytest.approx(sum(parts) / 9, rel=0.1)
    found = compare(rows["lora"], rows["bitfit"], None)
    assert found.value == pytest.approx(0.21) and (found.seeds, found.examples) == (2, 600)
    with pytest.raises(NotComparable, match="scores of 0 and 1"):
        mcnemar(*(replace(row, deterministic=True) for row in rows.values()))


def test_comparisons_and_costs_see_the_mean_once(store):
    made = built(store, baseline="bitfit")
    (found,) = [c for c in made.comparisons if c.column == MEAN]
    assert found.difference.value == pytest.approx(0.21)
    plain = table(load(store), store, Layout())
    assert [row.costs for row in made.rows] == [row.costs for row in plain.rows]
    assert cell(made, "lora").costs.seconds.mean == 10.0


def test_layouts_name_suites():
    assert len(layout("commonsense_sft").means["commonsense8"]) == 8 and len(layout("glue_peft").means["glue8"]) == 8


@pytest.mark.parametrize("tasks", [["boolq"], ["boolq", "boolq"], "boolq", ["boolq", "mix/piqa@generate"]])
def test_a_wrong_list_of_means_is_refused(tasks, tmp_path, monkeypatch):
    (tmp_path / "wrong.yaml").write_text(f"table: {{means: {{three: {tasks!r}}}}}")
    monkeypatch.setattr("analysis.layout.files", lambda package: tmp_path)
    with pytest.raises(UserError, match=r"table.means.three=.* is not allowed; give two tasks or more"):
        layout("wrong")
