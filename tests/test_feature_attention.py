"""The feature attention loss: its formula, where it looks, what it is as a training term, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l1rr_fx.demo.detector import TreeDetector, Widths
from l1rr_fx.method.attention.feature_maps import found_feature_maps
from l1rr_fx.method.attention.ground_truth import target_mask
from l1rr_fx.method.attention.loss import FeatureAttention, attention_loss, attention_map
from l1rr_fx.method.attention.replay import Replay
from l1rr_fx.method.sites.zeroing import evaluation_graph
from l1rr_fx.method.training.recalibrate import recalibrate_batch_norm
from passes.analysis.program import Program
from passes.errors import InputError
from passes.rules import rule_for

SMALL = Widths(8, 8, 16, 16, 16, 16)
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BOXES = [torch.tensor([[4.0, 6, 30, 28], [40, 40, 60, 62]]), torch.tensor([[10.0, 10, 20, 20]])]


@pytest.fixture
def detector() -> TreeDetector:
    model = TreeDetector(SMALL)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    recalibrate_batch_norm(model, [IMAGES])  # else a fresh network fades to its biases, and nothing is lost by a zero
    return model.eval()


@pytest.fixture
def attention(detector: TreeDetector) -> FeatureAttention:
    return FeatureAttention(detector, (IMAGES,), [(IMAGES, BOXES)])


def by_hand(before: Tensor, after: Tensor, boxes: list[Tensor], stride: int) -> float:
    """The loss of one feature map, cell by cell."""
    losses = []
    for old, new, own in zip(before, after, boxes, strict=True):
        energy = [each.square().sum(0) for each in (old, new)]
        q, changed = (each / each.square().sum().sqrt() for each in energy)
        above = below = 0.0
        for y in range(q.shape[0]):
            for x in range(q.shape[1]):
                weights = [0.0]
                for left, top, right, bottom in (own / stride).tolist():
                    if left < x + 1 and right > x and top < y + 1 and bottom > y:
                        weights.append(1 / max(1.0, (right - left) * (bottom - top)))
                above += max(weights) * abs(float(q[y, x] - changed[y, x]))
                below += max(weights) * float(q[y, x])
        losses.append(above / (below + 1e-9))
    return sum(losses) / len(losses)


def test_the_loss_is_the_formula(detector: TreeDetector, attention: FeatureAttention) -> None:
    zeroed = copy.deepcopy(detector)
    with torch.no_grad():
        zeroed.lateral8[1].weight[:5] = 0
        zeroed.lateral8[1].bias[:5] = 0
    features: list[dict[str, Tensor]] = []
    for model in (detector, zeroed):
        seen: dict[str, Tensor] = {}
        model.head8.register_forward_pre_hook(lambda m, args, seen=seen: seen.update(p8=args[0]))
        with torch.no_grad():
            model(IMAGES)
        features.append(seen)
    found = attention.of(zeroed)
    wanted = by_hand(features[0]["p8"], features[1]["p8"], BOXES, 8)
    assert found.per_tap[attention.taps[1]] == pytest.approx(wanted, rel=1e-4)
    assert found.total == pytest.approx(sum(found.per_tap.values()) / len(found.per_tap))


def test_nothing_changed_is_zero_and_everything_lost_is_one(
    detector: TreeDetector, attention: FeatureAttention
) -> None:
    assert attention.of(detector).total == 0
    lost = attention_loss(torch.rand(1, 4, 5, 5), torch.zeros(1, 4, 5, 5), torch.ones(1, 5, 5))
    assert float(lost) == pytest.approx(1)


def test_the_loss_is_that_after_batch_norms_are_measured_again(detector: TreeDetector) -> None:
    """On the batch that the statistics are measured on, moved statistics are measured ones."""
    detector, images = detector.double(), torch.rand(4, 3, 128, 128, dtype=torch.float64)
    boxes = [BOXES[0].double()] * 4
    recalibrate_batch_norm(detector, [images])
    zeroed = copy.deepcopy(detector)
    with torch.no_grad():
        for name in ("stage4.first.1", "stage8.0.1"):
            norm = zeroed.get_submodule(name)
            norm.weight[::2], norm.bias[::2] = 0, 0
    measured = copy.deepcopy(zeroed)
    recalibrate_batch_norm(measured, [images])
    moved, plain = (
        FeatureAttention(detector, (images,), [(images, boxes)], recalibrated=each) for each in (True, False)
    )
    wanted = plain.of(measured).total
    assert moved.of(zeroed).total == pytest.approx(wanted, rel=2e-2)  # running variances are unbiased
    assert plain.of(zeroed).total != pytest.approx(wanted, rel=5e-2)


def test_a_change_counts_where_it_reaches(detector: TreeDetector, attention: FeatureAttention) -> None:
    zeros = torch.zeros(16)
    (loss,) = attention.losses([{"head8.score_tower.1.weight": zeros, "head8.score_tower.1.bias": zeros}])
    assert loss.total == pytest.approx(1) and len(loss.per_tap) == 1
    assert attention.reaches(["head8.score_tower.1.weight"])
    assert not attention.reaches(["head8.score.weight"])


def test_several_changes_are_each_measured_alone(detector: TreeDetector, attention: FeatureAttention) -> None:
    changes = [{f"stage{s}.0.1.weight": torch.linspace(0, 1, 16)} for s in (8, 16, 32)]
    together = attention.losses(changes)
    for change, loss in zip(changes, together, strict=True):
        changed = copy.deepcopy(detector)
        changed.load_state_dict(change, strict=False)
        assert loss.total == pytest.approx(attention.of(changed).total, rel=1e-5)


def test_the_model_and_its_mode_are_left_alone(detector: TreeDetector) -> None:
    detector.train()
    detector.stage8.eval()
    before = copy.deepcopy(detector.state_dict())
    modes = [m.training for m in detector.modules()]
    FeatureAttention(detector, (IMAGES,), [(IMAGES, BOXES)]).of(detector)
    assert modes == [m.training for m in detector.modules()]
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())


def test_classes_are_kept_apart(detector: TreeDetector) -> None:
    targets = [
        {"boxes": BOXES[0], "labels": torch.tensor([1, 0])},
        {"boxes": BOXES[1], "labels": torch.tensor([1])},
    ]
    attention = FeatureAttention(detector, (IMAGES,), [(IMAGES, targets)], class_names=("ship", "vehicle"))
    change = {"stage4.first.1.weight": torch.zeros(8), "stage4.first.1.bias": torch.zeros(8)}
    (loss,) = attention.losses([change], per_class=True)
    assert list(loss.per_class) == ["ship", "vehicle"]
    only = [[BOXES[0][1:], torch.zeros(0, 4)], [BOXES[0][:1], BOXES[1]]]
    for (name, found), boxes in zip(loss.per_class.items(), only, strict=True):
        (alone,) = FeatureAttention(detector, (IMAGES,), [(IMAGES, boxes)]).losses([change])
        assert found == pytest.approx(alone.total, rel=1e-5), name


def test_small_targets_count_as_much_as_large_ones() -> None:
    mask = target_mask(torch.tensor([[0.0, 0, 32, 32], [48, 48, 56, 56]]), (64, 64), (8, 8))
    assert float(mask[:4, :4].sum()) == pytest.approx(1) == float(mask[6, 6])
    assert float(mask.sum()) == pytest.approx(2)
    tiny = target_mask(torch.tensor([[1.0, 1, 2, 2]]), (64, 64), (8, 8))
    assert float(tiny[0, 0]) == 1 and float(tiny.sum()) == 1, "a target smaller than a cell counts as one cell"


def test_images_without_targets_are_left_out(detector: TreeDetector) -> None:
    change = {"stage4.first.1.weight": torch.zeros(8)}
    more = torch.cat((IMAGES, IMAGES[:1]))
    batches = [(IMAGES, BOXES)], [(more, [*BOXES, torch.zeros(0, 4)])]  # statistics are those of all images of a batch
    few, wider = (FeatureAttention(detector, (each[0][0],), each, recalibrated=False) for each in batches)
    assert wider.losses([change])[0].total == pytest.approx(few.losses([change])[0].total, rel=1e-5)


def test_batches_of_other_sizes_are_taken(detector: TreeDetector) -> None:
    small = FeatureAttention(detector, (IMAGES,), [(IMAGES, BOXES), (IMAGES[:1, :, :32, :32], BOXES[1:])])
    assert small.losses([{"stage4.first.1.weight": torch.zeros(8)}])[0].total > 0


@pytest.mark.parametrize("size", [(4, 4), (17, 64)])
def test_maps_are_the_same_tensors_for_every_size(size: tuple[int, int]) -> None:
    """Alone, these sizes have no two maps of the image, or none."""
    torch.manual_seed(0)
    net, zeros = Shared().eval(), {"body.0.0.weight": torch.zeros(8, 3, 3, 3)}
    small = [(torch.rand(1, 3, *size), [torch.tensor([[1.0, 1, 4, 3]])])]
    both = FeatureAttention(net, (IMAGES,), [(IMAGES, BOXES), *small])
    names = ("head.1", "head.1@1")
    alone = [
        FeatureAttention(net, (batch[0],), [batch], taps=names).losses([zeros])[0]
        for batch in ((IMAGES, BOXES), *small)
    ]
    found = both.losses([zeros])[0]
    assert tuple(found.per_tap) == both.taps == names
    for name in names:
        assert found.per_tap[name] == pytest.approx((2 * alone[0].per_tap[name] + alone[1].per_tap[name]) / 3)


class Wider(nn.Module):
    """Sums, which are no module's results, and another one before them in images that are large."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.shape[2] > 32:
            x = x + x.mean()
        found: Tensor = self.head(self.first(x) + self.second(x))
        return found


