"""TensorRT 8.2: which matrix products are refused or misread.

Gemm has two readings. With a computed A, a constant B, alpha and beta of 1, and a C that is left out or a constant
vector, it becomes a fully connected layer; else a matrix product, of which A loses its last axis if that has size 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from l1rr_fx.lowering.parsers.onnx_file import OnnxModel, OnnxNode
from l1rr_fx.lowering.parsers.remarks import Check, Remark, constant, ranks


def _fully_connected(model: OnnxModel, node: OnnxNode) -> bool:
    scales = (node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0))
    if constant(model, node.input(0)) or not constant(model, node.input(1)) or scales != (1.0, 1.0):
        return False
    return len(node.inputs) < 3 or (constant(model, node.input(2)) and model.rank_of(node.input(2)) == 1)


def _empty_bias(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if len(node.inputs) > 2 and not node.input(2):
        yield Remark("its C is an empty name, which is not read as none", "write it as MatMul")


def _bias(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if not _fully_connected(model, node):
        return
    if len(node.inputs) < 3:
        yield Remark(
            "without C it becomes a fully connected layer without outputs", "write it as MatMul, or give a C of zeros"
        )
        return
    given, produced = model.shape_of(node.input(2)), model.shape_of(node.output(0))
    if given and produced and given[-1] != produced[-1]:
        yield Remark(
            f"its C has {given[-1]} elements and is read as the number of outputs, {produced[-1]}",
            "repeat C for each output",
        )


def _transposed(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if _fully_connected(model, node) and node.attributes.get("transA", 0):
        yield Remark("transA is ignored, silently", "transpose its input by a node")


def _column(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    shape = model.shape_of(node.input(0))
    if shape and shape[-1] == 1 and not _fully_connected(model, node):
        yield Remark("the last axis of A has size 1 and is dropped", "write it as MatMul, Mul and Add")


def _vector_by_batch(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    first, second = model.rank_of(node.input(0)), model.rank_of(node.input(1))
    if first == 1 and second is not None and second > 2:
        yield Remark(
            f"it multiplies a vector by a tensor of {second} axes, and drops the wrong axis of the product",
            "unsqueeze the vector to a matrix, and squeeze the product",
        )


def _operands(node: OnnxNode) -> list[str]:
    equation = node.attributes.get("equation", "")
    return [part.strip() for part in equation.partition("->")[0].split(",")]


MATMUL = "write it with MatMul, Transpose and Reshape"


def _letters(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    others = {letter for letter in node.attributes.get("equation", "") if letter not in "->., "}
    others = {letter for letter in others if not "a" <= letter <= "z"}
    if others:
        yield Remark(f"its equation has the letters {', '.join(sorted(others))}; a to z are read", "rename them")


def _pairs(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if len(node.inputs) > 2:
        yield Remark(f"it has {len(node.inputs)} operands; at most 2 are read", "multiply them pair by pair")


def _equation(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if "." in node.attributes.get("equation", ""):
        yield Remark("its equation has an ellipsis, which is not read", MATMUL)
    elif any(len(set(letters)) != len(letters) for letters in _operands(node)):
        yield Remark("a letter stands twice in one operand (a diagonal), which is not read", MATMUL)


def _broadcast(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    sizes: dict[str, set[int | None]] = {}
    if "." in node.attributes.get("equation", ""):
        return
    for letters, name in zip(_operands(node), node.inputs):
        for letter, size in zip(letters, model.shape_of(name) or ()):
            sizes.setdefault(letter, set()).add(size)
    if any(len(found - {None}) > 1 for found in sizes.values()):
        yield Remark("its operands broadcast, which is not read", MATMUL)


PRODUCTS: Mapping[str, tuple[Check, ...]] = {
    "Gemm": (
        ranks(2, cure="use MatMul"),
        Check("C is no empty name", _empty_bias),
        Check("a fully connected layer has a C for each output", _bias, basis="NvInfer.h"),
        Check("a fully connected layer has no transA", _transposed),
        Check("A of a matrix product has more than one column", _column),
    ),
    "MatMul": (Check("no vector by more than a matrix", _vector_by_batch, basis="NvInfer.h"),),
    "Einsum": (
        Check("letters are a to z", _letters),
        Check("at most two operands", _pairs, basis="NvInfer.h"),
        Check("no ellipsis, no diagonal", _equation, basis="NvInfer.h"),
        Check("operands do not broadcast", _broadcast, basis="NvInfer.h"),
    ),
}
"""The checks of each operator, by name."""
