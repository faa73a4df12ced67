"""What `parebench-report methods` says of each method."""

import csv
import io

import pytest

from analysis import catalogue
from analysis.cli import main
from harness.registry import files, load_spec


@pytest.fixture(scope="module")
def found():
    return {one.slug: one for one in catalogue.catalogue()}


def test_every_method_is_there_with_its_family_and_paper(found):
    assert set(found) == set(files())
    lora = found["lora"]
    assert (lora.family, lora.paper.arxiv, lora.paper.year) == ("adapters", "2106.09685", 2021)
    assert lora.paper.title == "LoRA: Low-Rank Adaptation of Large Language Models" and found["full_ft"].paper is None
    assert all(one.about for one in found.values())


def test_needs_and_leavings_are_the_traits_in_words(found):
    for slug, one in found.items():
        traits = load_spec(slug).traits
        assert ("biases in the model" in one.needs) == traits.biases and ("calibration text" in one.needs) >= traits.calibration
        assert one.models[: len(traits.families)] == traits.families and ("mixtures of experts" in one.models) <= traits.moe
    assert "biases in the model" in found["bitfit"].needs and "training of the head alone" in found["linear_probe"].needs
    assert found["wanda"].needs == ("no training", "no backward passes", "calibration text") and "zeros" in found["wanda"].leaves
    assert "a PEFT adapter" in found["lora"].leaves and "a smaller model" in found["llm_pruner"].leaves
    assert "finished weights" in found["external"].needs and found["loram"].models == ("decoder",)


def test_formats_hold_every_method(found, capsys, tmp_path):
    rows = list(csv.DictReader(io.StringIO(catalogue.csv_text(list(found.values())))))
    assert [row["method"] for row in rows] == list(found) and {row["arXiv"] for row in rows} >= {"2106.09685", "2306.11695"}
    assert main(["methods", "--family", "prune", "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert "| wanda | prune |" in out and "| lora |" not in out
    assert main(["methods", "--family", "prun"]) == 2
    assert "--family prun has no method; allowed: adapters, baselines" in capsys.readouterr().err
    assert main(["methods", "--format", "html", "--out", str(tmp_path / "m.html")]) == 0
    assert (tmp_path / "m.html").read_text().count("<tr>") == len(found) + 1
