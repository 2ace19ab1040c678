"""The feature attention loss: how much of a detector's attention to its targets is lost when channels are zeroed.

The definition is ours, after the idea in the abstract of Ran et al. 2024 (Remote Sensing 16, 2026); the maps are those
of Zagoruyko and Komodakis 2017 (attention transfer).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from l1rr_fx.replay import Replay, Values
from l1rr_fx.taps import found_taps, named_taps, tap_names
from l1rr_fx.targets import Batch, Target, read_batches, target_mask
from l1rr_fx.zeroing import evaluation_graph, unwrapped
from passes.errors import InputError
from passes.program import Program
from passes.rules import rule_for


@dataclass(frozen=True)
class AttentionLoss:
    """0: attention to the targets is what it was; 1: as much of it was displaced as there was.

    `per_tap` is by the name of the feature map, of those that the change reaches; `per_class` by the boxes' class.
    """

    total: float
    per_tap: Mapping[str, float] = field(default_factory=dict)
    per_class: Mapping[str, float] = field(default_factory=dict)


def attention_map(features: Tensor) -> Tensor:
    """q = A / ||A||_2 with A the sum of squares over channels, shape (n, h, w), of features (n, c, h, w)."""
    energy = features.float().square().sum(1)
    size = torch.linalg.vector_norm(energy.flatten(1), dim=1).clamp(min=1e-12)
    found: Tensor = energy / size[:, None, None]
    return found


def attention_loss(reference: Tensor, changed: Tensor, masks: Tensor) -> Tensor:
    """sum(M |q - q'|) / sum(M q) for each image, shape (n,): features (n, c, h, w) before and after, masks (n, h, w).

    Differentiable, so that it can be a term of a training loss. 0 where an image has no targets.
    """
    before, after = attention_map(reference), attention_map(changed)
    lost = (masks * (before - after).abs()).flatten(1).sum(1)
    return lost / ((masks * before).flatten(1).sum(1) + 1e-9)


class FeatureAttention:
    """The feature attention loss of a model on batches of images with boxes.

    `batches` yields (images, targets), see `l1rr_fx.targets`; `class_names` names the labels 0, 1, ...
    `taps` names the feature maps: modules by their dotted names; by default the tensors that enter the detector's heads
    and those that its predictions are made from. The reference are the weights that the model has now; evaluation mode
    is used throughout.

    Raises InputError for bad batches or taps, and what `passes.capture` raises.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        batches: Iterable[Any],
        *,
        taps: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self._model = unwrapped(model)
        device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        self.batches: tuple[Batch, ...] = read_batches(batches, device=device)
        self._names = taps
        self._classes = _class_names(self.batches, class_names)
        self._replays: dict[tuple[Any, ...], Replay] = {}
        first = self._replay(args)
        self.nodes: tuple[str, ...] = tuple(node.name for node in first.ends)
        self.taps: tuple[str, ...] = tap_names(first.module.graph, first.ends)
        self.reference: Values = {name: v.detach().clone() for name, v in self._model.state_dict().items()}

    def reaches(self, parameters: Sequence[str]) -> bool:
        """Whether any feature map depends on the parameters: what comes after the last one cannot be judged."""
        return any(replay.reached_ends(parameters) for replay in self._replays.values())

    def losses(self, changes: Sequence[Values], *, per_class: bool = False) -> tuple[AttentionLoss, ...]:
        """The loss for each of several changes of the model's parameters, each measured alone.

        Of a change only those feature maps count that depend on it. What does not depend on it is computed once.
        InputError if the model gives NaN.
        """
        sums = [_Sums() for _ in changes]
        for batch in self.batches:
            replay, masks = self._replay(batch.args), _Masks(batch)
            with torch.no_grad():
                before = replay.run(batch.args, self.reference)
            labels = (None, *batch.classes) if per_class else (None,)
            for change, total in zip(changes, sums, strict=True):
                after = replay.rerun(before, change)
                for end, tap in zip(replay.ends, self.taps, strict=True):
                    for label in labels if end in after else ():
                        mask = masks.of(before[end], label)
                        lost = attention_loss(before[end], after[end], mask)
                        total.add(tap, label, lost, mask.flatten(1).any(1))
        return tuple(total.loss(self._classes) for total in sums)

    def of(self, model: nn.Module) -> AttentionLoss:
        """The loss of a model with the same parameters, such as a zeroed or a fine-tuned copy; also per class."""
        state = unwrapped(model).state_dict()
        for name, value in self.reference.items():
            if name not in state or state[name].shape != value.shape:
                raise InputError(f"{name} of shape {tuple(value.shape)} is not in this {type(model).__name__}")
        change = {name: state[name].detach().to(value.device) for name, value in self.reference.items()}
        return self.losses([change], per_class=True)[0]

    def term(self, images: Tensor | tuple[Any, ...], targets: Sequence[Target]) -> Tensor:
        """The loss of the model as it is now on a batch, differentiable: a term that keeps attention while it trains.

        It costs a forward pass with and one without gradients up to the feature maps, in evaluation mode.
        """
        device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        (batch,) = read_batches([(images, targets)], device=device)
        replay, masks = self._replay(batch.args), _Masks(batch)
        with torch.no_grad():
            before = replay.run(batch.args, self.reference)
        after = replay.run(batch.args, {})
        means = []
        for end in replay.ends:
            mask = masks.of(before[end])
            means.append(attention_loss(before[end], after[end], mask)[mask.flatten(1).any(1)].mean())
        return torch.stack(means).mean()

    def _replay(self, args: tuple[Any, ...]) -> Replay:
        """The network for arguments of these shapes; captured when the first such batch comes."""
        key = _shapes(args)
        if key not in self._replays:
            program = Program(evaluation_graph(self._model, args), rule_for)
            ends = found_taps(program) if self._names is None else named_taps(program, self._names)
            self._replays[key] = Replay(program.module, ends)
        return self._replays[key]


class _Masks:
    """The target masks of a batch for maps of any size."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def of(self, features: Tensor, label: int | None = None) -> Tensor:
        """The masks over a map (n, c, h, w), shape (n, h, w): of all boxes, or of those of one class."""
        height, width = features.shape[2:]
        key = (height, width, label)
        if key not in self._masks:
            pairs = zip(self.batch.boxes, self.batch.labels, strict=True)
            chosen = [boxes if label is None else boxes[labels == label] for boxes, labels in pairs]
            self._masks[key] = torch.stack([target_mask(b, self.batch.size, (height, width)) for b in chosen])
        return self._masks[key]


class _Sums:
    """Losses summed over images, by feature map and class (None: all boxes)."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, int | None], Tensor] = {}
        self.counts: dict[tuple[str, int | None], Tensor] = {}

    def add(self, tap: str, label: int | None, losses: Tensor, held: Tensor) -> None:
        """The losses of a batch's images; those that hold none of the boxes, whose loss is 0, do not count."""
        key = (tap, label)
        self.sums[key] = self.sums.get(key, 0) + losses.double().sum()
        self.counts[key] = self.counts.get(key, 0) + held.sum()

    def loss(self, names: Mapping[int, str]) -> AttentionLoss:
        means = {key: float(each / self.counts[key]) for key, each in self.sums.items() if int(self.counts[key])}
        by_class: dict[int | None, list[float]] = defaultdict(list)
        for (tap, label), mean in means.items():
            if not math.isfinite(mean):
                raise InputError(f"the attention loss at {tap} is {mean}: the model gives NaN or infinity there")
            by_class[label].append(mean)
        average = {label: math.fsum(each) / len(each) for label, each in by_class.items()}
        per_tap = {tap: mean for (tap, label), mean in means.items() if label is None}
        return AttentionLoss(
            average.get(None, 0.0), per_tap, {names[n]: average[n] for n in sorted(k for k in average if k is not None)}
        )


def _class_names(batches: Sequence[Batch], names: Sequence[str] | None) -> Mapping[int, str]:
    """A name for each label that occurs: its number where no names are given."""
    labels = sorted({label for batch in batches for label in batch.classes})
    if names is None:
        return {label: str(label) for label in labels}
    if outside := [label for label in labels if not 0 <= label < len(names)]:
        raise InputError(f"label {outside[0]} has no name: {len(names)} class_names are given")
    return {label: names[label] for label in labels}


def _shapes(args: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(tuple(arg.shape) if isinstance(arg, Tensor) else arg for arg in args)
