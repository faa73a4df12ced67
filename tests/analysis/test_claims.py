"""Verdicts by the claim's own tolerance, and no number of ours that was not counted."""

import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from analysis import claims, cli
from analysis.claims import BOUNDED, DISAGREES, EXACT, EXPLAINED, NOT_RUN, ROUNDED, UNVERIFIED, judged, ours_text, report
from analysis.papers import Claim, Count, Explanation, Measure, Paper, Published, Setting, published, slugs
from harness.registry import files
from methods.spec import UserError

PAPER = Paper("A", ["B"], 2020, None, "C")


def claim(value: float = 100, unit: str = "parameters", tolerance: str = "exact", **changes: object) -> Claim:
    over = Measure(["b"], "total") if unit in ("%", "x") else None
    given = {"count": Count(["a"], "trainable_method", tolerance, over)} | changes
    return Claim("c", "params", "w", Setting("m", "p"), value, unit, "Table 1", **({"verified": "official code"} | given))


def line(ours: int, stated: Claim, total: int = 1000) -> claims.Line:
    counts = {("a",): {"trainable_method": ours}, ("b",): {"total": total}}
    return judged([Published("lora", PAPER, [stated])], ["params"], lambda overrides: counts[tuple(overrides)])[0]


@pytest.mark.parametrize(
    ("ours", "stated", "verdict"),
    [
        (100, claim(), EXACT),
        (101, claim(), DISAGREES),
        (294_912, claim(0.3, "M", "+-0.05"), ROUNDED),
        (300_000, claim(0.3, "M", "+-0.05"), EXACT),
        (350_000, claim(0.3, "M", "+-0.05"), ROUNDED),
        (350_001, claim(0.3, "M", "+-0.05"), DISAGREES),
        (249_999, claim(0.3, "M", "+-0.05"), DISAGREES),
        (47, claim(4.7, "%", "+-0.05"), EXACT),
        (48, claim(4.7, "%", "+-0.05"), DISAGREES),
        (16_000, claim(16, "x"), EXACT),
        (101_000, claim(100, "x", "at least"), BOUNDED),
        (99_000, claim(100, "x", "at least"), DISAGREES),
        (99_000, claim(100, "x", "at most"), BOUNDED),
        (99, claim(verified="from memory"), UNVERIFIED),
        (100, claim(verified="from memory"), UNVERIFIED),
        (99, claim(explanation=Explanation("why", "9 * 11")), EXPLAINED),
        (98, claim(explanation=Explanation("why", "9 * 11")), DISAGREES),
        (99, claim(explanation=Explanation("why")), DISAGREES),
        (47, claim(5, "%", "exact", explanation=Explanation("why", "100 * 47 / 1000")), EXPLAINED),
    ],
)
def test_the_verdict_follows_from_the_stated_tolerance(ours: int, stated: Claim, verdict: str) -> None:
    found = line(ours, stated)
    assert found.verdict == verdict
    assert claims.failed([found]) == (verdict == DISAGREES)


def test_ratio_and_unit_of_ours() -> None:
    assert line(150_000, claim(0.3, "M", "+-0.05")).ratio == pytest.approx(0.5)
    assert line(47, claim(4.7, "%", "+-0.05")).ours == pytest.approx(4.7)
    assert line(16_000, claim(16, "x")).ours == 16


def never(overrides: Sequence[str]) -> dict:
    raise AssertionError("counted what is not run")


def test_what_is_not_run_is_not_counted() -> None:
    stated = [claim(count=None, not_run="no such family"), claim(count=None, not_run="no such family", verified="from memory")]
    lines = judged([Published("lora", PAPER, stated)], ["params"], never)
    assert [(found.ours, found.ratio, found.verdict) for found in lines] == [(None, None, NOT_RUN), (None, None, UNVERIFIED)]
    assert [ours_text(found) for found in lines] == [claims.DASH] * 2


