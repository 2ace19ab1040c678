"""Do the tests notice if a line of the rules is wrong? Lines are flipped one at a time, and a fast set of tests is run.

    python -m benchmarks.mutate [--sample 200] [--seed 0] [--only convolution]

A mutant is one flip in a file of `passes/rules`: a comparison, `and` / `or`, `not`, an arithmetic or bit operator,
`any` / `all`, True / False, a number. It is noticed if a row of tests/op_cases.py (one setting each, in turn) or one of
the random networks of l1rr_fx.testing is then pruned to something else, misses the limit that the row is held to,
raises, or takes too long. Rows are captured once; each mutant is tried in a forked process, and rows that noticed
others come first.
Survivors are printed: a test is missing, or the line is a shortcut that changes nothing.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

RULES = Path(__file__).resolve().parent.parent / "passes" / "rules"
OURS = ("passes", "l1rr_fx", "tests")
NETWORKS = 60
TIME_LIMIT = 60  # seconds of CPU for one mutant, so that a busy machine notices nothing by itself
TOLERANCE, LIMIT = 1e-10, 1.01

COMPARISONS = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
METHODS = {"any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One flip: the file, the line, what the line becomes, and the module's whole source with it."""

    file: str
    line: int
    before: str
    after: str
    source: str


@dataclass(frozen=True)
class Trial:
    """One network to prune: captured, with an input and what the zeroed model makes of it."""

    name: str
    captured: Any
    args: Any
    expected: Any
    setting: int
    at_limit: bool


class _Flip(ast.NodeTransformer):
    """Flips the place of this number, counted in the order of the tree, and remembers where it was."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.count = 0
        self.line = 0

    def _is_turn(self, node: Any) -> bool:
        self.count += 1
        if self.count - 1 != self.wanted:
            return False
        self.line = node.lineno
        return True

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, (ast.Assert, ast.arguments, ast.AnnAssign, ast.Raise)) or _is_type_checking(node):
            return node
        if isinstance(node, ast.FunctionDef):
            node.body = [self.visit(part) for part in node.body]
            return node
        return self._flipped(self.generic_visit(node))

    def _flipped(self, node: Any) -> Any:
        match node:
            case ast.Compare() if type(node.ops[0]) in COMPARISONS and self._is_turn(node):
                node.ops[0] = COMPARISONS[type(node.ops[0])]()
            case ast.BoolOp() if self._is_turn(node):
                node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            case ast.BinOp() if type(node.op) in OPERATORS and self._is_turn(node):
                node.op = OPERATORS[type(node.op)]()
            case ast.AugAssign() if type(node.op) in OPERATORS and self._is_turn(node):
                node.op = OPERATORS[type(node.op)]()
            case ast.UnaryOp() if isinstance(node.op, (ast.Not, ast.Invert)) and self._is_turn(node):
                return node.operand
            case ast.Attribute() if node.attr in METHODS and self._is_turn(node):
                node.attr = METHODS[node.attr]
            case ast.Constant() if isinstance(node.value, bool) and self._is_turn(node):
                node.value = not node.value
            case ast.Constant() if type(node.value) is int and self._is_turn(node):
                node.value += 1
        return node


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def mutants(file: Path) -> Iterator[Mutant]:
    """Every flip of a file."""
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    plain = ast.unparse(tree).splitlines()
    number = 0
    while True:
        flip = _Flip(number)
        changed = ast.unparse(ast.fix_missing_locations(flip.visit(copy.deepcopy(tree))))
        if number >= flip.count:
            return
        number += 1
        lines = [(a, b) for a, b in zip(plain, changed.splitlines()) if a != b]
        if lines:
            yield Mutant(file.name, flip.line, lines[0][0].strip(), lines[0][1].strip(), changed)


# --- the fast set, captured once


def trials() -> list[Trial]:
    """Every row of the table in one setting, and random networks."""
    from l1rr_fx.testing import fresh, has_constant_output, zeroed
    from passes.capture import capture
    from tests.op_cases import CASES
    from tests.test_op_cases import SETTINGS, _open_batch

    found = []
    for number, case in enumerate(CASES):
        index = number % len(SETTINGS)
        setting = SETTINGS[index]
        model, args = case.build()
        model = zeroed(model, setting.ratio, setting.seed, columns=setting.columns)
        if model.training or has_constant_output(model, args):
            continue
        shapes = _open_batch(args) if setting.open_batch and case.dynamic else None
        given = fresh(args, 1)
        captured = capture(model, args, dynamic_shapes=shapes)
        found.append(Trial(case.name, captured, given, _run(model, given), index, case.at_limit))
    for number, network in enumerate(_networks()):
        model, args = network.build()
        if not has_constant_output(model, args):
            given = fresh(args, 1)
            found.append(Trial(f"network {number}", capture(model, args), given, _run(model, given), 0, False))
    return found


def _networks() -> list[Any]:
    from hypothesis import HealthCheck, Phase, given, settings

    from l1rr_fx.testing import FAMILIES, networks

    found: list[Any] = []
    for family in FAMILIES:

        @settings(
            max_examples=NETWORKS // len(FAMILIES),
            database=None,
            derandomize=True,
            deadline=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(networks((family,)))
        def draw(network: Any) -> None:
            found.append(network)

        draw()
    return found


def _run(model: Any, args: Any) -> Any:
    with torch.no_grad():
        return copy.deepcopy(model)(*copy.deepcopy(args))


def notices(trial: Trial) -> bool:
    """Whether a network of the fast set is now pruned wrongly, above its limit, or not at all."""
    from l1rr_fx.testing.judging import differences
    from passes.bill import bill
    from passes.compile import remove_zero_channels
    from passes.options import Options
    from passes.target import ByteCount
    from tests.test_op_cases import SETTINGS

    setting = SETTINGS[trial.setting]
    try:
        removed = remove_zero_channels(trial.captured, Options(setting.mode, setting.multiple, setting.target))
        accounts = bill(removed.plan, removed.rewritten, {})
        if not max(differences(_run(removed.module, trial.args), trial.expected), default=0.0) <= TOLERANCE:
            return True
    except Exception:  # a mutant may raise anything
        return True
    held = trial.at_limit and setting.mode == "recombine" and not setting.multiple and setting.target == ByteCount()
    over = accounts.after.macs > LIMIT * accounts.limit.macs
    return bool(accounts.after.macs > accounts.before.macs or (held and over))


# --- one mutant in a process of its own


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from other source."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=name == "passes.rules")

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "passes.rules":
            module.__path__ = [str(RULES)]
        exec(compile(self.source, self.name, "exec"), vars(module))


def tried(mutant: Mutant, everything: Sequence[Trial], order: Sequence[int]) -> str | None:
    """The name of the network that noticed the mutant, "time" if it took too long, None if nobody did."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _child(mutant, everything, order, write)
    os.close(write)
    answer = os.read(read, 16).decode()
    os.close(read)
    os.waitpid(child, 0)
    if answer in ("", "import"):
        return answer or "time"  # its time was over, or it could not even be imported
    return None if answer == "none" else everything[int(answer)].name


