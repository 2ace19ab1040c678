"""Sparse training: a reweighted L1 penalty on the scales of channels, which pushes those that matter least to zero.

    penalty = lambda(t) * sum over sites l of a_l * sum over channels c of w_lc * |gamma_lc|

The definition is ours (docs/l1rr.md), after the abstract of Ran et al. 2024 (Remote Sensing 16, 2026). The weights w
are those of Candes, Wakin and Boyd 2008: the majorise-minimise step for sum of log(|gamma| + eps).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from l1rr_fx.method.sites.channel_sites import channel_sites
from l1rr_fx.method.sites.zeroing import ChannelSite, unwrapped
from l1rr_fx.method.training.decay import refuse_decay
from l1rr_fx.method.training.penalised import (
    SOURCE,
    Remainder,
    along,
    importance,
    parameter,
    refuse_frozen,
    row_norms,
    scaled_by,
    shrunk,
    squared_changes,
)
from l1rr_fx.method.training.schedules import Schedule, factor_at, mean_factor, schedule_named
from l1rr_fx.support.arguments import all_of_kind, number, of_kind
from passes.errors import InputError

log = logging.getLogger(__name__)

FLOOR, SHARE = 1e-3, 0.1
"""eps of a site: SHARE of its mean magnitude at the start, at least FLOOR."""
TRAVEL = 3.0
"""How far the strength "auto" would push a channel that no gradient speaks for, in mean |gamma|. At 1 most channels of
a short training end small but not at zero, and precision is lost when they go; at 3 those that are not spared are gone
early enough for the rest to recover (docs/results.md)."""
LEAST, MOST = 0.1, 10.0
"""The bounds of a channel's weight; the mean over all channels is 1 before they are applied."""
SHIFT = 10.0
"""How much faster the shift of a channel shrinks once its scale is zero. Public YOLOv5 prunings penalise shifts ten
times as much as scales, all of them; here only those of channels that give nothing but this constant."""
MEMORY = 50
"""The importance of channels is averaged over about so many steps, or over two refreshes if that is more."""
REFRESHES = 100
"""How often weights are refreshed in a training, unless `refresh_every` says otherwise."""

PATIENCE = 100
"""So many penalties with gradients and no step between them are a loop that does not call `advance`."""
STATE = ("sites", "steps", "highest_lr", "scale", "alive", "eps", "factors", "changes")
"""What every state of a penalty has."""


