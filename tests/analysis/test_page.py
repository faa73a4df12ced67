"""The report page of SIMULATED records: what it carries equals the records, nothing of it can run or leave its element."""

import base64
import gzip
import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from itertools import product

import numpy as np
import pandas as pd
import pytest

from analysis import formats, index, perexample
from analysis.cli import main
from analysis.curves import curves, thinned
from analysis.layout import Layout
from analysis.load import load, predictions
from analysis.means import with_means
from analysis.page import CHUNK, WEB, details, embedded, page
from analysis.page_command import UNCOUNTED, claims, mirror
from analysis.page_data import COSTS
from analysis.papers import published, slugs
from analysis.perexample import DETAILED, Reader, answered, with_predictions
from analysis.tables import table
from analysis.traces import LOG_LINES, trace
from harness.store import Store

from .simulate import record, scores, small_store

HOSTILE = '<script>alert("x")</script>|a&b<img src=x onerror=alert(1)>\'"`${alert(2)}\n\u2028\u2029<!--]]>'
NOTHING = {"status": "done", "predictions": None, "seed": 0}
"""What a result without predictions has in a frame."""
VOID = {"meta", "input", "link", "br"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The small store, one of its cells with a learning curve and a log."""
    root = small_store(tmp_path_factory.mktemp("page") / "runs")
    rows = [{"phase": "main", "step": i, "seconds": 1.0 * i, "loss": 1 / i} for i in range(1, 901)]
    rows += [{"phase": "main", "step": 900, "selection/accuracy": 0.5}]
    (root / "lora0" / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"phase": "ma')
    (root / "lora0" / "log.txt").write_text("".join(f"line {i}\n" for i in range(100)) + HOSTILE.replace("\n", " ") + "\n")
    return root


@pytest.fixture(scope="module")
def frame(store):
    return load(store)


@pytest.fixture(scope="module")
def built(frame, store):
    return table(frame, store, Layout(title="Simulated", heading="simulated: not a result", baseline="full_ft"))


@pytest.fixture(scope="module")
def opened(frame, store):
    return details(frame, store)


class Document(HTMLParser):
    """Elements, attributes, and the text of each script and style, by the rules of HTML; every element closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], {}

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("id")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] in ("script", "style", "title", "h1"):
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data


def parsed(text):
    document = Document()
    document.feed(text)
    document.close()
    assert document.open == []
    return document


def carried(text):
    return json.loads(parsed(text).texts["script", "data"])


def unpacked(opened, number):
    return json.loads(gzip.decompress(base64.b64decode(opened.chunks.texts[number])))


def test_every_row_and_number_of_the_table(built, frame):
    data = carried(page(built, frame))
    (block,) = built.blocks()
    (shown,) = data["blocks"]
    assert shown["titles"] == formats.header(block)
    rows = {(row["model"], row["label"]): row for row in shown["rows"]}
    feet = {tuple(line[:2]): line for line in shown["feet"]}
    for line in formats.grid(block):
        key = (line[0].text, line[1].text)
        if key in feet:
            assert feet[key] == [entry.text for entry in line]
            continue
        (cell,) = rows[key]["cells"]
        assert (cell["text"], cell.get("best", False), cell.get("tied", False)) == (line[2].text, line[2].bold, line[2].tied)
        assert [text for text, _ in rows[key]["sides"]] == [entry.text for entry in line[3:]]
        own = next(row for row in block.rows if (row.model, row.label) == key)
        assert [number for _, number in rows[key]["sides"]] == formats.side_numbers(own) and cell.get("second", False) == own.cells[
            built.columns[0].name
        ].second
    assert len(rows) == 5 and len(feet) == 1
    lora = rows["toy", "lora"]["cells"][0]
    assert lora["value"] == pytest.approx((0.85 + 0.84 + 0.85) / 3) and (lora["seeds"], lora["of"]) == (3, 3)
    broken = rows["toy", "bitfit"]["cells"][0]
    assert (broken["seeds"], broken["of"], broken["missing"]) == (2, 3, "diverged")
    assert data["notes"] == built.footnotes and data["compared"] == formats.sentences(built)


