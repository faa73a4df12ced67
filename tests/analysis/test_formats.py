"""Output formats of SIMULATED records: golden files, escaping, the page, the command line."""

import csv
import io
import re
from pathlib import Path

import pytest

from analysis import formats
from analysis.cli import main
from analysis.layout import Layout
from analysis.load import load
from analysis.tables import table

from .simulate import record, scores, small_store

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = '<script>alert("x")</script>|a&b_c%d$e#f{g}~h^i\\j\n=cmd()[k]*l`\u2028'


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


@pytest.mark.parametrize("ending", ["md", "csv", "tex"])
def test_golden_with_hostile_names(hostile, ending):
    text = {"md": formats.markdown, "csv": formats.csv_text, "tex": formats.latex}[ending](hostile)
    assert text == (GOLDEN / f"table_hostile.{ending}").read_text(encoding="utf-8")


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
    assert "+0.1000" in out and "(examples only); McNemar exact p<0.001" in out


def test_methods_lists_what_is_registered(capsys):
    from harness.registry import files

    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert files() and all(re.search(rf"^ {slug} ", out, re.MULTILINE) for slug in files())
