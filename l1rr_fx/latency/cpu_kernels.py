"""The kernels that ONNX Runtime runs for a graph on an x86 CPU, after its fusions, and the work of each.

ONNX Runtime keeps tensors between convolutions in blocks of channels, and reorders them where another operator reads
them. A convolution is computed in blocks if its channel counts allow it (`Convolution.is_blocked`); otherwise it is
unfolded into a matrix product, which takes longer. A convolution takes a batch norm, one addition and an activation
with it. All of this was read off profiles of ONNX Runtime 1.32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Graph, Node

from l1rr_fx.latency.geometry import Geometry, geometry, shape
from l1rr_fx.latency.recurrent import is_recurrent, launches
from passes.graph.modes import DROPOUTS
from passes.graph.nodes import flat_inputs, is_projection, is_tensor, operator_name
from passes.rules import rule_for

KINDS = (
    "blocked", "blocked 1x1", "from planes", "blocked depthwise", "planes", "planes 1x1", "grouped planes",
    "matrix", "reorder", "blocked pool", "pool", "add", "function", "rows", "softmax along columns",
    "concatenation", "slice", "pad", "gather", "transpose", "resize",
)  # fmt: skip
"""A "function" is point-wise and not of `CHEAP`; "rows" are normalised, sorted or summed along an axis."""
BLOCKED_KINDS = frozenset(("blocked", "blocked 1x1", "from planes", "blocked depthwise", "reorder", "blocked pool"))
"""They run only where ONNX Runtime has blocks: not on every CPU."""
ALIGNMENT = 4
"""A convolution in blocks reads a number of channels that is a multiple of this, or less than one block."""
SETS = 4
"""So many blocks of output channels are computed at once, so that the input is read once for all of them."""
CACHED = 2**18
"""Elements of activations up to which a kernel finds what another one has just computed in the second-level cache."""

FUSED = frozenset(("relu", "relu6", "hardtanh", "clamp", "leaky_relu", "sigmoid", "tanh", "hardsigmoid"))
"""What a convolution applies to its result; one in blocks also `HARDSWISH`, which is two kernels elsewhere."""
HARDSWISH = "hardswish"
CHEAP = frozenset(
    ("relu", "relu6", "hardtanh", "clamp", "leaky_relu", "hardsigmoid", HARDSWISH, "add", "sub", "mul", "neg", "abs",
     "maximum", "minimum", "prelu", "rsub")
)  # fmt: skip
IN_BLOCKS = frozenset(("relu", "relu6", "hardtanh", "clamp", "leaky_relu", "sigmoid", "tanh", "silu"))
"""Functions of one tensor that are computed in blocks where their operand is in blocks."""
POOLS = frozenset(("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d_with_indices"))
COPIES: Mapping[str, str] = {
    **dict.fromkeys(("cat", "stack"), "concatenation"),
    **dict.fromkeys(("slice", "split_with_sizes", "split", "chunk", "narrow", "select"), "slice"),
    **dict.fromkeys(("constant_pad_nd", "pad", "reflection_pad2d", "replication_pad2d"), "pad"),
    **dict.fromkeys(("index_select", "index", "gather"), "gather"),
    **dict.fromkeys(("upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d"), "resize"),
}


@dataclass(frozen=True)
class Work:
    """What a kernel does: multiply-accumulates, elements stored and read, elements of parameters, inner calls."""

    macs: float = 0.0
    stored: float = 0.0
    read: float = 0.0
    weights: float = 0.0
    calls: float = 0.0

    @property
    def amounts(self) -> tuple[float, ...]:
        """The variables of the model of time: a constant, the fields, and what of the elements is in no cache."""
        beyond = max(0.0, self.stored + self.read - CACHED)
        return (1.0, self.macs, self.stored, self.read, self.weights, self.calls, beyond)


@dataclass(frozen=True)
class CpuKernel:
    """One node of ONNX Runtime's graph. `kind` is one of `KINDS`; it is named for its first node."""

    name: str
    kind: str
    work: Work


