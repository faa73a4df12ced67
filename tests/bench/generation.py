"""How much faster batched decoding is than one `generate` call per prompt: the same prompts, model and search, in one run.

    python tests/bench/generation.py [--prompts 24] [--new-tokens 32]

Both ways take turns on parts of the prompts, so that whatever else the machine does falls on both. Needs the SmolLM2 assets and the local
data folder (see tests/README.md).
"""

import argparse
import os
import time
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from harness.assets import model_folder
from tasks.base import EvalOptions
from tasks.encoding import encode_prompts
from tasks.generation import Decoding, complete
from tasks.prompts import TEMPLATES
from tasks.sources import Sources

ROOT = Path(__file__).resolve().parents[2]
PART = 8
"""Prompts per turn."""


def prompts(tokenizer, count):
    """The first instructions of ARC-Easy's test set as token ids."""
    folder = Path(os.environ.get("PAREBENCH_TEST_DATA", ROOT.parent / "shared" / "data"))
    rows = Sources(folder, ROOT / "assets", offline=True).rows("llm_adapters/arc_easy", "test").data
    return encode_prompts(tokenizer, [TEMPLATES["clean"].evaluation(text, "") for text in rows["instruction"][:count]])


def one_by_one(model, tokenizer, part, decoding):
    """Plain `generate`, one prompt at a time; the new tokens without the end token."""
    end = tokenizer.eos_token_id
    settings = GenerationConfig(
        do_sample=False, num_beams=decoding.beams, max_new_tokens=decoding.new_tokens, eos_token_id=end, pad_token_id=end
    )
    with torch.inference_mode():
        outs = [model.generate(input_ids=torch.tensor([ids]), generation_config=settings)[0, len(ids) :].tolist() for ids in part]
    return [ids[: ids.index(end)] if end in ids else ids for ids in outs]


def main() -> None:
    """Print seconds per prompt, the ratio, and how many completions are equal token by token."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--new-tokens", type=int, default=32)
    asked = parser.parse_args()
    count = asked.prompts
    place = model_folder("smollm2_135m", Path(os.environ.get("PAREBENCH_ASSETS", ROOT / "assets")))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(place)
    given, console = prompts(tokenizer, count), Console()
    for beams in (1, 4):
        decoding, seconds, equal = Decoding(asked.new_tokens, beams), [0.0, 0.0], 0
        for start in range(0, count, PART):
            part, marks = given[start : start + PART], [time.perf_counter()]
            alone = one_by_one(model, tokenizer, part, decoding)
            marks.append(time.perf_counter())
            batched = complete(model, tokenizer, part, decoding, EvalOptions(batch=PART))
            marks.append(time.perf_counter())
            seconds = [seconds[i] + marks[i + 1] - marks[i] for i in range(2)]
            equal += sum(a == b.ids for a, b in zip(alone, batched, strict=True))
        each = [total / count for total in seconds]
        console.print(
            f"{beams} beams: one by one {each[0]:.2f} s, batched {each[1]:.2f} s per prompt, ratio {each[0] / each[1]:.2f}; "
            f"{equal} of {count} completions equal"
        )


if __name__ == "__main__":
    main()
