"""A pass of Inductor that prunes what it compiles, for weights that are frozen.

    with torch._inductor.config.patch(settings()), torch.no_grad():
        fast = torch.compile(model)
        fast(image)

It is for programs that call torch.compile in places that one cannot reach: Inductor's settings reach everywhere. Where
the call is one's own, the backend (`l1rr_fx.integrations.dynamo`) does the same, needs no freezing, and notices when
weights change.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch._inductor import config
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, GraphModule, Node

import passes
from l1rr_fx.integrations.traced import DynamoGraph
from l1rr_fx.machines.by_name import machine
from l1rr_fx.support.choices import TargetName
from passes.assignment.cost_model import Target
from passes.assignment.options import Options
from passes.choices import Mode
from passes.compile import remove_zero_channels
from passes.errors import InputError, L1RRError, first_line
from passes.graph.nodes import holder

log = logging.getLogger(__name__)

TIMING = "pre_grad_pass_timing"
SOURCES = tuple(map(str, sorted((*Path(passes.__path__[0]).rglob("*.py"), *Path(__file__).parent.glob("*.py")))))


class PruneZeroChannels(CustomGraphPass):
    """`config.pre_grad_custom_pass`: the graph without its zeroed channels; the options are those of `l1rr_fx.prune`.

    It needs `freezing`, under which Inductor takes weights for constants, `pre_grad_pass_timing = "early"`, where there
    is such a setting, and no gradients; else the graph stays as it is, and a warning says so. `settings` has them all.
    Inductor's caches know the pass by its options and by the text of the compiler.
    """

    def __init__(
        self, *, mode: Mode = "recombine", channel_multiple: int | None = None, target: TargetName | Target = "none"
    ) -> None:
        self.options = Options(mode, channel_multiple, machine(target))

    def __call__(self, graph: Graph) -> None:
        module = graph.owning_module
        assert isinstance(module, GraphModule)
        try:
            source = _frozen(module)
            removed = remove_zero_channels(source.captured(()), self.options)
        except L1RRError as error:
            log.warning("a graph is not pruned: %s", first_line(error))
            return
        shapes = {name: tuple(tensor.shape) for name, tensor in zip(source.names, source.tensors(()), strict=True)}
        if any(part.new_shape != shapes.get(name) for name, part in removed.rewritten.kept.items()):
            replace_graph(module, removed.module)

    def uuid(self) -> bytes:
        """The same in every process for the same options and the same code."""
        options = (self.options.mode, self.options.channel_multiple, self.options.target.name)
        return bytes(get_hash_for_files(SOURCES, extra=repr((*options, torch.__version__))))


def settings(
    *, mode: Mode = "recombine", channel_multiple: int | None = None, target: TargetName | Target = "none"
) -> dict[str, Any]:
    """Inductor's settings under which it prunes, for `torch._inductor.config.patch` or `torch.compile(options=...)`."""
    added = PruneZeroChannels(mode=mode, channel_multiple=channel_multiple, target=target)
    found = {"freezing": True, "pre_grad_custom_pass": added}
    return {**found, TIMING: "early"} if hasattr(config, TIMING) else found


def _frozen(module: GraphModule) -> DynamoGraph:
    """The graph with its weights as attributes; InputError, saying which setting is missing, where they are not."""
    source = DynamoGraph.of(module)
    if getattr(config, TIMING, "early") != "early":
        raise InputError(f'passes run after the weights were collected: set torch._inductor.config.{TIMING} = "early"')
    if source.weights:
        raise InputError("its weights are inputs: torch._inductor.config.freezing and torch.no_grad() are needed")
    if source.numbers:
        raise InputError("floats of the model are inputs: compile with dynamic=None")
    return source


def replace_graph(module: GraphModule, other: GraphModule) -> None:
    """Let `module`, in place, compute what `other` computes, on the same inputs, with tensors of its own.

    The graph object stays: Inductor holds it.
    """
    graph = module.graph
    inputs = graph.find_nodes(op="placeholder")
    for node in reversed(list(graph.nodes)):
        if node.op != "placeholder":
            graph.erase_node(node)
    for name in [name for name, _ in (*module.named_parameters(), *module.named_buffers())]:
        delattr(*holder(module, name))
    module.delete_all_unused_submodules()
    for name, child in other.named_children():
        module.add_module(name, child)
    for name, parameter in other.named_parameters(recurse=False):
        module.register_parameter(name, parameter)
    for name, buffer in other.named_buffers(recurse=False):
        module.register_buffer(name, buffer)
    _copy(other.graph, graph, dict(zip(other.graph.find_nodes(op="placeholder"), inputs, strict=True)))
    # Dynamo's names of the old tensors; without them Inductor takes all for the module's own, as after an export
    vars(module).pop("_param_name_to_source", None)
    module.recompile()


def _copy(source: Graph, target: Graph, known: Mapping[Node, Node]) -> None:
    new = dict(known)
    for node in source.nodes:
        if node.op == "output":
            target.output(torch.fx.node.map_arg(node.args[0], new.__getitem__))
        elif node not in new:
            new[node] = target.node_copy(node, new.__getitem__)
