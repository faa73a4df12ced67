"""Structured removal: key-value groups (heads with their own query heads) and feed-forward channels leave every map that holds them.

A unit is rows of the maps that make it and columns of the map that reads it: q, k, v and o for a group of heads, gate, up and down for
a channel. Shapes really shrink. One code for every family of the roles table; q, k and v may be one map (`methods.fused`).
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.adapters.wrapped import map_shape
from methods.fused import fused_rows
from methods.maths.rows import Rows
from methods.roles import family, layers, role_names, unwrap, weight_is_transposed
from methods.spec import UserError

HEADS, CHANNELS = "heads", "channels"
KINDS = {HEADS: (("q", "k", "v", "qkv"), "o"), CHANNELS: (("gate", "up"), "down")}
"""Kind of unit -> roles whose rows make it, the role whose columns read it."""
COUNTS = ("num_heads", "num_attention_heads", "n_heads")
WIDTHS = ("split_size", "all_head_size")
"""Attributes of attention modules that hold a number of heads, and their width in all."""
CONFIG = {HEADS: ("num_attention_heads", "num_key_value_heads"), CHANNELS: ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim")}
"""Keys of transformers' configurations that say how many there are."""


@dataclass(frozen=True)
class Group:
    """The units of one kind in one block."""

    layer: int
    kind: str
    rows: dict[str, Tensor]
    """Map -> its rows, (units, rows of a unit)."""
    columns: dict[str, Tensor]
    """Map -> its columns, (units, columns of a unit)."""

    @property
    def units(self) -> int:
        """How many there are."""
        return len(next(iter(self.columns.values())))

    @property
    def key(self) -> str:
        """Its name in a choice of units."""
        return f"{self.layer}.{self.kind}"


def groups(model: nn.Module) -> list[Group]:
    """Block by block the heads, then the channels; `UserError` for a mixture of experts, whose channels lie in fused tensors."""
    if family(model).experts is not None:
        kind = unwrap(model).config.model_type
        raise UserError(f"{kind} is a mixture of experts, whose channels lie in fused tensors; use a dense model")
    places = {name: index for index, block in enumerate(layers(model)) for name in _inside(model, block)}
    fusions = fused_rows(model)
    return [_group(model, index, kind, places, fusions) for index in range(len(layers(model))) for kind in KINDS]


