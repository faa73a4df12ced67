"""Judged claims as the report page lists them."""

from collections.abc import Sequence
from typing import Any

from analysis.claims import Line, _published, _reasons, ours_text


def claim_lines(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One mapping a claim, texts as `parebench-report claims` prints them; `cells` are those that the number comes from."""
    return [_line(line) for line in lines]


def _line(line: Line) -> dict[str, Any]:
    claim = line.claim
    return {
        "method": line.slug, "id": claim.id, "kind": claim.kind, "what": claim.what, "model": claim.setting.model,
        "protocol": claim.setting.protocol, "published": _published(claim), "ours": ours_text(line), "ratio": line.ratio,
        "verdict": line.verdict, "verified": claim.verified, "where": claim.where, "why": _why(line),
        "source": list(getattr(line, "source", ())),
    }  # fmt: skip


def _why(line: Line) -> str:
    return " ".join(map(str, _reasons([line]))).removeprefix(f"{line.slug} {line.claim.id}: ")
