"""Is a rule right about its operator? Asked by perturbation, without a second description of what the operator does.

A call is put between masks: `x * mask -> operator -> * mask`, so that any elements of its inputs can be zero and any of
its results unread. What the rule calls zero must be zero, what it calls unneeded must not change what is live, and the
small network that the compiler makes of it must compute the same.
"""

from __future__ import annotations

import operator as python_operator
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from l1rr_fx.testing.claims import TOLERANCE, changed_where, false_unneeded, false_zero, node_values
from passes.emit import rewrite
from passes.errors import InputError
from passes.facts import channel_facts
from passes.plan import plan_layouts
from passes.program import Program
from passes.rules import rule_for
from passes.rules.base import Rule
from passes.verify import relative_deviation

aten = torch.ops.aten


@dataclass(frozen=True)
class Call:
    """One call of an operator. Floating-point tensors among its arguments are inputs; a `torch.nn.Parameter` or
    `torch.nn.Buffer`, and a tensor of integers, is a constant of the network, which the rule may read and slice."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        named = [f"{name}={_short(value)}" for name, value in self.kwargs.items()]
        return f"({', '.join([*map(_short, self.args), *named])})"


def assert_rule_is_sound(
    operator: OpOverload | OpOverloadPacket | CustomOpDef,
    samples: Iterable[Call | tuple[Any, ...]],
    *,
    rule: Rule | None = None,
    rounds: int = 4,
    seed: int = 0,
) -> None:
    """Raise AssertionError, saying which claim is wrong, if the rule of `operator` is wrong about one of these calls.

    `samples` are calls, or tuples of positional arguments. In each of `rounds` other elements of the inputs are zero,
    other entries of the parameters, and other elements of the results unread. `rule` is tried in place of the one that
    the operator has. InputError if it has none.
    """
    target = _overload(operator)
    for number, sample in enumerate(samples):
        call = sample if isinstance(sample, Call) else Call(tuple(sample))
        for turn in range(rounds):
            trial = _Trial(target, call, random.Random(f"{seed}.{number}.{turn}"))
            if problem := trial.problem(rule):
                raise AssertionError(
                    f"the rule of {target} is not sound for {call}, masked by {trial.masks}: {problem}"
                )


def _overload(operator: OpOverload | OpOverloadPacket | CustomOpDef) -> OpOverload:
    if isinstance(operator, CustomOpDef):
        return operator._opoverload
    if isinstance(operator, OpOverloadPacket):
        if len(operator.overloads()) > 1:
            raise InputError(
                f"{operator} has several overloads: name one, such as {operator}.{operator.overloads()[0]}"
            )
        found = getattr(operator, operator.overloads()[0])
        assert isinstance(found, OpOverload)
        return found
    return operator


class _Trial:
    """One call between masks, as a graph of its own."""

    def __init__(self, target: OpOverload, call: Call, chance: random.Random) -> None:
        self.target = target
        self.chance = chance
        self.generator = torch.Generator().manual_seed(chance.getrandbits(32))
        self.root = nn.Module()
        self.graph = Graph()
        self.inputs: list[Tensor] = []
        self.masks: list[str] = []
        leaves, tree = pytree.tree_flatten((call.args, dict(call.kwargs)))
        args, kwargs = pytree.tree_unflatten([self._leaf(leaf) for leaf in leaves], tree)
        self.call = self._node(target, args, kwargs)
        self.graph.output(tuple(self._unread(out) for out in self._results()))
        self.module = GraphModule(self.root, self.graph)

    def problem(self, rule: Rule | None) -> str | None:
        """What is wrong, or None."""
        program = Program(self.module, lambda node: rule if rule and node is self.call else rule_for(node))
        site = program.at_call(self.call)
        if site is None or site.rule.reason == "unknown operator":
            raise InputError(f"{self.target} has no rule; passes.rules.register_rule gives it one")
        facts = channel_facts(program)
        name = f"{type(site.rule).__module__}.{type(site.rule).__name__}"
        for turn in range(2):
            inputs = [changed_where(value, torch.tensor(True), turn) if turn else value for value in self.inputs]
            values = node_values(self.module, inputs)
            problem = false_zero(site, facts, values) or false_unneeded(site, facts, values, turn)
            if problem:
                return f"{name}: {problem}"
        expected = self.module(*_copies(self.inputs))
        small = rewrite(plan_layouts(program, facts)).module
        deviation = relative_deviation(expected, small(*_copies(self.inputs)))
        return f"{name}: the small network deviates by {deviation:.3g}" if not deviation <= TOLERANCE else None

    def _leaf(self, leaf: Any) -> Any:
        """What stands for an argument in the graph."""
        if not isinstance(leaf, Tensor):
            return leaf
        if isinstance(leaf, (nn.Parameter, nn.Buffer)) or not leaf.is_floating_point():
            return self._constant(leaf, sliced=True)
        value = leaf.detach().double()
        node = self.graph.placeholder(f"x{len(self.inputs)}")
        node.meta["val"] = value
        self.inputs.append(value)
        return self._masked(node)

    def _constant(self, value: Tensor, *, sliced: bool = False) -> Node:
        """A parameter or buffer of the network; of a parameter some slices are zeroed."""
        name = f"p{len(list(self.root.named_parameters())) + len(list(self.root.named_buffers()))}"
        is_parameter = isinstance(value, nn.Parameter)
        value = value.detach().clone()
        value = value.double() if value.is_floating_point() else value
        if sliced and is_parameter:
            for axis in range(min(2, value.dim())):
                value = value * self._mask(value.shape, (axis,))
        if is_parameter:
            self.root.register_parameter(name, nn.Parameter(value))
        else:
            self.root.register_buffer(name, value)
        node = self.graph.get_attr(name)
        node.meta["val"] = value
        return node

    def _node(self, target: Any, args: Any, kwargs: Any) -> Node:
        node = self.graph.call_function(target, args, kwargs)
        values = pytree.tree_map_only(Node, lambda n: n.meta["val"].clone(), (args, kwargs))
        with torch.no_grad():
            result = target(*values[0], **values[1])
        node.meta["val"] = list(result) if isinstance(result, (list, tuple)) else result
        return node

    def _results(self) -> Sequence[Node]:
        value = self.call.meta["val"]
        if isinstance(value, Tensor):
            return [self.call]
        found = []
        for index, part in enumerate(value):
            node = self.graph.call_function(python_operator.getitem, (self.call, index))
            node.meta["val"] = part
            found.append(node)
        return found

    def _masked(self, node: Node) -> Node:
        """The node's value with some elements zero."""
        shape = node.meta["val"].shape
        if not node.meta["val"].numel() or self.chance.random() < 0.2:
            return node
        axes = tuple(sorted(self.chance.sample(range(len(shape)), min(len(shape), self.chance.choice((1, 1, 1, 2))))))
        self.masks.append(f"{node.name}: axes {axes}")
        masked = self._node(aten.mul.Tensor, (node, self._constant(self._mask(shape, axes))), {})
        return self._node(aten.add.Tensor, (masked, 0.0), {})  # zero, not -0, which a small network does not know

    def _unread(self, node: Node) -> Node:
        """A result of which some elements count for nothing (if it is finite: 0 times infinity is not)."""
        value = node.meta["val"]
        return self._masked(node) if value.is_floating_point() and bool(value.isfinite().all()) else node

    def _mask(self, shape: Sequence[int], axes: Sequence[int]) -> Tensor:
        """Ones and zeros that vary along the axes; at least one is not zero."""
        size = [n if a in axes else 1 for a, n in enumerate(shape)]
        mask = torch.rand(size, generator=self.generator) > 0.45
        if mask.numel() and not mask.any():
            mask.view(-1)[0] = True
        return mask.double()


def _copies(values: Sequence[Tensor]) -> list[Tensor]:
    return [value.clone() for value in values]


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{type(value).__name__.lower()}{list(value.shape)}"
    return repr(value)
