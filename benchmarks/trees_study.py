"""The parts of `benchmarks.trees`: what is trained, how each row chooses channels, and how a network is judged.

Per seed one detector is trained without a penalty. From it each recipe goes on for the same number of steps on the same
batches, with its own penalty; then each row takes channels away until the same MACs are left, batch norms are measured
again, and what is left trains for the same number of steps on the same batches without a penalty.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.demo.boxes import average_precision
from l1rr_fx.demo.detector import TreeDetector
from l1rr_fx.demo.measure import THRESHOLDS, as_input, detected, macs, parameters
from l1rr_fx.demo.training import Settings, Training
from l1rr_fx.demo.trees import Scene, test_scene, training_scenes
from l1rr_fx.demo.views import Batch, random_batches
from l1rr_fx.method.attention.loss import FeatureAttention
from l1rr_fx.method.planning.choose import choose
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.sites.budget import Budget
from l1rr_fx.method.sites.zeroing import ChannelSite
from l1rr_fx.method.training.recalibrate import recalibrate_batch_norm
from l1rr_fx.method.training.schedules import SCHEDULES, mean_factor
from l1rr_fx.method.training.sparsity import TRAVEL, ReweightedL1

SMALL = 32.0**2
"""Small boxes are those of COCO: less than 32 x 32 pixels."""
FREE = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
"""The sizes of the detector's input that the small network leaves free."""


@dataclass(frozen=True)
class Scale:
    """How much is trained: steps of each phase, their highest learning rates, and the batches."""

    dense: int = 1500
    sparse: int = 600
    fine: int = 150
    dense_rate: float = 2e-3
    sparse_rate: float = 1e-3
    fine_rate: float = 1e-3
    batch: int = 8
    crop: int = 192
    attention: int = 3
    recalibration: int = 16


class Feed:
    """The same batches for all rows, rendered once and kept as bytes."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self._kept = [replace(batch, images=(batch.images * 255).round().to(torch.uint8)) for batch in batches]

    def __iter__(self) -> Iterator[Batch]:
        return (replace(batch, images=batch.images.float() / 255) for batch in self._kept)

    @property
    def pairs(self) -> list[tuple[Tensor, list[Tensor]]]:
        """(images, boxes) of each batch, as `FeatureAttention` wants them."""
        return [(batch.images, list(batch.trees)) for batch in self]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on: `attach` puts a penalty on a training of so many steps; `form` rewrites the network
    before, for pruners that need it."""

    attach: Callable[[Training, int], object]
    form: Callable[[TreeDetector], nn.Module] = lambda detector: detector


def reweighted(*, travel: float = TRAVEL, schedule: str = "warm-linear", **options: Any) -> Recipe:
    """Our penalty, or with other options what it is compared with.

    `travel` is as in `l1rr_fx.method.training.sparsity.TRAVEL`.
    """

    def attach(training: Training, steps: int) -> object:
        scales = torch.cat([m.weight.detach() for m in training.model.modules() if isinstance(m, nn.BatchNorm2d)])
        way = training.settings.rate * steps * mean_factor(SCHEDULES[schedule])
        strength = "auto" if travel == TRAVEL else travel * float(scales.abs().mean()) / way
        sparsity = ReweightedL1(training.model, total_steps=steps, strength=strength, schedule=schedule, **options)
        return sparsity.attach(training.optimizer)

    return Recipe(attach)


def none(training: Training, steps: int) -> object:
    """No penalty: the same steps, for the dense row."""
    return None


@dataclass(frozen=True)
class Smaller:
    """A network with fewer channels, not yet trained on; `plan` says which, where one of ours took them."""

    module: nn.Module
    plan: Plan | None = None


@dataclass(frozen=True)
class Row:
    """A row of the table: the recipe that its network was trained with ({} stands for the budget), and how channels are
    chosen for a budget."""

    name: str
    recipe: str
    smaller: Callable[[Start, str, float], Smaller]


