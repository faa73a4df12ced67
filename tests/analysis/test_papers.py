"""Published numbers are typed data: every file loads, everything else is refused in one sentence."""

import copy
import re
from importlib import resources
from pathlib import Path

import pytest
import yaml

from analysis import papers
from analysis.papers import Measure, calculated, parse, published, slugs, tolerance
from methods.spec import UserError
from tasks.spec import KINDS

TASKS = Path(__file__).resolve().parents[2] / "conf" / "task"
PAPER = {"title": "A", "authors": ["B"], "year": 2020, "arxiv": "2001.00001", "venue": "C"}
CLAIM = {
    "id": "a", "kind": "params", "what": "trainable", "setting": {"model": "M", "protocol": "P"}, "value": 3, "unit": "M",
    "where": "Table 1", "verified": "read in the paper",
    "count": {"overrides": ["method=lora"], "quantity": "trainable_method", "tolerance": "exact"},
}  # fmt: skip


def changed(*path: str, value: object = None) -> dict:
    """The sample file with one key of its claim set (to None: removed)."""
    claim = copy.deepcopy(CLAIM)
    block = claim
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    if value is None:
        del block[path[-1]]
    return {"paper": PAPER, "claims": [claim]}


@pytest.mark.parametrize("slug", slugs())
def test_every_file_loads_and_counts_its_own_technique_or_a_baseline(slug: str) -> None:
    found = published(slug)
    assert found.slug == slug
    assert any(claim.kind == "params" for claim in found.claims)
    counted = {override for claim in found.claims if claim.count for override in claim.count.overrides if override.startswith("method=")}
    assert counted <= {f"method={slug}", "method=lora", "method=full_ft"}


def task(name: str, **changed: object) -> object:
    """The typed task of a file of `conf/task`, with some of its keys changed."""
    values = yaml.safe_load((TASKS / f"{name}.yaml").read_text()) | changed
    return KINDS[values["kind"]](**values)


def measurable() -> set[str]:
    """The protocol ids of all that claims may be asked of: what the tasks of `conf` report when they train and test as the papers do."""
    glue = {task(f"glue/{path.stem}", selection="dev_best").protocol() for path in (TASKS / "glue").glob("*.yaml")}
    text = {
        task("wikitext2", context=context, train=train, limit=None).protocol()
        for context in (1024, 2048, 4096)
        for train in (None, "train")
    }
    math = {task("instruct/metamath", train_rows=rows).reported("gsm8k_metamath", "generate") for rows in (50_000, 100_000)}
    solved = {"dataset": "gsm8k", "evaluations": ["gsm8k"], "mask_prompt": True, "max_length": 512, "beams": 1, "new_tokens": 256}
    eight = task("instruct/commonsense8").reported("boolq", "generate").replace("/boolq@", "/commonsense8-mean@")
    return {*glue, *text, *math, eight, task("instruct/math_10k", **solved).reported("gsm8k", "generate")}


def test_every_query_asks_for_a_protocol_that_a_task_reports() -> None:
    """Else no record could ever answer it."""
    asked = {claim.query.protocol for slug in slugs() for claim in published(slug).claims if claim.query}
    assert asked and asked - measurable() == set()


@pytest.mark.parametrize("slug", slugs())
def test_arithmetic_of_what_is_not_run_is_the_published_number(slug: str) -> None:
    """To one unit of the last printed digit: some papers cut where others round."""
    for claim in published(slug).claims:
        if claim.not_run and claim.explanation and claim.explanation.arithmetic:
            scale = papers.UNITS[claim.unit]
            digits = f"{claim.value:f}".rstrip("0").partition(".")[2]
            assert calculated(claim.explanation.arithmetic) / scale == pytest.approx(claim.value, abs=10.0 ** -len(digits)), claim.id


def keys_of(method: str) -> set[str]:
    return {f"method.{key}" for key in yaml.safe_load(Path(str(resources.files("conf") / "method" / f"{method}.yaml")).read_text())}


@pytest.mark.parametrize("slug", slugs())
def test_records_are_asked_for_methods_models_and_keys_that_exist(slug: str) -> None:
    for claim in published(slug).claims:
        if direction := claim.direction:
            sides = ((direction.better, direction.better_at), (direction.worse, direction.worse_at))
            for method, own in sides:
                assert {*(direction.at or {}), *(direction.equal or ()), *(own or {})} <= keys_of(method), claim.id
            assert slug in (direction.better, direction.worse), claim.id
        if query := claim.query:
            assert {override.partition("=")[0] for override in query.overrides or ()} <= keys_of(query.method), claim.id
            assert (resources.files("conf") / "model" / f"{query.model}.yaml").is_file(), claim.id


