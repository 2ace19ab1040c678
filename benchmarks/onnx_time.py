"""What does writing an ONNX file cost, beside torch.onnx.export(dynamo=True)?

    python -m benchmarks.onnx_time                              # YOLOv8s, YOLO11n, ResNet-50
    python -m benchmarks.onnx_time --only yolo/yolov8n --repeats 5

Each network, dense and pruned (half of its channels dead), is written by both in turn, so that a busy machine slows
both alike. `own` is the emission alone, `whole` all of `to_onnx` but the run in ONNX Runtime: capture (none for a
pruned graph), emission, checks and the file. CPU seconds of one thread, medians. Run it from the root of the
repository.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.fx import GraphModule

import l1rr_fx
from l1rr_fx.lowering import to_onnx
from l1rr_fx.lowering.onnx.emission import is_aten_graph
from l1rr_fx.lowering.onnx.interpret import lower_graph
from l1rr_fx.lowering.onnx.proto import model_proto
from l1rr_fx.lowering.onnx.writer import Writer
from l1rr_fx.lowering.onnx_target import target_named
from passes.frontend.capture import capture
from passes.rewriting.fold import fold_batch_norm
from tests.oracle import zeroed_case
from tests.zoo import by_name

NETWORKS = ("yolo/yolov8s", "yolo/yolo11n", "tv/resnet50")


def seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def exported(model: nn.Module, args: tuple[Any, ...], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, args, path, dynamo=True, verbose=False, external_data=False)


def emitted_bytes(graph: GraphModule, args: tuple[Any, ...]) -> bytes:
    """The emission alone, as `to_onnx` does it: from a graph to the bytes of the file."""
    writer = Writer(target_named("jetson-tx2"))
    lowered = lower_graph(fold_batch_norm(graph), args, writer)
    content: bytes = model_proto(lowered, writer, "g", {}).SerializeToString(deterministic=True)
    return content


def row(name: str, model: nn.Module, args: tuple[Any, ...], repeats: int, directory: Path) -> str:
    """One line of the table: medians of interleaved runs, and the numbers of nodes."""
    ours, theirs = directory / "ours.onnx", directory / "theirs.onnx"
    graph = model if is_aten_graph(model) else capture(model, args)
    assert isinstance(graph, GraphModule)
    own, whole, other = [], [], []
    for _ in range(repeats):
        own.append(seconds(lambda: emitted_bytes(graph, args)))
        whole.append(seconds(lambda: to_onnx(model, args, ours, verify=False, overwrite=True)))
        other.append(seconds(lambda: exported(model, args, theirs)))
    ratio = statistics.median(a / b for a, b in zip(whole, other, strict=True))
    nodes = [len(onnx.load(path, load_external_data=False).graph.node) for path in (ours, theirs)]
    return line(name, *(f"{statistics.median(x):.2f}" for x in (own, whole, other)), f"{ratio:.2f}", *nodes)


def line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(NETWORKS), help="networks of tests/zoo.py")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(line("network", "own", "whole", "torch.onnx.export", "whole / export", "nodes", "nodes of export"))
    print(line(*["---"] * 7))
    with tempfile.TemporaryDirectory() as directory:
        for name in options.only:
            case = zeroed_case(by_name(name), 0.5)
            model = case.model.float()
            args = tuple(each.float() for each in case.args)
            print(row(f"{name}, dense", model, args, options.repeats, Path(directory)), flush=True)
            small = l1rr_fx.prune(model, args, verify=False).module
            print(row(f"{name}, pruned", small, args, options.repeats, Path(directory)), flush=True)


if __name__ == "__main__":
    main()
