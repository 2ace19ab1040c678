"""The stock trainer with sparsity, and with zeros held."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from l1rr_fx.integrations.ultralytics.networks import blank_image, trained_network
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.sites.channel_sites import channel_sites
from l1rr_fx.method.training.sparsity import ReweightedL1
from passes.errors import InputError

log = logging.getLogger(__name__)

STATE = "sparsity.pt"
FEWEST = 50
"""A penalty of fewer optimiser steps hardly moves a scale."""


@contextmanager
def sparse(yolo: Any, **options: Any) -> Iterator[None]:
    """Within this, `yolo.train()` adds the penalty `ReweightedL1` (`options` are its own) after each optimiser step.

    Channels that reach zero become zero in the average (EMA) too, from which checkpoints are made. The penalty's state
    is saved beside the checkpoints, so that a resumed training goes on with it. Frozen layers are left alone.
    """
    with _callbacks(yolo, _Sparse(options)):
        yield


@contextmanager
def held(yolo: Any, plan: Plan) -> Iterator[None]:
    """Within this, `yolo.train()` keeps the channels of the plan zero in the network and in its average (EMA).

    All of the stock trainer works as ever, for the network keeps its shape: validation, checkpoints, resume. InputError
    at the start of the training if the plan is of another network (other classes make another network).
    """
    with _callbacks(yolo, _Hold(plan)):
        yield


class _Callbacks:
    """What happens at the events of a trainer. Held by the trainer, sent to each process of a distributed training."""

    EVENTS = ("on_train_start", "on_train_epoch_end", "on_model_save", "on_train_end", "teardown")

    def on_train_start(self, trainer: Any) -> None: ...
    def on_train_epoch_end(self, trainer: Any) -> None: ...
    def on_model_save(self, trainer: Any) -> None: ...
    def on_train_end(self, trainer: Any) -> None: ...
    def teardown(self, trainer: Any) -> None: ...


@contextmanager
def _callbacks(yolo: Any, callbacks: _Callbacks) -> Iterator[None]:
    if not hasattr(yolo, "add_callback"):
        raise InputError(f"expected a YOLO object, not a {type(yolo).__name__}: its trainer is what takes callbacks")
    handlers = {event: getattr(callbacks, event) for event in callbacks.EVENTS}
    for event, handler in handlers.items():
        yolo.add_callback(event, handler)
    try:
        yield
    finally:
        for event, handler in handlers.items():
            yolo.callbacks[event].remove(handler)
        callbacks.teardown(None)


class _Sparse(_Callbacks):
    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        self.penalty: ReweightedL1 | None = None
        self.handle: Any = None

    def on_train_start(self, trainer: Any) -> None:
        model = trained_network(trainer.model)
        options = {"total_steps": _steps(trainer), **self.options}
        if "sites" not in options:
            found = channel_sites(model, (blank_image(model, trainer.args.imgsz),))
            options["sites"] = [site for site in found if site.kind == "scale" and _trains(model, site.weight)]
        if options.get("budget") is not None:
            options.setdefault("args", (blank_image(model, trainer.args.imgsz),))
        self.penalty = ReweightedL1(model, **options)
        if trainer.start_epoch:
            self._resume(trainer, self.penalty)
        self.handle = self.penalty.attach(trainer.optimizer)
        if options["total_steps"] < FEWEST:
            log.warning(
                "the penalty lasts %d optimiser steps (%d epochs of %d batches, %d batches a step), too few to move "
                "scales: train longer, or with nbs=%d so that each batch is a step",
                options["total_steps"],
                trainer.epochs,
                len(trainer.train_loader),
                trainer.accumulate,
                trainer.batch_size,
            )

    def on_train_end(self, trainer: Any) -> None:
        assert self.penalty is not None
        model = trained_network(trainer.model)
        scales = [model.get_parameter(site.weight) for site in self.penalty.sites]
        zero, total = sum(int((each == 0).sum()) for each in scales), sum(each.numel() for each in scales)
        log.log(logging.INFO if zero else logging.WARNING, "%d of %d scales are zero after the training", zero, total)

    @staticmethod
    def _resume(trainer: Any, penalty: ReweightedL1) -> None:
        file = trainer.wdir / STATE
        saved: dict[str, Any] = torch.load(file, weights_only=True) if file.is_file() else {"epoch": None}
        if saved["epoch"] == trainer.start_epoch - 1:
            penalty.load_state_dict(saved["penalty"])
        else:
            log.warning("%s is not of the epoch that is resumed: the penalty starts from its initial state", file)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Any) -> None:
        assert self.penalty is not None
        if not trainer.ema:  # in older releases only the first of several processes has one
            return
        model, averaged = trained_network(trainer.model), trained_network(trainer.ema.ema)
        names = [name for site in self.penalty.sites for name in (site.weight, site.bias) if name is not None]
        for name in names:
            averaged.get_parameter(name).masked_fill_(model.get_parameter(name) == 0, 0)

    def on_model_save(self, trainer: Any) -> None:
        assert self.penalty is not None
        torch.save({"epoch": trainer.epoch, "penalty": self.penalty.state_dict()}, trainer.wdir / STATE)

    def teardown(self, trainer: Any) -> None:
        if self.handle is not None:
            self.handle.remove()
        self.handle = None


class _Hold(_Callbacks):
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.held: Any = None

    def on_train_start(self, trainer: Any) -> None:
        self.held = self.plan.hold(trained_network(trainer.model))
        if trainer.ema:
            self.plan.zero_(trained_network(trainer.ema.ema))

    def teardown(self, trainer: Any) -> None:
        if self.held is not None:
            self.held.release()
        self.held = None


def _steps(trainer: Any) -> int:
    """How many steps the optimiser will take, but for the warm-up, which takes a few more."""
    steps = len(trainer.train_loader) * int(trainer.epochs) / int(trainer.accumulate)
    return max(1, math.ceil(steps))


def _trains(model: nn.Module, name: str) -> bool:
    return model.get_parameter(name).requires_grad
