"""Models that cannot be captured whole: their parts are pruned; the copy computes what the zeroed model does."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.pruning.partition.pieces import CROSSES, MODEL_CODE
from passes.accounts import Cost
from passes.errors import InputError
from passes.graph.selection import Selection
from tests.oracle import relative_error, zeroed_case
from tests.torchvision_shim import import_torchvision
from tests.zoo import Entry, by_name

TOLERANCE = 1e-10  # sums in another order, in float64


def block(channels_in: int, channels_out: int, alive: int) -> nn.Sequential:
    """Conv -> 8 channels of which `alive` live, ReLU, conv; sizes halve."""
    first = nn.Conv2d(channels_in, 8, 3, padding=1, stride=2)
    with torch.no_grad():
        first.weight[alive:] = 0
        first.bias[alive:] = 0  # type: ignore[index]  # it has one
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, channels_out, 3, padding=1))


def check(model: nn.Module, *inputs: Any, **options: Any) -> l1rr_fx.Pruned:
    """Prune on the first of `inputs`, compare on all, and see that nothing of the model was touched or taken."""
    model = model.double().eval()
    before = copy.deepcopy(model.state_dict())
    pruned = l1rr_fx.prune(model, *inputs[:1], **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert set(pruned.module.state_dict()) <= set(before)
    ours = {tensor.data_ptr() for tensor in pruned.module.state_dict().values() if tensor.numel()}
    assert not ours & {tensor.data_ptr() for tensor in model.state_dict().values()}
    with torch.no_grad():
        for args in inputs:
            assert relative_error(pruned.module(*args), model(*args)) <= TOLERANCE
    return pruned


def image(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


# --- detectors -------------------------------------------------------------------------------------------------------


def small_retinanet() -> nn.Module:
    """The detector of the zoo with a smaller backbone and two anchors a cell."""
    import_torchvision()
    from torchvision.models.detection import RetinaNet, anchor_utils, backbone_utils

    backbone = backbone_utils.mobilenet_backbone("mobilenet_v3_small", fpn=True, weights=None, trainable_layers=6)
    anchors = anchor_utils.AnchorGenerator(((32,), (64,), (128,)), ((0.5, 2.0),) * 3)
    few = {"min_size": 128, "max_size": 160, "topk_candidates": 30, "detections_per_img": 10}
    model: nn.Module = RetinaNet(backbone, 3, anchor_generator=anchors, score_thresh=0.0, **few)
    return model


@pytest.mark.parametrize(
    ("entry", "pieces"),
    [
        (Entry("retinanet", small_retinanet, 128, whole=True), ("backbone", "head")),
        pytest.param(
            by_name("whole/fasterrcnn_mobilenet_v3_large_320_fpn"),
            ("backbone", "rpn.head", "roi_heads.box_head"),
            marks=pytest.mark.fuzz,
        ),
    ],
    ids=["retinanet", "fasterrcnn"],
)
def test_detector_on_images_of_other_sizes(entry: Entry, pieces: tuple[str, ...]) -> None:
    case = zeroed_case(entry, 0.5)
    model: Any = case.model
    model.transform.min_size, model.transform.max_size = (140,), 176  # or the coarsest level is a single cell
    images, others = torch.rand(1, 3, 140, 150).double(), torch.rand(2, 3, 170, 140).double()
    pruned = check(model, ([*images],), ([*others],), verify=False)
    with torch.no_grad():
        assert [len(found["boxes"]) for found in model([*others])] == [10, 10], "nothing was compared"
    report = pruned.report
    assert report.pieces == pieces
    crossing = sum(each.macs for each in report.accounts.kept if each.reason == CROSSES)
    assert crossing > 0 and report.after.macs - crossing <= 1.01 * report.limit.macs
    assert pruned.report.after.macs < 0.6 * pruned.report.before.macs


# --- the limit -------------------------------------------------------------------------------------------------------


class Chained(nn.Module):
    """Two parts in a row, one that other code feeds, and a loop that no graph has; `between` is that code."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        self.first, self.second, self.third = block(3, 8, alive=3), block(8, 8, alive=5), block(8, 4, alive=4)
        with torch.no_grad():
            for part, dead in ((self.first, [1, 4, 6]), (self.second, [0, 7])):
                part[2].weight[dead], part[2].bias[dead] = 0, 0
            self.second[0].weight[:, [2, 3]] = 0  # what it does not read

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        if x.sum() > 1e9:
            return x
        found: Tensor = self.third(self.between(x))
        return found


