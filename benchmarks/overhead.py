"""What the sparsity costs in training: the time of `ReweightedL1.step` beside that of the training step it follows.

    python -m benchmarks.overhead

One thread on the CPU. Steps are timed in turn: a training step (forward, backward, SGD), then the regulariser's. The
share is the ratio of the two medians, and that of the two sums, which a pause of the machine moves. Weights are
refreshed twice, so that the sums hold more refreshes than those of a training. Goal: at most 3 %.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l1rr_fx.demo.detector import TreeDetector
from l1rr_fx.method.training.sparsity import ReweightedL1
from tests.zoo import by_name

GOAL = 0.03
TRAINING = 10_000


@dataclass(frozen=True)
class Timing:
    """Seconds of each training step and of the regulariser's step after it."""

    training: tuple[float, ...]
    regulariser: tuple[float, ...]

    @property
    def share(self) -> float:
        """The regulariser's median over that of the training step."""
        return statistics.median(self.regulariser) / statistics.median(self.training)

    @property
    def share_of_sums(self) -> float:
        return sum(self.regulariser) / sum(self.training)


def timed(model: nn.Module, images: Tensor, steps: int) -> Timing:
    """`steps` steps of training and sparsity in turn, after two to warm up."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    sparsity = ReweightedL1(model, total_steps=TRAINING, refresh_every=max(1, steps // 2))
    training, regulariser = [], []
    for _ in range(steps + 2):
        training.append(_seconds(lambda: _step(model, optimizer, images)))
        regulariser.append(_seconds(lambda: sparsity.step(1e-4)))
    return Timing(tuple(training[2:]), tuple(regulariser[2:]))


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    optimizer.zero_grad()
    maps = [leaf for leaf in pytree.tree_leaves(model(images)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    torch.stack([each.square().mean() for each in maps]).sum().backward()
    optimizer.step()


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tree detector": (TreeDetector, (4, 3, 256, 256)),
    "tree detector, one image": (TreeDetector, (1, 3, 256, 256)),
    "YOLOv8s": (lambda: by_name("yolo/yolov8s").build()[0], (2, 3, 320, 320)),
    "ResNet-50": (lambda: by_name("tv/resnet50").build()[0], (4, 3, 224, 224)),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="The regulariser's share of a training step.")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each network (%(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("network", "images", title="Sparsity in training, CPU, one thread")
    for heading in ("gammas", "training step", "sparsity", "share", "share of sums"):
        table.add_column(heading, justify="right")
    for name, (make, shape) in CASES.items():
        torch.manual_seed(0)
        model = make().requires_grad_(True)
        gammas = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        timing = timed(model, torch.rand(shape), given.steps)
        medians = (statistics.median(each) * 1e3 for each in (timing.training, timing.regulariser))
        shown = [f"{each:.2f} ms" for each in medians]
        verdict = "" if timing.share <= GOAL else f" (over {GOAL:.0%})"
        size = " x ".join(map(str, shape))
        table.add_row(name, size, f"{gammas:,}", *shown, f"{timing.share:.2%}{verdict}", f"{timing.share_of_sums:.2%}")
    Console().print(table)


if __name__ == "__main__":
    main()
