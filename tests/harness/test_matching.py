"""Keys that are solved for: numbers follow from published counts, the cell is that with the number typed, bad asks are one sentence."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from harness import counting, matching, plan
from harness.cli import run
from harness.compose import compose
from harness.expressions import Asked, asked
from harness.identity import identify
from harness.params import UncountableError
from harness.resolve import resolve
from methods.spec import UserError

LORA, ROBERTA, TINY, SST2 = "method=lora", "model=roberta_base", "model=tiny_bert", "task=demo/sst2"
PER_RANK, HEAD = 36_864, 592_130
"""Parameters of lora on q and v of roberta_base for each rank, and of its task head."""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Requests are answered in this process; the list fills with them."""
    requests: list[dict[str, Any]] = []

    def ask(request: dict[str, Any]) -> int | float:
        requests.append(request)
        return counting.solve(request)

    monkeypatch.setattr(matching, "_ask", ask)
    return requests


@pytest.fixture
def settle(here: list[dict[str, Any]], tmp_path: Path) -> Callable[..., DictConfig]:
    """A configuration with its ask settled; the cache is the test's own."""
    return lambda *overrides: matching.settled(OmegaConf.create(compose([*overrides, f"run.assets={tmp_path}"])))


@pytest.mark.parametrize(("text", "budget"), [("300k", 300_000), ("1.2M", 1_200_000), ("2G", 2 * 10**9), ("4096", 4096), ("0.5k", 500)])
def test_budgets(text: str, budget: int) -> None:
    assert asked({"name": "lora", "r": f"match_params:{text}"}) == Asked("r", "match_params", budget, f"match_params:{text}")


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        ("match_params:300k", 300_000 // PER_RANK),
        (f"match_params:{8 * PER_RANK}", 8),
        (f"match_params:{8 * PER_RANK - 1}", 7),
        ("${match_params:36864}", 1),
        ("${match_bytes:5M}", (5 * 10**6 // 4 - HEAD) // PER_RANK),
    ],
)
def test_ranks_follow_from_the_published_counts(settle: Callable[..., DictConfig], ask: str, expected: int) -> None:
    assert settle(LORA, ROBERTA, SST2, f"method.r='{ask}'" if "$" not in ask else f"method.r={ask}").method.r == expected


def test_half_precision_halves_the_bytes_of_the_head(settle: Callable[..., DictConfig]) -> None:
    cfg = settle(LORA, ROBERTA, SST2, "method.r=match_bytes:5M", "precision=bfloat16")
    assert cfg.method.r == (5 * 10**6 - 2 * HEAD) // (4 * PER_RANK)


@pytest.mark.parametrize("budget", ["600k", "1", "999999"])
def test_a_fraction_is_solved_to_eight_digits_also_where_the_count_falls(
    settle: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, budget: str
) -> None:
    total, wanted = 10**6, OmegaConf.create({"b": budget.replace("k", "000")}).b
    monkeypatch.setattr(counting, "counted", lambda cell, head, kind: round(total * (1 - cell.method_config.sparsity)))
    found = settle("method=magnitude", ROBERTA, SST2, f"method.sparsity=match_params:{budget}").method.sparsity
    assert round(total * (1 - found)) == int(wanted)


def test_the_cell_is_the_one_with_the_number_typed_and_its_record_says_what_was_matched(settle: Callable[..., DictConfig]) -> None:
    solved = resolve(settle(LORA, TINY, SST2, "method.r=${match_params:2k}"))
    by_hand = resolve(settle(LORA, TINY, SST2, f"method.r={2000 // (2 * 2 * 64)}"))
    assert identify(solved).canonical == identify(by_hand).canonical
    assert solved.cell.origins == by_hand.cell.origins | {"method.r": "match_params:2k"}


def test_an_answer_is_kept_until_something_changes_that_it_depends_on(
    settle: Callable[..., DictConfig], here: list[dict[str, Any]]
) -> None:
    ask = (LORA, TINY, "method.r=match_params:2k")
    settle(*ask, SST2)
    settle(*ask, SST2, "seed=3", "recipe.lr=0.1")
    assert len(here) == 1
    settle(*ask, SST2, "method.targets=[q]")
    settle(LORA, "model=tiny_roberta", "method.r=match_params:2k", SST2)
    assert len(here) == 3


def test_an_impossible_pair_is_skipped_and_not_counted(here: list[dict[str, Any]]) -> None:
    cfg = OmegaConf.create(compose([LORA, TINY, "task=wikitext2", "method.r=match_params:2k"]))
    assert plan.check(cfg).state == plan.SKIPPED and not here


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.r=match_params:1k"], "method.r=match_params:1k is too small: method.r=1 already has 36,864 trainable parameters outside"),
        (["method.alpha=match_params:1M"], "the trainable parameters outside the task head of lora do not depend on method.alpha"),
        (["method.targets=match_params:1M"], "targets is no number; numbers of lora: r, alpha, dropout, loraplus_ratio"),
        (["method.r=match_params:1M", "method.alpha=match_bytes:1M"], "method.r and method.alpha both ask to be matched"),
        (["method.r=match_params:many"], "method.r=match_params:many names no budget; allowed: a positive number, with k, M or G"),
        (["method.r=${match_params:}"], "method.r=match_params: names no budget; allowed: a positive number"),
        (["method.r=${match_params:1k,2k}"], "method.r=match_params:1k,2k names no budget; allowed: a positive number"),
        (["method.r=match_params:1000G"], "method.r=match_params:1000G is more than the 124,647,170 parameters of roberta_base itself"),
        (["method.r=match_params:1M", "method.dropout=2"], "method.dropout=2.0 is out of range"),
        (["method=magnitude", "method.sparsity=match_params:1M"], "of magnitude do not depend on method.sparsity"),
    ],
)
def test_what_cannot_be_solved_is_one_sentence(settle: Callable[..., DictConfig], overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        settle(LORA, ROBERTA, SST2, *overrides)


def test_a_method_that_needs_data_is_refused(settle: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(cell, head, kind) -> int:
        raise UncountableError("method=lora needs data before it can be counted")

    monkeypatch.setattr(counting, "counted", counted)
    with pytest.raises(UserError, match="needs data before it can be counted"):
        settle(LORA, ROBERTA, SST2, "method.r=match_params:1M")


TYPED = {"typed": "method.r=${match_params:2k},4", "grids": 'hydra.sweeper.grids=[{method.r: "${match_params:2k},4"}]'}


@pytest.mark.parametrize("way", TYPED)
def test_a_sweep_takes_the_expression(way: str, here: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    places = [f"run.store={tmp_path}/runs", f"run.assets={tmp_path}", "hydra.sweeper.dry=true"]
    assert run(["-m", LORA, TINY, SST2, "budget=smoke", *places, TYPED[way]]) == 0, capsys.readouterr().err
    assert "2 cells" in capsys.readouterr().out and len(here) == 1


def test_the_child_process_answers_and_refuses(tmp_path: Path) -> None:
    def settled(budget: str) -> DictConfig:
        overrides = [LORA, TINY, SST2, f"method.r=match_params:{budget}", f"run.assets={tmp_path}"]
        return matching.settled(OmegaConf.create(compose(overrides)))

    assert settled("2k").method.r == 2000 // (2 * 2 * 64)
    with pytest.raises(UserError, match="already has 256 trainable"):
        settled("100")