def test_families_are_those_of_the_methods_folders(built, frame):
    rows = carried(page(built, frame))["blocks"][0]["rows"]
    assert {row["label"]: row["family"] for row in rows} == {
        "full_ft": "baselines", "lora": "adapters", "linear_probe": "baselines", "none": "baselines", "bitfit": "sparse",
    }  # fmt: skip


def test_every_result_and_failure_of_the_frame(built, frame):
    results = carried(page(built, frame))["results"]
    text = {name: [results[name]["texts"][code] for code in results[name]["codes"]] for name in ("label", "status", "reason")}
    shown = set(zip(results["cell"], results["seed"], results["value"], text["label"], text["status"], strict=True))
    wanted = {(r.cell, r.seed, None if pd.isna(r.value) else r.value, r.label, r.status) for r in frame.itertuples()}
    assert shown == wanted and len(results["cell"]) == len(frame)
    assert text["reason"][results["cell"].index("bitfit2")] == "the loss is not finite"
    assert set(results["column"]) == {0}


def test_costs_are_means_over_the_seeds_with_inherited_work(built, frame):
    index = frame[frame["cell"] == "lora0"].index
    changed = frame.assign(inherited_flops=frame["inherited_flops"].where(frame["cell"] != "lora0", 6e9))
    changed.loc[index, "seconds"] = 40.0
    rows = carried(page(built, changed))["blocks"][0]["rows"]
    costs = dict(zip(COSTS, next(row for row in rows if row["label"] == "lora")["cells"][0]["costs"], strict=True))
    assert costs == {
        "trainable_method": 3000, "bytes_shipped": 12_200, "bytes": 400_000, "peak_memory": 10**9, "seconds": (40 + 10 + 10) / 3,
        "flops_all": pytest.approx((7e9 + 1e9 + 1e9) / 3),
    }  # fmt: skip


def test_columns_made_from_others_have_costs_but_no_cells_of_their_own(tmp_path):
    for task in ("a", "b"):
        for method in ("lora", "none"):
            record(tmp_path, f"{method}{task}", method, 0, scores(method, 0, 0.7), task=f"toy/{task}", protocol=f"toy/{task}@heldout")
    frame = load(tmp_path)
    layout = Layout(means={"both": ["a", "b"]})
    data = carried(page(table(frame, tmp_path, layout), with_means(frame, layout.means).frame))
    position = [column["name"] for column in data["columns"]].index("toy/both-mean@heldout")
    assert position not in data["results"]["column"] and len(data["results"]["cell"]) == 4
    row = data["blocks"][0]["rows"][0]
    assert row["cells"][data["blocks"][0]["columns"].index(position)]["costs"][0] == 1000


def test_a_cell_holds_its_record_thinned_curves_and_the_end_of_its_log(opened, store):
    found = unpacked(opened, opened.cells["lora0"])["lora0"]
    whole = json.loads((store / "lora0" / "record.json").read_text())
    assert found["record"] == {key: whole[key] for key in whole if key not in ("schema", "files", "checksum", "status", "cell")}
    steps, values = found["curves"]["main loss"]
    assert len(steps) <= 200 and (steps[0], steps[-1], values[0]) == (1, 900, 1.0)
    assert all(value == pytest.approx(1 / step, rel=1e-4) for step, value in zip(steps, values, strict=True))
    assert found["curves"]["main selection/accuracy"] == [[900], [0.5]]
    assert len(found["log"]) == LOG_LINES and found["log"][0] == "line 61" and found["log"][-2] == "line 99"
    assert found["log"][-1] == HOSTILE.replace("\n", " ")


def test_a_failed_cell_holds_its_configuration_and_last_lines(store):
    found = trace(store, "bitfit2")
    assert found["outcome"]["lines"] == ["first", "the loss is not finite"] and found["config"]["method"]["name"] == "bitfit"
    assert set(found) == {"outcome", "config"} and "run" not in found["config"]


