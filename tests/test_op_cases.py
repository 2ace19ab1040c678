"""Every row of the table: pruned equals zeroed, the MACs reach the limit, the model stays as it was."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import l1rr_fx
from l1rr_fx.conformance.judgement import counted_macs
from l1rr_fx.pruning.pruned import Pruned
from l1rr_fx.testing import differences, executed_macs, fresh, has_constant_output, numerical_limit, zeroed
from passes.absorption.edits import EVEN
from passes.assignment.cost_model import ByteCount, Target
from passes.canonical.normalise import normalise
from passes.frontend.capture import capture
from passes.rules import RULES
from tests.machines import FILLS, WIDENS
from tests.op_cases import CASES, Args, Case

TOLERANCE = 1e-10  # float64: what is left is the reassociation of sums
LIMIT = 1.01
SAMPLES = 8


@dataclass(frozen=True)
class Setting:
    """How to zero a row's network and how to prune it."""

    mode: str
    ratio: float
    seed: int
    columns: bool = False
    multiple: int | None = None
    target: Target = ByteCount()
    open_batch: bool = False

    def __str__(self) -> str:
        marks = (
            ("-columns" * self.columns)
            + (f"-by{self.multiple}" if self.multiple else "")
            + ("-batch" * self.open_batch)
        )
        marks += "" if self.target == ByteCount() else f"-{self.target.name.replace(' ', '-')}"
        return f"{self.mode}-{self.ratio:.0%}{marks}"


UNCOUNTED = {
    **dict.fromkeys(
        (
            "attention_sdpa",
            "attention_causal",
            "attention_narrow_heads",
            "attention_separate",
            "attention_module",
            "attention_module_cross",
            "attention_encoder",
        ),
        "torch does not count attention that is fused on a CPU",
    ),
    **dict.fromkeys(
        ("linear_of_vector", "matmul_of_vectors", "conv_spectral_norm"), "torch does not count products with a vector"
    ),
    "network_shared_tower_loop": "what nobody reads is gone before ours counts",
    "outputs_auxiliary_unused": "what nobody reads is gone before ours counts",
}
"""Rows on whose MACs torch and ours do not agree, and why."""

SETTINGS = (
    Setting("recombine", 0.3, 1),
    Setting("recombine", 0.6, 2, open_batch=True),
    Setting("recombine", 0.85, 3, columns=True),
    Setting("recombine", 0.5, 4, multiple=4),
    Setting("recombine", 0.5, 7, target=FILLS),
    Setting("recombine", 0.5, 8, columns=True, target=WIDENS),
    Setting("exclude", 0.5, 5),
    Setting("union", 0.5, 6, columns=True),
)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pruned_equals_zeroed(case: Case, setting: Setting) -> None:
    model, args = case.build()
    model = zeroed(model, setting.ratio, setting.seed, columns=setting.columns)
    before = _content(model)
    open_batch = setting.open_batch and case.dynamic
    pruned = _pruned(
        model,
        args,
        mode=setting.mode,
        channel_multiple=setting.multiple,
        target=setting.target,
        dynamic_shapes=_open_batch(args) if open_batch else None,
    )
    if pruned is None:
        return
    assert _content(model) == before, "prune changed the model"
    _assert_equal(pruned, model, fresh(args, setting.seed))
    if open_batch:
        _assert_equal(pruned, model, fresh(args, setting.seed, batch=3))
    _assert_names_survive(pruned, model)
    assert pruned.report.after.macs <= pruned.report.before.macs
    if setting is SETTINGS[0]:
        _assert_macs_are_torchs(case, pruned, model, args)
    if case.at_limit and setting.mode == "recombine" and setting.multiple is None and setting.target == ByteCount():
        assert pruned.report.macs_over_limit <= LIMIT, f"above the limit\n{pruned.report}"


MORE_IN_NUMBERS = {
    "attention_linear": "a divisor that is never zero, as ReLUs are multiplied in it",
    "binary": "arguments of atan2 and fmod that are never zero",
    "comparisons": "numbers are never equal by chance",
    "constants_in_forward": "arange starts with zero",
    "dropout_eval": "alpha dropout could be switched on by train()",
    "gather_channels": "gather by an index that is constant is not followed",
    "pad_of_tokens": "a reflection along channels mixes them",
    "linear_of_vector": "the limit counts it and torch does not, as it has one output",
    "matmul_parameter": "a product with a parameter is not among the limit's",
    "mm_addmm": "a product with a parameter is not among the limit's",
    **dict.fromkeys(
        ("recurrent_rnn", "recurrent_rnn_relu", "recurrent_lstm", "recurrent_cells"),
        "recurrent layers are not among the limit's",
    ),
}
"""Rows that are above the limit that activations and gradients give, or whose products it does not see, and why."""


COUNTED = (torch.ops.aten.convolution, torch.ops.aten.addmm, torch.ops.aten.mm)


