"""The cost of a network by the widths of its families, without the compiler: thousands of questions a second.

Where the branches of every sum have the same channels the small network has the kernels of the dense one, with fewer
rows, a smaller depth and fewer elements. All three are sums over the families' widths, so that time, MACs and weights
of many sets of widths are a few products of matrices. What has been found is confirmed by the compiler's own plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from l1rr_fx.latency import model
from l1rr_fx.latency.kernels import Kernel, canonical_kernels
from l1rr_fx.latency.model import Seconds, Work
from l1rr_fx.machines.jetson_tx2 import JetsonTX2
from l1rr_fx.method.planning.blocks import Block
from l1rr_fx.method.planning.families import Cells, Family
from passes.graph.nodes import is_tensor


@dataclass(frozen=True, eq=False)
class Shapes:
    """Kernels as affine functions of the families' widths: rows, depth and elements, float64, each of shape
    (kernels, 1 + units); the first column is what no family changes. Units are the families and, behind them, blocks,
    whose width is 1 or 0: `gone`, `idle` and `only`, bool, (kernels, units), say which kernels do not run without a
    block, which no longer multiply, and which run only then. The rest has shape (kernels,)."""

    kernels: tuple[Kernel, ...]
    rows: Tensor
    depth: Tensor
    elements: Tensor
    columns: Tensor
    winograd: Tensor
    depthwise: Tensor
    weighted: Tensor
    gone: Tensor
    idle: Tensor
    only: Tensor

    def runs(self, widths: Tensor) -> Tensor:
        """Which kernels run at `widths`, bool, shape (sets, kernels)."""
        return ~_any_gone(widths, self.gone) & (_any_gone(widths, self.only) | ~self.only.any(1))

    def work(self, widths: Tensor) -> tuple[Work, Tensor, Tensor]:
        """The work, the MACs and the weights of the kernels at `widths`, shape (sets, units); each result has shape
        (sets, kernels)."""
        full = torch.cat([torch.ones(len(widths), 1, dtype=torch.float64), widths], 1)
        rows, depth, elements = ((full @ each.T).round() for each in (self.rows, self.depth, self.elements))
        rows, tile = rows * ~_any_gone(widths, self.gone | self.idle), model.ROW_TILE
        padded = (rows / tile).ceil() * tile * self.columns
        weights = rows * depth * self.weighted
        none = torch.zeros_like(rows)
        work = Work(
            torch.where(self.depthwise > 0, none, padded),
            torch.where(self.depthwise > 0, none, depth),
            self.winograd.expand_as(rows),
            torch.where(self.depthwise > 0, elements, none),
            elements + weights,
        )
        return work, rows * depth * self.columns, weights


def _any_gone(widths: Tensor, units: Tensor) -> Tensor:
    """Whether any of the units of each kernel has no width: bool, shape (sets, kernels), of (kernels, units)."""
    return (widths == 0).double() @ units.T.double() > 0


@dataclass(frozen=True, eq=False)
class Costs:
    """What widths cost: predicted seconds, MACs and weights, each a tensor of shape (sets,)."""

    seconds: Tensor
    macs: Tensor
    params: Tensor

    @property
    def named(self) -> dict[str, Tensor]:
        """The costs by the names of a budget."""
        return {"latency": self.seconds, "macs": self.macs, "params": self.params}

    def shares(self, dense: Costs) -> dict[str, Tensor]:
        """The costs as shares of those of the dense network, by the names of a budget."""
        return {name: cost / dense.named[name] for name, cost in self.named.items()}


def kernel_seconds(work: Work, target: JetsonTX2) -> Seconds:
    """The predicted parts of the time of each kernel."""
    clock = target.clock or target.device.clock
    return model.seconds(work, target.device, target.precision, clock, target.coefficients.logarithms())


def costs(shapes: Shapes, widths: Tensor, target: JetsonTX2) -> Costs:
    """The cost of the network at each of several sets of widths, shape (sets, units)."""
    work, macs, weights = shapes.work(widths)
    return Costs((kernel_seconds(work, target).total * shapes.runs(widths)).sum(1), macs.sum(1), weights.sum(1))


def shapes(cells: Cells, families: Sequence[Family], blocks: Sequence[Block] = ()) -> Shapes:
    """The kernels of the dense network as functions of the widths of the families and of the blocks."""
    return _Shaper(cells, families, blocks).run()


class _Shaper:
    def __init__(self, cells: Cells, families: Sequence[Family], blocks: Sequence[Block]) -> None:
        self.cells, self.families, self.blocks = cells, families, blocks
        graph = cells.program.module.graph
        self.nodes = {node.name: node for node in graph.nodes}
        size = 1 + max((int(each.max()) for each in cells.of.values() if each.numel()), default=0)
        size = max(size, 1 + max(int(each.max()) for each in cells.classes.values()))
        self.family = torch.zeros(size, dtype=torch.int64)  # 0: what no family changes
        for index, family in enumerate(families, start=1):
            first = family.sites[0].name
            self.family[cells.classes[first][family.places[first][:, 0]]] = index
        self.width = torch.tensor([1.0, *(family.channels for family in families)], dtype=torch.float64)

    def run(self) -> Shapes:
        graph = self.cells.program.module.graph
        found = (*canonical_kernels(graph), *(_copy(block) for block in self.blocks if block.is_copied))
        rows, depth, elements = [], [], []
        for kernel in found:
            nodes = [self.nodes[name] for name in kernel.nodes]
            first, size = nodes[0], kernel.geometry
            reads = [n for node in nodes for n in node.all_input_nodes if n not in nodes and n.op != "get_attr"]
            within = size.within if size is not None else 0
            if kernel.kind == "copy":
                moved = self._share([nodes[-1]])
            else:
                moved = self._share([*dict.fromkeys(reads), nodes[-1]])
            moved = moved * (kernel.elements - within)
            moved[0] += within
            elements.append(moved)
            rows.append(self._share([first]) * (size.rows if size is not None else 0))
            depth.append(self._share(reads[:1]) * (size.depth if size is not None else 0))
        sizes = [kernel.geometry for kernel in found]
        none = torch.zeros(len(found), len(self.blocks), dtype=torch.float64)
        return Shapes(
            found,
            torch.cat([torch.stack(rows), none], 1),
            torch.cat([torch.stack(depth), none], 1),
            torch.cat([torch.stack(elements), none], 1),
            _column([0 if each is None else each.columns * each.groups for each in sizes]),
            _column([each is not None and each.winograd for each in sizes]),
            _column([kernel.kind == "depthwise" for kernel in found]),
            _column([0 if each is None or not each.weights else each.groups for each in sizes]),
            *self._stopped(found),
        )

    def _stopped(self, found: Sequence[Kernel]) -> tuple[Tensor, Tensor, Tensor]:
        """Which kernels do not run without each unit, which no longer multiply, and which run only then: what follows
        the sum in the kernel of the branch's last layer still runs."""
        gone, idle, only = torch.zeros(3, len(found), len(self.families) + len(self.blocks), dtype=torch.bool).unbind()
        for number, block in enumerate(self.blocks, start=len(self.families)):
            without = block.branch | {block.meeting}
            for row, kernel in enumerate(found):
                nodes = [self.nodes[name] for name in kernel.nodes]
                only[row, number] = kernel == _copy(block)
                gone[row, number] = all(node in without for node in nodes) and not only[row, number]
                idle[row, number] = any(node in block.branch for node in nodes)
        return gone, idle, only

    def _share(self, nodes: Sequence[Node]) -> Tensor:
        """The share of the elements of some tensors that is left, by the widths, shape (1 + families,)."""
        found = torch.zeros(1 + len(self.families), dtype=torch.float64)
        total = 0
        for node in nodes:
            if not is_tensor(node):
                continue
            size = node.meta["val"].numel()
            total += size
            of = self.cells.of.get(node)
            if of is None:
                found[0] += size
                continue
            counts = torch.bincount(self.family[of.reshape(-1)], minlength=len(found)).double()
            found += size * counts / of.numel() / self.width
        if not total:
            found[0] = total = 1
        return found / total


def _copy(block: Block) -> Kernel:
    """The copy into a concatenation that takes the place of a block's sum."""
    node = block.meeting
    return Kernel(f"in place of {node.name}", "copy", 2 * node.meta["val"].numel(), None, (node.name,))


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
