"""Sparse training: a reweighted L1 penalty on the scales of channels, which pushes those that matter least to zero.

    penalty = lambda(t) * sum over sites l of a_l * sum over channels c of w_lc * |gamma_lc|

The definition is ours (docs/l1rr.md), after the abstract of Ran et al. 2024 (Remote Sensing 16, 2026). The weights w
are those of Candes, Wakin and Boyd 2008: the majorise-minimise step for sum of log(|gamma| + eps).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from l1rr_fx.latency.prediction import Latency
from l1rr_fx.machines.by_name import machine
from l1rr_fx.method.sites.budget import Budget
from l1rr_fx.method.sites.channel_sites import channel_sites
from l1rr_fx.method.sites.zeroing import ChannelSite, unwrapped
from l1rr_fx.method.training.channel_vector import ChannelVector
from l1rr_fx.method.training.decay import refuse_decay
from l1rr_fx.method.training.options import checked_share, checked_strength, count, rate
from l1rr_fx.method.training.penalised import SOURCE
from l1rr_fx.method.training.pushed import Pushed
from l1rr_fx.method.training.reweighting import Reweighting
from l1rr_fx.method.training.schedules import Schedule, factor_at, mean_factor, schedule_named
from l1rr_fx.support.arguments import all_of_kind, of_kind
from l1rr_fx.support.choices import TargetName
from passes.assignment.cost_model import Target
from passes.errors import InputError

log = logging.getLogger(__name__)

TRAVEL = 3.0
"""How far the strength "auto" pushes a channel on which no gradient acts, in mean |gamma|. At 1 most channels of a
short training end small but not at zero, and precision is lost when they are removed. At 3 the channels that are not
spared reach zero early enough for the rest to recover (docs/results.md)."""
SHIFT = 10.0
"""How much faster the shift of a channel shrinks once its scale is zero. Public prunings of YOLOv5 penalise all shifts
ten times as much as scales; here only the shifts of channels that are nothing but this constant are penalised."""
MEMORY = 50
"""The importance of channels is averaged over about this many steps, or over two refreshes if that is more."""
REFRESHES = 100
"""How often the weights are refreshed in a training, unless `refresh_every` says otherwise."""
PATIENCE = 100
"""This many penalties with gradients and no step between them mean that a loop does not call `advance`."""
SPARED = 0.5
"""The share of each layer that is spared where no budget says how much has to go."""
STATE = ("sites", "steps", "highest_lr", "scale", "alive", "eps", "factors", "changes")
"""What every state of a penalty has."""


class ReweightedL1:
    """The penalty on a model's channels, applied after each optimiser step as a proximal step.

        sparsity = ReweightedL1(model, total_steps=epochs * len(loader))
        sparsity.attach(optimizer)                         # or sparsity.step(lr) after each optimizer.step()

    `total_steps`: the number of optimiser steps of the training.
    `strength`: the largest lambda; a step shrinks |gamma| by lr * lambda * a * w. "auto" derives it from the model and
        the training: a channel of weight 1 on which no gradient acts would move by TRAVEL times the network's mean
        |gamma| in the whole training if the learning rate of its group stayed at its highest. A backbone that learns at
        a tenth of the rate is so pushed as far. (A number means another thing for every optimiser and length.)
    `schedule`: "warm-linear", "constant", "linear", "step", "cosine", "ramp-up", or a function of t in [0, 1].
    `sites`: by default the model's batch norms; with an example input as `args` also the rows of layers without one,
        each row as a group. Blocked sites are left out.
    `cost_aware`: a_l is the MACs that a channel of the layer costs, over their mean. Needs `args`, or sites with MACs.
    `adaptive`: False leaves all weights w at 1.
    `spared`: the share of each layer's channels that are not pushed at all (after Yun et al. 2019, trimmed L1). Without
        it a layer whose channels are all alike shrinks as one, which the batch norm after it undoes. Spared are the
        channels whose removal would change the loss most, by the gradients of the last steps; while there are no
        gradients, the largest. With a share s about s^2 of the MACs stay: for a budget on MACs give its square root or
        a little less. Channels that are zero at the start (held there by a plan) count in no mean and no share.
    `budget`: the budget of the plan that follows (with `args`). Only as many channels are pushed as are half of what it
        takes, chosen by what they are worth for what they save, and no others; `finished` says when all are zero.
    `nested`: with a budget, the branches of a sum lose the same channels.
    `refresh_every`: the number of steps between refreshes of the weights; by default a hundredth of `total_steps`.
    `target`: the machine that the network is trained for, as for `prune`: its prices are those of the budget.

    Attached, the penalty follows the optimiser: it does nothing in steps that GradScaler skips, nor between the steps
    of an accumulated gradient, and uses the learning rate of each gamma's group. It uses no random numbers and reads
    only parameters and their gradients, so that ranks with equal ones stay equal. It sees the model inside wrappers
    (DDP, compiled modules). A scale that several batch norms share is pushed once. For parameters in 16 bits, what
    rounding keeps back of a push is added to the next.

    InputError for bad options and for frozen parameters, by name: leave their sites out, or let them train.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        total_steps: int,
        strength: float | str = "auto",
        schedule: str | Schedule = "warm-linear",
        sites: Sequence[ChannelSite] | None = None,
        args: tuple[Any, ...] | None = None,
        cost_aware: bool = False,
        adaptive: bool = True,
        spared: float | None = None,
        refresh_every: int | None = None,
        budget: Budget | None = None,
        target: TargetName | Target | Latency = "none",
        nested: bool = False,
    ) -> None:
        self.target = machine(target, args)
        model = of_kind("model", unwrapped(model), nn.Module)
        found = channel_sites(model, args) if sites is None else all_of_kind("sites", sites, ChannelSite, SOURCE)
        self._channels = ChannelVector(model, [site for site in found if site.blocked is None])
        self.sites: tuple[ChannelSite, ...] = self._channels.sites
        self.schedule = schedule_named(schedule)
        self.total_steps = count("total_steps", total_steps)
        self.refresh_every = max(1, total_steps // REFRESHES) if refresh_every is None else refresh_every
        count("refresh_every", self.refresh_every)
        self.strength = checked_strength(strength)
        self.adaptive = adaptive
        self.spared = checked_share(SPARED if spared is None else spared)
        self._pushed: Pushed | None = None
        if budget is not None:
            self._pushed = Pushed.made(self._channels, model, args, budget, self.target, nested=nested, spared=spared)
        self._weighting = Reweighting(self._channels, cost_aware=cost_aware)
        self._mean_factor = mean_factor(self.schedule)
        self._highest = [0.0] * len(self.sites)
        self.steps = 0
        self._changes: Tensor | None = None
        self._own: list[Tensor] | None = None  # what `penalty` added to the gradients, where it is a term of the loss
        self._asked = 0
        self.refresh()

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Take a proximal step after each step of the optimiser from now on, until the handle is removed.

        InputError if the optimiser lacks some of the gammas, or decays them: weight decay shrinks all of them alike.
        `parameter_groups` gives groups that do not.
        """
        if not hasattr(optimizer, "register_step_post_hook"):
            raise InputError(f"optimizer is a {type(optimizer).__name__}; expected a torch.optim.Optimizer")
        weights = self._channels.weights
        names = {site.weight: weight for site, weight in zip(self.sites, weights, strict=True)}
        refuse_decay(optimizer, names, gammas=[site.weight for site in self.sites if site.kind == "scale"])
        group_of = {id(p): n for n, group in enumerate(optimizer.param_groups) for p in group["params"]}
        groups = [group_of[id(weight)] for weight in weights]

        def after(stepped: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            skipped = getattr(stepped, "found_inf", None)  # GradScaler sets it on optimisers that skip by themselves
            if skipped is None or not bool(skipped):
                rates = [rate(group["lr"]) for group in stepped.param_groups]
                self._proximal([rates[n] for n in groups])

        return optimizer.register_step_post_hook(after)

    def step(self, lr: float) -> None:
        """Take one proximal step, in a loop that calls it itself.

        Call it after each optimiser step that was not skipped, before the gradients are cleared. |gamma| shrinks by
        lr * lambda(t) * a * w and stops at exactly 0; the shift of a channel at 0 shrinks too.
        """
        self._proximal([rate(lr)] * len(self.sites))

    def advance(self, lr: float) -> None:
        """Go on by one step and shrink nothing: instead of `step`, where `penalty()` is a term of the loss.

        Call it after each optimiser step that was not skipped, before the gradients are cleared. As with `add_grad_`,
        there are no exact zeros, and Adam rescales the penalty.
        """
        rates = [rate(lr)] * len(self.sites)
        self._observe(self._own)
        self._note(rates)
        self._advance()

    @torch.no_grad()
    def add_grad_(self, lr: float | None = None) -> None:
        """Add the subgradient of the penalty to the gradients: instead of `step`, once before each optimiser step.

        Under GradScaler call `scaler.unscale_(optimizer)` first. There are no exact zeros, and Adam rescales the
        penalty. Only the strength "auto" needs the learning rate.
        """
        if self.strength is None and lr is None:
            raise InputError('with the strength "auto", add_grad_ needs the learning rate: add_grad_(lr)')
        rates = [0.0 if lr is None else rate(lr)] * len(self.sites)
        self._observe()
        self._note(rates)
        for weight, added in zip(self._channels.weights, self._channels.gradients(self._slopes()), strict=True):
            weight.grad = added if weight.grad is None else weight.grad.add_(added)
        self._advance()

    def refresh(self) -> None:
        """Take the weights w from the magnitudes as they are now. InputError where these are NaN or infinite."""
        magnitudes = self._channels.magnitudes()
        if not bool(magnitudes.isfinite().all()):
            parts = zip(self.sites, self._channels.parts(magnitudes), strict=True)
            names = [site.weight for site, part in parts if not bool(part.isfinite().all())]
            raise InputError(f"{', '.join(names)}: NaN or infinity after {self.steps} steps; the training has diverged")
        weighting, adaptive = self._weighting, self.adaptive
        if self._pushed is None:
            self._factors = weighting.factors(magnitudes, self._changes, adaptive=adaptive, spared=self.spared)
            return
        worth = magnitudes if self._changes is None else self._changes.sqrt()
        self._pushed.select(self.steps / self.total_steps, worth, magnitudes, weighting.alive)
        now, saved = self._pushed.now, self._pushed.saved()
        self._factors = weighting.of_pushed(magnitudes, now, saved, adaptive=adaptive)

    @property
    def finished(self) -> bool:
        """Whether all channels that are pushed for the budget are zero: the penalty changes nothing any more."""
        if self._pushed is None or not self._pushed.selections:
            return False
        return not bool((self._channels.magnitudes().cpu() > 0)[self._pushed.now].any())

    def penalty(self) -> Tensor:
        """The penalty as it is now, a scalar: for logs, or as a term of the loss, together with `advance`.

        loss = criterion(model(x), y) + sparsity.penalty()
        loss.backward()
        optimizer.step()
        sparsity.advance(lr)  # without it lambda stays what it is at the start: 0 for "auto" and for "warm-linear"
        """
        slopes = self._slopes()
        if torch.is_grad_enabled():
            self._own = self._channels.gradients(slopes)
            self._asked += 1
            if self._asked == PATIENCE:
                log.warning("penalty() was asked for %d times between two steps: is `advance` called?", PATIENCE)
        return self._channels.weighted_sum(slopes)

    def zeros(self) -> Mapping[str, Tensor]:
        """The channels whose scale or row is exactly zero: by the name of the site a bool mask of shape (channels,)."""
        return self._channels.zeros()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a penalty needs to go on bit for bit."""
        return {
            "sites": [(site.weight, site.channels) for site in self.sites],
            **self._options(),
            "steps": self.steps,
            "highest_lr": list(self._highest),
            "scale": self._weighting.scale,
            "alive": self._weighting.alive.clone(),
            "eps": self._weighting.eps.clone(),
            "factors": self._factors.clone(),
            "changes": None if self._changes is None else self._changes.clone(),
            "pushed": None if self._pushed is None else self._pushed.state(),
            "owed": self._channels.owed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`. InputError if it belongs to other sites or options, or is no such state."""
        self._check(state)
        self.steps = int(state["steps"])
        self._highest = [float(each) for each in state["highest_lr"]]
        self._weighting.scale = float(state["scale"])
        self._weighting.alive, self._weighting.eps = state["alive"].clone(), state["eps"].clone()
        self._factors = state["factors"].clone()
        self._changes = None if state["changes"] is None else state["changes"].clone()
        self._channels.owed = list(state.get("owed", (None, None)))
        if self._pushed is not None:
            self._pushed.load(state["pushed"])

    def _check(self, state: Mapping[str, Any]) -> None:
        """InputError unless the state is one of a penalty like this."""
        if lost := [name for name in STATE if name not in of_kind("state", state, Mapping)]:  # type: ignore[type-abstract]
            raise InputError(
                f"the state lacks {', '.join(lost)}; expected what `state_dict` of a ReweightedL1 returned"
            )
        own, saved = [(s.weight, s.channels) for s in self.sites], [tuple(each) for each in state["sites"]]
        if own != saved:
            pairs = zip([*own, None], [*saved, None], strict=False)
            mine, other = next(pair for pair in pairs if pair[0] != pair[1])
            raise InputError(f"the state is of other sites: the first difference is {other} in it and {mine} here")
        for name, value in self._options().items():
            if name in state and state[name] != value:
                raise InputError(
                    f"the state is of another penalty: its {name} is {state[name]}, and here it is {value}"
                )
        count = len(self._channels)
        for name in ("alive", "eps", "factors"):
            shape = (*of_kind(f"the state's {name}", state[name], Tensor).shape,)
            if shape != (count,):
                raise InputError(f"the state's {name} has shape {shape}, and the sites {count} channels")

    def _options(self) -> dict[str, Any]:
        """The options that a state must agree with; the schedule by some of its values."""
        schedule = [factor_at(self.schedule, t) for t in (0.0, 0.05, 0.25, 0.5, 0.75, 1.0)]
        return {
            "total_steps": self.total_steps,
            "strength": self.strength,
            "schedule": schedule,
            "adaptive": self.adaptive,
            "spared": self.spared,
            "budget": None if self._pushed is None else dict(self._pushed.limits),
        }

    @torch.no_grad()
    def _proximal(self, rates: Sequence[float]) -> None:
        """The proximal operator of the penalty: each row (a gamma is a row of one) loses its share of its norm."""
        self._observe()
        self._note(rates)
        pushes = [strength * rate for strength, rate in zip(self._lambdas(), rates, strict=True)]
        self._channels.shrink_(self._factors * self._by_channel(pushes), shift=SHIFT)
        self._advance()

    @torch.no_grad()
    def _observe(self, own: Sequence[Tensor] | None = None) -> None:
        """Average what the loss would change by, to first order and squared, if each gamma or row were zero.

        Only the order within a layer counts, so that the scale of the gradients does not. `own` is the part of the
        gradients that the penalty has added. A step without gradients changes nothing."""
        now = self._channels.changes(own) if self.spared else None
        if now is None:
            return
        if self._changes is None:
            self._changes = now
        else:
            self._changes.lerp_(now, 1 / max(MEMORY, 2 * self.refresh_every))

    def _advance(self) -> None:
        self.steps += 1
        self._own, self._asked = None, 0
        if self.steps == self.total_steps + 1:
            log.warning("the penalty goes on after its total_steps=%d, at the end of its schedule", self.total_steps)
        if self.steps % self.refresh_every == 0:
            self.refresh()

    def _note(self, rates: Sequence[float]) -> None:
        """Keep the highest learning rate that each site has seen."""
        self._highest = [max(pair) for pair in zip(self._highest, rates, strict=True)]

    def _lambdas(self) -> list[float]:
        """lambda(t) of the next step, of each site."""
        factor = factor_at(self.schedule, min(1.0, self.steps / self.total_steps))
        if self.strength is not None:
            return [self.strength * factor] * len(self.sites)
        way = TRAVEL * self._weighting.scale * factor / (self.total_steps * self._mean_factor)
        return [way / highest if highest else 0.0 for highest in self._highest]

    def _slopes(self) -> Tensor:
        """lambda * a * w of each channel: the slope of the penalty over its magnitude."""
        return self._factors * self._by_channel(self._lambdas())

    def _by_channel(self, values: Sequence[float]) -> Tensor | float:
        """A value for each site as one for each channel; a plain number where all are alike."""
        if len({*values}) == 1:
            return values[0]
        return self._channels.spread(torch.tensor(values, dtype=torch.float64)).to(self._factors)
