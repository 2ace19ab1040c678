"""The names of a network's outputs: those of the fields in which it returns them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch.fx import GraphModule
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

Path = tuple[Any, ...]
"""The keys (of mappings), names (of dataclasses and named tuples) and numbers by which an output is reached."""


def field_names(module: GraphModule, results: Any) -> list[str | None]:
    """A name for each leaf of what a network returns; None where it stands in lists and tuples alone.

    `{"logits": a, "boxes": [b, c]}` gives logits, boxes_0 and boxes_1. Numbers before the first key are left out
    (`(a, {"logits": b})` gives None and logits) unless two outputs have the same name without them.
    """
    structure = output_structure(module)
    if structure is None or structure.num_leaves != len(pytree.tree_leaves(results)):
        structure = pytree.tree_structure(results)
    return names_of_leaves(structure)


def output_structure(module: GraphModule) -> pytree.TreeSpec | None:
    """The containers in which a network returns its outputs, as its graph knows them; None if it does not."""
    codegen = module.graph._codegen
    return codegen.pytree_info.out_spec if isinstance(codegen, _PyTreeCodeGen) else None


def names_of_leaves(structure: pytree.TreeSpec) -> list[str | None]:
    """See `field_names`."""
    paths = _paths(structure)
    short = [_name(_from_first_key(path)) for path in paths]
    counts = Counter(short)
    return [name if counts[name] == 1 else _name(path) for name, path in zip(short, paths, strict=True)]


def _paths(structure: pytree.TreeSpec) -> list[Path]:
    if structure.is_leaf():
        return [()]
    children = structure.children()
    keys = _keys(structure.context, len(children))
    return [(key, *rest) for key, child in zip(keys, children, strict=True) for rest in _paths(child)]


def _keys(context: Any, count: int) -> Sequence[Any]:
    """How a container names its children, from what its type keeps for unflattening.

    That is a type with fields (named tuples), a list of keys (mappings), or one in a list (dataclasses).
    """
    fields = getattr(context, "_fields", None)
    for keys in (fields, context, *(context if isinstance(context, (list, tuple)) else ())):
        if isinstance(keys, (list, tuple)) and len(keys) == count and all(isinstance(key, (str, int)) for key in keys):
            return keys
    return range(count)


def _from_first_key(path: Path) -> Path:
    first = next((i for i, key in enumerate(path) if isinstance(key, str)), len(path))
    return path[first:]


def _name(path: Path) -> str | None:
    if not any(isinstance(key, str) for key in path):
        return None
    name = "_".join(str(key) for key in path)
    return name if name[0].isalpha() else f"output_{name}"
