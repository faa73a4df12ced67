"""The text of prompts, character by character, and what is tokenised together."""

from tasks.encoding import encode_prompts, encode_responses
from tasks.prompts import TEMPLATES

ALONE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
I16 = " " * 16


def test_the_clean_prompt_is_the_same_in_training_and_evaluation():
    template = TEMPLATES["clean"]
    text = f"{ALONE}\n\n### Instruction:\nName it.\n\n### Response:\n"
    assert template.training("Name it.", "") == template.evaluation("Name it.", "") == text
    text = f"{PAIRED}\n\n### Instruction:\nSum.\n\n### Input:\n1 2\n\n### Response:\n"
    assert template.training("Sum.", "1 2") == template.evaluation("Sum.", "1 2") == text


def test_the_exact_prompt_of_training():
    template = TEMPLATES["llm_adapters_exact"]
    body = f"{I16}### Instruction:\n{I16}Go.\n{I16}\n{I16}### Response:\n{I16}"
    assert template.training("Go.", "") == f"{ALONE}  \n\n{body}"
    body = f"{I16}### Instruction:\n{I16}Go.\n{I16}\n{I16}### Input:\n{I16}x\n{I16}\n{I16}### Response:\n{I16}"
    assert template.training("Go.", "x") == f"{PAIRED} \n\n{body}"


def test_the_exact_prompt_of_evaluation_has_other_white_space():
    template = TEMPLATES["llm_adapters_exact"]
    assert template.evaluation("Go.", "") == f"{ALONE} \n\n{I16}### Instruction:\n{I16}Go.\n\n{I16}### Response:\n{I16}"
    body = f"{I16}### Instruction:\n{I16}Go.\n\n{I16}### Input:\n{I16}x\n\n{I16}### Response:\n{I16}"
    assert template.evaluation("Go.", "x") == f"{PAIRED}\n\n{body}"


def test_metamath_asks_for_steps_in_evaluation_alone():
    template = TEMPLATES["metamath"]
    text = f"{ALONE}\n\n### Instruction:\nAdd.\n\n### Response:"
    assert template.training("Add.", "") == text
    assert template.evaluation("Add.", "") == f"{text} Let's think step by step."


class Merging:
    """A tokenizer of words that takes two spaces for one token and ends every text with 9."""

    eos_token_id = 9

    def __call__(self, texts, add_special_tokens=True, verbose=True):
        ids = [[{" ": 1, "  ": 2}.get(piece, 3) for piece in self.pieces(text)] for text in texts]
        return {"input_ids": [[0, *row, 9] if add_special_tokens else row for row in ids]}

    @staticmethod
    def pieces(text):
        import re

        return re.findall(r"  | |[^ ]+", text)


def test_prompt_and_response_are_tokenised_apart_or_together():
    apart = encode_responses(Merging(), ["a "], [" b"], joint=False)
    assert apart == [([0, 3, 1, 1, 3], 3)]
    assert encode_responses(Merging(), ["a "], [" b"], joint=True) == [([0, 3, 2, 3], 3)]
    assert encode_prompts(Merging(), ["a "]) == [[0, 3, 1]]
