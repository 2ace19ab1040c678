"""Products of activations: matmul, bmm, einsum, scaled dot-product attention, all read as an einsum over letters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, collapse
from passes.graph.nodes import operator_name
from passes.rules.base import Contraction, LayoutRequest, Request, Rule, Site, SiteFacts, compact, unlabelled
from passes.rules.emitter import Emitter

aten = torch.ops.aten
MOST_LABELS = 1 << 19
"""Of a result: twelve heads of 197 x 197 tokens have fewer. With more, all rows share one label."""


class Einsum(Rule):
    """A sum of products over letters. Two labels meet only where their letters agree, so that a contracted channel goes
    where it is zero on either side; rows (attention heads) may keep different channels, as many each."""

    family = "product"
    reason = None
    contracts = True

    def letters(self, site: Site) -> tuple[list[str], str] | None:
        """The letters of each operand and of the result; None where we cannot say."""
        if operator_name(site.node) == "einsum":
            return self.parsed(site)
        if len(site.inputs) != 2:
            return None
        ranks = [len(site.shape(n)) for n in site.inputs]
        batch = "abcdefgh"[: max(*ranks, 2) - 2]
        left, right = (batch[len(batch) - max(0, r - 2) :] for r in ranks)
        rows, columns = ("m" if ranks[0] > 1 else ""), ("n" if ranks[1] > 1 else "")  # neither for a vector
        return [left + rows + "k", right + "k" + columns], batch + rows + columns

    @staticmethod
    def parsed(site: Site) -> tuple[list[str], str] | None:
        equation = str(site.node.args[0]).replace(" ", "")
        if "." in equation or "->" not in equation or len(site.inputs) != equation.count(",") + 1:
            return None
        left, out = equation.split("->")
        operands = left.split(",")
        return None if any(len(set(o)) != len(o) for o in [*operands, out]) else (operands, out)

    # Facts

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        found = self.letters(site)
        if found is None:
            return [unlabelled(site, out) for out in site.outputs]
        operands, out = found
        merged = self.merged(found, zeros)
        masks = [without(merged, own, zero) for own, zero in zip(operands, zeros, strict=True)]
        return [torch.einsum(f"{','.join(operands)}->{out}", *((~z).float() for z in masks)) == 0]

    def merges_positions(self, site: Site, zeros: Sequence[Tensor]) -> bool:
        found = self.letters(site)
        return found is not None and bool(self.merged(found, zeros))

    def merged(self, found: tuple[list[str], str], zeros: Sequence[Tensor]) -> str:
        """The letters of rows, if the result would have too many labels: each operand's own, but for the channels."""
        operands, out = found
        sizes: dict[str, int] = {}
        for own, zero in zip(operands, zeros, strict=True):
            for letter, size in zip(own, zero.shape, strict=True):
                sizes[letter] = max(size, sizes.get(letter, 1))
        if math.prod(sizes[letter] for letter in out) <= MOST_LABELS:
            return ""
        return "".join(c for c in out[:-1] if sizes[c] != 1 and c not in self.shared(found))

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        found = self.letters(site)
        if found is None:
            return super().needed(site, lives, zeros)
        operands, out = found
        result = []
        for index, (own, zero) in enumerate(zip(operands, zeros, strict=True)):
            others = [(o, ~z) for i, (o, z) in enumerate(zip(operands, zeros, strict=True)) if i != index]
            terms = [(out, lives[0]), *others, (own, torch.ones_like(zero))]
            equation = f"{','.join(t for t, _ in terms)}->{own}"
            reached = torch.einsum(equation, *(m.float() for _, m in terms)) > 0
            result.append(collapse(reached, compact(zero)).expand(zero.shape))
        return result

    # Layouts

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        found = self.letters(site)
        if found is None or coordinates(requested[0], found[1], self.shared(found)) is not None:
            return list(requested)
        return [requested[0].as_product()]

    @staticmethod
    def shared(found: tuple[list[str], str]) -> str:
        """The letters that every operand and the result have."""
        operands, out = found
        return "".join(c for c in out if all(c in o for o in operands))

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        found = self.letters(site)
        if found is None or len(site.inputs) != len(found[0]):
            return None
        operands, out = found
        places = coordinates(outs[0], out, self.shared(found))
        if places is None:
            return None
        lives = self.own_lives(site, facts)
        used: dict[str, Place] = {}
        if (letter := self.contracted(operands, out, lives)) is not None:
            line = self.contract(letter, operands, out, lives, places)
            if line is None:
                return None
            places[letter], used[letter] = line
        kept = outs[0].of(facts.lives[0])
        requests: list[Request] = []
        for own, node in zip(operands, site.inputs, strict=True):
            layout = arranged(own, places, site.shape(node))
            if layout is None:
                return None
            mask = collapse_letters(kept, out, own, layout)
            for letter, flags in used.items():
                if letter in own:
                    mask = mask & spread(flags, own)
            requests.append(LayoutRequest(layout, mask.expand(layout.labels.shape)))
        return requests

    def contracted(self, operands: Sequence[str], out: str, lives: Sequence[Tensor]) -> str | None:
        """The letter, not of the result, along which dead indices are left out: of several the one that is deadest."""
        shares: dict[str, float] = {}
        for own, mask in zip(operands, lives, strict=True):
            for letter, size in zip(own, mask.shape, strict=True):
                if size != 1 and letter not in out:
                    shares[letter] = min(float(mask.float().mean()), shares.get(letter, 1.0))
        return min(shares, key=shares.__getitem__, default=None)

    def own_lives(self, site: Site, facts: SiteFacts) -> list[Tensor]:
        """What of each operand this call reads and is not zero."""
        return [n & ~z for n, z in zip(self.needed(site, facts.lives, facts.zeros), facts.zeros, strict=True)]

    def contract(
        self, letter: str, operands: Sequence[str], out: str, lives: Sequence[Tensor], places: Mapping[str, Place]
    ) -> tuple[Place, Place] | None:
        """Which indices of a contracted letter live, row by row of the letters that all operands share."""
        having = [(o, live) for o, live in zip(operands, lives, strict=True) if letter in o]
        rows = "".join(c for c in out if c in places and all(c in o for o, _ in having))
        if any(set(places[c].letters) - set(rows) for c in rows):
            return None
        equation = f"{','.join(o for o, _ in having)}->{rows}{letter}"
        live = torch.einsum(equation, *(m.float() for _, m in having)) > 0
        for axis, row in enumerate(rows):
            if live.shape[axis] == 1:
                continue
            place = places[row]
            if set(place.letters) - {row}:
                return None
            live = live.index_select(axis, place.index.reshape(-1))
        width = max(1, int(live.sum(-1).max()))
        order = (~live).to(torch.uint8).sort(dim=-1, stable=True).indices[..., :width].sort(dim=-1).values
        return Place(rows + letter, order), Place(rows + letter, live.gather(-1, order))

    # Emission and accounts

    def cost(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> Contraction | None:
        found = self.letters(site)
        if found is None or len(ins) != len(found[0]):
            return None
        sizes: dict[str, int] = {}
        for own, node, layout in zip(found[0], site.inputs, ins, strict=True):
            for letter, n in zip(own, layout.shrunk(site.shape(node)), strict=True):
                sizes[letter] = max(n, sizes.get(letter, 1))
        summed = math.prod(n for c, n in sizes.items() if c not in found[1])
        return Contraction(summed, math.prod(sizes[c] for c in found[1][-1:]), math.prod(sizes.values()))

    def limit(self, site: Site, facts: SiteFacts) -> Contraction | None:
        found = self.letters(site)
        if found is None or len(site.inputs) != len(found[0]):
            return None
        operands, out = found
        terms = [*zip(operands, self.own_lives(site, facts), strict=True), (out, facts.lives[0])]
        labelled: dict[str, int] = {}
        full: dict[str, int] = {}
        for own, mask in terms:
            for letter, n in zip(own, mask.shape, strict=True):
                labelled[letter] = max(n, labelled.get(letter, 1))
        for own, node in zip(operands, site.inputs, strict=True):
            for letter, n in zip(own, site.shape(node), strict=True):
                full[letter] = max(n, full.get(letter, 1))
        pairs = torch.einsum(f"{','.join(o for o, _ in terms)}->", *(m.double() for _, m in terms))
        rest = math.prod(full[c] for c, n in labelled.items() if n == 1)
        summed = math.prod(full[c] for c in full if c not in out)
        outputs = live_along(facts.lives[0], -1, full[out[-1]]) if out else 1
        return Contraction(summed, outputs, int(pairs) * rest)


class Attention(Einsum):
    """softmax(q kᵀ · scale) v. The scale comes from the head's size unless it is given, so the old one is stated."""

    def letters(self, site: Site) -> tuple[list[str], str] | None:
        ranks = {len(site.shape(n)) for n in site.inputs}
        if len(site.inputs) != 3 or len(ranks) != 1 or site.argument(6, "enable_gqa", False):
            return None
        batch = "abcdefgh"[: ranks.pop() - 2]
        return [batch + "le", batch + "se", batch + "sv"], batch + "lv"

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        if self.letters(site) is None:
            return [unlabelled(site, out) for out in site.outputs]
        value = zeros[2]
        small = [1 if a == value.dim() - 2 else n for a, n in enumerate(value.shape)]
        return [collapse(value, small, every=True)]

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        if self.letters(site) is None:
            return Rule.needed(self, site, lives, zeros)
        query, key, value = zeros
        rows = lives[0].any(-1, keepdim=True)
        of_query = collapse(
            rows & ~collapse(key, [1 if a == key.dim() - 2 else n for a, n in enumerate(key.shape)], every=True),
            _joined(rows, query),
        )
        of_key = collapse(
            rows.any(-2, keepdim=True)
            & ~collapse(query, [1 if a == query.dim() - 2 else n for a, n in enumerate(query.shape)], every=True),
            _joined(rows, key),
        )
        of_value = lives[0].any(-2, keepdim=True)
        return [
            collapse(m.expand(torch.broadcast_shapes(m.shape, z.shape)), compact(z))
            for m, z in ((of_query, query), (of_key, key), (of_value, value))
        ]

    def contracted(self, operands: Sequence[str], out: str, lives: Sequence[Tensor]) -> str | None:
        return "e" if any(live.shape[-1] != 1 for live in lives[:2]) else None  # a softmax goes over all keys

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        kwargs = dict(to.kwargs)
        if site.argument(6, "scale", None) is None:
            kwargs["scale"] = 1.0 / math.sqrt(site.shape(site.inputs[0])[-1])
        return [to.call(site.node.target, to.args, kwargs)]

    def cost(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> Contraction | None:
        if self.letters(site) is None:
            return None
        query, key, value = (layout.shrunk(site.shape(n)) for n, layout in zip(site.inputs, ins, strict=True))
        scores = math.prod(query[:-1]) * key[-2]
        return Contraction(query[-1], value[-1], scores * (query[-1] + value[-1]))

    def limit(self, site: Site, facts: SiteFacts) -> Contraction | None:
        if self.letters(site) is None:
            return None
        query, key, _ = (site.shape(n) for n in site.inputs)
        lives = self.own_lives(site, facts)
        total = 0
        for mask, node in ((lives[0], site.inputs[0]), (facts.lives[0], site.node)):
            full = site.shape(node)
            total += int(mask.sum()) * math.prod(n for n, m in zip(full, mask.shape, strict=True) if m == 1) * key[-2]
        return Contraction(query[-1], live_along(facts.lives[0], -1, site.out_shape[-1]), total)


def _joined(rows: Tensor, mask: Tensor) -> list[int]:
    return [max(a, b) for a, b in zip(rows.shape, mask.shape, strict=True)]


def live_along(live: Tensor, axis: int, full: int) -> int:
    """How many indices of an axis are live anywhere; all of them if the axis has no labels."""
    return full if live.shape[axis] == 1 else int(live.movedim(axis, 0).reshape(live.shape[axis], -1).any(1).sum())


class Place:
    """The original index along one letter, as a tensor over the small network's `letters`."""

    def __init__(self, letters: str, index: Tensor) -> None:
        self.letters = letters
        self.index = index


def coordinates(layout: Layout, letters: str, shared: str) -> dict[str, Place] | None:
    """Where each labelled letter of a layout comes from; None if it depends on a letter that not all operands have."""
    found: dict[str, Place] = {}
    for axis in layout.axes:
        index = layout.coordinate(axis)
        names = letters
        for other in reversed(range(layout.rank)):
            if other == axis:
                continue
            first = index.narrow(other, 0, 1)
            if bool((index == first).all()):
                index = first.squeeze(other)
                names = names[:other] + names[other + 1 :]
        if set(names) - set(shared) - {letters[axis]}:
            return None
        found[letters[axis]] = Place(names, index)
    return found


def without(merged: str, letters: str, zero: Tensor) -> Tensor:
    """The zeros of an operand with these letters, in one label along each letter of `merged`."""
    return collapse(zero, [1 if c in merged else n for c, n in zip(letters, zero.shape, strict=True)], every=True)


def spread(place: Place, letters: str) -> Tensor:
    """A place's tensor with one axis for each of `letters`."""
    order = sorted(range(len(place.letters)), key=lambda i: letters.index(place.letters[i]))
    index = place.index.permute(order)
    names = [place.letters[i] for i in order]
    sizes = iter(index.shape)
    return index.reshape([next(sizes) if c in names else 1 for c in letters])


def arranged(letters: str, places: Mapping[str, Place], shape: Sequence[int]) -> Layout | None:
    """The layout of an operand whose letters have these places; an axis of size 1 is broadcast and stays."""
    small = tuple(n if c in places else 1 for c, n in zip(letters, shape, strict=True))
    labels = torch.zeros((1,) * len(letters), dtype=torch.int64)
    for axis, letter in enumerate(letters):
        if small[axis] == 1:
            continue
        place = places[letter]
        if set(place.letters) - set(letters):
            return None
        labels = labels + spread(place, letters) * math.prod(small[axis + 1 :])
    return Layout(small, labels)


def collapse_letters(mask: Tensor, letters: str, own: str, layout: Layout) -> Tensor:
    """A mask over the result's letters, reduced to those of one operand."""
    for axis in reversed(range(len(letters))):
        if letters[axis] not in own or layout.labels.shape[own.index(letters[axis])] == 1:
            mask = mask.any(axis, keepdim=True)
    names = [c for c in letters if c in own]
    mask = mask.reshape([n for c, n in zip(letters, mask.shape, strict=True) if c in own])
    order = sorted(range(len(names)), key=lambda i: own.index(names[i]))
    sizes = iter(mask.permute(order).shape)
    return mask.permute(order).reshape([next(sizes) if c in names else 1 for c in own])


EINSUM, ATTENTION = Einsum(), Attention()

RULES: dict[str, Rule] = {
    **dict.fromkeys(("matmul", "bmm", "mm", "einsum"), EINSUM),
    "scaled_dot_product_attention": ATTENTION,
}
