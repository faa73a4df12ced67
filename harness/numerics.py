"""What may move the last digits of a number: versions, device, threads, precision."""

import platform
from importlib.metadata import version
from typing import Any

import torch

from harness.record import NUMERICS
from methods.spec import UserError

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "numpy", "lm_eval", "parebench")


def numerics(device: str, precision: str, compute: str = "single", processes: int = 1) -> dict[str, Any]:
    """The record's `numerics` block; `threads` are those of one process."""
    several = {"compute": compute, "processes": processes} if processes > 1 else {}
    return several | {
        "harness": NUMERICS, "python": platform.python_version(), "packages": {name: version(name) for name in PACKAGES},
        "device": device_name(device), "threads": torch.get_num_threads(), "precision": precision,
        "cpu": torch.backends.cpu.get_cpu_capability(), "machine": platform.machine(),
    }  # fmt: skip


def resolve_device(device: str) -> str:
    """`auto` becomes the first accelerator or the CPU; `UserError` for an accelerator that is not there."""
    there = torch.cuda.device_count()
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= there:
        raise UserError(f"run.device={device} is not on this machine, which has {there} CUDA devices; give run.device=auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def device_name(device: str) -> str:
    """The kind of device without a machine's own names."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
