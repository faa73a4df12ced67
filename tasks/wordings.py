"""How a row of a classification set is said in words: the text with a place for the answer, and the word of each class.

`cloze`: templates and label words of LM-BFF (Gao et al. 2021, arXiv 2012.15723, table 1) for masked models; those of WNLI and of the
made sets are written here. `prompt`: a causal model reads from left to right, so its prompts, written here, end where the answer begins.
`text`: input and target as text in the manner of T5 (Raffel et al. 2020, arXiv 1910.10683, appendix D): the name of the task, each column
with its name, and the class as its name in the data set; STS-B is rounded to a fifth and answered as a number.
"""

from dataclasses import dataclass

from methods.spec import UserError

ANSWER = "{answer}"
"""Stands for the mask of a masked model."""


@dataclass(frozen=True)
class Wording:
    """Templates with the columns' names in braces."""

    causal: str
    """Up to where the answer begins; the answer follows after a space."""
    words: tuple[str, ...]
    """One per class, in the order of the labels."""
    masked: str = ""
    """With `{answer}` where the mask stands; empty = for causal models alone."""
    values: tuple[float, ...] = ()
    """What the words stand for where the labels are numbers."""


def _numbers() -> tuple[float, ...]:
    return tuple(round(i / 5, 1) for i in range(26))


def _text(task: str, columns: str, *names: str) -> Wording:
    inputs = " ".join(f"{column}: {{{column}}}" for column in columns.split())
    values = () if names else _numbers()
    return Wording(f"{task} {inputs} answer:", names or tuple(map(str, values)), values=values)


def _pair(question: str, masked: str, *words: str, columns: str = "sentence1 sentence2") -> Wording:
    """`masked` has the answer between the two texts, which `{0}` and `{1}` stand for."""
    first, second = (f"{{{column}}}" for column in columns.split())
    fill = {"{0}": first, "{1}": second}
    for mark, column in fill.items():
        question, masked = question.replace(mark, column), masked.replace(mark, column)
    return Wording(question, words, masked)


ENTAILS = "{0}\nQuestion: Does it follow that {1}\nAnswer:"
SAME = "{0}\n{1}\nQuestion: Do both mean the same?\nAnswer:"
BETWEEN = "{0} ? {answer} , {1}"

PROMPT = {
    "glue/sst2": Wording("{sentence} It was", ("terrible", "great"), "{sentence} It was {answer} ."),
    "glue/cola": Wording("{sentence} This is", ("incorrect", "correct"), "{sentence} This is {answer} ."),
    "glue/mnli": _pair(ENTAILS, BETWEEN, "Yes", "Maybe", "No", columns="premise hypothesis"),
    "glue/qnli": _pair("{1}\nQuestion: {0} Is it answered?\nAnswer:", BETWEEN, "Yes", "No", columns="question sentence"),
    "glue/rte": _pair(ENTAILS, BETWEEN, "Yes", "No"),
    "glue/mrpc": _pair(SAME, "{0} {answer} , {1}", "No", "Yes"),
    "glue/qqp": _pair(SAME, "{0} {answer} , {1}", "No", "Yes", columns="question1 question2"),
    "glue/wnli": _pair(ENTAILS, BETWEEN, "No", "Yes"),
    "toy/sentiment": Wording("{sentence} =", ("-", "+"), "{sentence} = {answer}"),
    "toy/entailment": _pair("{0} {1} =", "{0} {answer} {1}", "+", "-"),
}
TEXT = {
    "glue/sst2": _text("sst2", "sentence", "negative", "positive"),
    "glue/cola": _text("cola", "sentence", "unacceptable", "acceptable"),
    "glue/mnli": _text("mnli", "premise hypothesis", "entailment", "neutral", "contradiction"),
    "glue/qnli": _text("qnli", "question sentence", "entailment", "not_entailment"),
    "glue/rte": _text("rte", "sentence1 sentence2", "entailment", "not_entailment"),
    "glue/mrpc": _text("mrpc", "sentence1 sentence2", "not_equivalent", "equivalent"),
    "glue/qqp": _text("qqp", "question1 question2", "not_duplicate", "duplicate"),
    "glue/wnli": _text("wnli", "sentence1 sentence2", "not_entailment", "entailment"),
    "glue/stsb": _text("stsb", "sentence1 sentence2"),
    "toy/sentiment": _text("toy", "sentence", "negative", "positive"),
    "toy/entailment": _text("toy", "sentence1 sentence2", "entailment", "not_entailment"),
    "toy/similarity": _text("toy", "sentence1 sentence2"),
}
WORDINGS = {"cloze": PROMPT, "prompt": PROMPT, "text": TEXT}


def wording(form: str, dataset: str) -> Wording:
    """The wording of a dataset (a seed after ':' does not matter); `UserError` where it has none in this form."""
    found = WORDINGS[form].get(dataset.partition(":")[0])
    if found is None:
        raise UserError(f"{dataset} has no label words in the form {form}; allowed for task.form={form}: {', '.join(WORDINGS[form])}")
    return found
