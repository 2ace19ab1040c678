#!/usr/bin/env python3
# ruff: noqa: UP006, UP035, UP045  # Python 3.6 has neither dict[str, int] nor str | None
"""Builds engines from the network in this folder, checks what they compute and measures them; writes results.json.

    python3 build_and_measure.py

Needs Python 3.6 or newer, numpy and TensorRT (8.2, 10, 11 or TensorRT for RTX), which JetPack brings. What TensorRT
can do is probed, not guessed from its version. Where it or a GPU is missing, ONNX Runtime is measured on the
CPU in its place, and results.json says so. Where the network ends with NMS and its plugin is not known, the network
before NMS is measured, and results.json says so. Times are of the network alone, without copies to and from the GPU.
"""

import argparse
import ctypes
import glob
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from typing import Any, Dict, List, Optional, Set, Tuple

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
FORMAT, VERSION = "l1rr-fx results", 1
BUNDLE, BUNDLE_VERSION = "l1rr-fx bundle", 1
NUMBER = (int, float)
FIELDS: Dict[str, Any] = {
    "label": str,
    "target": str,
    "files": dict,
    "nodes": dict,
    "predicted": dict,
    "kernels": list,
    "tolerance.fp32": NUMBER,
    "tolerance.fp16": NUMBER,
    "tolerance.onnxruntime": NUMBER,
    "nms": (dict, type(None)),
}
"""What is read of a manifest."""
NMS_FIELDS: Dict[str, Any] = {
    "nms.output": str,
    "nms.score": NUMBER,
    "nms.overlap": NUMBER,
    "nms.most": int,
    "nms.tolerance.fp32": NUMBER,
    "nms.tolerance.fp16": NUMBER,
}
CUDART = ("libcudart.so", "libcudart.so.10.2", "libcudart.so.11.0", "libcudart.so.12", "libcudart.so.13")
TO_DEVICE, TO_HOST = 1, 2
FUSED = ("Add", "Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid")
PLUGIN = "EfficientNMS_TRT"
POOL = 2000
"""The plugin looks at this many scores at least, best first: 2000 on a Jetson TX2, 5000 elsewhere."""
OVERLAPS = 4.0
"""Overlaps (IoU) of detections may be off by this many times as much as their scores."""
WRONG = 1e9
"""The deviation of what is no number, or has another shape than is expected."""
BEFORE_NMS = "the network before NMS was taken, and its outputs before NMS compared"
Array = Any  # numpy.ndarray; annotations of numpy came after JetPack's
Layers = List[Dict[str, Any]]


class Unavailable(Exception):
    """Something that would be needed to measure with TensorRT is not there."""


class Failed(Exception):
    """The bundle is damaged, or its network cannot be built; the message says what to do."""


# The GPU


class Cuda:
    """The few calls of the CUDA runtime that are needed, by ctypes: JetPack brings no Python package for them."""

    def __init__(self) -> None:
        self.library = self._load()
        count = ctypes.c_int(0)
        if self.library.cudaGetDeviceCount(ctypes.byref(count)) != 0 or count.value == 0:
            raise Unavailable("there is no GPU that CUDA can use")
        self.stream = self._made("cudaStreamCreate")

    @staticmethod
    def _load() -> Any:
        beside = glob.glob(os.path.join(os.path.dirname(np.__path__[0]), "nvidia", "*", "lib", "libcudart.so.*"))
        for name in list(CUDART) + glob.glob("/usr/local/cuda*/lib64/libcudart.so*") + beside:
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
        raise Unavailable("the CUDA runtime (libcudart) cannot be loaded")

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the runtime; raises Failed with CUDA's own words."""
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            self.library.cudaGetErrorString.restype = ctypes.c_char_p
            raise Failed(f"{name}: {self.library.cudaGetErrorString(status).decode()}")

    def _made(self, name: str) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self.call(name, ctypes.byref(handle))
        return handle

    def memory(self, size: int) -> ctypes.c_void_p:
        """Memory of the GPU, at least one byte."""
        pointer = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(1, size)))
        return pointer

    def upload(self, pointer: ctypes.c_void_p, array: Array) -> None:
        host = ctypes.c_void_p(array.ctypes.data)
        self.call("cudaMemcpy", pointer, host, ctypes.c_size_t(array.nbytes), ctypes.c_int(TO_DEVICE))

    def download(self, array: Array, pointer: ctypes.c_void_p) -> None:
        host = ctypes.c_void_p(array.ctypes.data)
        self.call("cudaMemcpy", host, pointer, ctypes.c_size_t(array.nbytes), ctypes.c_int(TO_HOST))

    def event(self) -> ctypes.c_void_p:
        return self._made("cudaEventCreate")

    def record(self, event: ctypes.c_void_p) -> None:
        self.call("cudaEventRecord", event, self.stream)

    def wait(self) -> None:
        self.call("cudaStreamSynchronize", self.stream)

    def between(self, first: ctypes.c_void_p, second: ctypes.c_void_p) -> float:
        """Milliseconds between two events that have passed."""
        passed = ctypes.c_float(0.0)
        self.call("cudaEventElapsedTime", ctypes.byref(passed), first, second)
        return passed.value


