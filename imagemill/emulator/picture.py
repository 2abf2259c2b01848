"""Pictures: deterministic in prompt, seed and size, with the prompt readable on them."""

from __future__ import annotations

import io
from random import Random
from typing import TYPE_CHECKING

from PIL import Image

from imagemill.emulator.caption import write_caption
from imagemill.emulator.scenery import scenery

if TYPE_CHECKING:
    from imagemill.emulator.order import Shot

__all__ = ["draw"]

_JPEG_QUALITY = 86
_PNG_LEVEL = 2


def draw(shot: Shot) -> bytes:
    """Return the encoded picture of a shot, as PNG, JPEG or WebP; sizes are in pixels."""
    size = (shot.width, shot.height)
    if shot.black:
        return _encoded(Image.new("RGB", size), shot)
    image = scenery(shot.width, shot.height, Random(shot.digest))
    footer = f"seed {shot.seed} · {shot.width} x {shot.height} · {shot.steps} steps"
    write_caption(image, shot.prompt, footer)
    return _encoded(image, shot)


def _encoded(image: Image.Image, shot: Shot) -> bytes:
    file = io.BytesIO()
    if shot.format == "png":
        image.save(file, "PNG", compress_level=_PNG_LEVEL)
    elif shot.format == "webp":
        image.save(file, "WEBP", quality=_JPEG_QUALITY, method=0)
    else:
        image.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
