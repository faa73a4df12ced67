"""Text of a small grammar, for perplexity and for pretraining; written here, infinite by seed.

A sentence is a subject, a verb that agrees with it in number, and an object; a relative clause may stand between subject and verb,
so that agreement has to be carried over it.
"""

from collections.abc import Iterator

from tasks.toy.draws import Draws

NOUNS = (("cat", "cats"), ("dog", "dogs"), ("child", "children"), ("bird", "birds"), ("king", "kings"), ("ship", "ships"))
VERBS = (("sees", "see"), ("follows", "follow"), ("likes", "like"), ("finds", "find"), ("passes", "pass"))
SENTENCES = 8
"""Sentences of a document."""


def documents(split: str, seed: int) -> Iterator[dict[str, str]]:
    """`text`: documents of `SENTENCES` sentences."""
    draws = Draws("corpus", split, seed)
    while True:
        yield {"text": " ".join(_sentence(draws) for _ in range(SENTENCES))}


def _sentence(draws: Draws) -> str:
    subject, number = _noun(draws)
    clause = f" that {_verb(draws, number)} {_noun(draws)[0]}" if draws.below(3) == 0 else ""
    return f"{subject}{clause} {_verb(draws, number)} {_noun(draws)[0]} ."


def _noun(draws: Draws) -> tuple[str, int]:
    number = draws.below(2)
    return f"the {draws.pick(NOUNS)[number]}", number


def _verb(draws: Draws, number: int) -> str:
    return draws.pick(VERBS)[number]
