"""Which channels can the demo's tree detector do without: ratios from feature attention against one threshold.

    python -m benchmarks.choose_trees --macs 0.35 0.3 0.25 --steps 200

One seed, the demo's checkpoint, nothing trained before the choice. For each budget both ways to choose are applied to
the same checkpoint and judged as they are, after batch norms are measured again, and after a short fine-tune with the
zeros held, which the dense detector gets too. Attention is measured on crops of the part of the training image that is
trained on. Everything goes through the package's public functions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.train_trees import Settings, Training, sample
from l1rr_fx.attention import FeatureAttention
from l1rr_fx.budget import Budget
from l1rr_fx.choose import choose
from l1rr_fx.demo.run import load_detector, precision
from l1rr_fx.demo.trees import Scene, test_scene, training_scenes
from l1rr_fx.plan import Plan
from l1rr_fx.recalibrate import recalibrate_batch_norm

Batches = list[tuple[Tensor, list[Tensor]]]


def batches(scene: Scene, count: int, *, size: int = 8, crop: int = 256, seed: int = 0) -> Batches:
    """Random crops of the scene with the trees in them."""
    dice = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        each = [sample(scene, crop, dice) for _ in range(size)]
        found.append((torch.stack([one.image for one in each]), [one.trees for one in each]))
    return found


def fine_tuned(model: nn.Module, plan: Plan | None, scene: Scene, steps: int, rate: float) -> nn.Module:
    """The running average of the model after so many steps of the demo's training without a penalty."""
    training = Training(Settings(steps=steps, rate=rate, penalty=0.0, dense=1.0))
    training.model.load_state_dict(model.state_dict())
    training.average.load_state_dict(model.state_dict())
    held = None if plan is None else plan.hold(training.model)
    for _ in range(steps):
        training.advance(scene)
    if held is not None:
        held.release()
    return training.average


def shown(model: nn.Module, scenes: Sequence[Scene]) -> list[str]:
    """AP50 on each scene, and AP30 beside it."""
    found = [precision(model, scene) for scene in scenes]
    return [f"{each[0.5]:.3f} ({each[0.3]:.3f})" for each in found]


def main() -> None:
    """Choose, judge, and print the table."""
    parser = argparse.ArgumentParser(description="Feature attention against a threshold, on the tree detector.")
    parser.add_argument("--macs", type=float, nargs="+", default=[0.35, 0.3, 0.25], help="budgets (%(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="of the fine-tune (%(default)s)")
    parser.add_argument("--rate", type=float, default=1e-3, help="its learning rate (%(default)s)")
    parser.add_argument("--batches", type=int, default=4, help="of 8 crops, for attention (%(default)s)")
    parser.add_argument("--curves", type=Path, help="keep the curves in this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    learn, held_out = training_scenes()
    scenes = (held_out, test_scene())
    dense = load_detector()
    data = batches(learn, given.batches)
    args = (data[0][0][:1],)
    attention = FeatureAttention(dense, args, data)
    table = Table("channels chosen by", "params", "MACs", "attention loss", title="AP50 (AP30), one seed")
    for stage in ("as it is", "recalibrated", f"{given.steps} steps"):
        for scene in ("held out", "test"):
            table.add_column(f"{stage}: {scene}", justify="right")
    console = Console(width=170)
    tuned = shown(fine_tuned(dense, None, learn, given.steps, given.rate), scenes)
    table.add_row("nothing (dense)", "1.000", "1.000", "0.000", *shown(dense, scenes), "", "", *tuned)
    for share in given.macs:
        for name in ("threshold", "attention"):
            chosen_by = attention if name == "attention" else None
            plan = choose(dense, args, budget=Budget(macs=share), attention=chosen_by, curves=given.curves)
            model = deepcopy(dense)
            plan.zero_(model)
            row = [*shown(model, scenes)]
            loss = attention.of(model).total
            recalibrate_batch_norm(model, data)
            row += shown(model, scenes)
            row += shown(fine_tuned(model, plan, learn, given.steps, given.rate), scenes)
            reached = [f"{plan.reached[each]:.3f}" for each in ("params", "macs")]
            table.add_row(name, *reached, f"{loss:.3f}", *row)
            console.print(f"{name} at {share}: {row}")
    console.print(table)


if __name__ == "__main__":
    main()
