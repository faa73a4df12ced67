"""Figures: data equal to what the records hold, fronts and bands by brute force and by hand, labels that cover nothing."""

import json
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from analysis import cli
from analysis.changes import with_changes
from analysis.load import load
from analysis.plots import critical, curves, draw_curves, draw_heat, draw_points, heat, points
from analysis.plots.curves import SELECTION, learning, swept
from analysis.plots.draw import broken, over, short
from analysis.plots.placing import leader, overlap, place, spread
from analysis.plots.points import Panel, Point, Value, forgetting, pareto, with_front
from analysis.plots.style import COLOURS, ENDINGS, GREY, RC, WIDTHS, save
from analysis.ranks import Ranking, Standing
from analysis.tables import Across
from harness.store import Store
from methods.spec import UserError
from tests.analysis.simulate import failure, record, scores, small_store


def panel(xs: list[float], ys: list[float], higher: bool = True, names: list[str] | None = None) -> Panel:
    made = tuple(
        Point(names[i] if names else f"method_{i}", Value(x, x, x), Value(y, y - 0.01, y + 0.01), 3, False)
        for i, (x, y) in enumerate(zip(xs, ys, strict=True))
    )
    return with_front(Panel("toy", "toy/a@heldout", "cost", "accuracy", higher, made))


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_nothing_dominates(seed: int, higher: bool) -> None:
    """Brute force over all pairs; few distinct values, so that ties are met."""
    rng = np.random.default_rng(seed)
    xs, ys = rng.integers(0, 6, 12).astype(float), rng.integers(0, 6, 12).astype(float)
    sign = 1 if higher else -1
    free = {
        i for i in range(12)
        if not any(xs[j] <= xs[i] and sign * ys[j] >= sign * ys[i] and (xs[j] < xs[i] or sign * ys[j] > sign * ys[i]) for j in range(12))
    }  # fmt: skip
    assert {i for i, point in enumerate(panel(xs.tolist(), ys.tolist(), higher).points) if point.front} == free


def held(root: Path, cell: str) -> dict:
    return json.loads((root / cell / "record.json").read_text())


def test_points_are_what_the_records_hold(tmp_path: Path) -> None:
    small_store(tmp_path)
    found = pareto(load(tmp_path), "parameters")
    assert [(one.model, one.column) for one in found] == [("toy", "toy/a@heldout")]
    by_name = {point.label: point for point in found[0].points}
    assert set(by_name) == {"full_ft", "lora", "linear_probe", "none"} and found[0].left_out == ("bitfit",)
    for name in ("full_ft", "lora", "linear_probe"):
        values = [held(tmp_path, f"{name}{seed}")["results"][0]["metrics"]["accuracy"] for seed in range(3)]
        mean, deviation = statistics.fmean(values), statistics.stdev(values)
        assert by_name[name].y == Value(mean, pytest.approx(mean - deviation), pytest.approx(mean + deviation))
        assert by_name[name].x.mean == held(tmp_path, f"{name}0")["costs"]["parameters"]["trainable_method"]
    assert by_name["none"].y == Value(0.5, 0.5, 0.5) and by_name["none"].deterministic
    assert {name for name, point in by_name.items() if point.front} == {"linear_probe", "lora", "full_ft"}


@pytest.mark.parametrize(
    ("cost", "key"), [("bytes", "bytes"), ("shipped", "bytes_shipped"), ("seconds", "seconds"), ("memory", "peak_memory")]
)
def test_every_cost_is_its_column(cost: str, key: str, tmp_path: Path) -> None:
    frame = load(small_store(tmp_path))
    for point in pareto(frame, cost)[0].points:
        own = frame[(frame["label"] == point.label) & (frame["status"] == "done")][key]
        assert (point.x.low, point.x.mean, point.x.high) == (own.min(), own.mean(), own.max())


def test_a_cost_that_no_record_has_is_refused(tmp_path: Path) -> None:
    frame = load(small_store(tmp_path)).assign(bytes=None)
    with pytest.raises(UserError, match="no record has bytes of the exported weights"):
        pareto(frame, "bytes")


def labels(made: Figure) -> list[mpl.text.Text]:
    return [text for ax in made.axes for text in ax.texts if text.get_gid() == "label"]


