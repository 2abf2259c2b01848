"""Captions: the prompt on a panel at the foot of a picture, and a small footer."""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

__all__ = ["write_caption"]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_PANEL = (16, 18, 28)
_PANEL_OPACITY = 188
_TEXT = (255, 255, 255)
_FOOTER = (206, 210, 222)
_LONGEST_TEXT = 600
_SMALLEST_SIDE = 96
_LARGEST_SHARE = 0.46
_LINE = 1.28
_FEW_LINES = 3
_BUILT_IN = ""
_WIDER_FACES = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc")
_NO_CHARACTER = "\uffff"
_STAND_INS = {"×": "x", "–": "-", "—": "-"}  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class _Block:
    """Wrapped text at a font size in pixels."""

    lines: list[str]
    size: int
    face: str

    @property
    def height(self) -> int:
        return round(len(self.lines) * self.size * _LINE)


def write_caption(image: Image.Image, text: str, footer: str) -> None:
    """Write text and footer on a panel; a picture too small for it stays as it is."""
    width, height = image.size
    if min(width, height) < _SMALLEST_SIDE:
        return
    margin = max(5, round(min(width, height) * 0.035))
    padding = max(6, round(min(width, height) * 0.034))
    small = max(9, round(min(width, height) * 0.0205 + 2))
    room = width - 2 * (margin + padding)
    most = round(height * _LARGEST_SHARE) - 2 * padding - round(small * 2)
    shown, face = _legible(_printable(text))
    block = _fitting(shown, face, room, most, min(width, height))
    panel_height = block.height + round(small * 1.9) + 2 * padding
    top = height - margin - panel_height
    _panel(image, (margin, top, width - margin, height - margin), round(padding * 0.7))
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(block.lines):
        y = top + padding + round(number * block.size * _LINE)
        pen.text((margin + padding, y), line, fill=_TEXT, font=_font(face, block.size))
    foot = height - margin - padding
    legible, face = _legible(footer)
    pen.text((margin + padding, foot), legible, fill=_FOOTER, font=_font(face, small), anchor="ls")


@functools.lru_cache(maxsize=64)
def _font(face: str, size: int) -> Font:
    if face == _BUILT_IN:
        return ImageFont.load_default(size=size)
    return ImageFont.truetype(face, size)


@functools.lru_cache(maxsize=8192)
def _length(text: str, face: str, size: int) -> float:
    """Return the width of a word in pixels."""
    return _font(face, size).getlength(text)


@functools.lru_cache(maxsize=8192)
def _has(face: str, sign: str) -> bool:
    """Say whether a face has a glyph for a character."""
    font = _font(face, 20)
    return sign == " " or bytes(font.getmask(sign)) != bytes(font.getmask(_NO_CHARACTER))


@functools.lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    """Return the wider faces that this machine has."""
    found = []
    for face in _WIDER_FACES:
        try:
            _font(face, 20)
        except OSError:
            continue
        found.append(face)
    return tuple(found)


def _printable(text: str) -> str:
    cut = text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT].rstrip() + "…"
    return " ".join("".join(sign if sign.isprintable() else " " for sign in cut).split())


def _legible(text: str) -> tuple[str, str]:
    """Return the text and the face that shows most of it; Pillow's own has few characters."""
    text = "".join(_STAND_INS.get(sign, sign) for sign in text)
    if all(_has(_BUILT_IN, sign) for sign in text):
        return text, _BUILT_IN
    faces = _installed()
    if faces:
        return text, min(faces, key=lambda face: sum(not _has(face, sign) for sign in text))
    plain = unicodedata.normalize("NFKD", text)
    return "".join(sign for sign in plain if not unicodedata.combining(sign)), _BUILT_IN


def _panel(image: Image.Image, box: tuple[int, int, int, int], radius: int) -> None:
    left, top, right, bottom = box
    mask = Image.new("L", (right - left, bottom - top), 0)
    corners = (0, 0, right - left - 1, bottom - top - 1)
    ImageDraw.Draw(mask).rounded_rectangle(corners, radius, fill=_PANEL_OPACITY)
    image.paste(_PANEL, (left, top), mask)


def _fitting(text: str, face: str, room: int, most: int, side: int) -> _Block:
    """Return the text in the largest size that fits, cut off if even the smallest does not."""
    sizes = sorted({max(10, round(side * share / 1000)) for share in (52, 44, 37, 32, 27, 24)})
    for size in reversed(sizes):
        block = _Block(_wrap(text, face, size, room), size, face)
        if block.height <= most and (len(block.lines) <= _FEW_LINES or size == sizes[0]):
            return block
    size = sizes[0]
    lines = _wrap(text, face, size, room)
    fitting = max(1, int(most / (size * _LINE)))
    if len(lines) > fitting:
        lines = [*lines[: fitting - 1], lines[fitting - 1].rstrip(" .…") + "…"]
    return _Block(lines, size, face)


def _wrap(text: str, face: str, size: int, room: int) -> list[str]:
    lines = [""]
    used = 0.0
    space = _length(" ", face, size)
    for word in text.split(" "):
        for piece in _pieces(word, face, size, room):
            length = _length(piece, face, size)
            if lines[-1] and used + space + length > room:
                lines.append("")
                used = 0.0
            used += length + (space if lines[-1] else 0)
            lines[-1] += (" " if lines[-1] else "") + piece
    return lines


def _pieces(word: str, face: str, size: int, room: int) -> list[str]:
    """Return a word in pieces, each of which fits into a line."""
    if _length(word, face, size) <= room:
        return [word]
    pieces, piece = [], ""
    for sign in word:
        if piece and _length(piece + sign, face, size) > room:
            pieces.append(piece)
            piece = ""
        piece += sign
    return [*pieces, piece]