class ReweightedL1:
    """The penalty on a model's channels, applied after each optimiser step as a proximal step.

    `total_steps` counts optimiser steps. `strength` is lambda's peak: a step shrinks |gamma| by lr * lambda * a * w.
    "auto" derives it from the model and the training: a channel of weight 1 that no gradient speaks for would move by
    TRAVEL times its network's mean |gamma| in the whole training if the learning rate stayed at its highest, that of
    its own group: a backbone that learns at a tenth of the rate is pushed as far. (A fixed number means something else
    for every optimiser and length of training.) `schedule` is a name of `l1rr_fx.method.training.schedules` or a function of t in [0,
    1]. `sites` are by default the model's batch norms; with an example input as `args`, also the rows of layers without
    one, each as a group. `cost_aware` makes a_l the MACs that a channel costs, over their mean; it needs `args` or
    sites that know. Weights are refreshed every `refresh_every` steps (default: a hundredth of all) and by `refresh()`;
    `adaptive=False` leaves them at 1. `spared` is the share of each layer's channels that are not pushed at all (after
    Yun et al. 2019, trimmed L1): a layer whose channels are all alike shrinks as one, which the batch norm after it
    undoes, unless some are spared. They are those whose removal would change the loss most, by the gradients of the
    last steps; the largest, as long as there are no gradients. With a share s spared about s^2 of the MACs stay: for a
    budget on these give its square root or a little less. Channels at zero from the start, held there by a plan, count
    in no mean and no share.

        sparsity = ReweightedL1(model, total_steps=epochs * len(loader))
        sparsity.attach(optimizer)                         # or sparsity.step(lr) after each optimizer.step()

    Attached, it follows the optimiser: nothing is done in steps that GradScaler skips, nor between steps of an
    accumulated gradient, and each gamma's own learning rate is used. It has no random numbers and reads nothing but
    parameters and their gradients, so that ranks with equal ones stay equal. Wrappers (DDP, compiled modules) are
    looked through. A scale that several batch norms share is pushed once. Of parameters in 16 bits what rounding keeps
    back of a push is added to the next.

    Raises InputError for frozen parameters, by name: leave their sites out of `sites`, or let them train.
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
        spared: float = 0.5,
        refresh_every: int | None = None,
    ) -> None:
        model = of_kind("model", unwrapped(model), nn.Module)
        found = channel_sites(model, args) if sites is None else all_of_kind("sites", sites, ChannelSite, SOURCE)
        pushed = scaled_by(model, [site for site in found if site.blocked is None])
        self.sites: tuple[ChannelSite, ...] = tuple(pushed.values())
        self.schedule = schedule_named(schedule)
        self.total_steps = _count("total_steps", total_steps)
        self.refresh_every = max(1, total_steps // REFRESHES) if refresh_every is None else refresh_every
        _count("refresh_every", self.refresh_every)
        self.strength = _checked_strength(strength)
        self.adaptive = adaptive
        self.spared = _checked_share(spared)
        self._weights: list[Tensor] = list(pushed)
        self._biases = [parameter(model, site.bias) if site.bias else None for site in self.sites]
        refuse_frozen(self._named())
        self._sizes = [site.channels for site in self.sites]
        self._owed = Remainder(self._weights, self._sizes)
        shifts = [(bias, size) for bias, size in zip(self._biases, self._sizes, strict=True) if bias is not None]
        self._owed_shifts = Remainder([bias for bias, _ in shifts], [size for _, size in shifts])
        self._importance = importance(self.sites, cost_aware=cost_aware)
        magnitudes = self._magnitudes()
        self._alive = magnitudes > 0
        means = [_mean(part, part > 0) for part in magnitudes.split(self._sizes)]
        sizes = torch.tensor(self._sizes, device=magnitudes.device)
        self._eps = (SHARE * torch.stack(means)).clamp(min=FLOOR).repeat_interleave(sizes)
        self._scale = float(_mean(magnitudes, self._alive))
        self._mean_factor = mean_factor(self.schedule)
        self._highest = [0.0] * len(self.sites)
        self.steps = 0
        self._factors = torch.ones(sum(self._sizes), dtype=torch.float64)
        self._changes: Tensor | None = None
        self._own: list[Tensor] | None = None  # of the gradients what `penalty` gave, if it is a term of the loss
        self._asked = 0
        self.refresh()

    # What a training loop calls

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Take a step after each step of the optimiser, from now on; remove the handle to stop.

        InputError if the optimiser lacks some of the gammas, or decays them: weight decay would shrink all alike what
        the penalty shrinks by need. `parameter_groups` gives groups that do not.
        """
        if not hasattr(optimizer, "register_step_post_hook"):
            raise InputError(f"optimizer is a {type(optimizer).__name__}; a torch.optim.Optimizer is wanted")
        names = {site.weight: weight for site, weight in zip(self.sites, self._weights, strict=True)}
        refuse_decay(optimizer, names, gammas=[site.weight for site in self.sites if site.kind == "scale"])
        group_of = {id(p): n for n, group in enumerate(optimizer.param_groups) for p in group["params"]}
        groups = [group_of[id(weight)] for weight in self._weights]

        def after(stepped: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            skipped = getattr(stepped, "found_inf", None)  # GradScaler sets it on optimisers that skip by themselves
            if skipped is None or not bool(skipped):
                rates = [_rate(group["lr"]) for group in stepped.param_groups]
                self._proximal([rates[n] for n in groups])

        return optimizer.register_step_post_hook(after)

    def step(self, lr: float) -> None:
        """The proximal step, for a loop that calls it itself after each optimiser step that was not skipped, while the
        gradients are still there.

        |gamma| shrinks by lr * lambda(t) * a * w and stops at exactly 0; so does the shift of a channel at 0.
        """
        self._proximal([_rate(lr)] * len(self.sites))

    def advance(self, lr: float) -> None:
        """Instead of `step`, in a loop whose loss has `penalty()` as a term: go on, and shrink nothing.

        For after each optimiser step that was not skipped, while the gradients are still there. As with `add_grad_`
        there are no exact zeros, and Adam rescales the penalty.
        """
        rates = [_rate(lr)] * len(self.sites)
        self._observe(self._own)
        self._note(rates)
        self._advance()

    @torch.no_grad()
    def add_grad_(self, lr: float | None = None) -> None:
        """Instead of `step`: add the subgradient to the gradients, once for each optimiser step and before it.

        Under GradScaler call `scaler.unscale_(optimizer)` first. It gives no exact zeros, and Adam rescales it. The
        learning rate is needed for the strength "auto" only.
        """
        if self.strength is None and lr is None:
            raise InputError('with the strength "auto", add_grad_ needs the learning rate: add_grad_(lr)')
        rates = [0.0 if lr is None else _rate(lr)] * len(self.sites)
        self._observe()
        self._note(rates)
        for weight, added in zip(self._weights, self._gradients(), strict=True):
            weight.grad = added if weight.grad is None else weight.grad.add_(added)
        self._advance()

    def refresh(self) -> None:
        """Take the weights w from the magnitudes as they are now. InputError where these are NaN or infinite."""
        magnitudes = self._magnitudes()
        if not bool(magnitudes.isfinite().all()):
            parts = zip(self.sites, magnitudes.split(self._sizes), strict=True)
            names = [site.weight for site, part in parts if not bool(part.isfinite().all())]
            raise InputError(f"{', '.join(names)}: NaN or infinity after {self.steps} steps; the training has diverged")
        weights = torch.ones_like(magnitudes)
        if self.adaptive:
            weights = 1 / (magnitudes + self._eps.to(magnitudes))
            weights = (weights / _mean(weights, self._alive.to(weights.device))).clamp(LEAST, MOST)
        changes = torch.zeros_like(magnitudes) if self._changes is None else self._changes
        living = [int(part.sum()) for part in self._alive.split(self._sizes)]
        columns = (t.split(self._sizes) for t in (weights, changes, magnitudes))
        for count, part, *worths in zip(living, *columns, strict=True):
            worth = worths[0] if bool(worths[0].any()) else worths[1]
            part[worth.topk(math.ceil(self.spared * count)).indices] = 0
        self._factors = weights * self._importance.to(weights)

    def penalty(self) -> Tensor:
        """The penalty as it is now, a scalar: for logs, or as a term of the loss, together with `advance`.

        loss = criterion(model(x), y) + sparsity.penalty()
        loss.backward()
        optimizer.step()
        sparsity.advance(lr)  # or lambda stays what it is at the start; for the strength "auto", and "warm-linear", 0
        """
        if torch.is_grad_enabled():
            self._own = self._gradients()
            self._asked += 1
            if self._asked == PATIENCE:
                log.warning("penalty() was asked for %d times between two steps: is `advance` called?", PATIENCE)
        slope = self._slope().split(self._sizes)
        parts = [
            (each.to(weight) * row_norms(weight, site.axis)).sum()
            for weight, site, each in zip(self._weights, self.sites, slope, strict=True)
        ]
        return torch.stack([part.to(parts[0]) for part in parts]).sum()

    def zeros(self) -> Mapping[str, Tensor]:
        """The channels whose scale or row is exactly zero, as a mask by the name of the site."""
        dead = (self._magnitudes() == 0).cpu().split(self._sizes)
        return {site.name: mask for site, mask in zip(self.sites, dead, strict=True)}

    # Saving

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit."""
        return {
            "sites": [(site.weight, site.channels) for site in self.sites],
            **self._options(),
            "steps": self.steps,
            "highest_lr": list(self._highest),
            "scale": self._scale,
            "alive": self._alive.clone(),
            "eps": self._eps.clone(),
            "factors": self._factors.clone(),
            "changes": _copy(self._changes),
            "owed": [_copy(each.owed) for each in (self._owed, self._owed_shifts)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`. InputError if it is of other sites or options, or no such state."""
        if lost := [name for name in STATE if name not in of_kind("state", state, Mapping)]:  # type: ignore[type-abstract]
            raise InputError(f"the state lacks {', '.join(lost)}: what `state_dict` of a ReweightedL1 gave is wanted")
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
        for name in ("alive", "eps", "factors"):
            if tuple(of_kind(f"the state's {name}", state[name], Tensor).shape) != (sum(self._sizes),):
                raise InputError(
                    f"the state's {name} has shape {(*state[name].shape,)}, and the sites {sum(self._sizes)} channels"
                )
        self.steps = int(state["steps"])
        self._highest, self._scale = [float(each) for each in state["highest_lr"]], float(state["scale"])
        self._alive, self._eps, self._factors = (state[name].clone() for name in ("alive", "eps", "factors"))
        self._changes = _copy(state["changes"])
        self._owed.owed, self._owed_shifts.owed = map(_copy, state.get("owed", (None, None)))

    # Inside

    def _options(self) -> dict[str, Any]:
        """What a penalty that goes on has to be like; the schedule by some of its values."""
        schedule = [factor_at(self.schedule, t) for t in (0.0, 0.05, 0.25, 0.5, 0.75, 1.0)]
        return {
            "total_steps": self.total_steps,
            "strength": self.strength,
            "schedule": schedule,
            "adaptive": self.adaptive,
            "spared": self.spared,
        }

    @torch.no_grad()
    def _proximal(self, rates: Sequence[float]) -> None:
        """The proximal operator of the penalty: each row (a gamma is a row of one) loses its share of its norm."""
        self._observe()
        self._note(rates)
        ways = [strength * rate for strength, rate in zip(self._lambdas(), rates, strict=True)]
        magnitudes = self._magnitudes()
        amounts = (self._factors * self._by_channel(ways)).to(magnitudes)
        left = shrunk(magnitudes, self._owed.due(amounts))
        parts = left.split(self._sizes)
        shares = [along(site, w, part) for site, w, part in zip(self.sites, self._weights, parts, strict=True)]
        torch._foreach_mul_(self._weights, shares)
        if self._owed.is_kept:
            self._owed.keep(amounts, magnitudes, self._magnitudes())
        self._shrink_shifts(amounts * (SHIFT * (left == 0)))
        self._advance()

    @torch.no_grad()
    def _gradients(self) -> list[Tensor]:
        """The gradient of the penalty, by each weight."""
        slope = self._slope().split(self._sizes)
        magnitudes = self._magnitudes().split(self._sizes)
        found = []
        for weight, site, each, size in zip(self._weights, self.sites, slope, magnitudes, strict=True):
            direction = weight.detach() / along(site, weight, size).clamp(min=1e-12)
            found.append(direction * along(site, weight, each))
        return found

    @torch.no_grad()
    def _observe(self, own: Sequence[Tensor] | None = None) -> None:
        """Average what the loss would change by, to first order and squared, if each gamma or row were zero.

        (gamma * its gradient)^2: Molchanov et al. 2019. Only its order within a layer counts, so that the scale of
        gradients does not. Nothing is learned of steps without gradients."""
        if not self.spared or all(weight.grad is None for weight in self._weights):
            return
        now = squared_changes(self.sites, self._weights, own)
        if self._changes is None:
            self._changes = now
        else:
            self._changes.lerp_(now, 1 / max(MEMORY, 2 * self.refresh_every))

    def _shrink_shifts(self, amounts: Tensor) -> None:
        """Shifts of channels whose scale is zero: what they add is a constant, which the next layers learn to do
        without while there is time."""
        parts = amounts.split(self._sizes)
        pairs = [(bias, part) for bias, part in zip(self._biases, parts, strict=True) if bias is not None]
        if not pairs:
            return
        biases: list[Tensor] = [bias for bias, _ in pairs]
        amounts = torch.cat([part for _, part in pairs])
        sizes = _sizes_of(biases, amounts)
        left = shrunk(sizes, self._owed_shifts.due(amounts)).split([len(bias) for bias in biases])
        torch._foreach_mul_(biases, [part.to(bias) for bias, part in zip(biases, left, strict=True)])
        if self._owed_shifts.is_kept:
            self._owed_shifts.keep(amounts, sizes, _sizes_of(biases, amounts))

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
        way = TRAVEL * self._scale * factor / (self.total_steps * self._mean_factor)
        return [way / highest if highest else 0.0 for highest in self._highest]

    def _slope(self) -> Tensor:
        """lambda * a * w of each channel: the slope of the penalty over its magnitude."""
        return self._factors * self._by_channel(self._lambdas())

    def _by_channel(self, values: Sequence[float]) -> Tensor | float:
        """A value for each site as one for each channel; a plain number where all are alike."""
        if len({*values}) == 1:
            return values[0]
        each = torch.tensor(values, dtype=torch.float64).repeat_interleave(torch.tensor(self._sizes))
        return each.to(self._factors)

    @torch.no_grad()
    def _magnitudes(self) -> Tensor:
        """|gamma| and norms of rows of all sites, one after another, on the device of the first."""
        first = self._weights[0]
        kind = torch.promote_types(first.dtype, torch.float32)
        parts = [row_norms(w, site.axis) for site, w in zip(self.sites, self._weights, strict=True)]
        return torch.cat([part.to(first.device, kind) for part in parts])

    def _named(self) -> list[tuple[str, Tensor]]:
        pairs = [(s.weight, w) for s, w in zip(self.sites, self._weights, strict=True)]
        return [*pairs, *((str(s.bias), b) for s, b in zip(self.sites, self._biases, strict=True) if b is not None)]


def _rate(lr: Any) -> float:
    """A learning rate, which may be a tensor, as a number."""
    return number("the learning rate", lr.item() if isinstance(lr, Tensor) and lr.numel() == 1 else lr)


def _copy(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.clone()


def _sizes_of(vectors: list[Tensor], like: Tensor) -> Tensor:
    """The magnitudes of vectors, one after another."""
    return torch.cat([size.to(like) for size in torch._foreach_abs(vectors)])


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """The mean of the values that count; 0 where none does."""
    return values[where].sum() / where.sum().clamp(min=1)


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}; a whole number of at least 1 is wanted")
    return value


def _checked_share(spared: float) -> float:
    if isinstance(spared, bool) or not isinstance(spared, (int, float)) or not 0 <= spared < 1:
        raise InputError(f"spared is {spared!r}; a share of the channels in [0, 1) is wanted")
    return float(spared)


def _checked_strength(strength: float | str) -> float | None:
    """The strength as a number, None for "auto"."""
    return None if strength == "auto" else number("strength", strength, 'a finite number >= 0 or "auto"')
