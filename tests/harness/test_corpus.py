"""A training text for tasks without training rows: what it is part of, what is refused, and that every method trains on it."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from harness import cell as spine
from harness.compat import incompatible
from harness.compose import compose
from harness.identity import canonical_half, identify
from harness.resolve import resolve
from harness.store import Store
from methods.spec import UserError
from tasks.calibration import SOURCES, draw, drawn
from tests.contract.toy import write_toy_data

TEXT = ["task=wikitext2", "task.context=32", "task.limit=4", "model=tiny_llama", "budget=smoke", "recipe.lr=1e-2", "run.device=cpu"]
CORPUS = ["corpus.source=boolq_passages", "corpus.length=32"]


def container(*overrides: str) -> dict[str, Any]:
    return compose([*TEXT, "precision=float32", "budget.examples=12", "recipe.batch=4", *overrides])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("toy"))


def test_it_is_part_of_a_cell_only_where_something_trains_on_it() -> None:
    trained = resolve(OmegaConf.create(container("method=lora", *CORPUS)))
    assert canonical_half(trained, "", {})["corpus"] == {"source": "boolq_passages", "length": 32}
    assert incompatible(trained) is None
    untouched = resolve(OmegaConf.create(container("method=none", *CORPUS)))
    assert untouched.cell.corpus is None and "corpus" not in canonical_half(untouched, "", {})
    assert resolve(OmegaConf.create(container("method=lora", "corpus.source=boolq_passages"))).cell.corpus.length == 128


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corpus.source=pile"], r"corpus\.source=pile is not allowed; allowed: c4, wikitext2, boolq_passages"),
        (["corpus.length=1"], r"corpus\.length=1 is out of range"),
        (["+corpus.rows=4"], r"corpus\.rows is unknown"),
        (["task=glue/sst2", *CORPUS], r"glue/sst2 has some; give corpus\.source=null"),
        (["task.split=train", "corpus.source=wikitext2"], r"is the text that task wikitext2 is measured on"),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], message: str) -> None:
    base = [o for o in TEXT if not (o.startswith("task") and overrides[0].startswith("task=glue"))]
    with pytest.raises(UserError, match=message):
        resolve(OmegaConf.create(compose([*base, "method=lora", *overrides])))


def test_without_it_the_sentence_names_it() -> None:
    reason = incompatible(resolve(OmegaConf.create(container("method=lora"))))
    assert reason == (
        "lora trains and task wikitext2 has no training form; give corpus.source=<text> to train on, use a classification task "
        "or a method that does not train"
    )
    long = incompatible(resolve(OmegaConf.create(container("method=lora", "corpus.source=c4", "corpus.length=129"))))
    assert long == "corpus.length=129 is longer than tiny_llama takes; give corpus.length of at most 128"


def test_rows_are_the_first_of_the_calibration_draw_and_end_with_the_text() -> None:
    documents = [f"word{i} " * 30 for i in range(6)]
    encode = lambda text: [ord(c) for c in text]  # noqa: E731
    for name in ("boolq_passages", "c4"):
        source = SOURCES[name]
        assert drawn(documents, encode, source, 3, 16, 7) == draw(documents, encode, source, 3, 16, 7)
        everything = drawn(documents, encode, source, None, 16, 7)
        assert drawn(documents, encode, source, 10**6, 16, 7) == everything
        assert len(everything) == (6 if name == "c4" else len("\n\n".join(documents)) // 16)
        with pytest.raises(UserError, match=r"give a smaller corpus\.length"):
            drawn(documents, encode, source, None, 10**5, 7)


def test_a_language_model_learns_the_text_and_the_record_names_it(data: Path, tmp_path: Path) -> None:
    """The toy passages are made of the words of the toy test text, so training on them lowers its perplexity."""
    values = {}
    for method, more in (("none", []), ("full_ft", CORPUS)):
        one = container(f"method={method}", f"data_dir={data}", f"run.store={tmp_path}", "budget.examples=200", *more)
        spine.run_cell(one)
        folder = Store(str(tmp_path)).folder(identify(resolve(OmegaConf.create(one))).cell)
        record = spine.seal(folder, "cpu", keep_model=False)
        values[method] = record.results[0].metrics["perplexity"]
        assert record.results[0].protocol == "wikitext2@ppl-32[:4]"  # the same, whatever it was trained on
    assert values["full_ft"] < 0.5 * values["none"]
    train = record.data["train"]
    assert (train["dataset"], train["length"], record.phases[0].steps) == ("boolq", 32, 50)
    assert record.phases[0].tokens == 32 * record.phases[0].examples
