"""What does it cost on a Jetson TX2 that recombination leaves no gather? By the latency model.

    python -m benchmarks.gathers

Half of the channels are dead. Each network is pruned for the TX2 twice: with gathers at the price of a plain copy, and
as they are priced, prohibitive. Predicted milliseconds in FP16, MACs over the limit and the copies left. Run it from
the root of the repository.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass

import torch

import l1rr_fx
from benchmarks.ideal import Subject, subject
from l1rr_fx.lowering import Latency
from l1rr_fx.machines.jetson_tx2 import JetsonTX2, jetson_tx2_target
from passes.assignment.cost_model import Target

NETWORKS = ("yolo/yolov5s@640", "yolo/yolov8s@640", "tv/resnet50@224")


@dataclass(frozen=True)
class Cheap(JetsonTX2):
    """The TX2 as if a gather were a plain copy."""

    def gather(self, size: float) -> float:
        return self.traffic(size)


def cells(subjects: Subject, target: Target) -> list[str]:
    """Predicted ms, MACs over the limit, and the copies."""
    pruned = l1rr_fx.prune(subjects.model, subjects.args, target=target, verify=False)
    ms = Latency("jetson-tx2", precision="fp16").of(pruned.module, subjects.args).ms
    kinds = Counter(each.kind for each in pruned.report.accounts.recombinations if each.kind != "folded")
    left = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"
    return [f"{ms:.2f}", f"{pruned.report.macs_over_limit:.2f}", left]


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dear = jetson_tx2_target("fp16")
    cheap = Cheap(dear.name, dear.multiple, dear.precision, dear.device)
    print("| network | dead | gathers: ms | MACs / limit | copies | none: ms | MACs / limit | copies |")
    print("|---|---|---:|---:|---|---:|---:|---|")
    for network in NETWORKS:
        name, size = network.split("@")
        for how in ("gamma", "random"):
            subjects = subject(name, int(size), how)
            row = [network, how, *cells(subjects, cheap), *cells(subjects, dear)]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