def test_a_direction_is_typed_and_checked() -> None:
    block = {k: v for k, v in CLAIM.items() if k != "count"} | {"kind": "quality", "unit": "points"}
    given = {"better": "pst", "worse": "movement", "columns": ["glue/*"], "at": {"method.sparsity": [0.5, 0.9]}, "margin": 0.01}
    claim = parse("x", {"paper": PAPER, "claims": [block | {"direction": given}]}).claims[0]
    assert claim.direction == papers.Direction(**given) and (claim.query, claim.count, claim.not_run) == (None, None, None)
    for change, sentence in (({"margin": 1.0}, "margin=1.0"), ({"columns": []}, "columns=[]"), ({"beter": "x"}, "beter is unknown")):
        with pytest.raises(UserError, match=re.escape(sentence)):
            parse("x", {"paper": PAPER, "claims": [block | {"direction": given | change}]})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"unit": "M"}, "unit=M is not allowed; allowed: points"),
        ({"query": {"tolerance": "about"}}, "tolerance=about is not allowed"),
        ({"query": {"center": "mode"}}, "center=mode is not allowed; allowed: mean, median"),
    ],
)
def test_a_query_is_checked(change: dict, sentence: str) -> None:
    query = {"method": "lora", "model": "m", "protocol": "glue/rte@dev_best", "metric": "accuracy", "tolerance": "+-1"}
    block = {k: v for k, v in CLAIM.items() if k != "count"} | {"kind": "quality", "unit": "points"} | change
    with pytest.raises(UserError, match=re.escape(sentence)):
        parse("x", {"paper": PAPER, "claims": [block | {"query": query | change.get("query", {})}]})


def test_a_file_becomes_typed_claims() -> None:
    found = parse("x", {"paper": PAPER, "claims": [CLAIM]})
    claim = found.claims[0]
    assert (found.paper.authors, claim.value, claim.setting.model) == (["B"], 3.0, "M")
    assert claim.count == papers.Count(["method=lora"], "trainable_method", "exact") and claim.query is None


def test_a_query_and_what_it_is_compared_with_are_kept() -> None:
    block = {k: v for k, v in CLAIM.items() if k != "count"}
    query = {"method": "lora", "model": "m", "protocol": "glue/rte@dev_best", "metric": "accuracy", "tolerance": "+-1"}
    block |= {"kind": "quality", "unit": "accuracy", "query": query, "against": {"what": "full fine-tuning", "value": 78.7}}
    claim = parse("x", {"paper": PAPER, "claims": [block]}).claims[0]
    assert claim.query == papers.Query(**query) and claim.against.value == 78.7


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (changed("valeu", value=3), "x.yaml: claims[0].valeu is unknown; did you mean x.yaml: claims[0].value?"),
        (changed("where"), "x.yaml: claims[0].where is missing"),
        (changed("value", value="many"), "x.yaml: claims[0].value=many is not allowed; allowed: a number"),
        (changed("value", value=float("nan")), "x.yaml: claims[0].value=nan is not allowed; allowed: a finite number"),
        (changed("kind", value="speed"), "x.yaml: claims[0]: kind=speed is not allowed; allowed: params, quality, cost"),
        (changed("verified", value="surely"), "x.yaml: claims[0]: verified=surely is not allowed"),
        (changed("setting", "modle", value="M"), "x.yaml: claims[0].setting.modle is unknown"),
        (changed("setting", value="roberta"), "x.yaml: claims[0].setting=roberta is not allowed; allowed: a mapping of model, protocol"),
        (changed("count", "ours", value=5), "x.yaml: claims[0].count.ours is unknown"),
        (changed("count", "quantity", value="params"), "x.yaml: claims[0].count: quantity=params is not allowed"),
        (
            changed("count", "tolerance", value="about"),
            "x.yaml: claims[0]: tolerance=about is not allowed; allowed: exact, at least",
        ),
        (changed("count"), "x.yaml: claims[0]: gives nothing; give exactly one of: count, query, not_run"),
        (changed("not_run", value="no"), "x.yaml: claims[0]: gives count and not_run; give exactly one of"),
        (changed("unit", value="%"), "x.yaml: claims[0]: unit=% needs count.over"),
        (changed("unit", value="points"), "x.yaml: claims[0]: unit=points is not allowed"),
        (changed("count", "over", value={"overrides": [], "quantity": "total"}), "x.yaml: claims[0]: unit=M has no count.over"),
        (
            changed("explanation", value={"text": "t", "arithmetic": "open('x')"}),
            "x.yaml: claims[0].explanation: arithmetic=open(",
        ),
        ({"paper": PAPER, "claims": [CLAIM, CLAIM]}, "x.yaml: two claims have the id a"),
        ({"paper": PAPER, "claims": [CLAIM], "notes": 1}, "x.yaml: the top level holds exactly two keys: paper"),
        ([], "x.yaml: the top level holds exactly two keys"),
    ],
)
def test_everything_else_is_refused_in_one_sentence(values: object, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        parse("x", values)
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)


def test_a_technique_without_a_file_is_refused() -> None:
    with pytest.raises(UserError, match=r"claims of=lroa is unknown; did you mean lora\?"):
        published("lroa")


def test_tolerances() -> None:
    assert (tolerance("exact"), tolerance("+-0.05"), tolerance("at least")) == (0.0, 0.05, None)
    for text in ("+-0", "+--1", "+-nan", "+-inf", "0.05", ""):
        with pytest.raises(UserError, match="tolerance="):
            tolerance(text)


def test_arithmetic_is_numbers_only() -> None:
    assert calculated("24 * 8 * (768 + 768)") == 294_912
    assert calculated("100 * 7 * 2**10 / 3 - 1 // 2") == 100 * 7 * 1024 / 3
    for text in ("x + 1", "__import__('os')", "1 +", "'a' * 2", "1 / 0", "2 if 1 else 3"):
        with pytest.raises(UserError, match="arithmetic="):
            calculated(text)


def test_a_measure_names_a_quantity_that_is_counted() -> None:
    with pytest.raises(UserError, match="quantity=weights is not allowed"):
        Measure([], "weights")
