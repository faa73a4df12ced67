"""lm-eval's per-document samples as columns of predictions."""

from typing import Any

import numpy as np

from tasks.hashing import example_hash

Sample = dict[str, Any]


def columns(samples: list[Sample], primary: str) -> dict[str, list]:
    """One entry per document, in their order.

    `example` (the hash of the prompt and its answers; that of `tasks.choice` where the task is multiple choice), `document` (lm-eval's
    own hash), `score` (the primary metric; nats per word or byte for perplexities), one column per metric that is a number, and
    what was answered: `loglikelihoods`, `label`, `prediction`, or `completion`, `extracted`, `label`, or `nll` (nats), `tokens` (what
    the nats are divided by: words or bytes).
    """
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    table: dict[str, list] = {
        "example": [example_hash(_document(sample)) for sample in samples],
        "document": [sample["doc_hash"] for sample in samples],
    }
    numbers = [name for name in samples[0]["metrics"] if np.isscalar(samples[0][name])]
    table |= {name: [float(sample[name]) for sample in samples] for name in numbers}
    return table | _answers(samples, primary)


def _document(sample: Sample) -> dict[str, Any]:
    pairs = [tuple(arguments) for arguments in sample["arguments"]]
    if all(len(pair) == 2 and isinstance(pair[1], str) for pair in pairs):
        return {"contexts": [context for context, _ in pairs], "continuations": [text for _, text in pairs]}
    return {"texts": [str(pair[0]) for pair in pairs]}


def _answers(samples: list[Sample], primary: str) -> dict[str, list]:
    first = samples[0]
    if isinstance(first[primary], tuple) and isinstance(first["filtered_resps"][0], float):
        return _rolling(samples, primary)
    table: dict[str, list] = {"score": [_score(sample[primary]) for sample in samples]}
    table["label"] = [sample["target"] if isinstance(sample["target"], int) else str(sample["target"]) for sample in samples]
    if len({type(label) for label in table["label"]}) > 1:
        table["label"] = [str(label) for label in table["label"]]
    if isinstance(first["filtered_resps"][0], tuple):
        values = [[float(value) for value, _ in sample["filtered_resps"]] for sample in samples]
        return table | {"loglikelihoods": values, "prediction": [int(np.argmax(row)) for row in values]}
    completions = [str(sample["resps"][0][0]) for sample in samples]
    return table | {"completion": completions, "extracted": [str(sample["filtered_resps"][0]) for sample in samples]}


def _rolling(samples: list[Sample], primary: str) -> dict[str, list]:
    """Perplexities: the log-likelihood of each document with its weight."""
    nll, units = [-sample[primary][0] for sample in samples], [int(sample[primary][1]) for sample in samples]
    return {"score": [value / n for value, n in zip(nll, units, strict=True)], "nll": nll, "tokens": units}


def _score(value: Any) -> float:
    """The metric of one document; for a metric that is no mean over documents, whether the prediction is right."""
    return float(value[0] == value[1]) if isinstance(value, tuple) else float(value)
