"""The pruners that the suite knows. Each is imported when it is used; one more is one more class here."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping

from torch import nn

import l1rr_fx
from l1rr_fx.conformance.cases import Args
from l1rr_fx.conformance.judgement import RATIO, Tool
from l1rr_fx.conformance.outputs import output_layers
from passes.errors import InputError, L1RRError


class L1RR:
    """Ours: `l1rr_fx.prune`."""

    name = "l1rr"
    removes_dead_only = True

    @property
    def version(self) -> str:
        return f"l1rr-fx {l1rr_fx.__version__}"

    @property
    def refusals(self) -> tuple[type[Exception], ...]:
        return (L1RRError,)

    def prune(self, model: nn.Module, args: Args) -> nn.Module:
        return l1rr_fx.prune(model, args, verify=False).module


class TorchPruning:
    """Torch-Pruning: `BasePruner` with group magnitudes, half of each layer but those that make the outputs."""

    name = "torch-pruning"
    removes_dead_only = False
    refusals: tuple[type[Exception], ...] = ()

    @property
    def version(self) -> str:
        return f"Torch-Pruning {installed('torch-pruning')}"

    def prune(self, model: nn.Module, args: Args) -> nn.Module:
        torch_pruning = importlib.import_module("torch_pruning")
        training = model.training
        ignored = [model.get_submodule(name) for name in sorted(output_layers(model, args))]
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        pruner = torch_pruning.pruner.BasePruner(
            model, args, importance=importance, pruning_ratio=RATIO, ignored_layers=ignored
        )
        pruner.step()
        return model.train(training)  # it leaves the model in evaluation mode


class Kirigami:
    """torch-kirigami: its own candidates, greedily by group magnitudes.

    Half of each channel axis; where that target is not reached, half, a quarter and a tenth of all channels together.
    """

    name = "torch-kirigami"
    removes_dead_only = False

    @property
    def version(self) -> str:
        return f"torch-kirigami {installed('torch-kirigami')}"

    @property
    def refusals(self) -> tuple[type[Exception], ...]:
        kirigami = importlib.import_module("torch_kirigami")
        return (kirigami.KirigamiError, kirigami.UnsupportedOperation)

    def prune(self, model: nn.Module, args: Args) -> nn.Module:
        kirigami, pruning = map(importlib.import_module, ("torch_kirigami", "torch_kirigami.pruning"))
        graph = kirigami.DependencyGraph.build(model, args=args)
        pruner = pruning.Pruner(model, graph=graph)
        candidates, strategy = pruner.discover_candidates(), pruning.Greedy(pruning.GroupMagnitude(p=2))
        for budget in (pruning.ChannelRatio(RATIO), *(pruning.ChannelRatio(r, "global") for r in (RATIO, 0.25))):
            try:
                plan = pruner.plan(candidates, budget=budget, strategy=strategy)
                break
            except pruning.PlanningError as error:
                if "target not reached" not in str(error):
                    raise
        else:
            plan = pruner.plan(candidates, budget=pruning.ChannelRatio(0.1, "global"), strategy=strategy)
        small: nn.Module = pruner.apply(plan)[0]
        return small


def installed(distribution: str) -> str:
    """The version of a distribution; InputError if it is not there."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(f"{distribution} is not installed: pip install {distribution}") from error


TOOLS: Mapping[str, Tool] = {tool.name: tool for tool in (L1RR(), TorchPruning(), Kirigami())}
