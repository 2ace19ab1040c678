"""Masks of torch.nn.utils.prune and parametrizations: understood as they are, or made plain first; and models that take
and return structures."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm
from torch.utils import _pytree as pytree

import l1rr_fx
from l1rr_fx.integrations.dynamo import backend
from l1rr_fx.integrations.masks import plain_weights
from tests.oracle import relative_error

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DEAD = list(range(0, 16, 2))


class EverySecond(nn.Module):
    """A parametrization that zeroes the rows DEAD of a tensor."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.arange(16) % 2).float().view(-1, *[1] * (rank - 1)))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.mask


def masks(layer: nn.Conv2d) -> None:
    for amount in (0.25, 0.5):  # two masks on one weight
        prune.ln_structured(layer, "weight", amount, n=2, dim=0)
    prune.custom_from_mask(layer, "bias", layer.weight_mask.flatten(1).any(1))


def parametrization(layer: nn.Conv2d) -> None:
    parametrize.register_parametrization(layer, "weight", EverySecond(4))
    parametrize.register_parametrization(layer, "bias", EverySecond(1))


@torch.no_grad()
def new_weight_norm(layer: nn.Conv2d) -> None:
    parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0[DEAD] = 0  # type: ignore[union-attr, operator]
    layer.bias[DEAD] = 0  # type: ignore[index]


@torch.no_grad()
def old_weight_norm(layer: nn.Conv2d) -> None:
    weight_norm(layer)
    layer.weight_g[DEAD] = 0  # type: ignore[index, operator]
    layer.bias[DEAD] = 0  # type: ignore[index]


@torch.no_grad()
def spectral_norm(layer: nn.Conv2d) -> None:
    layer.weight[DEAD] = layer.bias[DEAD] = 0  # type: ignore[index]
    parametrizations.spectral_norm(layer)


@torch.no_grad()
def old_spectral_norm(layer: nn.Conv2d) -> None:
    layer.weight[DEAD] = layer.bias[DEAD] = 0  # type: ignore[index]
    torch.nn.utils.spectral_norm(layer)


def mask_of_old_weight_norm(layer: nn.Conv2d) -> None:
    """One hook computes what another reads."""
    old_weight_norm(layer)
    prune.l1_unstructured(layer, "weight_v", 0.3)


def weight_norm_of_a_mask(layer: nn.Conv2d) -> None:
    """A parametrization of what a hook reads."""
    prune.custom_from_mask(layer, "weight", EverySecond(4).mask.expand(16, *layer.weight.shape[1:]))
    prune.custom_from_mask(layer, "bias", EverySecond(1).mask)
    parametrizations.weight_norm(layer, "weight_orig")


def masked(how: Callable[[nn.Conv2d], None]) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    for layer in (model[0], model[2]):
        how(layer)
    model(X).sum().backward()  # weights that hooks compute have a history now
    return model


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


ALL = [masks, parametrization, new_weight_norm, spectral_norm, old_spectral_norm, weight_norm_of_a_mask]
DEPRECATED = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
OLD = [pytest.param(how, marks=DEPRECATED) for how in (old_weight_norm, mask_of_old_weight_norm)]


@pytest.mark.parametrize("how", [*ALL, *OLD])
def test_plain_weights_are_those_of_a_call(how: Callable[[nn.Conv2d], None]) -> None:
    model = masked(how)
    before, expected = model.state_dict(), model(X)
    plain = plain_weights(model)
    assert sorted(shapes(plain)) == sorted(f"{layer}.{name}" for layer in (0, 2, 4) for name in ("weight", "bias"))
    torch.testing.assert_close(plain(X), expected)
    assert all(parameter.requires_grad for parameter in plain.parameters())
    torch.testing.assert_close(model(X), expected, rtol=0, atol=0)  # the model has kept what computes its weights
    assert list(model.state_dict()) == list(before) and all(
        map(torch.equal, model.state_dict().values(), before.values())
    )
    small = l1rr_fx.prune(plain, (X,)).module
    alive = sum(bool(row.any()) for row in plain[0].weight)
    assert shapes(small)["2.weight"] == (8 if how is not masks else alive, alive, 3, 3)
    with torch.no_grad():
        assert relative_error(small(X), expected) < 1e-6


