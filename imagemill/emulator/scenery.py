"""Scenery: generative backgrounds in a palette, drawn from a seeded generator."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from random import Random

__all__ = ["Colour", "scenery"]

Colour = tuple[int, int, int]

# Each palette: sky from top to horizon, the light, and the land from far to near.
_PALETTES: tuple[tuple[str, str, str, str, str, str], ...] = (
    ("#1b2a4e", "#8d6a9f", "#f5b892", "#ffe7c2", "#7d6391", "#1a1a3a"),
    ("#2b6f8f", "#8fc3c5", "#f6e3c5", "#fff6dd", "#5f9a9a", "#123a45"),
    ("#f2a65a", "#f6c28b", "#fbe3c0", "#fff8e7", "#d9825b", "#5c2a2e"),
    ("#0f2027", "#2c5364", "#7fb7a6", "#eaf6d8", "#3c7a72", "#08181c"),
    ("#43305f", "#b0508e", "#ffa07a", "#ffe1b8", "#94457f", "#241a3d"),
    ("#7aa6c2", "#c6d8de", "#f4efe6", "#ffffff", "#8fa8a3", "#2f4a4d"),
    ("#e07a5f", "#f2b5a0", "#f4f1de", "#fffaf0", "#81b29a", "#3d405b"),
    ("#355c7d", "#c06c84", "#f8b195", "#ffe9d6", "#6c5b7b", "#22304a"),
    ("#11324d", "#3e8989", "#c4d7a4", "#fdf6d0", "#4f8a6b", "#0d2b2e"),
    ("#5b7db1", "#c9b6e4", "#fbe4e6", "#fffdf5", "#8e82b8", "#2c2a55"),
)


def scenery(width: int, height: int, draws: Random) -> Image.Image:
    """Return a background of this size in pixels."""
    top, middle, low, light, far, near = map(_colour, draws.choice(_PALETTES))
    image = _sky(width, height, (top, middle, low), draws)
    unit = math.sqrt(width * height)
    _light(image, light, unit, draws)
    draws.choice((_ridges, _ridges, _waves, _bubbles))(image, (far, near, light, low), draws)
    return image


def _colour(text: str) -> Colour:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """Return the colour that lies this share of the way from one colour to another."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _sky(width: int, height: int, colours: tuple[Colour, ...], draws: Random) -> Image.Image:
    top, middle, low = colours
    tilt = draws.uniform(-0.22, 0.22)
    small = Image.new("RGB", (2, 4))
    for x, side in ((0, -tilt), (1, tilt)):
        steps = (
            top,
            mix(top, middle, 0.6 + side),
            mix(middle, low, 0.45 + side),
            mix(low, middle, max(0.0, side)),
        )
        for y, colour in enumerate(steps):
            small.putpixel((x, y), colour)
    # The ends of a resized gradient are flat, so the picture lies inside of them.
    return small.resize((width, height), Image.Resampling.BICUBIC, box=(0.3, 0.3, 1.7, 3.6))


def _light(image: Image.Image, colour: Colour, unit: float, draws: Random) -> None:
    width, height = image.size
    radius = unit * draws.uniform(0.07, 0.13)
    x = width * draws.uniform(0.22, 0.78)
    y = height * draws.uniform(0.16, 0.36)
    reach = round(radius * 5)
    # Pillow's radial gradient is 0 in the centre and about 180 in the middle of each side.
    fading = [round(max(0.0, 1 - level / 178) ** 2.2 * 190) for level in range(256)]
    glow = Image.radial_gradient("L").point(fading).resize((2 * reach, 2 * reach))
    image.paste(colour, (round(x) - reach, round(y) - reach), glow)
    _disc(image, (x, y), radius, colour, 255)


def _disc(
    image: Image.Image, centre: tuple[float, float], radius: float, colour: Colour, opacity: int
) -> None:
    """Draw a disc with a smooth edge, by way of a mask of twice its size."""
    side = max(2, math.ceil(radius * 2))
    mask = Image.new("L", (side * 2, side * 2), 0)
    ImageDraw.Draw(mask).ellipse((0, 0, side * 2 - 1, side * 2 - 1), fill=opacity)
    place = (round(centre[0] - side / 2), round(centre[1] - side / 2))
    image.paste(colour, place, mask.reduce(2))


