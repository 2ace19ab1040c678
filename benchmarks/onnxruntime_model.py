"""How far off is the latency that the model of ONNX Runtime predicts for whole networks on this CPU?

    python -m benchmarks.onnxruntime_model --out onnxruntime_model.jsonl
    python -m benchmarks.onnxruntime_model --out onnxruntime_model.jsonl --only tv/

No network is in the fit: the model is fitted to kernels that are timed one by one. Each network is predicted and
measured dense, with two fifths of its channels dead at random and pruned without a target, and pruned for ONNX Runtime;
the three are measured in turns at one thread, by the least time of the process over several runs. The ratios between
them are held out, too. Lines are appended to the file as they come, and a second run goes on where the first was
stopped. Run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import l1rr_fx
from benchmarks.never_slower import deadened, sized
from l1rr_fx.lowering import measured
from l1rr_fx.machines.onnxruntime import OnnxRuntimeCpu, onnxruntime_cpu
from l1rr_fx.testing import randomised

NETWORKS = (
    "tv/resnet18@224", "tv/mobilenet_v2@224", "tv/mobilenet_v3_large@224", "tv/shufflenet_v2_x1_0@224",
    "tv/squeezenet1_1@224", "tv/googlenet@224", "tv/densenet121@128", "tv/efficientnet_b0@224",
    "tv/regnet_x_400mf@224", "tv/regnet_y_400mf@224", "tv/mnasnet1_0@224", "tv/resnext50_32x4d@128",
    "yolo/yolov8n@320", "yolo/yolo11n@320", "yolo/yolov5n@320", "yolo/yolov9t@320", "tv/resnet50@224",
    "timm/res2net50_26w_4s@128", "timm/ghostnet_100@224", "timm/hrnet_w18_small@128",
)  # fmt: skip
WAYS = ("dense", "pruned, no target", "pruned for ONNX Runtime")
SHARE = 0.4


def lines(spec: str, machine: OnnxRuntimeCpu) -> list[dict[str, Any]]:
    """A network in three forms, predicted and measured."""
    model, args = sized(spec)
    model = randomised(model, dtype=torch.float32).eval()  # numbers too small to be normal take longer
    zeroed, _ = deadened(lambda: (model, args), SHARE)
    pruned = [l1rr_fx.prune(zeroed, args, target=target, verify=False).module for target in ("none", machine)]
    found = measured([model, *pruned], args, machine)
    return [
        {"network": spec, "way": way, "ms": each.seconds * 1e3, "predicted": each.predicted * 1e3}
        for way, each in zip(WAYS, found, strict=True)
    ]


def summary(found: Sequence[dict[str, Any]]) -> None:
    """Print a table, and the errors of milliseconds and of speed."""
    print("| network | way | measured ms | predicted ms | error |\n|---|---|---:|---:|---:|")
    for each in found:
        error = each["predicted"] / each["ms"] - 1
        print(f"| {each['network']} | {each['way']} | {each['ms']:.2f} | {each['predicted']:.2f} | {error:+.1%} |")
    dense = {each["network"]: each for each in found if each["way"] == WAYS[0]}
    print(_errors("milliseconds", [each["predicted"] / each["ms"] for each in found]))
    pruned = [(each, dense[each["network"]]) for each in found if each["way"] != WAYS[0]]
    print(_errors("time over dense", [a["predicted"] / b["predicted"] / (a["ms"] / b["ms"]) for a, b in pruned]))


def _errors(of: str, ratios: Sequence[float]) -> str:
    errors = sorted(abs(ratio - 1) for ratio in ratios)
    high = errors[min(len(errors) - 1, int(0.9 * len(errors)))]
    middle, mean = statistics.median(errors), statistics.median(ratios)
    return (
        f"{of}: median error {middle:.1%}, 90th percentile {high:.1%}, worst {errors[-1]:.1%}, median ratio {mean:.3f}"
    )


def main() -> None:
    """Append the lines that are missing, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("onnxruntime_model.jsonl"))
    parser.add_argument("--only", default="", help="networks whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    texts = options.out.read_text(encoding="utf-8").splitlines() if options.out.exists() else []
    found = [json.loads(text) for text in texts]
    machine = onnxruntime_cpu()
    for spec in NETWORKS:
        if options.only in spec and all(each["network"] != spec for each in found):
            new = lines(spec, machine)
            found += new
            with options.out.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(each) + "\n" for each in new)
    summary(found)


if __name__ == "__main__":
    main()
