"""The plan: which channels of a model become zero. It prints, is stored as JSON, and zeroes them in a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Group, RenderableType
from rich.jupyter import JupyterMixin
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from l1rr_fx.machines.settings import MachineSettings
from l1rr_fx.method.attention.loss import AttentionLoss
from l1rr_fx.method.planning.explain import Explanation
from l1rr_fx.method.planning.search import LastStep
from l1rr_fx.method.sites.budget import Budget
from l1rr_fx.method.sites.zeroing import ChannelSite, Shift, Zeroing, along_bias, keeps_shift, stored_shapes, unwrapped
from l1rr_fx.method.training.hold import Held
from l1rr_fx.support.arguments import of_kind
from l1rr_fx.support.documents import from_json, to_json
from l1rr_fx.support.tables import numeric, printed
from l1rr_fx.support.uncounted import at_least, uncounted
from passes.accounts import NotCounted
from passes.assignment.options import Options
from passes.choices import Mode
from passes.errors import InputError
from passes.graph.nodes import attribute

VERSION = 1


@dataclass(frozen=True)
class PlannedSite:
    """The channels of one site that become zero.

    `attention`: the loss on the site's curve for so many channels of it alone; None if it was not measured. `blocked`:
    why the site loses none, or fewer than were asked for; None if neither."""

    name: str
    weight: str
    bias: str | None
    axis: int
    channels: int
    zeroed: tuple[int, ...]
    attention: float | None = None
    blocked: str | None = None

    @property
    def mask(self) -> Tensor:
        """The zeroed channels, a bool tensor of shape (channels,)."""
        mask = torch.zeros(self.channels, dtype=torch.bool)
        mask[list(self.zeroed)] = True
        return mask


@dataclass(frozen=True)
class RevivedChannels:
    """The zeroed channels that the pruned model computes all the same, each counted once a site.

    `revived` are not zeroed after all. `lost` were zero in the model before, so that no values can come back. `refused`
    stay zero: alive they would cost more than as computed zeros.
    """

    revived: int = 0
    lost: int = 0
    refused: int = 0

    def __str__(self) -> str:
        lines = f"{self.revived:,} channels that the target computes anyway are kept alive"
        lines += f"; {self.lost:,} were zero before, so that they are computed as zeros" if self.lost else ""
        return lines + (
            f"; {self.refused:,} are computed as zeros, because alive they cost more" if self.refused else ""
        )


@dataclass(frozen=True)
class SiteDifference:
    """The channels of one site that only the first or only the second of two plans zeroes."""

    name: str
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]


@dataclass(frozen=True)
class Plan(JupyterMixin):
    """Which channels of a model become zero, and what the model then costs. Made by `choose` or `threshold`; prints as
    tables.

    `shapes`: the shapes of all parameters of the model; a model with others is refused. `budget`: the limits that the
    plan meets; None if there were none. `reached`: the cost of the pruned model as shares of the dense one; without
    "params" and "macs" where no example input was given. `tau`: the loss up to which each layer is zeroed; with a
    threshold, the largest score that is zeroed. `method`: how the channels were chosen. `attention`: the loss of the
    whole plan, if it was measured. `not_counted`: the calls whose MACs and time are in no figure, so that the shares of
    these costs are lower bounds. `machine`: whose predictions the costs are (None: of a plan that did not record it),
    for the example `inputs` of these shapes. `revival`: the zeros that the pruned model computes all the same.
    `explained`: where the predicted time goes, if channels went in moves of the machine. `last`: the step that took the
    plan far below its limits, if one did. `shift`: what becomes of the shifts of zeroed channels, as it was counted.
    `pieces`: the parts of the model that were planned, where it cannot be captured whole; costs are theirs alone.
    """

    model: str
    shapes: Mapping[str, tuple[int, ...]]
    sites: tuple[PlannedSite, ...]
    budget: Budget | None
    reached: Mapping[str, float]
    mode: Mode
    method: str
    tau: float
    attention: AttentionLoss | None = None
    not_counted: tuple[NotCounted, ...] = ()
    machine: MachineSettings | None = None
    inputs: tuple[tuple[int, ...], ...] = ()
    revival: RevivedChannels | None = None
    explained: Explanation | None = None
    last: LastStep | None = None
    shift: Shift = "zero"
    pieces: tuple[str, ...] = ()

    @property
    def limits(self) -> Mapping[str, float]:
        """The limits of the budget, by name."""
        return {} if self.budget is None else self.budget.limits

    @property
    def zeroed(self) -> int:
        """The number of channels that become zero."""
        return sum(len(site.zeroed) for site in self.sites)

    @property
    def zeroing(self) -> Zeroing:
        """The masks of the zeroed channels by the name of the site."""
        return {site.name: site.mask for site in self.sites if site.zeroed}

    @torch.no_grad()
    def zero_(self, model: nn.Module, shift: Shift | None = None) -> int:
        """Zero the channels in `model` in place; returns their number.

        `shift="zero"`: scale and shift, or row and bias, become zero, and with them the channel for every input. What
        it gave for a scale of zero is lost: call `recalibrate_batch_norm` afterwards. `shift="keep"`: shifts and biases
        stay, so that the channel is constant: `prune` removes it too, but for one channel that stays in place of all
        constants of a tensor where a padded convolution reads it. None: as the plan was counted. InputError for another
        `shift`, for "zero" if the plan was counted with "keep", and if the model's parameters have other names or
        shapes.
        """
        for parameter, masked in self._parameters(of_kind("model", model, nn.Module), shift):
            parameter.masked_fill_(masked, 0)
        return self.zeroed

    def hold(self, model: nn.Module, shift: Shift | None = None) -> Held:
        """Zero the channels, and keep them zero in any training loop until `release`; see `Held`.

        `shift` is that of `zero_`: shifts that are kept train like any other parameter.

        with plan.hold(model):
            train(model)
        """
        self.zero_(model, shift)
        return Held(self._parameters(model, shift))

    def diff(self, other: Plan) -> tuple[SiteDifference, ...]:
        """The sites in which two plans of one model differ. InputError if the plans are of different models."""
        _same_shapes(of_kind("other", other, Plan).shapes, self.shapes, "the other plan's model")
        mine, yours = ({s.name: set(s.zeroed) for s in plan.sites} for plan in (self, other))
        names = dict.fromkeys((*mine, *yours))
        pairs = [(name, mine.get(name, set()), yours.get(name, set())) for name in names]
        return tuple(SiteDifference(name, tuple(sorted(a - b)), tuple(sorted(b - a))) for name, a, b in pairs if a != b)

    def to_json(self) -> str:
        """The plan as a JSON document, from which `Plan.from_json` makes an equal plan."""
        return to_json(self, "plan", VERSION)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote. InputError, with the field, for any other text."""
        plan = from_json(cls, text, "plan", VERSION)
        plan._check()
        return plan

    def __str__(self) -> str:
        return printed(self)

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [self._headline(), self._site_table()]
        if self.explained is not None:
            parts += self.explained.tables()
        if self.attention is not None:
            parts.append(_loss_table("feature map", "By feature map", self.attention.per_tap))
            parts.append(_loss_table("class", "By class", self.attention.per_class))
        return Group(*parts)

    def _headline(self) -> Text:
        total = sum(site.channels for site in self.sites)
        lines = [f"{self.model}: {self.zeroed:,} of {total:,} channels zeroed by {self.method}, tau {self.tau:.3g}"]
        if self.pieces:
            lines.append(f"planned in pieces, of which alone the costs are: {', '.join(self.pieces)}")
        if self.machine is not None:
            sizes = ", ".join("x".join(map(str, shape)) for shape in self.inputs)
            predicted = "latency predicted for " if "latency" in self.reached else "pruned for "
            lines.append(f"{predicted}{self.machine}, inputs {sizes}" if sizes else f"{predicted}{self.machine}")
        for name, share in self.reached.items():
            limit = self.limits.get(name)
            left_out = () if name == "params" else self.not_counted
            figure = at_least(f"{share:.4f}", left_out)
            lines.append(f"{name}: {figure} of the dense" + (f" (budget {limit:g})" if limit else ""))
        if self.last is not None:
            lines.append(str(self.last))
        if self.revival is not None:
            lines.append(str(self.revival))
        if self.not_counted:
            lines.append(uncounted(self.not_counted))
        if self.attention is not None:
            limit = self.limits.get("attention")
            suffix = f" (budget {limit:g})" if limit is not None else ""
            lines.append(f"feature attention loss: {self.attention.total:.4f}{suffix}")
        return Text("\n".join(lines))

    def _site_table(self) -> Table:
        table = Table("layer", title="Channels", title_justify="left")
        numeric(table, "channels", "kept", "zeroed", "alone: attention loss")
        table.add_column("")
        for site in self.sites:
            loss = "" if site.attention is None else f"{site.attention:.4f}"
            kept, share = site.channels - len(site.zeroed), len(site.zeroed) / site.channels
            table.add_row(Text(site.name), f"{site.channels:,}", f"{kept:,}", f"{share:.0%}", loss, site.blocked or "")
        return table

    def _parameters(self, model: nn.Module, shift: Shift | None) -> list[tuple[Tensor, Tensor]]:
        """The parameters that the plan changes, each with a mask of its zeroed elements that broadcasts to it."""
        keep, model = keeps_shift(self.shift if shift is None else shift), unwrapped(model)
        if not keep and keeps_shift(self.shift):
            raise InputError('shift is "zero", but the plan was made with shift="keep": make another one with "zero"')
        shapes = stored_shapes(model, [name for site in self.sites for name in (site.weight, site.bias)])
        _same_shapes(shapes, self.shapes, type(model).__name__)
        found: list[tuple[Tensor, Tensor]] = []
        for site in self.sites:
            if not site.zeroed:
                continue
            weight = attribute(model, site.weight)
            line = [-1 if a == site.axis else 1 for a in range(weight.dim())]
            found.append((weight, site.mask.to(weight.device).view(line)))
            if site.bias is not None and not keep:
                bias = attribute(model, site.bias)
                found.append((bias, along_bias(site.mask, bias)))
        return found

    def _check(self) -> None:
        """InputError if a plan from a file contradicts itself."""
        Options(self.mode)
        names = [site.name for site in self.sites]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"plan: the site {twice[0]} is there {names.count(twice[0])} times")
        for site in self.sites:
            shape = self.shapes.get(site.weight, ())
            if not 0 <= site.axis < len(shape) or shape[site.axis] != site.channels:
                raise InputError(f"plan: {site.name} has {site.channels} channels, its {site.weight} shape {shape}")
            if site.bias is not None and self.shapes.get(site.bias) != (site.channels,):
                raise InputError(f"plan: {site.name} has {site.channels} channels, its {site.bias} another shape")
            if list(site.zeroed) != sorted({*site.zeroed}) or not all(0 <= c < site.channels for c in site.zeroed):
                raise InputError(f"plan: {site.name} zeroes channels that are not 0 to {site.channels - 1} in order")


def planned(site: ChannelSite, mask: Tensor | None, loss: float | None, blocked: str | None) -> PlannedSite:
    """The part of a plan for one site; `mask` is None if it loses no channels."""
    zeroed = () if mask is None else tuple(mask.nonzero().view(-1).tolist())
    return PlannedSite(site.name, site.weight, site.bias, site.axis, site.channels, zeroed, loss, blocked)


def _same_shapes(found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]], what: str) -> None:
    """InputError with the first difference between two models' parameters."""
    for name in _differing(found, expected):
        here, there = (f"shape {tuple(each[name])}" if name in each else "nothing" for each in (found, expected))
        raise InputError(
            f"the plan is of another model: the first difference is {name}, {there} in the plan and {here} in {what}"
        )


def _differing(found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]) -> Iterable[str]:
    for name in (*expected, *found):
        if name not in found or name not in expected or tuple(found[name]) != tuple(expected[name]):
            yield name


def _loss_table(heading: str, title: str, losses: Mapping[str, float]) -> Table:
    table = Table(heading, title=f"Feature attention loss. {title}", title_justify="left")
    numeric(table, "loss")
    for name, loss in losses.items():
        table.add_row(Text(name), f"{loss:.4f}" if math.isfinite(loss) else "-")
    return table
