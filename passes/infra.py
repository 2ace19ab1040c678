"""The compiler as passes of torch.fx, alone or in a `torch.fx.passes.infra.pass_manager.PassManager`.

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
from passes.choices import Mode
from passes.compile import remove_zero_channels
from passes.errors import InputError, RewriteError
from passes.frontend.functionalise import functionalise, writes
from passes.graph.modes import SWITCHED, restore_modes
from passes.rewriting.fold import fold_batch_norm, fold_constants


class GraphPass(PassBase):
    """A pass that checks the module that it is given and the one that it returns, which may be another."""

    def __call__(self, graph_module: GraphModule) -> PassResult:
        self.requires(graph_module)
        result = self.call(graph_module)
        self.ensures(result.graph_module)
        return result

    def requires(self, graph_module: GraphModule) -> None:
        """Raise InputError unless the graph is as `passes.capture` makes it: ATen operators with example values."""
        if not isinstance(graph_module, GraphModule):
            raise InputError(f"expected a torch.fx.GraphModule, not a {type(graph_module).__name__}")
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
    """Replace in-place operators by functional ones.

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
    """Bring the graph into canonical form: each operation is written in one way.

    Before: a captured graph without in-place operators. After: the same.
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
    """Remove the zeroed channels, in a new module; the fields are those of `passes.assignment.options.Options`.

    Before: a captured graph without in-place operators. After: batch norm and dropout are modules, as after
    `RestoreModes`. A graph from which nothing can be removed is returned itself, in canonical form.
    """

    mode: Mode = "recombine"
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
    """Replace calls of batch norm and dropout by modules, which `.train()` and `.eval()` switch.

    Before: every call of batch norm or dropout has an example value. After: no such call is left.
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
    """A pass on any graph module, with or without example values."""

    def requires(self, graph_module: GraphModule) -> None:
        if not isinstance(graph_module, GraphModule):
            raise InputError(f"expected a torch.fx.GraphModule, not a {type(graph_module).__name__}")

    def folded(self, graph_module: GraphModule) -> GraphModule:
        raise NotImplementedError

    def call(self, graph_module: GraphModule) -> PassResult:
        folded = self.folded(graph_module)
        modified = str(folded.graph) != str(graph_module.graph)
        return PassResult(folded if modified else graph_module, modified)


@dataclass(frozen=True)
class FoldBatchNorm(_Fold):
    """Fold batch norms into the weights before or after them, in a new module.

    Before: a graph module in eval mode. After: see `fold_batch_norm`.
    """

    def folded(self, graph_module: GraphModule) -> GraphModule:
        return fold_batch_norm(graph_module)


@dataclass(frozen=True)
class FoldConstants(_Fold):
    """Compute once what depends on parameters and buffers alone, in a new module.

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
