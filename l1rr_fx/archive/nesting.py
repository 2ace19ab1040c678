"""How the inputs and outputs of a network are nested (its pytree codegen), as JSON, and back."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch.fx import Graph
from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from l1rr_fx.archive.operators import is_name
from l1rr_fx.support.checks import MAX_DEPTH, expect, fields, short
from passes.errors import InputError, LoadError


def encode_codegen(codegen: CodeGen) -> dict[str, Any] | None:
    if type(codegen) is CodeGen:
        return None
    out_spec = codegen.pytree_info.out_spec if type(codegen) is _PyTreeCodeGen else None
    if type(codegen) is not _PyTreeCodeGen or out_spec is None:
        raise InputError(f"a graph with a {type(codegen).__name__} cannot be saved")
    return {
        "arguments": list(codegen.pytree_info.orig_args),
        "inputs": _tree_document(codegen.pytree_info.in_spec, "the inputs"),
        "outputs": _tree_document(out_spec, "the outputs"),
    }


def _tree_document(spec: pytree.TreeSpec, what: str) -> Any:
    """The nesting of `what` as JSON: "*" is a leaf."""

    def walk(tree: Any) -> Any:
        if tree is leaf:
            return "*"
        if type(tree) in (tuple, list):
            return {type(tree).__name__: [walk(item) for item in tree]}
        if type(tree) in (dict, OrderedDict) and all(type(key) in (str, int) for key in tree):
            return {type(tree).__name__: [[key, walk(item)] for key, item in tree.items()]}
        raise InputError(
            f"{what} hold a {type(tree).__name__}; a saved network takes and gives tensors in tuples, lists and dicts"
            " with strings or integers as keys"
        )

    leaf = object()
    return walk(pytree.tree_unflatten([leaf] * spec.num_leaves, spec))


def decode_codegen(document: Any, graph: Graph) -> _PyTreeCodeGen:
    """The nesting of inputs and outputs; its names go into generated code, so they are identifiers."""
    facts = fields(document, {"arguments", "inputs", "outputs"}, '"codegen"')
    arguments = expect(facts["arguments"], list, "arguments")
    if not all(is_name(name) for name in arguments) or len({*arguments}) != len(arguments):
        raise LoadError("the arguments' names are not different identifiers")
    inputs, outputs = _tree(facts["inputs"]), _tree(facts["outputs"])
    is_call = type(inputs) is tuple and len(inputs) == 2 and type(inputs[0]) is tuple and type(inputs[1]) is dict
    if not is_call or not all(is_name(name) for name in inputs[1]):
        raise LoadError("the inputs are not positional and named arguments")
    if len(arguments) != len(inputs[0]) + len(inputs[1]):
        raise LoadError(f"{len(arguments)} names for {len(inputs[0]) + len(inputs[1])} arguments")
    in_spec, out_spec = pytree.tree_structure(inputs), pytree.tree_structure(outputs)
    if in_spec.num_leaves != len(graph.find_nodes(op="placeholder")):
        raise LoadError(f"{in_spec.num_leaves} inputs for {len(graph.find_nodes(op='placeholder'))} placeholders")
    (returned,) = graph.output_node().args
    if not isinstance(returned, (tuple, list)) or len(returned) != out_spec.num_leaves:
        raise LoadError(f"the output is not {out_spec.num_leaves} values")
    return _PyTreeCodeGen(_PyTreeInfo(arguments, in_spec, out_spec))


def _tree(document: Any, depth: int = 0) -> Any:
    """Containers nested as the document says, with 0 for the leaves."""
    if document == "*":
        return 0
    if depth > MAX_DEPTH or not isinstance(document, dict) or len(document) != 1:
        raise LoadError(f"{short(document)} is not a nesting of inputs or outputs")
    ((kind, content),) = document.items()
    items = expect(content, list, kind)
    if kind in ("tuple", "list"):
        children = [_tree(item, depth + 1) for item in items]
        return tuple(children) if kind == "tuple" else children
    pairs = all(isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (str, int) for pair in items)
    if kind not in ("dict", "OrderedDict") or not pairs:
        raise LoadError(f"{short(document)} is not a nesting of inputs or outputs")
    found = {key: _tree(item, depth + 1) for key, item in items}
    return found if kind == "dict" else OrderedDict(found)