@dataclass(frozen=True)
class Convolution:
    """A convolution of images: channels, groups, weights of one filter and channel, and elements of an image.

    `block` is the number of channels in a block of memory.
    """

    inputs: int
    outputs: int
    groups: int
    window: int
    columns: int
    block: int

    @property
    def is_depthwise(self) -> bool:
        return self.groups > 1 and self.inputs == self.outputs == self.groups

    @property
    def is_blocked(self) -> bool:
        """Whether it is computed in blocks of channels."""
        if self.block == 1:
            return False
        if self.is_depthwise:
            return self.outputs % ALIGNMENT == 0
        if self.groups > 1:
            return all(channels // self.groups % self.block == 0 for channels in (self.inputs, self.outputs))
        return self.inputs < self.block or self.inputs % ALIGNMENT == 0

    @property
    def reads_planes(self) -> bool:
        """Whether it reads an image channel by channel, although it writes blocks."""
        return self.groups == 1 and self.inputs < self.block and self.is_blocked

    @property
    def kind(self) -> str:
        if self.is_blocked:
            if self.is_depthwise:
                return "blocked depthwise"
            return "from planes" if self.reads_planes else "blocked 1x1" if self.window == 1 else "blocked"
        return "grouped planes" if self.groups > 1 else "planes 1x1" if self.window == 1 else "planes"

    @property
    def work(self) -> Work:
        """Channels are rounded up to whole blocks."""
        pixels, groups = self.columns, self.groups
        inputs, outputs = self.inputs // groups, self.outputs // groups
        if self.is_depthwise and self.is_blocked:
            channels = _up(self.outputs, self.block)
            return Work(channels * self.window * pixels, channels * pixels, channels * pixels, channels * self.window)
        if self.is_blocked:
            outputs, inputs = _up(outputs, self.block), inputs if self.reads_planes else _up(inputs, self.block)
        depth = inputs * self.window
        passes = -(-outputs // (SETS * self.block)) if self.is_blocked else 1
        return Work(
            groups * outputs * depth * pixels,
            groups * outputs * pixels,
            groups * depth * pixels * passes,
            groups * outputs * depth,
            groups if groups > 1 else 0,
        )


def cpu_kernels(graph: Graph, block: int) -> tuple[CpuKernel, ...]:
    """The kernels of a graph in canonical form, in the order in which they run; `block` as in `Convolution`."""
    lister = _Lister(block)
    for node in graph.nodes:
        lister.add(node)
    return tuple(CpuKernel(name, kind, work) for name, kind, work in lister.found)


def pool_work(stored: float, read: float, window: float) -> Work:
    """The work of a pooling whose windows have so many elements."""
    return Work(stored * window, stored, read)


@dataclass(eq=False)
class _Open:
    """What the kernel of a convolution may still take with it: an addition, an activation."""

    add: bool = True
    activation: bool = True


class _Lister:
    """Goes through a graph in order, and keeps which tensors are in blocks and which are in planes."""

    def __init__(self, block: int) -> None:
        self.block = block
        self.found: list[tuple[str, str, Work]] = []
        self.value: dict[Node, Node | None] = {}  # what a node shows, through views; None: a constant
        self.made: set[Node] = set()  # values that were computed in blocks
        self.blocked: set[Node] = set()  # values that are there in blocks, reordered ones too
        self.planes: set[Node] = set()
        self.open: dict[Node, _Open] = {}

    def add(self, node: Node) -> None:
        if node.op != "call_function":
            self.value[node] = node if node.op == "placeholder" else None
            self.planes.add(node)
            return
        inputs = (node.all_input_nodes[0],) if is_projection(node) else flat_inputs(node)
        reads = [value for value in map(self.value.get, inputs) if value is not None]
        if not reads or rule_for(node).makes_constant:
            self.value[node] = None
        elif is_projection(node):
            self.value[node] = node
            self.planes.add(node)
        elif node.target in DROPOUTS or operator_name(node) in ("contiguous", "clone", "sym_size"):
            self.value[node] = reads[0]
        elif rule_for(node).moves_nothing:
            self.value[node] = self._in_planes(reads[0])
        else:
            self.value[node] = node
            self._place(node, operator_name(node), reads)

    def _place(self, node: Node, name: str, reads: list[Node]) -> None:
        found, rule = geometry(node), rule_for(node)
        if is_recurrent(node):
            self._step(node, reads)
        elif found is not None and name == "conv2d":
            self._convolve(node, found, reads)
        elif found is not None:
            self._multiply(node, name, found, reads)
        elif self._fuses(node, name, reads):
            return
        elif _pools(node, name, reads):
            self._pool(node, reads)
        elif name in COPIES or rule.is_movement:
            self._copy(node, name, reads)
        elif rule.is_pointwise or rule.is_affine:
            self._pointwise(node, name, reads)
        elif name in ("softmax", "log_softmax") and node.args[1] not in (-1, len(shape(node)) - 1):
            self._emit(node, "softmax along columns", Work(stored=_size([node])), reads)
        else:
            self._emit(node, "rows", Work(stored=_size([node]), read=_size(reads)), reads)

    def _emit(self, node: Node, kind: str, work: Work, reads: Iterable[Node], *, blocked: bool = False) -> None:
        for value in reads:
            (self._in_blocks if blocked else self._in_planes)(value)
        self.found.append((node.name, kind, work))
        self._have(node, blocked)

    def _have(self, node: Node, blocked: bool) -> None:
        """Keep how a value is computed."""
        if blocked:
            self.made.add(node)
        (self.blocked if blocked else self.planes).add(node)

    def _convolve(self, node: Node, found: Geometry, reads: list[Node]) -> None:
        inputs, outputs = shape(node.args[0])[1], shape(node)[1]
        window = found.depth * found.groups // inputs
        call = Convolution(inputs, outputs, found.groups, window, found.columns, self.block)
        for value in reads[:1]:
            (self._in_planes if call.reads_planes or not call.is_blocked else self._in_blocks)(value)
        self.found.append((node.name, call.kind, call.work))
        self._have(node, call.is_blocked)
        self.open[node] = _Open()

    def _multiply(self, node: Node, name: str, found: Geometry, reads: list[Node]) -> None:
        calls = found.groups if found.groups > 1 else 0
        read = found.depth * found.columns * found.groups
        work = Work(found.macs, found.rows * found.columns * found.groups, read, found.weights, calls)
        kind = "matrix" if not name.startswith("conv") else "grouped planes" if calls else "planes"
        self._emit(node, kind, work, reads)
        if found.within:
            self._emit(node, "rows", Work(stored=found.within / 4, read=found.within / 4), ())

    def _step(self, node: Node, reads: list[Node]) -> None:
        """A recurrent layer is one kernel, whose products are taken for kernels of their own."""
        for launch in launches(node):
            if (found := launch.geometry) is not None:
                work = Work(found.macs, found.rows * found.columns, found.depth * found.columns, found.weights)
                self._emit(node, "matrix", work, reads)

    def _fuses(self, node: Node, name: str, reads: list[Node]) -> bool:
        """Whether a convolution before takes the call with it. Its value is then the convolution's."""
        hosts = [value for value in reads if value in self.open and _only_reader(value, node)]
        if not hosts:
            return False
        host = hosts[-1]
        state, blocked = self.open[host], host in self.made
        if len(reads) == 2 and name == "add" and shape(reads[0]) == shape(reads[1]) and state.add and state.activation:
            other = reads[0] if reads[1] is host else reads[1]
            if blocked and other not in self.made:
                return False
            if not blocked:
                self._in_planes(other)
            self.open[node] = _Open(add=False)
        elif len(reads) == 1 and rule_for(node).is_affine and state.activation and state.add:
            self.open[node] = state
        elif len(reads) == 1 and state.activation and (name in FUSED or (name == HARDSWISH and blocked)):
            self.open[node] = _Open(add=False, activation=False)
        else:
            return False
        self._have(node, blocked)
        return True

    def _pointwise(self, node: Node, name: str, reads: list[Node]) -> None:
        alike = all(value in self.made and shape(value) == shape(node) for value in reads)
        if alike and name == "batch_norm":
            self._normalise(node, reads[0])
            return
        blocked = alike and (name in IN_BLOCKS or (name == "add" and len(reads) == 2))
        kind = "add" if name in CHEAP or rule_for(node).is_affine else "function"
        for _ in range(2 if name == HARDSWISH else 1):
            self._emit(node, kind, Work(stored=_size([node]), read=_size(reads)), reads, blocked=blocked)

    def _normalise(self, node: Node, value: Node) -> None:
        """A batch norm in blocks is a depthwise convolution of single elements."""
        channels, columns = shape(node)[1], math.prod(shape(node)) // shape(node)[1]
        call = Convolution(channels, channels, channels, 1, columns, self.block)
        self._emit(node, call.kind, call.work, [value], blocked=True)
        self.open[node] = _Open(add=False)

    def _pool(self, node: Node, reads: list[Node]) -> None:
        pixels, given = math.prod(shape(node)[2:]), math.prod(shape(reads[0])[2:])
        blocked = reads[0] in self.made and shape(node)[1] % self.block == 0
        window = _window(node) or max(1, given // pixels)
        work = pool_work(_size([node]), _size(reads), window)
        self._emit(node, "blocked pool" if blocked else "pool", work, reads[:1], blocked=blocked)

    def _copy(self, node: Node, name: str, reads: list[Node]) -> None:
        kind = COPIES.get(name, "transpose")
        whole = all(value in self.made and shape(value)[1] % self.block == 0 for value in reads)
        blocked = whole and (kind == "resize" or (kind == "concatenation" and node.args[1:] == (1,)))
        written = _size([node]) if is_tensor(node) else _size(reads)
        self._emit(node, kind, Work(stored=written), reads, blocked=blocked)

    def _in_planes(self, value: Node) -> Node:
        if value not in self.planes:
            self.planes.add(value)
            self.found.append((f"{value.name} to planes", "reorder", Work(stored=_size([value]))))
        return value

    def _in_blocks(self, value: Node) -> Node:
        if value not in self.blocked:
            self.blocked.add(value)
            self.found.append((f"{value.name} to blocks", "reorder", Work(stored=_size([value]))))
        return value


def _pools(node: Node, name: str, reads: Sequence[Node]) -> bool:
    """Whether a call pools images; a mean over whole images does, too."""
    if not is_tensor(node) or len(shape(reads[0])) != 4:
        return False
    if name != "mean":
        return name in POOLS
    axes = node.args[1] if len(node.args) > 1 else None
    return isinstance(axes, (list, tuple)) and {int(str(axis)) % 4 for axis in axes} == {2, 3}


def _window(node: Node) -> int:
    """The elements of a pooling's window, if it is given."""
    given = node.args[1] if len(node.args) > 1 else None
    if not operator_name(node).startswith(("max_pool", "avg_pool")) or not isinstance(given, (list, tuple)):
        return 0
    return math.prod(int(str(each)) for each in given) ** (2 if len(given) == 1 else 1)


def _only_reader(value: Node, reader: Node) -> bool:
    return all(user is reader for user in value.users)


def _size(values: Sequence[Node]) -> float:
    return float(sum(math.prod(shape(value)) for value in values if is_tensor(value)))


def _up(count: int, block: int) -> int:
    return -(-count // block) * block
