"""The kernels that TensorRT would run for a graph: operators fused as its builder fuses them, and the copies left over.

The fusions are those that NVIDIA's documentation of version 8 lists: a contraction takes a batch norm, an addition and
a ReLU or a clip with it; other point-wise operators run as kernels of their own, chains of them as one. SiLU is thus a
kernel beside its convolution. A concatenation costs nothing where its operands can be written in place; slices, pads,
gathers and transposes are copies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from l1rr_fx.latency.geometry import Geometry, geometry, shape
from l1rr_fx.latency.recurrent import is_recurrent, launches, layer_name
from passes.canonical.normalise import normalise_graph
from passes.graph.labels import owner
from passes.graph.modes import DROPOUTS
from passes.graph.nodes import flat_inputs, hint, is_projection, is_tensor, operator_name
from passes.rules import UNKNOWN, rule_for
from passes.rules.base import Rule

Kind = Literal["convolution", "depthwise", "matrix", "pointwise", "copy", "other", "unknown"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""An unknown kernel runs an operator without a rule: one launch, of which only the elements are known."""

FUSED_ACTIVATIONS = frozenset({"relu", "relu6", "hardtanh", "clamp"})
"""What a contraction's kernel applies to its result without another pass over it."""


@dataclass(frozen=True)
class Kernel:
    """One launch. It reads and writes `elements` of activations and runs the operators `nodes`.

    A contraction is named for the module whose weight it reads, any other kernel for its first node. `geometry` is None
    where nothing is multiplied.
    """

    name: str
    kind: Kind
    elements: int
    geometry: Geometry | None = None
    nodes: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return 0 if self.geometry is None else self.geometry.macs

    @property
    def weights(self) -> int:
        """Elements of parameters read."""
        return 0 if self.geometry is None else self.geometry.weights


def kernels(module: GraphModule) -> tuple[Kernel, ...]:
    """The kernels of a captured graph (see `passes.capture`) in the order in which they run.

    The graph is brought into canonical form in place; its module is not to be run afterwards.
    """
    normalise_graph(module.graph)
    return canonical_kernels(module.graph)


def canonical_kernels(graph: Graph) -> tuple[Kernel, ...]:
    """The kernels of a graph in canonical form, in the order in which they run."""
    fuser = _Fuser()
    for node in graph.nodes:
        fuser.add(node)
    return tuple(group.kernel() for group in fuser.groups)


@dataclass(eq=False)
class _Group:
    """Nodes that become one kernel. A contraction is `open` to a batch norm, an addition and an activation."""

    kind: Kind
    nodes: list[Node]
    reads: list[Node]
    geometry: Geometry | None = None
    open: bool = False
    added: bool = False

    def kernel(self) -> Kernel:
        read = sum(_size(node) for node in dict.fromkeys(self.reads) if node not in self.nodes)
        written = _size(self.nodes[-1])
        within = self.geometry.within if self.geometry is not None else 0
        names = tuple(node.name for node in self.nodes)
        name = (owner(self.nodes[0]) if self.geometry is not None else "") or names[0]
        return Kernel(name, self.kind, self._moved(read, written) + within, self.geometry, names)

    def _moved(self, read: int, written: int) -> int:
        """A copy reads no more than it writes, and of a concatenation's operand it writes no more than it reads."""
        return 2 * min(read, written) if self.kind == "copy" else read + written


@dataclass(frozen=True)
class _Launched:
    """A kernel that nothing is fused with."""

    made: Kernel

    def kernel(self) -> Kernel:
        return self.made


