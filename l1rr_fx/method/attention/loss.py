"""The feature attention loss: how much of a detector's attention to its objects is lost when channels are zeroed.

The definition is ours, after the idea in the abstract of Ran et al. 2024 (Remote Sensing 16, 2026); the maps are those
of Zagoruyko and Komodakis 2017 (attention transfer).
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from l1rr_fx.method.attention.feature_maps import (
    feature_map_names,
    found_feature_maps,
    named_feature_maps,
    same_feature_maps,
)
from l1rr_fx.method.attention.ground_truth import Batch, GroundTruth, read_batches, target_mask
from l1rr_fx.method.attention.replay import Replay, Values
from l1rr_fx.method.sites.zeroing import evaluation_graph, unwrapped
from l1rr_fx.support.arguments import all_of_kind, of_kind
from l1rr_fx.support.signatures import PLAIN, signature
from passes.analysis.program import Program
from passes.errors import InputError
from passes.frontend.capture import check_arguments
from passes.graph.nodes import attribute
from passes.rules import rule_for


@dataclass(frozen=True)
class AttentionLoss:
    """The part of the attention to the objects that was displaced: 0 for none, 1 for as much as there was.

    `per_tap`: by the name of the feature map, for the maps that depend on the change. `per_class`: by the class of the
    boxes. `total`: the mean over the feature maps.
    """

    total: float
    per_tap: Mapping[str, float] = field(default_factory=dict)
    per_class: Mapping[str, float] = field(default_factory=dict)


def attention_map(features: Tensor) -> Tensor:
    """q = A / ||A||_2, shape (n, h, w), with A the sum of squares over the channels of features (n, c, h, w)."""
    energy = features.float().square().sum(1)
    size = torch.linalg.vector_norm(energy.flatten(1), dim=1).clamp(min=1e-12)
    found: Tensor = energy / size[:, None, None]
    return found


def attention_loss(reference: Tensor, changed: Tensor, masks: Tensor) -> Tensor:
    """sum(M |q - q'|) / sum(M q) for each image, shape (n,), from features (n, c, h, w) and masks (n, h, w).

    Differentiable, so that it can be a term of a training loss. 0 for an image without boxes.
    """
    before, after = attention_map(reference), attention_map(changed)
    lost = (masks * (before - after).abs()).flatten(1).sum(1)
    return lost / ((masks * before).flatten(1).sum(1) + 1e-9)


class FeatureAttention:
    """The feature attention loss of a model on batches of images with boxes.

    The reference is the model with its weights as they are now. It is always run in evaluation mode.

    `args`: the arguments of one example call; in its graph the feature maps are found, and for images of other sizes
        the same maps are used.
    `batches`: an iterable of (images, targets). Images have shape (n, 3, h, w). Targets have an entry for each image:
        its boxes, shape (n, 4), as left, top, right, bottom in pixels, or a mapping with "boxes" and "labels".
    `taps`: the names of the feature maps: modules by their dotted names, or nodes of the graph. By default the inputs
        of the detector's heads and of its prediction layers.
    `class_names`: the names of the labels 0, 1, ...
    `recalibrated`: the batch norms behind a change have statistics that moved with it, as `recalibrate_batch_norm` will
        give them; so the loss is one that fine-tuning starts from (after Li et al. 2020, EagleEye). False leaves the
        statistics of the reference.

    InputError for bad batches or names, and the errors of `passes.capture`.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        batches: Iterable[Any],
        *,
        taps: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        recalibrated: bool = True,
    ) -> None:
        self.recalibrated = recalibrated
        self._model = unwrapped(model)
        check_arguments(self._model, args, None)
        self._device = next(self._model.parameters()).device
        self._names = None if taps is None else all_of_kind("taps", taps, str)
        if self._names == ():
            raise InputError("taps is empty: name at least one feature map, or leave it out")
        self.batches: tuple[Batch, ...] = read_batches(batches, device=self._device)
        if not any(len(boxes) for batch in self.batches for boxes in batch.boxes):
            raise InputError(f"{len(self.batches)} batches without a single box: attention is measured inside boxes")
        self._classes = _class_names(self.batches, class_names)
        self._replays: dict[tuple[Any, ...], Replay] = {}
        self._students: WeakKeyDictionary[nn.Module, dict[Any, Replay]] = WeakKeyDictionary()
        first = self._replay(args)
        self.nodes: tuple[str, ...] = tuple(node.name for node in first.ends)
        self.taps: tuple[str, ...] = feature_map_names(first.module.graph, first.ends)
        self.reference: Values = {name: v.detach().clone() for name, v in self._model.state_dict().items()}

    def reaches(self, parameters: Sequence[str]) -> bool:
        """Whether any feature map depends on the parameters. The loss says nothing about layers behind the last map."""
        return any(replay.reached_ends(parameters) for replay in self._replays.values())

    def losses(self, changes: Sequence[Values], *, per_class: bool = False) -> tuple[AttentionLoss, ...]:
        """The loss of each of several changes of the model's parameters, each measured alone.

        Only the feature maps that depend on a change count for it; other tensors are computed once for all changes.
        `per_class` adds the losses by class. InputError if the model gives NaN.
        """
        sums = [_Sums() for _ in changes]
        for batch in self.batches:
            replay, masks = self._replay(batch.args), _Masks(batch)
            with torch.no_grad():
                before = replay.run(batch.args, self.reference)
            labels = (None, *batch.classes) if per_class else (None,)
            for change, total in zip(changes, sums, strict=True):
                after = replay.rerun(before, change, recalibrated=self.recalibrated)
                for end, name in zip(replay.ends, self.taps, strict=True):
                    for label in labels if end in after else ():
                        mask = masks.of(before[end], label)
                        lost = attention_loss(before[end], after[end], mask)
                        total.add(name, label, lost, mask.flatten(1).any(1))
        return tuple(total.loss(self._classes) for total in sums)

    def of(self, model: nn.Module) -> AttentionLoss:
        """The loss, also per class, of a model with parameters of the same names and shapes, such as a zeroed copy."""
        return self.losses([self._values(unwrapped(of_kind("model", model, nn.Module)))], per_class=True)[0]

    def term(
        self, images: Tensor | tuple[Any, ...], targets: Sequence[GroundTruth], *, model: nn.Module | None = None
    ) -> Tensor:
        """The loss of the model as it is now on a batch: a differentiable term that keeps attention in a training.

        `model`: another model that learns the attention of the reference (Zagoruyko and Komodakis 2017), such as a
        pruned one. Its maps may have any number of channels.

        It costs one forward pass with gradients and one without, up to the feature maps. 0 for a batch without boxes,
        as random crops give. InputError for a model whose feature maps have other sizes.
        """
        (batch,) = read_batches([(images, targets)], device=self._device)
        maps = self._learned(batch, model)  # refuses a model of another kind
        replay, masks = self._replay(batch.args), _Masks(batch)
        with torch.no_grad():
            before = replay.run(batch.args, self.reference)
        means = []
        for end, learned in zip(replay.ends, maps, strict=True):
            mask = masks.of(before[end])
            if learned.shape[2:] != before[end].shape[2:]:
                raise InputError(
                    f"a map is {(*learned.shape[2:],)} in the model, {(*before[end].shape[2:],)} in the reference"
                )
            lost = attention_loss(before[end], learned, mask)
            means.append(lost.sum() / mask.flatten(1).any(1).sum().clamp(min=1))
        return torch.stack(means).mean()

    def _learned(self, batch: Batch, model: nn.Module | None) -> Sequence[Tensor]:
        """The feature maps of the model, or of another one, in the autograd graph."""
        values: Values = {}
        if model is None or unwrapped(model) is self._model:
            values = self._values(self._model)
            replay = self._replay(batch.args)
        else:
            replay = self._student(unwrapped(of_kind("model", model, nn.Module)), batch)
        found = replay.run(batch.args, values)
        return [found[end] for end in replay.ends]

    def _student(self, model: nn.Module, batch: Batch) -> Replay:
        """The network of another model for arguments of these shapes."""
        known = self._students.setdefault(model, {})
        key = signature(batch.args, {})
        if key not in known:
            program = Program(evaluation_graph(model, batch.args), rule_for)
            ends = found_feature_maps(program)
            if len(ends) != len(self.taps):
                raise InputError(f"the model has {len(ends)} feature maps, and the reference {len(self.taps)}")
            known[key] = Replay(program.module, ends)
        return known[key]

    def fingerprint(self) -> str:
        """A hash of everything that the losses depend on: network, weights, feature maps, images and boxes."""
        digest = hashlib.sha256(f"recalibrated {self.recalibrated}".encode())
        for replay in dict.fromkeys(self._replay(batch.args) for batch in self.batches):
            digest.update(replay.text.encode())
            for name in replay.tensors.values():
                _add(digest, self.reference[name] if name in self.reference else attribute(replay.module, name))
        for batch in self.batches:
            for leaf in pytree.tree_leaves((batch.args, batch.boxes)):
                _add(digest, leaf)
        return digest.hexdigest()

    def _values(self, model: nn.Module) -> Values:
        """The model's parameters and buffers, in the autograd graph. InputError if they differ in shape or type."""
        state = model.state_dict(keep_vars=True)
        for name, value in self.reference.items():
            if name not in state or (state[name].shape, state[name].dtype) != (value.shape, value.dtype):
                kind = f"shape {tuple(value.shape)} and {value.dtype}"
                raise InputError(f"{name} of {kind}, to which attention refers, is not in this {type(model).__name__}")
        return {name: state[name].to(self._device) for name in self.reference}

    def _replay(self, args: tuple[Any, ...]) -> Replay:
        """The network for arguments of these shapes; captured at the first batch that has them."""
        leaves = pytree.tree_leaves(args)
        if strangers := [leaf for leaf in leaves if not isinstance(leaf, (Tensor, *PLAIN))]:
            raise InputError(f"args hold a {type(strangers[0]).__name__}; expected tensors, numbers and texts")
        key = (signature(args, {}), tuple(leaf.dtype for leaf in leaves if isinstance(leaf, Tensor)))
        if key not in self._replays:
            program = Program(evaluation_graph(self._model, args), rule_for)
            self._replays[key] = Replay(program.module, self._ends(program))
        return self._replays[key]

    def _ends(self, program: Program) -> tuple[Node, ...]:
        """The feature maps: found or named in the first network, and the same ones in all others."""
        first = next(iter(self._replays.values()), None)
        if first is not None:
            return same_feature_maps(program, first.module.graph, first.ends)
        return found_feature_maps(program) if self._names is None else named_feature_maps(program, self._names)


