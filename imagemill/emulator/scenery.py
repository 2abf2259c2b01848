"""Scenery: hills under a sky with one light, in a palette, drawn from a seeded generator."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from random import Random

__all__ = ["scenery"]

Colour = tuple[int, int, int]

# Each palette: sky from top to horizon, the light, and the land from far to near.
_PALETTES = (
    ("#1b2a4e", "#8d6a9f", "#f5b892", "#ffe7c2", "#7d6391", "#1a1a3a"),
    ("#2b6f8f", "#8fc3c5", "#f6e3c5", "#fff6dd", "#5f9a9a", "#123a45"),
    ("#f2a65a", "#f6c28b", "#fbe3c0", "#fff8e7", "#d9825b", "#5c2a2e"),
    ("#0f2027", "#2c5364", "#7fb7a6", "#eaf6d8", "#3c7a72", "#08181c"),
    ("#43305f", "#b0508e", "#ffa07a", "#ffe1b8", "#94457f", "#241a3d"),
    ("#e07a5f", "#f2b5a0", "#f4f1de", "#fffaf0", "#81b29a", "#3d405b"),
    ("#355c7d", "#c06c84", "#f8b195", "#ffe9d6", "#6c5b7b", "#22304a"),
    ("#5b7db1", "#c9b6e4", "#fbe4e6", "#fffdf5", "#8e82b8", "#2c2a55"),
)
_POINTS = 96


def scenery(width: int, height: int, draws: Random) -> Image.Image:
    """Return a background of this size in pixels."""
    top, middle, low, light, far, near = (
        (int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)) for text in draws.choice(_PALETTES)
    )
    sky = Image.new("RGB", (1, 4))
    sky.putdata([top, _mix(top, middle, 0.6), _mix(middle, low, 0.5), low])
    # The ends of a resized gradient are flat, so the picture lies inside of them.
    image = sky.resize((width, height), Image.Resampling.BICUBIC, box=(0, 0.3, 1, 3.6))
    _shine(image, light, draws)
    count = draws.randint(4, 7)
    steep = draws.choice((0.02, 0.03, 0.06))
    for layer in range(count):
        share = layer / (count - 1)
        colour = _mix(_mix(far, low, 0.45 * (1 - share)), near, share)
        _land(image, _skyline(0.45 + 0.5 * share, steep, draws), colour)
    return image


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    """Return the colour that lies this share of the way from one colour to another."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _shine(image: Image.Image, colour: Colour, draws: Random) -> None:
    """Draw a disc of light with a glow around it."""
    width, height = image.size
    radius = max(2, round(math.sqrt(width * height) * draws.uniform(0.07, 0.13)))
    x, y = round(width * draws.uniform(0.22, 0.78)), round(height * draws.uniform(0.16, 0.36))
    # Pillow's radial gradient is 0 in the centre and about 180 in the middle of each side.
    fading = [round(max(0.0, 1 - level / 178) ** 2.2 * 190) for level in range(256)]
    side = 10 * radius
    glow = Image.radial_gradient("L").resize((side, side), Image.Resampling.BICUBIC).point(fading)
    image.paste(colour, (x - side // 2, y - side // 2), glow)
    disc = Image.new("L", (4 * radius, 4 * radius))
    ImageDraw.Draw(disc).ellipse((0, 0, 4 * radius - 1, 4 * radius - 1), fill=255)
    image.paste(colour, (x - radius, y - radius), disc.reduce(2))


def _skyline(level: float, depth: float, draws: Random) -> list[float]:
    """Return a skyline of some sines, in shares of the height from the top."""
    waves = [
        (draws.uniform(0.5, 1.6) * order, draws.uniform(0, math.tau), depth / order)
        for order in (1, 2, 3, 7, 13)
    ]
    return [
        level + sum(size * math.sin(math.tau * rate * x / _POINTS + at) for rate, at, size in waves)
        for x in range(_POINTS + 1)
    ]


def _land(image: Image.Image, skyline: list[float], colour: Colour) -> None:
    """Fill the land below a skyline, with a smooth edge by way of a mask of twice its size."""
    width, height = image.size
    mask = Image.new("L", (width * 2, height * 2), 0)
    points = [(x * width * 2 / _POINTS, share * height * 2) for x, share in enumerate(skyline)]
    ImageDraw.Draw(mask).polygon([(0.0, height * 2.0), *points, (width * 2.0, height * 2.0)], fill=255)
    image.paste(colour, (0, 0), mask.reduce(2))
