"""Paper layouts filled with SIMULATED records: what is shown, why something is not, published values, every format."""

import csv
import io
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis import arranged_text, layouts, papers, quoted
from analysis.arrange import MEASURED, NOT_RUN, PUBLISHED, arrange
from analysis.cli import main
from analysis.layout import Layout, layout
from analysis.load import load
from analysis.render import TIED
from analysis.tables import table
from harness.registry import files as techniques
from harness.registry import load_spec
from methods.spec import UserError

from .simulate import failure, record, scores

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = '<script>alert("x")</script>|a&b_c%d$e#f{g}~h^i\\j\n=cmd()[k]*l`\u2028'
ENDINGS = {"md": "md", "csv": "csv", "tex": "latex", "html": "html"}

SMALL = {
    "title": "Simulated, in rows and columns of its own",
    "rows": [
        {"group": "dense"},
        {"method": "full_ft", "show": "Fine-tuning"},
        {"group": "sparse"},
        {"method": "magnitude", "where": {"sparsity": 0.5}, "show": "Magnitude"},
        {"method": "lora", "show": "LoRA"},
        {"method": "wanda", "show": "Wanda"},
        {"method": "bitfit", "show": "BitFit"},
        {"method": "nowhere_yet", "show": "To come"},
    ],
    "columns": [
        {"protocol": "glue/sst2@*", "show": "SST-2"},
        {"protocol": "glue/rte@*", "show": "RTE"},
        {"protocol": "glue/cola@*", "show": "CoLA"},
        {"mean": ["sst2", "rte"], "show": "Avg."},
    ],
    "sides": ["parameters", "flops", "memory", "trials", "origin"],
}


