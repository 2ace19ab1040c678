"""A small zoo: networks of torchvision with lively random weights and a small image each."""

from __future__ import annotations

import importlib
from functools import partial

import torch
from torch import nn

from l1rr_fx.conformance.cases import Args, Case, randoms
from l1rr_fx.testing.zeros import randomised
from passes.errors import InputError

NAMES = (
    "resnet18",
    "vgg11_bn",
    "squeezenet1_1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mnasnet0_5",
    "efficientnet_b0",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
    "densenet121",
    "googlenet",
    "convnext_tiny",
    "swin_t",
)
SIZE = 64


def zoo() -> tuple[Case, ...]:
    """The networks as cases; InputError if torchvision is not there."""
    try:
        importlib.import_module("torchvision")
    except ImportError as error:
        raise InputError("the zoo needs torchvision: pip install torchvision") from error
    return tuple(Case(f"zoo/{name}", "zoo", f"torchvision's {name}", partial(_build, name)) for name in NAMES)


def _build(name: str) -> tuple[nn.Module, Args]:
    models = importlib.import_module("torchvision.models")
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    model: nn.Module = models.get_model(name, weights=None, **options)
    return randomised(model), randoms((1, 3, SIZE, SIZE))