def _ridges(image: Image.Image, colours: tuple[Colour, ...], draws: Random) -> None:
    """Draw mountain ranges, the nearer the darker."""
    far, near, _, low = colours
    count = draws.randint(4, 6)
    base = draws.uniform(0.40, 0.5)
    for layer in range(count):
        share = layer / (count - 1)
        level = base + (0.93 - base) * share**1.15
        roughness = 0.085 * (1 - 0.4 * share)
        heights = _mountains(level, roughness, draws)
        colour = mix(mix(far, low, 0.45 * (1 - share)), near, share**1.3)
        _land(image, heights, colour)


def _waves(image: Image.Image, colours: tuple[Colour, ...], draws: Random) -> None:
    """Draw rolling dunes, the nearer the darker."""
    far, near, _, low = colours
    count = draws.randint(5, 8)
    base = draws.uniform(0.42, 0.52)
    for layer in range(count):
        share = layer / (count - 1)
        level = base + (0.96 - base) * share
        heights = _swell(level, 0.03 + 0.015 * share, draws)
        _land(image, heights, mix(mix(far, low, 0.5 * (1 - share)), near, share**1.2))


def _bubbles(image: Image.Image, colours: tuple[Colour, ...], draws: Random) -> None:
    """Draw translucent discs above dunes."""
    far, near, light, _ = colours
    width, height = image.size
    unit = math.sqrt(width * height)
    for _ in range(draws.randint(14, 20)):
        radius = unit * (0.02 + 0.13 * draws.random() ** 2)
        colour = draws.choice((far, light, mix(far, light, 0.5), mix(near, far, 0.5)))
        centre = (width * draws.uniform(-0.02, 1.02), height * draws.uniform(0.05, 0.85))
        _disc(image, centre, radius, colour, draws.randint(45, 120))
    for share in (0.25, 0.7, 1.0):
        heights = _swell(0.66 + 0.22 * share, 0.035, draws)
        _land(image, heights, mix(far, near, share))


def _mountains(level: float, roughness: float, draws: Random) -> list[float]:
    """Return a skyline by midpoint displacement, in shares of the height from the top."""
    heights = [level + draws.uniform(-roughness, roughness) for _ in range(4)]
    spread = roughness
    for _ in range(5):
        spread *= 0.52
        finer = [heights[0]]
        for left, right in itertools.pairwise(heights):
            finer += [(left + right) / 2 + draws.uniform(-spread, spread), right]
        heights = finer
    return heights


def _swell(level: float, depth: float, draws: Random) -> list[float]:
    """Return a smooth skyline of three sines, in shares of the height from the top."""
    waves = [
        (draws.uniform(0.5, 1.6) * order, draws.uniform(0, math.tau), depth / order) for order in (1, 2, 3)
    ]
    return [
        level + sum(size * math.sin(math.tau * rate * x / 96 + at) for rate, at, size in waves)
        for x in range(97)
    ]


def _land(image: Image.Image, heights: list[float], colour: Colour) -> None:
    """Fill the land below a skyline, with a smooth edge by way of a mask of twice its size."""
    width, height = image.size
    top = max(0, math.floor(min(heights) * height) - 1)
    bottom = min(height, math.ceil(max(heights) * height) + 1)
    if top >= height:
        return
    band = max(1, bottom - top)
    mask = Image.new("L", (width * 2, band * 2), 0)
    step = width * 2 / (len(heights) - 1)
    skyline = [(x * step, (share * height - top) * 2) for x, share in enumerate(heights)]
    points = [(0.0, band * 2.0), *skyline, (width * 2.0, band * 2.0)]
    ImageDraw.Draw(mask).polygon(points, fill=255)
    image.paste(colour, (0, top), mask.reduce(2))
    image.paste(colour, (0, bottom, width, height))
