"""Does a change of structure change what the compiler writes? Two snapshots of everything it says, compared.

    python -m benchmarks.unchanged before.json            # take a snapshot
    python -m benchmarks.unchanged after.json --against before.json

A snapshot holds, for each conformance pattern with a third of its channels zeroed: in each mode the generated code, the
shapes and the report with its table of layers; the nodes of its ONNX file; the kernels predicted for the TX2; and what
`inspect` and `channel_sites` say of the pattern. It imports public names only, so it runs before and after a move.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from rich.progress import track
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import l1rr_fx
from l1rr_fx import L1RRError
from l1rr_fx.conformance import cases_of
from l1rr_fx.testing import zeroed

MODES = ("recombine", "union", "exclude")
RATIO = 1 / 3
Snapshot = dict[str, dict[str, str]]


def main() -> int:
    """Write a snapshot; with `--against`, print what differs from an older one and return 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where the snapshot is written")
    parser.add_argument("--against", type=Path, help="an older snapshot to compare with")
    options = parser.parse_args()
    found = snapshot()
    options.file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if options.against is None:
        return 0
    lines = differences(json.loads(options.against.read_text(encoding="utf-8")), found)
    print("\n".join(lines) or f"{len(found)} patterns: identical")
    return bool(lines)


def snapshot() -> Snapshot:
    """Everything the compiler says, by pattern and question."""
    return {case.name: answers(case.build) for case in track(cases_of("patterns"), "patterns")}


def answers(build: Callable[[], tuple[nn.Module, tuple[Any, ...]]]) -> dict[str, str]:
    """The answers for one pattern, by question."""
    model, args = build()
    small = zeroed(model, RATIO, seed=1)
    found: dict[str, str] = {}
    for mode in MODES:
        found |= tried(f"prune, {mode}", lambda mode=mode: pruned(small, args, mode))
    found |= tried("target", lambda: pruned(small, args, "recombine", target="jetson-tx2"))
    found |= tried("onnx", lambda: {"onnx": onnx_nodes(l1rr_fx.prune(small, args, verify=False).module, args)})
    found |= tried("kernels", lambda: {"kernels": str(l1rr_fx.Latency("jetson-tx2").of(small, args).rows)})
    found |= tried("inspect", lambda: {"inspect": str(l1rr_fx.inspect(model, args))})
    found |= tried("sites", lambda: {"sites": "\n".join(map(str, l1rr_fx.channel_sites(model, args)))})
    return found


def tried(question: str, answer: Callable[[], dict[str, str]]) -> dict[str, str]:
    """An answer, or the error in its place."""
    try:
        return answer()
    except L1RRError as error:
        return {question: f"{type(error).__name__}: {error}"}


def pruned(model: nn.Module, args: tuple[Any, ...], mode: str, **options: Any) -> dict[str, str]:
    """What a pruning gives: code, shapes, report and layers."""
    result = l1rr_fx.prune(model, args, mode=mode, verify=False, **options)
    name = f"{mode} {' '.join(options.values())}".strip()
    report = json.loads(result.report.to_json())
    _without_seconds(report)
    return {
        f"{name}: code": "\n".join(str(getattr(part, "code", "")) for part in result.module.modules()),
        f"{name}: shapes": str({key: tuple(value.shape) for key, value in result.module.state_dict().items()}),
        f"{name}: report": json.dumps(report, indent=1),
        f"{name}: layers": result.report.details(),
    }


def _without_seconds(document: Any) -> None:
    """Take the timings out of a report, wherever they stand."""
    if isinstance(document, dict):
        document.pop("seconds", None)
        for value in document.values():
            _without_seconds(value)


def onnx_nodes(module: nn.Module, args: tuple[Any, ...]) -> str:
    """The nodes of the ONNX file of a network, as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        l1rr_fx.to_onnx(module.float(), pytree.tree_map(_in_float32, args), path)
        return onnx.printer.to_text(onnx.load(path).graph)


def _in_float32(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """One line for each answer that differs, with the first line in which it does."""
    lines = []
    for name in sorted({*before, *after}):
        one, other = before.get(name, {}), after.get(name, {})
        for question in sorted({*one, *other}):
            if one.get(question) != other.get(question):
                lines.append(f"{name}: {question}: {_first(one.get(question, ''), other.get(question, ''))}")
    return lines


def _first(before: str, after: str) -> str:
    for one, other in zip([*before.splitlines(), ""], [*after.splitlines(), ""]):
        if one != other:
            return f"{one!r} -> {other!r}"
    return "in length"


if __name__ == "__main__":
    raise SystemExit(main())
