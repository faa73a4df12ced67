"""Output formats of SIMULATED records: golden files, escaping, the page, the command line."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis import formats
from analysis.cli import main
from analysis.layout import Layout
from analysis.load import load
from analysis.page import embedded, page
from analysis.tables import table

from .simulate import record, scores, small_store

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = '<script>alert("x")</script>|a&b_c%d$e#f{g}~h^i\\j\n=cmd()[k]*l`\u2028'
VOID = {"meta", "input", "link", "br"}


@pytest.fixture
def built(tmp_path):
    store = small_store(tmp_path / "runs")
    return table(load(store), store, Layout(title="Simulated", heading="simulated: not a result", baseline="full_ft"))


@pytest.fixture
def hostile(tmp_path):
    store = tmp_path / "runs"
    for i, method in enumerate((HOSTILE, "=cmd()", "+1", "lora")):
        record(store, f"c{i}", method, 0, scores("a", i, 0.8), model=HOSTILE, note=HOSTILE)
    return table(load(store), store, Layout(title=HOSTILE, heading=HOSTILE, baseline="lora"))


@pytest.mark.parametrize("ending", ["md", "csv", "tex"])
def test_golden(built, ending):
    text = {"md": formats.markdown, "csv": formats.csv_text, "tex": formats.latex}[ending](built)
    assert text == (GOLDEN / f"table.{ending}").read_text(encoding="utf-8")


class Document(HTMLParser):
    """Text of every table row, the script elements, and whether all elements are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.rows, self.scripts, self.tags, self.attributes = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def parsed(text):
    document = Document()
    document.feed(text)
    document.close()
    assert document.open == []
    return document


def test_page_has_every_row_and_number(built):
    document = parsed(page(built))
    (block,) = built.blocks()
    shown = [[cell.replace(formats.TIED, "") for cell in row] for row in document.rows]
    for line in formats.grid(block):
        assert [line[1].text, line[0].text, *(entry.text for entry in line[2:])] in shown
    assert document.rows[0][2] == "toy/a@heldout accuracy ↑"
    assert sum(formats.TIED in cell for row in document.rows for cell in row) == 1
    assert built.columns[0].rows["sha256"] in page(built) and "torch 2.13.0" in page(built)


def test_page_plots_each_row_with_its_costs(built):
    data = json.loads(parsed(page(built)).scripts[0])
    (group,) = data["groups"]
    points = {point["label"]: point for point in group["points"]}
    assert set(points) == {"full_ft", "lora", "linear_probe", "none", "bitfit"}
    assert (points["lora"]["trainable"], points["lora"]["bytes_shipped"], points["lora"]["bytes"]) == (3000, 12_200, 400_000)
    assert points["full_ft"]["mean"] == pytest.approx(0.85)
    assert set(points["lora"]) >= {cost["key"] for cost in data["costs"]}


def test_page_fetches_nothing(built):
    text = page(built)
    assert "default-src 'none'" in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not {name for name, _ in parsed(text).attributes} & {"src", "href", "onclick", "onload"}
    assert page(built) == text


def test_hostile_names_stay_text_in_the_page(hostile):
    document = parsed(page(hostile))
    assert len(document.scripts) == 2 and document.tags.count("script") == 2
    data = json.loads(document.scripts[0])
    assert data["groups"][0]["points"][-1]["label"] in (HOSTILE, "lora")
    assert {point["label"] for point in data["groups"][0]["points"]} == {HOSTILE, "=cmd()", "+1", "lora"}
    assert HOSTILE in [row[0] for row in document.rows]
    assert "\u2028" not in document.scripts[0]


def test_embedded_json_cannot_end_its_element():
    value = {"a</script><!--": "\u2028\u2029&"}
    assert not set("<>&\u2028\u2029") & set(embedded(value)) and json.loads(embedded(value)) == value


def test_hostile_names_in_csv(hostile):
    rows = list(csv.reader(io.StringIO(formats.csv_text(hostile))))
    assert {row[1] for row in rows[1:]} == {HOSTILE, "'=cmd()", "'+1", "lora"}
    assert {len(row) for row in rows} == {len(formats.CSV_TITLES)}


