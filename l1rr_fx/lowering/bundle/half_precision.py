"""`half_precision`: whether FP16 holds the numbers of a network, by its largest ones and by a run with rounding."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from l1rr_fx.lowering.onnx.emission import TOLERANCE
from l1rr_fx.lowering.onnx.half import LARGEST
from l1rr_fx.lowering.onnx.ranges import NodeRange, largest_ranges, node_ranges
from l1rr_fx.lowering.onnx.runtime import run_in_half
from l1rr_fx.support.tables import numeric, printed
from passes.audit.comparison import relative_deviation
from passes.errors import InputError

SHOWN = 5
Run = tuple[Sequence[Tensor], Mapping[str, Any]]
"""The inputs of a network in order, and its outputs by name as arrays."""
CHOICES = ("TopK", "ArgMax", "ArgMin", "NonMaxSuppression")


@dataclass(frozen=True)
class HalfPrecision:
    """The largest numbers of each node on the example inputs, beside the largest of FP16, 65504.

    `deviation` is the largest relative one of the outputs from torch's when the result of each node is rounded to FP16
    and saturates. `choosing` says that the network chooses (top-k, argmax), where rounding may choose otherwise. All
    are the largest on any of the `examples` (their number).
    """

    nodes: tuple[NodeRange, ...]
    deviation: float
    choosing: bool = False
    examples: int = 1

    @property
    def holds(self) -> bool:
        """Whether the outputs in FP16 are those of the network, but for rounding."""
        return self.deviation <= TOLERANCE["fp16"]

    @property
    def modules(self) -> tuple[NodeRange, ...]:
        """The node with the largest number of each module, the largest first; nodes behind a module count as its."""
        found: dict[str, NodeRange] = {}
        for node in self.nodes:
            if node.module not in found or node.largest > found[node.module].largest:
                found[node.module] = node
        return tuple(sorted(found.values(), key=lambda node: -node.largest))

    @property
    def beyond(self) -> tuple[NodeRange, ...]:
        """The nodes whose results or constants FP16 cannot hold, in the order of the file."""
        return tuple(node for node in self.nodes if max(node.activation, node.weight or 0.0) > LARGEST)

    @property
    def sums_beyond(self) -> tuple[NodeRange, ...]:
        """The nodes that FP16 holds but for partial sums, in the order of the file."""
        return tuple(node for node in self.nodes if (node.partial_sum or 0.0) > LARGEST and node not in self.beyond)

    @property
    def advice(self) -> tuple[str, ...]:
        """What is wrong in FP16, where, and what to do; empty if nothing is."""
        return (*self._about_outputs(), *self._about_results(), *self._about_sums())

    def _about_outputs(self) -> tuple[str, ...]:
        if self.holds:
            return ()
        allowed = f"{TOLERANCE['fp16']:.0e}"
        if self.choosing:
            return (
                f"FP16: with each result rounded to FP16 the outputs deviate by {self.deviation:.3g} (allowed: "
                f"{allowed}), but the network chooses (top-k, argmax), and rounding may choose otherwise: judge the "
                "FP16 engine by its accuracy on labelled data",
            )
        small = "no number is too large: those below 6e-08 vanish, or rounding accumulates"
        cure = "do what the next lines say" if self.beyond else f"{small}. Scale small weights up"
        return (
            f"FP16: with each result rounded to FP16 the outputs deviate by {self.deviation:.3g} from torch (allowed: "
            f"{allowed}): {cure}, or build the engine in FP32 alone (build_and_measure.py --precision fp32)",
        )

    def _about_results(self) -> tuple[str, ...]:
        if not self.beyond:
            return ()
        effect = f", without effect on these inputs (deviation {self.deviation:.1e})" if self.holds else ""
        return (
            f"FP16: {len(self.beyond)} node(s) have numbers beyond {LARGEST:.0f}, which saturate{effect}: "
            f"{_listed(self.beyond)}. Scale the layer before, or the input, down by the factor that is named; "
            "write a constant that is too large as a product of two",
        )

    def _about_sums(self) -> tuple[str, ...]:
        if not self.sums_beyond:
            return ()
        return (
            f"FP16: partial sums of {len(self.sums_beyond)} node(s) can reach beyond {LARGEST:.0f} where a kernel adds "
            f"in FP16: {_listed(self.sums_beyond)}. If the FP16 engine deviates on the device "
            "(build_and_measure.py compares it), scale the input of these layers down by the factor that is named",
        )

    def facts(self) -> dict[str, Any]:
        """For the manifest of a bundle: to three digits, which no processor's rounding changes."""
        nodes = [
            {
                "name": node.node,
                "module": node.module,
                **{part: _rounded(getattr(node, part)) for part in ("activation", "weight", "partial_sum")},
            }
            for node in self.nodes
        ]
        return {
            "largest": LARGEST, "deviation": _rounded(self.deviation), "examples": self.examples, "nodes": nodes,
        }  # fmt: skip

    def __str__(self) -> str:
        return printed(self)

    def __rich__(self) -> RenderableType:
        examples = "the example" if self.examples == 1 else f"any of {self.examples} examples"
        title = f"FP16: the largest numbers on {examples} (FP16 ends at {LARGEST:.0f})"
        table = Table("module", "node", title=title, title_justify="left")
        numeric(table, "|activation|", "|weight|", "|partial sum|", "of 65504")
        shown = self.modules[: max(SHOWN, sum(node.largest > LARGEST for node in self.modules))]
        for node in shown:
            cells = (_number(n) for n in (node.activation, node.weight, node.partial_sum))
            table.add_row(
                Text(place(node)), Text(node.node if node.after else node.kind), *cells, f"{node.largest / LARGEST:.1%}"
            )
        lines = [f"{len(self.modules) - len(shown)} more modules have smaller numbers"] * (
            len(shown) < len(self.modules)
        )
        lines.append(f"each result rounded to FP16: outputs deviate by {self.deviation:.1e} from torch")
        return Group(table, Text("\n".join((*lines, *self.advice))))


