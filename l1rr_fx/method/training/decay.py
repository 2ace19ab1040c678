"""Weight decay: the groups of parameters that it acts on, and a check that it leaves sparse scales alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from l1rr_fx.support.arguments import number, of_kind
from passes.errors import InputError

SHOWN = 8


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of a model's trainable parameters for an optimiser: only the first has weight decay.

    The first holds the weights; the second holds the vectors (gammas, shifts, biases). InputError unless
    `weight_decay` is a finite number of at least 0.
    """
    decay = number("weight_decay", weight_decay)
    parameters = [p for p in of_kind("model", model, nn.Module).parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def refuse_decay(optimizer: Optimizer, penalised: Mapping[str, Tensor], *, gammas: Sequence[str]) -> None:
    """InputError unless the optimiser has every penalised parameter and decays none of the `gammas`."""
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    if missing := [name for name, parameter in penalised.items() if id(parameter) not in group_of]:
        raise InputError(f"the optimizer lacks {len(missing)} penalised parameters: {few(missing)}")
    if decayed := [name for name in gammas if group_of[id(penalised[name])].get("weight_decay", 0)]:
        raise InputError(
            f"the optimizer decays {len(decayed)} gammas: {few(decayed)}; build it from "
            "parameter_groups(model, weight_decay=...), or set weight_decay=0 in the group of batch norms"
        )


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
