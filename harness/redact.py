"""Takes secrets out of text that leaves the machine, such as the last lines of a log. Torch-free."""

import os
import re

HIDDEN = "***"
SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE_?KEY|ACCESS_?KEY")
SHORTEST = 6
"""Characters; a shorter value of such a variable is no secret (`TOKENIZERS_PARALLELISM=true`)."""
PATTERNS = (
    (re.compile(r"(?<=://)[^\s/@]+(?=@)"), HIDDEN),
    (re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic)?\s*|bearer\s+)[\w.~+/=-]{8,}"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)((?:api[_-]?key|token|secret|password)['\"]?\s*[:=]\s*['\"]?)[^\s'\",;]{6,}"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_|wandb_v\d_)[A-Za-z0-9_-]{16,}"), HIDDEN),
    (re.compile(r"\b[0-9a-f]{40}\b"), HIDDEN),
)
"""User information in an address, authorization headers, assignments, keys that are known by their beginning, W&B keys."""


def redact(text: str) -> str:
    """`text` without the values of secret environment variables and without what looks like a credential."""
    for name, value in os.environ.items():
        if SECRET_NAMES.search(name.upper()) and len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    for pattern, shown in PATTERNS:
        text = pattern.sub(shown, text)
    return text
