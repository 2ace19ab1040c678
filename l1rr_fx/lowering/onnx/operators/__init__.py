"""The table of forms: in goes the call of an operator, out come ONNX calls and the names of its results.

An operator's form stands in the file that has the name of its rule's file in `passes/rules`. Four families of rules
take several files here: `pointwise` (with activations, logic and copies), `mixing` (with normalisation, pooling,
resizing and padding), `reindex` (with padding) and `products` (with einsum).

base           the type of a form, and what several families need
pointwise      functions of one tensor, arithmetic
activations    activations and bounds
logic          comparisons, truth values, choices by them
copies         copies, casts, constants in the shape of a value
affine         batch norm, instance norm, PReLU
convolution    convolutions, linear layers
products       matrix products, attention
einsum         einsum
quantisation   fake quantisation
recurrent      recurrent layers
mixing         reductions, softmax, orders
normalisation  layer norm, RMS norm, group norm
pooling        pooling
resizing       an image in another size
reindex        slices, flips, rolls, selections, repetition
padding        padding
reshape        reshapes, permutations, pixel shuffles
joins          concatenation, split, writes into a part
sampling       advanced indexing, embeddings, images sampled by a grid
windows        windows along an axis

Users add forms for operators of their own with `l1rr_fx.lowering.register_form`.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch._ops import OpOverload

from l1rr_fx.lowering.onnx.operators import (
    activations,
    affine,
    convolution,
    copies,
    einsum,
    joins,
    logic,
    mixing,
    normalisation,
    padding,
    pointwise,
    pooling,
    products,
    quantisation,
    recurrent,
    reindex,
    reshape,
    resizing,
    sampling,
    windows,
)
from l1rr_fx.lowering.onnx.operators.base import Form
from passes.errors import InputError
from passes.rules import Operator, overloads_of

FORMS: Mapping[OpOverload, Form] = {
    **pointwise.FORMS,
    **activations.FORMS,
    **logic.FORMS,
    **copies.FORMS,
    **affine.FORMS,
    **convolution.FORMS,
    **products.FORMS,
    **einsum.FORMS,
    **quantisation.FORMS,
    **recurrent.FORMS,
    **mixing.FORMS,
    **normalisation.FORMS,
    **pooling.FORMS,
    **resizing.FORMS,
    **reindex.FORMS,
    **padding.FORMS,
    **reshape.FORMS,
    **joins.FORMS,
    **sampling.FORMS,
    **windows.FORMS,
}
"""The forms of ATen's operators, by overload."""

REGISTERED: dict[str, Form] = {}
"""The forms that users registered, by the qualified name of the overload ("mylib::gate", "aten::scatter.value")."""


def register_form(operator: Operator, form: Form) -> None:
    """Write an operator that `to_onnx` does not know by `form`, from now on.

    `operator` is what `torch.library.custom_op` returned, or `torch.ops.mylib.gate` (all its overloads), or one
    overload. The form is called as `form(writer, result, *arguments)`:

    - `writer` is a `Writer`; each ONNX node is one call of `writer.op`.
    - `result` is a fake tensor of the result's shape and dtype (several results: a list of them).
    - `arguments` are those of the operator's schema in order, defaults filled in. A tensor is a `Symbol`, which has
      `shape` and `rank`, or a constant `torch.Tensor`; the first one is a `Symbol` in either case.

    It returns what `writer.op` returned, an argument, or a constant tensor (several results: a sequence of these), or
    `NotImplemented` for a call that is to be written as torch decomposes it.
    Raises InputError for an operator that has a form already or that writes to its arguments, for what is no operator,
    and for a form that is not callable.
    """
    if not callable(form):
        raise InputError(f"the form is a {type(form).__name__}; it must be a function of (writer, result, *arguments)")
    overloads = _chosen(operator)
    for overload in overloads:
        if form_of(overload) is not None:
            raise InputError(f"{overload} has a form already; unregister_form takes back one that was registered")
        if overload._schema.is_mutable:
            raise InputError(
                f"{overload} writes to its arguments: only an operator that returns its results can have a form"
            )
    REGISTERED.update(dict.fromkeys((overload.name() for overload in overloads), form))


def unregister_form(operator: Operator) -> None:
    """Remove a registered form. Raises InputError if none was registered."""
    names = [overload.name() for overload in _chosen(operator)]
    if not any(name in REGISTERED for name in names):
        raise InputError(f"no form was registered for {names[0]}")
    for name in names:
        REGISTERED.pop(name, None)


def form_of(overload: OpOverload) -> Form | None:
    """The form of an operator; None if it has none."""
    return REGISTERED.get(overload.name()) or FORMS.get(overload)


def _chosen(operator: Operator) -> list[OpOverload]:
    """One overload, or all overloads of an operator: unlike rules, forms depend on the order of the arguments."""
    return [operator] if isinstance(operator, OpOverload) else overloads_of(operator)
