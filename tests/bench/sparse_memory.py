"""What sparse techniques hold in memory against LoRA and full fine-tuning, on MiniLM's and SmolLM2's architecture, by the exact ledger.

    python -m pytest -m bench tests/bench/sparse_memory.py -s

All seven maps (those that the family has), r = 8, random weights, few words, no dropout: bytes that one training step
holds, each storage once. `dense` is a gradient of a whole matrix, which LIFT and SpIEL form for one map at a time; the ledger's peak
(everything that the step made and that lived at once) holds it. SmolLM2 has 3 of its 30 layers, since its others add in proportion.
"""

import pytest
from rich.console import Console
from rich.table import Table

from tests.methods.sparse_memory import architecture, configured, ledger_of, minilm, one_batch

COLUMNS = ("activations", "gradients", "optimizer", "trained", "step_peak")
ROWS = {
    "full_ft": ("full_ft", {}),
    "lora": ("lora", {"r": 8}),
    "paca": ("paca", {"r": 8}),
    "paca, as many as lora": ("paca", {"r": 16}),
    "s2ft, down": ("s2ft", {"down": 0.03}),
    "s2ft, o and down": ("s2ft", {"o": 0.12, "down": 0.02}),
    "s2ft, v and up": ("s2ft", {"v": 0.12, "up": 0.02, "down": 0.0}),
    "lift": ("lift", {"r": 8}),
    "spiel ag": ("spiel", {"r": 8, "growth": "ag"}),
    "spiel ma": ("spiel", {"r": 8, "growth": "ma"}),
}
"""Row of the table -> (technique, its changes)."""
MODELS = {
    "minilm": minilm,
    "smollm2_135m": lambda: architecture("smollm2_135m", vocab_size=1000, num_hidden_layers=3, pad_token_id=0),
}


def measured(model: str) -> dict[str, dict[str, int]]:
    """Row -> bytes by column."""
    return {row: ledger_of(configured(slug, **changes), MODELS[model](), one_batch()) for row, (slug, changes) in ROWS.items()}


def show(model: str, rows: dict[str, dict[str, int]]) -> None:
    """MiB, and the ratio to LoRA and to full fine-tuning of all three together."""
    table = Table(title=f"{model}: what a step of 4 x 64 tokens in float32 holds, MiB")
    for column in ("technique", *COLUMNS, "/ lora", "/ full_ft"):
        table.add_column(column, justify="left" if column == "technique" else "right")
    for name, held in rows.items():
        ratios = [f"{held['trained'] / rows[other]['trained']:.2f}" for other in ("lora", "full_ft")]
        table.add_row(name, *(f"{held[column] / 2**20:.2f}" for column in COLUMNS), *ratios)
    Console(width=120).print(table)


@pytest.mark.bench
@pytest.mark.parametrize("model", MODELS)
def test_every_sparse_technique_holds_less_than_full_fine_tuning(model: str) -> None:
    rows = measured(model)
    show(model, rows)
    assert [name for name in ROWS if name != "full_ft" and rows[name]["trained"] >= rows["full_ft"]["trained"]] == []
    assert [
        name for name in ("paca", "paca, as many as lora", "s2ft, down") if rows[name]["activations"] >= rows["lora"]["activations"]
    ] == []
    assert rows["lift"]["optimizer"] <= rows["lora"]["optimizer"] and rows["spiel ma"]["optimizer"] < rows["lora"]["optimizer"]
