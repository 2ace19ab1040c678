"""Sets: rows of outputs compared without their order, as detections are that a tie between scores has reordered."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from passes.audit.leaves import leaves_of

MOST_ROWS = 5_000

Tables = dict[str, list[Tensor]]


@dataclass(frozen=True)
class RowMatch:
    """How many of the `rows` of two outputs have a partner, how far partners are apart, and the numbers in them."""

    matched: int
    rows: int
    deviation: float
    numbers: int


def match_rows(zeroed: Any, pruned: Any, allowed: float) -> RowMatch | None:
    """The rows of the outputs paired with rows that deviate by at most `allowed`; None where there are no rows.

    Tensors of one length under one parent are a table (the boxes, scores and labels of an image), and so is each item
    of a batch of tables. Every row has one partner at most.
    """
    ours, theirs = _tables(zeroed), _tables(pruned)
    if not ours or ours.keys() != theirs.keys():
        return None
    matched = rows = numbers = 0
    worst = 0.0
    for name, columns in ours.items():
        left, right = _as_rows(columns, columns), _as_rows(theirs[name], columns)
        if left.shape[1] != right.shape[1] or max(len(left), len(right)) > MOST_ROWS:
            return None
        distances = _distances_of_partners(left, right, allowed)
        matched += len(distances)
        rows += max(len(left), len(right))
        numbers += left.numel()
        worst = max(worst, *distances, 0.0)
    return RowMatch(matched, rows, worst, numbers)


def _tables(outputs: Any) -> Tables:
    """The tensors of the outputs that make a table together, by its place."""
    groups: defaultdict[str, list[Tensor]] = defaultdict(list)
    for leaf in leaves_of(outputs):
        if isinstance(leaf.value, Tensor) and leaf.value.dim() and not leaf.value.is_sparse:
            groups[leaf.path[: max(leaf.path.rfind("["), leaf.path.rfind("."), 0)]].append(leaf.value.detach())
    tables: Tables = {}
    for place, tensors in groups.items():
        if all(each.dim() > 2 for each in tensors):
            if len({len(each) for each in tensors}) == 1:
                tables |= {f"{place}[{i}]": [each[i] for each in tensors] for i in range(len(tensors[0]))}
        else:
            tables[place] = tensors
    return {place: table for place, table in tables.items() if len({len(each) for each in table}) == 1}


def _as_rows(columns: list[Tensor], scales: list[Tensor]) -> Tensor:
    """A table as one matrix, each of its tensors relative to the largest number of the same tensor in `scales`."""
    parts = []
    for each, reference in zip(columns, scales, strict=False):
        scale = float(reference.double().abs().max()) if reference.numel() else 0.0
        parts.append((each.double().flatten(1) if each.dim() > 1 else each.double()[:, None]) / (scale or 1.0))
    return torch.cat(parts, 1)


def _distances_of_partners(left: Tensor, right: Tensor, allowed: float) -> list[float]:
    """For each row of `left` that finds one, the distance of the nearest row of `right` that is free."""
    if not len(left) or not len(right):
        return []
    distances = torch.cdist(left, right, p=float("inf"))
    found = []
    for row in distances:
        nearest = int(row.argmin())
        if (distance := float(row[nearest])) <= allowed:
            distances[:, nearest] = float("inf")
            found.append(distance)
    return found
