"""Running a module without a trace: its buffers, the inputs and the random numbers stay as they were."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd


@torch.no_grad()
def run_aside(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The module's outputs without dropout, its buffers left as they were and its inputs not written into."""
    dropouts = [each for each in module.modules() if isinstance(each, _DropoutNd) and each.training]
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    args, kwargs = copy.deepcopy(args), copy.deepcopy(dict(kwargs))
    generator = torch.random.get_rng_state()
    for dropout in dropouts:
        dropout.training = False
    try:
        return module(*args, **kwargs)
    finally:
        for dropout in dropouts:
            dropout.training = True
        torch.random.set_rng_state(generator)
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