def test_the_limit_of_pieces_is_that_of_the_whole() -> None:
    """first and second are joined; what the code gives to third is another tensor, of which nothing is known."""
    x = image(1, 3, 32, 32)
    report = check(Chained(lambda x: x * 2), (x,)).report
    joined = nn.Sequential(*(part for name, part in Chained(lambda x: x).double().named_children()))[:2]
    whole = check(joined, (x,)).report
    assert {layer.node.split(".")[0] for layer in report.accounts.layers} == {"first", "second", "third"}
    parts = [sum(each.macs[2] for each in report.accounts.layers if each.node.startswith(n)) for n in ("fir", "sec")]
    assert sum(parts) == whole.limit.macs < whole.before.macs
    crossing = sum(each.macs for each in report.accounts.kept if each.reason == CROSSES)
    assert report.after.macs - report.limit.macs == crossing > 0
    assert [(each.node.split(".")[0], each.operator) for each in report.opaque] == [("second", MODEL_CODE)]
    assert "MACs after / limit as far as known = " in str(report)
    assert "around the model's code between pieces nothing is known to be dead" in str(report)


def test_the_limit_of_pieces_is_joined_where_nothing_changes_the_tensor() -> None:
    report = check(Chained(lambda x: x), (image(1, 3, 32, 32),)).report
    apart = check(Chained(lambda x: x.relu_()), (image(1, 3, 32, 32),)).report
    assert report.limit.macs < apart.limit.macs
    assert len(report.opaque) == len(apart.opaque) == 1  # the test of the sum reads the tensor too


# --- control flow ----------------------------------------------------------------------------------------------------


class Choosing(nn.Module):
    """Which head runs depends on the values; the body gives an OrderedDict, and its `width` is read."""

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width = 4
            self.names = ("low", "high")
            self.low = block(3, 4, alive=3)
            self.high = block(4, 4, alive=5)

        def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
            low = self.low(x)
            return OrderedDict(zip(self.names, (low, self.high(low)), strict=True))

    def __init__(self) -> None:
        super().__init__()
        self.body = self.Body()
        self.left = block(4, 2, alive=2)
        self.right = block(4, 2, alive=6)

    def forward(self, x: Tensor) -> Tensor:
        levels = self.body(x)
        assert type(levels) is OrderedDict
        low, high = levels.values()
        if bool((high.mean() > 0).item()):
            low = low + 1
        out: Tensor = self.left(low) + self.right(low) * self.body.width
        return out


def test_control_flow_on_data_around_capturable_parts() -> None:
    inputs = [(image(2, 3, 16, 16),), (image(1, 3, 24, 40),), (image(3, 3, 10, 12),)]
    pruned = check(Choosing(), *inputs)
    assert pruned.report.pieces == ("body", "left", "right")
    assert type(pruned.module.body(inputs[0][0])) is OrderedDict  # type: ignore[operator, union-attr]
    assert "item()" not in "".join(pruned.report.notes[1:])