class Start:
    """What all rows of one seed share: the data, the dense network, and the networks trained with each recipe."""

    def __init__(self, seed: int, scale: Scale, work: Path, recipes: Mapping[str, Recipe]) -> None:
        self.seed, self.scale, self.work, self.recipes = seed, scale, work / f"seed{seed}", recipes
        self.learn, self.held_out = training_scenes()
        self.example = (torch.rand(2, 3, scale.crop, scale.crop, generator=torch.Generator().manual_seed(0)),)
        self.attentions: dict[str, FeatureAttention] = {}
        self.work.mkdir(parents=True, exist_ok=True)

    def feed(self, count: int, number: int) -> Feed:
        """`count` batches; `number` tells one phase's from another's."""
        seed = 1000 * self.seed + number
        return Feed(random_batches(self.learn, count, size=self.scale.batch, crop=self.scale.crop, seed=seed))

    @cached_property
    def sparse_feed(self) -> Feed:
        return self.feed(self.scale.sparse, 1)

    @cached_property
    def fine_feed(self) -> Feed:
        return self.feed(self.scale.fine, 2)

    @cached_property
    def attention_feed(self) -> Feed:
        return self.feed(self.scale.attention, 3)

    @cached_property
    def recalibration_feed(self) -> Feed:
        return self.feed(self.scale.recalibration, 4)

    @cached_property
    def untrained(self) -> TreeDetector:
        torch.manual_seed(self.seed)
        return TreeDetector()

    def dense(self) -> TreeDetector:
        """The detector that all recipes start from."""
        detector = deepcopy(self.untrained)

        def train() -> nn.Module:
            scale = self.scale
            training = Training(deepcopy(self.untrained), Settings(scale.dense, scale.dense_rate))
            batches = random_batches(self.learn, scale.dense, size=scale.batch, crop=scale.crop, seed=self.seed)
            return trained(training, batches)

        self._load(detector, "start", train)
        return detector

    def network(self, recipe: str) -> nn.Module:
        """The detector trained on with a recipe."""
        form, attach = self.recipes[recipe].form, self.recipes[recipe].attach
        network = form(deepcopy(self.untrained))

        def train() -> nn.Module:
            scale = self.scale
            training = Training(form(self.dense()), Settings(scale.sparse, scale.sparse_rate, warm_up=50))
            attach(training, scale.sparse)
            return trained(training, self.sparse_feed)

        self._load(network, recipe, train)
        return network

    def attention(self, recipe: str) -> FeatureAttention:
        """The attention of a recipe's network on views of the part that is trained on."""
        if recipe not in self.attentions:
            self.attentions[recipe] = FeatureAttention(self.network(recipe), self.example, self.attention_feed.pairs)
        return self.attentions[recipe]

    def recalibrated(self, module: nn.Module) -> nn.Module:
        """The module with its batch norms measured again."""
        recalibrate_batch_norm(module, [batch.images for batch in self.recalibration_feed])
        return module

    def fine_tuned(self, module: nn.Module) -> nn.Module:
        """The running average after the steps that every row gets."""
        settings = Settings(self.scale.fine, self.scale.fine_rate, warm_up=20)
        return trained(Training(module, settings), self.fine_feed)

    def _load(self, network: nn.Module, name: str, make: Callable[[], nn.Module]) -> None:
        """Give the network the weights that were kept under this name, made now if there are none."""
        path = self.work / f"{name}.pt"
        if not path.exists():
            save(make().state_dict(), path)
        network.load_state_dict(torch.load(path, weights_only=True))
        network.eval()


def trained(training: Training, batches: Iterable[Batch]) -> nn.Module:
    """The running average after one step on each batch."""
    for batch in batches:
        training.advance(batch)
    return training.average


def save(what: object, path: Path) -> None:
    """Write a file whole or not at all."""
    fresh = path.with_suffix(".new")
    torch.save(what, fresh)
    os.replace(fresh, path)


def ours(mode: str, *, attention: bool, params: float | None = None) -> Callable[[Start, str, float], Smaller]:
    """Channels chosen by `choose`, by attention or by one threshold on |gamma|, and removed by `prune`; the share of
    the parameters may have a limit too."""

    def smaller(start: Start, recipe: str, share: float) -> Smaller:
        model = start.network(recipe)
        plan = choose(
            model,
            start.example,
            budget=Budget(macs=share, params=params),
            attention=start.attention(recipe) if attention else None,
            mode=mode,
            curves=start.work / f"{recipe}-{mode}.curves" if attention else None,
        )
        return _removed(model, plan, start)

    return smaller


def at_random(start: Start, recipe: str, share: float) -> Smaller:
    """Channels of the dense network taken at random: the control of all choices."""
    dice = torch.Generator().manual_seed(start.seed)
    drawn: dict[str, Tensor] = {}

    def score(model: nn.Module, site: ChannelSite) -> Tensor:
        return drawn.setdefault(site.name, torch.rand(site.channels, generator=dice))

    model = start.network(recipe)
    return _removed(model, choose(model, start.example, budget=Budget(macs=share), scores=score), start)


def _removed(model: nn.Module, plan: Plan, start: Start) -> Smaller:
    plan.zero_(model)
    return Smaller(l1rr_fx.prune(model, start.example, mode=plan.mode, dynamic_shapes=FREE).module, plan)


@dataclass(frozen=True)
class Judged:
    """Average precision by IoU threshold, of all trees and of the small ones."""

    all: Mapping[str, float]
    small: Mapping[str, float]


def judged(model: nn.Module, scene: Scene) -> Judged:
    """How well a detector finds the trees of a scene."""
    found = detected(model, scene)
    every = average_precision(found, scene.boxes, THRESHOLDS)
    small = average_precision(found, scene.boxes, THRESHOLDS, sizes=(0.0, SMALL))
    return Judged(*({f"AP{100 * t:.0f}": ap for t, ap in each.items()} for each in (every, small)))


def cell(start: Start, row: Row, share: float | None) -> tuple[dict[str, object], Smaller]:
    """What is recorded of a row at a budget (None: the dense network), and the network before it was fine-tuned."""
    test, image = test_scene(), as_input(test_scene())
    chosen = (
        Smaller(start.network(row.recipe)) if share is None else row.smaller(start, row.recipe.format(share), share)
    )
    small = deepcopy(chosen)
    record: dict[str, object] = {"parameters": parameters(small.module), "macs": macs(small.module, image)}
    if share is not None:
        record["untuned"] = vars(judged(start.recalibrated(small.module), start.held_out))
    tuned = start.fine_tuned(small.module)
    record["held out"], record["test"] = vars(judged(tuned, start.held_out)), vars(judged(tuned, test))
    return record, chosen
