"""What `build_and_measure.py` measured: results.json, read and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from l1rr_fx.latency.kernels import Kernel
from l1rr_fx.support.checks import expect, fields, naming, parsed, short
from l1rr_fx.support.files import read_file
from passes.errors import InputError, LoadError

FORMAT, VERSION = "l1rr-fx results", 1
"""As `build_and_measure.py` writes them, which cannot import this file."""
LARGEST = 2**26
"""Bytes of a results.json that are read at most."""
SHORTEST, LONGEST = 1e-6, 1e9
"""Milliseconds of a network: less than a nanosecond, or more than eleven days, was not measured."""
SLOWEST, FASTEST = 0.01, 10.0
"""GHz of a GPU."""
MOST = 2**62
"""A count in a file is at most this."""

MOVES = frozenset(
    "Reformat Slice Gather GatherND Concat Pad Split Transpose Shuffle ReorderInput ReorderOutput Copy Memcpy Identity "
    "NoOp Expand".split()
)
"""What engines call layers that only move data."""
CONTRACTIONS = frozenset("Conv ConvTranspose Gemm MatMul FusedConv FusedGemm FusedMatMul CaskConvolution".split())


@dataclass(frozen=True)
class LayerTime:
    """A layer of an engine, as the engine names it, with its mean milliseconds in a profiled run."""

    name: str
    kind: str
    ms: float

    @property
    def node(self) -> str:
        """The first ONNX node that the layer runs."""
        return self.name.split(" + ")[0].split("(")[-1].split(",")[0].strip(") ")

    @property
    def is_copy(self) -> bool:
        """Whether it only moves data: a reformat, or an operator that moves."""
        if self.name.startswith("Reformatting CopyNode") or self.name.endswith(" copy"):
            return True
        return self.kind in MOVES or (not self.is_contraction and self._operator in MOVES)

    @property
    def is_contraction(self) -> bool:
        if self.name.startswith("Reformatting"):
            return False
        return self.kind in CONTRACTIONS or self._operator in CONTRACTIONS

    @property
    def module(self) -> str:
        """The module whose weight the layer reads, a name that pruning does not change."""
        return self.node.rpartition("/")[0]

    @property
    def _operator(self) -> str:
        return self.node.rpartition("/")[2].rstrip("_0123456789")


@dataclass(frozen=True)
class Run:
    """One engine's median milliseconds, with the least and the 90th percentile (None: not known).

    `agrees` says whether its outputs were those that are expected, `nms` whether it ends with non-maximum suppression.
    """

    precision: str
    ms: float
    deviation: float
    agrees: bool
    gpu_ghz: float | None
    layers: tuple[LayerTime, ...]
    nms: bool = False
    ms_least: float | None = None
    ms_90th: float | None = None

    @property
    def copies(self) -> tuple[LayerTime, ...]:
        return tuple(layer for layer in self.layers if layer.is_copy)


@dataclass(frozen=True)
class Results:
    """One results.json: the network's label, the engine that ran it, its runs, its kernels as the model sees them."""

    label: str
    engine: str
    environment: Mapping[str, Any]
    runs: tuple[Run, ...]
    kernels: tuple[Kernel, ...]
    notes: tuple[str, ...]

    @property
    def on_tensorrt(self) -> bool:
        """Whether TensorRT was measured, and not something in its place, such as TensorRT for RTX."""
        return self.engine.rpartition(" ")[0] == "TensorRT"


def read_results(path: str | os.PathLike[str]) -> Results:
    """The results of a file. Raises LoadError, naming the file, where it is not one of `build_and_measure.py`."""
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"path is a {type(path).__name__}; expected the path of a results.json")
    source = Path(path)
    with naming(source):
        try:
            document = parsed(read_file(source, LARGEST))
        except OSError as error:
            raise LoadError(f"cannot be read: {error.strerror or error}") from error
        except ValueError as error:  # a path with a zero byte
            raise LoadError(f"cannot be read: {error}") from error
        if document.get("format") != FORMAT:
            raise LoadError(f'"format" is {short(document.get("format"))}; expected "{FORMAT}"')
        if document.get("version") != VERSION:
            raise LoadError(f"has version {short(document.get('version'))}; this l1rr-fx reads version {VERSION}")
        engine = _field(document, "engine", dict)
        return Results(
            _field(document, "label", str),
            f"{_field(engine, 'name', str)} {_field(engine, 'version', str)}",
            _field(document, "environment", dict),
            tuple(_run(each) for each in _field(document, "runs", list)),
            tuple(kernel_of(each) for each in _field(document, "kernels", list)),
            tuple(str(note) for note in _field(document, "notes", list)),
        )


def read_all(paths: Sequence[str | os.PathLike[str]]) -> tuple[Results, ...]:
    """The results of several files. InputError where there are none."""
    if isinstance(paths, (str, bytes)) or not isinstance(paths, Sequence):
        raise InputError(f'paths is a {type(paths).__name__}; expected a list of paths, such as ["results.json"]')
    if not paths:
        raise InputError("no results.json is named")
    return tuple(read_results(path) for path in paths)


def kernel_of(document: Any) -> Kernel:
    """A kernel as the manifest has it. Raises LoadError where the document is no kernel."""
    kernel: Kernel = _made(Kernel, document, "a kernel")
    return kernel


def _made(wanted: Any, value: Any, what: str) -> Any:
    """A value of a document as the type `wanted`: a dataclass with all its fields, or the type of a field."""
    if is_dataclass(wanted):
        hints = get_type_hints(wanted)
        given = fields(value, {*hints}, what)
        made = {name: _made(hint, given[name], f"the {name} of {what}") for name, hint in hints.items()}
        return wanted(**made)  # type: ignore[operator]  # is_dataclass takes it for an instance
    kind, inner = get_origin(wanted), get_args(wanted)
    if kind is UnionType:
        return None if value is None else _made(inner[0], value, what)
    if kind is tuple:
        return tuple(_made(inner[0], each, f"one of {what}") for each in expect(value, list, what))
    if kind is Literal:
        if value not in inner:
            raise LoadError(f"{what} is {short(value)}; {', '.join(inner)} are known")
        return value
    expect(value, wanted, what)
    if wanted is int and not 0 <= value <= MOST:
        raise LoadError(f"{what} is {short(value)}; expected a count")
    return value


def _run(document: Any) -> Run:
    expect(document, dict, "a run")
    clock = document.get("gpu_ghz")
    return Run(
        _field(document, "precision", str),
        _number(document, "ms", SHORTEST, LONGEST),
        _number(document, "deviation"),
        _field(document, "agrees", bool),
        None if clock is None else _number(document, "gpu_ghz", SLOWEST, FASTEST),
        tuple(
            LayerTime(_field(each, "name", str), _field(each, "kind", str), _number(each, "ms"))
            for each in _field(document, "layers", list)
        ),
        expect(document.get("nms", False), bool, '"nms"'),
        *(_number(document, name, SHORTEST, LONGEST) if name in document else None for name in ("ms_least", "ms_90th")),
    )


def _field(document: Mapping[str, Any], name: str, wanted: type[Any]) -> Any:
    if not isinstance(document, Mapping) or name not in document:
        raise LoadError(f"the field {name!r} is missing")
    return expect(document[name], wanted, f'"{name}"')


def _number(document: Mapping[str, Any], name: str, least: float = 0.0, most: float = LONGEST) -> float:
    value = document.get(name) if isinstance(document, Mapping) else None
    if value is None or type(value) not in (int, float) or not least <= value <= most:
        raise LoadError(f'"{name}" is {short(value)}; expected a number from {least:g} to {most:g}')
    return float(value)
