"""The ONNX file: `model_proto` puts calls and constants into ONNX's own format, `write_model` writes it at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.lowered import Lowered, Port
from l1rr_fx.lowering.onnx.writer import OnnxCall, Writer
from l1rr_fx.support.arguments import path_of
from l1rr_fx.support.files import blamed
from l1rr_fx.support.files import write_file as write_file
from l1rr_fx.support.packages import required
from l1rr_fx.version import __version__
from passes.errors import InputError

DTYPES: Mapping[str, torch.dtype] = {
    "FLOAT": torch.float32,
    "FLOAT16": torch.float16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "BOOL": torch.bool,
}
LARGEST = 2**31 - 1
"""Bytes that a protobuf may have."""


def model_proto(lowered: Lowered, writer: Writer, name: str, metadata: Mapping[str, object]) -> Any:
    """An `onnx.ModelProto`. The same network gives the same bytes."""
    onnx = required("onnx", extra="onnx")
    helper = onnx.helper
    held = {key: _stored(tensor, kind) for key, (tensor, kind) in lowered.constants.items()}
    size = sum(len(raw) for _, raw in held.values())
    if size > LARGEST:
        raise InputError(f"the constants have {size:,} bytes; an ONNX file holds {LARGEST:,}")
    graph = helper.make_graph(
        [_node(onnx, call) for call in lowered.calls],
        name,
        [_port(onnx, port, writer) for port in lowered.inputs],
        [_port(onnx, port, writer) for port in lowered.outputs],
        [
            helper.make_tensor(key, getattr(onnx.TensorProto, lowered.constants[key][1]), shape, raw, raw=True)
            for key, (shape, raw) in held.items()
        ],
    )
    model = helper.make_model(
        graph,
        ir_version=writer.target.ir_version,
        opset_imports=[helper.make_opsetid("", writer.target.opset)],
        producer_name="l1rr-fx",
        producer_version=__version__,
    )
    helper.set_model_props(model, {str(key): str(value) for key, value in metadata.items()})
    return model


def _stored(tensor: Tensor, kind: str) -> tuple[tuple[int, ...], bytes]:
    """The shape of a constant and its bytes, little-endian, in its ONNX type."""
    value = tensor.detach().cpu()
    if kind == "INT32" and value.dtype != torch.int32 and value.numel():
        _in_range(value)
    array = value.to(DTYPES[kind]).contiguous().numpy()
    return tuple(tensor.shape), array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _in_range(value: Tensor) -> None:
    if int(value.abs().max()) > LARGEST:
        raise InputError(f"a constant of {value.dtype} holds {int(value.abs().max())}, which INT32 cannot")


def _node(onnx: Any, call: OnnxCall) -> Any:
    attributes = dict(call.attributes)
    if call.kind == "Cast":
        attributes["to"] = getattr(onnx.TensorProto, attributes["to"])
    return onnx.helper.make_node(call.kind, call.inputs, call.outputs, name=call.name, **attributes)


def _port(onnx: Any, port: Port, writer: Writer) -> Any:
    kind = "FLOAT" if port.like.dtype.is_floating_point else writer.type_of(port.like.dtype)
    shape = [int(n) for n in port.like.shape]
    return onnx.helper.make_tensor_value_info(port.name, getattr(onnx.TensorProto, kind), shape)


def check_file(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """The path of a file that may be written. Raises InputError for any other."""
    target = path_of("path", path, "a file")
    with blamed(target, "read"):
        if target.is_dir():
            raise InputError(f"{target}: is a directory; expected the name of a file")
        if not target.parent.is_dir():
            raise InputError(f"{target}: there is no directory {target.parent}")
        if target.exists() and not target.is_file():
            raise InputError(f"{target}: is no plain file, and is not replaced")
        if target.exists() and not overwrite:
            raise InputError(f"{target}: exists already; overwrite=True replaces it")
    return target
