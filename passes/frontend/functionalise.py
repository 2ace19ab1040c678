"""Functionalisation: `x.relu_()` becomes `relu(x)`, and every later reader of `x` reads the result.

A write through a view (`x[:, :4] += 1`) becomes a write to each tensor that the view shows: the new value is scattered
into the base of the view, into the base of that, and so on up to the tensor that owns the memory. The alias annotations
in the schema of an operator say which results are views and which arguments are written. The inverses of views are in
`passes.frontend.view_inverses`.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from passes.errors import CaptureError
from passes.frontend.view_inverses import inverse_of
from passes.graph.nodes import is_tensor, operator_name

aten = torch.ops.aten


def functionalise(module: GraphModule) -> GraphModule:
    """Replace every operator that writes into its argument, in place; returns `module`, which computes the same.

    Raises CaptureError for a write through a view without an inverse, and for a write to a parameter or buffer.
    """
    functionalise_graph(module.graph)
    module.recompile()
    return module


def functionalise_graph(graph: Graph) -> None:
    """Replace every operator that writes into its argument, in a graph whose module is not run afterwards."""
    if any(writes(node) for node in graph.nodes):
        _Memory(graph).run()
        graph.eliminate_dead_code()


def writes(node: Node) -> bool:
    """Whether the node calls an operator of ATen that writes into its first argument."""
    return (
        isinstance(node.target, OpOverload)
        and node.target.namespace == "aten"
        and bool(node.target._schema.arguments)
        and (alias := node.target._schema.arguments[0].alias_info) is not None
        and alias.is_write
    )


def viewed(node: Node) -> Node | None:
    """The tensor whose memory the result of a node shares; None where the result has memory of its own."""
    if node.op != "call_function":
        return None
    if not isinstance(node.target, OpOverload):
        several = node.args[0] if node.target is operator.getitem else None  # parts of `chunk` are views, of `topk` not
        return several if isinstance(several, Node) and viewed(several) is not None else None
    if node.target is aten.dropout.default and node.args[2] is False:
        return node.all_input_nodes[0]
    returns = node.target._schema.returns
    aliases = bool(returns) and (returns[0].alias_info is not None or "Tensor(a)" in str(returns[0].type))
    return node.all_input_nodes[0] if aliases and node.all_input_nodes and _shares(node) else None


def _shares(node: Node) -> bool:
    """Whether a result that may share the memory of its input does: `contiguous` and `reshape` copy if they must.

    The operator itself answers, called on the example values, which hold no data.
    """
    values = [each.meta.get("val") for each in node.all_input_nodes]
    if any(value is None for value in values):
        return True
    result = node.target(*map_arg(node.args, _value), **map_arg(node.kwargs, _value))  # type: ignore[operator]
    each = result if isinstance(result, (list, tuple)) else (result,)
    return any(one.untyped_storage()._cdata == values[0].untyped_storage()._cdata for one in each)  # type: ignore[union-attr]


def _value(node: Node) -> Any:
    return node.meta["val"]


class _Memory:
    """Which functional value each original tensor has, at one point of the program after the other."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.now: dict[Node, Node] = {}  # original tensor -> the node that holds its present content
        self.parent: dict[Node, Node] = {}  # view -> its base
        self.clock: dict[Node, int] = {}  # tensor -> the tick at which its content was last updated
        self.written: dict[Node, int] = {}  # owner of memory -> the tick at which it was last written
        self.turned: dict[Node, Node] = {}  # owner of memory -> the call that changed the shape of a tensor in place
        self.done: list[Node] = []  # in-place calls that are replaced
        self.tick = 0  # the number of writes so far

    def run(self) -> None:
        for node in list(self.graph.nodes):
            with self.graph.inserting_before(node):
                if writes(node):
                    self._write(node)
                    continue
                if (base := viewed(node)) is not None:
                    self.parent[node] = base
                self._refresh_arguments(node)
            self.clock[node] = self.tick
        for node in reversed(self.done):
            self.graph.erase_node(node)

    def _owner(self, tensor: Node) -> Node:
        while tensor in self.parent:
            tensor = self.parent[tensor]
        return tensor

    def _refresh_arguments(self, node: Node) -> None:
        for argument in node.all_input_nodes:
            current = self._current(argument)
            if current is not argument:
                node.replace_input_with(argument, current)

    def _current(self, tensor: Node) -> Node:
        """The node with the present content of `tensor`; a view whose base was written since is taken again."""
        owner = self._owner(tensor)
        if self.written.get(owner, -1) > self.clock.get(tensor, -1) and tensor in self.parent:
            present, old = self._current(self.parent[tensor]), tensor.all_input_nodes[0]
            if writes(tensor):  # another name of the tensor that it wrote: that is not written again
                self.now[tensor] = present
            else:
                self.now[tensor] = self.graph.node_copy(tensor, lambda n: present if n is old else n)
            self.clock[tensor] = self.tick
        return self.now.get(tensor, tensor)

    def _write(self, node: Node) -> None:
        target = node.args[0]
        assert isinstance(target, Node)
        owner = self._owner(target)
        if owner.op == "get_attr":
            self._drop_counter(node, owner)
            return
        if owner in self.turned:
            raise CaptureError(
                f"forward writes in place ({node.format_node()}) after {self.turned[owner].format_node()} changed the "
                "shape in place. Use the operator without the underscore there."
            )
        self._refresh_arguments(node)
        value = self._functional(node)
        value.meta = dict(node.meta)
        if torch.Tag.inplace_view in node.target.tags:  # type: ignore[union-attr]  # no memory is written
            if any(self._owner(view) is owner and not writes(view) for view in self.parent):
                self.turned[owner] = node
            self._hold(target, value)
        else:
            self.tick += 1
            self._store(target, value)
            self.written[owner] = self.tick
        self.parent[node] = target  # the operator returns the tensor that it wrote
        self.now[node] = value
        self.clock[node] = self.tick
        self.done.append(node)

    def _hold(self, tensor: Node, value: Node) -> None:
        """Make `value` the content of `tensor` and of all tensors that it is another name of."""
        self.now[tensor] = value
        if writes(tensor):
            self._hold(self.parent[tensor], value)

    def _drop_counter(self, node: Node, owner: Node) -> None:
        """Remove the count of batches that a batch norm writes; any other buffer that is written raises CaptureError.

        `passes.graph.modes` makes a module of the batch norm, and that counts when it trains.
        """
        if not str(owner.target).endswith("num_batches_tracked"):
            raise CaptureError(
                f"forward writes into the buffer {owner.target} ({node.format_node()}): a pruned copy could not "
                "keep it. Update it outside forward."
            )
        node.replace_all_uses_with(owner)
        self.graph.erase_node(node)

    def _functional(self, node: Node) -> Node:
        """The call that computes what the in-place operator would have written."""
        assert isinstance(node.target, OpOverload)
        target, rest = node.args[0], node.args[1:]
        name = operator_name(node)
        if name == "copy_":
            return self._copied(target, rest[0])
        if name == "zero_":
            return self.graph.call_function(aten.zeros_like.default, (target,))
        packet = getattr(aten, name.removesuffix("_"), None)
        forms = [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
        form = next((each for each in forms if _arguments(each) == _arguments(node.target)), None)
        if form is None:
            raise CaptureError(f"no functional form is known for {node.target} ({node.format_node()})")
        return self.graph.call_function(form, node.args, dict(node.kwargs))

    def _copied(self, target: Any, source: Any) -> Node:
        """The content of `target` after `source` was copied into it."""
        value = source
        if target.meta["val"].dtype != source.meta["val"].dtype:
            value = self.graph.call_function(aten.to.dtype, (value, target.meta["val"].dtype))
            value.meta["val"] = source.meta["val"].to(target.meta["val"].dtype)
        if target.meta["val"].shape == source.meta["val"].shape:
            return self.graph.call_function(aten.alias.default, (value,))
        return self.graph.call_function(aten.expand_as.default, (value, target))

    def _store(self, tensor: Node, value: Node) -> None:
        """Make `value` the content of `tensor`, and write it into the base of a view."""
        self.now[tensor] = value
        self.clock[tensor] = self.tick
        base = self.parent.get(tensor)
        while base is not None and not is_tensor(base):  # the list of results of a split
            base = self.parent.get(base)
        if base is None:
            return
        undo = None if writes(tensor) else inverse_of(tensor, base)
        if undo is None and not writes(tensor):
            raise CaptureError(
                f"forward writes in place through {tensor.format_node()}, a view that cannot be undone. "
                "Use the operator without the underscore there."
            )
        whole = value if undo is None else undo(self.graph, self._current(base), value, tensor)
        whole.meta.setdefault("val", base.meta["val"])
        self._store(base, whole)


def _arguments(overload: OpOverload) -> list[tuple[str, str]]:
    """The names and types of an operator's arguments; the name of the first is left out ("self" or "input")."""
    first, *rest = overload._schema.arguments
    return [("", str(first.real_type)), *((argument.name, str(argument.real_type)) for argument in rest)]
