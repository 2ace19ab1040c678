"""The size of a contraction as a matrix product: what a convolution or a product asks of the multipliers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch.fx import Node

from passes.graph.nodes import hint, operator_name

ContractionKind = Literal["convolution", "depthwise", "matrix"]


@dataclass(frozen=True)
class Geometry:
    """In each of `groups` groups `rows` results, the sum of `depth` terms each, at `columns` places.

    `weights` are the elements of parameters read, `within` those of results that only pass from one product to the
    next (the scores of attention), `winograd` says whether it is a 3x3 convolution at stride 1.
    """

    kind: ContractionKind
    rows: int
    depth: int
    columns: int
    groups: int = 1
    weights: int = 0
    within: int = 0
    winograd: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.rows * self.depth * self.columns * self.groups


def geometry(node: Node) -> Geometry | None:
    """The geometry of a call; None where it multiplies no matrices."""
    made = GEOMETRIES.get(operator_name(node) or str(node.target).removesuffix(".default"))
    return None if made is None else made(node)


def shape(node: Any) -> tuple[int, ...]:
    """The full shape of a node's value, at the example input where sizes are free."""
    return tuple(hint(size) for size in node.meta["val"].shape)


def _argument(node: Node, index: int, name: str, default: Any) -> Any:
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def _convolution(node: Node) -> Geometry:
    weight, out = shape(node.args[1]), shape(node)
    groups = int(_argument(node, 6, "groups", 1))
    strides, dilations = _argument(node, 3, "stride", 1), _argument(node, 5, "dilation", 1)
    plain = {*_listed(strides)} == {*_listed(dilations)} == {1}
    return Geometry(
        "depthwise" if groups > 1 and weight[1] == 1 else "convolution",
        rows=weight[0] // groups,
        depth=math.prod(weight[1:]),
        columns=math.prod(out) // out[1],
        groups=groups,
        weights=math.prod(weight),
        winograd=groups == 1 and weight[2:] == (3, 3) and plain,
    )


def _deformed(node: Node) -> Geometry:
    weight, out, groups = shape(node.args[1]), shape(node), int(_argument(node, 11, "groups", 1))
    depth, columns = math.prod(weight[1:]), math.prod(out) // out[1]
    return Geometry("convolution", weight[0] // groups, depth, columns, groups, weights=math.prod(weight))


def _transposed(node: Node) -> Geometry:
    weight, given = shape(node.args[1]), shape(node.args[0])
    groups = int(_argument(node, 6, "groups", 1))
    return Geometry(
        "convolution",
        rows=math.prod(weight[1:]),
        depth=weight[0] // groups,
        columns=math.prod(given) // given[1],
        groups=groups,
        weights=math.prod(weight),
    )


def _linear(node: Node) -> Geometry:
    weight, out = shape(node.args[1]), shape(node)
    return Geometry("matrix", weight[0], weight[1], math.prod(out) // out[-1], weights=math.prod(weight))


def _product(node: Node) -> Geometry:
    left, out = shape(node.args[0]), shape(node)
    second = node.args[1]
    assert isinstance(second, Node)
    weights = math.prod(shape(second)) if second.op == "get_attr" else 0
    if len(out) < 2:
        return Geometry("matrix", 1, left[-1], math.prod(out), weights=weights)
    return Geometry("matrix", out[-1], left[-1], out[-2], math.prod(out[:-2]), weights)


def _einsum(node: Node) -> Geometry:
    """Every letter that is summed is depth; the rest is laid out as columns of one row."""
    equation = str(node.args[0]).replace(" ", "")
    terms, operands = equation.split("->")[0].split(","), node.args[1]
    assert isinstance(operands, (list, tuple))
    sizes = {letter: size for term, each in zip(terms, operands) for letter, size in zip(term, shape(each))}
    columns = math.prod(shape(node))
    return Geometry("matrix", 1, math.prod(sizes.values()) // columns, columns)


def _attention(node: Node) -> Geometry:
    query, key = shape(node.args[0]), shape(node.args[1])
    heads = math.prod(query[:-2])
    scores = heads * query[-2] * key[-2]
    return Geometry("matrix", key[-2], 2 * query[-1], query[-2], heads, within=4 * scores)


def _listed(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


GEOMETRIES: Mapping[str, Callable[[Node], Geometry]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    **dict.fromkeys(("matmul", "bmm", "mm"), _product),
    "linear": _linear,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "torchvision.deform_conv2d": _deformed,
}
