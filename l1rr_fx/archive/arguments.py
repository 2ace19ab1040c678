"""Arguments of a call as JSON, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

from l1rr_fx.support.checks import MAX_DEPTH, expect, short
from passes.errors import InputError, LoadError

WORDS: Mapping[str, tuple[type, Mapping[str, Any]]] = {
    "dtype": (torch.dtype, {str(x)[6:]: x for x in vars(torch).values() if isinstance(x, torch.dtype)}),
    "layout": (torch.layout, {"strided": torch.strided}),
    "memory_format": (
        torch.memory_format,
        {str(x)[6:]: x for x in vars(torch).values() if isinstance(x, torch.memory_format)},
    ),
}


def encode_argument(value: Any) -> Any:
    """An argument of a node as JSON; what JSON lacks is an object with one key that names the kind."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, (list, torch.Size)):
        return [encode_argument(item) for item in value]
    if isinstance(value, tuple) and not hasattr(value, "fields"):
        return {"tuple": [encode_argument(item) for item in value]}
    if isinstance(value, complex) and math.isfinite(value.real) and math.isfinite(value.imag):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, (wanted, words) in WORDS.items():
        if isinstance(value, wanted) and str(value)[6:] in words:
            return {kind: str(value)[6:]}
    raise InputError(f"{short(value)}, of type {type(value).__name__}, cannot be saved")


def decode_argument(value: Any, nodes: Mapping[str, Node], device: torch.device, depth: int = 0) -> Any:
    """An argument out of JSON: `nodes` are those before it, `device` stands in for the one that was saved."""
    if depth > MAX_DEPTH:
        raise LoadError(f"an argument is nested more than {MAX_DEPTH} deep")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list):
        return [decode_argument(item, nodes, device, depth + 1) for item in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise LoadError(f"{short(value)} is not an argument")
    ((kind, content),) = value.items()
    if kind in ("node", "float", "device", *WORDS):
        return _word(kind, expect(content, str, kind), nodes, device)
    if kind == "tuple":
        items = expect(content, list, kind)
        return tuple(decode_argument(item, nodes, device, depth + 1) for item in items)
    if kind == "complex" and isinstance(content, list) and [type(part) for part in content] == [float, float]:
        return complex(*content)
    raise LoadError(f"{short(value)} is not an argument")


def _word(kind: str, word: str, nodes: Mapping[str, Node], device: torch.device) -> Any:
    if kind == "device":
        return device
    if kind == "node":
        if word not in nodes:
            raise LoadError(f"it reads {short(word)}, which is no earlier node")
        return nodes[word]
    if kind == "float":
        if word not in ("inf", "-inf", "nan"):
            raise LoadError(f"{short(word)} is not a number")
        return float(word)
    words = WORDS[kind][1]
    if word not in words:
        raise LoadError(f"{short(word)} is not a {kind}")
    return words[word]
