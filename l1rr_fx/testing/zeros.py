"""Lively networks, and channels of them zeroed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from passes.graph.isolation import detached_copy

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONTRACTIONS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.RMSNorm)


def randomised(model: nn.Module, seed: int = 0, *, dtype: torch.dtype = torch.float64) -> nn.Module:
    """`model` in `dtype` and eval mode with lively weights: no channel is constant by luck of initialisation.

    Parameters with `requires_grad=False` and buffers other than running statistics stay as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    model.to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                fan = parameter[0].numel() if parameter.ndim > 1 else 4
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 1.4 / fan**0.5)
        for module in model.modules():
            if isinstance(module, NORMS) and module.weight is not None:
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator, dtype=torch.float64))
            if isinstance(getattr(module, "running_mean", None), Tensor):
                mean, variance = module.running_mean, module.running_var
                assert isinstance(mean, Tensor) and isinstance(variance, Tensor)
                mean.copy_(0.3 * torch.randn(mean.shape, generator=generator, dtype=torch.float64))
                variance.copy_(0.5 + torch.rand(variance.shape, generator=generator, dtype=torch.float64))
    return model


def zeroed(model: nn.Module, ratio: float, seed: int, *, columns: bool = False) -> nn.Module:
    """A copy of `model` in which each layer lost about `ratio` of its channels, at least one staying alive.

    Batch norms lose scale and shift together, other layers rows and biases, bare parameters slices of their longest
    axis; `columns` also zeroes single input columns of weights. Now and then a channel is zeroed by half only (scale
    but not shift, row but not bias): it is not dead and must survive.
    """
    generator = torch.Generator().manual_seed(seed)
    result = detached_copy(model)

    def chance(p: float) -> bool:
        return bool(torch.rand((), generator=generator) < p)

    def chosen(n: int) -> list[int]:
        order = torch.randperm(n, generator=generator).tolist()
        count = sum(chance(ratio) for _ in range(n))
        return sorted(order[: min(count, n - 1)])

    for module in result.modules():
        if isinstance(module, NORMS):
            if module.weight is not None:
                kill(module, rows=chosen(module.weight.shape[0]), keep_bias=chance(0.1))
        elif isinstance(module, CONTRACTIONS):
            outputs, inputs = widths(module)
            rows = chosen(outputs) if chance(0.6) else []
            taken = chosen(inputs) if columns and chance(0.4) else []
            kill(module, rows=rows, columns=taken, keep_bias=chance(0.1))
        elif not isinstance(module, parametrize.ParametrizationList):
            for parameter in module.parameters(recurse=False):
                if parameter.ndim and chance(0.5):
                    axis = max(range(parameter.ndim), key=lambda a: parameter.shape[a])
                    dead = torch.tensor(chosen(parameter.shape[axis]), dtype=torch.long)
                    parameter.data.index_fill_(axis, dead, 0.0)
    return result


def widths(module: nn.Module) -> tuple[int, int]:
    """(output channels, weight columns) of a convolution or linear layer; a column is an input of one group."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    assert isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)), type(module)
    return module.out_channels, module.in_channels // module.groups


@torch.no_grad()
def kill(module: nn.Module, rows: Sequence[int] = (), columns: Sequence[int] = (), *, keep_bias: bool = False) -> None:
    """Zero output channels `rows` (weight and bias) and weight `columns` of a layer, in place."""
    weight, bias = _stored_weight(module), getattr(module, "bias", None)
    dead = torch.tensor(list(rows), dtype=torch.long)
    taken = torch.tensor(list(columns), dtype=torch.long)
    if isinstance(module, TRANSPOSED):
        by_group = weight.data.unflatten(0, (module.groups, -1))  # a view: (groups, inputs, outputs of a group, ...)
        group_width = module.out_channels // module.groups
        for row in rows:
            by_group[row // group_width, :, row % group_width] = 0.0
        by_group.index_fill_(1, taken, 0.0)
    else:
        weight.data.index_fill_(0, dead, 0.0)
        if weight.ndim > 1 and weight.shape[1] > 1:
            weight.data.index_fill_(1, taken, 0.0)
    if isinstance(bias, Tensor) and not keep_bias:
        bias.data.index_fill_(0, dead, 0.0)


def _stored_weight(module: nn.Module) -> Tensor:
    """The parameter to zero rows of: the weight, or where it is parametrised, what it is computed from."""
    if parametrize.is_parametrized(module, "weight"):
        originals = dict(module.named_parameters())
        name = "parametrizations.weight.original"
        return originals[name if name in originals else f"{name}0"]
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
