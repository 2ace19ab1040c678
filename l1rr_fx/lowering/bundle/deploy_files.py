"""The files of a bundle for servers: Triton's `config.pbtxt`, and `nvinfer.txt` for DeepStream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l1rr_fx.support.packages import required

TRITON, DEEPSTREAM = "config.pbtxt", "nvinfer.txt"
TYPES: Mapping[str, str] = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
}
"""Triton's name for each type of ONNX."""
NARROWED: Mapping[str, str] = {"INT64": "INT32", "DOUBLE": "FLOAT"}
"""What TensorRT 8.2 makes of types that it does not have."""
COLOURS: Mapping[int, int] = {1: 2, 3: 0}
"""nvinfer's number for the colours of a picture, by its channels: gray, RGB."""

NVINFER = """\
# For DeepStream's nvinfer element: its config-file-path. Paths are relative to this file.
[property]
gpu-id=0
onnx-file=model.onnx
# Taken if it is there and fits; otherwise nvinfer builds an engine of the ONNX file.
model-engine-file={engine}
# 0: FP32, 2: FP16
network-mode={mode}
workspace-size=1024
batch-size={images}
infer-dims={sizes}
network-input-order=0
# 0: RGB, 1: BGR, 2: gray
model-color-format={colours}
# The network reads this times (pixel - offset). Set both to what it was trained with; here: from 0 to 1.
net-scale-factor=0.0039215686
gie-unique-id=1
process-mode=1
# 100: nvinfer does not interpret the outputs, but attaches them to each frame as NvDsInferTensorMeta.
network-type=100
output-tensor-meta=1
output-blob-names={outputs}
"""


@dataclass(frozen=True)
class Port:
    """An input or output of an ONNX file: its name, its type in ONNX's words, its sizes."""

    name: str
    kind: str
    sizes: tuple[int, ...]


def write_deploy_files(work: Path, target: str, *, half: bool) -> None:
    """Write Triton's configuration and, if the network takes pictures and the target runs DeepStream, nvinfer's.

    `work` holds the ONNX files of a bundle. The configurations name an engine that the bundle's commands write: the one
    in FP16 if FP16 holds the network's numbers (`half`).
    """
    engine, source, platform = _deployed(target, half, (work / "model_fp16.onnx").exists())
    inputs, outputs = _ports(work / source)
    if target == "jetson-tx2":
        inputs, outputs = _narrowed(inputs), _narrowed(outputs)
    (work / TRITON).write_text(_triton(platform, engine, inputs, outputs), encoding="utf-8")
    if target in ("jetson-tx2", "tensorrt-10") and len(inputs) == 1 and _is_picture(inputs[0]):
        (work / DEEPSTREAM).write_text(_nvinfer(engine, inputs[0], outputs), encoding="utf-8")


def _deployed(target: str, half: bool, half_model: bool) -> tuple[str, str, str]:
    """What a server loads, the ONNX file that it is made of, and Triton's name for its format."""
    if target == "onnxruntime":
        return "model.onnx", "model.onnx", "onnxruntime_onnx"
    if not half or (target == "tensorrt-11" and not half_model):
        return "engine_fp32.plan", "model.onnx", "tensorrt_plan"
    return "engine_fp16.plan", "model_fp16.onnx" if target == "tensorrt-11" else "model.onnx", "tensorrt_plan"


def _ports(path: Path) -> tuple[list[Port], list[Port]]:
    onnx: Any = required("onnx", extra="onnx")
    graph = onnx.load(str(path)).graph

    def read(port: Any) -> Port:
        of = port.type.tensor_type
        return Port(port.name, onnx.TensorProto.DataType.Name(of.elem_type), tuple(d.dim_value for d in of.shape.dim))

    return [read(port) for port in graph.input], [read(port) for port in graph.output]


def _narrowed(ports: Sequence[Port]) -> list[Port]:
    return [Port(port.name, NARROWED.get(port.kind, port.kind), port.sizes) for port in ports]


def _is_picture(port: Port) -> bool:
    return port.kind == "FLOAT" and len(port.sizes) == 4 and port.sizes[1] in COLOURS


def _nvinfer(engine: str, picture: Port, outputs: Sequence[Port]) -> str:
    images, *sizes = picture.sizes
    return NVINFER.format(
        engine=engine,
        mode=2 if "fp16" in engine else 0,
        images=images,
        sizes=";".join(map(str, sizes)),
        colours=COLOURS[sizes[0]],
        outputs=";".join(port.name for port in outputs),
    )


def _triton(platform: str, file: str, inputs: Sequence[Port], outputs: Sequence[Port]) -> str:
    lines = [
        f"# For the Triton Inference Server: REPOSITORY/NAME/config.pbtxt, beside REPOSITORY/NAME/1/{file}",
        f'platform: "{platform}"',
        f'default_model_filename: "{file}"',
        "# All sizes are fixed, that of the batch too.",
        "max_batch_size: 0",
        *_tensors("input", inputs),
        *_tensors("output", outputs),
    ]
    return "\n".join(lines) + "\n"


def _tensors(role: str, ports: Sequence[Port]) -> Iterator[str]:
    for port in ports:
        yield f"{role} {{"
        yield f'  name: "{_escaped(port.name)}"'
        yield f"  data_type: TYPE_{TYPES[port.kind]}"
        yield f"  dims: [ {', '.join(map(str, port.sizes)) or 1} ]"
        if not port.sizes:  # Triton has no tensors without axes
            yield "  reshape: { shape: [ ] }"
        yield "}"


def _escaped(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')
