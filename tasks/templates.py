"""Zero-shot forms of the eight commonsense tasks, as the stock tasks of lm-eval 0.4.13 write them, and of the made one."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One question: choice j is scored as `continuations[j]` after `contexts[j]`."""

    contexts: list[str]
    continuations: list[str]
    gold: int
    """Index of the right choice."""

    def lengths(self) -> list[int]:
        """Characters of each choice without the space before it: what `acc_norm` of lm-eval divides by."""
        return [len(text) - 1 for text in self.continuations]


@dataclass(frozen=True)
class Template:
    """How a row becomes a question, and whether lm-eval reports a length-normalised accuracy for it."""

    question: Callable[[Row], Question]
    normalised: bool = True


def _one_context(context: str, choices: list[str], gold: int) -> Question:
    return Question([context] * len(choices), [f" {text}" for text in choices], gold)


def _piqa(row: Row) -> Question:
    return _one_context(f"Question: {row['goal']}\nAnswer:", [row["sol1"], row["sol2"]], row["label"])


def _arc(row: Row) -> Question:
    choices = row["choices"]
    return _one_context(f"Question: {row['question']}\nAnswer:", choices["text"], choices["label"].index(row["answerKey"]))


def _openbookqa(row: Row) -> Question:
    choices = row["choices"]
    return _one_context(row["question_stem"], choices["text"], choices["label"].index(row["answerKey"].lstrip()))


def _hellaswag(row: Row) -> Question:
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return _one_context(_without_markup(context), [_without_markup(text) for text in row["endings"]], int(row["label"]))


def _without_markup(text: str) -> str:
    """Without the bracketed section marks that the WikiHow part of HellaSwag carries."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _winogrande(row: Row) -> Question:
    """Partial evaluation (Trinh and Le 2018, arXiv 1806.02847): the text after the blank, given each option in it."""
    before, _, after = row["sentence"].partition("_")
    return Question([before + row["option1"], before + row["option2"]], [f" {after.strip()}"] * 2, int(row["answer"]) - 1)


def _boolq(row: Row) -> Question:
    """Of google/boolq; the SuperGLUE copy that the stock task names puts the article's title before the passage."""
    return _one_context(f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", ["no", "yes"], int(row["answer"]))


def _social_iqa(row: Row) -> Question:
    choices = [row["answerA"], row["answerB"], row["answerC"]]
    return _one_context(f"Q: {row['context']} {row['question']}\nA:", choices, int(row["label"]) - 1)


def _toy(row: Row) -> Question:
    choices = row["choices"]
    return _one_context(row["question"], choices["text"], choices["label"].index(row["answerKey"]))


TEMPLATES = {
    "piqa": Template(_piqa),
    "arc_easy": Template(_arc),
    "arc_challenge": Template(_arc),
    "hellaswag": Template(_hellaswag),
    "openbookqa": Template(_openbookqa),
    "winogrande": Template(_winogrande, normalised=False),
    "boolq": Template(_boolq, normalised=False),
    "social_iqa": Template(_social_iqa, normalised=False),
    "toy/choice": Template(_toy),
}
