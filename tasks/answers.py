"""Test sets of instruction-tuned models: answered by generation, or by the likelihood of each legal answer."""

from abc import abstractmethod
from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from methods.spec import UserError
from tasks.base import EvalOptions, Evaluation, Rows, Task
from tasks.encoding import encode_prompts, encode_responses
from tasks.forward import max_input
from tasks.generation import Completion, Decoding, complete
from tasks.hashing import example_hash
from tasks.likelihood import Pair, log_likelihoods
from tasks.metrics import compute
from tasks.spec import InstructConfig
from tasks.suites import SUITES

if TYPE_CHECKING:
    from tasks.instruct import Instruct

LEGAL = "Answer format: "
"""Words before the list of legal answers at the end of a question."""
STEM = "the correct answer is"
"""How every response of the commonsense mix begins."""


class Answers(Task):
    """One test set in one form: a part of an instruction task."""

    config: InstructConfig
    form: str

    def __init__(self, whole: "Instruct", name: str) -> None:
        super().__init__(whole.config, whole.sources)
        self.whole, self.name, self.suite = whole, name, SUITES[name]

    def protocol(self) -> str:
        """The protocol id of this test set in this form."""
        return self.config.reported(self.name, self.form)

    def splits(self) -> dict[str, Rows]:
        """`evaluation`: the rows of the test set."""
        return {"evaluation": self.whole.splits()[self.name]}

    def encode(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """Raises `UserError`: what is trained on is the whole task's."""
        raise UserError(f"{self.protocol()} has no training form")

    @cached_property
    def questions(self) -> list[str]:
        """The instruction of each row."""
        return self.splits()["evaluation"].data[self.suite.instruction][:]

    @cached_property
    def gold(self) -> list[str]:
        """The answer of each row."""
        return self.splits()["evaluation"].data["answer"][:]

    def prompts(self) -> list[str]:
        """The text before each response."""
        return [self.whole.template.evaluation(question, "") for question in self.questions]

    def legal(self) -> list[list[str]]:
        """The legal answers of each row, as its question lists them."""
        return [question.rpartition(LEGAL)[2].strip().split("/") for question in self.questions]

    @abstractmethod
    def evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, options: EvalOptions) -> Evaluation:
        """`accuracy`; `majority` (what the commonest label would score) where there are legal answers to choose from."""

    def _result(self, metrics: dict[str, float], columns: dict[str, list]) -> Evaluation:
        if self.suite.choices:
            metrics["majority"] = max(Counter(self.gold).values()) / len(self.gold)
        common = {"example": [example_hash({"question": question}) for question in self.questions], "label": self.gold}
        return Evaluation(metrics, "accuracy", higher_is_better=True, predictions=common | columns)


class Generated(Answers):
    """The model writes; the paper's rule finds the answer. No answer is a wrong one, and counted as `invalid`."""

    form = "generate"

    def decoding(self) -> Decoding:
        """The paper's search, or the one that the configuration gives."""
        suite, config = self.suite, self.config
        return Decoding(config.new_tokens or suite.new_tokens, config.beams or suite.beams, suite.stop)

    def evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, options: EvalOptions) -> Evaluation:
        """`accuracy` and `invalid`, the share of completions without an answer.

        `predictions` beside the usual columns: `prompt_tokens` (as read: a prompt that leaves no room for a completion loses its
        left end), `completion`, `completion_tokens`, `extracted` (empty where invalid), `invalid`.
        """
        decoding, longest = self.decoding(), max_input(model, tokenizer)
        room = longest - decoding.new_tokens
        if room < 1:
            raise UserError(f"task.new_tokens={decoding.new_tokens} leaves no room for a prompt; the model takes {longest} tokens in all")
        prompts = [ids[-room:] for ids in encode_prompts(tokenizer, self.prompts())]
        return self.score(complete(model, tokenizer, prompts, decoding, options), [len(ids) for ids in prompts])

    def score(self, completions: list[Completion], prompt_tokens: list[int]) -> Evaluation:
        """Extract and judge, one completion per row."""
        found = [self.suite.extract(completion.text) for completion in completions]
        right = [answer is not None and self.suite.correct(answer, gold) for answer, gold in zip(found, self.gold, strict=True)]
        columns: dict[str, list] = {
            "score": [float(value) for value in right],
            "extracted": ["" if answer is None else str(answer) for answer in found],
            "invalid": [answer is None for answer in found],
            "completion": [completion.text for completion in completions],
            "completion_tokens": [len(completion.ids) for completion in completions],
            "prompt_tokens": prompt_tokens,
        }
        metrics = {"accuracy": sum(right) / len(right), "invalid": sum(columns["invalid"]) / len(found)}
        return self._result(metrics, columns)


class Likely(Answers):
    """The legal answer with the highest log-likelihood after the prompt and "the correct answer is" wins, the first one in a tie."""

    form = "loglikelihood-answer"

    def evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, options: EvalOptions) -> Evaluation:
        """`accuracy`. `predictions` beside the usual columns: `prediction`, and `loglikelihoods` (nats, one per legal answer)."""
        legal = self.legal()
        scores = iter(log_likelihoods(model, self.pairs(tokenizer), max_input(model, tokenizer), options))
        values = [[next(scores) for _ in answers] for answers in legal]
        chosen = [answers[int(np.argmax(v))] for answers, v in zip(legal, values, strict=True)]
        right = [float(a == b) for a, b in zip(chosen, self.gold, strict=True)]
        ones = [1] * len(right)
        metrics = compute(["accuracy"], ones, [int(r) for r in right], [v for row in values for v in row])
        return self._result(metrics, {"score": right, "prediction": chosen, "loglikelihoods": values})

    def pairs(self, tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
        """Context and answer as token ids, per row and legal answer, tokenised as a response is in training."""
        rows = [(prompt, answer) for prompt, answers in zip(self.prompts(), self.legal(), strict=True) for answer in answers]
        prompts, joint = [prompt for prompt, _ in rows], self.whole.template.joint
        stems = encode_responses(tokenizer, prompts, [STEM] * len(rows), joint)
        wholes = encode_responses(tokenizer, prompts, [f"{STEM} {answer}" for _, answer in rows], joint)
        return [(ids[: len(stem)], ids[len(stem) :]) for (ids, _), (stem, _) in zip(wholes, stems, strict=True)]


FORMS: dict[str, type[Answers]] = {part.form: part for part in (Generated, Likely)}