# TensorRT


def tensorrt_module() -> Any:
    """TensorRT, or TensorRT for RTX, whose Python interface is the same."""
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            return __import__(name)
        except ImportError:
            continue
    raise Unavailable("TensorRT is not installed")


def has_half_flag(trt: Any) -> bool:
    """Whether the builder chooses FP16 by itself; if not (TensorRT 11, RTX), the types of the file decide."""
    return hasattr(trt.BuilderFlag, "FP16")


def has_plugin(trt: Any, logger: Any, name: str) -> bool:
    """Whether TensorRT knows a plugin, once its library of plugins is loaded; that keeps the logger."""
    if not hasattr(trt, "init_libnvinfer_plugins") or not trt.init_libnvinfer_plugins(logger, ""):
        return False
    registry = trt.get_plugin_registry()
    lists = [getattr(registry, known, []) for known in ("plugin_creator_list", "all_creators")]
    return any(getattr(creator, "name", "") == name for creators in lists for creator in creators)


def build(trt: Any, logger: Any, model: str, precision: str, workspace: int, cache: str) -> bytes:
    """The serialized engine of an ONNX file. `workspace` is in MiB; `cache` is a file of timings, read and written."""
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    with open(model, "rb") as file:
        if not parser.parse(file.read()):
            problems = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise Failed(f"TensorRT cannot read {os.path.basename(model)}: {problems}")
    config = builder.create_builder_config()
    if hasattr(config, "set_memory_pool_limit"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace << 20)
    else:
        config.max_workspace_size = workspace << 20
    if precision == "fp16" and has_half_flag(trt):
        config.set_flag(trt.BuilderFlag.FP16)
    if hasattr(trt, "ProfilingVerbosity"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    timings = _timing_cache(config, cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Failed(f"TensorRT could not build an engine; more --workspace than {workspace} MiB may help")
    if timings:
        with open(cache, "wb") as file:
            file.write(memoryview(config.get_timing_cache().serialize()))
    return bytes(plan)


def _timing_cache(config: Any, path: str) -> bool:
    """Give the builder the timings of earlier builds; False where this TensorRT keeps none."""
    if not hasattr(config, "create_timing_cache"):
        return False
    content = b""
    if os.path.exists(path):
        with open(path, "rb") as file:
            content = file.read()
    cache = config.create_timing_cache(content)
    return cache is not None and bool(config.set_timing_cache(cache, False))


class TensorRT:
    """An engine with its inputs on the GPU."""

    def __init__(self, trt: Any, logger: Any, cuda: Cuda, plan: bytes, inputs: Dict[str, Array]) -> None:
        self.trt, self.cuda = trt, cuda
        self.runtime = trt.Runtime(logger)
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        self.context = self.engine.create_execution_context()
        self.bindings: List[int] = []
        self.results: Dict[str, Tuple[Array, ctypes.c_void_p]] = {}
        for name, is_input, dtype, shape in self._tensors():
            array = np.ascontiguousarray(inputs[name], dtype=dtype) if is_input else np.zeros(shape, dtype)
            pointer = cuda.memory(array.nbytes)
            if is_input:
                cuda.upload(pointer, array)
            else:
                self.results[name] = (array, pointer)
            self.bindings.append(int(pointer.value or 0))
            if hasattr(self.context, "set_tensor_address"):
                self.context.set_tensor_address(name, self.bindings[-1])

    def _tensors(self) -> List[Tuple[str, bool, Any, Tuple[int, ...]]]:
        """Name, whether it is an input, type and shape, in the order of the engine's bindings."""
        trt, engine = self.trt, self.engine
        if hasattr(engine, "num_io_tensors"):
            names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
            is_input = [engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names]
            types = [trt.nptype(engine.get_tensor_dtype(n)) for n in names]
            shapes = [tuple(engine.get_tensor_shape(n)) for n in names]
        else:
            count = range(engine.num_bindings)
            names = [engine.get_binding_name(i) for i in count]
            is_input = [engine.binding_is_input(i) for i in count]
            types = [trt.nptype(engine.get_binding_dtype(i)) for i in count]
            shapes = [tuple(engine.get_binding_shape(i)) for i in count]
        return list(zip(names, is_input, types, shapes))

    def start(self) -> None:
        """Run once, without waiting for it."""
        handle = int(self.cuda.stream.value or 0)
        if hasattr(self.context, "execute_async_v3"):
            done = self.context.execute_async_v3(handle)
        else:
            done = self.context.execute_async_v2(self.bindings, handle)
        if not done:
            raise Failed("TensorRT could not run the engine")

    def outputs(self) -> Dict[str, Array]:
        self.start()
        self.cuda.wait()
        for array, pointer in self.results.values():
            self.cuda.download(array, pointer)
        return {name: array for name, (array, _) in self.results.items()}

    def milliseconds(self, count: int) -> List[float]:
        """One time for each of `count` runs, between CUDA events."""
        before, after, times = self.cuda.event(), self.cuda.event(), []
        for _ in range(count):
            self.cuda.record(before)
            self.start()
            self.cuda.record(after)
            self.cuda.wait()
            times.append(self.cuda.between(before, after))
        return times

    def layers(self, count: int) -> Layers:
        """The time of each layer of the engine. Together they take longer than a run that is not profiled."""
        times: Dict[str, List[float]] = {}

        class Profiler(self.trt.IProfiler):  # type: ignore[name-defined, misc]  # its base is known when it runs
            def report_layer_time(self, name: str, ms: float) -> None:
                times.setdefault(name, []).append(ms)

        self.context.profiler = Profiler()
        for _ in range(count):
            self.start()
            self.cuda.wait()
        kinds = layer_kinds(self.trt, self.engine)
        return [{"name": name, "kind": kinds.get(name, ""), "ms": in_a_run(ms, count)} for name, ms in times.items()]


def layer_kinds(trt: Any, engine: Any) -> Dict[str, str]:
    """What the engine's inspector says that each layer is; empty where there is no inspector."""
    if not hasattr(engine, "create_engine_inspector"):
        return {}
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(text).get("Layers", []) if text else []
    return {
        layer["Name"]: layer.get("LayerType", "") for layer in layers if isinstance(layer, dict) and "Name" in layer
    }


# ONNX Runtime, where there is no TensorRT


class OnnxRuntime:
    """The network on the CPU, one thread."""

    def __init__(self, model: str, inputs: Dict[str, Array], nodes: Dict[str, Dict[str, Any]]) -> None:
        import onnxruntime

        self.package, self.model, self.nodes = onnxruntime, model, nodes
        self.session = self._session(None)
        wanted = {port.name: numpy_type(port.type) for port in self.session.get_inputs()}
        self.inputs = {name: inputs[name].astype(kind) for name, kind in wanted.items()}

    def _session(self, profile: Optional[str]) -> Any:
        options = self.package.SessionOptions()
        options.intra_op_num_threads = 1
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        return self.package.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])

    def outputs(self) -> Dict[str, Array]:
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, self.inputs)))

    def milliseconds(self, count: int) -> List[float]:
        times = []
        for _ in range(count):
            start = time.perf_counter()
            self.session.run(None, self.inputs)
            times.append((time.perf_counter() - start) * 1e3)
        return times

    def layers(self, count: int) -> Layers:
        """The time of each kernel; one that ONNX Runtime named for its result is called by its node again."""
        events = self._profiled(count)
        made = {value for value, _, _ in events}
        times: Dict[Tuple[str, str], List[float]] = {}
        for value, kind, ms in events:
            times.setdefault((self._node(value, kind, made), kind), []).append(ms)
        return [{"name": name, "kind": kind, "ms": in_a_run(ms, count)} for (name, kind), ms in times.items()]

    def _profiled(self, count: int) -> List[Tuple[str, str, float]]:
        """Each kernel that ran in `count` runs: its name without ONNX Runtime's suffix, its kind, milliseconds."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._session(os.path.join(folder, "profile"))
            for _ in range(count):
                session.run(None, self.inputs)
            with open(session.end_profiling()) as file:
                events = json.load(file)
        found = []
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"][: -len("_kernel_time")]
                value = name[: -len("_nchwc")] if name.endswith("_nchwc") else name
                found.append((value, event["args"].get("op_name", ""), event["dur"] / 1e3))
        return found

    def _node(self, value: str, kind: str, made: Set[str]) -> str:
        """The node that a kernel is named for; of a convolution that was fused with what follows, the convolution's."""
        waiting = [value]
        while "Conv" in kind and waiting:
            node = self.nodes.get(waiting.pop(), {"kind": "", "inputs": []})
            if node["kind"] == "Conv":
                return str(node["name"])
            if node["kind"] in FUSED:
                waiting += [each for each in node["inputs"] if each not in made]
        return str(self.nodes[value]["name"]) if value in self.nodes else value


