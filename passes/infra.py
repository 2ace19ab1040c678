"""The compiler as passes of torch.fx: each usable alone, or in a `torch.fx.passes.infra.pass_manager.PassManager`.

    manager = PassManager(passes=[Normalise(), RemoveZeroChannels(mode="union"), RestoreModes()])
    small = manager(capture(model, args)).graph_module

A pass is a frozen dataclass whose fields are its options, around a function of this package. "Before" in its docstring
is what `requires` checks, "After" what `ensures` checks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from passes.assignment.cost_model import ByteCount, Target
from passes.assignment.options import Options
from passes.canonical.normalise import normalise
from passes.compile import remove_zero_channels
from passes.errors import InputError, RewriteError
from passes.frontend.functionalise import functionalise, writes
from passes.graph.modes import SWITCHED, restore_modes
from passes.rewriting.fold import fold_batch_norm, fold_constants


class GraphPass(PassBase):
    """A pass that checks what it was given and what it gives, which may be another module."""

    def __call__(self, graph_module: GraphModule) -> PassResult:
        self.requires(graph_module)
        result = self.call(graph_module)
        self.ensures(result.graph_module)
        return result

    def requires(self, graph_module: GraphModule) -> None:
        """Raise InputError unless the graph is one of `passes.capture`, whose nodes know their example values."""
        if not isinstance(graph_module, GraphModule):
            raise InputError(f"a torch.fx.GraphModule is wanted, not a {type(graph_module).__name__}")
        for node in graph_module.graph.nodes:
            if node.op in ("call_module", "call_method"):
                raise InputError(f"{node.format_node()} is no ATen operator: capture the network with passes.capture")
            if node.op != "output" and node.users and "val" not in node.meta:
                raise InputError(f"{node.format_node()} has no example value: capture the network with passes.capture")

    def call(self, graph_module: GraphModule) -> PassResult:
        raise NotImplementedError

    def ensures(self, graph_module: GraphModule) -> None:
        """Raise an error unless the graph is sound."""
        graph_module.graph.lint()


@dataclass(frozen=True)
class Functionalise(GraphPass):
    """In-place operators made functional.

    Before: a captured graph. After: no operator writes into its argument.
    """

    def call(self, graph_module: GraphModule) -> PassResult:
        modified = any(writes(node) for node in graph_module.graph.nodes)
        return PassResult(functionalise(graph_module), modified)

    def ensures(self, graph_module: GraphModule) -> None:
        super().ensures(graph_module)
        _refuse(graph_module, writes, "still writes into its argument")


@dataclass(frozen=True)
class Normalise(GraphPass):
    """Several spellings of an operation made one.

    Before: a captured graph without in-place operators. After: it is still one.
    """

    def requires(self, graph_module: GraphModule) -> None:
        super().requires(graph_module)
        _require_functional(graph_module)

    def call(self, graph_module: GraphModule) -> PassResult:
        before = str(graph_module.graph)
        normalise(graph_module)
        return PassResult(graph_module, str(graph_module.graph) != before)

    def ensures(self, graph_module: GraphModule) -> None:
        super().ensures(graph_module)
        super().requires(graph_module)


@dataclass(frozen=True)
class RemoveZeroChannels(GraphPass):
    """The network without its zeroed channels, as a new module; see `passes.assignment.options` for the fields.

    Before: a captured graph without in-place operators. After: batch norm and dropout are modules, as `RestoreModes`
    makes them. A graph from which nothing can be removed comes back as it is, normalised.
    """

    mode: str = "recombine"
    channel_multiple: int | None = None
    target: Target = field(default_factory=ByteCount)

    def requires(self, graph_module: GraphModule) -> None:
        super().requires(graph_module)
        _require_functional(graph_module)

    def call(self, graph_module: GraphModule) -> PassResult:
        removed = remove_zero_channels(graph_module, Options(self.mode, self.channel_multiple, self.target))
        graph_module.recompile()
        held = {name: parameter.shape for name, parameter in graph_module.named_parameters()}
        kept = {name: parameter.shape for name, parameter in removed.module.named_parameters()}
        return PassResult(graph_module, False) if kept == held else PassResult(removed.module, True)


@dataclass(frozen=True)
class RestoreModes(GraphPass):
    """Batch norm and dropout as modules, which `.train()` and `.eval()` switch.

    Before: a graph in which the input of every call of batch norm knows its example value. After: no such call is left.
    """

    def requires(self, graph_module: GraphModule) -> None:
        for node in graph_module.graph.nodes:
            if node.target in SWITCHED and "val" not in node.meta:
                raise InputError(f"{node.format_node()} has no example value: capture the network with passes.capture")

    def call(self, graph_module: GraphModule) -> PassResult:
        calls = [node for node in graph_module.graph.nodes if node.target in SWITCHED]
        restore_modes(graph_module, {node.name: node.meta["val"].dim() for node in calls})
        for forbidden in ("train", "eval"):  # torch.export forbids them by attributes of its module
            vars(graph_module).pop(forbidden, None)
        return PassResult(graph_module, bool(calls))

    def ensures(self, graph_module: GraphModule) -> None:
        super().ensures(graph_module)
        _refuse(graph_module, lambda node: node.target in SWITCHED, "is still a call")


class _Fold(GraphPass):
    """A pass on any graph module; its nodes need no example values."""

    def requires(self, graph_module: GraphModule) -> None:
        if not isinstance(graph_module, GraphModule):
            raise InputError(f"a torch.fx.GraphModule is wanted, not a {type(graph_module).__name__}")

    def folded(self, graph_module: GraphModule) -> GraphModule:
        raise NotImplementedError

    def call(self, graph_module: GraphModule) -> PassResult:
        folded = self.folded(graph_module)
        modified = str(folded.graph) != str(graph_module.graph)
        return PassResult(folded if modified else graph_module, modified)


@dataclass(frozen=True)
class FoldBatchNorm(_Fold):
    """Batch norms folded into the weights beside them.

    Before: a graph module in eval mode. After: see `fold_batch_norm`.
    """

    def folded(self, graph_module: GraphModule) -> GraphModule:
        return fold_batch_norm(graph_module)


@dataclass(frozen=True)
class FoldConstants(_Fold):
    """What depends on parameters and buffers alone, computed once.

    Before: any graph module. After: see `fold_constants`.
    """

    def folded(self, graph_module: GraphModule) -> GraphModule:
        return fold_constants(graph_module)


def _require_functional(module: GraphModule) -> None:
    written = next((node for node in module.graph.nodes if writes(node)), None)
    if written is not None:
        raise InputError(f"{written.format_node()} writes into its argument: run Functionalise first")


def _refuse(module: GraphModule, wrong: Callable[[Node], bool], message: str) -> None:
    found = next((node for node in module.graph.nodes if wrong(node)), None)
    if found is not None:
        raise RewriteError(f"{found.format_node()} {message}")
