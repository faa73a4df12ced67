"""Rows in memory or from a local folder, tiny models and a byte tokenizer: nothing is read from outside but local rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tasks.base import Rows
from tasks.hashing import content_hash
from tasks.sources import Sources


class Memory:
    """A stand-in for the sources: datasets by (key, split)."""

    def __init__(self, **splits: Dataset) -> None:
        self.splits = splits

    def rows(self, dataset: str, split: str) -> Rows:
        data = self.splits[split]
        return Rows(data, "memory", dataset, split, "local", content_hash(data.with_format("arrow")[:]))


@pytest.fixture
def memory() -> type[Memory]:
    return Memory


@pytest.fixture(scope="session")
def folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Real rows of the local data folder alone."""
    return Sources(shared_data, tmp_path_factory.mktemp("assets"), offline=True)


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and a beginning token as llama tokenizers add it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A </s> $B", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@pytest.fixture
def tiny(byte_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Any]:
    """A random model of two layers: `tiny("bert", "SequenceClassification", num_labels=2)`."""

    def build(kind: str, head: str, positions: int = 512, **options: Any) -> Any:
        import transformers

        config = transformers.AutoConfig.for_model(
            kind, vocab_size=len(byte_tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=positions, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3, **options,
        )  # fmt: skip
        torch.manual_seed(0)
        return getattr(transformers, f"AutoModelFor{head}").from_config(config)

    return build
