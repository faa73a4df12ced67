"""The sentence about a name that does not exist: what was given, the nearest that does, all that is allowed."""

import difflib
from collections.abc import Iterable

SHOWN = 40
"""Names listed at most; beyond, only the nearest ones."""


def nearest(given: str, allowed: Iterable[str], n: int = 1) -> list[str]:
    """The allowed names most like `given`, best first; empty where none is similar."""
    return difflib.get_close_matches(given, list(allowed), n=n, cutoff=0.5)


def unknown(key: str, given: str, allowed: Iterable[str], *, sign: str = "=") -> str:
    """`method=loar is unknown; did you mean lora? allowed: bitfit, dora, lora`."""
    allowed = sorted(allowed)
    close = nearest(given, allowed)
    hint = f"did you mean {close[0]}? " if close else ""
    shown = allowed if len(allowed) <= SHOWN else nearest(given, allowed, 5) or allowed[:SHOWN]
    return f"{key}{sign}{given} is unknown; {hint}allowed: {', '.join(shown) or 'nothing'}{', ...' if len(shown) < len(allowed) else ''}"
