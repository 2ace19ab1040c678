"""A model out of a `.pt` checkpoint: one of Ultralytics, or one of `torch.save(model, path)`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from l1rr_fx.support.files import blamed
from passes.errors import InputError, first_line

HELD = ("ema", "model")
"""The keys under which checkpoints hold a whole model, the average first."""


def checkpoint(path: Path, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model of a checkpoint, in float32 and eval mode, and its example inputs.

    Without `inputs`, those of Ultralytics get one blank image of the size that they were trained with. InputError for a
    file without a whole model, saying what to do.
    """
    with blamed(path, "read"):
        if not path.is_file():
            raise InputError(f"{path}: there is no such file")
    classes = _classes(path)
    if any(name.startswith("ultralytics.") for name in classes):
        return _of_ultralytics(path, inputs)
    model = _model(_read(path, weights_only=not classes), path)
    if not inputs:
        raise InputError(f"{path} holds no example input: say its --shape, such as 1x3x640x640")
    return model.float().eval(), inputs


def _classes(path: Path) -> list[str]:
    """The classes that a checkpoint holds besides tensors and containers; nothing of it is run for that."""
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as error:  # torch and pickle raise anything on a damaged file
        raise InputError(f"{path}: this is not a checkpoint of torch.save: {first_line(error)}") from error


def _of_ultralytics(path: Path, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    from l1rr_fx.integrations.ultralytics.networks import blank_image, load

    model = load(path)
    if inputs:
        return model, inputs
    settings: Any = getattr(model, "args", None)
    size = settings.get("imgsz") if isinstance(settings, Mapping) else getattr(settings, "imgsz", None)
    return model, (blank_image(model, size if isinstance(size, int) else 640),)


def _read(path: Path, *, weights_only: bool) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")  # the model's class may be of the working directory, as MODULE:FUNCTION is
    try:
        return torch.load(path, map_location="cpu", weights_only=weights_only)
    except Exception as error:  # torch, pickle and the user's classes raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{path}: torch.load cannot read it: {reason}") from error


def _model(content: Any, path: Path) -> nn.Module:
    if isinstance(content, nn.Module):
        return content
    held = content if isinstance(content, Mapping) else {}
    found = next((held[key] for key in HELD if isinstance(held.get(key), nn.Module)), None)
    if not isinstance(found, nn.Module):
        raise InputError(
            f"{path} holds weights without the network that they belong to: write a function that builds the network, "
            "calls load_state_dict and returns (model, args), and name it as package.module:function"
        )
    return found
