"""How long does pruning take, against Torch-Pruning in the same process?

    python -m benchmarks.compile_time --repeats 7

One thread, float32, the networks' usual input sizes. In each round both tools work on a fresh copy of the same network,
in alternating order; medians are shown. Torch-Pruning decides and cuts: `BNScalePruner(...)`, then one 50 % `step()`.
Ours gets the same network with half of its channels zeroed and removes them. Run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from tests.oracle import Case, calibrate, prepare, zero_channels
from tests.zoo import by_name

SIZES = {"resnet50": 224, "inception_v3": 299, "densenet121": 224}
CLASSIFIERS = {"resnet50": "fc", "inception_v3": "fc", "densenet121": "classifier"}
PHASES = ("capture", "analysis", "rewrite", "verify")
Seconds = dict[str, float]


@dataclass(frozen=True)
class Contest:
    """One network twice: as it is for Torch-Pruning, with half of its channels dead for us; and an input for both."""

    name: str
    dense: nn.Module
    zeroed: nn.Module
    images: Tensor


Contestants = Mapping[str, Callable[[Contest], Seconds]]


def contest(name: str) -> Contest:
    dense, _, _ = by_name(f"tv/{name}").build()
    images = torch.randn(1, 3, SIZES[name], SIZES[name])
    case = prepare(Case(deepcopy(dense), (images,), {}), seed=0)
    zero_channels(case, 0.5, seed=0)
    calibrate(case)
    return Contest(name, dense, case.model.float(), images)


def torch_pruning_seconds(given: Contest) -> Seconds:
    """Construction of a BNScalePruner and one step of it; the classifier stays, as in their examples."""
    pruning = importlib.import_module("torch_pruning")
    model = deepcopy(given.dense)
    started = time.perf_counter()
    pruner = pruning.pruner.BNScalePruner(
        model,
        given.images,
        importance=pruning.importance.BNScaleImportance(),
        pruning_ratio=0.5,
        ignored_layers=[model.get_submodule(CLASSIFIERS[given.name])],
    )
    constructed = time.perf_counter()
    pruner.step()
    ended = time.perf_counter()
    return {"construct": constructed - started, "step": ended - constructed, "total": ended - started}


def our_seconds(given: Contest, *, verify: bool) -> Seconds:
    """The phases as the report has them, `whole` by the clock, and `compile`: analysis and rewrite.

    With `verify` also `forwards`: one forward pass of each of the networks that are compared.
    """
    from l1rr_fx import prune

    model = deepcopy(given.zeroed)
    started = time.perf_counter()
    pruned = prune(model, (given.images,), verify=verify)
    whole = time.perf_counter() - started
    phases = {phase: pruned.report.accounts.seconds.get(phase, 0.0) for phase in PHASES}
    seconds = {**phases, "compile": phases["analysis"] + phases["rewrite"], "whole": whole}
    if verify:
        seconds["forwards"] = sum(forward_seconds(each, given.images) for each in (model, pruned.module))
    return seconds


@torch.no_grad()
def forward_seconds(model: nn.Module, images: Tensor) -> float:
    """The seconds of one forward pass."""
    started = time.perf_counter()
    model(images)
    return time.perf_counter() - started


def race(given: Contest, repeats: int, contestants: Contestants) -> tuple[Seconds, Seconds]:
    """Medians over the rounds and the very first call's seconds, by `contestant.phase`. It is not in the medians."""
    first: Seconds = {}
    rounds: defaultdict[str, list[float]] = defaultdict(list)
    for i in range(repeats + 1):
        order = list(contestants.items())
        for contestant, work in order if i % 2 else order[::-1]:
            gc.collect()
            for phase, seconds in work(given).items():
                key = f"{contestant}.{phase}"
                if i == 0:
                    first[key] = seconds
                else:
                    rounds[key].append(seconds)
    return {key: median(values) for key, values in rounds.items()}, first


def table(results: Mapping[str, tuple[Seconds, Seconds]]) -> str:
    keys = list(next(iter(results.values()))[0])
    header = ["network", "", *keys]
    lines = [header, ["---"] * len(header)]
    for name, (medians, first) in results.items():
        lines.append([name, "median", *(f"{medians[key]:.3f}" for key in keys)])
        lines.append([name, "first call", *(f"{first[key]:.3f}" for key in keys)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ratios(results: Mapping[str, tuple[Seconds, Seconds]]) -> str:
    lines = []
    for name, (medians, _) in results.items():
        theirs = medians["torch-pruning.total"]
        compiled, whole = medians["ours.compile"] / theirs, medians["ours.whole"] / theirs
        lines.append(f"{name}: analysis + rewrite {compiled:.2f}, the whole {whole:.2f} of Torch-Pruning's total")
        verify, forwards = medians["verified.verify"], medians["verified.forwards"]
        lines.append(f"{name}: verification takes {verify / forwards:.2f} times its two forward passes")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--networks", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--peer-only", action="store_true", help="measure Torch-Pruning alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    contestants: dict[str, Callable[[Contest], Seconds]] = {"torch-pruning": torch_pruning_seconds}
    if not options.peer_only:
        contestants["ours"] = lambda given: our_seconds(given, verify=False)
        contestants["verified"] = lambda given: our_seconds(given, verify=True)
    results = {}
    for name in options.networks:
        results[name] = race(contest(name), options.repeats, contestants)
        print(f"{name}: {options.repeats} rounds done", flush=True)
    print(f"\nSeconds, one thread, medians of {options.repeats} rounds.\n\n{table(results)}\n")
    if not options.peer_only:
        print(ratios(results))


if __name__ == "__main__":
    main()