class Thresholding(nn.Module):
    """How many rows come out depends on the values: `how` is the operator."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, 4, alive=3), nn.Conv2d(4, 4, 1))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.body(x).flatten(2).transpose(1, 2)[0])


THRESHOLDS: dict[str, Callable[[Tensor], Tensor]] = {
    "mask": lambda p: p[p[:, 0] > 0],
    "nonzero": lambda p: p[(p[:, 0] > 0).nonzero().squeeze(1)],
    "where": lambda p: p[torch.where(p[:, 0] > 0)[0]],
    "masked_select": lambda p: torch.masked_select(p[:, 0], p[:, 0] > 0),
    "vmap": lambda p: torch.vmap(lambda row: row * 2)(p),
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_what_cannot_be_followed_around_capturable_parts(name: str) -> None:
    model = Thresholding(THRESHOLDS[name])
    pruned = check(model, (image(1, 3, 16, 16),), (image(1, 3, 8, 24),))
    assert pruned.report.pieces == ("body",)
    assert pruned.report.after.macs < pruned.report.before.macs


class Remembering(nn.Module):
    """Half of what it saw before; in an attribute or in a buffer that is assigned anew."""

    def __init__(self, *, in_a_buffer: bool) -> None:
        super().__init__()
        self.body, self.head = block(3, 4, alive=3), nn.Conv2d(4, 2, 1)
        self.seen: Tensor | None
        if in_a_buffer:
            self.register_buffer("seen", torch.zeros(1, 4, 8, 8))
        else:
            self.seen = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        mixed = y if self.seen is None else 0.5 * (y + self.seen)
        self.seen = y.detach()
        out: Tensor = self.head(mixed)
        return out


@pytest.mark.parametrize("in_a_buffer", [False, True])
def test_a_forward_that_remembers_goes_on_remembering(in_a_buffer: bool) -> None:
    model = Remembering(in_a_buffer=in_a_buffer).double().eval()
    zeroed = copy.deepcopy(model)
    pruned = l1rr_fx.prune(model, (image(1, 3, 16, 16),))
    assert "body" in pruned.report.pieces
    assert "remembers" in pruned.report.notes[0] or "writes into the buffer" in pruned.report.notes[0]
    for _ in range(3):
        x = image(1, 3, 16, 16)
        with torch.no_grad():
            assert relative_error(pruned.module(x), zeroed(x)) <= TOLERANCE


class Caching(nn.Module):
    """A mask for the size of the image, made in the first call and kept in a buffer that is None at first."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.size = block(3, 4, alive=3), None
        self.register_buffer("mask", None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.size != y.shape[2:]:
            self.size, self.mask = y.shape[2:], torch.ones(y.shape[2:], dtype=y.dtype).tril()
        out: Tensor = y * self.mask
        return out


def test_a_cache_is_no_memory() -> None:
    model = Caching()
    pruned = check(model, (image(1, 3, 16, 16),), (image(1, 3, 16, 16),))
    assert pruned.report.pieces == ()
    assert pruned.report.notes == ()


def test_the_report_sums_the_pieces_and_counts_the_parameters_of_the_whole() -> None:
    model = Choosing()
    report = check(model, (image(2, 3, 16, 16),)).report
    assert report.before.parameters == sum(parameter.numel() for parameter in model.parameters())
    rows = [layer.macs for layer in report.accounts.layers]
    assert tuple(map(sum, zip(*rows, strict=True))) == (report.before.macs, report.after.macs, report.limit.macs)
    assert {layer.node.split(".")[0] for layer in report.accounts.layers} == {"body", "left", "right"}
    assert report.after == report.limit != Cost(0, 0, 0, 0)
    assert l1rr_fx.Report.from_json(report.to_json()) == report


def test_kept_says_what_of_each_parameter_is_left() -> None:
    model = Choosing().double()
    pruned = check(model, (image(2, 3, 16, 16),))
    originals = dict(model.named_parameters())
    for name, parameter in pruned.module.named_parameters():
        assert torch.equal(pruned.kept[name].apply(originals[name].detach()), parameter)


def test_attributes_of_a_replaced_module_survive_it_and_a_deep_copy() -> None:
    x = image(2, 3, 16, 16)
    pruned = check(Choosing(), (x,))
    twin: Any = copy.deepcopy(pruned.module)
    assert (twin.body.width, twin.body.names) == (4, ("low", "high"))
    assert torch.equal(twin(x), pruned.module(x))
    assert set(twin.state_dict()) == set(pruned.module.state_dict())


def test_a_copy_in_float32_agrees_too() -> None:
    model = Choosing().eval()
    pruned = l1rr_fx.prune(model, (torch.randn(2, 3, 16, 16),))
    assert pruned.report.deviation is not None and pruned.report.deviation < 1e-4


def test_gradients_reach_the_pieces() -> None:
    pruned = check(Choosing(), (image(2, 3, 16, 16),))
    pruned.module.train()
    pruned.module(image(2, 3, 16, 16)).square().sum().backward()
    names = [name for name, parameter in pruned.module.named_parameters() if parameter.grad is None]
    assert not [name for name in names if not name.startswith("body.high")]


# --- what the pieces may be ------------------------------------------------------------------------------------------


class Stubborn(nn.Module):
    """Everything is computed by hand, with control flow on data around it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.layer.weight
        return y if y.sum() > 0 else -y  # the guilty line


def test_nothing_capturable_names_the_line_and_what_to_try() -> None:
    with pytest.raises(l1rr_fx.CaptureError) as caught:
        l1rr_fx.prune(Stubborn(), (torch.randn(2, 4),))
    message = str(caught.value)
    assert "test_pieces.py:" in message and "# the guilty line" in message
    assert "Move that code out of forward" in message


class Outer(nn.Module):
    """Runs `parts` one after the other, with a branch on data between them."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
            x = x if x.sum() > 0 else -x
        return x


def test_a_shared_submodule_stays_shared() -> None:
    shared = block(3, 3, alive=3)
    pruned = check(Outer(shared, block(3, 3, alive=2), shared), (image(2, 3, 64, 64),), (image(1, 3, 48, 80),))
    parts: Any = pruned.module.parts
    assert parts[0] is parts[2] is not parts[1]
    assert pruned.report.pieces == ("parts.0", "parts.1")
    assert any("parts.0 is called 2 times" in note for note in pruned.report.notes)


def test_a_layer_shared_by_two_submodules_stays_shared() -> None:
    one, two = block(3, 3, alive=3), block(3, 3, alive=2)
    two[0] = one[0]
    pruned = check(Outer(one, two), (image(2, 3, 64, 64),))
    parts: Any = pruned.module.parts
    assert parts[0][0] is parts[1][0]


class Scales(nn.Module):
    """One head on several scales, chosen by value."""

    def __init__(self) -> None:
        super().__init__()
        self.head = block(3, 2, alive=3)

    def forward(self, x: Tensor) -> list[Tensor]:
        sizes = (1, 2, 4) if x.sum() > 0 else (4, 2, 1)
        return [self.head(x[..., ::size, ::size]) for size in sizes]


def test_a_submodule_called_on_several_scales() -> None:
    pruned = check(Scales(), (image(2, 3, 32, 32),), (image(1, 3, 24, 56),), (image(0, 3, 24, 56),))
    assert pruned.report.pieces == ("head",)


class Tied(nn.Module):
    """The weight of the first linear layer is also read by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.tail = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        for part in (self.body, self.tail):
            nn.init.zeros_(part[0].weight[4:])
            nn.init.zeros_(part[0].bias[4:])

    def forward(self, x: Tensor) -> Tensor:
        y = self.tail(self.body(x)) + self.body[0].weight.shape[0]
        return y if y.sum() > 0 else -y


def test_a_submodule_whose_parameters_are_read_from_outside_is_left() -> None:
    pruned = check(Tied(), (image(2, 4),))
    assert "tail" in pruned.report.pieces and "body" not in pruned.report.pieces
    assert pruned.module.get_parameter("body.0.weight").shape == (8, 4)
    assert any("read from outside" in note for note in pruned.report.notes)


class Fixed(nn.Module):
    """Its code asks for the number of rows and for an option."""

    def __init__(self) -> None:
        super().__init__()
        self.body = block(3, 3, alive=3)

    def forward(self, x: Tensor, gain: int = 1) -> Tensor:
        y: Tensor = self.body(x)
        return y * gain if y.shape[-1] > 4 else y - gain


def test_a_call_that_the_capture_does_not_cover_is_refused_with_its_reason() -> None:
    pruned = check(Outer(Fixed()), (image(2, 3, 32, 32),), (image(2, 3, 20, 12),))
    with pytest.raises(l1rr_fx.InputError, match="the pruned parts.0 cannot serve this call: its sizes"):
        pruned.module(image(2, 3, 32, 8))
    with pytest.raises(l1rr_fx.InputError, match="structure"):
        pruned.module.parts[0](image(2, 3, 32, 32), 2)  # type: ignore[operator, index, union-attr]


class Boxed:
    """Not a container that anybody knows."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Unboxing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = block(3, 3, alive=3)

    def forward(self, box: Boxed) -> Tensor:
        out: Tensor = self.inner(box.tensor)
        return out


class Boxing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Unboxing()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.part(Boxed(x))
        return y if y.sum() > 0 else -y


class Paired(nn.Module):
    """Two inputs, one of them by name, whose sizes must agree."""

    def __init__(self) -> None:
        super().__init__()
        self.body = block(3, 3, alive=3)

    def forward(self, x: Tensor, *, scale: float, more: Tensor) -> Tensor:
        y: Tensor = self.body(x + more) * scale
        return y


class Pairing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Paired()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.part(x, more=x, scale=2.0)
        return y if y.sum() > 0 else -y


def test_keyword_arguments_and_one_tensor_given_twice() -> None:
    pruned = check(Pairing(), (image(2, 3, 32, 32),), (image(1, 3, 20, 12),))
    assert pruned.report.pieces == ("part",)
    part: Any = pruned.module.part
    with pytest.raises(l1rr_fx.InputError, match=r"3\.0 is given where 2\.0 was"):
        part(image(2, 3, 32, 32), more=image(2, 3, 32, 32), scale=3.0)
    with pytest.raises(l1rr_fx.InputError, match="a size is 30 where"):
        part(image(2, 3, 32, 32), more=image(2, 3, 32, 30), scale=2.0)


def test_a_call_with_a_strange_object_is_left_to_the_children() -> None:
    pruned = check(Boxing(), (image(2, 3, 32, 32),))
    assert pruned.report.pieces == ("part.inner",)
    assert any("called with a Boxed" in note for note in pruned.report.notes)


def test_a_vanished_part_is_left_whole() -> None:
    dead = nn.Conv2d(3, 3, 1)
    nn.init.zeros_(dead.weight)
    nn.init.zeros_(dead.bias)  # type: ignore[arg-type]  # it has one
    pruned = check(Outer(block(3, 3, alive=3), dead), (image(2, 3, 32, 32),))
    assert pruned.report.pieces == ("parts.0",)
    assert any(note.startswith("parts.1 left whole") for note in pruned.report.notes)


def test_batch_norm_statistics_of_the_model_are_not_touched_in_training() -> None:
    norm = nn.BatchNorm2d(3)
    model = Outer(nn.Sequential(block(3, 3, alive=3), norm), block(3, 3, alive=2)).train()
    x = torch.randn(4, 3, 32, 32)
    pruned = l1rr_fx.prune(model, (x,))
    assert int(norm.num_batches_tracked) == 0 and not bool(norm.running_mean.any())  # type: ignore[arg-type, union-attr]
    with torch.no_grad():
        assert relative_error(pruned.module(x), model(x)) < 1e-4
    twin = dict(pruned.module.named_buffers())["parts.0.1.running_mean"]
    assert torch.allclose(twin, norm.running_mean)  # type: ignore[arg-type]


# --- runs of a Sequential --------------------------------------------------------------------------------------------


class Doubling(nn.Module):
    """A decision on values, in a layer without parameters or with one."""

    def __init__(self, width: int = 0) -> None:
        super().__init__()
        self.inner = nn.Conv2d(width, width, 1) if width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y * 2 if bool(y.sum() > 0) else y


def layers(*channels: int) -> list[nn.Module]:
    """Convolutions with batch norms, of which half of the channels are dead."""
    made: list[nn.Module] = []
    for channels_in, channels_out in zip(channels, channels[1:], strict=False):
        norm = nn.BatchNorm2d(channels_out)
        with torch.no_grad():
            norm.weight[::2] = norm.bias[::2] = 0
        made += [nn.Conv2d(channels_in, channels_out, 3, padding=1), norm, nn.ReLU()]
    return made


SEQUENCES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "first": (lambda: nn.Sequential(Doubling(), *layers(3, 8, 8, 8), nn.Conv2d(8, 4, 1)), ("1-10",)),
    "last": (lambda: nn.Sequential(*layers(3, 8, 8, 8), nn.Conv2d(8, 4, 1), Doubling()), ("0-9",)),
    "between": (
        lambda: nn.Sequential(*layers(3, 8, 8), Doubling(8), *layers(8, 8, 8), nn.Conv2d(8, 4, 1)),
        ("0-4", "7-13"),
    ),
    "inside": (
        lambda: nn.Sequential(
            OrderedDict(
                stem=nn.Sequential(*layers(3, 8)),
                body=nn.Sequential(OrderedDict(a=nn.Sequential(*layers(8, 8)), b=Doubling(8), c=nn.Conv2d(8, 8, 1))),
                tail=nn.Sequential(*layers(8, 8), nn.Conv2d(8, 4, 1)),
            )
        ),
        ("stem", "body.a", "tail"),
    ),
}


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_refused_export_of_runs_names_code_that_gives_a_piece(wrapped: bool, tmp_path: Path) -> None:
    model, x = SEQUENCES["between"][0]().double().eval(), image(1, 3, 8, 8)
    pruned = l1rr_fx.prune(nn.Sequential(OrderedDict(net=model)) if wrapped else model, (x,))
    with pytest.raises(InputError, match="pruned in 2 pieces") as caught:
        pruned.export(tmp_path / "net.pt2")
    code = str(caught.value).partition("torch.export.export(")[2].partition(", its inputs")[0]
    piece = eval(code, {"pruned": pruned})
    with torch.no_grad():
        assert relative_error(torch.export.export(piece, (x,)).module()(x), model[:5](x)) <= TOLERANCE