def test_a_technique_that_is_not_there_is_not_run() -> None:
    found = judged([Published("unheard_of", PAPER, [claim()])], ["params"], never)[0]
    assert (found.ours, found.verdict, found.reason) == (None, NOT_RUN, "there is no method unheard_of yet")


def test_other_kinds_are_left_out() -> None:
    assert judged([Published("lora", PAPER, [claim()])], ["quality"], never) == []


def test_a_refused_count_names_the_claim() -> None:
    def refuse(overrides: Sequence[str]) -> dict:
        raise UserError("method=x needs data")

    with pytest.raises(UserError, match=r"lora\.yaml: claim c: method=x needs data"):
        judged([Published("lora", PAPER, [claim()])], ["params"], refuse)


def shown(lines: Sequence[claims.Line]) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(report(lines))
    return console.file.getvalue()


def test_the_report_shows_reasons_and_a_tally() -> None:
    text = shown([line(99, claim(explanation=Explanation("why", "9 * 11"))), line(294_912, claim(0.3, "M", "+-0.05"))])
    assert "lora c: why (9 * 11 = 99)" in text
    assert "2 claims: 1 agrees within stated rounding, 1 disagrees, explained" in text
    assert "0.3 M" in text and "294,912" in text and "0.983" in text


class Primes:
    """Stands in for the counter: every configuration and quantity has a number of its own."""

    def __init__(self) -> None:
        self.given: list[int] = []

    def __call__(self, overrides: Sequence[str]) -> dict[str, int]:
        self.given.append(1_000_003 + 7919 * len(self.given))
        return dict.fromkeys(("trainable_method", "trainable_head", "trainable", "head", "total", "prunable"), self.given[-1])


def test_every_number_of_ours_was_counted() -> None:
    """Over all files: the column holds what the counter gave for this claim, or a dash."""
    counter = Primes()
    for file in map(published, slugs()):
        for stated in file.claims:
            before = len(counter.given)
            found = judged([Published(file.slug, file.paper, [stated])], [stated.kind], counter)[0]
            given = counter.given[before:]
            if stated.count is None or file.slug not in files():
                assert (given, found.ours) == ([], None)
            elif stated.count.over is None:
                assert found.ours == given[0] and ours_text(found) == f"{given[0]:,}"
            else:
                assert found.ours == pytest.approx({"%": 100, "x": 1}[stated.unit] * given[0] / given[1])


@pytest.mark.parametrize(("factor", "code"), [(1, 0), (2, 1)])
def test_the_command_counts_on_the_meta_device_and_exits_by_the_verdicts(
    factor: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = published("lora")
    few = Published("lora", file.paper, [found for found in file.claims if found.id == "params-roberta-base"])
    few.claims[0] = claims_times(few.claims[0], factor)
    monkeypatch.setattr(cli.papers, "published", lambda slug: few)
    assert cli.main(["claims", "lora"]) == code
    out = capsys.readouterr().out
    assert "294,912" in out and (EXACT if code == 0 else DISAGREES) in out


def claims_times(stated: Claim, factor: int) -> Claim:
    return Claim(**{**vars(stated), "value": stated.value * factor})


def test_a_misspelt_override_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = claim(count=Count(["method=lora", "method.rr=8"], "trainable_method", "exact"))
    monkeypatch.setattr(cli.papers, "published", lambda slug: Published("lora", PAPER, [wrong]))
    assert cli.main(["claims", "lora"]) == 2
    assert "lora.yaml: claim c: method.rr is unknown" in capsys.readouterr().err.replace("\n", " ")


def test_an_unknown_technique_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["claims", "lroa"]) == 2
    assert "did you mean lora?" in capsys.readouterr().err


@pytest.mark.accept
@pytest.mark.parametrize("slug", slugs())
def test_no_published_count_is_contradicted_without_an_explanation(slug: str) -> None:
    lines = judged([published(slug)], ["params"], cli._counter())
    assert [(found.claim.id, found.ours) for found in lines if found.verdict == DISAGREES] == []
