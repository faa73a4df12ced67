"""Sentences, pairs and questions with labels, in the columns of GLUE and of commonsense sets; written here, infinite by seed.

Every label follows from the words by a rule that this file states, so that a perfect score is possible and chance is known. One text
in five is for evaluation alone: no evaluated row was trained on.
"""

from collections.abc import Callable, Iterator
from typing import Any

from tasks.toy.draws import Draws, kept_back

Row = dict[str, Any]

GOOD = ("warm", "clever", "bright", "charming", "gentle", "funny", "honest", "graceful")
BAD = ("dull", "clumsy", "cold", "boring", "shallow", "noisy", "cruel", "lifeless")
SUBJECTS = ("the story", "the music", "her song", "this film", "the last scene", "his speech")
ADVERBS = ("rather", "very", "truly", "mostly")
OPENINGS = ("after an hour", "in the end", "to my surprise", "as ever")

WHO = ("a man", "a woman", "a boy", "a girl", "a farmer", "a nurse", "my uncle", "the cook", "our teacher", "the clerk")
DOES = {
    "runs": "moves", "walks": "moves", "climbs": "moves", "sings": "makes music", "plays the drum": "makes music",
    "hums a tune": "makes music", "sleeps": "rests", "naps": "rests", "sits still": "rests",
}  # fmt: skip
"""What is done, and what it entails."""
PLACES = ("in the park", "by the river", "at home", "near the school", "on the hill", "behind the barn", "under a tree", "in town")

PURPOSES = {
    "cut bread": "a knife", "dry your hands": "a towel", "write a letter": "a pen", "open a lock": "a key",
    "sweep the floor": "a broom", "eat soup": "a spoon", "see in the dark": "a lamp", "carry water": "a bucket",
}  # fmt: skip
NEEDS = ("To {}, use", "When you want to {}, take", "What helps to {}? It is", "If you have to {}, look for")


def _sentiment(draws: Draws) -> Row:
    """`sentence`, `label`: 1 = the sentence praises. `not` turns the adjective around; half of the rows have it."""
    good, turned = draws.below(2), draws.below(2)
    words = f"{draws.pick(SUBJECTS)} was {'not ' if turned else ''}{draws.pick(ADVERBS)} {draws.pick(GOOD if good else BAD)}"
    opening = f"{draws.pick(OPENINGS)} , " if draws.below(2) else ""
    return {"sentence": f"{opening}{words} .", "label": good ^ turned}


def _entailment(draws: Draws) -> Row:
    """`sentence1`, `sentence2`, `label`: 0 = entailment, as in RTE. The second says of the same person what the first entails, or else."""
    who, does, label = draws.pick(WHO), draws.pick(tuple(DOES)), draws.below(2)
    said = DOES[does] if label == 0 else draws.pick(sorted(set(DOES.values()) - {DOES[does]}))
    return {"sentence1": f"{who} {does} {draws.pick(PLACES)} .", "sentence2": f"{who} {said} .", "label": label}


def _similarity(draws: Draws) -> Row:
    """`sentence1`, `sentence2`, `label` from 0 to 5: the number of the five words of the first that the second keeps in place."""
    slots = (WHO, tuple(DOES), PLACES, ADVERBS, GOOD)
    first = [draws.pick(slot) for slot in slots]
    changed = draws.some(range(5), draws.below(6))
    second = [draws.pick([w for w in slots[i] if w != word]) if i in changed else word for i, word in enumerate(first)]
    return {"sentence1": _scene(first), "sentence2": _scene(second), "label": float(5 - len(changed))}


def _scene(words: list[str]) -> str:
    who, does, place, adverb, mood = words
    return f"{who} {does} {place} and feels {adverb} {mood} ."


def _choice(draws: Draws) -> Row:
    """`question`, `choices` (four texts and letters), `answerKey`: the tool that serves the purpose, as in ARC."""
    letters = ["A", "B", "C", "D"]
    purpose = draws.pick(tuple(PURPOSES))
    wrong = draws.some([tool for tool in PURPOSES.values() if tool != PURPOSES[purpose]], 3)
    texts = draws.some([PURPOSES[purpose], *wrong], 4)
    question = draws.pick(NEEDS).format(purpose)
    return {"question": question, "choices": {"text": texts, "label": letters}, "answerKey": letters[texts.index(PURPOSES[purpose])]}


def rows(task: str, split: str, seed: int) -> Iterator[Row]:
    """Rows without end of `sentiment`, `entailment`, `similarity` or `choice`; of the split `train`, or of one to evaluate on."""
    draws, make = Draws(task, split, seed), MAKERS[task]
    while True:
        row = make(draws)
        if kept_back(" ".join(str(value) for key, value in row.items() if key not in ("label", "answerKey"))) == (split != "train"):
            yield row


MAKERS: dict[str, Callable[[Draws], Row]] = {
    "sentiment": _sentiment, "entailment": _entailment, "similarity": _similarity, "choice": _choice,
}  # fmt: skip