@pytest.mark.parametrize("name", SEQUENCES)
def test_neighbours_in_a_sequential_are_one_piece(name: str) -> None:
    make, pieces = SEQUENCES[name]
    model, inputs = make(), [(image(1, 3, 8, 8),), (image(2, 3, 10, 6),)]
    pruned = check(model, *inputs)
    assert pruned.report.pieces == pieces
    assert pruned.report.deviation is not None and pruned.report.deviation <= TOLERANCE
    originals = dict(model.named_parameters())
    for path, parameter in pruned.module.named_parameters():
        assert torch.equal(pruned.kept[path].apply(originals[path].detach()), parameter), path
    with torch.no_grad():
        for twin in (copy.deepcopy(pruned.module), copy.deepcopy(pruned.module).float().double()):
            twin.load_state_dict(pruned.module.state_dict())
            assert relative_error(twin(*inputs[1]), model(*inputs[1])) <= TOLERANCE
        assert relative_error(pruned.module.train()(*inputs[0]), model.train()(*inputs[0])) <= TOLERANCE
        assert (
            relative_error(pruned.module.eval()(*inputs[0]), model.eval()(*inputs[0])) <= TOLERANCE
        )  # statistics, too


def test_children_that_other_code_calls_too_are_no_run() -> None:
    class Reaching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(*layers(3, 3, 3), Doubling())

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body(self.body[0](x))
            return y

    assert check(Reaching(), (image(1, 3, 8, 8),)).report.pieces == ("body.1-4",)