def clear(made: Figure) -> None:
    """No two labels share a pixel, and none leaves the figure."""
    made.draw_without_rendering()
    boxes = [text.get_window_extent() for text in labels(made)]
    assert boxes
    for a, b in combinations([(box.x0, box.y0, box.x1, box.y1) for box in boxes], 2):
        assert not overlap(a, b)
    width, height = made.get_size_inches() * made.dpi
    assert all(box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1 for box in boxes)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("n", [1, 5, 25, 60])
def test_labels_of_points_cover_nothing_and_all_are_there(n: int, width: str) -> None:
    rng = np.random.default_rng(n)
    one = panel((10 ** rng.normal(5, 0.7, n)).tolist(), rng.normal(0.8, 0.01, n).tolist())
    made = draw_points.draw([one], width)
    clear(made)
    texts = [text.get_text() for text in labels(made)]
    said = made._supxlabel.get_text().replace("\n", " ")
    named = [name for name in texts if name.startswith("method_")] or re.findall(r"method_\d+", said)
    assert sorted(named) == sorted(point.label for point in one.points)


@pytest.mark.parametrize("width", WIDTHS)
def test_long_titles_are_broken_and_cover_nothing(width: str) -> None:
    long = "commonsense_147k/arc_challenge@generate-masked-384-beam4-32[:100]"
    some = [replace(panel([1.0, 2.0], [0.1, 0.2]), column=f"{long}{i}") for i in range(4)]
    lines = curves.Panel(f"a_model_of_135m, {long}", "x", "accuracy", (line_of("lora", [0.1, 0.2]),))
    cells = heat.Heat(f"magnitude, {long}", ("attention.output.dense",) * 3, ("0", "1"), np.ones((3, 2)))
    for made in (draw_points.draw(some, width), draw_curves.draw([lines] * 4, width), draw_heat.draw([cells] * 4, width)):
        made.draw_without_rendering()
        boxes = [ax._left_title.get_window_extent() for ax in made.axes]
        whole = [made.bbox.width, made.bbox.height]
        for box, ax in zip(boxes, made.axes, strict=True):
            assert box.x0 >= 0 and box.x1 <= whole[0] and box.y1 <= whole[1] and long in ax.get_title(loc="left").replace("\n", "")
        for one, other in combinations([(box.x0, box.y0, box.x1, box.y1) for box in boxes], 2):
            assert not overlap(one, other)


def test_titles_break_after_their_parts() -> None:
    assert broken("minilm, glue/sst2@last", 14) == ["minilm, glue/", "sst2@last"]
    assert broken("minilm, glue/sst2@last", 99) == ["minilm, glue/sst2@last"]
    assert broken("abcdefgh", 3) == ["abc", "def", "gh"]


def test_drawn_points_and_bars_are_the_data() -> None:
    one = panel([1e3, 1e5, 1e7, 0], [0.7, 0.9, 0.8, 0.6])
    ax = draw_points.draw([one], "page").axes[0]
    zero = draw_points.zero_place([point.x.mean for point in one.points])
    assert zero == 100
    marks = {tuple(line.get_xydata()[0]) for line in ax.lines if line.get_marker() == "o"}
    assert marks == {(1e3, 0.7), (1e5, 0.9), (1e7, 0.8), (100.0, 0.6)}
    bars = sorted(tuple(np.round(part.get_segments()[0][:, 1], 9)) for part in ax.collections if np.ptp(part.get_segments()[0][:, 1]) > 0)
    assert bars == [(0.59, 0.61), (0.69, 0.71), (0.79, 0.81), (0.89, 0.91)]
    filled = {line.get_xydata()[0][0] for line in ax.lines if line.get_marker() == "o" and line.get_markerfacecolor() == draw_points.FRONT}
    assert filled == {100.0, 1e3, 1e5}
    assert draw_points._tick(100.0, zero, True, str) == "0" and draw_points._tick(1000.0, zero, True, str) == "1000.0"


@pytest.mark.parametrize(
    ("values", "place_of_zero"), [([0, 10, 1e4], 1.0), ([20, 1e4], 1.0), ([10, 100], None), ([0, 0], None), ([-1, 1, 100], None)]
)
def test_where_zero_stands_on_a_logarithmic_axis(values: list[float], place_of_zero: float | None) -> None:
    assert draw_points.zero_place(values) == place_of_zero


