"""What becomes of the shift of a zeroed channel: kept or zeroed, with and without batch norms measured again?

    python -m benchmarks.shift

Two tree detectors, each zeroed to 0.35 of its MACs in both ways, then fine-tuned for the same 60 steps with the zeros
held. AP on the strip of the training image that is never trained on: zeroed, recalibrated, and fine-tuned. (The 60
steps replace the statistics: recalibrated before them or not, the demo's detector ended with the same AP.)

    demo     the demo's checkpoint: the penalty of its training fell on scales and shifts; channels chosen by attention
    shifts   a detector of half the width, trained here without weight decay and with an L1 penalty on the scales alone,
             so that channels without a scale have shifts; channels chosen by the global threshold

Lines that --results holds are not measured again, and trained networks lie in --work, so that a run that was stopped
goes on. One thread, a few minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from copy import deepcopy
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

import l1rr_fx
from benchmarks.train_trees import smallest_channels
from l1rr_fx.demo.detector import TreeDetector, Widths
from l1rr_fx.demo.measure import macs, precision
from l1rr_fx.demo.run import chosen, load_detector
from l1rr_fx.demo.training import Settings, Training
from l1rr_fx.demo.trees import training_scenes
from l1rr_fx.demo.views import Batch, random_batches
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.sites.zeroing import SHIFTS, Shift

BUDGET, STEPS, RATE = 0.35, 60, 3e-4
RESULTS = Path(__file__).with_suffix(".jsonl")
HALF = Widths(12, 16, 32, 48, 48, 32)
TRAINING = Settings(400, 4e-3, warm_up=50, decay=0.0)
PENALTY, DENSE = 4.0, 0.2
"""The penalty in units of the learning rate, and the part of the training before it sets in."""
CROPS = {"demo": 256, "shifts": 128}
Line = dict[str, Any]


def trained_with_shifts(seed: int, file: Path) -> nn.Module:
    """A detector of half the width, trained without weight decay and with a penalty on the scales alone."""
    torch.manual_seed(seed)
    model = TreeDetector(HALF)
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model.eval()
    training = Training(model, TRAINING)
    for batch in random_batches(training_scenes()[0], TRAINING.steps, size=8, crop=CROPS["shifts"], seed=seed):
        training.advance(batch)
        if training.step >= DENSE * TRAINING.steps:
            _shrink(model, PENALTY * training.optimizer.param_groups[0]["lr"])
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(training.average.state_dict(), file)
    model.load_state_dict(training.average.state_dict())
    return model.eval()


@torch.no_grad()
def _shrink(model: nn.Module, amount: float) -> None:
    """A proximal step on the half of the scales that are smallest; shifts are left alone."""
    for norm, mask in smallest_channels(model, 0.5):
        norm.weight[mask] = F.softshrink(norm.weight[mask], amount)


def planned(subject: str, model: nn.Module, batches: list[Batch]) -> Plan:
    """The channels to zero."""
    if subject == "demo":
        with tempfile.TemporaryDirectory() as folder:
            return chosen(
                model, batches[:1], l1rr_fx.Budget(macs=BUDGET), Path(folder) / "curves.jsonl", batches[0].images[:1]
            )
    return l1rr_fx.choose(model, (batches[0].images[:1],), budget=l1rr_fx.Budget(macs=BUDGET))


def measured(model: nn.Module, plan: Plan, lessons: list[Batch], shift: Shift) -> Line:
    """AP when zeroed, also recalibrated, and after the fine-tuning; and the MACs that are left."""
    scene, copy = training_scenes()[1], deepcopy(model)
    with plan.hold(copy, shift):
        again = deepcopy(copy)
        l1rr_fx.recalibrate_batch_norm(again, [batch.images for batch in lessons[:16]])
        found: Line = {"before": precision(copy, scene), "recalibrated": precision(again, scene)}
        training = Training(copy, Settings(len(lessons), RATE, warm_up=10))
        for batch in lessons:
            training.advance(batch)
    tuned = training.average.eval().to(memory_format=torch.contiguous_format)
    image = lessons[0].images[:1]
    left = macs(l1rr_fx.prune(tuned, (image,)).module, image) / macs(model, image)
    return {**found, "after": precision(tuned, scene), "macs": round(left, 4)}


def with_shifts(model: nn.Module, plan: Plan) -> float:
    """The share of the zeroed channels whose shift is above 0.05 (relative to the scale of a normalised map, 1)."""
    shifts = torch.cat([model.get_parameter(s.bias).detach()[s.mask] for s in plan.sites if s.zeroed and s.bias])
    return float((shifts.abs() > 0.05).float().mean())


def run(results: Path, work: Path, seeds: range, console: Console) -> None:
    """Every line that is not among the results yet."""
    learn = training_scenes()[0]
    for subject, crop in CROPS.items():
        for seed in seeds:
            missing = [each for each in SHIFTS if not _known(_key(subject, seed, each), results)]
            if not missing:
                continue
            model = trained_with_shifts(seed, work / f"{seed}.pt") if subject == "shifts" else load_detector()
            plan = planned(subject, model, list(random_batches(learn, 1, size=8, crop=crop, seed=seed + 1)))
            lessons = list(random_batches(learn, STEPS, size=8, crop=crop, seed=seed + 2))
            facts = {"dense": precision(model, training_scenes()[1]), "with_shifts": round(with_shifts(model, plan), 3)}
            for shift in missing:
                line = _key(subject, seed, shift) | facts | measured(model, plan, lessons, shift)
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                console.print(line)


def _key(subject: str, seed: int, shift: Shift) -> Line:
    return {"subject": subject, "seed": seed, "shift": shift}


def _known(key: Line, results: Path) -> bool:
    return any(key.items() <= line.items() for line in lines(results))


def lines(results: Path) -> list[Line]:
    """What was measured."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def table(found: list[Line]) -> Table:
    """Means over the seeds."""
    shown = Table("network", "shifts", "MACs", "dense", "AP30 / AP50: zeroed", "recalibrated", "fine-tuned", "seeds")
    for key in dict.fromkeys((line["subject"], line["shift"]) for line in found):
        same = [line for line in found if (line["subject"], line["shift"]) == key]
        aps = [
            " / ".join(f"{fmean(line[when][ap] for line in same):.3f}" for ap in ("0.3", "0.5"))
            for when in ("dense", "before", "recalibrated", "after")
        ]
        shown.add_row(*key, f"{fmean(line['macs'] for line in same):.3f}", *aps, str(len(same)))
    return shown


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description="Shifts of zeroed channels, kept or zeroed.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="(%(default)s)")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "l1rr-fx" / "shift", help="(%(default)s)")
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    console = Console(width=140)
    run(given.results, given.work, range(given.seeds), console)
    console.print(table(lines(given.results)))


if __name__ == "__main__":
    main()
