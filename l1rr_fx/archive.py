"""Saving and loading of a pruned network, without pickle.

A saved network is a directory of four files:

    manifest.json         the version of the format, the size and the SHA-256 of each other file
    graph.json            nodes, modules, and which tensor is which parameter, buffer or kept index
    tensors.safetensors   the tensors, each memory once
    report.json           `Report.to_json`

Nothing in it is run when it is loaded. torch.fx generates Python code from a graph, so every name that goes into that
code must be an identifier, and every operator must be one of `operator_refusal`'s liking: ATen operators that compute
tensors and numbers from tensors and numbers and write to nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import keyword
import math
import operator
import os
import re
import shutil
import stat
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from l1rr_fx.pruned import Pruned
from l1rr_fx.report import Report
from passes.errors import InputError, LoadError
from passes.modes import MODULES
from passes.selection import Selection

FORMAT = "l1rr-fx network"
VERSION = 1
MANIFEST, GRAPH, TENSORS, REPORT = "manifest.json", "graph.json", "tensors.safetensors", "report.json"
# The largest files that are read, in bytes, so that a hostile one cannot fill the memory.
LIMITS: Mapping[str, int] = {MANIFEST: 2**16, GRAPH: 2**26, TENSORS: 2**33, REPORT: 2**26}
MAX_DEPTH = 32

T = TypeVar("T")


# ------------------------------------------------------------------------------------------- what a graph may hold

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{
        f"operator::{name}": getattr(operator, name)
        for name in (
            *("getitem", "add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "pow", "and_", "or_", "not_"),
            *("eq", "ne", "lt", "le", "gt", "ge"),
        )
    },
    **{
        f"torch::{name}": getattr(torch, name)
        for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite", "sym_sum", "sym_sqrt")
        if hasattr(torch, name)
    },
    **{f"math::{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
}
NAMES = {function: name for name, function in FUNCTIONS.items()}
RETURNS = {"Tensor", "List[Tensor]", "int", "float", "bool", "number", "List[int]"}
ARGUMENTS = re.compile(r"(Optional\[|List\[)*(Tensor|int|float|bool|number|complex|str|Device|Generator)\]*")
# Operators that pass the rule and still reach beyond their arguments: files, seeds.
REFUSED = {"from_file", "seed", "initial_seed"}
# Of the operators that start with an underscore, which may change or skip checks, these are known to be sound.
PRIVATE = {
    *("__and__", "__or__", "__xor__", "__lshift__", "__rshift__"),
    *("_softmax", "_log_softmax", "_to_copy", "_unsafe_view", "_reshape_alias", "_convolution", "_weight_norm"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_prelu_kernel", "_shape_as_tensor", "_safe_softmax"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_native_batch_norm_legit_no_training"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"),
}
WORDS: Mapping[str, tuple[type, Mapping[str, Any]]] = {
    "dtype": (torch.dtype, {str(x)[6:]: x for x in vars(torch).values() if isinstance(x, torch.dtype)}),
    "layout": (torch.layout, {"strided": torch.strided}),
    "memory_format": (
        torch.memory_format,
        {str(x)[6:]: x for x in vars(torch).values() if isinstance(x, torch.memory_format)},
    ),
}
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
TARGET = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
RESERVED = {"self", "torch", "pytree", "fx_pytree", *keyword.kwlist}


def operator_refusal(target: OpOverload) -> str | None:
    """Why an operator may not be in a saved network, or None if it may."""
    schema = target._schema
    name = schema.name.partition("::")[2]
    if target.namespace != "aten":
        return "it is not an ATen operator"
    if schema.is_mutable:
        return "it writes to its arguments"
    if name in REFUSED or (name.startswith("_") and name not in PRIVATE):
        return "it is not on the list of operators that compute and do nothing else"
    if not schema.returns or any(str(each.type) not in RETURNS for each in schema.returns):
        return "it does not return tensors or numbers"
    if any(not ARGUMENTS.fullmatch(str(each.type)) for each in schema.arguments):
        return "it does not take tensors and numbers alone"
    return None


def _is_name(name: object) -> bool:
    return isinstance(name, str) and IDENTIFIER.fullmatch(name) is not None and name not in RESERVED


def _is_target(target: object) -> bool:
    return (
        isinstance(target, str)
        and TARGET.fullmatch(target) is not None
        and not any(map(keyword.iskeyword, target.split(".")))
    )


# --------------------------------------------------------------------------------------------------- save and load


def save(pruned: Pruned, directory: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write `pruned` to `directory`: all of it or, on any failure, nothing.

    Raises InputError if the directory is not empty (with `overwrite` a saved network is replaced, and nothing else
    is), if the network holds what the format cannot, or if the disk refuses.
    """
    target = Path(directory)
    if not isinstance(pruned, Pruned):
        raise InputError(f"a Pruned is wanted, not a {type(pruned).__name__}")
    check_target(target, overwrite=overwrite)
    document, tensors = encode(pruned)
    try:
        decode(document, tensors, torch.device("cpu"))  # what is saved can be loaded
    except LoadError as error:
        raise InputError(f"this network cannot be saved: {error}") from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _new_directory_beside(target) as work:
            _write_all(work, document, tensors, pruned.report)
            _move(work, target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error


def load(directory: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Pruned:
    """The pruned network that `save` wrote, with its tensors on `device`. Safe on files from anywhere: nothing is run.

    Raises LoadError, naming the file and what is wrong with it, unless every file is there, plain, within its limit, of
    the size and hash in the manifest, and holds a network of known operators whose tensors fit together.
    """
    path = Path(directory)
    content = _read_all(path)
    with _naming(path / TENSORS):
        tensors = _tensors(content[TENSORS])
    with _naming(path / GRAPH):
        module, kept = decode(_json(content[GRAPH]), tensors, torch.device(device))
    with _naming(path / REPORT):
        try:
            report = Report.from_json(content[REPORT].decode())
        except (InputError, UnicodeDecodeError) as error:
            raise LoadError(str(error)) from error
    return Pruned(module, report, kept)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise InputError if `save` may not write to `target`: nothing but a saved network is ever replaced."""
    try:
        if not target.exists() and not target.is_symlink():
            return
        if target.is_symlink() or not target.is_dir():
            raise InputError(f"{target} exists and is not a directory")
        found = {entry.name for entry in target.iterdir()}
    except OSError as error:
        raise InputError(f"{target}: cannot be read: {error.strerror or error}") from error
    if not found:
        return
    if not overwrite:
        raise InputError(f"{target} exists and is not empty; overwrite=True replaces a saved network")
    if found != {*LIMITS}:
        raise InputError(f"{target} is not a saved network, so it is not replaced: it holds {sorted(found)[0]!r}")


# ----------------------------------------------------------------------------------------------------------- files


@contextlib.contextmanager
def _new_directory_beside(target: Path) -> Iterator[Path]:
    """A new empty directory on the file system of `target`; it is gone afterwards unless it was moved."""
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_all(work: Path, document: Mapping[str, Any], tensors: dict[str, Tensor], report: Report) -> None:
    (work / GRAPH).write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    (work / REPORT).write_text(report.to_json(), encoding="utf-8")
    safetensors.torch.save_file(tensors, work / TENSORS)
    for name in _PAYLOAD:
        if (size := (work / name).stat().st_size) > LIMITS[name]:
            raise InputError(f"{name} would be {size:,} bytes; at most {LIMITS[name]:,} can be loaded")
    files = {name: {"bytes": (work / name).stat().st_size, "sha256": _sha256(work / name)} for name in _PAYLOAD}
    manifest = {"format": FORMAT, "version": VERSION, "torch": torch.__version__, "files": files}
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    umask = os.umask(0)
    os.umask(umask)
    for name in LIMITS:
        os.chmod(work / name, 0o666 & ~umask)
        _sync(work / name)
    os.chmod(work, 0o777 & ~umask)
    _sync(work)


_PAYLOAD = (GRAPH, TENSORS, REPORT)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Have the disk hold `path`, a file or (where the system can) a directory."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows does not open directories
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _move(work: Path, target: Path) -> None:
    """Rename `work` to `target`; what was there is kept until that succeeded, and put back if it did not."""
    if not target.exists() or not any(target.iterdir()):
        if target.exists():
            target.rmdir()
        work.rename(target)
    else:
        with _new_directory_beside(target) as aside:
            old = aside / "old"
            target.rename(old)
            try:
                work.rename(target)
            except OSError:
                old.rename(target)
                raise
    _sync(target.parent)


def _read_all(path: Path) -> dict[str, bytes]:
    """The content of every file, checked against the limits before and against the manifest after it is read."""
    try:
        if not path.is_dir():
            raise LoadError(f"{path}: there is no such directory" if not path.exists() else f"{path}: not a directory")
        found = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror or error}") from error
    if missing := sorted({*LIMITS} - found):
        raise LoadError(f"{path / missing[0]}: the file is missing")
    if unexpected := sorted(found - {*LIMITS}):
        raise LoadError(f"{path}: holds {unexpected[0]!r}, which is no part of a saved network")
    with _naming(path / MANIFEST):
        files = _manifest(_json(_content(path / MANIFEST, None)))
    content = {}
    for name in _PAYLOAD:
        with _naming(path / name):
            content[name] = _content(path / name, files[name]["bytes"])
            if hashlib.sha256(content[name]).hexdigest() != files[name]["sha256"]:
                raise LoadError("its SHA-256 is not that of the manifest: the file was damaged or changed")
    return content


def _content(path: Path, size: int | None) -> bytes:
    """The bytes of a plain file of `size` bytes; never more than its limit is read."""
    limit = LIMITS[path.name]
    try:
        if path.is_symlink():
            raise LoadError("is a symbolic link")
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise LoadError("is not a plain file")
            if facts.st_size > limit:
                raise LoadError(f"has {facts.st_size:,} bytes; the limit is {limit:,}")
            if size is not None and facts.st_size != size:
                raise LoadError(f"has {facts.st_size:,} bytes where the manifest says {size:,}")
            content = file.read(facts.st_size + 1)
    except OSError as error:
        raise LoadError(f"cannot be read: {error.strerror or error}") from error
    if len(content) != facts.st_size:
        raise LoadError("changed while it was read")
    return content


def _manifest(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The size and hash of each file; LoadError unless the manifest is of our format and names our files alone."""
    if document.get("format") != FORMAT:
        raise LoadError(f'"format" is {_short(document.get("format"))}; "{FORMAT}" is wanted')
    if document.get("version") != VERSION:
        raise LoadError(f"has version {_short(document.get('version'))}; this l1rr-fx reads version {VERSION}")
    _fields(document, {"format", "version", "torch", "files"}, "the manifest")
    files = _fields(document["files"], {*_PAYLOAD}, '"files"')
    for name, facts in files.items():
        _fields(facts, {"bytes", "sha256"}, f'"files", {name}')
        _expect(facts["bytes"], int, f"the size of {name}")
        _expect(facts["sha256"], str, f"the hash of {name}")
    return files


def _json(content: bytes) -> Mapping[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise LoadError(f"{constant} is not JSON")

    try:
        document = json.loads(content.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"is not JSON: {error}") from error
    return _expect(document, dict, "the document")


def _tensors(content: bytes) -> dict[str, Tensor]:
    try:
        return {name: tensor.clone() for name, tensor in safetensors.torch.load(content).items()}
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise LoadError(f"is not a safetensors file that torch can read: {error}") from error


@contextlib.contextmanager
def _naming(place: object) -> Iterator[None]:
    """Errors from inside begin with the place, a file or a part of one."""
    try:
        yield
    except LoadError as error:
        raise LoadError(f"{place}: {error}") from error


def _expect(value: Any, wanted: type[T], what: str) -> T:
    if type(value) is not wanted:
        raise LoadError(f"{what} is {_short(value)}; a value of type {wanted.__name__} is wanted")
    return value


def _fields(value: Any, names: set[str], what: str) -> dict[str, Any]:
    found = _expect(value, dict, what)
    if unexpected := sorted(names ^ found.keys()):
        raise LoadError(f"{what}: the field {_short(unexpected[0])} is missing or unknown")
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --------------------------------------------------------------------------------------------------- to a document


def encode(pruned: Pruned) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`pruned` as a JSON document and the tensors that it names; each memory once, whatever its number of names."""
    module = pruned.module
    if not isinstance(module, GraphModule):
        raise InputError(
            f"only a network that was captured whole can be saved; this {type(module).__name__} holds "
            f"{len(pruned.report.pieces)} captured pieces in the model's own code: save its state_dict() instead"
        )
    store = _Store()
    document = {
        "codegen": _codegen_document(module.graph._codegen),
        "nodes": [_node_document(node) for node in module.graph.nodes],
        "modules": _module_documents(module),
        "parameters": {
            name: {"tensor": store.add(name, parameter), "requires_grad": parameter.requires_grad}
            for name, parameter in module.named_parameters(remove_duplicate=False)
        },
        "buffers": {
            name: {"tensor": store.add(name, buffer), "persistent": persistent}
            for name, (buffer, persistent) in _buffers(module).items()
        },
        "kept": {name: _selection_document(name, selection, store) for name, selection in pruned.kept.items()},
    }
    return document, store.tensors


class _Store:
    """Tensors by name, each memory under the first name that it came with."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.names: dict[object, str] = {}

    def add(self, name: str, tensor: Tensor) -> str:
        """The name under which the content of `tensor` is stored."""
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
            raise InputError(
                f"{name}: only dense tensors with content can be saved, not {tensor.layout} on {tensor.device}"
            )
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
            raise InputError(f"{name}: a tensor of class {type(tensor).__name__} cannot be saved")
        view = (tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        key = (tensor.data_ptr(), *view) if tensor.numel() else id(tensor)
        if key not in self.names:
            self.names[key] = name
            self.tensors[name] = tensor.detach().cpu().contiguous().clone()
        return self.names[key]


def _buffers(module: GraphModule) -> dict[str, tuple[Tensor, bool]]:
    """Buffers with whether the state dict holds them, and the plain tensors that the graph reads."""
    found: dict[str, tuple[Tensor, bool]] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for name, buffer in owner.named_buffers(recurse=False, remove_duplicate=False):
            found[f"{prefix}.{name}" if prefix else name] = (buffer, name not in owner._non_persistent_buffers_set)
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for node in module.graph.find_nodes(op="get_attr"):
        if node.target not in found and node.target not in parameters:
            value = operator.attrgetter(node.target)(module)
            if not isinstance(value, Tensor):
                raise InputError(
                    f"node {node.name} reads {node.target}, a {type(value).__name__}; only tensors can be saved"
                )
            found[node.target] = (value, False)
    return found


def _node_document(node: Node) -> dict[str, Any]:
    try:
        return {
            "op": node.op,
            "name": node.name,
            "target": _target_name(node.target) if node.op == "call_function" else str(node.target),
            "args": [_encode(each) for each in node.args],
            "kwargs": {key: _encode(each) for key, each in node.kwargs.items()},
        }
    except InputError as error:
        raise InputError(f"node {node.name}: {error}") from error


def _target_name(target: Any) -> str:
    if isinstance(target, OpOverload):
        if reason := operator_refusal(target):
            raise InputError(f"the operator {target} cannot be saved: {reason}")
        return f"{target._schema.name}.{target._schema.overload_name or 'default'}"
    if target not in NAMES:
        raise InputError(f"a call of {getattr(target, '__name__', target)} cannot be saved: it is not an ATen operator")
    return NAMES[target]


def _module_documents(module: GraphModule) -> dict[str, Any]:
    """Every module in its order, which is that of the parameters too: what the graph calls, and what holds that."""
    called = {str(node.target) for node in module.graph.find_nodes(op="call_module")}
    documents = {}
    for name, each in module.named_modules(remove_duplicate=False):
        if name in called:
            documents[name] = _leaf_document(name, each)
        elif not any(name.startswith(f"{leaf}.") for leaf in called):
            documents[name] = {"class": None, "options": {}, "training": each.training}
    return documents


def _leaf_document(name: str, leaf: nn.Module) -> dict[str, Any]:
    class_name = type(leaf).__name__
    if MODULES.get(class_name) is not type(leaf):
        raise InputError(f"module {name}: a {class_name} cannot be saved; {', '.join(MODULES)} can")
    options = {}
    for option, default in _options(type(leaf)).items():
        # BatchNorm's option `bias` says whether it has the parameter of that name
        value = leaf._parameters[option] is not None if option in leaf._parameters else getattr(leaf, option)
        if value != default:
            options[option] = _encode(value)
    return {"class": class_name, "options": options, "training": leaf.training}


def _options(leaf: type[nn.Module]) -> Mapping[str, Any]:
    """The constructor's parameters, which the module keeps as attributes, with their defaults."""
    parameters = inspect.signature(leaf).parameters.values()
    return {each.name: each.default for each in parameters if each.name not in ("device", "dtype")}


def _selection_document(name: str, selection: Selection, store: _Store) -> dict[str, Any]:
    def add(part: Tensor | None, label: object) -> str | None:
        return None if part is None else store.add(f"kept/{name}/{label}", part)

    axes = [add(kept, axis) for axis, kept in enumerate(selection.axes)]
    return {"shape": list(selection.shape), "axes": axes, "flat": add(selection.flat, "flat")}


def _codegen_document(codegen: CodeGen) -> dict[str, Any] | None:
    if type(codegen) is CodeGen:
        return None
    out_spec = codegen.pytree_info.out_spec if type(codegen) is _PyTreeCodeGen else None
    if type(codegen) is not _PyTreeCodeGen or out_spec is None:
        raise InputError(f"a graph with a {type(codegen).__name__} cannot be saved")
    return {
        "arguments": list(codegen.pytree_info.orig_args),
        "inputs": _tree_document(codegen.pytree_info.in_spec, "the inputs"),
        "outputs": _tree_document(out_spec, "the outputs"),
    }


def _tree_document(spec: pytree.TreeSpec, what: str) -> Any:
    """The nesting of `what` as JSON: "*" is a leaf."""

    def walk(tree: Any) -> Any:
        if tree is leaf:
            return "*"
        if type(tree) in (tuple, list):
            return {type(tree).__name__: [walk(item) for item in tree]}
        if type(tree) in (dict, OrderedDict) and all(type(key) in (str, int) for key in tree):
            return {type(tree).__name__: [[key, walk(item)] for key, item in tree.items()]}
        raise InputError(
            f"{what} hold a {type(tree).__name__}; a saved network takes and gives tensors in tuples, lists and dicts"
            " with strings or integers as keys"
        )

    leaf = object()
    return walk(pytree.tree_unflatten([leaf] * spec.num_leaves, spec))


def _encode(value: Any) -> Any:
    """An argument of a node as JSON; what JSON lacks is an object with one key that names the kind."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, (list, torch.Size)):
        return [_encode(item) for item in value]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {"tuple": [_encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[_encode(key), _encode(item)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [_encode(value.start), _encode(value.stop), _encode(value.step)]}
    if isinstance(value, complex) and math.isfinite(value.real) and math.isfinite(value.imag):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, (wanted, words) in WORDS.items():
        if isinstance(value, wanted) and str(value)[6:] in words:
            return {kind: str(value)[6:]}
    raise InputError(f"{_short(value)}, of type {type(value).__name__}, cannot be saved")


# ------------------------------------------------------------------------------------------------- from a document


def decode(
    document: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device
) -> tuple[GraphModule, dict[str, Selection]]:
    """The network of a document. Raises LoadError, naming the part, where anything is not as `encode` writes it."""
    found = _fields(document, {"codegen", "nodes", "modules", "parameters", "buffers", "kept"}, "the document")
    module = _Builder(tensors, device).network(found)
    held = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    kept = {}
    for name, facts in _expect(found["kept"], dict, '"kept"').items():
        with _naming(f"kept {_short(name)}"):
            if name not in held:
                raise LoadError("there is no such parameter or buffer")
            kept[name] = _selection(facts, tensors, tuple(held[name].shape))
    used = {facts["tensor"] for kind in ("parameters", "buffers") for facts in found[kind].values()}
    used |= {name for facts in found["kept"].values() for name in (*facts["axes"], facts["flat"]) if name is not None}
    if unused := sorted({*tensors} - used):
        raise LoadError(f"the tensor {_short(unused[0])} is stored and belongs to nothing")
    return module, kept


class _Builder:
    """Puts a GraphModule together: first the modules that it calls, then its tensors, then its graph."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self.tensors = tensors
        self.device = device
        self.module = GraphModule(nn.Module(), Graph())
        self.modules: dict[str, nn.Module] = {"": self.module}
        self.leaves: dict[str, nn.Module] = {}
        self.attributes: set[str] = set()
        self.shared: dict[tuple[str, bool, bool], Tensor] = {}
        self.nodes: dict[str, Node] = {}

    def network(self, found: Mapping[str, Any]) -> GraphModule:
        for name, facts in _expect(found["modules"], dict, '"modules"').items():
            with _naming(f"module {_short(name)}"):
                self.add_module(name, facts)
        for name, facts in _expect(found["parameters"], dict, '"parameters"').items():
            with _naming(f"parameter {_short(name)}"):
                _fields(facts, {"tensor", "requires_grad"}, "it")
                gradient = _expect(facts["requires_grad"], bool, "requires_grad")
                self.add_tensor(name, self.tensor(facts["tensor"], True, gradient))
        for name, facts in _expect(found["buffers"], dict, '"buffers"').items():
            with _naming(f"buffer {_short(name)}"):
                _fields(facts, {"tensor", "persistent"}, "it")
                persistent = _expect(facts["persistent"], bool, "persistent")
                self.add_tensor(name, self.tensor(facts["tensor"], False, False), persistent=persistent)
        self.check_leaves()
        graph = self.graph(found)
        try:
            self.module.graph = graph  # generates and compiles its code
        except (SyntaxError, ValueError, RecursionError) as error:
            raise LoadError(f"torch.fx makes no code of the graph: {error}") from error
        return self.module

    def add_module(self, name: str, facts: Any) -> None:
        _fields(facts, {"class", "options", "training"}, "it")
        module = nn.Module() if facts["class"] is None else self.leaf(facts)
        if name == "" and facts["class"] is None:
            module = self.module
        else:
            owner, field = self.owner(name)
            if owner in self.leaves.values():
                raise LoadError(f"it lies within a {type(owner).__name__}")
            self.register(owner, field, module)
            self.modules[name] = module
        if facts["class"] is not None:
            self.leaves[name] = module
        module.train(_expect(facts["training"], bool, "training"))

    def leaf(self, facts: Mapping[str, Any]) -> nn.Module:
        leaf_class = MODULES.get(_expect(facts["class"], str, "class"))
        if leaf_class is None:
            raise LoadError(f"the class {_short(facts['class'])} is not one that a saved network may call")
        options = {name: self.value(value) for name, value in _expect(facts["options"], dict, "options").items()}
        if unknown := sorted(options.keys() - _options(leaf_class).keys()):
            raise LoadError(f"a {leaf_class.__name__} has no option {_short(unknown[0])}")
        try:
            with torch.device("meta"):  # no memory, whatever the sizes
                return leaf_class(**options)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise LoadError(f"{leaf_class.__name__} refuses its options: {error}") from error

    def owner(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds the attribute of a dotted name, and the attribute's own name."""
        if not _is_target(name):
            raise LoadError("its name is not a dotted name")
        path, _, field = name.rpartition(".")
        if path not in self.modules:
            raise LoadError(f"there is no module {path!r} before it")
        return self.modules[path], field

    def register(self, owner: nn.Module, field: str, value: nn.Module | Tensor, *, persistent: bool = True) -> None:
        """Set an attribute that does not exist; one that every module has, such as `forward`, cannot be replaced."""
        if hasattr(owner, field):
            raise LoadError(f"the name {field!r} is taken")
        if isinstance(value, nn.Module):
            owner.add_module(field, value)
        elif isinstance(value, nn.Parameter):
            owner.register_parameter(field, value)
        else:
            owner.register_buffer(field, value, persistent=persistent)

    def tensor(self, name: object, is_parameter: bool, gradient: bool) -> Tensor:
        """The stored tensor, the same object for every name of one memory."""
        if not isinstance(name, str) or name not in self.tensors:
            raise LoadError(f"the tensor {_short(name)} is not stored")
        key = (name, is_parameter, gradient)
        if key not in self.shared:
            content = self.tensors[name].to(self.device)
            if gradient and not (content.is_floating_point() or content.is_complex()):
                raise LoadError(f"a tensor of {content.dtype} has no gradient")
            self.shared[key] = nn.Parameter(content, requires_grad=gradient) if is_parameter else content
        return self.shared[key]

    def add_tensor(self, name: str, tensor: Tensor, *, persistent: bool = True) -> None:
        self.attributes.add(name)
        owner, field = self.owner(name)
        if owner not in self.leaves.values():
            self.register(owner, field, tensor, persistent=persistent)
            return
        is_parameter = isinstance(tensor, nn.Parameter)
        slot = (owner._parameters if is_parameter else owner._buffers).get(field)
        if slot is None:
            raise LoadError(f"a {type(owner).__name__} has no such {'parameter' if is_parameter else 'buffer'}")
        if slot.shape != tensor.shape or slot.is_floating_point() != tensor.is_floating_point():
            raise LoadError(
                f"is of {tensor.dtype} and shape {(*tensor.shape,)}; {slot.dtype} and {(*slot.shape,)} are wanted"
            )
        setattr(owner, field, tensor)

    def check_leaves(self) -> None:
        for name, leaf in self.leaves.items():
            for field, tensor in (*leaf.named_parameters(), *leaf.named_buffers()):
                if tensor.is_meta:
                    raise LoadError(f"module {name!r}: its tensor {field!r} is not stored")

    def graph(self, found: Mapping[str, Any]) -> Graph:
        graph = Graph()
        for facts in _expect(found["nodes"], list, '"nodes"'):
            _fields(facts, {"op", "name", "target", "args", "kwargs"}, "a node")
            with _naming(f"node {_short(facts['name'])}"):
                if not _is_name(facts["name"]):
                    raise LoadError("its name is not an identifier")
                self.add_node(graph, facts)
        operations = [node.op for node in graph.nodes]
        if operations.count("output") != 1 or operations[-1] != "output":
            raise LoadError("the graph has not one output as its last node")
        if found["codegen"] is not None:
            graph.set_codegen(_codegen(found["codegen"], graph))
        return graph

    def add_node(self, graph: Graph, facts: Mapping[str, Any]) -> None:
        args = tuple(self.value(value) for value in _expect(facts["args"], list, "args"))
        kwargs = {key: self.value(value) for key, value in _expect(facts["kwargs"], dict, "kwargs").items()}
        if not all(_is_name(key) for key in kwargs):
            raise LoadError("the name of an argument is not an identifier")
        target = self.node_target(facts["op"], facts["target"], args, kwargs)
        name = facts["name"]
        node = graph.create_node(facts["op"], target, args, kwargs, name=name)
        if node.name != name:
            raise LoadError("its name is taken")
        self.nodes[name] = node

    def node_target(self, op: object, target: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if op == "call_function":
            return _function(_expect(target, str, "target"), args, kwargs)
        if op == "call_module":
            return (
                target if _is_target(target) and target in self.leaves else _no(f"there is no module {_short(target)}")
            )
        if op not in ("placeholder", "get_attr", "output"):
            raise LoadError(f"the kind {_short(op)} is unknown")
        if kwargs or len(args) != (op == "output"):
            raise LoadError(f"a node of the kind {op} has other arguments")
        if op == "get_attr":
            return (
                target
                if _is_target(target) and target in self.attributes
                else _no(f"there is no tensor {_short(target)}")
            )
        if op == "output":
            return target if target == "output" else _no("the target of the output is not 'output'")
        return target if _is_name(target) else _no(f"the input {_short(target)} is not an identifier")

    def value(self, value: Any, depth: int = 0) -> Any:
        """An argument out of JSON."""
        if depth > MAX_DEPTH:
            raise LoadError(f"an argument is nested more than {MAX_DEPTH} deep")
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, list):
            return [self.value(item, depth + 1) for item in value]
        if not isinstance(value, dict) or len(value) != 1:
            raise LoadError(f"{_short(value)} is not an argument")
        ((kind, content),) = value.items()
        if kind in ("node", "float", "device", *WORDS):
            return self.word(kind, _expect(content, str, kind))
        if kind not in ("tuple", "slice", "dict", "complex"):
            raise LoadError(f"{_short(value)} is not an argument")
        items = _expect(content, list, kind)
        if kind == "complex" and len(items) == 2 and all(type(part) is float for part in items):
            return complex(*items)
        parts = [self.value(item, depth + 1) for item in items]
        if kind == "tuple":
            return tuple(parts)
        if kind == "slice" and len(parts) == 3 and not any(isinstance(part, (list, tuple, dict)) for part in parts):
            return slice(*parts)
        if kind == "dict" and all(isinstance(pair, list) and len(pair) == 2 for pair in items):
            if all(isinstance(key, str) for key, _ in items):
                return {key: part[1] for (key, _), part in zip(items, parts, strict=True)}
        raise LoadError(f"{_short(value)} is not an argument")

    def word(self, kind: str, word: str) -> Any:
        if kind == "node":
            return self.nodes[word] if word in self.nodes else _no(f"it reads {_short(word)}, which is no earlier node")
        if kind == "float":
            return float(word) if word in ("inf", "-inf", "nan") else _no(f"{_short(word)} is not a number")
        if kind == "device":
            return self.device
        words = WORDS[kind][1]
        return words[word] if word in words else _no(f"{_short(word)} is not a {kind}")


def _no(message: str) -> NoReturn:
    raise LoadError(message)


def _function(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[..., Any]:
    """The operator of a name; the arguments are only checked against its schema by number and name."""
    if name in FUNCTIONS:
        try:
            inspect.signature(FUNCTIONS[name]).bind(*args, **kwargs)
        except TypeError as error:
            raise LoadError(f"{name}: {error}") from error
        return FUNCTIONS[name]
    namespace, _, rest = name.partition("::")
    packet_name, _, overload = rest.partition(".")
    if namespace != "aten" or not (IDENTIFIER.fullmatch(packet_name) and IDENTIFIER.fullmatch(overload)):
        raise LoadError(f"the operator {_short(name)} is not an ATen operator")
    packet = getattr(torch.ops.aten, packet_name, None)
    if not isinstance(packet, OpOverloadPacket) or overload not in packet.overloads():
        raise LoadError(f"this torch ({torch.__version__}) has no operator {_short(name)}")
    target = getattr(packet, overload)
    assert isinstance(target, OpOverload)
    if reason := operator_refusal(target):
        raise LoadError(f"the operator {name} is refused: {reason}")
    arguments = target._schema.arguments
    if len(args) > len(arguments) or not {*kwargs} <= {each.name for each in arguments}:
        raise LoadError(f"the operator {name} does not take these arguments")
    return target


def _codegen(document: Any, graph: Graph) -> _PyTreeCodeGen:
    """The nesting of inputs and outputs; its names go into generated code, so they are identifiers."""
    facts = _fields(document, {"arguments", "inputs", "outputs"}, '"codegen"')
    arguments = _expect(facts["arguments"], list, "arguments")
    if not all(_is_name(name) for name in arguments) or len({*arguments}) != len(arguments):
        raise LoadError("the arguments' names are not different identifiers")
    inputs, outputs = _tree(facts["inputs"]), _tree(facts["outputs"])
    is_call = type(inputs) is tuple and len(inputs) == 2 and type(inputs[0]) is tuple and type(inputs[1]) is dict
    if not is_call or not all(_is_name(name) for name in inputs[1]):
        raise LoadError("the inputs are not positional and named arguments")
    if len(arguments) != len(inputs[0]) + len(inputs[1]):
        raise LoadError(f"{len(arguments)} names for {len(inputs[0]) + len(inputs[1])} arguments")
    in_spec, out_spec = pytree.tree_structure(inputs), pytree.tree_structure(outputs)
    if in_spec.num_leaves != len(graph.find_nodes(op="placeholder")):
        raise LoadError(f"{in_spec.num_leaves} inputs for {len(graph.find_nodes(op='placeholder'))} placeholders")
    (returned,) = graph.output_node().args
    if not isinstance(returned, (tuple, list)) or len(returned) != out_spec.num_leaves:
        raise LoadError(f"the output is not {out_spec.num_leaves} values")
    return _PyTreeCodeGen(_PyTreeInfo(arguments, in_spec, out_spec))


def _tree(document: Any, depth: int = 0) -> Any:
    """Containers nested as the document says, with 0 for the leaves."""
    if document == "*":
        return 0
    if depth > MAX_DEPTH or not isinstance(document, dict) or len(document) != 1:
        raise LoadError(f"{_short(document)} is not a nesting of inputs or outputs")
    ((kind, content),) = document.items()
    items = _expect(content, list, kind)
    if kind in ("tuple", "list"):
        children = [_tree(item, depth + 1) for item in items]
        return tuple(children) if kind == "tuple" else children
    pairs = all(isinstance(pair, list) and len(pair) == 2 and type(pair[0]) in (str, int) for pair in items)
    if kind not in ("dict", "OrderedDict") or not pairs:
        raise LoadError(f"{_short(document)} is not a nesting of inputs or outputs")
    found = {key: _tree(item, depth + 1) for key, item in items}
    return found if kind == "dict" else OrderedDict(found)


def _selection(document: Any, tensors: Mapping[str, Tensor], new_shape: tuple[int, ...]) -> Selection:
    """What is kept of a parameter; every index is checked, and that the result is of `new_shape`."""
    facts = _fields(document, {"shape", "axes", "flat"}, "it")
    shape = tuple(_expect(size, int, "a size") for size in _expect(facts["shape"], list, "shape"))
    names = _expect(facts["axes"], list, "axes")
    if len(names) != len(shape) or min(shape, default=0) < 0:
        raise LoadError("its shape and axes do not fit together")

    def index(name: object, end: int) -> Tensor | None:
        if name is None:
            return None
        if not isinstance(name, str) or name not in tensors:
            raise LoadError(f"the tensor {_short(name)} is not stored")
        found = tensors[name]
        if found.dtype != torch.int64 or (found.numel() and not 0 <= int(found.min()) <= int(found.max()) < end):
            raise LoadError(f"{name} are not indices below {end}")
        return found

    axes = tuple(index(name, size) for name, size in zip(names, shape, strict=True))
    selection = Selection(shape, axes, index(facts["flat"], math.prod(shape)))
    if any(kept is not None and kept.dim() != 1 for kept in axes) or selection.new_shape != new_shape:
        raise LoadError(f"it does not give the shape that is there, {new_shape}")
    return selection