@pytest.mark.parametrize("seed", range(10))
def test_placed_boxes_are_clear_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    where = [tuple(point) for point in rng.uniform(100, 500, (25, 2))]
    sizes = [tuple(size) for size in rng.uniform((20, 8), (60, 10), (25, 2))]
    taken = [(x - 3, y - 3, x + 3, y + 3) for x, y in where]
    found = place(where, sizes, (0, 0, 600, 600), taken)
    assert found == place(where, sizes, (0, 0, 600, 600), taken) and None not in found
    for (a, point), (b, _) in combinations(zip(found, where, strict=True), 2):
        assert not overlap(a, b) and not any(overlap(step, b) for step in leader(a, point))
    for box, size in zip(found, sizes, strict=True):
        assert not any(overlap(box, other) for other in taken)
        assert (box[2] - box[0], box[3] - box[1]) == pytest.approx(size)
        assert box[0] >= 0 and box[1] >= 0 and box[2] <= 600 and box[3] <= 600


@pytest.mark.parametrize("seed", range(5))
def test_lines_to_labels_pass_no_other_mark(seed: int) -> None:
    rng = np.random.default_rng(seed)
    where = [tuple(point) for point in rng.normal(300, 12, (15, 2))]
    marks = [(x - 3, y - 3, x + 3, y + 3) for x, y in where]
    found = place(where, [(40.0, 12.0)] * 15, (0, 0, 600, 600), (), 2.0, marks)
    assert sum(box is not None and bool(leader(box, point, 2.0)) for box, point in zip(found, where, strict=True)) > 2
    for box, (x, y) in zip(found, where, strict=True):
        others = [mark for mark in marks if not (mark[0] < x < mark[2] and mark[1] < y < mark[3])]
        assert box is None or not any(overlap(step, mark) for step in leader(box, (x, y), 2.0) for mark in others)
        assert box is None or not any(overlap(box, mark) for mark in marks)


def test_a_label_without_room_is_none() -> None:
    assert place([(5, 5)], [(20, 4)], (0, 0, 10, 10)) == [None]


@pytest.mark.parametrize("seed", range(10))
def test_labels_at_a_side_are_moved_apart_by_least_squares(seed: int) -> None:
    """The reference is isotonic regression of the middles less their ranks' heights, bounded."""
    rng = np.random.default_rng(seed)
    middles = rng.uniform(0, 1, 8)
    found = np.array(spread(middles.tolist(), 0.1, -0.2, 1.2))
    order = np.argsort(middles)
    ranks = np.arange(8) * 0.1
    reference = np.clip(isotonic_regression(middles[order] - ranks).x, -0.15, 1.15 - 0.7) + ranks
    assert found[order] == pytest.approx(reference)
    assert np.diff(np.sort(found)).min() >= 0.1 - 1e-9
    tight = spread(middles.tolist(), 0.5, 0, 1)
    assert np.argsort(tight).tolist() == order.tolist() and np.diff(np.sort(tight)) == pytest.approx(1 / 8)


def sparse_store(root: Path) -> Path:
    for method, loss in (("pst", 0.1), ("movement", 0.2)):
        for sparsity in (0.25, 0.5, 0.75):
            for seed in range(3):
                table = scores(method, seed, 0.9 - loss * sparsity + 0.005 * seed * (1 + sparsity))
                record(root, f"{method}{sparsity}{seed}", method, seed, table, config={"sparsity": sparsity, "mode": "x"})
    for seed in range(3):
        record(root, f"dense{seed}", "full_ft", seed, scores("full_ft", seed, 0.9))
    return root


