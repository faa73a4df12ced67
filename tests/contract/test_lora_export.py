"""What a method with the trait `exports_lora` owes: an adapter that stock PEFT turns back into the exported model, a low-rank change."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness import cell as spine
from harness import export, peft_export
from methods.roles import head_names, weight_is_transposed
from tests.contract.trial import Trial

SCALE = 1e-5
ROUNDING = 2e-7
"""Of a float32 weight to which a change was added, relative to the largest weight."""
ADAPTED = """
import sys, torch, transformers
from pathlib import Path
from peft import PeftModel
from safetensors.torch import load_file
transformers.logging.set_verbosity_error()
for line in sys.stdin:
    name, base, folder = line.split()
    folder = Path(folder)
    stock = getattr(transformers, name).from_pretrained(base, dtype="auto")
    model = PeftModel.from_pretrained(stock, folder / "adapter").eval()
    probe = load_file(folder / "model.probe.safetensors")
    with torch.inference_mode():
        logits = model(input_ids=probe["input_ids"], attention_mask=torch.ones_like(probe["input_ids"])).logits
    difference = (logits.float() - probe["logits"]).abs().max() / probe["logits"].abs().max()
    print("difference", difference.item(), any(name.split(".")[0] in ("harness", "methods") for name in sys.modules), flush=True)
"""


@pytest.fixture(scope="session")
def adapted() -> Iterator[Callable[[nn.Module, Path, Path], float]]:
    """Relative difference of the probe's logits under stock PEFT, in one process that never imports parebench."""
    process = subprocess.Popen([sys.executable, "-c", ADAPTED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def difference(stock: nn.Module, base: Path, folder: Path) -> float:
        process.stdin.write(f"{type(stock).__name__} {base} {folder}\n")
        process.stdin.flush()
        lines = iter(process.stdout.readline, "")
        words = next(line for line in lines if line.startswith("difference")).split()
        assert words[2] == "False"
        return float(words[1])

    yield difference
    process.stdin.close()
    process.wait()


def loaded(trial: Trial) -> nn.Module:
    """The model as the cell loads it, with its untrained head."""
    return spine.set_up(trial.container("loaded")).model


def test_stock_peft_makes_the_exported_model_of_base_and_adapter(trial: Trial, adapted: Callable[..., float]) -> None:
    folder = trial.straight
    assert (folder / peft_export.FOLDER).exists() == trial.traits.exports_lora
    if not trial.traits.exports_lora:
        return
    stock, base = loaded(trial), trial.root / "base"
    stock.save_pretrained(base)
    assert adapted(stock, base, folder) <= SCALE


def test_the_backbone_changes_by_the_exported_factors_alone(trial: Trial) -> None:
    if not trial.traits.exports_lora:
        return
    before, after = loaded(trial), export.reload(trial.straight / "model")
    factors = factors_of(trial.straight)
    heads, changed = head_names(before), 0.0
    for name, weight in before.named_parameters():
        delta = (after.get_parameter(name) - weight).detach()
        module, _, kind = name.rpartition(".")
        if kind == "weight" and module in factors:
            up, down = factors.pop(module)
            delta = delta.T if weight_is_transposed(before.get_submodule(module)) else delta
            limit = ROUNDING * max(weight.abs().max().item(), (up @ down).abs().max().item())
            assert (delta - up @ down).abs().max() <= limit
            assert (torch.linalg.svdvals(delta)[len(down) :] <= limit * max(delta.shape)).all()
            changed = max(changed, delta.abs().max().item())
        elif name not in heads:
            assert delta.abs().max() == 0, name
    assert not factors and changed > 0


def factors_of(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """(B, A) by stock module name from an exported adapter."""
    tensors = load_file(folder / peft_export.FOLDER / peft_export.WEIGHTS)
    down = {key.removesuffix(".lora_A.weight"): tensor for key, tensor in tensors.items() if key.endswith(".lora_A.weight")}
    return {key.removeprefix(peft_export.PREFIX): (tensors[f"{key}.lora_B.weight"], tensor) for key, tensor in down.items()}