# --- what verification compares --------------------------------------------------------------------------------------


class Instances:
    """What a detector returns: fields in a dictionary of its own."""

    def __init__(self, **fields: Any) -> None:
        self._fields = fields


class Detecting(nn.Module):
    """A body and code that torch.export cannot follow: what `decide` makes of one row for each position."""

    def __init__(self, decide: Callable[[Tensor, nn.Module], Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, 5, alive=3), nn.Conv2d(5, 5, 1))
        self.decide = decide

    def forward(self, x: Tensor) -> Any:
        rows = self.body(x)[0].flatten(1).T
        return self.decide(rows if bool(rows.abs().sum() > 0) else -rows, self.body)


def of_a_wrong_compiler(selection: Selection, tensor: Tensor) -> Tensor:
    return RIGHT_SELECTION(selection, tensor) * 2 + 1


def of_another_rounding(selection: Selection, tensor: Tensor) -> Tensor:
    return RIGHT_SELECTION(selection, tensor) * (1 + 1e-14)


RIGHT_SELECTION = Selection.apply
KINDS: dict[str, Callable[[Tensor, nn.Module], Any]] = {
    "boxes": lambda rows, body: [Boxed(rows)],
    "instances": lambda rows, body: [{"instances": Instances(boxes=Boxed(rows[:, :4]), scores=rows[:, 4])}],
    "numbers": lambda rows, body: rows.tolist(),
    "array": lambda rows, body: rows.numpy(),
    "nothing": lambda rows, body: [Boxed(rows[:0])],
}


