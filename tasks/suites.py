"""Test sets that are answered by generation: how each is decoded, and how an answer is found and judged. Torch-free."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tasks import extraction


@dataclass(frozen=True)
class Suite:
    """One test set as its paper measures it."""

    dataset: str
    """Key of `tasks/datasets.py`; the rows of its test split."""
    extract: Callable[[str], Any]
    """From a completion to an answer, None where the protocol finds none."""
    correct: Callable[[Any, str], bool]
    """Whether an answer is the one in the row's answer column."""
    beams: int = 4
    new_tokens: int = 256
    instruction: str = "instruction"
    """Column of the question; `answer` holds the answer."""
    choices: bool = False
    """The question ends with the list of its legal answers."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion."""


STOP = ("Question", "USER", "ASSISTANT", "Instruction", "Response")
"""MetaMath's stop strings; its forms with a colon begin with these."""


def _same(found: str, gold: str) -> bool:
    return found == gold


def _commonsense(name: str) -> Suite:
    extract = partial(extraction.commonsense, name)
    return Suite(f"llm_adapters/{name}", extract, _same, new_tokens=32, choices=True)


def _math(name: str) -> Suite:
    return Suite(f"llm_adapters/{name}", extraction.last_number, extraction.same_number)


COMMONSENSE = ("boolq", "piqa", "social_iqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
SUITES: dict[str, Suite] = {
    **{name: _commonsense(name) for name in COMMONSENSE},
    **{name: _math(name) for name in ("gsm8k", "svamp", "mawps", "addsub", "multiarith", "singleeq")},
    "aqua": Suite("llm_adapters/aqua", extraction.aqua_letter, _same),
    "gsm8k_metamath": Suite(
        "gsm8k", extraction.metamath_integer, extraction.same_integer, beams=1, new_tokens=512, instruction="question", stop=STOP
    ),
}