def _child(mutant: Mutant, everything: Sequence[Trial], order: Sequence[int], write: int) -> None:
    """Import everything of ours anew, with the mutant in it, and try the networks until one notices."""
    answer = "none"
    resource.setrlimit(resource.RLIMIT_CPU, (TIME_LIMIT, TIME_LIMIT))
    try:
        for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
            del sys.modules[name]
        module = "passes.rules" if mutant.file == "__init__.py" else f"passes.rules.{mutant.file.removesuffix('.py')}"
        sys.meta_path.insert(0, _Mutated(module, mutant.source))
        try:
            importlib.import_module("tests.test_op_cases")
        except Exception:  # a mutant may raise anything
            answer = "import"
        else:
            answer = next((str(index) for index in order if notices(everything[index])), "none")
    finally:
        os.write(write, answer.encode())
        os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sample", type=int, default=200, help="how many mutants, chosen at random (0: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only files whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = [m for file in sorted(RULES.glob("*.py")) if options.only in file.name for m in mutants(file)]
    chosen = random.Random(options.seed).sample(found, min(options.sample or len(found), len(found)))
    everything = trials()
    print(f"{len(chosen)} of {len(found)} mutants, {len(everything)} networks", flush=True)
    if wrong := tried(_nothing(), everything, range(len(everything))):
        sys.exit(f"without any mutant {wrong} fails already")
    kills: dict[str, Counter[int]] = {m.file: Counter() for m in found}
    noticed: Counter[str] = Counter()
    start = time.perf_counter()
    for mutant in sorted(chosen, key=lambda m: (m.file, m.line)):
        first = [index for index, _ in kills[mutant.file].most_common()]
        order = [*first, *(i for i in range(len(everything)) if i not in kills[mutant.file])]
        killer = tried(mutant, everything, order)
        noticed[mutant.file] += killer is not None
        if killer is None:
            print(f"survived: {mutant.file}:{mutant.line}: {mutant.before}  ->  {mutant.after}", flush=True)
        else:
            kills[mutant.file].update(i for i, trial in enumerate(everything) if trial.name == killer)
    total = Counter(mutant.file for mutant in chosen)
    for file, count in total.items():
        print(f"{file:16} {noticed[file]:4} of {count:4}  {noticed[file] / count:.0%}")
    share = sum(noticed.values()) / max(1, len(chosen))
    print(f"noticed: {sum(noticed.values())} of {len(chosen)}, {share:.1%}, in {time.perf_counter() - start:.0f} s")


def _nothing() -> Mutant:
    """A mutant that changes nothing."""
    file = RULES / "movement.py"
    return Mutant(file.name, 0, "", "", file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