@pytest.mark.parametrize("name", KINDS)
def test_outputs_of_any_kind_are_compared(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Detecting(KINDS[name]).double().eval(), image(1, 3, 8, 8)
    report = l1rr_fx.prune(model, (x,)).report
    assert report.deviation is not None and report.deviation <= TOLERANCE
    assert report.compared == 80 + 80 * (name != "nothing")  # those of the piece, and those of the whole
    assert ("nothing of them was compared" in " ".join(report.notes)) == (name == "nothing")
    monkeypatch.setattr(Selection, "apply", of_a_wrong_compiler)
    with pytest.raises(l1rr_fx.VerifyError, match=r"^in the piece body the .* first difference is at conv2d") as caught:
        l1rr_fx.prune(model, (x,))
    assert caught.value.__cause__ is None and (caught.value.__suppress_context__ or not caught.value.__context__)


def chaotic(rows: Tensor) -> Tensor:
    """Numbers that the last digits of `rows` decide."""
    return (rows[:, 4] * 1e16).sin()


def sorted_by_chance(rows: Tensor, body: nn.Module) -> Any:
    order = chaotic(rows).argsort()
    return [{"boxes": rows[order, :4], "scores": rows[order, 4], "labels": order}]


def kept_by_chance(rows: Tensor, body: nn.Module) -> Any:
    return [{"boxes": rows[chaotic(rows) > 0, :4]}]


def test_detections_that_rounding_reorders_are_compared_as_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Selection, "apply", of_another_rounding)
    report = l1rr_fx.prune(Detecting(sorted_by_chance).double().eval(), (image(1, 3, 8, 8),)).report
    assert report.compared == 80 + 16 * 6
    assert report.deviation is not None and 1e-16 < report.deviation <= TOLERANCE
    assert "when the 16 rows are compared as sets" in report.notes[-1]


