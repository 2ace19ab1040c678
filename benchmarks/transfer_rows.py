"""The rows of `benchmarks.transfer`: how a network is trained on, how its channels are chosen, how what is left trains.

Per pair and seed one network is trained without a penalty. Each recipe goes on from it for the same steps on the same
batches; each row then removes channels until the same MACs are left, measures batch norms again, and trains what is
left for the same steps.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import l1rr_fx
from benchmarks.transfer_pairs import CROP, Feed, Labelled, Pair
from l1rr_fx import Budget, FeatureAttention, Plan, ReweightedL1
from l1rr_fx.demo.measure import macs
from l1rr_fx.method.sites.zeroing import ChannelSite
from l1rr_fx.method.training.penalised import row_norms

CLIP = 10.0
TAUGHT = 1.0
"""The weight of the attention loss as a term of a training."""
EXAMPLE = torch.rand(2, 3, CROP, CROP, generator=torch.Generator().manual_seed(0))
FREE = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
"""The sizes of the input that the small network leaves free."""


@dataclass(frozen=True)
class Scale:
    """The steps of each phase, their highest learning rates, and the batches for attention and batch norms."""

    dense: int = 500
    sparse: int = 250
    fine: int = 100
    dense_rate: float = 2e-3
    sparse_rate: float = 1e-3
    fine_rate: float = 1e-3
    batches: int = 120
    attention: int = 4
    recalibration: int = 12


Term = Callable[[nn.Module, Labelled], Tensor]
Between = Callable[[nn.Module], object]


@dataclass(frozen=True)
class Extra:
    """What a training has besides its loss: a term, and a call between backward and the optimiser's step."""

    term: Term | None = None
    between: Between | None = None


Attach = Callable[[nn.Module, torch.optim.Optimizer], Extra]
Recipe = Callable[["Start", nn.Module, torch.optim.Optimizer, float], Extra]
"""Given the start, the network, its optimiser and the budget: attaches a penalty."""
Chooser = Callable[["Start", nn.Module, float, str], "Chosen"]
"""Given the start, a network trained with a recipe, the budget and the recipe's name: the smaller network."""


@dataclass(frozen=True)
class Row:
    """A row: its recipe, its choice of channels, and whether the dense network's attention teaches what is left."""

    name: str
    recipe: str
    choose: Chooser
    taught: bool = False


def trained(
    pair: Pair,
    model: nn.Module,
    batches: Iterable[Labelled],
    steps: int,
    rate: float,
    attach: Attach,
) -> nn.Module:
    """The model after a step on each batch: AdamW, a short warm-up and a cosine, in bfloat16."""
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    optimizer = torch.optim.AdamW(l1rr_fx.parameter_groups(model, weight_decay=0.05), lr=rate)
    extra = attach(model, optimizer)
    for step, each in enumerate(batches):
        now = rate * min(1.0, (step + 1) / 20) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = now
        loss = pair.loss(model, each)
        if extra.term is not None:
            loss = loss + extra.term(model, each)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        if extra.between is not None:
            extra.between(model)
        optimizer.step()
    return model.eval()


