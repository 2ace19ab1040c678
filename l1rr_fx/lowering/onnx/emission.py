"""`to_onnx`: a network as an ONNX file that its target reads."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen

from l1rr_fx.lowering.onnx.choices import deviation_given_choices
from l1rr_fx.lowering.onnx.heads import check_fields, check_head
from l1rr_fx.lowering.onnx.interpret import lower_graph
from l1rr_fx.lowering.onnx.lowered import Lowered
from l1rr_fx.lowering.onnx.nms import TRANSPOSE, Nms, add_nms, check_nms
from l1rr_fx.lowering.onnx.proto import check_file, model_proto, write_file
from l1rr_fx.lowering.onnx.runtime import Trial, outputs_in_runtime, run_onnx
from l1rr_fx.lowering.onnx.writer import OnnxCall, Writer
from l1rr_fx.lowering.onnx_target import target_named
from l1rr_fx.lowering.parsers.lint import Finding, lint
from l1rr_fx.support.choices import FileTarget, Precision
from l1rr_fx.support.clock import Clock
from l1rr_fx.support.packages import required
from passes.audit.comparison import relative_deviation
from passes.audit.verify import run_graph
from passes.errors import InputError, LoweringError, VerifyError
from passes.frontend.capture import capture
from passes.graph.isolation import run_aside
from passes.graph.modes import MODULES
from passes.graph.nodes import operator_name
from passes.rewriting.fold import fold_batch_norm
from passes.rules.views import PERMUTATIONS

log = logging.getLogger(__name__)

PRECISIONS: Mapping[str, str] = {"fp32": "FLOAT", "fp16": "FLOAT16"}
TOLERANCE: Mapping[str, float] = {"fp32": 1e-4, "fp16": 5e-2}
"""The largest relative deviation from torch that rounding explains."""
MOVERS = ("Gather", "GatherND", "GatherElements", "Transpose")


@dataclass(frozen=True)
class Emitted:
    """An ONNX file, written and checked.

    `operators` counts its nodes by kind. `introduced` names the nodes that move whole tensors although the model did
    not ask for it: gathers that pruning left, transpositions that the spelling needs. `deviation` is the largest
    relative one from the module in ONNX Runtime (None: not run). `findings` are the lint's warnings and notes; errors
    are raised.
    """

    path: Path
    target: str
    opset: int
    operators: Mapping[str, int]
    introduced: tuple[str, ...]
    findings: tuple[Finding, ...]
    deviation: float | None
    seconds: Mapping[str, float]

    @property
    def nodes(self) -> int:
        """The number of nodes."""
        return sum(self.operators.values())

    def __str__(self) -> str:
        checked = "not run" if self.deviation is None else f"within {self.deviation:.1e} of torch in ONNX Runtime"
        moved = {kind: self.operators[kind] for kind in MOVERS if kind in self.operators}
        return (
            f"{self.path}: opset {self.opset}, {self.nodes} nodes for {self.target}, {checked}; "
            f"layout-moving nodes {moved or 'none'}, {len(self.introduced)} of them introduced"
        )


def to_onnx(
    module: nn.Module,
    args: tuple[Any, ...],
    path: str | os.PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    target: FileTarget = "jetson-tx2",
    precision: Precision = "fp32",
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    outputs: Sequence[int] | None = None,
    metadata: Mapping[str, object] | None = None,
    nms: Nms | None = None,
    verify: bool = True,
    overwrite: bool = False,
) -> Emitted:
    """Write `module`, in eval mode, as an ONNX file for `target`, for inputs of exactly the sizes of `args`.

    A pruned module's graph is taken as it is, any other is captured first. Constants are folded, floating-point tensors
    are FP32 (`precision="fp16"`: FP16 inside). `outputs` picks outputs by number, counted in the flattened result.
    `metadata` is stored as text under its keys, for those who run the file (see `yolo_metadata`). `nms` appends
    TensorRT's plugin for non-maximum suppression, once all else is checked.

    The file is checked before it is written: by ONNX's checker and shape inference, by `lint` (its errors are raised as
    LoweringError), and with `verify`, where ONNX Runtime is installed, against the module's own outputs (VerifyError).
    Raises InputError for wrong arguments, CaptureError, and LoweringError for what the target cannot express.
    """
    aim, kind = target_named(target), _float_type(precision)
    path = check_file(path, overwrite=overwrite)
    check_module(module, args)
    if not isinstance(metadata, Mapping | None):
        raise InputError(f"metadata is a {type(metadata).__name__}; expected a mapping or None")
    kwargs = in_order(module, kwargs)
    check_nms(nms, target)
    check_head(nms, module, metadata)
    clock = Clock()
    trial = Trial(args, kwargs, outputs)
    with clock("capture"):
        graph = module if is_aten_graph(module) else capture(module, args, kwargs)
        assert isinstance(graph, GraphModule)
    check_fields(nms, graph)
    writer = Writer(aim, kind)
    names = {"input_names": input_names, "output_names": output_names}
    with clock("emission"):
        lowered = lower_graph(fold_batch_norm(graph), trial.leaves(), writer, **names, outputs=outputs)
        model = model_proto(lowered, writer, type(module).__name__, metadata or {})
    with clock("check"):
        findings = _checked(model, target)
    deviation = None
    if verify:
        with clock("verify"):
            deviation = _judged(model, lowered, module, graph, trial, TOLERANCE[precision])
    introduced = _introduced(lowered)
    if nms is not None:
        add_nms(model, nms)
        findings, introduced = _checked(model, target), (*introduced, TRANSPOSE)
    write_file(path, _bytes(model))
    operators = dict(sorted(Counter(node.op_type for node in model.graph.node).items()))
    return Emitted(path, target, aim.opset, operators, introduced, findings, deviation, clock.seconds)


def is_aten_graph(module: nn.Module) -> bool:
    """Whether a module is a functional graph of ATen operators, batch norms and dropouts, as `prune` returns one."""
    if not isinstance(module, GraphModule):
        return False
    for node in module.graph.nodes:
        if node.op == "call_module" and not isinstance(module.get_submodule(str(node.target)), tuple(MODULES.values())):
            return False
        if node.op == "call_method" or (isinstance(node.target, OpOverload) and node.target._schema.is_mutable):
            return False
        if node.op == "call_function" and getattr(node.target, "__module__", "").startswith("torch.nn"):
            return False
    return any(isinstance(node.target, OpOverload) for node in module.graph.nodes)


def in_order(module: nn.Module, kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Keyword arguments in the order in which a graph has its inputs; as they are for other modules."""
    if not isinstance(kwargs, Mapping | None):
        raise InputError(f"kwargs is a {type(kwargs).__name__}; expected a mapping or None")
    given = dict(kwargs or {})
    codegen = module.graph._codegen if isinstance(module, GraphModule) else None
    if not isinstance(codegen, _PyTreeCodeGen):
        return given
    names = codegen.pytree_info.in_spec.child(1).context
    if set(names) != set(given):
        raise InputError(f"the network takes the keyword arguments {list(names)}; {list(given)} are given")
    return {name: given[name] for name in names}


