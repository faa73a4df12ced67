"""A tokenizer made from nothing: one token per byte. With a `config` source it gives models that need no download."""

from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from methods.roles import roles_of

SPECIALS = {
    "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]",
    "mask_token": "[MASK]", "bos_token": "[BOS]", "eos_token": "[EOS]",
}  # fmt: skip
"""Their ids are 0 to 5; the 256 bytes follow."""


def byte_tokenizer(*, decoder: bool = False, type_ids: bool = True, max_length: int = 128) -> PreTrainedTokenizerFast:
    """A fast tokenizer over bytes: 6 specials and 256 bytes, right padding.

    An encoder's pair is [CLS] a [SEP] b [SEP], with token types 0 and 1 where `type_ids`; a decoder's is a, then b, with
    nothing added. Decoding gives the text back.
    """
    specials = list(SPECIALS.values())
    tokens = specials + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.add_special_tokens(specials)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if not decoder:
        tokenizer.post_processor = _pair_template(second_type=1 if type_ids else 0)
    names = ["input_ids", "token_type_ids", "attention_mask"] if type_ids and not decoder else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_length, padding_side="right", model_input_names=names, **SPECIALS
    )


def tokenizer_for(architecture: dict[str, Any], max_length: int) -> PreTrainedTokenizerFast:
    """The byte tokenizer that fits a model's architecture; token types only where it has two of them."""
    decoder = roles_of(architecture["model_type"]).decoder
    return byte_tokenizer(decoder=decoder, type_ids=architecture.get("type_vocab_size", 0) > 1, max_length=max_length)


def _pair_template(second_type: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B:{second_type} [SEP]:{second_type}",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