def remove(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Slice the maps in place to the `kept` units (ascending) of the groups that `kept` names; new parameters take the place of the old."""
    for group in groups(model):
        if group.key in kept:
            _slice(model, group, kept[group.key])


def restore(model: nn.Module, kept: Mapping[str, Tensor], units: Mapping[str, int]) -> None:
    """The inverse of `remove` up to what was lost: units that were removed come back as zeros. `units`: their number before."""
    for group in groups(model):
        if group.key in kept and len(kept[group.key]) < units[group.key]:
            _spread(model, group, kept[group.key], units[group.key])


def uniform_config(model: nn.Module) -> object | None:
    """The model's configuration with the numbers of units that all its blocks share; None where stock transformers builds other shapes."""
    inner = unwrap(model)
    config = deepcopy(inner.config)
    present = groups(model)
    for kind, keys in CONFIG.items():
        counts = {group.units for group in present if group.kind == kind}
        if len(counts) != 1 or not _set_counts(config, keys, counts.pop(), kind):
            return None
    try:
        with torch.device("meta"):
            stock = type(inner)(config)
    except ValueError:  # widths that do not divide into heads
        return None
    shapes = lambda m: {name: p.shape for name, p in m.named_parameters()}  # noqa: E731
    return config if shapes(stock) == shapes(inner) else None


def hide(model: nn.Module, group: Group, dead: Tensor) -> None:
    """Zero the units `dead` (bool) of a group where they are made and read: the same function as without them."""
    with torch.no_grad():
        for name, rows in group.rows.items():
            module = model.get_submodule(name)
            _matrix(module)[rows[dead].flatten()] = 0
            if module.bias is not None:
                module.bias[rows[dead].flatten()] = 0
        for name, columns in group.columns.items():
            _matrix(model.get_submodule(name))[:, columns[dead].flatten()] = 0


def unit_sums(group: Group, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map -> (units): the sum of its scores (out, in) over what belongs to each unit."""
    rows = {name: scores[name].sum(1)[index].sum(1) for name, index in group.rows.items()}
    return rows | {name: scores[name].sum(0)[index].sum(1) for name, index in group.columns.items()}


def lowest_removed(importance: Tensor, count: int) -> Tensor:
    """The units that stay, ascending, when the `count` least important go; of equal ones the later go first."""
    return importance.argsort(descending=True, stable=True)[: len(importance) - count].sort().values


def _group(model: nn.Module, layer: int, kind: str, places: Mapping[str, int], fusions: Mapping[str, Rows]) -> Group:
    makers, reader = KINDS[kind]
    roles = [role for role in makers if role in family(model).maps]
    rows = [name for name in role_names(model, roles) if places[name] == layer]
    (column,) = [name for name in role_names(model, [reader]) if places[name] == layer]
    width = map_shape(model.get_submodule(column))[1]
    units = _heads(model, rows, fusions) if kind == HEADS else width
    made = {name: _rows(name, map_shape(model.get_submodule(name))[0], units, fusions) for name in rows}
    return Group(layer, kind, made, {column: torch.arange(width).view(units, -1)})


def _heads(model: nn.Module, rows: Sequence[str], fusions: Mapping[str, Rows]) -> int:
    """Key-value heads of a block, from its shapes: the width of one head never changes."""
    fewest = min(map_shape(model.get_submodule(name))[0] // (fusions[name].parts if name in fusions else 1) for name in rows)
    return fewest // head_width(model)


def head_width(model: nn.Module) -> int:
    """d of one head, also after heads were removed."""
    config = unwrap(model).config
    given = getattr(config, "head_dim", None)
    return given or config.hidden_size // config.num_attention_heads


def _rows(name: str, out: int, units: int, fusions: Mapping[str, Rows]) -> Tensor:
    """(units, rows of a unit) of a map with `out` rows."""
    index = torch.arange(out)
    if name not in fusions:
        return index.view(units, -1)
    layout = fusions[name] if fusions[name].groups == 1 else Rows(fusions[name].parts, units)
    return layout.split(index).view(layout.parts, units, -1).transpose(0, 1).flatten(1)


def _slice(model: nn.Module, group: Group, kept: Tensor) -> None:
    for name, rows in group.rows.items():
        module = model.get_submodule(name)
        index = rows[kept].flatten().sort().values.to(module.weight.device)
        _put(module, _matrix(module).index_select(0, index), None if module.bias is None else module.bias.index_select(0, index))
    for name, columns in group.columns.items():
        module = model.get_submodule(name)
        _put(module, _matrix(module).index_select(1, columns[kept].flatten().to(module.weight.device)), module.bias)
    _count(model, group, len(kept))


def _spread(model: nn.Module, group: Group, kept: Tensor, units: int) -> None:
    fusions = fused_rows(model)
    for name, rows in group.rows.items():
        module = model.get_submodule(name)
        out = rows.shape[1] * units
        place = _rows(name, out, units, fusions)[kept].flatten().sort().values
        bias = None if module.bias is None else _zeros_with(module.bias.detach(), 0, place, out)
        _put(module, _zeros_with(_matrix(module), 0, place, out), bias)
    for name, columns in group.columns.items():
        module = model.get_submodule(name)
        into = columns.shape[1] * units
        place = torch.arange(into).view(units, -1)[kept].flatten()
        _put(module, _zeros_with(_matrix(module), 1, place, into), module.bias)
    _count(model, group, units)


def _zeros_with(tensor: Tensor, dim: int, place: Tensor, size: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim] = size
    return torch.zeros(shape, dtype=tensor.dtype, device=tensor.device).index_copy_(dim, place.to(tensor.device), tensor)


def _matrix(module: nn.Module) -> Tensor:
    """The weight as (out, in); a view."""
    weight = module.weight.detach()
    return weight.mT if weight_is_transposed(module) else weight


def _put(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """New parameters (weight as (out, in)) and the numbers that the module keeps of its shape."""
    flipped = weight_is_transposed(module)
    trains = module.weight.requires_grad
    module.weight = nn.Parameter((weight.mT if flipped else weight).contiguous().clone(), requires_grad=trains)
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().clone(), requires_grad=module.bias.requires_grad)
    names = ("nf", "nx") if flipped else ("out_features", "in_features")
    for name, size in zip(names, weight.shape, strict=True):
        setattr(module, name, size)


def _count(model: nn.Module, group: Group, units: int) -> None:
    """Attention modules keep numbers of heads of their own."""
    if group.kind != HEADS:
        return
    (reader,) = group.columns
    width = map_shape(model.get_submodule(reader))[1]
    block = layers(model)[group.layer]
    for module in block.modules():
        for name in COUNTS:
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, width // head_width(model))
        for name in WIDTHS:
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, width)


def _set_counts(config: object, keys: Sequence[str], units: int, kind: str) -> bool:
    """Write the number of units; False where none of the keys is there."""
    present = [key for key in keys if getattr(config, key, None) is not None]
    if kind == HEADS and present:
        per = config.num_attention_heads // (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if units * per != config.num_attention_heads:
            config.head_dim = width  # families that know no such key build other shapes, which is seen
        config.num_attention_heads = units * per
        if "num_key_value_heads" in present:
            config.num_key_value_heads = units
        return True
    for key in present:
        setattr(config, key, units)
    return bool(present)


def _inside(model: nn.Module, block: nn.Module) -> list[str]:
    inside = {id(module) for module in block.modules()}
    return [name for name, module in model.named_modules(remove_duplicate=False) if id(module) in inside]
