"""A network out of its document: whatever is not as `encode` writes it is refused."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from l1rr_fx.archive.arguments import decode_argument
from l1rr_fx.archive.calls import Call, decode_call
from l1rr_fx.archive.constants import check_options
from l1rr_fx.archive.encode import leaf_options
from l1rr_fx.archive.nesting import decode_codegen
from l1rr_fx.archive.operators import is_name, is_target, operator_named
from l1rr_fx.support.checks import MAX_DEPTH, expect, fields, naming, short
from passes.errors import LoadError
from passes.graph.modes import MODULES
from passes.graph.selection import Selection

LEAVES = tuple(MODULES.values())
FIELDS = {"codegen", "nodes", "modules", "parameters", "buffers", "kept"}
MOST = 2**48
"""A size of a parameter is at most this."""
# What the target of a node names, by the kind of the node.
NODE_TARGETS = {"placeholder": "identifier", "get_attr": "tensor", "call_module": "module", "output": "output"}


def decode(
    document: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device
) -> tuple[GraphModule, dict[str, Selection], Call | None]:
    """The network of a document, what it kept, and the call that it was captured for (None: not stored).

    Raises LoadError, naming the part, where anything is not as `encode` writes it.
    """
    found = fields(document, FIELDS, "the document", frozenset({"example"}))
    module = _Builder(tensors, device).network(found)
    held = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    kept = {}
    for name, facts in expect(found["kept"], dict, '"kept"').items():
        with naming(f"kept {short(name)}"):
            if name not in held:
                raise LoadError("there is no such parameter or buffer")
            kept[name] = _selection(facts, tensors, tuple(held[name].shape))
    used = {facts["tensor"] for kind in ("parameters", "buffers") for facts in found[kind].values()}
    used |= {name for facts in found["kept"].values() for name in (*facts["axes"], facts["flat"]) if name is not None}
    if unused := sorted({*tensors} - used):
        raise LoadError(f"the tensor {short(unused[0])} is stored and belongs to nothing")
    call = decode_call(found["example"], module) if "example" in found else None
    return module, kept, call


class _Builder:
    """Puts a GraphModule together: first the modules that it calls, then its tensors, then its graph."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self.tensors = tensors
        self.device = device
        self.module = GraphModule(nn.Module(), Graph())
        self.modules: dict[str, nn.Module] = {"": self.module}
        self.leaves: dict[str, nn.Module] = {}
        self.attributes: set[str] = set()
        self.shared: dict[tuple[str, bool, bool], Tensor] = {}
        self.nodes: dict[str, Node] = {}

    def network(self, found: Mapping[str, Any]) -> GraphModule:
        for name, facts in expect(found["modules"], dict, '"modules"').items():
            with naming(f"module {short(name)}"):
                self.add_module(name, facts)
        for name, facts in expect(found["parameters"], dict, '"parameters"').items():
            with naming(f"parameter {short(name)}"):
                fields(facts, {"tensor", "requires_grad"}, "it")
                gradient = expect(facts["requires_grad"], bool, "requires_grad")
                self.add_tensor(name, self.tensor(facts["tensor"], True, gradient))
        for name, facts in expect(found["buffers"], dict, '"buffers"').items():
            with naming(f"buffer {short(name)}"):
                fields(facts, {"tensor", "persistent"}, "it")
                persistent = expect(facts["persistent"], bool, "persistent")
                self.add_tensor(name, self.tensor(facts["tensor"], False, False), persistent=persistent)
        self.check_leaves()
        graph = self.graph(found)
        try:
            self.module.graph = graph  # generates and compiles its code
        except (SyntaxError, ValueError, RecursionError) as error:
            raise LoadError(f"torch.fx makes no code of the graph: {error}") from error
        return self.module

    def add_module(self, name: str, facts: Any) -> None:
        fields(facts, {"class", "options", "training"}, "it")
        module = nn.Module() if facts["class"] is None else self.leaf(facts)
        if name == "" and facts["class"] is None:
            module = self.module
        else:
            owner, field = self.owner(name)
            if isinstance(owner, LEAVES):
                raise LoadError(f"it lies within a {type(owner).__name__}")
            self.register(owner, field, module)
            self.modules[name] = module
        if facts["class"] is not None:
            self.leaves[name] = module
        module.train(expect(facts["training"], bool, "training"))

    def leaf(self, facts: Mapping[str, Any]) -> nn.Module:
        leaf_class = MODULES.get(expect(facts["class"], str, "class"))
        if leaf_class is None:
            raise LoadError(f"the class {short(facts['class'])} is not one that a saved network may call")
        options = {name: self.value(value) for name, value in expect(facts["options"], dict, "options").items()}
        known = leaf_options(leaf_class)  # type: ignore[arg-type]  # a class is hashable
        if unknown := sorted(options.keys() - known.keys()):
            raise LoadError(f"a {leaf_class.__name__} has no option {short(unknown[0])}")
        check_options(leaf_class, options)
        try:
            with torch.device("meta"):  # no memory, whatever the sizes
                return leaf_class(**options)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise LoadError(f"{leaf_class.__name__} refuses its options: {error}") from error

    def owner(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds the attribute of a dotted name, and the attribute's own name."""
        if not is_target(name):
            raise LoadError("its name is not a dotted name")
        if name.count(".") > MAX_DEPTH:
            raise LoadError(f"it lies more than {MAX_DEPTH} modules deep")
        path, _, field = name.rpartition(".")
        if path not in self.modules:
            raise LoadError(f"there is no module {path!r} before it")
        return self.modules[path], field

    def register(self, owner: nn.Module, field: str, value: nn.Module | Tensor, *, persistent: bool = True) -> None:
        """Set an attribute that does not exist; one that every module has, such as `forward`, cannot be replaced."""
        if hasattr(owner, field) or (owner is self.module and field in _generated_names()):
            raise LoadError(f"the name {field!r} is taken")
        if isinstance(value, nn.Module):
            owner.add_module(field, value)
        elif isinstance(value, nn.Parameter):
            owner.register_parameter(field, value)
        else:
            owner.register_buffer(field, value, persistent=persistent)

    def tensor(self, name: object, is_parameter: bool, gradient: bool) -> Tensor:
        """The stored tensor, the same object for every name of one memory."""
        if not isinstance(name, str) or name not in self.tensors:
            raise LoadError(f"the tensor {short(name)} is not stored")
        key = (name, is_parameter, gradient)
        if key not in self.shared:
            content = self.tensors[name].to(self.device)
            if gradient and not (content.is_floating_point() or content.is_complex()):
                raise LoadError(f"a tensor of {content.dtype} has no gradient")
            self.shared[key] = nn.Parameter(content, requires_grad=gradient) if is_parameter else content
        return self.shared[key]

    def add_tensor(self, name: str, tensor: Tensor, *, persistent: bool = True) -> None:
        self.attributes.add(name)
        owner, field = self.owner(name)
        if not isinstance(owner, LEAVES):
            self.register(owner, field, tensor, persistent=persistent)
            return
        is_parameter = isinstance(tensor, nn.Parameter)
        slot = (owner._parameters if is_parameter else owner._buffers).get(field)
        if slot is None:
            raise LoadError(f"a {type(owner).__name__} has no such {'parameter' if is_parameter else 'buffer'}")
        if slot.shape != tensor.shape or slot.is_floating_point() != tensor.is_floating_point():
            raise LoadError(
                f"is of {tensor.dtype} and shape {(*tensor.shape,)}; expected {slot.dtype} and {(*slot.shape,)}"
            )
        setattr(owner, field, tensor)

    def check_leaves(self) -> None:
        for name, leaf in self.leaves.items():
            for field, tensor in (*leaf.named_parameters(), *leaf.named_buffers()):
                if tensor.is_meta:
                    raise LoadError(f"module {name!r}: its tensor {field!r} is not stored")

    def graph(self, found: Mapping[str, Any]) -> Graph:
        graph = Graph()
        for facts in expect(found["nodes"], list, '"nodes"'):
            fields(facts, {"op", "name", "target", "args", "kwargs"}, "a node")
            with naming(f"node {short(facts['name'])}"):
                if not is_name(facts["name"]):
                    raise LoadError("its name is not an identifier")
                self.add_node(graph, facts)
        operations = [node.op for node in graph.nodes]
        if operations.count("output") != 1 or operations[-1] != "output":
            raise LoadError("the graph has not one output as its last node")
        if found["codegen"] is not None:
            graph.set_codegen(decode_codegen(found["codegen"], graph))
        return graph

    def add_node(self, graph: Graph, facts: Mapping[str, Any]) -> None:
        args = tuple(self.value(value) for value in expect(facts["args"], list, "args"))
        kwargs = {key: self.value(value) for key, value in expect(facts["kwargs"], dict, "kwargs").items()}
        if not all(is_name(key) for key in kwargs):
            raise LoadError("the name of an argument is not an identifier")
        target = self.node_target(facts["op"], facts["target"], args, kwargs)
        name = facts["name"]
        node = graph.create_node(facts["op"], target, args, kwargs, name=name)
        if node.name != name:
            raise LoadError("its name is taken")
        self.nodes[name] = node

    def node_target(self, op: object, target: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if op == "call_function":
            return operator_named(expect(target, str, "target"), args, kwargs)
        if op not in ("placeholder", "get_attr", "call_module", "output"):
            raise LoadError(f"the kind {short(op)} is unknown")
        if op != "call_module" and (kwargs or len(args) != (op == "output")):
            raise LoadError(f"a node of the kind {op} has other arguments")
        known = {
            "placeholder": is_name(target),
            "get_attr": is_target(target) and target in self.attributes,
            "call_module": is_target(target) and target in self.leaves,
            "output": target == "output",
        }
        if not known[op]:
            raise LoadError(f"{short(target)} is no {NODE_TARGETS[op]}")
        return target

    def value(self, value: Any) -> Any:
        return decode_argument(value, self.nodes, self.device)


@functools.cache
def _generated_names() -> frozenset[str]:
    """The attributes that torch.fx gives a module with its code."""
    graph = Graph()
    graph.output(graph.placeholder("x"))
    leaf = pytree.tree_structure(0)
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(["x"], pytree.tree_structure(((0,), {})), leaf)))
    return frozenset(dir(GraphModule(nn.Module(), graph)))


