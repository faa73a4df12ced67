"""Comparing methods, rows and cells, and the examples where they differ: counts by hand. SIMULATED records."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.cli import main
from analysis.compare import Samples, compare_with
from analysis.compare_command import pairs, sides
from analysis.load import load
from harness.exampletexts import texts
from methods.spec import UserError
from tasks.hashing import example_hash
from tasks.sources import Sources
from tests.contract.toy import write_toy_data

from .simulate import record, scores, small_store


def table(right: list[int], label: list[int], examples: str = "abcdef") -> pd.DataFrame:
    guess = [truth if ok else 1 - truth for truth, ok in zip(label, right, strict=True)]
    return pd.DataFrame({"example": list(examples), "score": np.array(right, float), "label": label, "prediction": guess})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Six examples; document `a` comes twice. The second run has them in another order."""
    root, label = tmp_path / "runs", [0, 1, 0, 1, 0, 1]
    record(root, "aaaa11", "lora", 0, table([1, 0, 1, 1, 0, 1], label, "aabcde"))
    record(root, "aaaa22", "lora", 1, table([1, 1, 1, 1, 0, 1], label, "aabcde"))
    second = table([0, 0, 1, 0, 1, 1], label, "aabcde").iloc[[5, 4, 3, 2, 0, 1]]
    record(root, "bbbb11", "bitfit", 0, second)
    record(root, "bbbb22", "bitfit", 1, table([1, 1, 1, 1, 1, 1], label, "aabcde"))
    return root


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["compare", *argv]) == 0
    return capsys.readouterr().out


def test_the_examples_that_differ_are_paired_by_document_and_counted(store, capsys):
    shown = said(capsys, "lora", "bitfit", "--store", str(store), "--examples", "9")
    assert "seed 0: only lora right on 2, only bitfit on 1, both on 2, neither on 1 of 6 examples" in shown
    assert "seed 1: only lora right on 0, only bitfit on 1, both on 5, neither on 0 of 6 examples" in shown
    lines = [line.split() for line in shown.partition("seed 1:")[0].splitlines() if line.strip()[:1].isdigit()]
    assert lines == [
        ["0", "0", "0", "(right)", "1", "(wrong)", "a"], ["3", "1", "1", "(right)", "0", "(wrong)", "c"],
        ["4", "0", "1", "(wrong)", "0", "(right)", "d"],
    ]  # fmt: skip
    few = said(capsys, "lora", "bitfit", "--store", str(store), "--examples", "1")
    assert sum(line.strip()[:1].isdigit() for line in few.splitlines()) == 2
    assert "only lora" not in said(capsys, "lora", "bitfit", "--store", str(store))


def test_two_cells_are_compared_on_their_examples_alone(store, capsys):
    shown = said(capsys, "aaaa1", "bbbb22", "--store", str(store), "--examples", "1")
    assert "aaaa11 (lora, seed 0) vs bbbb22 (bitfit, seed 1): -0.3333" in shown and "examples only" in shown
    assert "n=1 seed x 6 examples" in shown and "McNemar exact p=0.500" in shown
    assert "seed 0 and 1: only aaaa11 (lora, seed 0) right on 0, only bbbb22 (bitfit, seed 1) on 2, both on 4, neither on 0" in shown


def test_a_cell_beside_a_method_is_paired_with_the_run_of_its_seed(store):
    frame = load(store)
    names, both = sides(frame, "bbbb22", "lora")
    assert names == ["bbbb22 (bitfit, seed 1)", "lora"]
    (found,) = compare_with(both, Samples(both, store), names[1], None, names[0])
    assert found.difference.seeds == 1 and found.difference.value == pytest.approx(1 - 5 / 6)
    assert found.difference.how == "pooled seed variance"
    assert [pair.seed for pair in pairs(found, both, store)] == ["1"]


def test_scores_that_are_not_right_or_wrong_are_compared_as_numbers(store, capsys):
    for cell, method, values in (("cccc11", "dora", [1.5, 2.0, 3.0]), ("cccc22", "vera", [1.0, 2.5, 3.0])):
        own = pd.DataFrame({"example": list("xyz"), "score": values, "tokens": [1, 1, 1]})
        metric = {"metric": "perplexity", "value": float(np.exp(np.mean(values))), "higher": False}
        record(store, cell, method, 0, own, protocol="text@ppl", task="text", **metric)
    shown = said(capsys, "dora", "vera", "--store", str(store), "--examples", "5")
    assert "seed 0: dora scores higher on 1, vera on 1 of 3 examples" in shown and "1.5" in shown


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("lora", "loar"), "no row is called loar and no cell begins so; did you mean lora? there are: bitfit, lora"),
        (("lora", "aaaa"), "aaaa may be the cell aaaa11, aaaa22; give more of the id"), (("lora", "lora"), "is given twice"),
        (("aaaa11", "aaaa1"), "is given twice"), (("lora", "aaa"), "no row is called aaa and no cell begins so"),
        (("lora", "bitfit", "--protocol", "nix"), "--protocol nix is in no record; there are: toy/a@heldout"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(argv, words, store, capsys):
    assert main(["compare", *argv, "--store", str(store)]) == 2
    assert words in capsys.readouterr().err


def test_comparisons_of_methods_are_as_they_were(tmp_path, capsys):
    small_store(tmp_path)
    shown = said(capsys, "lora", "linear_probe", "--store", str(tmp_path))
    assert shown.startswith("toy/a@heldout, toy: lora vs linear_probe: +0.2433 [") and "n=3 seeds x 200 examples" in shown


def test_texts_are_found_again_by_their_hash_where_the_data_is(tmp_path):
    data = write_toy_data(tmp_path / "data")
    row = Sources(data, tmp_path).table("glue/sst2", "validation").to_pylist()[3]
    wanted = [example_hash({"sentence": row["sentence"]}), "0" * 16]
    for described in ("validation[:9]", "heldout(seed 1, 5 rows) of validation"):
        assert texts({"dataset": "glue/sst2", "split": described}, wanted, data, tmp_path) == {wanted[0]: row["sentence"]}
    assert texts({"dataset": "glue/sst2", "split": "validation"}, wanted, None, tmp_path) == {}
    for unknown in ({}, {"dataset": "simulated/set", "split": "validation"}):
        assert texts(unknown, wanted, data, tmp_path) == {}
    with pytest.raises(UserError, match="is no folder"):
        texts({"dataset": "glue/sst2", "split": "validation"}, wanted, tmp_path / "nothing", tmp_path)


def test_cells_with_variants_keep_them_apart(store):
    record(store, "dddd11", "dylora", 0, scores("d", 0, 0.8), variant="rank=4")
    names, frame = sides(load(store), "dddd11", "aaaa11")
    assert set(frame["label"]) == {f"{names[0]} [rank=4]", names[1]} and set(frame["method"]) == set(names)