def test_cells_lie_in_chunks_of_limited_size(tmp_path):
    frame = pd.DataFrame({"cell": [f"c{i}" for i in range(2 * CHUNK + 1)], **dict.fromkeys(("model", "label", "column"), "a"), **NOTHING})
    for cell in frame["cell"]:
        (tmp_path / cell).mkdir()
        (tmp_path / cell / "record.json").write_text('{"sources": {"methods/x.py": "hash"}}')
    made = details(frame, tmp_path)
    assert [len(unpacked(made, i)) for i in range(3)] == [CHUNK, CHUNK, 1]
    assert all(cell in unpacked(made, number) for cell, number in made.cells.items())
    assert made.sources == {"methods/x.py": ["hash"]}


@pytest.mark.parametrize(("n", "points"), [(1000, 200), (201, 200), (5000, 40), (37, 4), (3, 200)])
def test_thinning_keeps_ends_extremes_and_order(n, points):
    rng = np.random.default_rng(n)
    values = rng.standard_normal(n).cumsum()
    values[rng.integers(n)] = 99.0
    values[rng.integers(n)] = -99.0
    kept = thinned(list(values), points)
    assert kept == sorted(set(kept)) and len(kept) <= points
    assert {0, n - 1, int(values.argmax()), int(values.argmin())} <= set(kept)
    if n <= points:
        assert kept == list(range(n))


def test_curves_leave_out_what_is_no_finite_number():
    rows = [{"phase": "main", "step": 1, "loss": 2.0, "note": "x"}, {"phase": "main", "step": 2, "loss": float("nan")}]
    assert curves([*rows, {"phase": "probe", "step": 1, "loss": 3}]) == {"main loss": ([1], [2.0]), "probe loss": ([1], [3.0])}


def bits(text, n):
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))[:n]


def test_packed_correctness_equals_the_predictions(frame, store):
    ((column, examples, found),) = answered(with_predictions(frame), Reader(store, 0))
    assert column == "toy/a@heldout" and list(examples.keys) == sorted(f"doc{i}" for i in range(200)) and len(found) == 12
    for (cell, variant), one in found.items():
        own = predictions(store, cell, f"evals/{cell}.parquet").set_index("example").loc[list(examples.keys)]
        assert variant == "main" and one.answers == own["prediction"].tolist() and examples.labels == own["label"].tolist()
        np.testing.assert_array_equal(bits(one.bits, 200), own["score"])


def test_packed_results_pair_by_example_whatever_their_order(tmp_path):
    both = pd.DataFrame({"example": ["b", "a", "a"], "score": [1.0, 0.0, 1.0], "label": ["x", "y" * 100, "z"]})
    record(tmp_path, "one", "one", 0, both)
    record(tmp_path, "two", "two", 0, both.iloc[::-1])
    record(tmp_path, "odd", "odd", 0, pd.DataFrame({"example": ["c"], "score": [1.0]}))
    ((_, examples, found),) = answered(with_predictions(load(tmp_path).query("cell != 'odd'")), Reader(tmp_path, 0))
    assert examples.keys == ("a", "a#1", "b") and examples.labels == ["y" * 80 + "…", "z", "x"]
    assert bits(found["one", "main"].bits, 3).tolist() == [0, 1, 1]
    assert bits(found["two", "main"].bits, 3).tolist() == [1, 0, 1]
    ((_, examples, found),) = answered(with_predictions(load(tmp_path)), Reader(tmp_path, 0))
    assert len({len(found) for _ in found}) == 1 and (("odd", "main") in found) != (("one", "main") in found)


def test_scores_that_are_not_0_or_1_stay_numbers_and_large_sets_keep_bits_alone(tmp_path):
    record(tmp_path, "ppl", "ppl", 0, pd.DataFrame({"example": ["a", "b"], "score": [2.645113, 3.0]}), task="t", protocol="t@ppl")
    many = pd.DataFrame({"example": [str(i) for i in range(DETAILED + 1)], "score": 1.0, "label": 0, "prediction": 0})
    record(tmp_path, "big", "big", 0, many, task="u", protocol="u@heldout")
    found = {column: (known, part) for column, known, part in answered(with_predictions(load(tmp_path)), Reader(tmp_path, 0))}
    assert found["t@ppl"][1]["ppl", "main"].scores == [2.645, 3.0] and found["t@ppl"][1]["ppl", "main"].bits is None
    known, part = found["u@heldout"]
    assert known.labels is None and part["big", "main"].answers is None and bits(part["big", "main"].bits, DETAILED + 1).all()