class _Masks:
    """The masks of the boxes of a batch, for maps of any size."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def of(self, features: Tensor, label: int | None = None) -> Tensor:
        """The masks over a map (n, c, h, w), shape (n, h, w): of all boxes, or of the boxes of one class."""
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

    def add(self, name: str, label: int | None, losses: Tensor, held: Tensor) -> None:
        """Add the losses of a batch's images; images that hold none of the boxes do not count."""
        key = (name, label)
        self.sums[key] = self.sums.get(key, 0) + losses.double().sum()
        self.counts[key] = self.counts.get(key, 0) + held.sum()

    def loss(self, names: Mapping[int, str]) -> AttentionLoss:
        means = {key: float(each / self.counts[key]) for key, each in self.sums.items() if int(self.counts[key])}
        by_class: dict[int | None, list[float]] = defaultdict(list)
        for (name, label), mean in means.items():
            if not math.isfinite(mean):
                raise InputError(f"the attention loss at {name} is {mean}: the model gives NaN or infinity there")
            by_class[label].append(mean)
        average = {label: math.fsum(each) / len(each) for label, each in by_class.items()}
        per_tap = {name: mean for (name, label), mean in means.items() if label is None}
        return AttentionLoss(
            average.get(None, 0.0), per_tap, {names[n]: average[n] for n in sorted(k for k in average if k is not None)}
        )


def _class_names(batches: Sequence[Batch], names: Sequence[str] | None) -> Mapping[int, str]:
    """The name of each label that occurs; its number if no names are given."""
    labels = sorted({label for batch in batches for label in batch.classes})
    if names is None:
        return {label: str(label) for label in labels}
    if outside := [label for label in labels if not 0 <= label < len(names)]:
        raise InputError(f"label {outside[0]} has no name: {len(names)} class_names are given")
    return {label: names[label] for label in labels}


def _add(digest: hashlib._Hash, value: Any) -> None:
    """Add a tensor with its type and shape, or another argument of a model, to a hash."""
    if not isinstance(value, Tensor):
        return digest.update(repr(value).encode())
    digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
    if value.numel():
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