def test_a_map_that_a_size_has_not_is_refused() -> None:
    small = [(IMAGES[:1, :, :32, :32], BOXES[1:])]
    with pytest.raises(InputError, match=r"inputs of \(1, 3, 32, 32\) has no 'add_1' as that for the first example"):
        FeatureAttention(Wider(), (IMAGES,), [(IMAGES, BOXES), *small]).of(Wider())
    with pytest.raises(InputError, match=r"\(2, 3, 64, 64\) has no 'add' as that"):  # but another of that name
        FeatureAttention(Wider(), small[0][:1], [(IMAGES, BOXES), *small]).of(Wider())
    narrow = [(IMAGES[:1, :, :, :32], BOXES[1:])]
    FeatureAttention(Wider(), (IMAGES,), [(IMAGES, BOXES), *narrow]).of(Wider())


class Gated(nn.Module):
    """A detector that is called with a mapping and a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Shared()

    def forward(self, image: Tensor, more: dict[str, Tensor], doubled: bool) -> list[Tensor]:
        return self.body(image * (more["scale"] if doubled else more["shift"]))  # type: ignore[no-any-return]


def test_arguments_may_be_nested() -> None:
    net, more = Gated().eval(), {"shift": torch.tensor(0.0), "scale": torch.tensor(2.0)}
    zeros = {"body.body.0.0.weight": torch.zeros(8, 3, 3, 3)}
    found = FeatureAttention(net, (IMAGES, more, True), [((IMAGES, more, True), BOXES)]).losses([zeros])[0]
    wanted = FeatureAttention(net.body, (IMAGES,), [(2 * IMAGES, BOXES)]).losses(
        [{"body.0.0.weight": torch.zeros(8, 3, 3, 3)}]
    )
    assert found.total == pytest.approx(wanted[0].total)


class Shifted(nn.Module):
    """A constant is made on the device of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.conv(x) + torch.ones(4, 1, 1, device=x.device))
        return found


