"""PQ-trees: an order of elements in which given sets are runs (the consecutive-ones property).

    consecutive_order(6, [{0, 3}, {3, 5}]).order        # (0, 3, 5, 1, 2, 4)

A PQ-tree (Booth and Lueker 1976, "Testing for the Consecutive Ones Property ...") represents all orders in which each
of the sets added so far is a run: the children of a P-node may be permuted, those of a Q-node only reversed. Adding a
set restricts the tree, or is impossible. Booth and Lueker apply templates to a mutable tree; this implementation
descends once and builds a new tree, so that a set that does not fit leaves nothing to undo. Elements that lie in the
same sets share one leaf, and a node holds its leaves as the bits of one number, so that "does it hold some, or all, of
the set" is one operation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from passes.errors import InputError

MOST_PIECES = 16
"""A set that cannot be a run is gathered into few runs if the tree cuts it into at most this many pieces."""

EMPTY, PARTIAL, FULL = 0, 1, 2


@dataclass(frozen=True)
class Order:
    """A permutation of `range(n)`, and for each set, as given, whether its elements are contiguous in it."""

    order: tuple[int, ...]
    satisfied: tuple[bool, ...]


def consecutive_order(n: int, sets: Sequence[Collection[int]], weights: Sequence[float] | None = None) -> Order:
    """An order of `range(n)` in which the sets are runs.

    If there is an order in which all of them are, it is such an order. Otherwise sets are added heaviest first (equal
    ones as given), and a set that does not fit those before it is left out; its elements form few runs where the others
    allow it. Elements that no set constrains stay in natural order. Each set takes time linear in the size of the tree.

    Raises InputError for an element outside of `range(n)`, or if there is not one weight for each set.
    """
    if weights is not None and len(weights) != len(sets):
        raise InputError(f"{len(weights)} weights for {len(sets)} sets; expected one for each")
    leaves, masks = _leaves(n, sets)
    tree = _free(leaves)
    satisfied = [False] * len(sets)
    heaviest_first = sorted(range(len(sets)), key=lambda i: -weights[i] if weights is not None else 0.0)
    for index in heaviest_first:
        restricted = _restricted(tree, masks[index])
        satisfied[index] = restricted is not None
        tree = restricted or tree
    for index in heaviest_first:
        if not satisfied[index]:
            tree = _gathered(tree, masks[index])
    return Order(tuple(_frontier(tree)), tuple(satisfied))


@dataclass(frozen=True, slots=True, eq=False)
class _Node:
    """A leaf (`elements`, no children), a P-node or, if `ordered`, a Q-node. `leaves` has a bit for each leaf below."""

    leaves: int
    first: int
    children: tuple[_Node, ...] = ()
    ordered: bool = False
    elements: tuple[int, ...] = ()

    def colour(self, members: int) -> int:
        """How much of this lies in the set: EMPTY, PARTIAL or FULL."""
        if not self.leaves & members:
            return EMPTY
        return PARTIAL if self.leaves & ~members else FULL


def _leaves(n: int, sets: Sequence[Collection[int]]) -> tuple[list[_Node], list[int]]:
    """A leaf for all elements that lie in the same sets; and the sets as bits of leaves."""
    signature = [0] * n
    for index, members in enumerate(sets):
        for element in members:
            if not 0 <= element < n:
                raise InputError(f"set {index} has the element {element}; elements are 0 to {n - 1}")
            signature[element] |= 1 << index
    alike: dict[int, list[int]] = defaultdict(list)
    for element, those in enumerate(signature):
        alike[those].append(element)
    leaves, masks = [], [0] * len(sets)
    for bit, (those, elements) in enumerate(alike.items()):
        leaves.append(_Node(1 << bit, elements[0], elements=tuple(elements)))
        for index in range(len(sets)):
            masks[index] |= (those >> index & 1) << bit
    return leaves, masks


def _free(children: Sequence[_Node]) -> _Node:
    """A P-node, or the only child."""
    return children[0] if len(children) == 1 else _parent(children, ordered=False)


def _fixed(children: Sequence[_Node]) -> _Node:
    """A Q-node, or the only child."""
    return children[0] if len(children) == 1 else _parent(children, ordered=True)


def _parent(children: Sequence[_Node], *, ordered: bool) -> _Node:
    leaves = 0
    for child in children:
        leaves |= child.leaves
    return _Node(leaves, min((child.first for child in children), default=0), tuple(children), ordered)


def _restricted(tree: _Node, members: int) -> _Node | None:
    """The orders of `tree` in which the set is a run; None if there are none."""
    if not members:
        return tree
    path, node = [], tree
    while node.colour(members) == PARTIAL:
        touched = [i for i, child in enumerate(node.children) if child.leaves & members]
        if len(touched) > 1:
            break
        path.append((node, touched[0]))
        node = node.children[touched[0]]
    joined = _joined_ordered(node, members) if node.ordered else _joined_free(node, members)
    for parent, index in reversed(path):
        if joined is None:
            return None
        children = (*parent.children[:index], joined, *parent.children[index + 1 :])
        joined = _Node(parent.leaves, parent.first, children, parent.ordered)
    return joined


def _joined_free(node: _Node, members: int) -> _Node | None:
    """A P-node (or leaf) below which the whole set lies: full children in the middle, a partial one on either side."""
    if node.elements:
        return _parent((node,), ordered=False)  # a leaf that is a child of a P-node need not stay together; this must
    empty, partial, full = _split(node, members)
    if not empty and not partial:
        return node
    if len(partial) > 2:
        return None
    sides = [_towards_full(child, members) for child in partial]
    left, right = (*sides, [], [])[:2]
    if left is None or right is None:
        return None
    run = [*left, *([_free(full)] if full else []), *reversed(right)]
    return _free([*empty, _fixed(run)])


def _joined_ordered(node: _Node, members: int) -> _Node | None:
    """A Q-node below which the whole set lies: its children are empty, one partial, full, one partial, empty."""
    children: list[_Node] = []
    inside = ended = False
    for child in node.children:
        colour = child.colour(members)
        if colour != EMPTY and ended:
            return None
        if colour != PARTIAL:
            children.append(child)
            ended = inside and colour == EMPTY
        else:
            side = _towards_full(child, members)
            if side is None:
                return None
            children += reversed(side) if inside else side
            ended = inside
        inside = inside or colour != EMPTY
    return _fixed(children)


def _towards_full(node: _Node, members: int) -> list[_Node] | None:
    """The parts of a partial node, fixed in an order in which the set is a run at the right end."""
    left: list[_Node] = []
    right: list[_Node] = []
    while True:
        empty, partial, full = _split(node, members)
        if len(partial) > 1:
            return None
        if node.ordered:
            colours = [child.colour(members) for child in node.children]
            if colours != sorted(colours):
                empty, full = empty[::-1], full[::-1]
                if colours != sorted(colours, reverse=True):
                    return None
            left, right = [*left, *empty], [*full, *right]
        else:
            left += [_free(empty)] if empty else []
            right = [_free(full), *right] if full else right
        if not partial:
            return left + right
        node = partial[0]


def _split(node: _Node, members: int) -> tuple[list[_Node], list[_Node], list[_Node]]:
    """The children by colour."""
    by_colour: tuple[list[_Node], list[_Node], list[_Node]] = ([], [], [])
    for child in node.children:
        by_colour[child.colour(members)].append(child)
    return by_colour


def _gathered(tree: _Node, members: int) -> _Node:
    """The tree restricted so that a set which cannot be one run comes in few: pieces of it that can be are joined."""
    pieces, run = _pieces(tree, members), 0
    if len(pieces) > MOST_PIECES:
        return tree
    for piece in pieces:
        joined = _restricted(tree, run | piece)
        run = piece if joined is None else run | piece
        tree = joined or _restricted(tree, piece) or tree
    return tree


def _pieces(tree: _Node, members: int) -> list[int]:
    """Parts of a set that can be runs: the full children of a P-node together, each full child of a Q-node."""
    pieces: list[int] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        _, partial, full = _split(node, members)
        if node.colour(members) == FULL:
            pieces.append(node.leaves)
        elif node.ordered:
            stack += [child for child in reversed(node.children) if child.leaves & members]
        else:
            pieces += [_parent(full, ordered=False).leaves] if full else []
            stack += partial
    return pieces


def _frontier(tree: _Node) -> list[int]:
    """The order of the tree that is nearest to the natural one."""
    order: list[int] = []
    stack: list[_Node | int] = [tree]
    while stack:
        part = stack.pop()
        if isinstance(part, int):
            order.append(part)
        elif part.ordered:
            backwards = part.children[0].first > part.children[-1].first
            stack += part.children if backwards else part.children[::-1]
        else:
            parts: Iterable[_Node | int] = part.elements or (p for c in part.children for p in c.elements or (c,))
            stack += sorted(parts, key=lambda p: p if isinstance(p, int) else p.first, reverse=True)
    return order