def test_decisions_of_rounding_are_no_error_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Selection, "apply", of_another_rounding)
    report = l1rr_fx.prune(Detecting(kept_by_chance).double().eval(), (image(1, 3, 8, 8),)).report
    assert report.compared == 80 and report.deviation is not None and report.deviation <= TOLERANCE
    assert "magnifies rounding" in report.notes[-1] and "rows agree, compared as sets" in report.notes[-1]


def test_code_that_depends_on_what_a_piece_consists_of_is_an_error() -> None:
    model = Detecting(lambda rows, body: rows * (1 + isinstance(body, nn.Sequential))).double().eval()
    with pytest.raises(
        l1rr_fx.VerifyError, match="each piece agrees, but with the same results of its pieces the rest"
    ):
        l1rr_fx.prune(model, (image(1, 3, 8, 8),))
    model = Detecting(lambda rows, body: rows * body[0][0].out_channels).double().eval()  # type: ignore[index]
    with pytest.raises(l1rr_fx.VerifyError, match="reaches into a pruned submodule"):
        l1rr_fx.prune(model, (image(1, 3, 8, 8),))


def test_what_differs_between_two_runs_of_the_model_is_not_compared() -> None:
    count = iter(range(100))
    model = Detecting(lambda rows, body: Instances(rows=rows, milliseconds=next(count))).double().eval()
    report = l1rr_fx.prune(model, (image(1, 3, 8, 8),)).report
    assert report.compared == 160
    assert "not compared: output._fields['milliseconds'], which differs between two runs" in report.notes[-1]


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(2))
def test_equal_scores_are_no_error_in_a_whole_detector(seed: int) -> None:
    """New weights, half of the channels of all batch norms dead: many scores are exactly equal."""
    import_torchvision()
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    torch.manual_seed(seed)
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4).double().eval()
    with torch.no_grad():
        for norm in (each for each in model.modules() if isinstance(each, nn.BatchNorm2d)):
            dead = torch.rand(norm.num_features) < 0.5
            norm.weight[dead] = norm.bias[dead] = 0
    report = l1rr_fx.prune(model, ([image(3, 320, 320)],)).report
    assert report.pieces == ("backbone", "head")
    assert report.deviation is not None and report.deviation <= TOLERANCE
    assert report.compared > 300_000