def half_precision(model: Any, runs: Sequence[Run], modules: Collection[str]) -> HalfPrecision | None:
    """What FP16 makes of an `onnx.ModelProto` in FP32; None where ONNX Runtime is not installed.

    `runs` are inputs with the outputs of torch for them, and `modules` the names of the modules with parameters.
    """
    try:
        found = [run_in_half(model, inputs) for inputs, _ in runs]
    except InputError:
        return None
    names = [port.name for port in model.graph.output]
    deviations = [
        relative_deviation([torch.from_numpy(expected[name]) for name in names], outputs)
        for (_, expected), outputs in zip(runs, found, strict=True)
    ]
    ranges = largest_ranges([node_ranges(model, inputs, modules) for inputs, _ in runs])
    choosing = any(node.op_type in CHOICES for node in model.graph.node)
    return HalfPrecision(ranges, max(deviations), choosing, len(runs))


def place(node: NodeRange) -> str:
    """Where a node is: its module, the module before it, or the network's input."""
    if not node.module:
        return "(before any layer)" if node.after else "(the model itself)"
    return f"after {node.module}" if node.after else node.module


def _factor(number: float) -> int:
    """The smallest power of two by which a number has to be divided."""
    return int(2 ** math.ceil(math.log2(number / LARGEST)))


def _listed(nodes: Sequence[NodeRange]) -> str:
    worst = sorted(nodes, key=lambda node: -node.largest)[:SHOWN]
    named = [f"{place(node)} ({node.node}: {node.largest:.3g}, factor {_factor(node.largest)})" for node in worst]
    return ", ".join(named) + (f" and {len(nodes) - len(worst)} more" if len(nodes) > len(worst) else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _rounded(value: float | None) -> float | None:
    """To three digits; None for what JSON cannot hold."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.3g}")
