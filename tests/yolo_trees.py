"""Ultralytics without a network connection, and a data set of a few tiles of the tree images in its format."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from l1rr_fx.demo import trees
from tests.installed import is_installed
from tests.torchvision_shim import import_torchvision

TILE = 160
SETTINGS: dict[str, Any] = {
    "imgsz": 64,
    "batch": 3,
    "nbs": 3,
    "device": "cpu",
    "amp": False,
    "plots": False,
    "workers": 0,
    "verbose": False,
    "warmup_epochs": 0,
    "mosaic": 0.0,
    "exist_ok": True,
}
"""What makes the stock trainer small and quiet: everything else is as Ultralytics has it."""

LAYERS = [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [32, 3, 2]], [-1, 1, "C2f", [32, True]]]
NETWORK = {"nc": 1, "backbone": LAYERS, "head": [[[1, 2], 1, "Detect", ["nc"]]]}
"""A detector in their notation, with each kind of part that is hard to prune: C2f, two scales, their head."""

needs_trees = pytest.mark.skipif(
    not is_installed("deepforest"), reason=f"the tree images are missing: pip install --no-deps {trees.WHEEL}"
)


def offline_ultralytics(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, which looks nothing up. Polars (54 MB), with which its trainer reads its own log, is left out: the
    trainer then stores no log in its checkpoints."""
    settings = {"OFFLINE": "true", "AUTOINSTALL": "false", "VERBOSE": "false", "CONFIG_DIR": tempfile.gettempdir()}
    for name, value in settings.items():
        os.environ.setdefault(f"YOLO_{name}", value)
    import_torchvision()
    import ultralytics
    import ultralytics.data.utils

    monkeypatch.setitem(sys.modules, "polars", ModuleType("polars"))
    monkeypatch.setattr(ultralytics.data.utils, "check_font", lambda *fonts: None)
    return ultralytics


def write_network(folder: Path) -> Path:
    """NETWORK as a file that `YOLO()` reads."""
    file = folder / "small.yaml"
    file.write_text(json.dumps(NETWORK))  # which is YAML too
    return file


def write_trees(folder: Path, *, train: int = 6, val: int = 2) -> Path:
    """A data set of one class; its trees.yaml. Tiles come from the strip that the demo never trains on."""
    scene = trees.training_scenes()[1]
    for number in range(train + val):
        part = "train" if number < train else "val"
        left, top = number % 4 * TILE + 4 * TILE, number // 4 * TILE
        tile = trees.window(scene, (left, top, left + TILE, top + TILE))
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile.image.permute(1, 2, 0).numpy()).save(folder / "images" / part / f"{number}.png")
        lines = [
            f"0 {(left + right) / 2:.6f} {(top + bottom) / 2:.6f} {right - left:.6f} {bottom - top:.6f}"
            for left, top, right, bottom in (tile.boxes / TILE).tolist()
        ]
        (folder / "labels" / part / f"{number}.txt").write_text("\n".join(lines))
    file = folder / "trees.yaml"
    file.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: {{0: tree}}\n")
    return file