@DEPRECATED
@pytest.mark.parametrize("how", [weight_norm, parametrizations.weight_norm])
def test_plain_weights_of_a_recurrent_layer(how: Callable[..., Any]) -> None:
    """It keeps a list of its weights beside, which has a history too."""
    model = nn.LSTM(4, 8).eval()
    how(model, "weight_hh_l0")
    x = torch.rand(5, 2, 4)
    model(x)[0].sum().backward()
    plain = plain_weights(model)
    assert sorted(shapes(plain)) == ["bias_hh_l0", "bias_ih_l0", "weight_hh_l0", "weight_ih_l0"]
    torch.testing.assert_close(plain(x)[0], model(x)[0])


@pytest.mark.parametrize("how", [masks, parametrization])
def test_masks_are_followed_as_they_are(how: Callable[[nn.Conv2d], None]) -> None:
    model = masked(how)
    small = l1rr_fx.prune(model, (X,)).module
    assert sum(p.numel() for p in small.parameters()) == sum(
        p.numel() for p in l1rr_fx.prune(plain_weights(model), (X,)).module.parameters()
    )
    with torch.no_grad():
        assert relative_error(small(X), model(X)) < 1e-6


# Models that take and return structures


@dataclasses.dataclass
class Output:
    """As of Hugging Face's models: fields by name, some of them None."""

    logits: Tensor
    hidden: Tensor | None = None


class Answer(OrderedDict[str, Tensor]):
    """The same as a mapping, known to torch's pytrees, as their ModelOutput makes itself."""


pytree.register_pytree_node(
    Answer,
    lambda answer: (list(answer.values()), list(answer)),
    lambda values, names: Answer(zip(names, values, strict=True)),
    serialized_type_name="tests.Answer",
)
torch.export.register_dataclass(Output)


class Encoder(nn.Module):
    """Keywords in, a structure out."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)
        self.kind = kind
        with torch.no_grad():
            self.up.weight[::2] = self.up.bias[::2] = 0

    def forward(self, input_ids: Tensor, *, attention_mask: Tensor, output_hidden: bool = False) -> Any:
        h = self.embedding(input_ids) * attention_mask[..., None]
        h = h + self.down(self.up(h).relu())
        logits = self.head(h)
        if self.kind == "dataclass":
            return Output(logits, h if output_hidden else None)
        return Answer(logits=logits) if self.kind == "mapping" else {"logits": logits, "layers": [h, (logits, None)]}


class Detector(nn.Module):
    """As of mmdetection's: one forward for everything, samples in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.neck, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 5, 1)
        with torch.no_grad():
            self.neck.weight[::2] = self.neck.bias[::2] = 0  # type: ignore[index]

    def forward(self, inputs: dict[str, Any], data_samples: list[Any] | None = None, mode: str = "tensor") -> Any:
        scores = self.head(self.neck(inputs["images"]) * inputs["meta"]["scale"])
        return {"scores": scores} if mode == "predict" else (scores, [data_samples])


IDS = {"input_ids": torch.randint(20, (2, 5)), "attention_mask": torch.ones(2, 5), "output_hidden": True}
IMAGES = {"images": X, "meta": {"scale": torch.tensor(2.0)}}
CASES = {
    "dictionary": (lambda: Encoder("dictionary"), (), IDS),
    "dataclass": (lambda: Encoder("dataclass"), (), IDS),
    "mapping": (lambda: Encoder("mapping"), (), IDS),
    "detector": (Detector, (IMAGES,), {"mode": "predict"}),
    "detector, tensors": (Detector, (IMAGES, None), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_structures_go_in_and_come_out(name: str) -> None:
    make, args, kwargs = CASES[name]
    model = make().eval().requires_grad_(False)
    wanted = model(*args, **kwargs)
    pruned = l1rr_fx.prune(model, args, kwargs)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, options={"then": "eager"})
    for run in (pruned.module, compiled):
        found = run(*args, **kwargs)
        assert type(found) is type(wanted)
        assert relative_error(found, wanted) < 1e-6
    assert not pruned.report.pieces
    assert sum(p.numel() for p in pruned.module.parameters()) < sum(p.numel() for p in model.parameters())