def test_no_more_files_are_opened_than_allowed_and_the_index_knows_the_rest(frame, store, monkeypatch):
    measured = with_predictions(frame)
    every = dict(next(answered(measured, Reader(store, 0)))[2])
    monkeypatch.setattr(perexample, "FILES", 5)
    ((_, examples, found),) = answered(measured, Reader(store, 12))
    assert len(examples.keys) == 200 and list(found) == list(every)[:5]
    Store(store).join("simulated", [], [])
    monkeypatch.setattr(index, "SETTLED", 0.0)
    load(store)
    ((_, _, found),) = answered(measured, Reader(store, 12))
    assert found == every
    monkeypatch.setattr(perexample, "FILES", 0)
    assert list(answered(measured, lambda cell, file: None)) == []


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["page", "--wandb", "me/it"], "--wandb me/it"), (["page", "--wandb-dir=a b", "x"], "'--wandb-dir=a b'"),
        (["page", "s", "--store", "x"], None),
    ],
)  # fmt: skip
def test_records_from_a_mirror_are_named_by_it(argv, told):
    assert mirror(argv) == told


def test_the_page_runs_its_own_script_and_fetches_nothing(built, frame, opened):
    text = page(built, frame, opened)
    document = parsed(text)
    policy = next(value for name, value in document.attributes if name == "content" and "default-src" in value)
    for kind in ("script", "style"):
        digest = base64.b64encode(sha256(document.texts[kind, None].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", re.sub(r'<script type="text/plain".*?</script>', "", text))
    assert not {name for name, _ in document.attributes if name.startswith("on") or name in ("src", "style")}
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|setTimeout\(['\"]", document.texts["script", None]
    )
    assert page(built, frame, opened) == text


def test_hostile_text_stays_text(tmp_path):
    table_of = scores("a", 0, 0.8).assign(prediction=HOSTILE, label=HOSTILE, example=[f"{i}{HOSTILE}" for i in range(200)])
    for i, method in enumerate((HOSTILE, "=cmd()", "lora")):
        record(tmp_path, f"c{i}", method, 0, table_of, model=HOSTILE, note=HOSTILE, task=HOSTILE, protocol=f"{HOSTILE}@heldout")
        (tmp_path / f"c{i}" / "log.txt").write_text(HOSTILE)
    frame = load(tmp_path)
    built = table(frame, tmp_path, Layout(title=HOSTILE, heading=HOSTILE, baseline="lora"))
    opened = details(frame, tmp_path)
    text = page(built, frame, opened)
    document = parsed(text)
    assert document.tags.count("script") == 2 + len(opened.chunks.texts) and "img" not in document.tags
    data = json.loads(document.texts["script", "data"])
    assert {row["label"] for row in data["blocks"][0]["rows"]} == {HOSTILE, "=cmd()", "lora"} and data["title"] == HOSTILE
    assert document.texts["title", None] == HOSTILE
    assert not set("<>&\u2028\u2029") & set(document.texts["script", "data"])
    assert all(re.fullmatch(r"[A-Za-z0-9+/=]+", chunk) for chunk in opened.chunks.texts)
    assert "\n".join(unpacked(opened, opened.cells["c0"])["c0"]["log"]).replace("\n", "") == HOSTILE.replace("\n", "")


def test_embedded_json_cannot_end_its_element():
    value = {"a</script><!--": "\u2028\u2029&"}
    assert not set("<>&\u2028\u2029") & set(embedded(value)) and json.loads(embedded(value)) == value


def test_a_table_alone_makes_a_page(built):
    data = carried(page(built))
    assert data["results"] is None and data["details"] == {} and len(data["blocks"][0]["rows"]) == 5
    assert data["made"]["rows"][0][0] == "toy/a@heldout" and data["made"]["rows"][0][3] == built.columns[0].rows["sha256"]
    assert "torch 2.13.0" in data["made"]["versions"]


def test_claims_without_counts_say_so_and_none_is_lost():
    lines = claims(None, [])
    ids = {(file.slug, claim.id): claim for file in map(published, slugs()) for claim in file.claims}
    assert len(lines) == len(ids) and {(line.slug, line.claim.id) for line in lines} == set(ids)
    for line in lines:
        if line.claim.count is not None and line.claim.verified != "from memory":
            assert (line.verdict, line.ours) == (UNCOUNTED, None)


def test_claims_with_counts_carry_ours_and_its_ratio():
    asked = []

    def counts(overrides):
        asked.append(tuple(overrides))
        return dict.fromkeys(("trainable_method", "trainable_head", "trainable", "head", "total", "prunable"), 589_824)

    lines = claims(counts, [])
    counted = [line for line in lines if line.ours is not None]
    assert asked and counted and all(line.verdict != UNCOUNTED for line in lines)
    assert all(line.ratio == pytest.approx(line.ours / line.published) for line in counted)


def test_the_command_writes_a_page_that_says_how_it_was_made(store, tmp_path, capsys):
    out = tmp_path / "page of mine.html"
    assert main(["page", "--store", str(store), "--out", str(out)]) == 0
    data = carried(out.read_text(encoding="utf-8"))
    assert data["made"]["command"] == f"parebench-report page --store {store} --out '{out}'" and data["made"]["cells"] == 13
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", data["made"]["when"])
    assert set(data["details"]) == set(data["results"]["cell"]) and data["claims"]
    assert sum(len(keys) for keys in data["examples"]["toy/a@heldout"]["parts"].values()) == 12
    assert main(["page", "--store", str(store)]) == 0 and (store / "report.html").is_file()


def test_claims_of_a_page_of_some_rows_are_answered_by_those(tmp_path):
    for method, model in product(("dora", "lora"), ("small", "large")):
        for seed in range(3):
            accuracy = (0.9 if method == "dora" else 0.5) + 0.01 * seed
            record(tmp_path, f"{method}{model}{seed}", method, seed, scores(method, seed, accuracy), config={"r": 8}, model=model)

    def cited(*more):
        out = tmp_path / "page.html"
        assert main(["page", "--store", str(tmp_path), "--out", str(out), *more]) == 0
        return set(re.findall(r"(?:dora|lora)(?:small|large)\d", json.dumps(carried(out.read_text(encoding="utf-8"))["claims"])))

    assert len(cited()) == 12
    assert cited("--where", "model == 'large'") == {f"{method}large{seed}" for method in ("dora", "lora") for seed in range(3)}


def colours():
    """Variable -> (light, dark), from the page's style."""
    style = (WEB / "page.css").read_text()
    return {name: (light, dark) for name, light, dark in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)}


def luminance(colour):
    """Relative luminance of WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_formula_on_known_pairs():
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_aa_contrast_in_both_themes(theme):
    named = {name: pair[theme] for name, pair in colours().items()}
    texts = ("ink", "soft", "accent", "best", "warn", "bad")
    pairs = [(text, ground) for text in texts for ground in ("ground", "raised", "hover")] + [("tip-ink", "tip"), ("warn", "warn-ground")]
    low = {pair: round(contrast(named[pair[0]], named[pair[1]]), 2) for pair in pairs if contrast(named[pair[0]], named[pair[1]]) < 4.5}
    assert low == {}


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_marks_and_edges_have_3_to_1_in_both_themes(theme):
    named = {name: pair[theme] for name, pair in colours().items()}
    drawn = [name for name in named if name.startswith("family-")] + ["edge", "accent"]
    assert len(drawn) == 10
    assert {name: c for name in drawn if (c := contrast(named[name], named["raised"])) < 3} == {}
