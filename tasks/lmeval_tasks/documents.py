"""What the definitions of this folder call: rows as documents, in the wording of `tasks/templates.py`, and whole WikiText articles."""

import re
from functools import partial
from typing import Any

from datasets import Dataset

from tasks.templates import TEMPLATES

Row = dict[str, Any]


def _questions(dataset: str, rows: Dataset) -> Dataset:
    """Context, choices and gold of each row; where the contexts differ, these are the choices and the continuation is shared."""
    asked = [TEMPLATES[dataset].question(row) for row in rows]
    columns: dict[str, list] = {"gold": [question.gold for question in asked]}
    if dataset == "winogrande":
        columns |= {"contexts": [q.contexts for q in asked], "continuation": [q.continuations[0].removeprefix(" ") for q in asked]}
    else:  # lm-eval puts the space before a choice itself
        columns |= {
            "context": [question.contexts[0] for question in asked],
            "choices": [[text.removeprefix(" ") for text in question.continuations] for question in asked],
        }
    return Dataset.from_dict(columns)


piqa = partial(_questions, "piqa")
arc_easy = partial(_questions, "arc_easy")
arc_challenge = partial(_questions, "arc_challenge")
hellaswag = partial(_questions, "hellaswag")
winogrande = partial(_questions, "winogrande")
boolq = partial(_questions, "boolq")
social_iqa = partial(_questions, "social_iqa")
openbookqa = partial(_questions, "openbookqa")


def articles(rows: Dataset) -> Dataset:
    """Lines of WikiText joined to articles: one begins at each title, a line `= Title =`. A blank line is a space, as in the raw files."""
    pages: list[list[str]] = [[]]
    for text in rows["text"][:]:
        line = text.removesuffix("\n") or " "
        if re.fullmatch(r"= [^=](.*[^=])? =", line.strip()):
            pages.append([])
        pages[-1].append(line)
    joined = ["\n".join(lines) for lines in pages]
    return Dataset.from_dict({"page": [page for page in joined if page.strip()]})


SPACED = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"))
"""WikiText's marks inside words, then punctuation with a space before it."""
ENCLOSED = (r"\(\s*([^\)]*?)\s*\)", r"\[\s*([^\]]*?)\s*\]", r"{\s*([^}]*?)\s*}", r"\"\s*([^\"]*?)\s*\"", r"'\s*([^']*?)\s*'")
"""Brackets and quotes with spaces inside them."""
REST = (("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" ° ", "°"), (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"))


def detokenised(document: Row) -> str:
    """The article as plain English text: WikiText's tokenisation undone by the rules that lm-eval uses, in their order."""
    text = document["page"].replace("s '", "s'")
    for old, new in SPACED:
        text = text.replace(old, new)
    for pattern in ENCLOSED:
        text = re.sub(pattern, lambda found: found.group()[0] + found.group(1) + found.group()[-1], text)
    for old, new in REST:
        text = text.replace(old, new)
    return text


def per_word(document: Row, results: tuple[float]) -> dict[str, tuple[float, int]]:
    """Log-likelihood of an article with the words and bytes (of the tokenised text) by which it is divided."""
    (value,) = results
    words, size = len(re.split(r"\s+", document["page"])), len(document["page"].encode())
    return {"word_perplexity": (value, words), "byte_perplexity": (value, size), "bits_per_byte": (value, size)}
