"""The command line that makes a cell again, out of the configuration that its record keeps. Torch-free."""

import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from harness.compose import compose
from harness.identity import canonical_half, digest
from harness.registry import CHAIN, load_spec
from harness.resolve import resolve
from methods.spec import Place, UserError

GROUPS = ("method", "model", "task", "budget")
BLOCKS = (*GROUPS, "recipe", "calibration", "corpus")
"""Parts of an identity whose keys can be typed."""
ADDED = ("shares", "recipe")
"""Blocks of a chain that its YAML leaves empty: their keys are added, not replaced."""
PLACE = "<folder>"
"""Stands for a folder that no record names, and that a person has to give."""
QUOTED = re.compile(r"(\\*)('|$)")
"""Where Hydra's quoted text needs escapes: a quote, and backslashes before one or at the end; other backslashes stand for themselves."""


@dataclass(frozen=True)
class CommandLine:
    """Overrides of `parebench`, and which cell they make."""

    overrides: tuple[str, ...]
    cell: str
    """The id that they have now, on the data and weights of the record."""
    differs: tuple[str, ...]
    """Keys that today's configuration gives other values than the record has, and that nobody can type."""

    def text(self, *more: str) -> str:
        """For a shell, with overrides that decide no id: where the data lies, on what it runs."""
        return shlex.join(["parebench", *self.overrides, *more])


def command_line(identity: Mapping[str, Any], seed: int) -> CommandLine:
    """The overrides that compose a recorded identity (`harness.record.Record.identity`), only those that are needed.

    Raises what composing raises (`harness.cli.MISTAKES`), where a name of the record is gone or a value is no longer allowed.
    """
    overrides = [*_choices(identity), *_place(identity["method"]), f"precision={identity['precision']}", f"seed={seed}"]
    try:
        now = _half(overrides, identity)
    except UserError:  # no recipe gives a learning rate
        overrides.append(f"recipe.lr={written(identity['recipe']['lr'])}" if "recipe" in identity else "recipe.lr=0")
        now = _half(overrides, identity)
    wanted, there = dict(_leaves(identity)), dict(_leaves(now))
    overrides += [_override(path, value) for path, value in wanted.items() if there.get(path, ...) != value and path[0] in BLOCKS]
    made = _half(overrides, identity)
    left = dict(_leaves(made))
    differs = sorted(".".join(path) for path in {*wanted, *left} if wanted.get(path, ...) != left.get(path, ...))
    return CommandLine(tuple(dict.fromkeys(overrides)), digest(made), tuple(differs))


def written(value: Any) -> str:
    """A value as Hydra's command line has it."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, str):
        return value if _is_plain(value) else f"'{QUOTED.sub(_escaped, value)}'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _escaped(match: re.Match[str]) -> str:
    return 2 * match[1] + ("\\'" if match[2] else "")


def _is_plain(text: str) -> bool:
    return (
        re.fullmatch(r"[\w./:@%+*?|-]+", text, re.ASCII) is not None
        and OverridesParser.create().parse_override(f"key={text}").value() == text
    )


def _choices(identity: Mapping[str, Any]) -> Iterator[str]:
    for group in GROUPS:
        yield f"{group}={identity[group]['name']}"
    if identity["method"]["name"] == CHAIN:
        yield from (f"+method@method.steps.{name}={step['name']}" for name, step in identity["method"]["steps"].items())
        yield f"method.order={written(identity['method']['order'])}"


def _place(method: Mapping[str, Any]) -> Iterator[str]:
    """Where finished weights from elsewhere lie (`harness.external`): a hub repository is named, a folder is not."""
    if not load_spec(method["name"]).traits.external:
        return
    kind, _, rest = str(method["weights"]).partition(":")
    if kind == "hub":
        repository, _, revision = rest.rpartition("@")
        yield from (f"method.hub={repository}", f"method.revision={revision}")
    else:
        yield f"method.path='{PLACE}'"


def _half(overrides: list[str], identity: Mapping[str, Any]) -> dict[str, Any]:
    """The canonical half under `overrides`, on the data, weights and finished cells of the record."""
    resolved = resolve(OmegaConf.create(compose([*overrides, f"run.store={tempfile.gettempdir()}"])))
    half = canonical_half(resolved, identity["model"]["weights"], dict(identity["data"]))
    if resolved.traits.external:
        places = {field.name for field in fields(Place)}
        half["method"] = {key: value for key, value in half["method"].items() if key not in places}
        half["method"]["weights"] = identity["method"].get("weights")
    return half | ({"dependencies": dict(identity["dependencies"])} if "dependencies" in identity else {})


def _leaves(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        path = (*above, str(key))
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield path, value


def _override(path: tuple[str, ...], value: Any) -> str:
    added = path[0] == "method" and any(part in ADDED for part in path[1:-1])
    return f"{'+' if added else ''}{'.'.join(path)}={written(value)}"