def small(**changes):
    return layouts.parse("small", SMALL | changes)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two tasks; magnitude at two sparsities; a method that fails on one of them. To be read only."""
    root = tmp_path_factory.mktemp("layouts") / "runs"
    methods = {"full_ft": (0.86, {}), "lora": (0.85, {"r": 8}), "mag5": (0.8, {"sparsity": 0.5}), "mag9": (0.6, {"sparsity": 0.9})}
    for task in ("sst2", "rte"):
        place = {"task": f"glue/{task}", "protocol": f"glue/{task}@heldout"}
        for name, (accuracy, config) in methods.items():
            method = "magnitude" if name.startswith("mag") else name
            for seed in range(3):
                predictions = scores(name, seed, accuracy + 0.01 * (seed - 1)).assign(example=[f"{task}{i}" for i in range(200)])
                record(root, f"{name}{task}{seed}", method, seed, predictions, config=config, origin="default", **place)
    failure(root, "wandasst2", "wanda", 0, kind="oom", line="out of memory", task="glue/sst2")
    return root


@pytest.fixture
def own(store, tmp_path):
    """A copy that a test may add to."""
    return Path(shutil.copytree(store, tmp_path / "runs"))


def shown(store, **changes):
    return arrange(load(store), store, small(**changes))


def lines(made, kind=MEASURED):
    return {line.name: line for line in made.lines if line.kind == kind}


def test_rows_are_in_the_order_and_under_the_names_of_the_layout(store):
    made = shown(store)
    names = [line.name for line in made.lines if line.model == "toy"]
    assert names == ["Fine-tuning", "Magnitude", "LoRA", "Wanda", "BitFit", "To come"]
    assert lines(made)["Magnitude"].row.label == "magnitude (sparsity=0.5)" and lines(made)["Magnitude"].group == "sparse"
    assert "rows: Fine-tuning = full_ft, Magnitude = magnitude (sparsity=0.5), LoRA = lora, Wanda = wanda" in made.notes


def test_numbers_and_marks_are_those_of_the_table_over_the_shown_rows(store):
    made = shown(store)
    frame = load(store)
    plain = table(frame[frame["label"] != "magnitude (sparsity=0.9)"], store, Layout(means={"Avg.": ["sst2", "rte"]}))
    for line in lines(made).values():
        (row,) = [row for row in plain.rows if row.label == line.row.label]
        assert row.cells == line.row.cells
    grid = arranged_text.sheet(made).grids[0]
    entries = {entry[0].text: entry for entry in grid.lines}
    assert grid.titles[:5] == ["method", "SST-2 ↑", "RTE ↑", "CoLA", "Avg. ↑"]
    best = entries["Fine-tuning"][1]
    assert (best.text, best.small, best.bold, best.second) == ("86.0", "± 1.0 (3)", True, False)
    tied = entries["LoRA"][1]
    assert (tied.text, tied.tied, tied.second) == ("85.0", True, True) and entries["Magnitude"][4].text == "80.0"
    assert entries["Fine-tuning"][5:] == [*map(type(best), ("1k", "1.00e+09", "1", "–", "default"))]  # noqa: RUF001


def test_what_is_missing_is_said_with_its_reason_and_has_no_number(store):
    made = shown(store)
    absent = lines(made, NOT_RUN)
    assert {name: line.why for name, line in absent.items()} == {
        "BitFit": "no record in this store", "To come": "there is no method nowhere_yet yet",
    }  # fmt: skip
    grid = arranged_text.sheet(made).grids[0]
    for entries in grid.lines:
        if entries[0].text in absent:
            assert entries[1].text == "not run" and not any(re.search(r"\d", entry.text) for entry in entries[1:])
    for note in (
        "not run, since no record in this store: BitFit",
        "not run, since there is no method nowhere_yet yet: To come",
        "no record was measured on: CoLA (glue/cola@*)",
        "left out, since layout small has no place for them: magnitude (sparsity=0.9)",
    ):
        assert note in made.notes
    assert "wanda, toy, glue/sst2@heldout: oom" in made.table.footnotes
    wanda = next(entries for entries in grid.lines if entries[0].text == "Wanda")
    assert [entry.text for entry in wanda[1:5]] == ["0/1", "–", "–", "0/1"]  # noqa: RUF001


def test_several_forms_of_a_column_are_columns_of_their_own(own):
    record(own, "other", "full_ft", 0, scores("x", 0, 0.5), task="glue/rte", protocol="glue/rte@dev_best")
    made = shown(own)
    assert [place.title for place in made.places][:3] == ["SST-2 ↑", "RTE (dev_best) ↑", "RTE (heldout) ↑"]
    assert "(1) leaky" in arranged_text.markdown(made)


def test_a_mean_may_be_of_one_form_alone(own):
    for task in ("sst2", "rte"):
        record(own, f"last{task}", "full_ft", 0, scores("x", 0, 0.5), task=f"glue/{task}", protocol=f"glue/{task}@last")
    columns = [{"protocol": "glue/rte@*", "show": "RTE"}, {"mean": ["sst2", "rte"], "show": "Avg.", "form": "held*"}]
    made = shown(own, columns=columns)
    assert [place.column.name for place in made.places] == ["glue/rte@heldout", "glue/rte@last", "glue/Avg.-mean@heldout"]
    assert len(shown(own, columns=[{"mean": ["sst2", "rte"], "show": "Avg."}]).places) == 2


def test_several_rows_of_one_name_are_told_apart_by_their_settings(store):
    made = shown(store, rows=[{"method": "magnitude", "show": "Magnitude"}])
    assert set(lines(made)) == {"Magnitude (sparsity=0.5)", "Magnitude (sparsity=0.9)"}


def test_a_pattern_takes_all_methods_under_the_headings_of_their_families(store):
    made = shown(store, rows=[{"method": "*"}], group_by="family")
    groups = {line.name: line.group for line in made.lines}
    assert groups["full_ft"] == "baselines" and groups["lora"] == "adapters" and groups["magnitude (sparsity=0.5)"] == "prune"
    assert [line.group for line in made.lines] == sorted(line.group for line in made.lines)


def test_perplexity_is_not_scaled(own):
    windows = scores("x", 0, 0.5).assign(tokens=1)
    place = {"protocol": "glue/cola@ppl-8", "task": "glue/cola", "metric": "perplexity", "higher": False}
    record(own, "ppl", "full_ft", 0, windows, value=math.exp(0.5), **place)
    made = shown(own, columns=[{"protocol": "glue/cola@*", "show": "text"}])
    (grid,) = [grid for grid in arranged_text.sheet(made).grids if grid.caption == "toy"]
    assert grid.titles[1] == "text ↓" and "1.65" in [entries[1].text for entries in grid.lines if len(entries) > 1]


def test_a_layout_that_no_record_has_a_place_in_is_all_not_run(store):
    made = shown(store, columns=[{"protocol": "c4@*", "show": "C4"}], published=False)
    assert {line.kind for line in made.lines} == {NOT_RUN} and {line.model for line in made.lines} == {"no record"}
    (grid,) = arranged_text.sheet(made).grids
    assert [entries[1].text for entries in grid.lines if len(entries) > 1] == ["not run"] * 6
    assert "no record was measured on: C4 (c4@*)" in made.notes


def test_a_column_may_ask_for_a_metric(store):
    columns = [
        {"protocol": "glue/rte@*", "show": "RTE", "metric": "f1"},
        {"protocol": "glue/sst2@*", "show": "SST-2", "metric": "accuracy"},
    ]
    made = shown(store, columns=columns)
    assert [place.column and place.column.name for place in made.places] == [None, "glue/sst2@heldout"]
    assert "no record was measured on: RTE (glue/rte@*, f1)" in made.notes
    assert all(set(line.quoted.claims) == {1} for line in made.lines if line.quoted)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"titel": "x"}, "small.yaml: key titel is unknown; did you mean title"),
        ({"rows": [{"methd": "lora"}]}, r"small.yaml: rows\[0\].methd is unknown; did you mean small.yaml: rows\[0\].method"),
        ({"rows": [{"show": "x"}]}, r"small.yaml: rows\[0\]: give exactly one of: group, method"),
        ({"rows": [{"group": "x", "show": "y"}]}, r"rows\[0\]: a group is a heading"),
        ({"rows": []}, "small.yaml: rows is missing; give a list"),
        ({"rows": ["lora"]}, r"rows\[0\]=lora is not allowed; give a mapping"),
        ({"columns": [{"show": "x"}]}, r"columns\[0\]: give exactly one of: protocol, mean"),
        ({"columns": [{"show": "x", "protocol": "a"}, {"show": "x", "protocol": "b"}]}, "two columns are called x"),
        (
            {"columns": [{"show": "x", "protocol": "a", "decimals": "two"}]},
            r"columns\[0\].decimals=two is not allowed; allowed: an integer",
        ),
        ({"sides": ["cost"]}, "small.yaml: sides=cost is"),
        ({"group_by": "size"}, "small.yaml: group_by=size is"),
        ({"decimals": "x"}, "decimals=x is not allowed; allowed: an integer"),
        ({"title": None}, "small.yaml: title is missing"),
    ],
)
def test_a_wrong_layout_is_one_sentence_that_names_the_key(changes, said):
    with pytest.raises(UserError, match=said) as caught:
        small(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("slug", layouts.slugs())
def test_shipped_layouts_name_settings_that_their_methods_have(slug):
    made = layouts.paper_layout(slug)
    for spec in made.rows:
        if spec.method in techniques():
            assert set(spec.where) <= set(load_spec(spec.method).config.__dataclass_fields__), spec
    names = [spec.show for spec in made.rows if spec.show]
    assert len(names) == len(set(names)) > 1


def test_published_values_are_in_the_place_of_their_row_and_column_and_marked(store):
    """The claim of the file, its settings and model; from memory is marked; the settings of a row must be those of the claim."""
    found = {(one.spec.show, one.model): one for one in quoted.quoted(layouts.paper_layout("prune_ppl_zeroshot"))}
    claim = next(claim for claim in papers.published("wanda").claims if claim.id == "ppl-llama2-7b-2-4")
    assert dict(found["Wanda 2:4", "llama2_7b"].claims) == {0: claim}
    assert found["Wanda 50 %", "llama2_7b"].claims[0].id == "ppl-llama2-7b-50"
    assert quoted.value(found["Wanda 50 %", "llama_7b"].claims[0]).endswith(" (from memory)")
    claims = papers.published("lora").claims
    made = shown(store, published=True)
    published = lines(made, PUBLISHED)["LoRA, published"]
    assert published.model == "roberta_base" and published.row is None
    for index, task in ((0, "sst2"), (1, "rte"), (2, "cola")):
        assert published.quoted.claims[index] is next(claim for claim in claims if claim.id == f"glue-{task}")
    grid = next(grid for grid in arranged_text.sheet(made).grids if grid.caption == "roberta_base")
    assert grid.titles == ["method", "SST-2", "RTE", "CoLA"] and not any(entry.bold for entries in grid.lines for entry in entries)
    assert not lines(shown(store, published=False), PUBLISHED)


def test_settings_are_equal_however_they_are_typed():
    assert quoted.same("0.5", 0.50) and quoted.same("true", True) and quoted.same("[q,v]", "q,v") and quoted.same(["q", "v"], "q,v")
    assert not quoted.same("2:4", "4:8") and not quoted.same("0.5", 0.9) and not quoted.same(None, 0.5)


@pytest.mark.parametrize("ending", ENDINGS)
def test_golden_layout(store, ending):
    text = arranged_text.FORMATS[ENDINGS[ending]](shown(store, published=False))
    assert text == (GOLDEN / f"layout.{ending}").read_text(encoding="utf-8")


@pytest.fixture
def hostile(tmp_path):
    for i, method in enumerate((HOSTILE, "=cmd()", "lora")):
        record(tmp_path, f"c{i}", method, 0, scores("a", i, 0.8), model=HOSTILE, note=HOSTILE, protocol=f"{HOSTILE}@x")
    rows = [{"group": HOSTILE}, {"method": HOSTILE.replace("[k]", "?k?"), "show": HOSTILE}, {"method": "=cmd()", "show": "=x"}]
    columns = [{"protocol": "*@x", "show": HOSTILE}, {"protocol": "c4", "show": "+1"}]
    given = small(title=HOSTILE, rows=[*rows, {"method": "lora"}], columns=columns, published=False)
    return arrange(load(tmp_path), tmp_path, given)


@pytest.mark.parametrize("ending", ENDINGS)
def test_golden_layout_with_hostile_names(hostile, ending):
    text = arranged_text.FORMATS[ENDINGS[ending]](hostile)
    assert text == (GOLDEN / f"layout_hostile.{ending}").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """The names of all elements and the text of all cells."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def test_hostile_names_stay_text_in_every_format(hostile):
    forms = {name: write(hostile) for name, write in arranged_text.FORMATS.items()}
    page = Tags()
    page.feed(forms["html"])
    assert "script" not in page.tags and '<script>alert("x")</script>|a&b_c%d$e#f{g}~h^i\\j =cmd()[k]*l`' in page.text
    assert "<script" not in forms["md"] and r"&lt;script&gt;alert(" in forms["md"]
    grid = arranged_text.sheet(hostile).grids[0]
    bars = {len(re.findall(r"(?<!\\)\|", line)) for line in forms["md"].splitlines() if line.startswith("|")}
    assert bars == {len(grid.titles) + 1}
    body = forms["latex"].split("\\midrule\n")[1].split("\n\\bottomrule")[0]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines()} == {0, len(grid.titles) - 1}
    assert not re.search(r"(?<!\\)[#_]", forms["latex"].replace("\\begin{itemize}", "")) and '"' not in forms["latex"]
    rows = list(csv.reader(io.StringIO(forms["csv"])))
    assert {row[3] for row in rows[1:]} == {HOSTILE, "'=x", "lora"} and {len(row) for row in rows} == {len(arranged_text.CSV_TITLES)}
    assert '<script>alert("x")</script>' in forms["terminal"]