def test_bands_are_computed_as_by_hand(tmp_path: Path) -> None:
    sparse_store(tmp_path)
    found = swept(load(tmp_path), "method.sparsity", references=True)
    assert [one.title for one in found] == ["toy, toy/a@heldout"] and not found[0].log_x
    assert [line.label for line in found[0].series] == ["movement", "pst"]
    assert [(line.label, len(line.stops)) for line in found[0].references] == [("full_ft", 1)]
    for line in found[0].series:
        for stop in line.stops:
            cells = [held(tmp_path, f"{line.label}{stop.x}{seed}") for seed in range(3)]
            values = [cell["results"][0]["metrics"]["accuracy"] for cell in cells]
            mean = sum(values) / 3
            deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
            assert deviation > 0 and stop.seeds == 3
            assert (stop.mean, stop.low, stop.high) == pytest.approx((mean, mean - deviation, mean + deviation))
    drawn = draw_curves.draw(found, "column").axes[0]
    for line in found[0].series:
        own = next(one for one in drawn.lines if one.get_gid() == line.label)
        assert own.get_xydata().tolist() == [[stop.x, stop.mean] for stop in line.stops]
    lows = {tuple(np.round(part.get_paths()[0].vertices[:, 1].min(keepdims=True), 9)) for part in drawn.collections}
    assert lows == {(round(min(stop.low for stop in line.stops), 9),) for line in found[0].series}


def test_a_place_with_a_failed_seed_is_left_out_and_said(tmp_path: Path) -> None:
    sparse_store(tmp_path)
    failure(tmp_path, "broken", "pst", 3)
    config = json.loads((tmp_path / "broken" / "config.json").read_text())
    config["method"] |= {"sparsity": 0.5, "mode": "x"}
    (tmp_path / "broken" / "config.json").write_text(json.dumps(config))
    found = swept(load(tmp_path), "method.sparsity")[0]
    assert found.left_out == ("pst at 0.5",) and found.references == ()
    assert [stop.x for line in found.series for stop in line.stops if line.label == "pst"] == [0.25, 0.75]
    assert "not shown (failed seeds): pst at 0.5" in draw_curves.draw([found], "page")._supxlabel.get_text()


