"""The roles table on fused maps: how the output rows of a family's `qkv` map hold its three projections q, k and v.

A file of its own beside `methods/roles.py`, since only techniques that treat q, k and v as three matrices depend on it.
"""

from torch import nn

from methods.maths.rows import Rows
from methods.roles import fused, role_names, unwrap
from methods.spec import UserError

PARTS = 3
BY_HEAD = {"gpt2": False, "gpt_neox": True}
"""`model_type` of a fused family -> do the rows hold q, k and v of one head after the other (or all of q, then all of k and of v)?"""


def fused_rows(model: nn.Module) -> dict[str, Rows]:
    """The fused maps of a model by full name; empty for a family that keeps q, k and v apart.

    Raises `UserError` for a fused family whose layout is not in the table.
    """
    if not fused(model):
        return {}
    config = unwrap(model).config
    if config.model_type not in BY_HEAD:
        known = ", ".join(BY_HEAD)
        raise UserError(f"how {config.model_type} fuses q, k and v is not known; known: {known} (add it to methods/fused.py)")
    rows = Rows(PARTS, config.num_attention_heads if BY_HEAD[config.model_type] else 1)
    return dict.fromkeys(role_names(model, ["qkv"]), rows)