class _Fuser:
    """Puts the nodes of a graph, given in order, into groups."""

    def __init__(self) -> None:
        self.groups: list[_Group | _Launched] = []
        self._of: dict[Node, _Group] = {}  # the group that makes a value
        self._value: dict[Node, Node | None] = {}  # the value that a node shows, through views; None: a constant

    def add(self, node: Node) -> None:
        """Fuse the node into a group, or give it one of its own, or none if it costs nothing."""
        if node.op != "call_function":
            self._value[node] = node if node.op == "placeholder" else None
            return
        reads = [value for value in (self._value.get(n) for n in _inputs(node)) if value is not None]
        name = operator_name(node)
        if not reads or rule_for(node).makes_constant:
            self._value[node] = None
        elif _is_view(node) or name in ("split_with_sizes", "sym_size") or self._is_other_result(node):
            self._value[node] = reads[0]
        elif name in ("constant_pad_nd", "pad") and _is_border(node) and all(geometry(user) for user in node.users):
            self._value[node] = reads[0]  # the convolutions that read it pad by themselves
        else:
            self._value[node] = node
            self._place(node, name, reads)

    @staticmethod
    def _is_other_result(node: Node) -> bool:
        """Whether the node takes a result out of a call that is no split: a split's parts are copies."""
        return is_projection(node) and operator_name(node.all_input_nodes[0]) != "split_with_sizes"

    def _place(self, node: Node, name: str, reads: list[Node]) -> None:
        rule = rule_for(node)
        if is_recurrent(node):
            self._steps(node)
        elif (found := geometry(node)) is not None:
            self._start(node, found.kind, reads, found)
        elif name == "cat":
            self._concatenate(node, reads)
        elif host := self._host(node, name, rule, reads):
            self._join(host, node, reads)
            host.added |= len(reads) == 2
            host.open = name not in FUSED_ACTIVATIONS
        elif rule.is_pointwise or rule.is_affine:
            self._pointwise(node, reads)
        elif rule is UNKNOWN and not is_projection(node):
            self._start(node, "unknown", reads)
        else:
            self._start(node, "copy" if rule.is_movement or is_projection(node) else "other", reads)

    def _steps(self, node: Node) -> None:
        for launch in launches(node):
            kind: Kind = "pointwise" if launch.geometry is None else launch.geometry.kind
            self.groups.append(
                _Launched(Kernel(layer_name(node), kind, launch.elements, launch.geometry, (node.name,)))
            )

    def _start(self, node: Node, kind: Kind, reads: list[Node], found: Geometry | None = None) -> None:
        group = _Group(kind, [node], reads, found, open=found is not None)
        self.groups.append(group)
        self._of[node] = group

    def _join(self, group: _Group, node: Node, reads: list[Node]) -> None:
        group.nodes.append(node)
        group.reads += reads
        self._of[node] = group

    def _host(self, node: Node, name: str, rule: Rule, reads: list[Node]) -> _Group | None:
        """The open contraction that takes the node with it; of two that are added, the one that runs last."""
        mine = [self._of[value] for value in reads if value in self._of and self._only_reader(value, node)]
        hosts = [group for group in mine if group.open and group.geometry is not None]
        if not hosts:
            return None
        if len(reads) == 1:
            fits = name in FUSED_ACTIVATIONS or name in ("add", "mul", "sub", "div") or rule.is_affine
            return hosts[0] if fits else None
        if name != "add" or len(reads) != 2 or _size(reads[0]) != _size(reads[1]):
            return None
        last = max(hosts, key=self.groups.index)
        return None if last.added else last

    def _pointwise(self, node: Node, reads: list[Node]) -> None:
        for value in reads:
            group = self._of.get(value)
            if group is not None and group.kind == "pointwise" and self._only_reader(value, node):
                self._join(group, node, reads)
                return
        self._start(node, "pointwise", reads)

    def _concatenate(self, node: Node, reads: list[Node]) -> None:
        """A copy for each operand that cannot be written in place: it has another reader, or comes from outside."""
        for value in dict.fromkeys(reads):
            if value not in self._of or reads.count(value) > 1 or not self._only_reader(value, node):
                self.groups += [_Group("copy", [node], [value])] * reads.count(value)

    @staticmethod
    def _only_reader(value: Node, reader: Node) -> bool:
        """Whether the value has no other reader, directly or through views."""
        waiting, seen = [value], {reader}
        while waiting:
            for user in waiting.pop().users:
                if user in seen:
                    continue
                if not _is_view(user):
                    return False
                seen.add(user)
                waiting.append(user)
        return True


def _inputs(node: Node) -> tuple[Node, ...]:
    return (node.all_input_nodes[0],) if is_projection(node) else flat_inputs(node)


def _is_view(node: Node) -> bool:
    """Whether the call moves no data in a network at inference (a broadcast is read without being written)."""
    return rule_for(node).moves_nothing or node.target in DROPOUTS


def _is_border(node: Node) -> bool:
    """Whether a pad puts zeros around images and leaves channels and batch alone."""
    widths, *rest = node.args[1:]
    assert isinstance(widths, (list, tuple))
    options = (*rest, *node.kwargs.values())
    return len(widths) <= 2 * (len(shape(node)) - 2) and all(option in ("constant", None, 0) for option in options)


def _size(node: Node) -> int:
    """The elements of a result, or of all of several; a number has none."""
    if is_tensor(node):
        return math.prod(shape(node))
    results = node.meta["val"] if isinstance(node.meta["val"], (list, tuple)) else ()
    return sum(math.prod(map(hint, each.shape)) for each in results if isinstance(each, Tensor))
