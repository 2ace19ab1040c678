"""A pruned network is a network like any other: it trains, copies, saves, compiles and exports; optimizers go on."""

from __future__ import annotations

import copy
import io
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

import l1rr_fx
from l1rr_fx.pruning.pruned import Pruned
from l1rr_fx.testing import differences, kill, randomised
from tests.op_cases import Args, cba, cbn, head, image, net

TOLERANCE = 1e-10


def _forward(m: Any, x: Tensor) -> list[Tensor]:
    """Residual addition, C2f's chunk, two scales fused by addition and concatenation, a shared head, dropout."""
    stem = m.stem(x)
    fine = F.relu(m.a(stem) + m.b(stem))
    left, right = m.cv1(fine).chunk(2, 1)
    fine = m.cv2(torch.cat((left, right, m.inner(right)), 1))
    coarse = m.drop(m.down(fine))
    fused = m.top(torch.cat((fine, F.interpolate(coarse, scale_factor=2)), 1))
    return [m.out(fused), m.out(coarse)]


def _detector(dropout: float = 0.0) -> tuple[nn.Module, Args]:
    model, args = net(
        _forward,
        image(),
        stem=cba(3, 8),
        a=cbn(8, 8),
        b=cbn(8, 8),
        cv1=cba(8, 8, 1),
        inner=cba(4, 4),
        cv2=cba(12, 8, 1),
        down=cba(8, 8, s=2),
        top=cba(16, 8, 1),
        drop=nn.Dropout(dropout),
        out=head(8, 4),
    )
    for seed, layer in enumerate(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        dead = torch.randperm(layer.num_features, generator=torch.Generator().manual_seed(seed))
        kill(layer, rows=dead[: layer.num_features // 2].tolist())
    return model, args


@pytest.fixture
def detector() -> tuple[nn.Module, Args]:
    """A zeroed detector in eval mode, half the channels of each batch norm dead, and its inputs."""
    return _detector()


@pytest.fixture
def pruned(detector: tuple[nn.Module, Args]) -> Pruned:
    result = l1rr_fx.prune(*detector, verify=False)
    assert result.report.after.macs < 0.5 * result.report.before.macs
    return result


def _loss(outputs: Iterable[Tensor]) -> Tensor:
    return torch.stack([(output - 0.3).square().mean() for output in outputs]).sum()


def _worst(actual: Any, expected: Any) -> float:
    return max(differences(actual, expected))


def test_train_and_eval_switch_batch_norm(detector: tuple[nn.Module, Args], pruned: Pruned) -> None:
    model, args = detector
    for training in (True, False, True):
        pruned.module.train(training)
        model.train(training)
        assert _worst(pruned.module(*args), model(*args)) <= TOLERANCE
    names = {name for name, _ in pruned.module.named_buffers() if name.endswith("running_mean")}
    assert names, "running statistics keep their names"
    originals = dict(model.named_buffers())
    for name, value in pruned.module.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert torch.equal(value, originals[name])


def test_train_and_eval_switch_dropout() -> None:
    model, args = _detector(dropout=0.5)
    small = l1rr_fx.prune(model, args, verify=False).module
    assert _worst(small(*args), small(*args)) == 0.0
    small.train()
    torch.manual_seed(1)
    first = small(*args)
    assert _worst(small(*args), first) > 1e-3, "dropout draws anew in train mode"
    small.eval()
    assert _worst(small(*args), small(*args)) == 0.0


def test_a_model_captured_in_train_mode_can_be_evaluated() -> None:
    model, args = _detector(dropout=0.5)
    small = l1rr_fx.prune(model.train(), args, verify=False).module
    assert _worst(small.eval()(*args), model.eval()(*args)) <= TOLERANCE


def test_parameters_keep_their_names(detector: tuple[nn.Module, Args], pruned: Pruned) -> None:
    originals = dict(detector[0].named_parameters())
    kept = dict(pruned.module.named_parameters())
    assert kept
    assert set(kept) <= set(originals)
    for name, parameter in kept.items():
        assert torch.equal(parameter, pruned.kept[name].apply(originals[name].detach()))


def test_gradients_reach_every_parameter(pruned: Pruned) -> None:
    small = pruned.module.train()
    _loss(small(*image())).backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.abs().sum() > 0), name


def test_it_learns(pruned: Pruned) -> None:
    small = pruned.module.train()
    optimizer = SGD(small.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = _loss(small(*image()))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_deep_copy_stands_alone(pruned: Pruned) -> None:
    args = image()
    before = pruned.module(*args)
    twin = copy.deepcopy(pruned.module)
    assert _worst(twin(*args), before) == 0.0
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert _worst(pruned.module(*args), before) == 0.0
    assert _worst(twin(*args), before) > 1e-3


def test_the_state_dict_saves_and_loads(pruned: Pruned) -> None:
    args = image()
    file = io.BytesIO()
    torch.save(pruned.module.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(pruned.module)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert _worst(twin(*args), pruned.module(*args)) == 0.0


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_it_compiles(pruned: Pruned, backend: str) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor wants a C++ compiler")
    args = image()
    torch.compiler.reset()
    compiled = torch.compile(pruned.module, backend=backend, fullgraph=True)
    with torch.no_grad():
        assert _worst(compiled(*args), pruned.module(*args)) <= TOLERANCE


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_copy_trains(pruned: Pruned) -> None:
    plain, twin = pruned.module.train(), copy.deepcopy(pruned.module).train()
    torch.compiler.reset()
    _loss(torch.compile(twin, backend="aot_eager")(*image())).backward()
    _loss(plain(*image())).backward()
    for (name, a), (_, b) in zip(twin.named_parameters(), plain.named_parameters(), strict=True):
        assert a.grad is not None and b.grad is not None, name
        assert _worst([a.grad], [b.grad]) <= 1e-8, name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("training", [False, True])
def test_it_exports_again(pruned: Pruned, training: bool) -> None:
    module, args = pruned.module.train(training), image()
    program = torch.export.export(module, args, strict=False)
    assert _worst(program.module()(*args), copy.deepcopy(module)(*args)) <= TOLERANCE
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert _worst(torch.export.load(file).module()(*args), copy.deepcopy(module)(*args)) <= TOLERANCE


@pytest.mark.filterwarnings("ignore")
def test_a_dynamic_batch_survives(detector: tuple[nn.Module, Args]) -> None:
    model, args = detector
    batch = torch.export.Dim("batch", min=2, max=64)
    small = l1rr_fx.prune(model, args, dynamic_shapes=(({0: batch},),), verify=False).module
    more = image(batch=5)
    assert _worst(small(*more), model(*more)) <= TOLERANCE
    program = torch.export.export(small, args, dynamic_shapes=({0: batch},), strict=False)
    assert _worst(program.module()(*more), model(*more)) <= TOLERANCE


@pytest.mark.filterwarnings("ignore")
def test_it_exports_to_onnx(pruned: Pruned, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    module = copy.deepcopy(pruned.module).float().eval()
    args = tuple(x.float() for x in image())
    path = tmp_path / "pruned.onnx"
    torch.onnx.export(module, args, str(path), dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = session.run(
        None, dict(zip([i.name for i in session.get_inputs()], (x.numpy() for x in args), strict=True))
    )
    with torch.no_grad():
        expected = module(*args)
    assert _worst([torch.from_numpy(output) for output in outputs], list(expected)) <= 1e-4  # float32, other kernels


# ---- the optimizer goes on


def _plain(kind: Callable[..., Optimizer], **options: Any) -> Callable[[nn.Module], Optimizer]:
    return lambda model: kind(model.parameters(), **options)


def _grouped(model: nn.Module) -> Optimizer:
    """Weight decay for what has more than one axis only: two groups, as detectors are trained."""
    parameters = list(model.parameters())
    return SGD(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.01, "lr": 0.05},
            {"params": [p for p in parameters if p.ndim <= 1]},
        ],
        lr=0.02,
        momentum=0.9,
        nesterov=True,
    )


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": _plain(SGD, lr=0.05),
    "momentum": _plain(SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": _plain(Adam, lr=0.01),
    "adamw": _plain(AdamW, lr=0.01, amsgrad=True),
    "groups": _grouped,
}


def _held_step(model: nn.Module, optimizer: Optimizer, args: Args, dead: dict[str, Tensor]) -> None:
    """One training step after which what was zero is zero again."""
    optimizer.zero_grad()
    _loss(model(*args)).backward()
    optimizer.step()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in dead:
                parameter.masked_fill_(dead[name], 0.0)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_the_optimizer_goes_on(detector: tuple[nn.Module, Args], make: Callable[[nn.Module], Optimizer]) -> None:
    """Held at zero or removed: training takes the same steps."""
    model, args = detector
    model.train()
    dead = {name: parameter == 0 for name, parameter in model.named_parameters()}
    optimizer = make(model)
    for _ in range(3):
        _held_step(model, optimizer, args, dead)

    pruned = l1rr_fx.prune(model, args, verify=False)
    small = pruned.module.train()
    continued = make(small)
    continued.load_state_dict(l1rr_fx.pruned_optimizer_state(pruned, model, optimizer))

    for _ in range(3):
        _held_step(model, optimizer, args, dead)
        _held_step(small, continued, args, {})
        originals = dict(model.named_parameters())
        for name, parameter in small.named_parameters():
            expected = pruned.kept[name].apply(originals[name].detach())
            assert _worst([parameter.detach()], [expected]) <= 1e-9, name
    assert _worst(small.eval()(*args), model.eval()(*args)) <= 1e-9


def test_an_optimizer_of_another_model_is_refused(detector: tuple[nn.Module, Args], pruned: Pruned) -> None:
    stranger, _ = _detector()
    with pytest.raises(l1rr_fx.InputError):
        l1rr_fx.pruned_optimizer_state(pruned, detector[0], SGD(stranger.parameters(), lr=0.1))


def test_the_types_of_batch_norms_are_the_models(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.SyncBatchNorm(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
    kill(randomised(model.eval())[1], [0, 3])
    image = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    pruned = l1rr_fx.prune(model, (image,))
    pruned.save(tmp_path / "small")
    for small in (pruned.module, l1rr_fx.load(tmp_path / "small").module):
        kinds = [type(each) for each in small.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
        assert kinds == [nn.SyncBatchNorm, nn.BatchNorm2d]
        torch.testing.assert_close(small(image), model(image), rtol=1e-10, atol=1e-10)


def test_a_hook_that_would_never_run_warns() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    small = l1rr_fx.prune(model, (torch.rand(1, 3, 4, 4),)).module
    seen: list[str] = []
    for register in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"):
        with pytest.warns(UserWarning, match="never runs"):
            getattr(small.get_submodule("0"), f"register_{register}")(lambda *_: seen.append("holder"))
    small.get_submodule("1").register_forward_hook(lambda *_: seen.append("norm"))
    small.register_forward_hook(lambda *_: seen.append("network"))
    small(torch.rand(1, 3, 4, 4))
    assert seen == ["norm", "network"]
