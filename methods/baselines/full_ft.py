"""Full fine-tuning (Devlin et al. 2019, arXiv 1810.04805): theta <- theta - eta AdamW(grad L(theta)) for every parameter."""

from dataclasses import dataclass

from methods.base import Method
from methods.spec import Traits


class FullFt(Method):
    """Every parameter trains; the interface's defaults."""

    @dataclass
    class Config:
        """No hyperparameters beside the recipe."""

    traits = Traits(distributed=("ddp", "fsdp"))
