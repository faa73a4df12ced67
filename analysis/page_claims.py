"""Judged claims as the report page lists them."""

from collections.abc import Sequence
from typing import Any

from analysis.claims import Line, ours_text, published_text, why


def claim_lines(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """One mapping a claim, texts as `parebench-report claims` prints them; `cells` are those that the number comes from."""
    return [_line(line) for line in lines]


def _line(line: Line) -> dict[str, Any]:
    claim = line.claim
    return {
        "method": line.slug, "id": claim.id, "kind": claim.kind, "what": claim.what, "model": claim.setting.model,
        "protocol": claim.setting.protocol, "published": published_text(claim), "ours": ours_text(line), "ratio": line.ratio,
        "verdict": line.verdict, "verified": claim.verified, "where": claim.where, "why": why(line),
        "source": [*line.source, *(cell for answer in line.answers for cell in answer.cells)],
    }  # fmt: skip
