"""Names that may go into the code that torch.fx generates from a graph."""

from __future__ import annotations

import keyword
import re

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
TARGET = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
RESERVED = {"self", "torch", "pytree", "fx_pytree", *keyword.kwlist}


def is_name(name: object) -> bool:
    """Whether it is an identifier that means nothing else in generated code."""
    return isinstance(name, str) and IDENTIFIER.fullmatch(name) is not None and name not in RESERVED


def is_target(target: object) -> bool:
    """Whether it is a dotted name of a module or a tensor."""
    return (
        isinstance(target, str)
        and TARGET.fullmatch(target) is not None
        and not any(map(keyword.iskeyword, target.split(".")))
    )
