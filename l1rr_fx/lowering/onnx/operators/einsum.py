"""Einsum: as one node, or for older readers as products of two, each with an equation that they read."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form
from l1rr_fx.lowering.onnx.writer import Operand, Writer

aten = torch.ops.aten


@dataclass(frozen=True)
class _Term:
    """An operand, and a letter for each of its axes."""

    value: Operand
    letters: str
    sizes: tuple[int, ...]


def _einsum(w: Writer, out: Tensor, equation: str, operands: Sequence[Any], path: Any = None) -> Operand:
    given, result = _spelled(equation.replace(" ", ""), operands)
    terms = [_Term(x, letters, tuple(int(n) for n in x.shape)) for x, letters in zip(operands, given, strict=True)]
    if w.target.reads("Einsum of any equation"):
        terms = _broadcast(w, terms)
        left = ",".join(term.letters for term in terms)
        return w.op("Einsum", *(term.value for term in terms), equation=f"{left}->{result}")
    total, *rest = _broadcast(w, [_without_diagonals(w, term) for term in terms])
    for i, term in enumerate(rest):
        needed = {*result, *"".join(later.letters for later in rest[i + 1 :])}
        kept = "".join(letter for letter in dict.fromkeys(total.letters + term.letters) if letter in needed)
        total = _product(w, total, term, result if i == len(rest) - 1 else kept)
    return total.value if total.letters == result else _node(w, [total], result)


def _spelled(equation: str, operands: Sequence[Any]) -> tuple[list[str], str]:
    """The letters of each operand and of the result; what an ellipsis stands for has letters of its own."""
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    hidden = [
        len(x.shape) - len(term.replace("...", "")) if "..." in term else 0
        for term, x in zip(terms, operands, strict=True)
    ]
    unused = "".join(letter for letter in string.ascii_letters if letter not in equation)
    dots = unused[: max(hidden)]
    if not arrow:  # then torch sorts the letters that occur once, after what the dots stand for
        once = sorted(letter for letter in set(left) - set(".,") if left.count(letter) == 1)
        right = "..." + "".join(once)
    names = [term.replace("...", dots[len(dots) - n :]) for term, n in zip(terms, hidden, strict=True)]
    return names, right.replace("...", dots)


def _without_diagonals(w: Writer, term: _Term) -> _Term:
    """A letter that stands twice means the elements whose places along both axes are equal: every (n + 1)-th."""
    for letter in dict.fromkeys(term.letters):
        while term.letters.count(letter) > 1:
            first = term.letters.index(letter)
            second = term.letters.index(letter, first + 1)
            others = [axis for axis in range(len(term.letters)) if axis not in (first, second)]
            sizes, n = tuple(term.sizes[axis] for axis in others), term.sizes[first]
            order = [*others, first, second]
            ordered = term.value if order == sorted(order) else w.op("Transpose", term.value, perm=order)
            flat = w.reshape(ordered, (*sizes, n * n))
            value = w.slice(flat, len(others), 0, n * n, n + 1)
            term = _Term(value, "".join(term.letters[axis] for axis in others) + letter, (*sizes, n))
    return term


def _broadcast(w: Writer, terms: Sequence[_Term]) -> list[_Term]:
    """The terms without axes of length 1 that stand for a longer one."""
    longest: dict[str, int] = {}
    for term in terms:
        for letter, n in zip(term.letters, term.sizes, strict=True):
            longest[letter] = max(longest.get(letter, 0), n)
    found = []
    for term in terms:
        kept = [axis for axis, letter in enumerate(term.letters) if term.sizes[axis] == longest[letter]]
        if len(kept) < len(term.letters):
            sizes = tuple(term.sizes[axis] for axis in kept)
            term = _Term(w.reshape(term.value, sizes), "".join(term.letters[axis] for axis in kept), sizes)
        found.append(term)
    return found


def _product(w: Writer, a: _Term, b: _Term, result: str) -> _Term:
    """Two terms multiplied, and summed over the letters that are not in the result."""
    known = dict(zip(a.letters + b.letters, a.sizes + b.sizes, strict=True))
    if a.letters and b.letters:
        return _Term(_node(w, [a, b], result), result, tuple(known[letter] for letter in result))
    letters = a.letters + b.letters  # one of them is a number
    return _Term(w.op("Mul", a.value, b.value), letters, tuple(known[letter] for letter in letters))


def _node(w: Writer, terms: Sequence[_Term], result: str) -> Operand:
    """An Einsum of one or two operands with the letters a, b, c ... in the order in which they occur."""
    if len(terms) == 1 and not result:
        return w.reduce("ReduceSum", terms[0].value, range(len(terms[0].letters)), keepdims=False)
    used = dict.fromkeys("".join(term.letters for term in terms))
    names = dict(zip(used, string.ascii_lowercase, strict=False))
    left, right = (
        ["".join(names[letter] for letter in letters) for letters in side]
        for side in ([term.letters for term in terms], [result])
    )
    return w.op("Einsum", *(term.value for term in terms), equation=f"{','.join(left)}->{right[0]}")


FORMS: Mapping[Any, Form] = {
    aten.einsum.default: _einsum,
}
