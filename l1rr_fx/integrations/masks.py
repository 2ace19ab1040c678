"""Weights that torch computes before each call: the masks of `torch.nn.utils.prune`, and parametrizations.

`l1rr_fx.prune` follows masks as they are, for a mask is a product. What it cannot follow (weight norm, spectral norm,
maps of one's own) it keeps whole. With the weights made plain there is nothing to follow, and the small network has
neither masks nor hooks:

    prune.ln_structured(model.conv, "weight", amount=0.5, n=2, dim=0)
    small = l1rr_fx.prune(plain_weights(model), args)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod, remove
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from passes.frontend.capture import check_arguments
from passes.graph.isolation import detached_copy


def plain_weights(model: nn.Module) -> nn.Module:
    """A copy of the model whose weights are parameters with the values that they now have at a call.

    Masks are multiplied in, parametrizations (weight norm and spectral norm among them, new and old) are computed once,
    the last that was put on a layer first; names become those of the layers again (`weight`, not `weight_orig` or
    `parametrizations.weight.original`). Old spectral norms count as in evaluation mode. `model` is not changed.
    """
    check_arguments(model, (), None)
    plain = detached_copy(model)
    with torch.no_grad():
        for module in list(plain.modules()):
            if parametrize.is_parametrized(module):
                _make_plain(module)
            for hook in reversed(_hooks(module)):
                if isinstance(hook, WeightNorm):
                    remove_weight_norm(module, hook.name)
                elif isinstance(hook, SpectralNorm):
                    remove_spectral_norm(module, hook.name)
                else:
                    remove(module, hook._tensor_name)
    return plain


def _make_plain(module: Any) -> None:
    """Compute a layer's parametrizations once and take them off."""
    kind = type(module)  # a copy shares it with its original, and torch takes the weight's property off it
    module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
    for name in list(module.parametrizations):
        trained = any(original.requires_grad for original in module.parametrizations[name].parameters())
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        value = getattr(module, name)
        delattr(module, name)  # without gradients torch leaves a tensor that is no parameter
        module.register_parameter(name, nn.Parameter(value.detach(), trained))


def _hooks(module: nn.Module) -> list[Any]:
    """The hooks that compute a layer's parameters; of several masks on one there is one hook."""
    kinds = (BasePruningMethod, WeightNorm, SpectralNorm)
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, kinds)]
