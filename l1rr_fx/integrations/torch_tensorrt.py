"""A lowering pass of Torch-TensorRT that prunes what it compiles.

    with l1rr_fx.integrations.torch_tensorrt.lowering_pass():
        engine = torch_tensorrt.compile(model, ir="dynamo", arg_inputs=(image,))

Where such passes are registered is private to Torch-TensorRT: it is looked for, and an error says so where it is not
found. Two other ways need nothing private: `l1rr_fx.prune` before `torch_tensorrt.compile`, and `torch.compile(model,
backend="l1rr_fx", options={"then": "torch_tensorrt"})`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from l1rr_fx.machines.by_name import machine
from l1rr_fx.support.choices import TargetName
from l1rr_fx.support.packages import required
from passes.assignment.cost_model import Target
from passes.assignment.options import Options
from passes.choices import Mode
from passes.compile import remove_zero_channels
from passes.errors import InputError, L1RRError, first_line
from passes.frontend.functionalise import functionalise

log = logging.getLogger(__name__)

Pass = Callable[..., GraphModule]

PACKAGE, OLDEST = "torch-tensorrt", "2.11"
"""The release for the oldest torch that is taken here; each is for one torch."""
PASSES, LIST = "torch_tensorrt.dynamo.lowering.passes._aten_lowering_pass", "ATEN_POST_LOWERING_PASSES"


@contextmanager
def lowering_pass(
    *, mode: Mode = "recombine", channel_multiple: int | None = None, target: TargetName | Target = "none"
) -> Iterator[None]:
    """Within this, Torch-TensorRT prunes each graph before its own passes; the options are those of `l1rr_fx.prune`.

    InputError if Torch-TensorRT is missing or too old, or keeps its passes where we do not know.
    """
    added = pruning_pass(mode=mode, channel_multiple=channel_multiple, target=target)
    found = registered(required(PACKAGE, OLDEST, module=PASSES))
    found.insert(0, added)
    try:
        yield
    finally:
        found.remove(added)


def registered(module: Any) -> list[Pass]:
    """The passes that Torch-TensorRT runs on graphs whose weights are attributes, in its module for them."""
    found = getattr(getattr(module, LIST, None), "passes", None)
    if not isinstance(found, list):
        raise InputError(f"this release of {PACKAGE} keeps no {LIST} in {PASSES}: call l1rr_fx.prune before it")
    return found


def pruning_pass(
    *, mode: Mode = "recombine", channel_multiple: int | None = None, target: TargetName | Target = "none"
) -> Pass:
    """A function from a graph of core ATen and Torch-TensorRT's settings to the graph without its zeroed channels.

    A graph that cannot be followed comes back as it was.
    """
    options = Options(mode, channel_multiple, machine(target))

    def prune_zero_channels(module: GraphModule, settings: Any = None) -> GraphModule:
        inputs = [node.meta.get("val") for node in module.graph.find_nodes(op="placeholder")]
        try:
            small = remove_zero_channels(functionalise(module), options).module
        except L1RRError as error:
            log.warning("a graph is not pruned: %s", first_line(error))
            small = module
        with torch.no_grad():  # core ATen again
            return make_fx(small, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)

    return prune_zero_channels
