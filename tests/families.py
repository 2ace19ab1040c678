"""The table of model families on the front page, from the pages of the zoo. `python -m tests.families` prints it."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
FAMILIES = {
    "YOLO v3 to v12 and 26: detection, segmentation, pose, oriented boxes, classification": r"yolo/(?!.*rtdetr).*",
    "DETR, RT-DETR, D-FINE, Deformable DETR, YOLOS, RF-DETR": r"yolo/.*rtdetr.*|hf/.*",
    "torchvision's detectors: SSD, FCOS, RetinaNet, Faster, Mask and Keypoint R-CNN": r"body/.*",
    "EfficientDet, RetinaFace, MTCNN, YOLOX": r"pkg/.*",
    "segmentation: FCN, DeepLabV3, LR-ASPP": r"seg/.*",
    "VGG, AlexNet, SqueezeNet, DenseNet, GoogLeNet, Inception": r"\w+/(vgg|alex|squeeze|dense|goog|incep).*",
    "ResNet and its kin: ResNeXt, Res2Net, ResNeSt, DPN, CSP, DLA, HRNet": (
        r"\w+/(wide_)?(resne|res2|skres|dpn|csp|dla|hrnet|selecs|ese_vov|hgnet).*"
    ),
    "RegNet": r"tv/regnet.*",
    "MobileNet, MNASNet, EfficientNet, ShuffleNet, GhostNet, MobileOne, RepViT": (
        r"\w+/(mobilenet|mnas|efficientnet|shuffle|ghost|mixnet|rexnet|mobileone|repvit|fasternet|starnet).*"
    ),
    "ConvNeXt, ViT, Swin, MaxViT, LeViT, MobileViT, PVT, XCiT": (
        r"\w+/(convnext|vit|swin_|maxvit|levit|efficientvit|mobilevit|pvt|xcit|edgenext|poolformer).*"
    ),
    "video: R3D, R(2+1)D, MC3, S3D, Swin3D": r"video/.*",
}
"""The names of networks that belong to a family, as a pattern; the first that fits counts."""
RATIO = 1
"""The column of the zoo's table: half of the channels dead."""


def table() -> str:
    """Markdown: for each family how many networks are exact, their MACs over the limit, and how many are ONNX files."""
    zoo, files = rows("zoo.md"), rows("onnx_zoo.md")
    lines = [
        "| family | exact | MACs / limit | ONNX files |",
        "|---|---|---|---|",
    ]
    for family in FAMILIES:
        tried = [cells[RATIO] for name, cells in zoo.items() if family_of(name) == family]
        pruned = [cell for cell in tried if cell not in ("", "dead")]
        exact = sum("differs" not in cell for cell in pruned)
        ratios = [float(cell.split(",")[0]) for cell in pruned]
        written = [cells for name, cells in files.items() if family_of(name) == family]
        good = sum(cells[0] == "ok" and cells[2] == "accepted" and cells[5] == "0" for cells in written)
        limits = f"{statistics.median(ratios):.3f} to {max(ratios):.3f}"
        lines.append(f"| {family} | {exact} of {len(pruned)} | {limits} | {good} of {len(written)} |")
    return "\n".join(lines) + "\n"


def rows(page: str) -> dict[str, list[str]]:
    """The cells behind the name of each network on a page of the zoo."""
    found = re.findall(r"^\| (\w+/[\w./-]+) \| (.*) \|$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    return {name: [cell.strip() for cell in rest.split("|")] for name, rest in found}


def family_of(name: str) -> str | None:
    """The family that a network belongs to; None for whole torchvision detectors, whose bodies are counted."""
    return next((family for family, pattern in FAMILIES.items() if re.fullmatch(pattern, name)), None)


if __name__ == "__main__":
    import sys

    sys.stdout.write(table())
