"""A captured network as a JSON document and the tensors that the document names."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from l1rr_fx.archive.arguments import encode_argument
from l1rr_fx.archive.calls import Call, encode_call
from l1rr_fx.archive.nesting import encode_codegen
from l1rr_fx.archive.operators import operator_name
from passes.errors import InputError
from passes.graph.modes import MODULES
from passes.graph.selection import Selection


def encode(
    module: nn.Module, kept: Mapping[str, Selection], call: Call | None = None
) -> tuple[dict[str, Any], dict[str, Tensor], tuple[str, ...]]:
    """The network and what it kept as a JSON document, the tensors that it names, each memory once, and notes.

    `call` is the one that it was captured for. A note says what the saved network gives otherwise. The tensors share
    memory with those of the network.

    Raises InputError, naming the part, for what the format cannot hold.
    """
    if not isinstance(module, GraphModule):
        pieces = sum(isinstance(each, GraphModule) for each in module.modules())
        raise InputError(
            f"only a network that was captured whole can be saved; this {type(module).__name__} holds "
            f"{pieces} captured pieces in the model's own code: save its state_dict() instead"
        )
    store = _Store()
    codegen, notes = encode_codegen(module.graph._codegen)
    document: dict[str, Any] = {
        "codegen": codegen,
        "nodes": [_node_document(node) for node in module.graph.nodes],
        "modules": _module_documents(module),
        "parameters": {
            name: {"tensor": store.add(name, parameter), "requires_grad": parameter.requires_grad}
            for name, parameter in module.named_parameters(remove_duplicate=False)
        },
        "buffers": {
            name: {"tensor": store.add(name, buffer), "persistent": persistent}
            for name, (buffer, persistent) in _buffers(module).items()
        },
    }
    held = document["parameters"].keys() | document["buffers"].keys()  # nothing is kept of a layer that is gone
    document["kept"] = {name: _selection_document(name, kept[name], store) for name in kept if name in held}
    if (example := encode_call(call, module)) is not None:
        document["example"] = example
    return document, store.tensors, notes


class _Store:
    """Tensors by name, each memory under the first name that it came with."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.names: dict[object, str] = {}
        self.memories: set[int] = set()

    def add(self, name: str, tensor: Tensor) -> str:
        """The name under which the content of `tensor` is stored."""
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            raise InputError(
                f"{name}: only dense tensors with content can be saved, not {tensor.layout} on {tensor.device}"
            )
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            raise InputError(f"{name}: a tensor of class {type(tensor).__name__} cannot be saved")
        view = (tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        key = (tensor.data_ptr(), *view) if tensor.numel() else id(tensor)
        if key not in self.names:
            self.names[key] = name
            self.tensors[name] = self._whole(tensor.detach().cpu().contiguous())
        return self.names[key]

    def _whole(self, tensor: Tensor) -> Tensor:
        """The tensor, which shares its memory with no other of the store: a copy of a part of a memory."""
        memory = tensor.untyped_storage()
        if memory.nbytes() != tensor.nbytes or memory.data_ptr() in self.memories:
            return tensor.clone()
        self.memories.add(memory.data_ptr())
        return tensor


def _buffers(module: GraphModule) -> dict[str, tuple[Tensor, bool]]:
    """Buffers with whether the state dict holds them, and the plain tensors that the graph reads."""
    found: dict[str, tuple[Tensor, bool]] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for name, buffer in owner.named_buffers(recurse=False, remove_duplicate=False):
            found[f"{prefix}.{name}" if prefix else name] = (buffer, name not in owner._non_persistent_buffers_set)
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for node in module.graph.find_nodes(op="get_attr"):
        if node.target not in found and node.target not in parameters:
            value = operator.attrgetter(node.target)(module)
            if not isinstance(value, Tensor):
                raise InputError(
                    f"node {node.name} reads {node.target}, a {type(value).__name__}; only tensors can be saved"
                )
            found[node.target] = (value, False)
    return found


def _node_document(node: Node) -> dict[str, Any]:
    try:
        return {
            "op": node.op,
            "name": node.name,
            "target": operator_name(node.target) if node.op == "call_function" else str(node.target),
            "args": [encode_argument(each) for each in node.args],
            "kwargs": {key: encode_argument(each) for key, each in node.kwargs.items()},
        }
    except InputError as error:
        raise InputError(f"node {node.name}: {error}") from error


def _module_documents(module: GraphModule) -> dict[str, Any]:
    """Every module in its order, which is that of the parameters too: what the graph calls, and what holds that."""
    called = {str(node.target) for node in module.graph.find_nodes(op="call_module")}
    documents: dict[str, Any] = {}
    within: set[str] = set()  # modules that a called one holds; those around them come first
    for name, each in module.named_modules(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        if name and (owner in within or owner in called):
            within.add(name)
        if name in called:
            documents[name] = _leaf_document(name, each)
        elif name not in within:
            documents[name] = {"class": None, "options": {}, "training": each.training}
    return documents


def _leaf_document(name: str, leaf: nn.Module) -> dict[str, Any]:
    class_name = type(leaf).__name__
    if MODULES.get(class_name) is not type(leaf):
        raise InputError(f"module {name}: a {class_name} cannot be saved; {', '.join(MODULES)} can")
    options = {}
    for option, default in leaf_options(type(leaf)).items():  # type: ignore[arg-type]  # a class is hashable
        # BatchNorm's option `bias` says whether it has the parameter of that name
        value = leaf._parameters[option] is not None if option in leaf._parameters else getattr(leaf, option)
        if value != default:
            options[option] = encode_argument(value)
    return {"class": class_name, "options": options, "training": leaf.training}


IN_PROCESS = ("device", "dtype", "process_group")
"""Options that belong to the process that made a module, not to the network."""


@functools.cache
def leaf_options(leaf: type[nn.Module]) -> Mapping[str, Any]:
    """The constructor's parameters, which the module keeps as attributes, with their defaults."""
    parameters = inspect.signature(leaf).parameters.values()
    return {each.name: each.default for each in parameters if each.name not in IN_PROCESS}


def _selection_document(name: str, selection: Selection, store: _Store) -> dict[str, Any]:
    def add(part: Tensor | None, label: object) -> str | None:
        return None if part is None else store.add(f"kept/{name}/{label}", part)

    axes = [add(kept, axis) for axis, kept in enumerate(selection.axes)]
    return {"shape": list(selection.shape), "axes": axes, "flat": add(selection.flat, "flat")}
