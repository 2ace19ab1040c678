"""The modules of a small network, as users know them: batch norms of the model's type, and holders of parameters."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm

from passes.graph.modes import place_module

NOT_CALLED = (
    "this module holds parameters, and the graph reads them without calling it, so that the hook never runs. Hook "
    "the network itself or a batch norm, read a node's value with torch.fx.Interpreter, or hook the dense model"
)


class ParameterHolder(nn.Module):
    """Parameters under the names that they had in the model. Its hooks would never run: registering one warns."""

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
        warnings.warn(NOT_CALLED, stacklevel=2)
        return super().register_forward_hook(*args, **kwargs)

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        warnings.warn(NOT_CALLED, stacklevel=2)
        return super().register_forward_pre_hook(*args, **kwargs)

    def register_full_backward_hook(self, *args: Any, **kwargs: Any) -> Any:
        warnings.warn(NOT_CALLED, stacklevel=2)
        return super().register_full_backward_hook(*args, **kwargs)

    def register_full_backward_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        warnings.warn(NOT_CALLED, stacklevel=2)
        return super().register_full_backward_pre_hook(*args, **kwargs)


def name_holders(network: nn.Module) -> None:
    """Make each bare module of a network's graphs, which only holds parameters, a `ParameterHolder`, in place."""
    for graph in network.modules():
        for module in graph.modules() if isinstance(graph, GraphModule) else ():
            if type(module) is nn.Module:
                module.__class__ = ParameterHolder


def keep_types(network: nn.Module, model: nn.Module) -> None:
    """Make each batch norm of a network a SyncBatchNorm where the model's of that name is one, in place."""
    originals = dict(model.named_modules(remove_duplicate=False))
    for name, norm in list(network.named_modules(remove_duplicate=False)):
        original = originals.get(name)
        if isinstance(original, nn.SyncBatchNorm) and isinstance(norm, _BatchNorm):
            place_module(network, name, nn.SyncBatchNorm.convert_sync_batchnorm(norm, original.process_group))
