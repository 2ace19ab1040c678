"""An optimizer's state carried over from the zeroed model to the small one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from l1rr_fx.pruning.pruned import Pruned
from l1rr_fx.support.arguments import of_kind
from passes.absorption.edits import EVEN
from passes.errors import InputError
from passes.graph.selection import Selection


def pruned_optimizer_state(pruned: Pruned, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """A state dict for an optimizer of the same class over the parameters of `pruned.module`.

    `optimizer` is that of `model`, the network that was pruned. Moments of the shape of their parameter keep the
    elements that the parameter kept, and are zero where it is zero: what is dead but stays (to fill a group, say) has
    moments from before it died, which would bring it back to life. Those of a bias that pruning created for constant
    channels are zero. Numbers such as the step are copied. Every parameter group keeps its options, less the parameters
    that vanished, in the order of `pruned.module.named_parameters()`: build the new optimizer in that order, with the
    same groups.

        small = torch.optim.AdamW(pruned.module.parameters(), lr=1e-3)
        small.load_state_dict(l1rr_fx.pruned_optimizer_state(pruned, model, optimizer))

    Raises InputError where the three do not belong together, or where a state is neither a number nor of the shape of
    its parameter (LBFGS keeps a history of the whole network, Adafactor sums of rows and columns).
    """
    of_kind("pruned", pruned, Pruned, ", what `l1rr_fx.prune` returned")
    of_kind("model", model, nn.Module, ", the one that was pruned")
    of_kind("optimizer", optimizer, Optimizer, ", that of the model")
    survivors = _survivors(pruned, model)
    ours = {id(parameter) for parameter in model.parameters()}
    old = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    taken = 0
    for live, saved in zip(optimizer.param_groups, old["param_groups"], strict=True):
        if strangers := [parameter for parameter in live["params"] if id(parameter) not in ours]:
            raise InputError(f"the optimizer has a parameter of shape {(*strangers[0].shape,)} that the model has not")
        indices = dict(zip(map(id, live["params"]), saved["params"], strict=True))
        members = [each for each in survivors if id(each.original) in indices]
        for new, each in enumerate(members, start=taken):
            if (index := indices[id(each.original)]) in old["state"]:
                state[new] = _selected(each, old["state"][index])
        groups.append(_group(saved, members, taken))
        taken += len(members)
    rest = {key: copy.deepcopy(value) for key, value in old.items() if key not in ("state", "param_groups")}
    return {**rest, "state": state, "param_groups": groups}


@dataclass(frozen=True)
class _Survivor:
    """A parameter of the pruned network: its name, the parameter of the model that it was, and what it kept of it.

    A bias that pruning created for constant channels was none: `original` is the weight beside it.
    """

    name: str
    original: nn.Parameter
    selection: Selection
    value: nn.Parameter
    created: bool = False


def _survivors(pruned: Pruned, model: nn.Module) -> tuple[_Survivor, ...]:
    """The parameters of the pruned network, in its order; a tied one goes by any of its names."""
    originals = dict(model.named_parameters(remove_duplicate=False))
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in pruned.module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    found = []
    for parameter, aliases in names.items():
        known = [alias for alias in aliases if alias.removesuffix(EVEN) in originals and alias in pruned.kept]
        if not known and (beside := _beside(aliases[0], originals)) is not None:
            found.append(_Survivor(aliases[0], beside, Selection.whole(parameter.shape), parameter, created=True))
            continue
        if not known:
            raise InputError(f"the pruned network's parameter {aliases[0]} is not one of this {type(model).__name__}")
        name = known[0]
        selection, original = pruned.kept[name], originals[name if name in originals else name.removesuffix(EVEN)]
        if selection.shape != original.shape or selection.new_shape != parameter.shape:
            raise InputError(
                f"{name} has shape {(*original.shape,)} in the model and {(*parameter.shape,)} in the pruned network; "
                f"pruning went from {selection.shape} to {selection.new_shape}: is this another model?"
            )
        found.append(_Survivor(name, original, selection, parameter))
    return tuple(found)


def _beside(name: str, originals: Mapping[str, nn.Parameter]) -> nn.Parameter | None:
    """The weight beside which pruning created a bias of this name; None for any other name."""
    owner, _, leaf = name.rpartition(".")
    return originals.get(f"{owner}.weight" if owner else "weight") if leaf.startswith("bias") else None


def _group(saved: Mapping[str, Any], members: Sequence[_Survivor], start: int) -> dict[str, Any]:
    """A parameter group with the options of `saved`, its parameters numbered from `start`."""
    group = copy.deepcopy(dict(saved))
    group["params"] = list(range(start, start + len(members)))
    if "param_names" in saved:
        group["param_names"] = [each.name for each in members]
    return group


def _selected(survivor: _Survivor, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of one parameter, cut like the parameter."""
    return {key: _selected_value(f"{survivor.name}, {key}", survivor, value) for key, value in state.items()}


def _selected_value(what: str, survivor: _Survivor, value: Any) -> Any:
    selection = survivor.selection
    if isinstance(value, Tensor) and survivor.created and value.dim():
        return value.new_zeros(selection.new_shape)
    if isinstance(value, Tensor):
        if value.shape == selection.shape:
            kept = selection.apply(value.detach())
            return kept.masked_fill((survivor.value.detach() == 0).to(kept.device), 0)
        if value.dim() == 0:
            return value.detach().clone()
        raise InputError(f"{what}: a state of shape {(*value.shape,)} for a parameter of shape {selection.shape}")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(f"{what}: a state of type {type(value).__name__} cannot be cut to channels")
