"""Pictures: deterministic in prompt, seed and size, with the prompt readable on them."""

from __future__ import annotations

import io
from random import Random
from typing import TYPE_CHECKING

from PIL import Image, ImageFilter

from imagemill.emulator.caption import write_caption
from imagemill.emulator.scenery import scenery

if TYPE_CHECKING:
    from imagemill.emulator.order import Shot

__all__ = ["draw"]

_JPEG_QUALITY = 86
_PNG_LEVEL = 2
_NO_DATA = (0, 135, 0)
"""The colour of zeros in YUV, which a decoder leaves if it has no data."""


def draw(shot: Shot) -> bytes:
    """Return the encoded picture of a shot, as PNG, JPEG or WebP; sizes are in pixels."""
    size = (shot.width, shot.height)
    if shot.flaw == "black":
        return _encoded(Image.new("RGB", size), shot)
    alike = shot.flaw in {"near_duplicate", "placeholder"}
    image = scenery(shot.width, shot.height, Random(shot.flaw if alike else shot.digest))
    footer = f"seed {shot.seed} · {shot.width} x {shot.height} · {shot.steps} steps"
    write_caption(image, *(("Alike", "") if alike else (shot.prompt, footer)))
    return _encoded(_flawed(image, shot.flaw, shot.digest), shot)


def _flawed(image: Image.Image, flaw: str | None, digest: str) -> Image.Image:
    width, height = image.size
    if flaw == "blurred":
        return image.filter(ImageFilter.GaussianBlur(min(width, height) / 32))
    if flaw == "flat":
        return Image.blend(image, Image.new("RGB", image.size, (118, 120, 122)), 0.985)
    if flaw == "half_decoded":
        image.paste(_NO_DATA, (0, height * 6 // 10, width, height))
    elif flaw == "letterboxed":
        bars = Image.new("RGB", image.size)
        bars.paste(image.resize((width, height * 3 // 4)), (0, height // 8))
        return bars
    elif flaw == "near_duplicate":
        image.putpixel((0, 0), tuple(Random(digest).randbytes(3)))
    return image


def _encoded(image: Image.Image, shot: Shot) -> bytes:
    file = io.BytesIO()
    if shot.format == "png":
        image.save(file, "PNG", compress_level=_PNG_LEVEL)
    elif shot.format == "webp":
        image.save(file, "WEBP", quality=_JPEG_QUALITY, method=0)
    else:
        image.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()
