"""Base of the pruners that look at calibration text: block by block, S = |W| scale(statistic), weights of a row compete."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from methods.adapters.wrapped import map_shape, weight_and_bias
from methods.base import Context
from methods.blockwise import Statistic, walk
from methods.maths.allocation import global_shares, outlier_ratio, owl
from methods.maths.masks import layer_mask, nm_mask, row_mask
from methods.maths.statistics import SquaredNorm
from methods.prune.masked import MaskedMethod
from methods.roles import layers, prunable, unwrap, weight_is_transposed
from methods.spec import UserError, nm_pattern


class OneShotMethod(MaskedMethod):
    """Prune on calibration text at `prepare`; with `retrain`, train under the masks afterwards."""

    def statistic(self, module: nn.Module) -> Statistic:
        """What to keep of a map's inputs."""
        raise NotImplementedError

    def scale(self, statistic: Any) -> Tensor:
        """(in,): S = |W| scale."""
        raise NotImplementedError

    def edit(self, name: str, weight: Tensor, statistic: Any, sparsity: float) -> tuple[Tensor, Tensor]:
        """(W', mask), both (out, in), of a weight in float32; default: the weight itself, masked by rank of S."""
        return weight, self.ranked(weight.abs() * self.scale(statistic), sparsity)

    def ranked(self, score: Tensor, sparsity: float) -> Tensor:
        """Mask of scores (out, in): N:M, or the largest of each row (or layer, as `scope` says)."""
        nm = nm_pattern("method.pattern", self.config.pattern)
        if nm:
            return nm_mask(score, *nm)
        return (layer_mask if getattr(self.config, "scope", "row") == "layer" else row_mask)(score, sparsity)

    def masks(self, model: nn.Module, ctx: Context) -> Iterator[tuple[str, Tensor]]:
        """(parameter name, mask in the parameter's own orientation); on the way the weights themselves are edited."""
        if any(module.weight.is_meta for module in prunable(model).values()):
            yield from super().masks(model, ctx)
            return
        check_groups(model, self.config.pattern)
        found: dict[str, Tensor] = {}
        with ctx.phase("calibrate"):
            ids = ctx.calibration()
            shares = self._shares(model, ids)

            def edit(name: str, module: nn.Module, statistic: Statistic) -> None:
                weight, mask = self.edit(name, weight_and_bias(module)[0], statistic, shares[name])
                found[f"{name}.weight"] = put(module, weight, mask)

            walk(model, ids, self.statistic, edit)
        yield from found.items()

    def _shares(self, model: nn.Module, ids: Tensor) -> dict[str, float]:
        """Sparsity of every map."""
        c = self.config
        if c.allocation == "uniform":
            return dict.fromkeys(prunable(model), c.sparsity)
        if c.allocation == "global":
            return global_shares(dense_scores(model, ids, self.statistic, self.scale), c.sparsity)
        norms = lambda module: SquaredNorm(map_shape(module)[1], module.weight.device)  # noqa: E731
        scores = dense_scores(model, ids, norms, lambda norm: norm.value.sqrt())
        return owl_shares(model, scores, c.sparsity, c.owl_times, c.owl_reach)


def put(module: nn.Module, weight: Tensor, mask: Tensor) -> Tensor:
    """Write mask * weight (out, in) into a module; the mask in the module's own orientation."""
    flipped = weight_is_transposed(module)
    kept = (weight * mask).to(module.weight.dtype)
    with torch.no_grad():
        module.weight.copy_(kept.mT if flipped else kept)
    return mask.mT.contiguous() if flipped else mask


def dense_scores(model: nn.Module, ids: Tensor, statistic: Callable[[nn.Module], Any], scale: Callable[[Any], Tensor]) -> dict[str, Tensor]:
    """S = |W| scale (out, in) of every map of the unpruned model."""
    scores: dict[str, Tensor] = {}

    def edit(name: str, module: nn.Module, seen: Any) -> None:
        scores[name] = weight_and_bias(module)[0].abs() * scale(seen)

    walk(model, ids, statistic, edit)
    return scores


def owl_shares(model: nn.Module, scores: dict[str, Tensor], sparsity: float, times: float, reach: float) -> dict[str, float]:
    """OWL's sparsity of every map: that of its block."""
    maps = prunable(model)
    names = []
    for block in layers(model):
        inside = {id(module) for module in block.modules()}
        names.append([name for name, module in maps.items() if id(module) in inside])
    ratios = [outlier_ratio([scores[name] for name in block], times) for block in names]
    return {name: share for block, share in zip(names, owl(ratios, sparsity, reach), strict=True) for name in block}


def check_groups(model: nn.Module, pattern: str) -> None:
    """`UserError` where an input width does not divide into groups of M."""
    nm = nm_pattern("method.pattern", pattern)
    for name, module in prunable(model).items() if nm else ():
        if (width := map_shape(module)[1]) % nm[1]:
            kind = unwrap(model).config.model_type
            raise UserError(f"method.pattern={pattern} needs input widths divisible by {nm[1]}; {name} of {kind} has {width}")