def test_the_html_of_a_layout_fetches_nothing_and_closes_what_it_opens(store):
    text = arranged_text.html(shown(store))
    assert "default-src 'none'" in text and not re.search(r"https?://|<script|<img|<link", text)
    for tag in ("table", "thead", "tbody", "tr", "small", "strong", "u", "ul"):
        assert len(re.findall(f"<{tag}[ >]", text)) == text.count(f"</{tag}>"), tag
    assert f"{TIED}</abbr>" in text and "<u>85.0</u> <small>± 1.0 (3)</small>" in text


def test_the_csv_of_a_layout_has_full_numbers_and_says_what_each_is(store):
    rows = list(csv.DictReader(io.StringIO(arranged_text.csv_text(shown(store)))))
    kinds = {row["kind"] for row in rows}
    assert kinds == {MEASURED, PUBLISHED, NOT_RUN}
    lora = next(row for row in rows if row["row"] == "LoRA" and row["column"] == "SST-2 ↑")
    assert (lora["value"], lora["seeds"], lora["second"], lora["tied"], lora["protocol"]) == ("0.85", "3", "1", "1", "glue/sst2@heldout")
    assert {(row["value"], row["why"]) for row in rows if row["row"] == "To come"} == {("", "there is no method nowhere_yet yet")}
    published = next(row for row in rows if row["row"] == "LoRA, published" and row["column"] == "CoLA")
    assert float(published["value"]) == 63.4 and "RoBERTa-base" in published["why"]


def test_the_command_fills_a_layout_by_name_or_by_the_sweep_of_the_records(store, tmp_path, capsys, monkeypatch):
    assert main(["table", "--store", str(store), "--paper", "pst_glue", "--out", str(tmp_path / "t.tex")]) == 0
    assert "GLUE at two sparsities" in (tmp_path / "t.tex").read_text()
    capsys.readouterr()
    assert main(["table", "--store", str(store), "--paper", "pst_gleu"]) == 2
    assert "layout=pst_gleu is unknown; did you mean pst_glue?" in capsys.readouterr().err
    monkeypatch.setattr("analysis.cli.layout", lambda sweep: Layout(layout="pst_glue"))
    assert main(["table", "--store", str(store)]) == 0
    assert "GLUE at two sparsities" in capsys.readouterr().out
    assert layout("quickstart").layout is None