def test_hostile_names_in_markdown(hostile):
    text = formats.markdown(hostile)
    assert "<script" not in text and "\u2028" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(formats.header(hostile.blocks()[0])) + 1}
    assert r"&lt;script&gt;alert(" in text and r"a&amp;b\_c%d\$e\#f" in text and r"\*l\`" in text


def test_hostile_names_in_latex(hostile):
    text = formats.latex(hostile)
    assert r"a\&b\_c\%d\$e\#f\{g\}\textasciitilde{}h\textasciicircum{}i\textbackslash{}j =cmd(){[}k{]}" in text
    body = text.split("\\midrule\n")[1].split("\n\\bottomrule")[0]
    titles = formats.header(hostile.blocks()[0])
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines()} == {len(titles) - 1}
    assert not re.search(r"(?<!\\)[#_]", text.replace("\\begin{itemize}", "")) and '"' not in text


def test_terminal_prints_markup_as_text(hostile):
    assert "=cmd()[k]*l`" in formats.plain(hostile, 400) and '<script>alert("x")</script>' in formats.plain(hostile, 400)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["table", "--store", "absent"], "there is no store absent"),
        (["table", "nope", "--store", "STORE"], "no finished cells of sweep nope"),
        (["table", "--format", "pdf"], "invalid choice: 'pdf'"),
        (["tabel"], "invalid choice: 'tabel'"),
        ([], "required: command"),
        (["compare", "lora", "lura", "--store", "STORE"], "no row is called lura"),
        (["compare", "lora", "full_ft", "--protocol", "x", "--store", "STORE"], "--protocol x is in no record; there are: toy/a@heldout"),
        (["page", "--store", "STORE", "--out", "STORE"], "cannot be written"),
        (["export-records", "--store", "STORE", "--out", "STORE"], "is not empty"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(tmp_path, capsys, argv, said):
    store = small_store(tmp_path / "runs")
    assert main([str(store) if word == "STORE" else word for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and len(err.splitlines()) == 1


def test_table_writes_the_format_that_the_name_says(tmp_path, capsys):
    store = small_store(tmp_path / "runs")
    for name, start in (("t.md", "## simulated"), ("t.csv", "model,method"), ("t.tex", "% simulated"), ("t.html", "<!DOCTYPE html>")):
        assert main(["table", "--store", str(store), "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)
    capsys.readouterr()
    assert main(["table", "--store", str(store), "--format", "csv"]) == 0
    assert capsys.readouterr().out == (tmp_path / "t.csv").read_text(encoding="utf-8")


def test_compare_prints_difference_interval_and_how(tmp_path, capsys):
    store = small_store(tmp_path / "runs")
    assert main(["compare", "linear_probe", "full_ft", "--store", str(store)]) == 0
    out = capsys.readouterr().out
    found = re.fullmatch(
        r"toy/a@heldout, toy: linear_probe vs full_ft: -0\.2467 \[-(0\.\d{4}), -(0\.\d{4})\], "
        r"n=3 seeds x 200 examples, p<0\.001 \(pooled seed variance\)\n",
        out,
    )
    assert found and float(found[1]) > 0.2467 > float(found[2])


def test_compare_of_one_seed_pair_adds_the_exact_test(tmp_path, capsys):
    for method, right in (("a", 0.8), ("b", 0.7)):
        record(tmp_path, method, method, 0, scores("same", 0, right))
    assert main(["compare", "a", "b", "--store", str(tmp_path)]) == 0
    # The easiest 160 and 140 of the same 200 examples: 20 discordant, all for a; 2 / 2^20 rounds to 0.000.
    out = capsys.readouterr().out
    assert "+0.1000" in out and "(examples only); McNemar exact p=0.000" in out


def test_methods_lists_what_is_registered(capsys):
    from harness.registry import files

    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert files() and all(re.search(rf"^ {slug} ", out, re.MULTILINE) for slug in files())