def numpy_type(kind: str) -> Any:
    """The type of NumPy for one of ONNX Runtime, such as "tensor(float)"."""
    name = kind[len("tensor(") : -1]
    return np.dtype("float32" if name == "float" else name)


# The bundle, the machine and the measurement


def median(values: List[float]) -> float:
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def in_a_run(times: List[float], count: int) -> float:
    """What a layer takes in one of `count` runs, in each of which it may have been launched several times."""
    return median(times) * len(times) / count


def read_bundle() -> Tuple[Dict[str, Any], Dict[str, Array], Dict[str, Array]]:
    """The manifest, the inputs and the outputs that are expected; Failed if a file is not the one that was written."""
    manifest = read_manifest()
    for name, facts in manifest["files"].items():
        path = os.path.join(HERE, name)
        if not os.path.exists(path):
            raise Failed(f"{name} is missing: copy the whole bundle again")
        with open(path, "rb") as file:
            if hashlib.sha256(file.read()).hexdigest() != facts["sha256"]:
                raise Failed(f"{name} was damaged or changed: copy the bundle again")
    inputs, expected = (dict(np.load(os.path.join(HERE, name))) for name in ("inputs.npz", "expected.npz"))
    return manifest, inputs, expected


def read_manifest() -> Dict[str, Any]:
    """The manifest; Failed if it is not that of a bundle which this script reads."""
    try:
        with open(os.path.join(HERE, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
    except (OSError, ValueError) as problem:
        raise Failed(f"manifest.json cannot be read ({problem}): copy the whole bundle again") from problem
    if not isinstance(manifest, dict) or manifest.get("format") != BUNDLE:
        raise Failed(f'manifest.json is not that of a bundle: its "format" is not "{BUNDLE}"')
    version = manifest.get("version")
    if version != BUNDLE_VERSION:
        raise Failed(f"the bundle has version {version!r}, this script reads {BUNDLE_VERSION}: take the bundle's own")
    wanted = dict(FIELDS, **(NMS_FIELDS if manifest.get("nms") is not None else {}))
    wrong = [path for path, kind in wanted.items() if not isinstance(looked_up(manifest, path), kind)]
    if wrong:
        raise Failed(f"manifest.json lacks {', '.join(wrong)}: copy the whole bundle again")
    for name, facts in manifest["files"].items():
        if name in ("", "..") or os.path.basename(name) != name or not isinstance(looked_up(facts, "sha256"), str):
            raise Failed(f"manifest.json names {name!r}, which is no file of a bundle: copy the whole bundle again")
    return manifest


def looked_up(document: Any, path: str) -> Any:
    """What a document holds under names with dots between them; Ellipsis where it does not."""
    for key in path.split("."):
        document = document.get(key, ...) if isinstance(document, dict) else ...
    return document


def environment() -> Dict[str, Any]:
    """What the times depend on beside the network."""
    facts = {"machine": platform.machine(), "python": platform.python_version(), "system": platform.platform()}
    tree = "/proc/device-tree/"
    files = {"board": tree + "model", "compatible": tree + "compatible", "l4t": "/etc/nv_tegra_release"}
    for key, path in files.items():
        if os.path.exists(path):
            with open(path, errors="replace") as file:
                facts[key] = " ".join(file.readline().replace("\0", " ").split())
    facts.update(_said_by("nvpmodel", ["nvpmodel", "-q"]))
    facts.update(_said_by("gpu", ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm", "--format=csv,noheader"]))
    return facts


def _said_by(key: str, command: List[str]) -> Dict[str, str]:
    try:
        said = subprocess.check_output(command, stderr=subprocess.STDOUT, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {key: " ".join(said.decode(errors="replace").split())}


def gpu_clock() -> Optional[float]:
    """The GPU's clock in GHz at this moment; None where the kernel does not say (only Jetsons do)."""
    for path in glob.glob("/sys/devices/*gp10b/devfreq/*/cur_freq") + glob.glob(
        "/sys/devices/gpu.0/devfreq/*/cur_freq"
    ):
        with open(path) as file:
            return int(file.read()) / 1e9
    return None


def measured(runner: Any, expected: Dict[str, Array], tolerance: float, nms: Any, options: Any) -> Dict[str, Any]:
    """Check, warm up, time, profile. `nms` is what the manifest says of it, None where it is not in the engine."""
    worst = deviation(runner.outputs(), expected, nms)
    end = time.perf_counter() + options.warmup
    while time.perf_counter() < end:
        runner.milliseconds(1)
    times = sorted(runner.milliseconds(options.iterations))
    clock = gpu_clock()
    layers = runner.layers(max(1, options.iterations // 10))
    return {
        "ms": median(times),
        "ms_least": times[0],
        "ms_90th": times[int(0.9 * (len(times) - 1))],
        "iterations": len(times),
        "gpu_ghz": clock,
        "nms": nms is not None,
        "deviation": worst,
        "tolerance": tolerance,
        "agrees": bool(worst <= tolerance),
        "layers": layers,
    }


def deviation(found: Dict[str, Array], expected: Dict[str, Array], nms: Optional[Dict[str, Any]] = None) -> float:
    """The largest difference of any output, relative to that output's largest finite value; of one that NMS has taken,
    how far its detections are off. An infinity, or what is no number, is the same where it is expected."""
    worst = 0.0
    for name, want in expected.items():
        if nms is not None and name == nms["output"]:
            worst = max(worst, detections_off(found, want, nms))
        elif name not in found or found[name].shape != want.shape:
            return WRONG
        else:
            worst = max(worst, relative(found[name].astype(np.float64), want.astype(np.float64)))
    return worst


def relative(got: Array, want: Array) -> float:
    """The largest difference of two arrays, relative to the largest finite value of the second; WRONG at most."""
    differs = ~((got == want) | (np.isnan(got) & np.isnan(want)))
    if not differs.any():
        return 0.0
    finite = np.abs(want[np.isfinite(want)])
    off = float(np.abs(got[differs] - want[differs]).max()) / max(float(finite.max()) if finite.size else 0.0, 1e-30)
    return off if off < WRONG else WRONG


# Detections: boxes that score the same or overlap about as much as is allowed may be kept or not, so that there is no
# list to compare them with. What makes a list the result of NMS can be checked, within a tolerance.


def detections_off(found: Dict[str, Array], output: Array, nms: Dict[str, Any]) -> float:
    """By how much scores have to be off, and overlaps by OVERLAPS times as much, for NMS to find these detections in
    the network's output (images, 4 + classes, anchors)."""
    names = ("num_dets", "det_boxes", "det_scores", "det_classes")
    if any(name not in found or len(found[name]) != len(output) for name in names):
        return WRONG
    worst = 0.0
    for image, raw in enumerate(output.astype(np.float64)):
        count = int(found["num_dets"][image, 0])
        boxes, scores, classes = (found[name][image, : max(0, count)] for name in names[1:])
        known = np.isfinite(boxes).all() and np.isfinite(scores).all()
        if not known or len(scores) != count or count > nms["most"] or not set(classes) <= set(range(len(raw) - 4)):
            return WRONG
        worst = max(worst, image_off(boxes.astype(np.float64), scores.astype(np.float64), classes, raw, nms))
    return worst


def image_off(boxes: Array, scores: Array, classes: Array, raw: Array, nms: Dict[str, Any]) -> float:
    """The same for one image. Three things make detections the result of NMS, class by class: each is a candidate of
    the network; no two overlap; and each candidate is overlapped by a detection that scores as much, itself for one.
    Candidates that score too little need not be there: less than is asked for, than the last of `most` detections, or
    than all that the plugin looks at."""
    candidates, known = corners(raw[:4].T), raw[4:]
    least = max(nms["score"], scores.min() if len(scores) == nms["most"] else 0.0)
    pool = np.sort(known, axis=None)[-POOL] if known.size > POOL else -np.inf
    worst = max(0.0, nms["score"] - scores.min()) if len(scores) else 0.0
    for number, score in enumerate(known):
        kept, kept_scores = boxes[classes == number], scores[classes == number]
        asked = score > least
        missing = np.minimum(score[asked] - least, (score[asked] - pool) / 2)  # both of a pair may be off
        if len(kept):
            same = iou(kept, candidates)
            off = np.maximum(np.abs(kept_scores[:, None] - score), (1 - same) / OVERLAPS)
            twice = (iou(kept, kept) - nms["overlap"]) / OVERLAPS
            np.fill_diagonal(twice, 0.0)
            covered = np.maximum(score - kept_scores[:, None], (nms["overlap"] - same) / OVERLAPS)[:, asked]
            missing = np.minimum(missing, covered.min(axis=0))
            worst = max(worst, off.min(axis=1).max(), twice.max())
        worst = max(worst, missing.max() if len(missing) else 0.0)
    return float(worst)


def corners(boxes: Array) -> Array:
    """Boxes as x1, y1, x2, y2, from centre, width and height."""
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


def iou(first: Array, second: Array) -> Array:
    """What each of the first boxes has in common with each of the second, as a share of both: (first, second)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.maximum(high - low, 0).prod(axis=2)
    areas = [(each[:, 2:] - each[:, :2]).prod(axis=1) for each in (first, second)]
    return common / np.maximum(areas[0][:, None] + areas[1][None, :] - common, 1e-30)


# The whole


def with_tensorrt(trt: Any, manifest: Dict[str, Any], inputs: Any, expected: Any, options: Any) -> Dict[str, Any]:
    """Engines built, and measured where there is a GPU; Unavailable where this TensorRT cannot even build."""
    runs: List[Dict[str, Any]] = []
    notes: List[str] = []
    logger = trt.Logger(trt.Logger.WARNING)
    nms = manifest["nms"]
    try:
        cuda: Optional[Cuda] = Cuda()
    except Unavailable as reason:
        if trt.__name__ == "tensorrt":  # only TensorRT for RTX builds without a GPU
            raise
        cuda = None
        notes.append(str(reason))
    if nms is not None and not has_plugin(trt, logger, PLUGIN):
        nms = None
        notes.append(f"this TensorRT has no plugin {PLUGIN}: {BEFORE_NMS}")
    for precision in options.precision:
        name = model_file(manifest, nms is not None, precision == "fp16" and not has_half_flag(trt))
        path = os.path.join(HERE, name)
        if not os.path.exists(path):
            notes.append(f"{precision}: this TensorRT takes FP16 from the file's types only, and {name} is not here")
            continue
        start = time.perf_counter()
        plan = build(trt, logger, path, precision, options.workspace, os.path.join(HERE, "timing.cache"))
        run = {"precision": precision, "model": name, "build_seconds": time.perf_counter() - start, "bytes": len(plan)}
        with open(os.path.join(HERE, f"engine_{precision}.plan"), "wb") as file:
            file.write(plan)
        if cuda is not None:
            engine = TensorRT(trt, logger, cuda, plan, inputs)
            run.update(measured(engine, expected, (nms or manifest)["tolerance"][precision], nms, options))
        runs.append(run)
    engine_name = "TensorRT" if trt.__name__ == "tensorrt" else "TensorRT for RTX"
    return {"engine": {"name": engine_name, "version": trt.__version__}, "runs": runs, "notes": notes}


def model_file(manifest: Dict[str, Any], with_nms: bool, half: bool) -> str:
    """The ONNX file to take: with NMS if the bundle has it and it can be run, in FP16 types if they are needed."""
    before = manifest["nms"] is not None and not with_nms
    return "model{}{}.onnx".format("_fp16" if half else "", "_before_nms" if before else "")


def with_onnxruntime(manifest: Dict[str, Any], inputs: Any, expected: Any, options: Any) -> Dict[str, Any]:
    """The FP32 file measured on the CPU."""
    if "fp32" not in options.precision:
        raise Failed("ONNX Runtime is measured in FP32 only, which was not asked for: add fp32 to --precision")
    name = model_file(manifest, False, False)
    try:
        runner = OnnxRuntime(os.path.join(HERE, name), inputs, manifest["nodes"])
    except ImportError as error:
        raise Failed("neither TensorRT with a GPU nor onnxruntime is installed: nothing can be measured") from error
    run = {"precision": "fp32", "model": name}
    run.update(measured(runner, expected, manifest["tolerance"]["onnxruntime"], None, options))
    engine = {"name": "ONNX Runtime", "version": runner.package.__version__, "threads": 1}
    notes = [f"ONNX Runtime has no plugin {PLUGIN}: {BEFORE_NMS}"] if manifest["nms"] is not None else []
    notes.append("measured on the CPU with ONNX Runtime, not with TensorRT")
    return {"engine": engine, "runs": [run], "notes": notes}


def results(options: Any) -> Dict[str, Any]:
    """Everything that results.json says."""
    manifest, inputs, expected = read_bundle()
    built: Dict[str, Any] = {}
    found: Optional[Dict[str, Any]] = None
    reasons: List[str] = []
    if options.engine != "onnxruntime":
        try:
            built = with_tensorrt(tensorrt_module(), manifest, inputs, expected, options)
            found = built if any("ms" in run for run in built["runs"]) else None
            reasons = built["notes"]
        except Unavailable as reason:
            reasons = [str(reason)]
        if found is None and options.engine == "tensorrt":
            raise Failed("; ".join(reasons) or "TensorRT measured nothing")
    if found is None:
        found = with_onnxruntime(manifest, inputs, expected, options)
        found["notes"] = reasons + found["notes"]
        found["built"] = built
    document = {"format": FORMAT, "version": VERSION, "environment": environment()}
    document.update({key: manifest[key] for key in ("label", "target", "predicted", "kernels")})
    document.update(found)
    return document


class Options(argparse.ArgumentParser):
    """Says what is wrong in one line, as all of this script does."""

    def error(self, message: str) -> Any:
        self.exit(2, f"error: {message}\n")


def positive(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is given; expected at least 1")
    return number


def seconds(text: str) -> float:
    """A finite time, for argparse."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is given; expected a finite number of seconds from 0 on")
    return number


def new_file(text: str) -> str:
    """The path of a file in a folder that is there, for argparse."""
    if os.path.isdir(text) or not os.path.isdir(os.path.dirname(os.path.abspath(text))):
        raise argparse.ArgumentTypeError(f"{text} is a folder, or in none; expected the path of a file")
    return text


def main() -> int:
    parser = Options(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=("auto", "tensorrt", "onnxruntime"), default="auto")
    parser.add_argument("--precision", nargs="+", choices=("fp16", "fp32"), default=["fp16", "fp32"])
    parser.add_argument("--workspace", type=positive, default=1024, metavar="MIB", help="memory that TensorRT may use")
    parser.add_argument("--iterations", type=positive, default=100, help="runs that are timed")
    parser.add_argument("--warmup", type=seconds, default=2.0, metavar="SECONDS")
    parser.add_argument("--out", type=new_file, default=os.path.join(HERE, "results.json"))
    options = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # what is old in a new TensorRT is new in 8.2
    try:
        document = results(options)
        half_written = options.out + ".part"
        with open(half_written, "w") as file:
            json.dump(document, file, indent=1)
        os.replace(half_written, options.out)
    except (Failed, OSError) as problem:
        sys.stderr.write(f"error: {problem}\n")
        return 2
    agree = True
    for run in document["runs"]:
        agree = agree and run["agrees"]
        verdict = "agrees" if run["agrees"] else "DIFFERS FROM WHAT IS EXPECTED"
        sys.stdout.write(
            "{} {}{}: {:.3f} ms, {}\n".format(
                document["engine"]["name"], run["precision"], " with NMS" * run["nms"], run["ms"], verdict
            )
        )
    sys.stdout.write(f"written to {options.out}\n")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
