"""How the inputs and outputs of a network are nested (its pytree codegen), as JSON, and back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph
from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from l1rr_fx.archive.operators import is_name
from l1rr_fx.support.checks import MAX_DEPTH, expect, fields, short
from passes.errors import InputError, LoadError


def encode_codegen(codegen: CodeGen) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """The nesting of a network's inputs and outputs, and a note for each class of which only the fields are kept."""
    if type(codegen) is CodeGen:
        return None, ()
    out_spec = codegen.pytree_info.out_spec if type(codegen) is _PyTreeCodeGen else None
    if type(codegen) is not _PyTreeCodeGen or out_spec is None:
        raise InputError(f"a graph with a {type(codegen).__name__} cannot be saved")
    inputs, outputs = _Nesting("the inputs"), _Nesting("the outputs")
    document = {
        "arguments": list(codegen.pytree_info.orig_args),
        "inputs": inputs.document(codegen.pytree_info.in_spec),
        "outputs": outputs.document(out_spec),
    }
    return document, (*inputs.notes, *outputs.notes)


class _Nesting:
    """How the inputs or the outputs are nested as JSON, in which "*" is a leaf; `notes` say what becomes plainer."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.notes: dict[str, None] = {}
        self.leaves: list[int] = []

    def document(self, spec: pytree.TreeSpec) -> Any:
        leaves = [_Leaf(number) for number in range(spec.num_leaves)]
        found = self._walk(pytree.tree_unflatten(leaves, spec))
        if self.leaves != list(range(spec.num_leaves)):
            raise InputError(f"{self.what} hold an object that is not the sequence or mapping of what it is made of")
        return found

    def _walk(self, tree: Any) -> Any:
        if isinstance(tree, _Leaf):
            self.leaves.append(tree.number)
            return "*"
        kind = next((each for each in (OrderedDict, Mapping, list, tuple) if isinstance(tree, each)), None)
        if kind is None or (issubclass(kind, Mapping) and not all(type(key) in (str, int) for key in tree)):
            raise InputError(
                f"{self.what} hold a {type(tree).__name__}; a saved network takes and gives tensors in tuples, lists "
                "and mappings with strings or integers as keys: prune a module around it that gives these"
            )
        plain = dict if issubclass(kind, Mapping) and type(tree) is not OrderedDict else kind
        if type(tree) is not plain:
            self._note(type(tree), plain)
        if plain in (tuple, list):
            return {plain.__name__: [self._walk(item) for item in tree]}
        return {plain.__name__: [[key, self._walk(item)] for key, item in tree.items()]}

    def _note(self, kind: type, plain: type) -> None:
        self.notes[
            f"{self.what} hold a {kind.__name__}, which becomes a plain {plain.__name__} in the saved network"
        ] = None


@dataclass(frozen=True)
class _Leaf:
    number: int


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
