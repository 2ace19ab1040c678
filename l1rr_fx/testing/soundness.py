"""Is a rule right about its operator? Asked by perturbation, without a second description of what the operator does.

A call is put between masks: `x * mask -> operator -> * mask`, so that any elements of its inputs can be zero and any of
its results unread. What the rule calls zero must be zero, what it calls unneeded must not change what is live, and the
small network that the compiler makes of it must compute the same.
"""

from __future__ import annotations

import operator as python_operator
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from l1rr_fx.support.arguments import of_kind
from l1rr_fx.testing.claims import TOLERANCE, changed_where, false_bounds, false_unneeded, false_zero, node_values
from passes.absorption.absorb import absorb_constants
from passes.analysis.liveness import channel_facts
from passes.analysis.program import Program
from passes.assignment.assign import plan_layouts
from passes.audit.comparison import relative_deviation
from passes.errors import InputError, first_line
from passes.rewriting.rewriter import rewrite
from passes.rules import rule_for
from passes.rules.base import Rule

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

    `samples` are calls, or tuples of positional arguments. What the rule claims is asked with parts zero along each
    axis of each input, and unread along each axis of each result. Then in each of `rounds` other elements of the inputs
    are zero, other entries of the parameters, and other elements of the results unread. `rule` is tried in place of the
    one that the operator has. InputError if it has none, or does not run on a sample.
    """
    target = _overload(operator)
    calls = [_call(f"samples[{n}]", sample) for n, sample in enumerate(samples)]
    if not calls:
        raise InputError("no samples: there is nothing to try the rule on")
    for n, call in enumerate(calls):
        trials = list(_trials(target, call, rounds, f"{seed}.{n}"))
        for question in (_Trial.false_claim, _Trial.wrong_network):  # a claim says more of the rule than a network
            for trial in trials:
                if problem := question(trial, rule):
                    raise AssertionError(
                        f"the rule of {target} is not sound for {call}, masked by {trial.masks}: {problem}"
                    )


def _call(name: str, sample: object) -> Call:
    if isinstance(sample, Call):
        return sample
    if not isinstance(sample, (tuple, list)):
        raise InputError(f"{name} is a {type(sample).__name__}; expected a Call or a tuple of arguments, such as (x,)")
    return Call(tuple(sample))


def _trials(target: OpOverload, call: Call, rounds: int, seed: str) -> Iterator[_Trial]:
    """First with masks along one axis after another, then with masks at random."""
    try:
        first = _Trial(target, call, random.Random(f"{seed}.axis.0"), turn=0)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"{target} does not run on {call}: {error}") from error
    yield first
    for turn in range(1, first.turns):
        yield _Trial(target, call, random.Random(f"{seed}.axis.{turn}"), turn=turn)
    for turn in range(rounds):
        yield _Trial(target, call, random.Random(f"{seed}.{turn}"))


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
    return of_kind("operator", operator, OpOverload, ", such as torch.ops.aten.relu.default, or a custom operator")


class _Trial:
    """One call between masks, as a graph of its own.

    Masks lie along random axes; or, in the given turn, along one axis of each tensor, the next axis in the next turn.
    Inputs are one axis ahead of results, so that what is unread is not also zero.
    """

    def __init__(self, target: OpOverload, call: Call, chance: random.Random, turn: int | None = None) -> None:
        self.target = target
        self.chance = chance
        self.turn = turn
        self.generator = torch.Generator().manual_seed(chance.getrandbits(32))
        self.root = nn.Module()
        self.graph = Graph()
        self.inputs: list[Tensor] = []
        self.masks: list[str] = []
        leaves, tree = pytree.tree_flatten((call.args, dict(call.kwargs)))
        args, kwargs = pytree.tree_unflatten([self._leaf(leaf) for leaf in leaves], tree)
        self.call = self._node(target, args, kwargs)
        self._outs = self._results()
        self.graph.output(tuple(self._unread(out) for out in self._outs))
        self.module = GraphModule(self.root, self.graph)

    @property
    def turns(self) -> int:
        """How many turns it takes until each axis of each tensor had its mask."""
        tensors: list[Tensor] = [*self.inputs, *(out.meta["val"] for out in self._outs)]
        return max(2, *(tensor.dim() for tensor in tensors))

    def false_claim(self, rule: Rule | None) -> str | None:
        """A claim of the rule that does not hold, or None."""
        program = Program(self.module, self._rules(rule))
        site = program.at_call(self.call)
        if site is None or site.rule.reason == "unknown operator":
            raise InputError(f"{self.target} has no rule; passes.rules.register_rule gives it one")
        facts = channel_facts(program)
        for turn in range(2 if self.turn is None else 1):
            inputs = [changed_where(value, torch.tensor(True), turn) if turn else value for value in self.inputs]
            values = node_values(self.module, inputs)
            problem = false_zero(site, facts, values) or false_bounds(site, facts, values)
            problem = problem or false_unneeded(site, facts, values, turn)
            if problem:
                return f"{_name(site.rule)}: {problem}"
        return None

    def wrong_network(self, rule: Rule | None) -> str | None:
        """What is wrong with the small network, or None. The trial's own graph is used up."""
        name, expected = _name(self._rules(rule)(self.call)), self.module(*_copies(self.inputs))
        try:
            absorbed = absorb_constants(self.module, self._rules(rule))
            found = rewrite(plan_layouts(absorbed.program, absorbed.facts)).module(*_copies(self.inputs))
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            return f"{name}: the small network cannot be made, or does not run: {first_line(error)}"
        deviation = relative_deviation(expected, found)
        return f"{name}: the small network deviates by {deviation:.3g}" if not deviation <= TOLERANCE else None

    def _rules(self, rule: Rule | None) -> Callable[[Node], Rule]:
        """The table of rules, with `rule` for the call."""
        return lambda node: rule if rule is not None and node is self.call else rule_for(node)

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
        return self._masked(node, ahead=1)

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

    def _masked(self, node: Node, *, ahead: int = 0) -> Node:
        """The node's value with some elements zero."""
        shape = node.meta["val"].shape
        axes = self._axes(len(shape), ahead)
        if axes is None or not node.meta["val"].numel():
            return node
        self.masks.append(f"{node.name}: axes {axes}")
        mask = self._mask(shape, axes)
        masked = self._node(aten.mul.Tensor, (node, self._constant(mask)), {})
        if ahead and self.turn is None and self.chance.random() < 0.5:  # of an input: constant, not zero
            numbers = torch.randn(mask.shape, generator=self.generator, dtype=mask.dtype)
            return self._node(aten.add.Tensor, (masked, self._constant(torch.where(mask == 0, numbers, 0.0))), {})
        return self._node(aten.add.Tensor, (masked, 0.0), {})  # zero, not -0, which a small network does not know

    def _axes(self, rank: int, ahead: int) -> tuple[int, ...] | None:
        """The axes along which a tensor is masked; None if it is not."""
        if self.turn is None:
            if self.chance.random() < 0.2:
                return None
            return tuple(sorted(self.chance.sample(range(rank), min(rank, self.chance.choice((1, 1, 1, 2))))))
        axis = (self.turn + ahead) % max(2, rank)
        return (axis,) if axis < rank else None

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
        if self.turn is not None and mask.numel() > 1 and mask.all():
            mask.view(-1)[-1] = False
        return mask.double()


def _name(rule: Rule) -> str:
    return f"{type(rule).__module__}.{type(rule).__name__}"


def _copies(values: Sequence[Tensor]) -> list[Tensor]:
    return [value.clone() for value in values]


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{type(value).__name__.lower()}{list(value.shape)}"
    return repr(value)
