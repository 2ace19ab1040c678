"""Unlifting: an exported program becomes a graph that reads its parameters as attributes.

`ExportedProgram.module()` returns such a graph too, with guards, hooks and copies that capture would have to remove
again; they take a fifth of the time of a capture.
"""

from __future__ import annotations

import builtins

from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, GraphModule
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo

from passes.errors import CaptureError
from passes.graph.nodes import place_tensor

LIFTED = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}


def unlifted(program: ExportedProgram) -> tuple[nn.Module, Graph]:
    """A module that holds the program's tensors and sub-graphs, and the program's graph, changed in place.

    Raises CaptureError for a model that holds objects of a class registered with torch, or tokens of an effect.
    """
    signature, graph = program.graph_signature, program.graph_module.graph
    root = nn.Module()
    for name, child in program.graph_module.named_children():
        root.add_module(name, child)
    graph.owning_module = None  # with a module the graph would warn of each new attribute that the module lacks
    placeholders = graph.find_nodes(op="placeholder")
    for node, given in zip(placeholders, signature.input_specs, strict=True):
        if given.kind is InputKind.USER_INPUT:
            if hasattr(builtins, node.name):
                node._rename(f"{node.name}_1")  # "input" is no name for a variable of generated code
            continue
        if given.kind not in LIFTED or given.target is None:
            raise CaptureError(f"the model holds {given.target or given.arg}, no tensor: it cannot be followed")
        stored = given.kind is InputKind.PARAMETER or bool(given.persistent)
        tensor = program.state_dict[given.target] if stored else program.constants[given.target].detach()
        place_tensor(root, given.target, tensor, persistent=stored)
        with graph.inserting_before(node):
            read = graph.get_attr(given.target)
        read.meta = node.meta
        node.replace_all_uses_with(read)
        graph.erase_node(node)
    if any(result.kind is not OutputKind.USER_OUTPUT for result in signature.output_specs):
        raise CaptureError("the exported program returns what it has written; expected a program for training")
    graph._codegen = _codegen(program)
    return root, graph


def _codegen(program: ExportedProgram) -> _PyTreeCodeGen:
    """The generator of code with the signature of the model's forward, nested inputs and outputs included."""
    called = program.module_call_graph[0].signature
    assert called is not None
    positional, named = called.in_spec.children()
    names = called.forward_arg_names or [f"arg_{i}" for i in range(positional.num_children)] + list(named.context)
    return _PyTreeCodeGen(_PyTreeInfo(names, called.in_spec, called.out_spec))


def keep_whole(root: nn.Module, module: GraphModule) -> None:
    """Add to a graph module made from `root` what torch.fx does not copy.

    These are the parameters that no node reads, which a report counts, and the marks of buffers that are not saved.
    """
    present = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        if name not in present:
            place_tensor(module, name, parameter)
    for name, buffer in list(module.named_buffers(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        if leaf in root.get_submodule(owner)._non_persistent_buffers_set:
            place_tensor(module, name, buffer, persistent=False)