def test_what_is_computed_is_told_without_the_device() -> None:
    """The processes of a torchrun have a device each, and share their curves."""
    program = Program(evaluation_graph(Shifted(), (IMAGES,)), rule_for)
    text = Replay(program.module, found_feature_maps(program)).text
    assert "aten.ones" in text and "device" in text and "cpu" not in text


def test_only_the_part_of_a_box_in_the_image_counts() -> None:
    inside, cells = torch.tensor([[0.0, 16, 64, 64]]), (8, 8)
    for beyond in ([-1e7, 16, 64, 1e7], [0, 16, 3e38, 65], [-5.0, 16, 70, 90]):
        found = target_mask(torch.tensor([beyond]), (64, 64), cells)
        assert torch.equal(found, target_mask(inside, (64, 64), cells)) and float(found.sum()) == pytest.approx(1)


def test_a_term_of_images_without_boxes_is_zero(detector: TreeDetector, attention: FeatureAttention) -> None:
    with torch.no_grad():
        detector.stage8[0][1].weight.mul_(2)
    term = attention.term(IMAGES, [torch.zeros(0, 4)] * 2)
    term.backward()
    assert float(term.detach()) == 0 and not any(p.grad is not None and p.grad.any() for p in detector.parameters())
    assert float(attention.term(IMAGES, BOXES).detach()) > 0


