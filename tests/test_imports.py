"""Imports run one way: `passes` never sees `l1rr_fx`; and `import l1rr_fx` loads no heavy library but torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import l1rr_fx
import passes

PASSES = Path(next(iter(passes.__path__)))
PRODUCT = Path(next(iter(l1rr_fx.__path__)))
HEAVY = (
    "torchvision",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "ultralytics",
    "timm",
    "tensorrt",
    "matplotlib",
    "PIL",
    "cv2",
)
AGPL = "ultralytics"
OURS = ("l1rr_fx", "passes")


def imported(path: Path) -> set[str]:
    """The top-level names of everything that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return {name.split(".")[0] for name in found}


def files(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def test_every_form_of_import_is_seen(tmp_path: Path) -> None:
    source = "def f():\n    import a.b\n    from c.d import e\n    importlib.import_module('g.h')\n    __import__('i')"
    (tmp_path / "x.py").write_text(source)
    assert imported(tmp_path / "x.py") == {"a", "c", "g", "i"}


@pytest.mark.parametrize("path", files(PASSES), ids=lambda path: str(path.relative_to(PASSES.parent)))
def test_the_compiler_imports_torch_networkx_and_lazy_loader_alone(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "torch", "networkx", "lazy_loader", "passes"}
    assert imported(path) <= allowed


@pytest.mark.parametrize("path", files(PRODUCT), ids=lambda path: str(path.relative_to(PRODUCT.parent)))
def test_the_product_never_imports_ultralytics(path: Path) -> None:
    assert AGPL not in imported(path)


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def modules(package: Path) -> list[str]:
    names = (path.relative_to(package.parent).with_suffix("").parts for path in files(package))
    return [".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in names]


@pytest.mark.parametrize("package", [PASSES, PRODUCT], ids=lambda path: path.name)
def test_no_module_is_hidden_by_a_name_that_its_package_exports(package: Path) -> None:
    """`import passes.capture as c` must be the module: a function of that name in `passes` would take its place."""
    names = [name for name in modules(package) if not name.endswith("__main__")]  # which runs the command
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"for name in {names!r}:\n"
        "    parent, _, child = name.rpartition('.')\n"
        "    if parent and getattr(sys.modules[parent], child) is not sys.modules[name]: print(name)"
    )
    assert python(code) == ""


def test_the_compiler_works_where_the_product_is_not() -> None:
    python(
        "import importlib, sys\n"
        "sys.modules['l1rr_fx'] = None\n"
        f"for name in {modules(PASSES)!r}: importlib.import_module(name)\n"
    )


def test_importing_the_product_loads_nothing_heavy() -> None:
    code = f"import sys, l1rr_fx, l1rr_fx.cli; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert python(code) == "[]"


SHADOWS = {"a package": "passes/__init__.py", "a folder": "passes/mine.py", "a module": "passes.py"}


@pytest.mark.parametrize("kind", SHADOWS)
def test_another_package_of_the_name_is_named(kind: str, tmp_path: Path) -> None:
    file = tmp_path / SHADOWS[kind]
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise RuntimeError('of the user')")
    code = f"import sys; sys.path = ['', {str(PRODUCT.parent)!r}, *sys.path]; import l1rr_fx"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    if kind == "a folder":  # without __init__.py it hides nothing
        assert result.returncode == 0, result.stderr
    else:
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("ImportError: l1rr_fx needs its own package `passes`, which ") and "rename" in last


def test_the_version_and_help_need_no_torch() -> None:
    code = (
        "import sys, l1rr_fx.cli as cli; print('torch' in sys.modules);"
        "sys.argv = ['l1rr-fx', sys.argv[1]]; sys.exit = lambda code: print(code, 'torch' in sys.modules); cli.main()"
    )
    for flag in ("--version", "--help"):
        found = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, check=True).stdout
        assert found.startswith("False\n") and found.endswith("0 False\n"), found


def test_importing_the_product_loads_few_packages() -> None:
    """Beyond torch and what torch loads late. How long it takes is shown by `benchmarks/import_time.py`."""
    code = (
        "import sys, torch, torch.export, torch.fx; before = set(sys.modules); import l1rr_fx;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    assert set(python(code).split()) <= {"torch", "sympy", "mpmath", "rich", "safetensors", "lazy_loader", *OURS}


def test_public_names() -> None:
    for name in l1rr_fx.__all__:
        assert getattr(l1rr_fx, name) is not None
    errors = [name for name in l1rr_fx.__all__ if name.endswith("Error")]
    assert all(issubclass(getattr(l1rr_fx, name), l1rr_fx.L1RRError) for name in errors)
