"""Captions: the prompt on a panel at the foot of a picture, and a small footer."""

from __future__ import annotations

import functools
import textwrap

from PIL import Image, ImageDraw, ImageFont

__all__ = ["write_caption"]

_PANEL = (16, 18, 28)
_PANEL_OPACITY = 188
_TEXT = (255, 255, 255)
_FOOTER = (206, 210, 222)
_LONGEST_TEXT = 600
_SMALLEST_SIDE = 96
_LINE = 1.28
_WIDER_FACES = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf")


def write_caption(image: Image.Image, text: str, footer: str) -> None:
    """Write text and footer on a panel; a picture too small for it stays as it is."""
    width, height = image.size
    side = min(width, height)
    if side < _SMALLEST_SIDE:
        return
    edge, small = max(6, round(side * 0.035)), max(9, round(side * 0.0205 + 2))
    shown = " ".join("".join(sign if sign.isprintable() else " " for sign in text[:_LONGEST_TEXT]).split())
    lines, size = _fitting(shown, width - 4 * edge, round(height * 0.4), side)
    top = height - 4 * edge - round(len(lines) * size * _LINE) - small
    _panel(image, (edge, top, width - edge, height - edge), edge)
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        place = (2 * edge, top + edge + round(number * size * _LINE))
        pen.text(place, line, fill=_TEXT, font=_font(size, plain=text.isascii()))
    foot = (2 * edge, height - 2 * edge)
    pen.text(foot, footer, fill=_FOOTER, font=_font(small, plain=True), anchor="ls")


def _fitting(text: str, room: int, most: int, side: int) -> tuple[list[str], int]:
    """Return the text in lines and its size in pixels: the largest that fits, else cut off."""
    lines, size = [text], 10
    for share in (52, 44, 37, 32, 27, 24):
        size = max(10, round(side * share / 1000))
        across = max(
            1, int(room / (_font(size, plain=text.isascii()).getlength(text or "x") / max(1, len(text))))
        )
        lines = textwrap.wrap(text, across) or [""]
        if len(lines) <= 3 and len(lines) * size * _LINE <= most:
            return lines, size
    fitting = max(1, int(most / (size * _LINE)))
    if len(lines) > fitting:
        lines = [*lines[: fitting - 1], lines[fitting - 1].rstrip(" .…") + "…"]
    return lines, size


@functools.lru_cache(maxsize=64)
def _font(size: int, *, plain: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own face, or a wider one of this machine for more than ASCII."""
    for face in () if plain else _WIDER_FACES:
        try:
            return ImageFont.truetype(face, size)
        except OSError:
            continue
    return ImageFont.load_default(size=size)


def _panel(image: Image.Image, box: tuple[int, int, int, int], radius: int) -> None:
    left, top, right, bottom = box
    mask = Image.new("L", (right - left, bottom - top), 0)
    corners = (0, 0, right - left - 1, bottom - top - 1)
    ImageDraw.Draw(mask).rounded_rectangle(corners, radius, fill=_PANEL_OPACITY)
    image.paste(_PANEL, (left, top), mask)