def test_a_search_is_drawn_by_its_selection_metric(tmp_path: Path) -> None:
    for lr, chosen in ((1e-5, 0.6), (1e-4, 0.7), (1e-3, 0.65)):
        made = record(tmp_path, f"c{lr}", "lora", 100, scores("lora", 0, 0.5), recipe={"lr": lr}, config={"r": 8})
        Store(tmp_path).write(replace(made, selection={"metric": chosen}, checksum="", files={}))
    found = swept(load(tmp_path), "recipe.lr", SELECTION)[0]
    assert found.log_x and [(stop.x, stop.mean) for stop in found.series[0].stops] == [(1e-5, 0.6), (1e-4, 0.7), (1e-3, 0.65)]
    assert all(stop.low == stop.high == stop.mean for stop in found.series[0].stops)
    ticks = [text.get_text() for text in draw_curves.draw([found], "page").axes[0].get_xticklabels()]
    assert "1e-4" in ticks and not any("$" in text for text in ticks)


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        ("method.mode", None, "--x method.mode is no numeric key of these records; there are: method.sparsity"),
        ("method.absent", None, "--x method.absent is no numeric key"),
        ("method.sparsity", "glue/x", "--y glue/x is in no record; there are: selection, toy/a@heldout"),
        ("recipe.lr", None, "no row has two values of recipe.lr"),
    ],
)
def test_what_was_not_swept_is_refused(x: str, y: str | None, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        swept(load(sparse_store(tmp_path)), x, y)


def line_of(label: str, values: list[float], xs: list[float] | None = None) -> curves.Series:
    stops = [curves.Stop(x, value, value - 0.01, value + 0.01, 3) for x, value in zip(xs or range(len(values)), values, strict=True)]
    return curves.Series(label, tuple(stops))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("together", [True, False])
def test_labels_of_lines_cover_nothing(width: str, together: bool) -> None:
    lines = [line_of(f"method_{i}", [0.7, 0.8, 0.85 + i * 1e-4], [1.0, 2.0, 3.0 + (not together) * i]) for i in range(7)]
    made = draw_curves.draw([curves.Panel("toy", "x", "accuracy", tuple(lines))], width)
    clear(made)
    assert sorted(text.get_text() for text in labels(made)) == sorted(line.label for line in lines)


def test_many_lines_have_a_panel_each() -> None:
    lines = [line_of(f"method_{i}", [0.7, 0.8 + 0.01 * i]) for i in range(12)]
    made = draw_curves.draw([curves.Panel("toy", "method.r", "accuracy", tuple(lines))], "page")
    titled = [ax.get_title(loc="left") for ax in made.axes if ax.get_title(loc="left")]
    assert titled == [line.label for line in lines]
    for ax, line in zip(made.axes, lines, strict=False):
        assert [one.get_xydata().tolist() for one in ax.lines if one.get_gid() == line.label] == [[[0, 0.7], [1, line.stops[1].mean]]]


def history(root: Path, cell: str, lines: list[dict]) -> None:
    (root / cell / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_learning_curves_are_the_histories(tmp_path: Path) -> None:
    small_store(tmp_path)
    for seed, shift in ((0, 0.0), (1, 0.1), (2, 0.4)):
        entries = [{"phase": "main", "step": step, "loss": 1 / step + shift} for step in (10, 20, 30)]
        entries += [{"phase": "more", "step": 5, "loss": 0.01 + shift}, {"phase": "main", "step": 20, "selection/accuracy": 0.5 + shift}]
        entries += [{"phase": "main", "step": 30, "selection/accuracy": 0.6 + shift}]
        history(tmp_path, f"lora{seed}", entries + ([{"phase": "main", "step": 12, "loss": 9.0}] if seed == 1 else []))
    found = {one.y_title: one for one in learning(load(tmp_path), tmp_path)}
    assert list(found) == ["training loss", "selection/accuracy"]
    (loss,) = found["training loss"].series
    assert [stop.x for stop in loss.stops] == [10, 20, 30, 35]
    for stop, base in zip(loss.stops, (0.1, 0.05, 1 / 30, 0.01), strict=True):
        values = [base, base + 0.1, base + 0.4]
        assert (stop.mean, stop.high - stop.mean) == pytest.approx((statistics.fmean(values), statistics.stdev(values)))
    assert [stop.mean for stop in found["selection/accuracy"].series[0].stops] == pytest.approx([0.5 + 1 / 6, 0.6 + 1 / 6])


def test_without_histories_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no histories"):
        learning(load(small_store(tmp_path)), tmp_path)


def test_profiles_are_the_measures_by_layer(tmp_path: Path) -> None:
    for seed in (0, 1):
        made = record(tmp_path, f"a{seed}", "adalora", seed, scores("adalora", seed, 0.8))
        ranks = {"m.layer.0.self.query": 2 + seed, "m.layer.10.self.query": 6, "m.layer.1.out.dense.weight": 1}
        Store(tmp_path).write(replace(made, measures={"ranks": ranks, "scales": [1], "total": 9, "flat": {"x": 1}}, checksum="", files={}))
    (found,) = heat.profiles(load(tmp_path), tmp_path)
    assert (found.rows, found.columns) == (("out.dense", "self.query"), ("0", "1", "10")) and "mean of 2 seeds" in found.title
    assert np.array_equal(found.values, [[np.nan, 1, np.nan], [2.5, np.nan, 6]], equal_nan=True)
    drawn = draw_heat.draw([found], "column").axes[0]
    written = {tuple(map(int, text.get_position())): text.get_text() for text in drawn.texts}
    assert {place: text for place, text in written.items() if text} == {(0, 1): "2.5", (1, 0): "1.0", (2, 1): "6.0"}
    with pytest.raises(UserError, match="no measure gates by layer; there are: ranks"):
        heat.profiles(load(tmp_path), tmp_path, "gates")


def test_interference_is_square_and_centred(tmp_path: Path) -> None:
    matrix = pd.DataFrame([[np.nan, -0.3], [0.1, np.nan]], ["a", "b"], ["a", "b"])
    matrix.to_csv(tmp_path / "m.csv")
    found = heat.interference(heat.read_matrix(tmp_path / "m.csv"))
    assert np.array_equal(found.values, matrix.to_numpy(), equal_nan=True)
    image = draw_heat.draw([found], "column").axes[0].get_images()[0]
    assert (image.norm.vmin, image.norm.vmax) == (-0.3, 0.3)
    for wrong in (matrix.rename(columns={"b": "c"}), matrix.astype(object).replace(0.1, "much")):
        with pytest.raises(UserError, match="same names on both sides"):
            heat.interference(wrong)


def test_numbers_in_cells() -> None:
    assert [draw_heat.number(value, 2) for value in (0.5, -0.25, 3.0, float("nan"))] == [".50", "-.25", "3.00", ""]


def test_forgetting_is_after_minus_before(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for method, accuracy, harm in (("lora", 0.8, 0.1), ("full_ft", 0.9, 0.3)):
        for seed in range(2):
            made = record(tmp_path, f"{method}{seed}", method, seed, scores(method, seed, accuracy))
            base, results = rng.gamma(20, 0.15, 40), list(made.results)
            for variant, shift in (("before", 0.0), ("main", harm * (1 + seed))):
                table = pd.DataFrame({"example": [f"w{i}" for i in range(40)], "score": base + shift, "tokens": 10})
                table.to_parquet(tmp_path / f"{method}{seed}" / f"evals/{variant}.parquet")
                results.append(
                    replace(
                        made.results[0],
                        protocol="w@ppl",
                        variant=variant,
                        metrics={"perplexity": float(np.exp(table["score"].mean()))},
                        primary="perplexity",
                        higher_is_better=False,
                        n=40,
                        predictions=f"evals/{variant}.parquet",
                        tokenizer="t",
                    )
                )
            Store(tmp_path).write(replace(made, results=results, checksum="", files={}))
    frame, _ = with_changes(load(tmp_path))
    (found,) = forgetting(frame, "w@ppl after-before", "toy/a@heldout")
    by_name = {point.label: point for point in found.points}
    assert by_name["lora"].x.mean == pytest.approx(0.15) and by_name["full_ft"].x.mean == pytest.approx(0.45)
    assert by_name["lora"].x.high - by_name["lora"].x.mean == pytest.approx(statistics.stdev([0.1, 0.2]))
    assert by_name["full_ft"].y.mean == pytest.approx(0.9) and found.x_title == "w@ppl after-before, log perplexity"
    clear(draw_points.draw([found], "column", front=False))
    with pytest.raises(UserError, match="w@other is in no record"):
        forgetting(frame, "w@other", "toy/a@heldout")


def ranked(ranks: list[float], groups: tuple[tuple[str, ...], ...], distance: float = 1.0) -> Ranking:
    standings = tuple(Standing(f"m{i}", rank, 0, 0, 0) for i, rank in enumerate(ranks))
    return Ranking(("t/a@x", "t/b@x"), standings, 0.01, distance, groups)


def test_the_diagram_of_ranks_joins_its_groups_without_crossing() -> None:
    ranking = ranked([1.0, 1.5, 2.5, 4.0, 4.5], (("m0", "m1"), ("m1", "m2"), ("m3", "m4")))
    found = critical.diagram(ranking)
    assert [(bar.low, bar.high, bar.line) for bar in found.bars] == [(1.0, 1.5, 0), (1.5, 2.5, 1), (4.0, 4.5, 0)]
    assert [(stem.label, stem.rank, stem.left, stem.line) for stem in found.stems] == [
        ("m0", 1.0, True, 0), ("m1", 1.5, True, 1), ("m2", 2.5, True, 2), ("m3", 4.0, False, 1), ("m4", 4.5, False, 0),
    ]  # fmt: skip
    for side in (True, False):
        own = sorted((stem for stem in found.stems if stem.left == side), key=lambda stem: stem.rank, reverse=not side)
        assert [stem.line for stem in own] == sorted(stem.line for stem in own)
    ax = critical.draw([Across("toy", "x", ranking)], "column").axes[0]
    thick = sorted(tuple(line.get_xdata()) for line in ax.lines if line.get_linewidth() > 2)
    assert thick == [pytest.approx(pair) for pair in ((0.96, 1.54), (1.46, 2.54), (3.96, 4.54))]
    scale = next(line for line in ax.lines if line.get_marker() == "|")
    assert np.ptp(scale.get_xdata()) == pytest.approx(1.0)
    assert {text.get_text() for text in ax.texts} >= {"m0 1.00", "m4 4.50", "CD = 1.00", "1", "5"}


DEUTERANOPIA = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]])
"""Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB."""


