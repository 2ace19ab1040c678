"""The weights that read constant channels.

    y = W x + b      where x has the constant c in some channels

Without padding W c goes into the bias. With padding c is missing at the border, so one of the channels stays for all of
them: its column becomes the sum of theirs, each in proportion to its constant. The same holds for channels that are
multiples of one fixed map (`maps`). Both are exact for every size of input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from passes.absorption.edits import Edits, tensor_readers
from passes.absorption.maps import NONE, ONES, FixedMaps
from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.graph.layout import along
from passes.rules.base import Site, replaced
from passes.rules.weights import Columns, bias_of, weight_of


@dataclass(frozen=True, eq=False)
class Reader:
    """All calls of one weight, and channels that they all read as the same multiples of one map.

    `constant` masks these input channels, `value` holds the multiples (0 for others). `even`: the map is 1 everywhere,
    and none of the calls pads.
    """

    sites: tuple[Site, ...]
    columns: tuple[Columns, ...]
    constant: Tensor
    value: Tensor
    even: bool

    def moved(self, anchored: Tensor) -> Tensor:
        """The channels that the calls need no more: all, or all but one of each group.

        Of several the one stays that something else needs (`anchored`), and of these the largest constant.
        """
        if self.even:
            return self.constant
        moved = self.constant.clone()
        for part in self.columns[0].parts():
            size = torch.where(self.constant[part], self.value[part].abs(), 0.0)
            if bool((size != 0).any()):
                held = torch.where(anchored[part], size, 0.0)
                moved[part.start + int((held if bool((held != 0).any()) else size).argmax())] = False
        return moved

    def cuts(self, facts: Facts, moved: Tensor) -> Iterator[tuple[tuple[Node, int], Tensor]]:
        """The same as labels of each call's input."""
        for site, columns in zip(self.sites, self.columns, strict=True):
            axis, shape = columns.axis, facts.zero[site.inputs[0]].shape
            if shape[axis] != 1 or len(moved) == 1:
                yield (site.node, 0), along(moved, axis, len(shape)).expand(shape)

    def labels(self, mask: Tensor) -> Tensor:
        """A mask of the input's labels as one bool a channel."""
        return self.columns[0].channels(mask)

    def absorb(self, edits: Edits, moved: Tensor) -> None:
        """Change the weight, and the biases."""
        if not bool(moved.any()):
            return
        if self.even:
            add_to_biases(edits, self.sites, self.columns[0].response(torch.where(moved, self.value, 0.0)))
        self._merge(edits.value(str(weight_of(self.sites[0].node).target)), moved)

    def _merge(self, weight: Tensor, moved: Tensor) -> None:
        """Clear the columns that are not needed; with padding the one that stays takes their part over."""
        parts = list(self.columns[0].parts())
        rows = weight.shape[0] // len(parts)
        for index, part in enumerate(parts):
            if self.columns[0].transposed:
                block = weight[part].transpose(0, 1)
            else:
                block = weight[index * rows : (index + 1) * rows]
            gone = moved[part].to(weight.device)
            if not self.even and bool((gone & (self.value[part] != 0).to(weight.device)).any()):
                kept = int((self.constant[part] & ~moved[part]).nonzero()[0])
                ratio = (self.value[part] / self.value[part][kept])[moved[part]].to(weight)
                merged = (block[:, gone].double() * ratio.double().view(1, -1, *[1] * (block.dim() - 2))).sum(1)
                block[:, kept] += merged.to(weight.dtype)
            block[:, gone] = 0


def add_to_biases(edits: Edits, sites: Sequence[Site], added: Tensor) -> None:
    """Add a vector to the biases of calls of one weight; calls without one get one together."""
    if bias_of(sites[0].node) is None:
        bias = edits.new_bias(weight_of(sites[0].node), len(added))
        for site in sites:
            site.node.args = replaced(site.node.args, 2, bias)
            site.node.kwargs = {key: value for key, value in site.node.kwargs.items() if key != "bias"}
    for name in {str(bias_of(site.node).target) for site in sites}:
        own = edits.value(name)
        own.add_(added.to(own))


def constant_readers(program: Program, facts: Facts, maps: Mapping[Node, FixedMaps]) -> list[Reader]:
    """The weights that read channels which no input changes, and of which something depends; one for each map."""
    calls: dict[int, list[tuple[Site, Columns]]] = {}
    for site in program.sites:
        if (columns := site.rule.columns(site)) is not None:
            calls.setdefault(columns.weight.data_ptr(), []).append((site, columns))
    readers = tensor_readers(program)
    return [found for pairs in calls.values() for found in _readers(facts, maps, pairs, readers)]


def _readers(
    facts: Facts,
    maps: Mapping[Node, FixedMaps],
    pairs: Sequence[tuple[Site, Columns]],
    readers: Mapping[str, frozenset[Node]],
) -> Iterator[Reader]:
    """One for each map that all calls of a weight read in some channels."""
    first = pairs[0][1]
    if first.is_depthwise or any(
        site.inputs[0] not in facts.ranges and site.inputs[0] not in maps for site, _ in pairs
    ):
        return
    read = [_read_maps(facts, maps, site, columns) for site, columns in pairs]
    kinds, value = torch.stack([kind for kind, _ in read]), read[0][1]
    known = (kinds != NONE).all(0)
    for _, other in read[1:]:
        known = known & (value == other)
    for kind in kinds[:, known].unique(dim=1).unbind(1):
        constant = known & (kinds == kind.view(-1, 1)).all(0)
        even = bool((kind == ONES).all()) and all(columns.even for _, columns in pairs)
        sites = tuple(site for site, _ in pairs)
        if are_private(sites, readers, biases=even):
            yield Reader(sites, tuple(c for _, c in pairs), constant, torch.where(constant, value, 0.0), even)


def are_private(sites: Sequence[Site], readers: Mapping[str, frozenset[Node]], *, biases: bool) -> bool:
    """Whether nothing else reads the weight of these calls, nor, with `biases`, their biases; all have one or none."""
    tensors = [weight_of(sites[0].node)]
    if biases:
        own = [bias_of(site.node) for site in sites]
        if any(bias is None for bias in own) and any(bias is not None for bias in own):
            return False
        tensors += [bias for bias in own if bias is not None]
    ours = {site.node for site in sites}
    return all(readers[str(node.target)] <= ours for node in tensors)


def _read_maps(facts: Facts, maps: Mapping[Node, FixedMaps], site: Site, columns: Columns) -> tuple[Tensor, Tensor]:
    """For each input channel that is not zero and is read, the map that it is a multiple of; and the multiples."""
    node = site.inputs[0]
    constant, value = columns.constants(facts.zero[node], facts.ranges.get(node))
    kind = torch.where(constant, ONES, NONE)
    if columns.axis == 1 and (found := maps.get(node)) is not None:
        more = ~constant & found.is_known.view(-1)
        kind, value = torch.where(more, found.kind.view(-1), kind), torch.where(more, found.factor.view(-1), value)
    read = columns.channels(facts.asked[site.node][0]) & ~columns.channels(facts.zero[node], every=True)
    return torch.where(read, kind, NONE), value
