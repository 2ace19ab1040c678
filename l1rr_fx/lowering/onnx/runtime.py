"""ONNX Runtime: the outputs of an ONNX file, to compare with those of the module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from l1rr_fx.lowering.onnx.half import is_half, rounded_to_half
from l1rr_fx.support.packages import required
from passes.errors import InputError, VerifyError


@dataclass(frozen=True, eq=False)
class Trial:
    """The example inputs of a network, and the numbers of the outputs that the file has (None: all tensors)."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: Sequence[int] | None

    def leaves(self) -> list[Any]:
        """All inputs, flat."""
        return pytree.tree_leaves((self.args, dict(self.kwargs)))

    def tensors(self) -> list[Tensor]:
        """The inputs of the file, in order."""
        return [leaf for leaf in self.leaves() if isinstance(leaf, Tensor)]

    def chosen(self, results: Any) -> list[Tensor]:
        """The outputs that the file has, from all outputs of the network."""
        flat = pytree.tree_leaves(results)
        return (
            [flat[i] for i in self.outputs] if self.outputs is not None else [t for t in flat if isinstance(t, Tensor)]
        )


def outputs_in_runtime(content: bytes, trial: Trial) -> list[Tensor] | None:
    """The outputs of an ONNX model on these inputs; None where ONNX Runtime is not installed."""
    try:
        required("onnxruntime", extra="onnx")
    except InputError:
        return None
    return run_onnx(content, trial.tensors())


def run_onnx(content: bytes, inputs: Sequence[Tensor], *, threads: int | None = None) -> list[Tensor]:
    """The outputs of an ONNX model in ONNX Runtime on the CPU. `inputs` are in the order of the model's.

    FP16 tensors are rounded after each node and saturate, as they do on hardware that computes in FP16. Raises
    VerifyError, with ONNX Runtime's own words, if it refuses the model.
    """
    model = required("onnx", extra="onnx").load_from_string(content)
    return _run(rounded_to_half(model).SerializeToString() if is_half(model) else content, inputs, threads)


def run_in_half(model: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of an `onnx.ModelProto` if each of its floating-point tensors were FP16, in FP32."""
    return _run(rounded_to_half(model).SerializeToString(), inputs, None)


def _run(content: bytes, inputs: Sequence[Tensor], threads: int | None) -> list[Tensor]:
    runtime = required("onnxruntime", extra="onnx")
    refusals = tuple(
        kind for kind in vars(runtime.capi.onnxruntime_pybind11_state).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    )  # fmt: skip
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or torch.get_num_threads()
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        feeds = {port.name: _fed(value, port.type) for port, value in zip(session.get_inputs(), inputs, strict=True)}
        found = session.run(None, feeds)
    except refusals as error:
        raise VerifyError(f"ONNX Runtime refuses the model: {error}") from error
    return [torch.from_numpy(each) for each in found]


def _fed(value: Tensor, kind: str) -> Any:
    types = {"tensor(float)": torch.float32, "tensor(int32)": torch.int32}
    return value.detach().cpu().to(types.get(kind, value.dtype)).numpy()
