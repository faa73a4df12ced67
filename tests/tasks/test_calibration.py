"""Calibration text is drawn by rule alone, never overlaps, never comes from what is evaluated; its draw is pinned by hash."""

import hashlib
from itertools import pairwise

import pytest

from methods.spec import UserError
from tasks.calibration import SOURCES, draw, ids_hash, overlap
from tasks.datasets import DATASETS

WORDS = [f"w{i}" for i in range(4000)]


def encode(text: str) -> list[int]:
    """One token per word, numbered as the words are; a blank line is token 9999."""
    return [9999 if word == "|" else int(word[1:]) for word in text.replace("\n\n", " | ").split()]


JOINED = [" ".join(WORDS[i : i + 10]) for i in range(0, 4000, 10)]
LONG = [" ".join(WORDS[i : i + 100]) for i in range(0, 4000, 100)]


@pytest.mark.parametrize(("name", "documents"), [("wikitext2", JOINED), ("boolq_passages", JOINED), ("c4", LONG)])
def test_windows_are_consecutive_text_without_overlap(name: str, documents: list[str]) -> None:
    drawn = draw(documents, encode, SOURCES[name], 20, 50, seed=3)
    assert [len(ids) for ids in drawn] == [50] * 20
    words = [[i for i in ids if i != 9999] for ids in drawn]
    assert all(b == a + 1 for ids in words for a, b in pairwise(ids))
    flat = [i for ids in words for i in ids]
    assert len(flat) == len(set(flat))


def test_each_excerpt_of_c4_lies_in_one_document_and_starts_vary() -> None:
    drawn = draw(LONG, encode, SOURCES["c4"], 40, 50, seed=0)
    assert all(ids[0] // 100 == ids[-1] // 100 for ids in drawn)
    assert len({ids[0] % 100 for ids in drawn}) > 15  # of 51 possible starts


def test_short_documents_are_passed_over() -> None:
    drawn = draw([*JOINED[:50], *LONG[:3]], encode, SOURCES["c4"], 3, 100, seed=0)
    assert sorted(drawn) == [list(range(0, 100)), list(range(100, 200)), list(range(200, 300))]


def test_repeated_passages_are_taken_once() -> None:
    with pytest.raises(UserError, match=r"gives 1 calibration sequences of 10 tokens and calibration\.sequences=2"):
        draw(JOINED[:1] * 5, encode, SOURCES["boolq_passages"], 2, 10, seed=0)


def test_the_seed_and_nothing_else_decides_the_draw() -> None:
    a, b = (draw(JOINED, encode, SOURCES["wikitext2"], 8, 32, seed=0) for _ in range(2))
    assert a == b != draw(JOINED, encode, SOURCES["wikitext2"], 8, 32, seed=1)
    assert draw(JOINED, encode, SOURCES["wikitext2"], 4, 32, seed=0) == a[:4]
    assert ids_hash(a) == hashlib.sha256(str(a).replace(" ", "").encode()).hexdigest() != ids_hash(a[::-1])


def test_the_order_is_that_of_the_hashes() -> None:
    """Independent of the implementation: window i has rank by sha256 of seed/i."""
    drawn = draw(JOINED, encode, SOURCES["wikitext2"], 5, 100, seed=7)
    ids = encode("\n\n".join(JOINED))
    ranks = sorted((hashlib.sha256(f"7/{i}".encode()).hexdigest(), i) for i in range(len(ids) // 100))
    assert drawn == [ids[i * 100 : (i + 1) * 100] for _, i in ranks[:5]]


def test_sources_are_training_text_and_what_is_measured_is_refused() -> None:
    assert all("train" in DATASETS[source.dataset].splits for source in SOURCES.values())
    assert overlap("boolq_passages", [("boolq", "train")])
    assert not overlap("boolq_passages", [("boolq", "validation")]) and not overlap("c4", [("boolq", "train")])


def test_boolq_passages_give_the_usual_amount(folder) -> None:
    """128 sequences of 512 whitespace words from real rows."""
    passages = folder.rows("boolq", "train").data["passage"][:]
    index = {}
    drawn = draw(passages, lambda text: [index.setdefault(w, len(index)) for w in text.split()], SOURCES["boolq_passages"], 128, 512, 0)
    assert len(drawn) == 128 and len({tuple(ids) for ids in drawn}) == 128