def test_a_term_reaches_parameters_that_were_replaced() -> None:
    net = Shared().eval()
    attention = FeatureAttention(net, (IMAGES,), [(IMAGES, BOXES)])
    net.load_state_dict({name: value + torch.rand_like(value) for name, value in net.state_dict().items()}, assign=True)
    attention.term(IMAGES, BOXES).backward()
    assert net.body[0][0].weight.grad is not None
    with pytest.raises(InputError, match="torch.float32, to which attention refers"):
        attention.of(copy.deepcopy(net).double())
    net.double()
    with pytest.raises(InputError, match="torch.float32, to which attention refers"):
        attention.term(IMAGES.double(), BOXES)


def test_a_narrower_model_learns_the_attention(detector: TreeDetector, attention: FeatureAttention) -> None:
    assert float(attention.term(IMAGES, BOXES, model=copy.deepcopy(detector)).detach()) == pytest.approx(0, abs=1e-5)
    narrow = TreeDetector(Widths(8, 8, 16, 8, 8, 8)).eval()
    loss = attention.term(IMAGES, BOXES, model=narrow)
    loss.backward()
    assert float(loss.detach()) > 0.01 and narrow.stem[0][0].weight.grad is not None
    assert all(each.grad is None for each in detector.parameters())
    with pytest.raises(InputError, match="the model has"):
        attention.term(IMAGES, BOXES, model=Shared().eval())