class Start:
    """What the rows of a pair and a seed share: batches, the dense network, and the networks of each recipe."""

    def __init__(self, pair: Pair, seed: int, scale: Scale, work: Path, recipes: Mapping[str, Recipe]) -> None:
        self.pair, self.seed, self.scale, self.work, self.recipes = pair, seed, scale, work, recipes
        work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def feed(self) -> Feed:
        """All that is learned from."""
        path = self.work / "feed.pt"
        if not path.exists():
            _save(self.pair.feed(self.scale.batches, self.seed), path)
        feed: Feed = torch.load(path, weights_only=False)
        return feed

    @property
    def views(self) -> list[Labelled]:
        """Batches for attention."""
        return [self.feed.at(number) for number in range(self.scale.attention)]

    @property
    def recalibration(self) -> list[Tensor]:
        return [self.feed.at(number).batch.images for number in range(self.scale.recalibration)]

    def trained(self, model: nn.Module, phase: str, attach: Attach = lambda model, optimizer: Extra()) -> nn.Module:
        """The model after a phase of the training: "dense", "sparse" or "fine"."""
        steps, rate = getattr(self.scale, phase), getattr(self.scale, f"{phase}_rate")
        seed = 10 * self.seed + ("dense", "sparse", "fine").index(phase)
        return trained(self.pair, model, self.feed.epochs(steps, seed), steps, rate, attach)

    def new(self) -> nn.Module:
        """The network before any training."""
        torch.manual_seed(self.seed)
        return self.pair.network()

    @cached_property
    def dense(self) -> nn.Module:
        """The network that all recipes go on from."""
        return self._kept("start", lambda: self.trained(self.new(), "dense"))

    def network(self, recipe: str, share: float) -> nn.Module:
        """The network trained on with a recipe."""

        def train() -> nn.Module:
            def attach(model: nn.Module, optimizer: torch.optim.Optimizer) -> Extra:
                return self.recipes[recipe](self, model, optimizer, share)

            return self.trained(deepcopy(self.dense), "sparse", attach)

        return self._kept(recipe.format(share), train)

    def attention(self, model: nn.Module) -> FeatureAttention:
        """The attention of a network."""
        return FeatureAttention(model, (EXAMPLE,), [(each.batch.images, each.targets) for each in self.views])

    def fine_tuned(self, model: nn.Module, *, taught: bool) -> nn.Module:
        """The model after the steps that every row gets."""

        def attach(model: nn.Module, optimizer: torch.optim.Optimizer) -> Extra:
            return teaching(self, model) if taught else Extra()

        return self.trained(model, "fine", attach)

    def _kept(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """The network that was kept under this name, made now if it is missing."""
        path = self.work / f"{name}.pt"
        if not path.exists():
            _save(make().state_dict(), path)
        network = self.new()
        network.load_state_dict(torch.load(path, weights_only=True))
        return network.eval()


def _save(what: object, path: Path) -> None:
    """Write a file whole or not at all."""
    fresh = path.with_suffix(".new")
    torch.save(what, fresh)
    os.replace(fresh, path)


@dataclass(frozen=True)
class Chosen:
    """A smaller network, and which share of the channels that it lost were alive when they were chosen."""

    module: nn.Module
    by_loss: float | None = None


def cell(start: Start, row: Row, share: float | None) -> dict[str, Any]:
    """What is recorded of a row at a budget (None: the dense network)."""
    recipe = row.recipe.format(share)
    network = start.network(row.recipe, 1.0 if share is None else share)
    record: dict[str, Any] = {"sparse": start.pair.judged(network)}
    small = deepcopy(network)
    if share is not None:
        record["zero"] = zero_share(network)
        chosen = row.choose(start, small, share, recipe)
        small, record["by loss"] = chosen.module, chosen.by_loss
        l1rr_fx.recalibrate_batch_norm(small, start.recalibration)
        record["untuned"] = start.pair.judged(small)
    record["macs"] = macs(small, EXAMPLE) / macs(start.new(), EXAMPLE)
    tuned = start.fine_tuned(small, taught=row.taught)
    return record | {"ap": start.pair.judged(tuned)}


def zero_share(model: nn.Module) -> float:
    """The share of the scales of batch norms that is exactly zero."""
    scales = torch.cat([m.weight.detach() for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    return float((scales == 0).float().mean())


def none(start: Start, model: nn.Module, optimizer: torch.optim.Optimizer, share: float) -> Extra:
    """No penalty: the same steps."""
    return Extra()


def penalty(*, budgeted: bool = False, **options: Any) -> Recipe:
    """`ReweightedL1`, told the budget or not."""

    def attach(start: Start, model: nn.Module, optimizer: torch.optim.Optimizer, share: float) -> Extra:
        given = {"args": (EXAMPLE,), "budget": Budget(macs=share)} if budgeted else {}
        ReweightedL1(model, total_steps=start.scale.sparse, **given, **options).attach(optimizer)
        return Extra()

    return attach


def slimming(start: Start, model: nn.Module, optimizer: torch.optim.Optimizer, share: float) -> Extra:
    """Network Slimming: a constant L1 penalty on all scales alike, of a third of the strength "auto"."""
    scales = torch.cat([m.weight.detach() for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    strength = float(scales.abs().mean()) / (start.scale.sparse_rate * start.scale.sparse)
    options: dict[str, Any] = {"strength": strength, "schedule": "constant", "adaptive": False, "spared": 0.0}
    ReweightedL1(model, total_steps=start.scale.sparse, **options).attach(optimizer)
    return Extra()


def ours(mode: str = "recombine", *, attention: bool = True, **options: Any) -> Chooser:
    """Channels chosen by `choose`, and removed by `prune`."""

    def chosen(start: Start, model: nn.Module, share: float, recipe: str) -> Chosen:
        plan = l1rr_fx.choose(
            model,
            (EXAMPLE,),
            budget=Budget(macs=share),
            mode=mode,
            attention=start.attention(model) if attention else None,
            **options,
        )
        return removed(model, plan)

    return chosen


def removed(model: nn.Module, plan: Plan) -> Chosen:
    """The small network that a plan leaves."""
    rows = [row_norms(model.get_parameter(s.weight).detach(), s.axis)[list(s.zeroed)] for s in plan.sites if s.zeroed]
    by_loss = float((torch.cat(rows) != 0).float().mean()) if rows else None
    plan.zero_(model)
    return Chosen(l1rr_fx.prune(model, (EXAMPLE,), mode=plan.mode, dynamic_shapes=FREE).module, by_loss)


def at_random(start: Start, model: nn.Module, share: float, recipe: str) -> Chosen:
    """Channels taken at random."""
    dice = torch.Generator().manual_seed(start.seed)
    drawn: dict[str, Tensor] = {}

    def score(model: nn.Module, site: ChannelSite) -> Tensor:
        return drawn.setdefault(site.name, torch.rand(site.channels, generator=dice))

    return removed(model, l1rr_fx.choose(model, (EXAMPLE,), budget=Budget(macs=share), scores=score))


def uniform(start: Start, model: nn.Module, share: float, recipe: str) -> Chosen:
    """The same share of every layer, those with the smallest scales first."""

    def score(model: nn.Module, site: ChannelSite) -> Tensor:
        return model.get_parameter(site.weight).detach().abs().argsort().argsort() / site.channels

    return removed(model, l1rr_fx.choose(model, (EXAMPLE,), budget=Budget(macs=share), scores=score))


def teaching(start: Start, model: nn.Module) -> Extra:
    """What is left of a network learns the attention of the dense network too."""
    attention = start.attention(start.dense)
    return Extra(term=lambda model, each: TAUGHT * attention.term(each.batch.images, each.targets, model=model))


def taught(recipe: Recipe) -> Recipe:
    """The recipe, with the attention of the dense network kept as a term of the loss."""

    def attach(start: Start, model: nn.Module, optimizer: torch.optim.Optimizer, share: float) -> Extra:
        recipe(start, model, optimizer, share)
        return teaching(start, model)

    return attach
