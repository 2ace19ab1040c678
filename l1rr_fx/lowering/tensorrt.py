"""`to_tensorrt`: an engine, built by the TensorRT that is installed here.

TensorRT 10 and 11 and TensorRT for RTX have one Python API for this. Types are those of the ONNX file (strongly typed
networks), so that half precision is asked for when the file is emitted, the same way for all of them.
"""

from __future__ import annotations

import importlib
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from l1rr_fx.lowering.onnx.emission import to_onnx
from l1rr_fx.lowering.onnx.proto import check_file, write_file
from l1rr_fx.support.arguments import path_of
from l1rr_fx.support.choices import Precision
from l1rr_fx.support.files import read_file
from passes.errors import InputError, LoweringError

log = logging.getLogger(__name__)

PACKAGES = ("tensorrt", "tensorrt_rtx")
OLDEST = 10
LARGEST = 2**31
"""Bytes of an ONNX file."""


@dataclass(frozen=True)
class Engine:
    """An engine that was built and written: by which package, and in how many seconds."""

    path: Path
    package: str
    version: str
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.path}: {self.bytes:,} bytes, built by {self.package} {self.version} in {self.seconds:.1f} s"


def to_tensorrt(
    module: nn.Module,
    args: tuple[Any, ...],
    path: str | os.PathLike[str],
    *,
    kwargs: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    workspace_mib: int = 1024,
    verify: bool = True,
    overwrite: bool = False,
) -> Engine:
    """Build an engine of `module`, in eval mode, for inputs of the sizes of `args`, with what is installed here.

    `verify` compares what the engine is built from with the module, in ONNX Runtime. Raises InputError where no
    TensorRT is installed, and what `to_onnx` and `build_engine` raise.
    """
    target = check_file(path, overwrite=overwrite)
    installed_package()
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "model.onnx"
        to_onnx(module, args, source, kwargs=kwargs, target="tensorrt-10", precision=precision, verify=verify)
        return build_engine(source, target, workspace_mib=workspace_mib, overwrite=overwrite)


def build_engine(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    workspace_mib: int = 1024,
    overwrite: bool = False,
) -> Engine:
    """Build an engine of an ONNX file and write it to `path`.

    Raises InputError where no TensorRT is installed or a file cannot be read or written, and LoweringError, with
    TensorRT's own words, where it refuses the network.
    """
    target = check_file(path, overwrite=overwrite)
    package, trt = installed_package()
    try:
        content = read_file(path_of("source", source, "an ONNX file"), LARGEST)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror or error}") from error
    start = time.perf_counter()
    plan = _built(trt, content, workspace_mib)
    write_file(target, plan)
    return Engine(target, package, str(trt.__version__), len(plan), time.perf_counter() - start)


def installed_package() -> tuple[str, Any]:
    """The TensorRT that is installed: its name and its module."""
    for name in PACKAGES:
        try:
            package = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        if name == "tensorrt" and int(str(package.__version__).partition(".")[0]) < OLDEST:
            raise InputError(
                f"TensorRT {package.__version__} is installed; expected {OLDEST} or newer here (for a Jetson TX2, "
                "write an ONNX file and build on the device)"
            )
        return name, package
    raise InputError("no TensorRT is installed: pip install 'l1rr-fx[tensorrt]'")


def _logger(trt: Any) -> Any:
    """A logger that hands TensorRT's messages to Python's logging."""
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
        trt.ILogger.INFO: logging.DEBUG,
    }

    class Handed(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.NOTSET)
            if level == logging.ERROR:
                self.errors.append(message.strip())
            if level:
                log.log(level, "%s", message.strip())

    return Handed()


def _built(trt: Any, content: bytes, workspace_mib: int) -> bytes:
    logger = _logger(trt)
    builder = trt.Builder(logger)
    strongly = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # 11: there is nothing else
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(content):
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        said = "\n  ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in found)
        raise LoweringError(f"TensorRT {trt.__version__} refuses the network:\n  {said}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib * 2**20)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        said = "\n  ".join(logger.errors) or "it gives no reason"
        raise LoweringError(f"TensorRT {trt.__version__} cannot build the network:\n  {said}")
    return bytes(plan)