def test_as_a_term_it_has_gradients_and_leads_back(detector: TreeDetector, attention: FeatureAttention) -> None:
    with torch.no_grad():
        detector.stage8[0][1].weight.mul_(torch.linspace(0.2, 2, 16))
    optimizer = torch.optim.Adam(detector.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        term = attention.term(IMAGES, BOXES)
        term.backward()
        optimizer.step()
        losses.append(float(term.detach()))
    assert losses[0] > 0.01 and losses[-1] < 0.7 * losses[0]


class Coupled(nn.Module):
    """One prediction a scale, on top of a shared stem: YOLOv5's kind of head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.heads = nn.ModuleList(nn.Conv2d(8, 5, 1) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = F.relu(self.stem(x))
        coarse = F.relu(self.down(fine))
        return [self.heads[0](fine).sigmoid(), self.heads[1](coarse).sigmoid()]


def test_the_maps_that_enter_the_heads_are_found(detector: TreeDetector, attention: FeatureAttention) -> None:
    program = Program(evaluation_graph(detector, (IMAGES,)), rule_for)
    shapes = [program.shape(node)[1:] for node in found_feature_maps(program)]
    assert shapes == [(16, 4, 4), (16, 8, 8), *[(16, 8, 8)] * 2, *[(16, 4, 4)] * 2]
    coupled = Program(evaluation_graph(Coupled(), (IMAGES,)), rule_for)
    assert [coupled.shape(node)[2:] for node in found_feature_maps(coupled)] == [(16, 16), (8, 8)]


def test_maps_can_be_named(detector: TreeDetector) -> None:
    named = FeatureAttention(detector, (IMAGES,), [(IMAGES, BOXES)], taps=("stage8", "lateral8.2"))
    assert len(named.taps) == 2 and not named.reaches(["stage16.0.1.weight"])


def test_attention_maps_have_unit_norm() -> None:
    q = attention_map(torch.rand(3, 4, 5, 6))
    torch.testing.assert_close(q.flatten(1).norm(dim=1), torch.ones(3))


ONE = torch.rand(1, 3, 64, 64)
BAD: dict[str, tuple[Any, str]] = {
    "no boxes anywhere": ([(ONE, [torch.zeros(0, 4)])], "1 batches without a single box"),
    "no batches": ([], "0 batches"),
    "a batch without targets": ([ONE], "batch 0 is a Tensor without targets"),
    "targets that are None": ([(ONE, [None])], "batch 0, image 0 has no targets"),
    "fewer targets than images": ([(IMAGES, BOXES), (IMAGES, BOXES[:1])], "batch 1 has 2 images and 1 targets"),
    "a box outside": ([(ONE, [torch.tensor([[70.0, 3, 80, 9]])])], r"box 0 \(70, 3, 80, 9\) lies outside .* 64 x 64"),
    "an inverted box": ([(ONE, [torch.tensor([[9.0, 3, 5, 9]])])], r"box 0 \(9, 3, 5, 9\) is not left, top"),
    "a box of NaN": ([(ONE, [torch.tensor([[float("nan"), 3, 5, 9]])])], "box 0 .* is not left, top"),
    "an infinite box": (
        [(ONE, [torch.tensor([[0.0, 0, torch.inf, torch.inf]])])],
        r"box 0 \(0, 0, inf, inf\) .* finite",
    ),
    "complex boxes": ([(ONE, [BOXES[0].to(torch.complex64)])], "boxes are torch.complex64"),
    "a label of NaN": ([(ONE, [{"boxes": BOXES[1], "labels": torch.tensor([torch.nan])}])], "a label is nan"),
    "half a label": ([(ONE, [{"boxes": BOXES[0], "labels": torch.tensor([1, 1.75])}])], "image 0: a label is 1.75"),
    "no iterable": (None, "batches is a NoneType"),
    "boxes of five numbers": ([(ONE, [torch.ones(2, 5)])], r"boxes have shape \(2, 5\)"),
    "labels for other boxes": ([(ONE, [{"boxes": BOXES[0], "labels": torch.ones(3)}])], "2 boxes need 'labels'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_batches(case: str) -> None:
    batches, message = BAD[case]
    with pytest.raises(InputError, match=message):
        FeatureAttention(Coupled(), (ONE,), batches)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "model is a NoneType"),
    "no arguments": ({"args": None}, "args is a NoneType"),
    "an array": ({"args": (ONE, ONE.numpy())}, "args hold a ndarray"),
    "no taps": ({"taps": []}, "taps is empty"),
    "one tap": ({"taps": "stage8"}, "taps is 'stage8'; expected a sequence"),
    "taps by number": ({"taps": [3]}, r"taps\[0\] is a int"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arguments_of_a_wrong_type(case: str) -> None:
    changed, message = WRONG[case]
    arguments: dict[str, Any] = {"model": Shared(), "args": (ONE,), "batches": [(ONE, BOXES[:1])], **changed}
    with pytest.raises(InputError, match=message):
        FeatureAttention(**arguments)


def test_bad_models_and_taps(detector: TreeDetector) -> None:
    batches = [(IMAGES, BOXES)]
    with pytest.raises(InputError, match="no detector's heads are found"):
        FeatureAttention(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)), (IMAGES,), batches)
    with pytest.raises(InputError, match="no module or node 'stage9'"):
        FeatureAttention(detector, (IMAGES,), batches, taps=("stage9",))
    with pytest.raises(InputError, match="label 1 has no name"):
        targets = [{"boxes": boxes, "labels": torch.ones(len(boxes))} for boxes in BOXES]
        FeatureAttention(detector, (IMAGES,), [(IMAGES, targets)], class_names=("tree",))
    with pytest.raises(InputError, match="model is a NoneType"):
        FeatureAttention(detector, (IMAGES,), batches).of(None)  # type: ignore[arg-type]  # that is the test
    with torch.no_grad():
        detector.stage4.first[1].weight.fill_(1e30)
        detector.stage4.second[1].weight.fill_(1e30)
    with pytest.raises(InputError, match=r"attention loss at \w+ is nan"):
        FeatureAttention(detector, (IMAGES,), batches).losses([{"stage4.first.1.bias": torch.ones(8)}])


class Shared(nn.Module):
    """Two sizes of map, one head for both."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Sequential(nn.Conv2d(c, 8, 3, 2, 1), nn.ReLU()) for c in (3, 8)])
        self.head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        self.score = nn.Conv2d(8, 1, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        first = self.body[0](image)
        return [self.score(self.head(each)) for each in (first, self.body[1](first))]


def test_maps_are_called_by_their_modules() -> None:
    torch.manual_seed(0)
    net = Shared().eval()
    found = FeatureAttention(net, (IMAGES,), [(IMAGES, BOXES)])
    assert found.taps == ("head.1", "head.1@1")
    assert list(found.of(net).per_tap) == ["head.1", "head.1@1"]
    for names, nodes in ((found.taps, found.nodes), (("head",), found.nodes), (("head@1",), found.nodes[1:])):
        assert FeatureAttention(net, (IMAGES,), [(IMAGES, BOXES)], taps=names).nodes == nodes
    assert FeatureAttention(net, (IMAGES,), [(IMAGES, BOXES)], taps=found.nodes).taps == found.taps
