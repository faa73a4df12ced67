"""How durations, sizes, rows and results are written for a person. Torch-free."""

from collections.abc import Sequence

from harness.record import Record

UNITS = ("B", "KB", "MB", "GB", "TB")


def duration(seconds: float | None) -> str:
    """`0:07`, `12:30`, `3:04:05`, `2 d 03:04`; empty for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: float) -> str:
    """Bytes in powers of 1000: `0 B`, `1.5 KB`, `20 MB`."""
    power = 0
    while count >= 999.5 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.1f} {UNITS[power]}" if power and count < 9.95 else f"{count:.0f} {UNITS[power]}"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines with aligned columns; a column that is empty below its title (the first row) is left out."""
    kept = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in kept]
    padded = [[value.ljust(width) for value in column] for column, width in zip(kept, widths, strict=True)]
    return "".join("  ".join(line).rstrip() + "\n" for line in zip(*padded, strict=True))


def changed(overrides: Sequence[str]) -> str:
    """The single values that a cell's overrides set, without those of the run half: `method.r=4 recipe.lr=0.001`."""
    return " ".join(o for o in overrides if "." in o.partition("=")[0] and not o.startswith(("run.", "compute.", "+")))


def headline(record: Record) -> str:
    """The primary number of each result: `glue/sst2@heldout 0.843`."""
    return ", ".join(f"{r.protocol}{_variant(r.variant)} {r.metrics[r.primary]:.4g}" for r in record.results)


def _variant(name: str) -> str:
    return "" if name == "main" else f" ({name})"
