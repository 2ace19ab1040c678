"""The time of every network of `benchmarks.trees`, in ONNX Runtime on this machine, at one thread.

Channels do not change in the fine-tune, so the network as it was before is timed: ours as `prune` makes it for ONNX
Runtime (`target="onnxruntime"`), Torch-Pruning's as it is. Each is timed in turn with the dense network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import l1rr_fx
from benchmarks.paired import paired_timing
from benchmarks.trees_study import Smaller
from l1rr_fx.demo.detector import TreeDetector
from l1rr_fx.demo.measure import as_input
from l1rr_fx.demo.trees import test_scene

ROUNDS = 15


def measure(work: Path, results: Path, console: Console) -> None:
    """Add "speed" to every cell that has none: how many times as fast as the dense network, by medians."""
    cells: list[dict[str, Any]] = [json.loads(line) for line in results.read_text().splitlines()]
    image, dense = as_input(test_scene()), TreeDetector().eval()
    for each in cells:
        folder = work / f"seed{each['seed']}"
        path = folder / f"{each['row']}-{each['budget']}.cell"
        if "speed" in each or not path.exists():
            continue
        smaller: Smaller = torch.load(path, weights_only=False)  # our own file
        module = smaller.module
        if smaller.plan is not None:
            model = TreeDetector().eval()
            smaller.plan.zero_(model)
            options: dict[str, Any] = {"mode": smaller.plan.mode, "target": "onnxruntime"}
            module = l1rr_fx.prune(model, (image,), verify=False, **options).module
        timing = paired_timing(dense, module.eval(), image, rounds=ROUNDS)
        each["speed"] = round(timing.dense / timing.pruned, 3)
        console.print(f"{each['row']} at {each['budget']}, seed {each['seed']}: {each['speed']} ({timing})")
        fresh = results.with_suffix(".new")
        fresh.write_text("".join(f"{json.dumps(line)}\n" for line in cells))
        fresh.replace(results)
