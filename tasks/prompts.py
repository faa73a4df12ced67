"""Instructions as text: Alpaca's prompt in its clean form and with the white space that published scripts gave it."""

from collections.abc import Callable
from dataclasses import dataclass

ALONE = "Below is an instruction that describes a task."
PAIRED = "Below is an instruction that describes a task, paired with an input that provides further context."
REQUEST = "Write a response that appropriately completes the request."
INDENT = " " * 16
"""What the source code of LLM-Adapters puts before every line of its prompt but the first."""
Prompt = Callable[[str, str], str]
"""From an instruction and its input (may be empty) to the text before the response."""


@dataclass(frozen=True)
class Template:
    """How an instruction is written for training and for evaluation."""

    training: Prompt
    evaluation: Prompt
    joint: bool = False
    """Prompt and response are tokenised as one text, so that a token may span their border; else each by itself."""


def _clean(instruction: str, given: str, end: str = "\n") -> str:
    blocks = [f"{PAIRED if given else ALONE} {REQUEST}", f"### Instruction:\n{instruction}"]
    return "\n\n".join([*blocks, *([f"### Input:\n{given}"] if given else []), f"### Response:{end}"])


def _inline(instruction: str, given: str) -> str:
    return _clean(instruction, given, end="")


def _step_by_step(instruction: str, given: str) -> str:
    return _clean(instruction, given, end=" Let's think step by step.")


def _exact_training(instruction: str, given: str) -> str:
    """Two spaces after the first sentence (one where there is an input), and separator lines of spaces."""
    head = f"{PAIRED} {REQUEST} " if given else f"{ALONE} {REQUEST}  "
    return _indented(head, instruction, given, separator=INDENT)


def _exact_evaluation(instruction: str, given: str) -> str:
    """One space after the first sentence (none where there is an input), and empty separator lines."""
    head = f"{PAIRED} {REQUEST}" if given else f"{ALONE} {REQUEST} "
    return _indented(head, instruction, given, separator="")


def _indented(head: str, instruction: str, given: str, separator: str) -> str:
    blocks = [("### Instruction:", instruction), *([("### Input:", given)] if given else [])]
    body = "".join(f"{INDENT}{title}\n{INDENT}{text}\n{separator}\n" for title, text in blocks)
    return f"{head}\n\n{body}{INDENT}### Response:\n{INDENT}"


TEMPLATES = {
    "clean": Template(_clean, _clean),
    "llm_adapters_exact": Template(_exact_training, _exact_evaluation, joint=True),
    "metamath": Template(_inline, _step_by_step),
}
"""`metamath`: trained without and evaluated with the request for steps, as PiSSA (arXiv 2404.02948) and its successors do."""