def _selection(document: Any, tensors: Mapping[str, Tensor], new_shape: tuple[int, ...]) -> Selection:
    """What is kept of a parameter; every index is checked, and that the result is of `new_shape`."""
    facts = fields(document, {"shape", "axes", "flat"}, "it")
    shape = tuple(expect(size, int, "a size") for size in expect(facts["shape"], list, "shape"))
    names = expect(facts["axes"], list, "axes")
    if len(names) != len(shape) or not all(0 <= size <= MOST for size in shape):
        raise LoadError("its shape and axes do not fit together")

    def index(name: object, end: int) -> Tensor | None:
        if name is None:
            return None
        if not isinstance(name, str) or name not in tensors:
            raise LoadError(f"the tensor {short(name)} is not stored")
        found = tensors[name]
        if found.dtype != torch.int64 or (found.numel() and not 0 <= int(found.min()) <= int(found.max()) < end):
            raise LoadError(f"{name} are not indices below {end}")
        return found

    axes = tuple(index(name, size) for name, size in zip(names, shape, strict=True))
    selection = Selection(shape, axes, index(facts["flat"], math.prod(shape)))
    if any(kept is not None and kept.dim() != 1 for kept in axes) or selection.new_shape != new_shape:
        raise LoadError(f"it does not give the shape that is there, {new_shape}")
    return selection
