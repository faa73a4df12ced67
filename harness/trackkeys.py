"""The names under which a cell's numbers stand in Weights & Biases: the mirror writes them, the dashboard reads them. Torch-free."""

STATUS, ATTEMPTS, LOG, RESULTS = "status", "attempts", "log", "results"
"""Summary: how the cell ended, its attempts, the last lines of a failed one, and the table of its results."""
COLUMNS = ("protocol", "variant", "metric", "value", "n")
"""Of the table `RESULTS`."""
CELL, METHOD, FAMILY, MODEL, TASK, BUDGET, SEED, PRECISION = (
    "cell", "method", "family", "model", "task", "budget", "seed", "precision",
)  # fmt: skip
"""Configuration; what is below a block stands under `<block>/<key>`."""
MAIN = "main"
"""The training phase of a method that has one only, and the variant of a method that yields one model."""


def curve(phase: str, name: str) -> str:
    """A value of the learning curve; phases are told apart, since each counts its steps from 0."""
    return f"train/{phase}/{name}"


def step(phase: str) -> str:
    """The optimizer step of a phase: the horizontal axis of its curves."""
    return curve(phase, "step")


def result(protocol: str, variant: str, metric: str) -> str:
    """A metric of a protocol; the variant is named where it is not `main`."""
    return f"{protocol}/{metric}" if variant == MAIN else f"{protocol}/{variant}/{metric}"


def cost(path: str) -> str:
    """A leaf of the record's cost block, `parameters/trainable_method` for instance."""
    return f"cost/{path}"


def measure(path: str) -> str:
    """What only the method knows: sparsity reached, a rank profile."""
    return f"measure/{path}"


def selection(name: str) -> str:
    """Which checkpoint was selected, and its metric on the selection rows."""
    return f"selection/{name}"
