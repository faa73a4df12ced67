"""Our own definitions of lm-eval tasks (`tasks/lmeval_tasks/<name>.yaml`), as protocol ids name them. Torch-free."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Own:
    """One definition."""

    forms: dict[str, str] = field(default_factory=dict)
    """Filter of lm-eval -> the form in the protocol id, where it is not the filter's name."""
    shots: int = 0
    """The usual number of solved examples, which the protocol id leaves out."""
    row_is_document: bool = True
    """Each row of the dataset is one document, so that a limit can be put on rows."""


CHOICE = Own({"none": "loglikelihood-lmeval"})
OWN: dict[str, Own] = {
    **dict.fromkeys(("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande", "boolq", "social_iqa", "openbookqa"), CHOICE),
    "gsm8k": Own(shots=5),
    "wikitext2": Own({"none": "word-ppl"}, row_is_document=False),
}
