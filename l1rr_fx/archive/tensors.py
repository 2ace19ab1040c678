"""Tensors in a safetensors file: written by its library, read with its header checked before torch sees anything.

The library checks less (sizes that no tensor can have end in a TypeError), and reads all bytes before the first tensor.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from l1rr_fx.support.checks import expect, fields, naming, parsed, short
from passes.errors import LoadError

HEADER = 2**26
"""The longest header that is read, in bytes."""
MOST = 2**48
"""Elements of a tensor, its empty axes counted as one: their number of bytes is far below what 64 bits hold."""
AXES = 64
DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "F16": torch.float16,
    "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip
OS_ERROR = re.compile(r"\(os error (\d+)\)")


class Source(Protocol):
    """A file that is read from its beginning to its end."""

    def readinto(self, memory: Any) -> int: ...


@dataclass(frozen=True)
class _Entry:
    """A tensor as the header describes it; its bytes are from `start` to `end` behind the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Raises OSError where the disk refuses."""
    try:
        safetensors.torch.save_file(tensors, path)
    except SafetensorError as error:
        said = OS_ERROR.search(str(error))
        number = int(said[1]) if said else 0
        raise OSError(number, os.strerror(number) if number else str(error)) from error


def read_tensors(source: Source, size: int) -> dict[str, Tensor]:
    """The tensors of a file of `size` bytes, each in memory of its own. Raises LoadError for any other file."""
    if sys.byteorder != "little":
        raise LoadError("its numbers are stored low byte first, and this machine reads them high byte first")
    length = int.from_bytes(_read(source, min(8, size)), "little")
    if not 2 <= length <= min(HEADER, size - 8):
        raise LoadError(f"is no safetensors file: a header of {length:,} bytes in a file of {size:,}")
    entries = _entries(_read(source, length))
    end = 0
    for entry in entries:
        if entry.start != end:
            raise LoadError(f"the tensor {short(entry.name)} begins at byte {entry.start:,}; expected {end:,}")
        end = entry.end
    if 8 + length + end != size:
        raise LoadError(f"its tensors end at byte {8 + length + end:,}; the file at {size:,}")
    return {entry.name: _tensor(source, entry) for entry in entries}


def _entries(header: bytes) -> list[_Entry]:
    """What the header says of the tensors, in the order of their bytes."""
    found = dict(parsed(header))
    for key, value in expect(found.pop("__metadata__", {}), dict, "__metadata__").items():
        expect(value, str, f"the metadata {short(key)}")
    entries = []
    for name, facts in found.items():
        with naming(f"the tensor {short(name)}"):
            entries.append(_entry(name, facts))
    return sorted(entries, key=lambda entry: (entry.start, entry.end))


def _entry(name: str, facts: Any) -> _Entry:
    fields(facts, {"dtype", "shape", "data_offsets"}, "it")
    dtype = DTYPES.get(expect(facts["dtype"], str, "its dtype"))
    if dtype is None:
        raise LoadError(f"{short(facts['dtype'])} is not one of {', '.join(DTYPES)}")
    shape = tuple(expect(size, int, "a size") for size in expect(facts["shape"], list, "its shape"))
    offsets = [expect(each, int, "an offset") for each in expect(facts["data_offsets"], list, "data_offsets")]
    if len(shape) > AXES or min(shape, default=0) < 0 or math.prod(max(1, size) for size in shape) > MOST:
        raise LoadError(f"{short(list(shape))} is no shape of a tensor")
    if len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1]:
        raise LoadError(f"{short(offsets)} are no begin and end of its bytes")
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise LoadError(f"has {offsets[1] - offsets[0]:,} bytes, which are not those of {short(list(shape))}")
    return _Entry(name, dtype, shape, *offsets)


def _tensor(source: Source, entry: _Entry) -> Tensor:
    """The bytes of a tensor, read into its memory."""
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    if tensor.nbytes:
        _fill(source, (ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr()))
    if entry.dtype == torch.bool and tensor.numel() and int(tensor.view(torch.uint8).max()) > 1:
        raise LoadError(f"the tensor {short(entry.name)} holds bytes that are neither true nor false")
    return tensor


def _read(source: Source, count: int) -> bytes:
    content = bytearray(count)
    _fill(source, content)
    return bytes(content)


def _fill(source: Source, memory: Any) -> None:
    left = memoryview(memory)
    while left:
        if not (count := source.readinto(left)):
            raise LoadError("changed while it was read")
        left = left[count:]
