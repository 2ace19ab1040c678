"""The rewriter: from a layout plan to the graph module of the small network.

Every call of the plan is written once, by the rule of its operator, on inputs in the planned layouts. Parameters are
the selected parts of the original ones and keep their names. Where a reader needs another layout than a tensor has, a
recombination is written between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from passes.accounts import Recombination
from passes.assignment.plan import LayoutPlan, SitePlan
from passes.graph.layout import Layout, identity
from passes.graph.modes import restore_graph_modes
from passes.graph.nodes import attribute, free_names, is_projection, is_tensor, place_tensor, reads_elements
from passes.graph.selection import Selection
from passes.rewriting.recombine import Recombiner, Written, positions, transposed_groups, write_transposed
from passes.rewriting.stored_parameters import StoredParameters
from passes.rules.emitter import Emitter

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Rewritten:
    """The small network and its relation to the original one.

    `kept`: for each parameter and buffer of the small network, the selected part of the original tensor.
    `recombinations`: those that were written. `values`: for each original value that the network computes, by name,
    the name of the node that holds it in the layout of the plan.
    """

    module: GraphModule
    kept: Mapping[str, Selection]
    recombinations: tuple[Recombination, ...]
    values: Mapping[str, str]


def rewrite(plan: LayoutPlan) -> Rewritten:
    """The small network that a layout plan describes; it shares no memory with the original."""
    return Rewriter(plan).run()


class Rewriter:
    """Writes the graph of a layout plan, call by call; `passes.rewriting.sketcher` writes it without parameters."""

    def __init__(self, plan: LayoutPlan) -> None:
        self.plan = plan
        self.old = plan.program.module
        self.graph = Graph()
        self.new: dict[Node, Node] = {}
        self.values: dict[str, str] = {}
        self.tensors: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}
        self.constants: dict[tuple[torch.Size, torch.dtype, tuple[int, ...]], str] = {}
        self.device = next((p.device for p in self.old.parameters()), torch.device("cpu"))
        self.kept: dict[str, Selection] = {}
        self.cache: dict[tuple[Node, Node], list[tuple[Layout, Node]]] = defaultdict(list)
        self.names = free_names(self.old, "_recombine")  # of the buffers
        self.recombine = Recombiner(self.graph, self.constant)
        self.recombinations: list[Recombination] = []
        self.given: dict[Node, tuple[Node, Layout]] = {}  # the original value and the layout of each call's result
        self.by_call = {item.site.node: item for item in plan.sites}
        self.parameters = StoredParameters(plan)

    def run(self) -> Rewritten:
        """The small network."""
        self.write()
        module = self._module()
        return Rewritten(module, self.kept, tuple(self.recombinations), self.values)

    def write(self) -> None:
        """Write all calls of the graph."""
        if self.plan.as_it_is:
            return self._copy()
        for node in self.old.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "get_attr" and node in self.plan.layout:
                self.new[node] = self._value(node)
            elif node in self.by_call:
                self._call(self.by_call[node])
            elif node.op == "output":
                self._output(node)

    def _placeholder(self, node: Node) -> None:
        default = {"default_value": node.args[0]} if node.args else {}
        self.new[node] = self.graph.placeholder(str(node.target), **default)

    def _shuffled(self, node: Node) -> Node | None:
        """A channel shuffle, which the canonical form has as a gather, as the transposition that it is."""
        if node.target is not aten.index_select.default:
            return None
        x, axis, index = node.args
        value = self.plan.program.constant(index) if isinstance(index, Node) else None
        groups = None if value is None else transposed_groups(value.cpu())
        if groups is None or not isinstance(x, Node) or not isinstance(axis, int) or axis < 0:
            return None
        return write_transposed(self.graph, self.new[x], axis, groups)

    def _copy(self) -> None:
        """Write each node as it is, with whole parameters."""
        for node in self.old.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node)
            elif node.op == "get_attr" and is_tensor(node):
                whole = Selection.whole(self.plan.program.shape(node))
                self.new[node] = self.attribute(self.parameters.name(node), whole)
            elif node.op == "output":
                self.graph.output(map_arg(node.args[0], self.new.__getitem__))
            else:
                new = self.new[node] = self._shuffled(node) or self.graph.node_copy(node, self.new.__getitem__)
                if is_tensor(node):
                    new.meta = {}
                    self._name(new, node)
                    self.given[new] = (node, Layout.whole(len(self.plan.program.shape(node))))

    # Values

    def take(self, node: Node, want: Layout, reader: str) -> Node:
        """The new node that holds an old value in the layout `want`."""
        have = self.plan.layout[node]
        if node not in self.new:
            return self.zeros(node, want)
        return self._recombined(self.new[node], node, have, want, reader)

    def zeros(self, node: Node, want: Layout) -> Node:
        """A tensor of zeros in place of an original value without live labels, which no call computes."""
        sources = self.plan.program.size_sources(node)
        assert sources is not None
        sizes: list[Any] = []
        for axis, source in enumerate(sources):
            if isinstance(source, tuple):
                sizes.append(self.graph.call_function(aten.sym_size.int, (self.new[source[0]], source[1])))
            else:
                sizes.append(want.size(axis, source))
        value = node.meta["val"]
        return self.graph.call_function(aten.zeros.default, (sizes,), {"dtype": value.dtype, "device": value.device})

    def _recombined(self, new: Node, old: Node, have: Layout, want: Layout, reader: str) -> Node:
        for layout, found in self.cache[old, new]:
            if layout.same(want):
                return found
        facts = self.plan.facts
        known = facts.zero.get(old)
        zero = have.of(known & facts.needed[old]) if known is not None and have.compact == tuple(known.shape) else None
        written = self.recombine(new, have, want, zero)
        if written.kind is not None:
            self.cache[old, new].append((want, written.node))
            self.recombinations.append(self._bill(written, old, have, want, reader))
        return written.node

    def _bill(self, written: Written, old: Node, have: Layout, want: Layout, reader: str) -> Recombination:
        value = old.meta["val"]
        full = self.plan.program.shape(old)
        held, moved = _numel(have.shrunk(full)), _numel(want.shrunk(full))
        read = min(held, moved)
        assert written.kind is not None
        bytes_moved = 0 if written.kind == "slice" or old.op == "get_attr" else (read + moved) * value.element_size()
        kind = "folded" if old.op == "get_attr" else written.kind
        return Recombination(old.name, reader, kind, max(have.labels.shape), max(want.labels.shape), bytes_moved)

    def scalar(self, node: Node) -> Node:
        """The new node of an old size or number, written when it is first read."""
        if node not in self.new:
            whole = reads_elements(node)
            self.new[node] = self.graph.node_copy(
                node, lambda n: self._source(n, whole) if is_tensor(n) else self.scalar(n)
            )
        return self.new[node]

    def _source(self, node: Node, whole: bool) -> Node:
        return self.take(node, Layout.whole(len(self.plan.program.shape(node))), node.name) if whole else self.new[node]

    def _value(self, node: Node) -> Node:
        """A parameter or buffer that a call reads as a value: the part that the planned layout keeps."""
        layout = self.plan.layout[node]
        shape = self.plan.program.shape(node)
        kept = tuple(layout.kept(a) if layout.compact[a] != 1 else None for a in range(len(shape)))
        if layout.is_product():
            selection = Selection(shape, kept).simplified()
        else:
            place, _, _ = positions(Layout(shape, identity(shape)), layout)
            selection = Selection(shape, (None,) * len(shape), place)
        return self.attribute(self.parameters.name(node), selection)

    def attribute(self, name: str, selection: Selection) -> Node:
        """The node of a stored part of a parameter or buffer."""
        if name not in self.tensors:
            original = attribute(self.old, name)
            data = selection.apply(original.detach())
            self.tensors[name] = (
                nn.Parameter(data, original.requires_grad) if isinstance(original, nn.Parameter) else data
            )
            self.kept[name] = selection
        return self.graph.get_attr(name)

    def constant(self, tensor: Tensor) -> Node:
        """The node of a constant of the rewrite: an index or a mask."""
        key = (tensor.shape, tensor.dtype, tuple(tensor.reshape(-1).tolist()))
        if key in self.constants:
            return self.graph.get_attr(self.constants[key])
        name = self.constants[key] = next(self.names)
        self.buffers[name] = tensor.contiguous().to(self.device)
        return self.graph.get_attr(name)

    # Calls

    def _count_folded(self, item: SitePlan) -> None:
        """Record a recombination without a call: the weight of a contraction keeps only the columns that fit."""
        if not item.followed or item.site.rule.weight is None or not item.site.parameters:
            return
        node, want = item.site.inputs[0], item.ins[0]
        if want is not None and want.axes and not want.is_whole:
            channels = max(want.compact)
            self.recombinations.append(
                Recombination(node.name, item.site.node.name, "folded", max(want.labels.shape), channels, 0)
            )

    def _call(self, item: SitePlan) -> None:
        site = item.site
        self._count_folded(item)
        inputs = [None if want is None else self._read(item, index, want) for index, want in enumerate(item.ins)]
        to = self._emitter(item, inputs)
        nodes = site.rule.emit(site, to, item.read_layouts, item.outs) if item.followed else [to.copy()]
        if (
            len(nodes) == 1
            and len(site.outputs) > 1
            or not item.followed
            and isinstance(site.node.meta["val"], (list, tuple))
        ):
            nodes = to.projected(nodes[0])
        for out, node, gives, wanted in zip(site.outputs, nodes, item.gives, item.outs, strict=True):
            if out is None or out not in self.plan.layout:
                continue
            self._name(node, out)
            self.given[node] = (out, gives)
            self.new[out] = self._recombined(node, out, gives, wanted, out.name)

    def _emitter(self, item: SitePlan, inputs: list[Node | None]) -> Emitter:
        """The call with its new inputs, parameters and sizes filled in."""
        site = item.site
        sliced, given = dict(zip(site.parameters, self._sliced(item), strict=True)), iter(inputs)

        def filled(node: Node) -> Any:
            if node in sliced:
                return sliced[node]
            return next(given) if is_tensor(node) else self.scalar(node)

        args, kwargs = map_arg(site.node.args, filled), map_arg(site.node.kwargs, filled)
        target, results = site.node.target, len(site.outputs)
        return Emitter(self.graph, target, results, inputs, args, kwargs, item.followed, self.zeros)

    def _read(self, item: SitePlan, index: int, want: Layout) -> Node:
        """An input in the layout that the call needs; the rule's stand-in replaces elements that it does not need."""
        site = item.site
        found = self.take(site.inputs[index], want, site.node.name)
        if not (number := site.rule.stand_in(site, index)):
            return found
        asked = item.facts.asked[index]
        free = ~want.refined(tuple(asked.shape)).of(asked)
        if not bool(free.any()):
            return found
        return self.graph.call_function(aten.masked_fill.Scalar, (found, self.constant(free), number))

    @staticmethod
    def _name(node: Node, old: Node) -> None:
        if node.op == "call_function" and "stack_trace" not in node.meta:
            node.meta.update({k: old.meta[k] for k in ("stack_trace", "nn_module_stack") if k in old.meta})

    def _sliced(self, item: SitePlan) -> list[Node]:
        nodes = []
        for node, wanted in zip(item.site.parameters, self.parameters.selections[item.site], strict=True):
            name = self.parameters.name(node)
            stored = self.parameters.stored[name]
            found = self.attribute(name, stored)
            nodes.append(self._subselected(found, stored, wanted))
        return nodes

    def _subselected(self, node: Node, stored: Selection, wanted: Selection) -> Node:
        """The part of a shared parameter that one reader needs: the union of all readers' parts is stored."""
        if stored.same(wanted):
            return node
        if wanted.flat is None:
            for axis, (held, kept) in enumerate(zip(stored.axes, wanted.axes, strict=True)):
                size = stored.shape[axis]
                have = torch.arange(size) if held is None else held
                want = torch.arange(size) if kept is None else kept
                if not torch.equal(have, want):
                    where = torch.full((size,), -1)
                    where[have] = torch.arange(len(have))
                    node = self.graph.call_function(aten.index_select.default, (node, axis, self.constant(where[want])))
            return node
        flat = self.graph.call_function(aten.reshape.default, (node, [-1]))
        picked = self.graph.call_function(aten.index_select.default, (flat, 0, self.constant(wanted.flat.reshape(-1))))
        return self.graph.call_function(aten.reshape.default, (picked, list(wanted.flat.shape)))

    # Output

    def _output(self, node: Node) -> None:
        def put(old: Node) -> Node:
            if not is_tensor(old):
                return self.scalar(old) if not is_projection(old) else self.new[old]
            return self.take(old, Layout.whole(len(self.plan.program.shape(old))), "output")

        self.graph.output(map_arg(node.args[0], put))

    def _module(self) -> GraphModule:
        self.graph._codegen = self.old.graph._codegen
        root = nn.Module()
        read = {str(node.target) for node in self.graph.find_nodes(op="get_attr") if node.users}
        for name, tensor in {**self.tensors, **self.buffers}.items():
            if name in read:
                place_tensor(root, name, tensor)
        self.kept = {name: selection for name, selection in self.kept.items() if name in read}
        held: dict[Node, str] = {}  # of the original values that one node holds, the first
        for old, new in self.new.items():
            if old in self.plan.layout:
                held.setdefault(new, old.name)
        ranks = {node.name: layout.rank for node, (_, layout) in self.given.items()}
        replaced = restore_graph_modes(root, self.graph, ranks)
        present = set(self.graph.nodes)
        now = {name: replaced.get(new, new) for new, name in held.items()}
        self.values = {name: node.name for name, node in now.items() if node in present}
        module = GraphModule(root, self.graph, type(self.old).__name__)
        self._restore_ties(module)
        module.training = self.old.training
        return module

    def _restore_ties(self, module: GraphModule) -> None:
        """Tie parameters as the original does: every name of a stored parameter names it here too."""
        stored = {id(attribute(self.old, name)): name for name in self.kept}
        for twin, tensor in self.old.named_parameters(remove_duplicate=False):
            name = stored.get(id(tensor))
            if name is not None and name != twin:
                place_tensor(module, twin, self.tensors[name])
                self.kept[twin] = self.kept[name]


def _numel(shape: Sequence[int]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
