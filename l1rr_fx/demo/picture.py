"""The demo's picture: the same image side by side with different boxes drawn on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CAPTION_HEIGHT = 40


@dataclass(frozen=True)
class Panel:
    """One copy of the image: its caption and the boxes to draw, (n, 4) in pixels, in one colour."""

    caption: str
    boxes: Tensor
    colour: tuple[int, int, int]


def write_side_by_side(image: Tensor, panels: Sequence[Panel], path: Path, *, width: int = 900) -> None:
    """Write panels, each `width` pixels wide, over `image`, uint8 of shape (3, h, w). The suffix says the format."""
    scale = width / image.shape[2]
    height = round(image.shape[1] * scale)
    ground = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (len(panels) * (width + 8) - 8, height + CAPTION_HEIGHT), "white")
    for n, panel in enumerate(panels):
        sheet.paste(_drawn(ground, panel, scale), (n * (width + 8), CAPTION_HEIGHT))
        ImageDraw.Draw(sheet).text((n * (width + 8) + 8, 8), panel.caption, "black", ImageFont.load_default(20))
    unfinished = path.with_name("part-" + path.name)
    sheet.save(unfinished)
    os.replace(unfinished, path)


def _drawn(ground: Image.Image, panel: Panel, scale: float) -> Image.Image:
    picture = ground.copy()
    draw = ImageDraw.Draw(picture)
    for left, top, right, bottom in (panel.boxes * scale).tolist():
        draw.rectangle((left, top, right, bottom), outline=panel.colour, width=2)
    return picture
