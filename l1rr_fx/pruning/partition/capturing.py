"""A submodule captured by its recorded calls: with the sizes as recorded, and with free ones where that is cheap."""

from __future__ import annotations

import logging
import time
from typing import Any

from torch import Tensor, nn
from torch.export import Dim, ShapesCollection
from torch.fx import GraphModule
from torch.fx.experimental import _config as symbolic_config
from torch.utils import _pytree as pytree

from l1rr_fx.pruning.partition.calls import Calls
from l1rr_fx.pruning.partition.piece import Contract, contract_of
from passes.errors import CaptureError, InputError, first_line
from passes.frontend.capture import apart, capture
from passes.graph.isolation import buffers_restored

log = logging.getLogger(__name__)

LONGEST_NOTE = 240
FREE_SECONDS, FREE_TIMES = 10.0, 10.0
"""How long a capture with free sizes may take: so many seconds of the processor, and so many times the fixed one."""

VARYING_SECONDS = 300.0
"""How long it may take where the sizes vary from call to call, so that there is no other."""


def captured_part(name: str, module: nn.Module, calls: Calls) -> tuple[GraphModule, Contract, str | None]:
    """The graph of a submodule, and why its sizes are those of the example (None: they are free).

    It is captured with the sizes as recorded, if they do not vary, and then with free ones as far as its code allows;
    what that may take is measured by the first.
    """
    recorded, limit = None, VARYING_SECONDS
    if not calls.varies:
        started = time.thread_time()
        with buffers_restored(module):
            recorded = capture(module, *own_copies(module, calls))
        limit = FREE_SECONDS + FREE_TIMES * (time.thread_time() - started)
    try:
        args, kwargs = own_copies(module, calls)
        # sizes of 0 and 1 stay free too, unless the model's own code asks for them
        with buffers_restored(module), symbolic_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # a config
            captured = capture(module, args, kwargs, dynamic_shapes=_free_sizes((args, kwargs)), seconds=limit)
        contract = contract_of(name, captured, calls)
        refusal = contract.refusal(calls.args, calls.kwargs)
        if refusal is None:
            return captured, contract, None
    except (CaptureError, InputError) as error:
        if recorded is None:
            raise
        refusal = noted(error)
    if recorded is None:
        raise CaptureError(f"its graph does not serve its own calls: {refusal}")
    log.debug("%s is captured with fixed sizes: %s", name, refusal)
    return recorded, contract_of(name, recorded, calls), refusal


def own_copies(module: nn.Module, calls: Calls) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the submodule was given, each tensor one of its own: free sizes are noted on the tensors."""
    args, kwargs = apart(module, calls.args, calls.kwargs)
    return pytree.tree_map_only(Tensor, lambda each: each.detach().clone(), (args, kwargs))  # type: ignore[no-any-return]


def _free_sizes(inputs: Any) -> ShapesCollection:
    """All sizes but that of channels are free, if the code allows it."""
    shapes = ShapesCollection()
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() >= 2:
            shapes[leaf] = {axis: Dim.AUTO for axis in range(leaf.dim()) if axis != 1 or leaf.dim() == 3}
    return shapes


def noted(error: Exception) -> str:
    """The first line of an error, cut where it is longer than a note may be."""
    line = first_line(error)
    return line if len(line) <= LONGEST_NOTE else f"{line[:LONGEST_NOTE]}..."