def lab(colour: str, matrix: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of a colour as it is seen through `matrix`."""
    srgb = np.array(to_rgb(colour))
    linear = np.clip(matrix @ np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear / [0.9505, 1, 1.089]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("matrix", [np.eye(3), DEUTERANOPIA])
def test_colours_are_told_apart_with_and_without_deuteranopia(matrix: np.ndarray) -> None:
    """About 2.3 is just noticeable; 10 is seen at a glance. The front stands out from the rest, all from white."""
    seen = [lab(colour, matrix) for colour in COLOURS]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 10
    assert np.linalg.norm(lab(draw_points.FRONT, matrix) - lab(GREY, matrix)) > 25
    assert min(np.linalg.norm(one - lab("white", matrix)) for one in seen) > 25
    assert draw_curves.FEW == len(COLOURS) == len(set(COLOURS))


@pytest.mark.parametrize("width", WIDTHS)
def test_files_are_as_wide_as_asked_with_their_fonts_and_alike(width: str, tmp_path: Path) -> None:
    one = panel([1e3, 1e5], [0.7, 0.9], names=["$x_1$ <b>&", "100 %"])
    for ending in ENDINGS:
        for name in ("one", "two"):
            save(draw_points.draw([one], width), tmp_path / f"{name}.{ending}")
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()
    pdf = (tmp_path / "one.pdf").read_bytes()
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ", pdf)
    assert float(box[1]) == pytest.approx(72 * WIDTHS[width], abs=0.1)
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf
    svg = (tmp_path / "one.svg").read_text()
    assert "<text" not in svg and "<!-- $x_1$ &lt;b&gt;&amp; -->" in svg and f'width="{72 * WIDTHS[width]:g}pt"' in svg
    assert (tmp_path / "one.png").read_bytes()[16:20] == round(300 * WIDTHS[width]).to_bytes(4, "big")


def test_words_about_the_spread() -> None:
    assert over([1, 1]) == "one seed: no bars" and over([3, 3], "band") == "band: ± 1 standard deviation over seeds (n = 3)"
    assert over([2, 5]) == "bars: ± 1 standard deviation over seeds (n = 2 to 5)"
    assert [short(value) for value in (1e-5, 2.5e-4, 0.001, 0.3, 20, 1e7)] == ["1e-5", "2.5e-4", "0.001", "0.3", "20", "1e7"]


def plot(root: Path, *words: str) -> int:
    return cli.main(["plot", *words, "--store", str(root)])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pareto", "--out", "f.jpg"], "--out f.jpg is not a figure; give a name that ends in .pdf, .svg, .png"),
        (["pareto", "--x", "money", "--out", "f.pdf"], "--x money is not allowed; allowed: parameters, shipped, bytes, memory, seconds"),
        (["pareto", "--methods", "lroa", "--out", "f.pdf"], "--methods lroa is in no row; there are:"),
        (["pareto", "--protocol", "x", "--out", "f.pdf"], "--protocol x is in no row; there are: toy/a@heldout"),
        (["pareto", "--model", "x", "--out", "f.pdf"], "--model x is in no row; there are: toy"),
        (["curve", "--out", "f.pdf"], "a curve needs the key that was swept"),
        (["forgetting", "--out", "f.pdf"], "nothing was measured before training"),
        (["interference", "--out", "f.pdf"], "interference needs a matrix of the methods"),
        (["critical", "--out", "f.pdf"], "ranks need two rows or more"),
        (["profile", "--out", "f.pdf"], "no measure by layer; none of these records has any"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plot(small_store(tmp_path / "store"), *words) == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")


def test_the_command_writes_the_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = sparse_store(tmp_path / "store"), tmp_path / "deep" / "f.pdf"
    assert plot(store, "sparsity", "--out", str(out), "--width", "column", "--methods", "pst,full_ft") == 0
    assert "wrote" in capsys.readouterr().out and out.read_bytes().startswith(b"%PDF")
    assert points.COSTS.keys() == {"parameters", "shipped", "bytes", "memory", "seconds"}


def test_the_command_line_starts_without_matplotlib() -> None:
    code = "import sys; import analysis.cli; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_style_holds_only_while_drawing() -> None:
    before = mpl.rcParams["font.size"]
    draw_points.draw([panel([1.0, 2.0], [0.1, 0.2])], "page")
    assert mpl.rcParams["font.size"] == before != RC["font.size"]