def check_module(module: object, args: object) -> None:
    """Raise InputError unless this is a module in eval mode (exported programs have no modes), with a tuple of args."""
    if not isinstance(module, nn.Module):
        raise InputError(f"module is a {type(module).__name__}; expected a torch.nn.Module (a Pruned has one: .module)")
    if not isinstance(args, tuple):
        raise InputError(f"args is a {type(args).__name__}; expected a tuple of example inputs, such as (image,)")
    if module.training and has_modes(module):
        raise InputError("the module is in training mode, in which networks compute something else: call .eval() first")


def has_modes(module: nn.Module) -> bool:
    """Whether `.eval()` changes what a module computes: that of an exported program refuses the call."""
    return "eval" not in vars(module)


def _float_type(precision: str) -> str:
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise InputError(f"there is no precision {precision!r}; there are {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def _bytes(model: Any) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))


def _checked(model: Any, target: FileTarget) -> tuple[Finding, ...]:
    """The warnings and notes about a model that ONNX and the target's reader accept; LoweringError for any other."""
    onnx = required("onnx", extra="onnx")
    try:
        onnx.checker.check_model(_bytes(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise LoweringError(f"ONNX refuses what was emitted (please report this with the model): {error}") from error
    findings = lint(model, target) if target_named(target).parser is not None else ()
    wrong = [str(finding) for finding in findings if finding.severity == "error"]
    if wrong:
        raise LoweringError(f"{target} would refuse or misread this network:\n  " + "\n  ".join(wrong))
    return findings


def _judged(
    model: Any, lowered: Lowered, module: nn.Module, graph: GraphModule, trial: Trial, allowed: float
) -> float | None:
    """The largest relative deviation of an ONNX model from the module; None where ONNX Runtime is not installed.

    VerifyError if it is more than is allowed, and nothing explains it.
    """
    found = outputs_in_runtime(_bytes(model), trial)
    if found is None:
        return None
    wanted = trial.chosen(run_aside(module, trial.args, trial.kwargs))
    deviation = relative_deviation(wanted, found)
    if deviation <= allowed:
        return deviation
    captured = relative_deviation(wanted, trial.chosen(run_graph(graph, trial.args, trial.kwargs)))
    if captured > allowed:
        raise VerifyError(
            f"the graph that was captured deviates by {captured:.3g} from the module (allowed: {allowed:.0e}): its "
            "forward does something else while it is exported, or each time. Nothing was written"
        )
    return _explained(deviation, allowed, model, lowered, graph, trial)


def _explained(
    deviation: float, allowed: float, model: Any, lowered: Lowered, graph: GraphModule, trial: Trial
) -> float:
    """A deviation without torch's own rounding, or once both choose alike; VerifyError if that explains nothing.

    Deep networks lose more than is allowed in float32 alone. Where a network makes no choices, a file may deviate from
    the float64 results twice as much as the module itself does.
    """
    message = f"the ONNX file deviates by {deviation:.3g} from the module in ONNX Runtime (allowed: {allowed:.0e})"
    exact = trial.chosen(run_graph(graph, trial.args, trial.kwargs, doubled=True))
    own = relative_deviation(exact, trial.chosen(run_graph(graph, trial.args, trial.kwargs)))
    from_exact = relative_deviation(exact, run_onnx(model.SerializeToString(), trial.tensors()))
    alike = deviation_given_choices(model, lowered, graph, trial)
    if from_exact <= (max(allowed, 2 * own) if alike is None else allowed):
        log.warning("%s, from float64 by %.3g, the module itself by %.3g: rounding", message, from_exact, own)
        return from_exact
    if alike is None or not alike <= allowed:
        choosing = "" if alike is None else f"; where both choose alike (top-k, sort, argmax) by {alike:.3g}"
        raise VerifyError(
            f"{message}{choosing}; from float64 results it deviates by {from_exact:.3g}, the module itself by "
            f"{own:.3g}. Nothing was written; with verify=False it would be"
        )
    log.warning("%s; where both choose alike (top-k, sort, argmax) by %.3g, so this is rounding", message, alike)
    return alike


def _introduced(lowered: Lowered) -> tuple[str, ...]:
    return tuple(call.name for call in lowered.calls if call.kind in MOVERS and _is_introduced(call))


ASKED = frozenset(PERMUTATIONS) | {
    "index", "index_select", "gather", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle",
}  # fmt: skip
"""Operators by which a model itself asks for a Gather or a Transpose."""


def _is_introduced(call: OnnxCall) -> bool:
    """Whether the model did not ask for a move: it reads an index of the compiler's, or its operator moves nothing."""
    node = call.origin
    if node is None:
        return True
    return operator_name(node) not in ASKED or any(_reads_recombination(n) for n in (node, *node.all_input_nodes[:1]))


def _reads_recombination(node: Node) -> bool:
    return any(
        source.op == "get_attr" and str(source.target).startswith("_recombine_") for source in node.all_input_nodes
    )
