"""Flips of single places in a Python file: what a line becomes if its author slips.

A comparison, `and` / `or`, `not`, an arithmetic or bit operator, `any` / `all`, True / False, a number. Assertions,
annotations, defaults of arguments and what is raised are left alone.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPARISONS = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
METHODS = {"any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One flip: the file, the line, what the line becomes, and the module's whole source with it.

    `lines`: from where the statement begins to where the flip is; None where it is run when the module is imported.
    """

    file: str
    line: int
    lines: range | None
    before: str
    after: str
    source: str


class _Flip(ast.NodeTransformer):
    """Flips the place of this number, counted in the order of the tree, and remembers where it was."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.count = 0
        self.line = 0
        self.lines: range | None = None
        self.statement = 0  # the line where the statement begins that is visited
        self.depth = 0  # of functions

    def _is_turn(self, node: Any) -> bool:
        self.count += 1
        if self.count - 1 != self.wanted:
            return False
        self.line = node.lineno
        self.lines = range(self.statement, node.end_lineno + 1) if self.depth else None
        return True

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, (ast.Assert, ast.arguments, ast.AnnAssign, ast.Raise)) or _is_type_checking(node):
            return node
        if isinstance(node, ast.FunctionDef):
            self.depth += 1
            node.body = [self.visit(part) for part in node.body]
            self.depth -= 1
            return node
        if isinstance(node, ast.stmt):
            self.statement = node.lineno
        return self._flipped(self.generic_visit(node))

    def _flipped(self, node: Any) -> Any:
        match node:
            case ast.Compare() if type(node.ops[0]) in COMPARISONS and self._is_turn(node):
                node.ops[0] = COMPARISONS[type(node.ops[0])]()
            case ast.BoolOp() if self._is_turn(node):
                node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            case ast.BinOp() if type(node.op) in OPERATORS and self._is_turn(node):
                node.op = OPERATORS[type(node.op)]()
            case ast.AugAssign() if type(node.op) in OPERATORS and self._is_turn(node):
                node.op = OPERATORS[type(node.op)]()
            case ast.UnaryOp() if isinstance(node.op, (ast.Not, ast.Invert)) and self._is_turn(node):
                return node.operand
            case ast.Attribute() if node.attr in METHODS and self._is_turn(node):
                node.attr = METHODS[node.attr]
            case ast.Constant() if isinstance(node.value, bool) and self._is_turn(node):
                node.value = not node.value
            case ast.Constant() if type(node.value) is int and self._is_turn(node):
                node.value += 1
        return node


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def mutants(file: Path) -> Iterator[Mutant]:
    """Every flip of a file."""
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    plain = ast.unparse(tree).splitlines()
    number = 0
    while True:
        flip = _Flip(number)
        changed = ast.unparse(ast.fix_missing_locations(flip.visit(copy.deepcopy(tree))))
        if number >= flip.count:
            return
        number += 1
        lines = [(a, b) for a, b in zip(plain, changed.splitlines()) if a != b]
        if lines:
            yield Mutant(file.name, flip.line, flip.lines, lines[0][0].strip(), lines[0][1].strip(), changed)
