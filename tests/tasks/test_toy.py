"""Made data sets: reproducible, right by rules written here anew, and nothing that is evaluated was trained on."""

import itertools
import re
from pathlib import Path

import pytest

from methods.spec import UserError
from tasks.sources import Sources
from tasks.toy import GENERATORS
from tasks.toy.arithmetic import LEVELS

INPUTS = ("sentence", "sentence1", "sentence2", "question", "choices", "text")


def take(name, n, split="train", seed=0):
    return list(itertools.islice(GENERATORS[name](split, seed), n))


def inputs(row):
    return str([row[key] for key in INPUTS if key in row])


def steps(row):
    """(left, sign, right, result) of each line of a worked solution."""
    lines = row["answer"].split("\n")[:-1]
    return [(int(a), sign, int(b), int(c)) for a, sign, b, c in (re.fullmatch(r"(\d+)([-+*])(\d+)=(\d+)", line).groups() for line in lines)]


FIRST = {
    "toy/sentiment": {"sentence": "his speech was mostly honest .", "label": 1},
    "toy/arithmetic-1": {"question": "Ben has 3, buys 1, loses 0. Now?", "answer": "03+01=04\n04-00=04\n#### 4"},
}


@pytest.mark.parametrize("name", GENERATORS)
def test_rows_depend_on_seed_and_split_alone(name):
    assert take(name, 20) == take(name, 20)
    assert take(name, 20) == take(name, 40)[:20]
    assert take(name, 20) != take(name, 20, seed=1) and take(name, 20) != take(name, 20, "test")
    assert name not in FIRST or take(name, 1) == [FIRST[name]]


@pytest.mark.parametrize("name", ["toy/sentiment", "toy/entailment", "toy/similarity", "toy/choice"])
def test_no_evaluated_text_was_trained_on_whatever_the_seed(name):
    trained = {inputs(row) for seed in (0, 1) for row in take(name, 3000, seed=seed)}
    assert not trained & {inputs(row) for row in take(name, 500, "validation")}


@pytest.mark.parametrize("level", LEVELS)
def test_no_pair_of_numbers_of_a_test_step_was_trained_on(level):
    def pairs(rows):
        return {frozenset((left, right)) for row in rows for left, _, right, _ in steps(row)}

    trained, tested = pairs(take(f"toy/arithmetic-{level}", 5000)), pairs(take(f"toy/arithmetic-{level}", 1000, "test"))
    assert len(tested) > 60 and not trained & tested


@pytest.mark.parametrize(("level", "operations", "largest"), [(1, 2, 20), (2, 3, 50), (3, 4, 99)])
def test_worked_solutions_are_right_and_belong_to_their_questions(level, operations, largest):
    for row in take(f"toy/arithmetic-{level}", 300):
        chain = steps(row)
        given = [int(n) for n in re.findall(r"\d+", row["question"])]
        assert len(chain) == operations and given == [chain[0][0], *(right for _, _, right, _ in chain)]
        assert all(0 <= n <= largest for n in given)
        assert all(result == {"+": a + b, "-": a - b, "*": a * b}[sign] for a, sign, b, result in chain)
        assert all(after[0] == before[3] for before, after in itertools.pairwise(chain))
        assert row["answer"].endswith(f"#### {chain[-1][3]}")
        words = {"gets": "+", "buys": "+", "sells": "-", "loses": "-"}
        assert [words.get(word, "*") for word in re.findall(r", (\w+)", row["question"])] == [sign for _, sign, _, _ in chain]


def test_sentiment_follows_from_the_adjective_and_not():
    good = {"warm", "clever", "bright", "charming", "gentle", "funny", "honest", "graceful"}
    rows = take("toy/sentiment", 500)
    assert all(row["label"] == ((row["sentence"].split()[-2] in good) != (" not " in row["sentence"])) for row in rows)
    assert 200 < sum(row["label"] for row in rows) < 300


def test_similarity_counts_the_parts_that_stay():
    part = re.compile(r"((?:an?|my|our|the) \w+) (.+?) ((?:in|by|at|near|on|behind|under) .+) and feels (\w+) (\w+) \.")
    for row in take("toy/similarity", 200):
        first, second = (part.fullmatch(row[key]).groups() for key in ("sentence1", "sentence2"))
        assert row["label"] == sum(a == b for a, b in zip(first, second, strict=True))


def test_entailment_keeps_the_person_and_choice_has_one_right_tool():
    moves = {"runs", "walks", "climbs"}
    for row in take("toy/entailment", 300):
        assert row["sentence2"].startswith(" ".join(row["sentence1"].split()[:2]))
        if row["sentence1"].split()[2] in moves:
            assert (row["label"] == 0) == row["sentence2"].endswith(" moves .")
    rows = take("toy/choice", 300)
    assert all(len(set(row["choices"]["text"])) == 4 for row in rows)
    tools = {}
    for row in rows:
        purpose = re.search(r"(?:[Tt]o|helps to) (.+?)(?:,|\?)", row["question"]).group(1)
        tools.setdefault(purpose.removeprefix("helps to "), set()).add(row["choices"]["text"]["ABCD".index(row["answerKey"])])
    assert all(len(right) == 1 for right in tools.values())


def test_verbs_of_the_grammar_agree_with_their_subject():
    singular = {"sees", "follows", "likes", "finds", "passes"}
    plural = {"see", "follow", "like", "find", "pass"}
    many = {"cats", "dogs", "children", "birds", "kings", "ships"}
    for row in take("toy/corpus", 100):
        for sentence in row["text"].split(" . "):
            words = sentence.split()
            verbs = [word for word in words if word in singular | plural]
            assert verbs and all((verb in plural) == (words[1] in many) for verb in verbs), sentence


def test_sources_serve_made_rows_by_seed(tmp_path: Path):
    here = Sources(None, tmp_path, offline=True)
    rows = here.rows("toy/sentiment", "validation")
    assert (rows.source, rows.revision, len(rows.data), rows.official) == ("generated", "seed 0", 500, True)
    assert rows.data.to_list()[:3] == take("toy/sentiment", 3, "validation")
    assert here.fingerprint("toy/sentiment", "validation") == rows.sha256
    other = here.rows("toy/sentiment:7", "validation")
    assert other.revision == "seed 7" and other.data.to_list()[:3] == take("toy/sentiment", 3, "validation", seed=7)
    assert here.fingerprint("toy/sentiment:7", "validation") != rows.sha256
    with pytest.raises(UserError, match=r"dataset=glue/sst2:7 is not allowed; a seed"):
        here.rows("glue/sst2:7", "validation")
    with pytest.raises(UserError, match=r"dataset=toy/sentiment:x is not allowed"):
        here.rows("toy/sentiment:x", "validation")
