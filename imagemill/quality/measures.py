"""Measures a picture: what a person would see at once, as numbers that cost a few milliseconds.

All measures are taken from a picture reduced to about 256 pixels. A JPEG is decoded at that size already
(Pillow's draft mode); PNG and WebP have no such mode and are decoded whole.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

_SIDE = 256
_BLOCK = 8
_FLAT_LEVELS = 2.0
"""A block whose grey levels deviate by less than this is flat."""
_PLAIN_LEVELS = 4.0
_PLAIN_SHARE = 0.02
"""A row belongs to a bar if at most this share of it is that many levels off."""
_EDGE = 8
_NOISE = 1.0
"""Levels from pixel to pixel that an encoder adds."""
_STRONG = 99
"""Of the changes from pixel to pixel, the percentile that counts as a strong edge."""
_HASH_SIDE = 32
_HASH_WAVES = 8

Levels = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Measures:
    """What a picture looks like; shares and levels are from 0 to 1.

    Attributes:
        phash: perceptual hash, 64 bits as 16 hexadecimal digits; alike pictures differ in few bits.
        sharpness: how steep its strongest edges are; 0 where they rise evenly over 8 pixels or more.
        contrast: standard deviation of the grey levels; black and white halves have 0.5.
        brightness: mean grey level.
        colourfulness: Hasler and Süsstrunk's measure ("Measuring colourfulness in natural images", 2003): 0.1
            is slightly and 0.4 highly colourful.
        flat: share of the area without any detail.
        border: share of the height, or else of the width, in two plain bars at opposite edges.
        blank_end: share of the height in one plain bar at the lower edge, as is left where data are missing.
    """

    phash: str
    sharpness: float
    contrast: float
    brightness: float
    colourfulness: float
    flat: float
    border: float
    blank_end: float


def measure(content: bytes) -> Measures:
    """Measure an encoded picture that has been checked: one whole PNG, JPEG or WebP of a bounded size.

    Raises:
        OSError, ValueError, SyntaxError: it does not decode.
    """
    with Image.open(io.BytesIO(content), formats=["PNG", "JPEG", "WEBP"]) as image:
        image.draft("RGB", (_SIDE, _SIDE))
        colours = image.convert("RGB")
    colours = colours.reduce(max(1, min(colours.size) // _SIDE))
    grey_image = colours.convert("L")
    rgb = np.asarray(colours, np.float32)
    grey = np.asarray(grey_image, np.float32)
    top, bottom = _bars(grey)
    left, right = _bars(grey.T)
    return Measures(
        phash=perceptual_hash(grey_image),
        sharpness=_rounded(_sharpness(grey)),
        contrast=_rounded(float(grey.std()) / 255),
        brightness=_rounded(float(grey.mean()) / 255),
        colourfulness=_rounded(_colourfulness(rgb)),
        flat=_rounded(_flat(grey)),
        border=_rounded(top + bottom if min(top, bottom) else left + right if min(left, right) else 0.0),
        blank_end=_rounded(0.0 if top else _missing(rgb)),
    )


def perceptual_hash(image: Image.Image) -> str:
    """The signs of the 8 x 8 lowest waves of the picture's cosine transform, as 16 hexadecimal digits."""
    small = np.asarray(image.convert("L").resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BOX), np.float32)
    waves = _WAVES @ small @ _WAVES.T
    bits = waves > np.median(waves)
    return np.packbits(bits).tobytes().hex()


_WAVES: Levels = np.cos(
    np.pi / _HASH_SIDE * np.outer(np.arange(_HASH_WAVES), np.arange(_HASH_SIDE) + 0.5)
).astype(np.float32)


def _sharpness(grey: Levels) -> float:
    """How much of a strong edge's rise over 8 pixels happens within one: what blur spreads out."""
    steep, whole = 0.0, 0.0
    for levels in (grey, grey.T):
        if len(levels) > _EDGE:
            steep = max(steep, float(np.percentile(np.abs(np.diff(levels, axis=0)), _STRONG)))
            whole = max(whole, float(np.percentile(np.abs(levels[_EDGE:] - levels[:-_EDGE]), _STRONG)))
    return max(0.0, ((steep - _NOISE) / whole - 1 / _EDGE) / (1 - 1 / _EDGE)) if whole else 0.0


def _colourfulness(rgb: Levels) -> float:
    red_green = rgb[..., 0] - rgb[..., 1]
    yellow_blue = (rgb[..., 0] + rgb[..., 1]) / 2 - rgb[..., 2]
    spread = np.hypot(red_green.std(), yellow_blue.std())
    centre = np.hypot(red_green.mean(), yellow_blue.mean())
    return float(spread + 0.3 * centre) / 255


def _flat(grey: Levels) -> float:
    height, width = (side // _BLOCK * _BLOCK for side in grey.shape)
    if not height or not width:
        return float(grey.std() < _FLAT_LEVELS)
    blocks = grey[:height, :width].reshape(height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK)
    return float((blocks.std(axis=(1, 3)) < _FLAT_LEVELS).mean())


def _bars(grey: Levels) -> tuple[float, float]:
    """The shares of the rows in a plain bar at the upper and at the lower edge; 0 where there is none.

    A bar ends at once over most of the width; the plain background of a product does not.
    """
    return _bar(grey), _bar(grey[::-1])


def _bar(grey: Levels) -> float:
    level = float(grey[0].mean())
    unlike = np.abs(grey - level) > _PLAIN_LEVELS
    shown = unlike.mean(axis=1)
    end = int(np.argmax(shown > _PLAIN_SHARE))
    abrupt = (np.abs(grey[end : end + 4] - level) > _PLAIN_LEVELS).mean(axis=1).max() > 0.5
    return end / len(grey) if abrupt and end else 0.0


def _missing(rgb: Levels) -> float:
    """The share of the rows in a bar at the lower edge of which all pixels have exactly one colour."""
    same = np.abs(rgb - rgb[-1, -1]).max(axis=(1, 2)) < 1.5
    end = 0 if same.all() else int(np.argmin(same[::-1]))
    return end / len(rgb) if end and _bar(rgb.mean(axis=2)[::-1]) else 0.0


def _rounded(value: float) -> float:
    return round(value, 4)
