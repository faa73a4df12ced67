"""Classification by words: the class whose label word a language model finds likeliest in the place of the answer."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from methods.spec import UserError, choice
from tasks.base import EvalOptions, Evaluation, Rows, Task
from tasks.classification import chosen_by, columns_of, read
from tasks.encoding import UNSCORED, encode_prompts, scored_after
from tasks.forward import batches, max_input, measuring
from tasks.hashing import content_hash, example_hash
from tasks.likelihood import log_likelihoods
from tasks.metrics import compute
from tasks.rows import SPLIT_SEED, first, part
from tasks.spec import VerbalConfig, dev_splits
from tasks.wordings import ANSWER, Wording, wording


class Verbal(Task):
    """No head is added: training predicts the label word over the whole vocabulary, evaluation compares the label words alone."""

    config: VerbalConfig

    def __init__(self, config: VerbalConfig, sources: Any) -> None:
        super().__init__(config, sources)
        self.columns = columns_of(config.dataset, config.metric)
        self.wording: Wording = wording(config.form, config.dataset)
        self._encoded: dict[str, tuple[PreTrainedTokenizerBase, list[dict[str, Any]]]] = {}

    def splits(self) -> dict[str, Rows]:
        """`evaluation`; `train` and `selection` as the protocol has them; of a few-shot task `unlabelled`, the rest of train."""
        return self._splits

    @cached_property
    def _splits(self) -> dict[str, Rows]:
        dev = self._read(dev_splits(self.config.dataset)[0])
        if self.config.shots == 0:
            return {"evaluation": first(dev, self.config.limit)}
        train = self._read("train")
        if self.config.shots is None:
            return chosen_by(self.config.selection, train, dev, self.config.limit)
        return self._few(train, dev)

    def _few(self, train: Rows, dev: Rows) -> dict[str, Rows]:
        shots, rule = self.config.shots, self.config.selection
        draws = few_shots(train, shots, self.config.draw, sets=2 if rule == "heldout" else 1)
        taken = {index for drawn in draws for index in drawn}
        rest = [index for index in range(len(train.data)) if index not in taken]
        name = f"{shots} per class, draw {self.config.draw}, seed {SPLIT_SEED}"
        parts = [part(train, drawn, f"{role}({name}) of train") for role, drawn in zip(("shots", "heldout"), draws, strict=False)]
        roles = chosen_by("last" if rule == "heldout" else rule, parts[0], dev, self.config.limit)
        return roles | ({"selection": parts[1]} if rule == "heldout" else {}) | {"unlabelled": _unlabelled(train, rest, name)}

    def _read(self, split: str) -> Rows:
        return read(self.sources, self.config.dataset, split, self.columns)

    def words(self, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Token ids of the answer of each class, the one token that stands at the mask of a cloze."""
        if self.config.form == "cloze":
            return [[_single(tokenizer, word)] for word in self.wording.words]
        end = [tokenizer.eos_token_id] if self.config.form == "text" else []
        return [tokenizer.encode(f" {word}", add_special_tokens=False) + end for word in self.wording.words]

    def encode(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """Token ids of prompt and answer (of a cloze: with the mask), and `labels` on the answer's tokens alone.

        The rows of `unlabelled` have no labels, and of a prompt no answer.
        """
        choice("split", split, self.splits())
        known = self._encoded.get(split)
        if known is None or known[0] is not tokenizer:
            self._encoded[split] = (tokenizer, self._encode(split, tokenizer))
        return self._encoded[split][1]

    def _encode(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        prompts, words = self._prompts(split, tokenizer), self.words(tokenizer)
        if split == "unlabelled":
            return [_example(ids, [UNSCORED] * len(ids)) for ids in prompts]
        answers = [words[index] for index in self._classes(split)]
        if self.config.form == "cloze":
            mask = tokenizer.mask_token_id
            return [_example(ids, [a[0] if token == mask else UNSCORED for token in ids]) for ids, a in zip(prompts, answers, strict=True)]
        return [scored_after(*pair, self.config.max_length) for pair in zip(prompts, answers, strict=True)]

    def _classes(self, split: str) -> list[int]:
        """Index of the label word of each row; the nearest one where labels are numbers."""
        labels = self.splits()[split].data["label"][:]
        values = self.wording.values
        return [min(range(len(values)), key=lambda i: abs(values[i] - label)) for label in labels] if values else labels

    def _prompts(self, split: str, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Token ids of each row up to the answer, or with the mask; long texts are cut so that the wording stays whole."""
        longest = max(len(ids) for ids in self.words(tokenizer))
        limit = min(self.config.max_length, tokenizer.model_max_length) - (0 if self.config.form == "cloze" else longest)
        data = self.splits()[split].data
        rows = zip(*(data[column][:] for column in self.columns.texts), strict=True)
        said = [dict(zip(self.columns.texts, texts, strict=True)) for texts in rows]
        encoded = self._tokens([self._say(row, tokenizer) for row in said], tokenizer)
        return [ids if len(ids) <= limit else self._cut(row, limit, tokenizer) for ids, row in zip(encoded, said, strict=True)]

    def _say(self, texts: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> str:
        template = self.wording.masked.replace(ANSWER, tokenizer.mask_token) if self.config.form == "cloze" else self.wording.causal
        for column in self.columns.texts:
            template = template.replace(f"{{{column}}}", f"\0{column}\0")
        for column, text in texts.items():
            template = template.replace(f"\0{column}\0", text.strip())
        return template

    def _tokens(self, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        return tokenizer(texts, verbose=False)["input_ids"] if self.config.form == "cloze" else encode_prompts(tokenizer, texts)

    def _cut(self, texts: dict[str, str], limit: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """The same with the longest text cut at its end, token by token of what is too much, until it fits."""
        while (excess := len(ids := self._tokens([self._say(texts, tokenizer)], tokenizer)[0]) - limit) > 0:
            offsets = {column: _offsets(text, tokenizer) for column, text in texts.items()}
            column = max(offsets, key=lambda name: len(offsets[name]))
            if len(offsets[column]) < 2:
                raise UserError(f"task.max_length={self.config.max_length} leaves no room for the text; give a larger one")
            kept = max(1, len(offsets[column]) - excess)
            texts = texts | {column: texts[column][: offsets[column][kept - 1][1]]}
        return ids

    def evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, split: str, options: EvalOptions) -> Evaluation:
        """The dataset's metrics over the rows of a split.

        `predictions` beside the usual columns: `logprobs` (nats, one per label word, not normalised over them).
        """
        score = self._at_masks if self.config.form == "cloze" else self._after_prompts
        values = score(model, tokenizer, self._prompts(split, tokenizer), options)
        best = values.argmax(-1).tolist()
        labels = self.splits()[split].data["label"][:]
        found = [self.wording.values[i] for i in best] if self.wording.values else best
        errors = [(a - b) ** 2 if self.columns.regression else float(a == b) for a, b in zip(found, labels, strict=True)]
        documents = self.splits()[split].data.select_columns(list(self.columns.texts))
        columns = {
            "example": [example_hash(row) for row in documents], "label": labels, "prediction": found, "score": errors,
            "logprobs": values.tolist(),
        }  # fmt: skip
        metrics = compute(self.columns.metrics, labels, found, values.flatten().numpy())
        return Evaluation(metrics, self.config.metric, higher_is_better=True, predictions=columns)

    def _at_masks(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], options: EvalOptions) -> Tensor:
        """Log-probability of each label word (rows, words) at the mask, float32 on the CPU."""
        words = [ids[0] for ids in self.words(tokenizer)]
        result = torch.empty(len(prompts), len(words))
        with measuring(model, options):
            for indices in batches([len(ids) for ids in prompts], options.batch):
                examples = [{"input_ids": prompts[i], "attention_mask": [1] * len(prompts[i])} for i in indices]
                batch = tokenizer.pad(examples, padding_side="right", return_tensors="pt").to(options.device)
                logits = model(**batch).logits[batch["input_ids"] == tokenizer.mask_token_id]
                result[indices] = logits.float().log_softmax(-1)[:, words].cpu()
        return result

    def _after_prompts(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], options: EvalOptions
    ) -> Tensor:
        """Log-likelihood of each answer (rows, words), summed over its tokens."""
        words = self.words(tokenizer)
        pairs = [(ids, answer) for ids in prompts for answer in words]
        values = log_likelihoods(model, pairs, max_input(model, tokenizer), options)
        return torch.tensor(values).view(len(prompts), len(words))


def few_shots(train: Rows, shots: int, draw: int, sets: int) -> list[list[int]]:
    """`sets` disjoint sets of `shots` indices per class, each in the order of the rows; the draw is the same on every platform."""
    labels = train.data["label"][:]
    order = sorted(range(len(labels)), key=lambda i: hashlib.sha256(f"{SPLIT_SEED}/shots {draw}/{i}".encode()).digest())
    classes = sorted(set(labels))
    members = {label: [i for i in order if labels[i] == label] for label in classes}
    short = next((label for label in classes if len(members[label]) < shots * sets), None)
    if short is not None:
        raise UserError(
            f"task.shots={shots} needs {shots * sets} rows of class {short} in {train.dataset}, which has {len(members[short])}"
        )
    return [sorted(i for label in classes for i in members[label][n * shots : (n + 1) * shots]) for n in range(sets)]


def _unlabelled(train: Rows, rest: list[int], name: str) -> Rows:
    rows = part(train, rest, f"train minus ({name})")
    data = rows.data.remove_columns("label")
    return replace(rows, data=data, sha256=content_hash(data.with_format("arrow")[:]))


def _example(ids: list[int], labels: list[int]) -> dict[str, Any]:
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def _single(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    """The one token of a label word, as it reads after a space if that is one token."""
    for text in (f" {word}", word):
        ids: Sequence[int] = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1:
            return ids[0]
    raise UserError(f"the label word {word!r} is no single token of this model, which a cloze needs; use a classification task")


def _offsets(text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
