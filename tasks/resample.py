"""Resampling with imperfect verifiers: many samples per question, judged by verifiers and by the gold answer (arXiv 2411.17501)."""

from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from methods.spec import UserError, choice
from tasks import extraction, redundancy, resampling, solution, verifiers
from tasks.base import EvalOptions, Evaluation, Rows, Task
from tasks.encoding import encode_prompts
from tasks.forward import max_input
from tasks.generation import Decoding
from tasks.hashing import example_hash
from tasks.hidden import mean_states
from tasks.prompts import TEMPLATES
from tasks.resampling import COSTS
from tasks.rows import first
from tasks.sampling import Drawn, sample
from tasks.spec import ResampleConfig
from tasks.verifiers import Sample


class Resample(Task):
    """Measured only. The primary metric is the accuracy with at most K attempts under the first verifier."""

    config: ResampleConfig

    def __init__(self, config: ResampleConfig, sources: Any) -> None:
        super().__init__(config, sources)
        self.verifiers = {name: verifiers.parse(name) for name in config.verifiers}
        self.votes = max(votes for _, votes in self.verifiers.values())

    def splits(self) -> dict[str, Rows]:
        """`evaluation`: the first `limit` rows of the split; `shots` where questions are preceded by solved ones."""
        return self._splits

    @cached_property
    def _splits(self) -> dict[str, Rows]:
        config = self.config
        shots = {"shots": first(self.sources.rows(config.dataset, "train"), config.shots)} if config.shots else {}
        return {"evaluation": first(self.sources.rows(config.dataset, config.split), config.limit)} | shots

    def encode(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """Raises `UserError`: nothing is trained on."""
        raise UserError(f"task={self.config.name} has no training form; use it under protocols=[...] or with method=none")

    def evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, options: EvalOptions) -> Evaluation:
        """`accuracy` within K attempts under the first verifier, `pass@k` (under the gold answer), `single` (accuracy of one sample),
        `invalid`; for each verifier `accuracy/<v>` and `wrong/<v>` (shares of the questions: U(K) is the one less cost times the other),
        `false_positives/<v>`, `accepted/<v>`, `best_attempts/<v>/cost<c>` (K*); and where asked `redundancy/...`. What is
        undefined is left out.

        `predictions` has a row per question; its lists have an entry per candidate (`answers`, `correct`, `completions`,
        `completion_tokens`, `logprobs`, `accepted/<v>`), `votes` one per further sample.
        """
        choice("split", split, ("evaluation",))
        questions, drawn = self._questions(), self._draw(model, tokenizer, options)
        judged = [self._judge(own, seeds, gold) for own, seeds, gold in zip(drawn, self._seeds(), self._gold(), strict=True)]
        n = self.config.samples
        candidates, votes = [own[:n] for own in judged], [own[n:] for own in judged]
        correct = np.array([[s.correct for s in own] for own in candidates])
        accepted = {name: _bits(*verifier, candidates, votes) for name, verifier in self.verifiers.items()}
        reported = resampling.outcomes(correct, accepted[self.config.verifiers[0]], self.config.attempts)
        columns: dict[str, list] = {
            "example": [example_hash({"question": question}) for question in questions],
            "score": reported.correct[:, -1].tolist(), "label": self._gold(),
            "answers": [[s.answer for s in own] for own in candidates], "correct": correct.tolist(),
            "completions": [[s.text for s in own] for own in candidates],
            "completion_tokens": [[len(d.ids) for d in own[:n]] for own in drawn],
            "logprobs": [[s.logprob for s in own] for own in candidates],
            "votes": [[s.answer for s in own] for own in votes],
        }  # fmt: skip
        columns |= {f"accepted/{name}": bits.tolist() for name, bits in accepted.items()}
        metrics = {"accuracy": float(reported.accuracy()[-1])} | self._metrics(correct, accepted, candidates)
        if self.config.redundancy:
            more, lists = self._redundancy(model, tokenizer, candidates, options)
            metrics, columns = metrics | more, columns | lists
        return Evaluation({k: v for k, v in metrics.items() if np.isfinite(v)}, "accuracy", higher_is_better=True, predictions=columns)

    def _questions(self) -> list[str]:
        return self.splits()["evaluation"].data["question"][:]

    def _gold(self) -> list[str]:
        return [solution.extract(text) or "" for text in self.splits()["evaluation"].data["answer"][:]]

    def prompts(self) -> list[str]:
        """The text before each sample: the solved questions, then the question."""
        before = ""
        if self.config.shots:
            rows = self.splits()["shots"].data
            solved = zip(rows["question"][:], rows["answer"][:], strict=True)
            before = "".join(f"{self._prompt(question)}{answer}\n\n" for question, answer in solved)
        return [before + self._prompt(question) for question in self._questions()]

    def _prompt(self, question: str) -> str:
        return f"{question}\n" if self.config.prompt == "line" else TEMPLATES[self.config.prompt].evaluation(question, "")

    def _draw(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, options: EvalOptions) -> list[list[Drawn]]:
        """Candidates, then votes, per question."""
        config, each = self.config, self.config.samples + self.votes
        room = max_input(model, tokenizer) - config.new_tokens
        if room < 1:
            raise UserError(f"task.new_tokens={config.new_tokens} leaves no room for a prompt; the model takes {room + config.new_tokens}")
        prompts = [ids[-room:] for ids in encode_prompts(tokenizer, self.prompts())]
        repeated = [ids for ids in prompts for _ in range(each)]
        seeds = [seed for own in self._seeds() for seed in own]
        decoding = Decoding(config.new_tokens, stop=("\n\n",) if config.shots else ())
        drawn = sample(model, tokenizer, repeated, seeds, decoding, config.temperature, options)
        return [drawn[start : start + each] for start in range(0, len(drawn), each)]

    def _seeds(self) -> list[list[int]]:
        """Of all samples, per question."""
        base, each = self.config.sampling_seed, self.config.samples + self.votes
        return [[seed_of(base, question, i) for i in range(each)] for question in self._questions()]

    def _judge(self, drawn: Sequence[Drawn], seeds: Sequence[int], gold: str) -> list[Sample]:
        answers = [self._answer(one.text) for one in drawn]
        return [
            Sample(one.text, answer, answer is not None and same(answer, gold), one.logprob, seed)
            for one, answer, seed in zip(drawn, answers, seeds, strict=True)
        ]

    def _answer(self, text: str) -> str | None:
        if self.config.answer == "last":
            found = extraction.last_number(text)
            return None if found is None else f"{found:g}"
        marked = solution.extract(text)
        if marked is None and (value := extraction.metamath_integer(text)) is not None:
            return str(value)
        return marked

    def _metrics(self, correct: np.ndarray, accepted: dict[str, np.ndarray], candidates: list[list[Sample]]) -> dict[str, float]:
        k = self.config.attempts
        found = {
            "pass@k": float(resampling.pass_at_k(correct.shape[1], correct.sum(axis=1), k).mean()),
            "single": float(correct.mean()),
            "invalid": float(np.mean([[s.answer is None for s in own] for own in candidates])),
        }
        for name, bits in accepted.items():
            made = resampling.outcomes(correct, bits, k)
            found |= {f"accuracy/{name}": float(made.accuracy()[-1]), f"false_positives/{name}": made.false_positives()}
            found |= {f"accepted/{name}": float(bits.mean())}
            found |= {f"wrong/{name}": float(made.wrong[:, -1].mean())}
            found |= {f"best_attempts/{name}/cost{cost}": float(made.best_attempts(cost)) for cost in COSTS if cost}
        return found

    def _redundancy(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, candidates: list[list[Sample]], options: EvalOptions
    ) -> tuple[dict[str, float], dict[str, list]]:
        """Means over the correct solutions that conclude their answer, and `erd`, `ird` and `fcs_tokens` per candidate."""

        def encode(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        rows = zip(candidates, self._gold(), self._questions(), strict=True)
        found = [[redundancy.measured(s.text, gold, s.correct, question, encode) for s in own] for own, gold, question in rows]
        texts = [text for own in found for one in own for text in one.windows]
        states = iter(mean_states(model, tokenizer, texts, options))
        embedded = redundancy.Windows([[np.array([next(states) for _ in one.windows]) for one in own] for own in found])
        correct, longest = sum(s.correct for own in candidates for s in own), self.config.new_tokens
        metrics = redundancy.summary(found, embedded, correct, sorted({longest // 4, longest // 2}))
        columns: dict[str, list] = {"erd": [[one.erd for one in own] for own in found], "ird": embedded.internal()}
        columns["fcs_tokens"] = [[one.fcs_tokens for one in own] for own in found]
        return {f"redundancy/{name}": value for name, value in metrics.items()}, columns


def seed_of(base: int, question: str, index: int) -> int:
    """Seed of one sample: the same wherever the question stands among the rows, and however many samples are drawn."""
    digest = sha256(f"{base}/{index}/{question}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def same(found: str, gold: str) -> bool:
    """Whether two numbers are equal: without commas, dollars and a trailing `.0`."""
    try:
        return float(found.replace(",", "").replace("$", "")) == float(gold.replace(",", "").replace("$", ""))
    except ValueError:
        return False


def _bits(verify: verifiers.Verifier, needed: int, candidates: list[list[Sample]], votes: list[list[Sample]]) -> np.ndarray:
    return np.array([verify(own, more[:needed]) for own, more in zip(candidates, votes, strict=True)], dtype=bool)
