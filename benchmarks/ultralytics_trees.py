"""The method as a user meets it: a detector of Ultralytics from scratch, in a loop of one's own, with the defaults.

    python -m benchmarks.ultralytics_trees             # minutes of one core
    python -m benchmarks.ultralytics_trees --network yolo11n --steps 600 400 150

Nothing of the method is used but what `import l1rr_fx` gives; images, views and average precision are the demo's.
The detector trains without a penalty, then with `ReweightedL1`, loses channels by each row's choice, and trains on with
its zeros held. "dense" gets as many steps. The left 78 % of the image teach, the rest judges.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Iterator

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import l1rr_fx
from l1rr_fx.demo.boxes import Detections, average_precision
from l1rr_fx.demo.trees import TRAIN_IMAGE, Scene, read_scene, window
from l1rr_fx.demo.views import Batch, random_batches
from tests.torchvision_shim import import_torchvision, nms

SCALE, CROP, BATCH = 0.7, 128, 8
RATES = (2e-3, 1e-3, 1e-3)
"""The highest learning rates without a penalty, with it, and of the fine-tune."""
MACS, BOTH = l1rr_fx.Budget(macs=0.35), l1rr_fx.Budget(params=0.225, macs=0.35)
ROWS = {
    "attention": (BOTH, True, "recombine"),
    "threshold": (BOTH, False, "recombine"),
    "attention, union": (BOTH, True, "union"),
    "MACs: attention": (MACS, True, "recombine"),
    "MACs: threshold": (MACS, False, "recombine"),
    "MACs: threshold, exclude": (MACS, False, "exclude"),
}


def scenes() -> tuple[Scene, Scene]:
    """What is learned from and what is judged on: parts of one image at SCALE."""
    whole = read_scene(TRAIN_IMAGE)
    height, width = (round(SCALE * side) for side in whole.size)
    image = F.interpolate(whole.image[None].float(), (height, width), mode="bilinear", antialias=True)[0]
    scaled = Scene(image.round().to(torch.uint8), whole.boxes * SCALE)
    cut = int(0.78 * width)
    return window(scaled, (0, 0, cut, height)), window(scaled, (cut, 0, width, height))


def network(name: str) -> nn.Module:
    """A new detector of one class."""
    import_torchvision()
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    model = DetectionModel(f"{name}.yaml", nc=1, verbose=False)
    model.args = get_cfg()
    return model


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """The detector's own loss, a mean over images."""
    owners = torch.cat([torch.full((len(trees),), float(n)) for n, trees in enumerate(batch.trees)])
    corners = torch.cat(batch.trees) / batch.images.shape[2]
    boxes = torch.cat(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), 1)
    targets = {"img": batch.images, "batch_idx": owners, "cls": torch.zeros(len(boxes), 1), "bboxes": boxes}
    found: Tensor = model(targets)[0].sum() / len(batch.images)
    return found


def train(model: nn.Module, batches: Iterator[Batch], steps: int, rate: float, *, sparse: bool = False) -> nn.Module:
    """AdamW, a short warm-up and a cosine."""
    optimizer = torch.optim.AdamW(l1rr_fx.parameter_groups(model.train(), weight_decay=0.05), lr=rate)
    if sparse:
        l1rr_fx.ReweightedL1(model, total_steps=steps).attach(optimizer)
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    return model.eval()


def as_input(scene: Scene) -> Tensor:
    """The scene's image in [0, 1], padded to multiples of 32."""
    return F.pad(scene.image[None].float() / 255, (0, -scene.size[1] % 32, 0, -scene.size[0] % 32))


@torch.no_grad()
def precision(model: nn.Module, scene: Scene) -> str:
    """AP30 and AP50 on the scene."""
    rows = model(as_input(scene))[0][0].T
    rows = rows[rows[:, 4] > 0.02]
    boxes = torch.cat((rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2), 1)
    kept = nms(boxes, rows[:, 4], 0.45)[:1000]
    found = average_precision(Detections(boxes[kept], rows[kept, 4]), scene.boxes, (0.3, 0.5))
    return " / ".join(f"{each:.3f}" for each in found.values())


def main() -> None:
    """Train once, then a line for each row."""
    parser = argparse.ArgumentParser(description="The method with its defaults on a detector of Ultralytics.")
    parser.add_argument("--network", default="yolov8n", help="its name without .yaml (%(default)s)")
    parser.add_argument("--steps", type=int, nargs=3, default=(300, 200, 80), metavar=("DENSE", "SPARSE", "FINE"))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), metavar="ROW", help="only these")
    given = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=160)
    (learn, judge), (dense, sparse, fine) = scenes(), given.steps

    def feed(count: int, seed: int) -> Iterator[Batch]:
        return random_batches(learn, count, size=BATCH, crop=CROP, seed=seed)

    model = train(network(given.network), feed(dense, 1), dense, RATES[0])
    console.print(f"dense, {dense} steps: {precision(model, judge)}")
    longer = train(copy.deepcopy(model), feed(sparse, 2), sparse, RATES[1])
    longer = train(longer, feed(fine, 3), fine, RATES[2])
    console.print(f"dense, {dense + sparse + fine} steps: {precision(longer, judge)}")
    model = train(model, feed(sparse, 2), sparse, RATES[1], sparse=True)
    scales = torch.cat([m.weight.detach() for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    console.print(f"sparse: {precision(model, judge)}, {(scales == 0).float().mean():.0%} of gammas zero")
    views = [(batch.images, list(batch.trees)) for batch in feed(3, 4)]
    example = (views[0][0][:1],)
    attention = l1rr_fx.FeatureAttention(model, example, views)
    console.print(f"maps: {', '.join(attention.taps)}")
    for row in given.rows:
        budget, by_attention, mode = ROWS[row]
        smaller = copy.deepcopy(model)
        plan = l1rr_fx.choose(model, example, budget=budget, attention=attention if by_attention else None, mode=mode)
        with plan.hold(smaller):
            l1rr_fx.recalibrate_batch_norm(smaller, [batch.images for batch in feed(12, 5)])
            untuned = precision(smaller, judge)
            train(smaller, feed(fine, 3), fine, RATES[2])
        pruned = l1rr_fx.prune(smaller, (as_input(judge),), mode=mode)
        shares = ", ".join(f"{name} {share:.3f}" for name, share in plan.reached.items())
        console.print(f"{row}: {shares}; recalibrated {untuned}, fine-tuned, pruned {precision(pruned.module, judge)}")


if __name__ == "__main__":
    main()
