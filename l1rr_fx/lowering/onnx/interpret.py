"""`lower_graph`: runs a graph on fakes of the inputs, and each operator writes its ONNX calls.

Sizes are numbers here, and what does not depend on an input is computed at once: no arithmetic on shapes and constants
is left in the file.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate, map_arg
from torch.utils import _pytree as pytree

from l1rr_fx.lowering.onnx.lowered import Lowered, Port, checked_names, chosen_places, finished
from l1rr_fx.lowering.onnx.operators import form_of
from l1rr_fx.lowering.onnx.output_names import field_names
from l1rr_fx.lowering.onnx.writer import Symbol, Writer
from passes.audit.verify import source_line
from passes.errors import CaptureError, InputError, LoweringError, first_line
from passes.frontend.functionalise import functionalise
from passes.graph.labels import owner
from passes.graph.modes import DROPOUTS, SLOTS, BatchNormCall
from passes.graph.nodes import attribute

aten = torch.ops.aten


@dataclass(frozen=True)
class _Absent:
    """A result that the target cannot give; an error once it is read."""

    node: Node


def lower_graph(
    module: GraphModule,
    leaves: Sequence[Any],
    writer: Writer,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    outputs: Sequence[int] | None = None,
) -> Lowered:
    """The calls that compute a graph of ATen operators on inputs of these sizes.

    Raises LoweringError for an operator without a form, and InputError where the inputs are not the graph's.
    """
    return _Run(module, writer).run(leaves, input_names, output_names, outputs)


class _Run:
    def __init__(self, module: GraphModule, writer: Writer) -> None:
        self.module = module
        self.writer = writer
        self.fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self.values: dict[Node, Any] = {}
        self.inputs: list[Port] = []

    def run(
        self,
        leaves: Sequence[Any],
        input_names: Sequence[str] | None,
        output_names: Sequence[str] | None,
        outputs: Sequence[int] | None,
    ) -> Lowered:
        placeholders = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        if len(placeholders) != len(leaves):
            raise InputError(f"the network has {len(placeholders)} inputs; {len(leaves)} are given")
        names = checked_names(input_names, sum(isinstance(leaf, Tensor) for leaf in leaves), "input_names")
        for node, leaf in zip(placeholders, leaves, strict=True):
            self.values[node] = self._input(node, leaf, names) if isinstance(leaf, Tensor) else leaf
        results: Any = ()
        with torch.no_grad():
            for node in self.module.graph.nodes:
                if node.op == "output":
                    results = map_arg(node.args[0], self._read)
                elif node.op != "placeholder":
                    self.values[node] = self._value(node)
        leaves, fields = pytree.tree_leaves(results), field_names(self.module, results)
        places = chosen_places(leaves, outputs)
        chosen = [leaves[i] for i in places]
        return finished(self.writer, self.inputs, chosen, output_names, [fields[i] for i in places])

    def _input(self, node: Node, leaf: Tensor, names: list[str] | None) -> Symbol:
        wanted = names.pop(0) if names else str(node.target)
        symbol = Symbol(self.writer.free(wanted), self.fakes.from_tensor(leaf.detach()))
        self.writer.check_axes(symbol.shape)
        self.inputs.append(Port(symbol.name, symbol.like))
        if self.writer.type_of(leaf.dtype) == "FLOAT16":  # inputs and outputs stay FLOAT
            return Symbol(self.writer.op("Cast", symbol, to="FLOAT16"), symbol.like)
        return symbol

    # Nodes

    def _read(self, node: Node) -> Any:
        return self._present(self.values[node])

    def _present(self, value: Any) -> Any:
        if isinstance(value, _Absent):
            raise LoweringError(f"{_where(value.node)} has no second result on {self.writer.target.name}")
        return value

    def _value(self, node: Node) -> Any:
        if node.op == "get_attr":
            found = attribute(self.module, str(node.target))
            if isinstance(found, Tensor):
                self.writer.called(found, str(node.target))
            return found
        args = map_arg(node.args, self._read) if node.target is not operator.getitem else self._item(node)
        kwargs = map_arg(node.kwargs, self._read)
        self.writer.origin, self.writer.hint = node, owner(node)
        if node.op == "call_module":
            return self._module(node, attribute(self.module, str(node.target)), args)
        return self._call(node, node.target, args, kwargs)

    def _item(self, node: Node) -> Any:
        """The arguments of a getitem: a result that is missing is passed on, not read."""
        source, *rest = node.args
        assert isinstance(source, Node)
        return (self.values[source], *rest)

    def _module(self, node: Node, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if isinstance(module, BatchNormCall):
            x, *tensors = args
            return self._batch_norm(node, x, tensors, module.eps)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            tensors = [getattr(module, slot) for slot in SLOTS]
            for slot, tensor in zip(SLOTS, tensors, strict=True):
                if tensor is not None:
                    self.writer.called(tensor, f"{node.target}.{slot}")
            self.writer.hint = str(node.target)
            return self._batch_norm(node, args[0], tensors, module.eps)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            return args[0]
        raise LoweringError(f"{node.target} is a {type(module).__name__}: the graph is not one of ATen operators")

    def _batch_norm(self, node: Node, x: Any, tensors: list[Any], eps: float) -> Any:
        """A batch norm module in eval mode; without running statistics it normalises with the batch's even there."""
        return self._call(node, aten.batch_norm.default, (x, *tensors, tensors[2] is None, 0.0, eps, False), {})

    def _call(self, node: Node, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if _is_random(target, args, kwargs):
            raise LoweringError(f"{target} draws random numbers, which a file cannot\n  {_where(node)}")
        if target is not operator.getitem:
            pytree.tree_map(self._present, (args, dict(kwargs)))
        if not _symbols((args, kwargs)) or target is operator.getitem:
            with _shapes_blamed(node):
                return target(*args, **kwargs)  # a number, a constant, one of several results, or a check of sizes
        if not isinstance(target, OpOverload):
            raise LoweringError(_formless(node, target, self.writer))
        fake = self._faked(node, target, args, kwargs)
        if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(fake)):
            return fake  # a size
        form = form_of(target)
        if form is None:
            return self._decomposed(node, target, args, kwargs)
        first, *rest = _bound(target, args, kwargs)
        if isinstance(first, Symbol) and not first.rank and _names_an_axis(target, rest):
            return self._as_vector(node, target, [first, *rest], fake)
        try:
            for leaf in pytree.tree_leaves(fake):
                self.writer.check_axes(getattr(leaf, "shape", ()))
            if isinstance(first, Tensor):  # what is computed comes second: forms ask the first for its shape
                first = Symbol(self.writer.name_of(first), self.fakes.from_tensor(first.detach()))
            written = form(self.writer, fake, first, *rest)
        except LoweringError as error:
            raise LoweringError(f"{error}\n  {_where(node)}") from error
        if written is NotImplemented:
            return self._decomposed(node, target, args, kwargs)
        if isinstance(fake, Tensor):
            return self._result(node, written, fake)
        if not isinstance(written, Sequence) or isinstance(written, str) or len(written) != len(fake):
            raise InputError(
                f"the form of {target} returned {written!r} for {len(fake)} results; a sequence of as many is expected"
                f"\n  {_where(node)}"
            )
        return [self._result(node, each, like) for each, like in zip(written, fake, strict=True)]

    def _as_vector(self, node: Node, target: OpOverload, bound: Sequence[Any], fake: Any) -> Any:
        """A call along an axis of a number without axes, which ONNX has not: as of a vector of one element."""
        one = self.writer.integers([1])
        args, count = [], sum(not argument.kwarg_only for argument in target._schema.arguments)
        for value in bound:
            if isinstance(value, Symbol) and not value.rank:
                with self.fakes:
                    value = Symbol(self.writer.op("Reshape", value, one), value.like.reshape(1))
            args.append(value.reshape(1) if isinstance(value, Tensor) and not value.dim() else value)
        kwargs = {argument.name: args[i] for i, argument in enumerate(target._schema.arguments) if i >= count}
        found = self._call(node, target, tuple(args[:count]), kwargs)
        if isinstance(fake, Tensor):
            return self._result(node, self.writer.reshape(found, fake.shape), fake)
        return [
            self._result(node, self.writer.reshape(each, like.shape), like)
            for each, like in zip(found, fake, strict=True)
        ]

    def _decomposed(self, node: Node, target: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """An operator without a form, decomposed by torch into operators that have one."""
        leaves, structure = pytree.tree_flatten((args, dict(kwargs)))
        tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, (Symbol, Tensor))]

        def call(*given: Tensor) -> Any:
            filled = list(leaves)
            for i, tensor in zip(tensors, given, strict=True):
                filled[i] = tensor
            inner_args, inner_kwargs = pytree.tree_unflatten(filled, structure)
            return target(*inner_args, **inner_kwargs)

        traced = self._traced(node, target, call, [_like(leaves[i]) for i in tensors])
        values: dict[Node, Any] = {}
        given = iter(leaves[i] for i in tensors)
        for inner in traced.graph.nodes:
            if inner.op == "placeholder":
                values[inner] = next(given)
            elif inner.op == "get_attr":
                values[inner] = attribute(traced, str(inner.target))
            else:
                inner_args, inner_kwargs = (map_arg(each, values.__getitem__) for each in (inner.args, inner.kwargs))
                if inner.op == "output":
                    return inner_args[0]
                values[inner] = self._call(node, inner.target, inner_args, inner_kwargs)
        raise AssertionError("a traced graph has an output")

    def _traced(self, node: Node, target: OpOverload, call: Callable[..., Any], given: Sequence[Tensor]) -> GraphModule:
        """A call as a graph: its composite implementation, or else torch's decomposition into core ATen operators."""
        tables: tuple[Any, ...] = ({}, core_aten_decompositions())
        for table in tables:
            with self.fakes, torch.backends.mkldnn.flags(enabled=False):  # whose recurrent layers are one operator
                traced = make_fx(call, decomposition_table=table)(*given)
            if all(inner.target is not target for inner in traced.graph.nodes):
                try:
                    return functionalise(traced)
                except CaptureError as error:
                    raise LoweringError(_formless(node, target, self.writer)) from error
        raise LoweringError(_formless(node, target, self.writer))

    def _result(self, node: Node, written: Any, like: Any) -> Any:
        """One result of a form; None: the target has no such result, an error once it is read."""
        if written is None:
            return _Absent(node)
        if isinstance(written, Tensor):
            return written
        if not isinstance(written, (str, Symbol)) or not self.writer.is_taken(self.writer.name_of(written)):
            raise InputError(
                f"a form returned {written!r}; what the writer returned, an argument or a constant tensor is expected"
                f"\n  {_where(node)}"
            )
        return Symbol(self.writer.name_of(written), like)

    def _faked(self, node: Node, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        with _shapes_blamed(node), self.fakes:
            return target(*map_aggregate(args, _like), **map_aggregate(dict(kwargs), _like))


def _bound(target: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments of a call in the order of its schema, defaults filled in."""
    bound = []
    for i, argument in enumerate(target._schema.arguments):
        if i < len(args):
            bound.append(args[i])
        else:
            bound.append(kwargs.get(argument.name, argument.default_value if argument.has_default_value() else None))
    return bound


def _names_an_axis(target: OpOverload, rest: Sequence[Any]) -> bool:
    """Whether a call names an axis of its first argument, by number."""
    if target is aten.unsqueeze.default:  # the axis is one of the result
        return False
    named = zip(target._schema.arguments[1:], rest, strict=True)
    return any(
        argument.name.startswith("dim") and value not in (None, [], ()) and isinstance(value, (int, Sequence))
        for argument, value in named
    )


def _is_random(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call draws random numbers. Dropout does not: in eval mode it is the identity."""
    if not isinstance(target, OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    names = [argument.name for argument in target._schema.arguments]
    given = dict(zip(names, _bound(target, args, kwargs), strict=True))
    return target not in DROPOUTS and all(given[name] for name in ("train", "training", "dropout_p") if name in given)


def _symbols(values: Any) -> bool:
    return any(isinstance(leaf, Symbol) for leaf in pytree.tree_leaves(values))


def _like(value: Any) -> Any:
    return value.like if isinstance(value, Symbol) else value


@contextmanager
def _shapes_blamed(node: Node) -> Iterator[None]:
    """Turn an error of a call into one about the shapes of its inputs."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        raise LoweringError(
            f"the result's size depends on values, which a network of fixed sizes cannot have\n  {_where(node)}"
        ) from error
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise InputError(
            f"the network does not run on inputs of these shapes: {first_line(error)}\n  {_where(node)}"
        ) from error


def _where(node: Node) -> str:
    line = source_line(node)
    return f"node {node.name} ({node.target})" + (f" {line}" if line else "")


def _formless(node: Node, target: Any, writer: Writer) -> str:
    inner = "" if target is node.target else f" (torch writes it with {target}, which has none)"
    return (
        f"{node.target} has no form on {writer.target.name}{inner}\n  {_where(node)}\n"
        "  Replace it in the model, end the network before it (outputs=...) and compute the rest outside, or give "
        "it a form with l1rr_fx.lowering.register_form."
    )
