"""What the server of worker processes imports once, before any cell is forked. Imports only: no tensor work before a fork."""

import datasets
import peft
import torch
import transformers
import transformers.trainer

import harness.cell
import harness.cli

__all__ = ["datasets", "harness", "peft", "torch", "transformers"]
