"""What do constant channels cost, after pruning and in analysis?

    python -m benchmarks.constants                  # MACs with half of the scales zero and shifts kept, by network
    python -m benchmarks.constants --size 224       # the same for images of another size
    python -m benchmarks.constants --before TREE    # seconds of analysis where nothing is constant, against TREE
    python -m benchmarks.constants --before TREE --halved    # the same where half of the scales are zero

The first zeroes the scales of half of the channels of every batch norm, at random, with the shifts kept and with the
shifts zero too. Both networks are pruned in float64 and held against the zeroed ones; batch norms that a depthwise
convolution joins lose the same channels. The second compares this checkout with another one, of a revision from before
constants were absorbed, on networks without zeros: a process for each, in turn, process time of
normalisation and analysis, ratio of medians and median of the pairs' ratios. Run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = (
    "tv/resnet18 tv/resnet50 tv/mobilenet_v2 tv/mobilenet_v3_large tv/densenet121 tv/regnet_x_400mf tv/regnet_y_400mf "
    "tv/efficientnet_b0 tv/shufflenet_v2_x1_0 tv/mnasnet1_0 tv/googlenet yolo/yolov3-tiny yolo/yolov5n yolo/yolov8n "
    "yolo/yolov9t yolo/yolo11n"
).split()
TIMED = "tv/resnet50 tv/densenet121 tv/mobilenet_v3_large yolo/yolov8n".split()


def halved(name: str, *, shifts: bool, size: int | None = None) -> tuple[Any, Any]:
    """A network of the zoo with half of its scales zero, and with `shifts` these shifts too; and its arguments."""
    import torch

    from l1rr_fx.method.sites.channel_sites import channel_sites
    from tests.oracle import Case, prepare
    from tests.zoo import by_name

    case = prepare(Case(*by_name(name).build()), seed=0)
    dice, masks = torch.Generator().manual_seed(1), dict[str, Any]()
    for site in channel_sites(case.model, case.args, case.kwargs):
        if site.kind != "scale":
            continue
        if site.unit not in masks:
            masks[site.unit] = torch.randperm(site.channels, generator=dice) < site.channels // 2
        for parameter in (site.weight, site.bias) if shifts else (site.weight,):
            if parameter is not None:
                case.model.get_parameter(parameter).data[masks[site.unit]] = 0
    if size is None:
        return case.model, case.args
    image = case.args[0]
    return case.model, (torch.rand(*image.shape[:2], size, size, dtype=image.dtype), *case.args[1:])


def analysed(model: Any, args: Any) -> tuple[Any, float]:
    """The accounts of the pruned network, and the process time of normalisation and analysis. SystemExit if it computes
    something else than the model, on another input."""
    import torch

    from passes.audit.accounting import accounts_of
    from passes.compile import remove_zero_channels
    from passes.frontend.capture import capture
    from tests.oracle import fresh_input, relative_error

    captured, seconds = capture(model, args), dict[str, float]()
    result = remove_zero_channels(captured, clock=processor_clock(seconds))
    other = fresh_input(args, seed=5)
    with torch.no_grad():
        error = relative_error(result.module(*other), model(*other))
    if not error < 1e-10:
        raise SystemExit(f"the pruned network deviates by {error:.1e}")
    return accounts_of(result.plan, result.rewritten, seconds, result.constants), seconds["analysis"]


def input_channels(model: Any, args: Any, accounts: Any) -> dict[str, int]:
    """How many input channels each convolution of the pruned network reads (of a group), by the name of its node."""
    from passes.canonical.normalise import normalise
    from passes.frontend.capture import capture
    from passes.graph.labels import labels
    from passes.graph.nodes import attribute
    from passes.rules.weights import weight_of

    module, found = normalise(capture(model, args)), dict[str, int]()
    called = labels(module.graph)
    nodes = {called.get(node.name, node.name): node for node in module.graph.nodes}
    for layer in accounts.layers:
        weight = weight_of(nodes[layer.node]) if layer.node in nodes else None
        if weight is not None and weight.op == "get_attr":
            found[layer.node] = layer.inputs[1] // attribute(module, str(weight.target))[0, 0].numel()
    return found


def processor_clock(seconds: dict[str, float]) -> Callable[[str], AbstractContextManager[None]]:
    """A clock of phases that counts process time."""

    @contextmanager
    def clock(phase: str) -> Iterator[None]:
        start = time.process_time()
        yield
        seconds[phase] = time.process_time() - start

    return clock


def row(name: str, size: int | None) -> list[str]:
    """The table's row of one network, for images of `size` pixels (None: the zoo's)."""
    case = halved(name, shifts=True, size=size)
    (zero, without), (keep, with_shifts) = analysed(*case), analysed(*halved(name, shifts=False, size=size))
    before, after = (input_channels(*case, accounts) for accounts in (zero, keep))
    more = max(after[node] - before[node] for node in before.keys() & after.keys())
    places = Counter[str]()
    for each in keep.constants:
        places[each.reason if each.place == "stays" else each.place] += each.channels
    ratios = (keep.after.macs / zero.after.macs, keep.after.macs / keep.limit.macs)
    channels = f"{zero.after.channels:,} | {keep.after.channels:,}"
    where = ", ".join(f"{place} {count}" for place, count in places.most_common())
    return [
        name,
        *(f"{ratio:.3f}" for ratio in ratios),
        channels,
        str(more),
        f"{without:.2f}",
        f"{with_shifts:.2f}",
        where,
    ]


def work(name: str, *, constants: bool) -> None:
    """A worker: for each line on stdin, the process time of one normalisation and analysis on stdout."""
    import torch
    from torch.fx import GraphModule

    from passes.compile import remove_zero_channels
    from passes.frontend.capture import capture
    from tests.oracle import Case, prepare
    from tests.zoo import by_name

    torch.set_num_threads(1)
    case = prepare(Case(*by_name(name).build()), seed=0)
    model, args = halved(name, shifts=False) if constants else (case.model, case.args)
    captured, seconds = capture(model, args, case.kwargs), dict[str, float]()

    print("ready", flush=True)
    for _ in sys.stdin:
        remove_zero_channels(GraphModule(captured, deepcopy(captured.graph)), clock=processor_clock(seconds))
        print(seconds["analysis"], flush=True)


def paired(name: str, trees: Sequence[Path], rounds: int, options: Sequence[str]) -> list[list[float]]:
    """Seconds of analysis in each tree, one round after another; the first round is left out."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", name, *options]
    workers = [
        subprocess.Popen(
            command,
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for tree in trees
    ]
    found: list[list[float]] = [[] for _ in trees]
    try:
        for worker in workers:
            _ask(worker, None)
        for turn in range(rounds + 1):
            order = list(zip(workers, found, strict=True))
            for worker, seconds in order if turn % 2 else order[::-1]:
                seconds.append(float(_ask(worker, "go")))
    finally:
        for worker in workers:
            worker.communicate()
    return [seconds[1:] for seconds in found]


def _ask(worker: subprocess.Popen[str], line: str | None) -> str:
    assert worker.stdin is not None and worker.stdout is not None
    if line is not None:
        worker.stdin.write(line + "\n")
        worker.stdin.flush()
    answer = worker.stdout.readline()
    if not answer:
        raise SystemExit(f"a worker ended with {worker.wait()}")
    return answer


def compare(names: Sequence[str], before: Path, rounds: int, options: Sequence[str]) -> None:
    """The table of analysis times."""
    print("| network | before | now | ratio of medians | median ratio of pairs |\n|---|---:|---:|---:|---:|")
    for name in names:
        old, new = paired(name, (before, ROOT), rounds, options)
        pairs = median(b / a for a, b in zip(old, new, strict=True))
        ratio = median(new) / median(old)
        print(f"| {name} | {median(old):.3f} | {median(new):.3f} | {ratio:.2f} | {pairs:.2f} |", flush=True)


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description="The cost of constant channels.")
    parser.add_argument("--networks", nargs="+", help="names of the zoo")
    parser.add_argument("--before", type=Path, help="the root of a checkout to compare the analysis with")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, help="pixels of the images (default: those of the zoo)")
    parser.add_argument("--halved", action="store_true", help="with --before: half of the scales are zero")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.worker:
        work(given.worker, constants=given.halved)
    elif given.before:
        compare(given.networks or TIMED, given.before.resolve(), given.rounds, ["--halved"] if given.halved else [])
    else:
        print("| network | MACs | / limit | channels: zero | kept | most more read | s: zero | kept | constants |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|---|")
        for name in given.networks or NETWORKS:
            print(f"| {' | '.join(row(name, given.size))} |", flush=True)


if __name__ == "__main__":
    main()