def contraction_macs(model: nn.Module, args: tuple[Any, ...]) -> int:
    """The MACs of the convolutions and linear layers that `model` executes on `args`, counted by torch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model)(*args)
    counts = counter.get_flop_counts().get("Global", {})
    return sum(int(flops) for operator, flops in counts.items() if operator in COUNTED) // 2


CONSTANTS_LEFT = {
    "synonyms": "a softmax of a constant is a constant of the sizes",
    "parameter_shapes": "a trained number that several channels share has a gradient from constants",
    "layer_norm_by_halves": "a mean of constants over channels",
}
"""Rows whose constants stay, and why: they are held to the limit in which constant channels are live."""


def has_limit(case: Case, setting: int) -> bool:
    """Whether a row is held to the limit that activations and gradients give, in the setting of that number."""
    return case.at_limit and case.name not in MORE_IN_NUMBERS and setting in (0, 1)


@pytest.mark.parametrize("setting", (0, 1), ids=lambda number: str(SETTINGS[number]))
@pytest.mark.parametrize("case", [case for case in CASES if has_limit(case, 0)], ids=lambda case: case.name)
def test_macs_reach_a_limit_that_no_rule_has_counted(case: Case, setting: int) -> None:
    """A rule that calls too little zero, or an operator without one, leaves work that the report's limit holds too."""
    model, args = case.build()
    model = zeroed(model, SETTINGS[setting].ratio, SETTINGS[setting].seed)
    pruned = _pruned(model, args)
    if pruned is None:
        return
    constants = case.name not in CONSTANTS_LEFT
    limit = numerical_limit(model, args, samples=SAMPLES, strict=True, constants=constants)
    before, after = (contraction_macs(network, args) for network in (model, pruned.module))
    assert before == limit.dense == executed_macs(model, args)
    assert after <= LIMIT * limit.macs, f"above the limit, {after} of {limit.macs}\n{pruned.report}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_zeroed_changes_nothing(case: Case) -> None:
    model, args = case.build()
    pruned = _pruned(model, args)
    if pruned is None:
        return
    _assert_equal(pruned, model, fresh(args, 7))
    assert pruned.report.after.macs <= pruned.report.before.macs


@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")  # torch.export, of its own recurrent layers
def test_the_table_and_the_rules_agree() -> None:
    """Each row holds the operators that it says it does, and each registered operator has a row."""
    assert [name for name, count in Counter(case.name for case in CASES).items() if count > 1] == []
    everywhere: set[str] = set()
    unkept: dict[str, set[str]] = {}
    for case in CASES:
        model, args = case.build()
        with_writes = _operators(torch.export.export(model, args, strict=False).graph_module)
        if lacking := set(case.ops) - with_writes:
            unkept[case.name] = lacking
        captured = capture(model, args)
        everywhere |= _operators(captured)
        everywhere |= _operators(normalise(captured))
    assert unkept == {}, "rows that do not exercise what they name"
    assert sorted(set(map(str, RULES)) - everywhere) == [], "operators with a rule but no row in tests/op_cases.py"


def _pruned(model: nn.Module, args: Args, **options: Any) -> Pruned | None:
    """The pruned network; None where nothing is left of an output and prune says so."""
    try:
        return l1rr_fx.prune(model, args, verify=False, **options)
    except l1rr_fx.VanishedError:
        assert has_constant_output(model, args), "refused, although every output depends on the input"
        return None


def _operators(module: nn.Module) -> set[str]:
    """The names of the ATen operators of a graph, without overloads."""
    assert isinstance(module, torch.fx.GraphModule)
    targets = (node.target for node in module.graph.nodes if node.op == "call_function")
    return {t._schema.name.removeprefix("aten::") for t in targets if isinstance(t, torch._ops.OpOverload)}


def _open_batch(args: Any) -> Any:
    """`dynamic_shapes` for `Net.forward(*args)` with axis 0 of every input open."""
    batch = torch.export.Dim("batch", min=2, max=64)
    return (pytree.tree_map_only(Tensor, lambda _: {0: batch}, args),)


def _content(model: nn.Module) -> dict[str, bytes]:
    """Every parameter and buffer, bit for bit."""
    return {name: value.detach().contiguous().numpy().tobytes() for name, value in model.state_dict().items()}


def _assert_equal(pruned: Pruned, model: nn.Module, inputs: Any) -> None:
    """In train mode both update running statistics, so copies run."""
    with torch.no_grad():
        expected = copy.deepcopy(model)(*copy.deepcopy(inputs))
        actual = copy.deepcopy(pruned.module)(*copy.deepcopy(inputs))
    worst = differences(actual, expected)
    assert max(worst, default=0.0) <= TOLERANCE, f"pruned differs from zeroed: {worst}"


def _assert_macs_are_torchs(case: Case, pruned: Pruned, model: nn.Module, args: Args) -> None:
    """The report's MACs are those that torch counts when the networks run."""
    before, after = (counted_macs(network, args) for network in (model, pruned.module))
    assert (before == pruned.report.before.macs) == (case.name not in UNCOUNTED)
    if case.name not in UNCOUNTED:
        assert after == pruned.report.after.macs


def _assert_names_survive(pruned: Pruned, model: nn.Module) -> None:
    """Every parameter of the pruned network has a name and at most the size that the model knows.

    A layer without a bias may have got one, for the constant channels that it reads; and the columns of a weight that
    read a gate are a weight of their own.
    """
    originals = dict(model.named_parameters(remove_duplicate=False))
    places = {each.place for each in pruned.report.accounts.constants}
    into_bias, gates = "bias" in places, "gate" in places
    for name, parameter in pruned.module.named_parameters():
        if into_bias and name.endswith("bias") and name not in originals:
            assert name.removesuffix("bias") + "weight" in originals
            continue
        name = name.removesuffix(EVEN) if gates else name
        assert name in originals
        assert parameter.numel() <= originals[name].numel()
        assert parameter.requires_grad == originals[name].requires_grad
