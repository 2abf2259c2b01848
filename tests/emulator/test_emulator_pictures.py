"""Pictures: format, size, bytes, odd text, and the stamp that makes them unique."""

from __future__ import annotations

import asyncio
import io
from random import Random
from typing import Any

import pytest
from PIL import Image

from imagemill.emulator.gallery import Gallery, stamp
from imagemill.emulator.order import Shot
from imagemill.emulator.picture import draw
from imagemill.emulator.scenery import scenery


def shot(prompt: str = "A fox", width: int = 96, height: int = 96, **fields: Any) -> Shot:
    return Shot(prompt, width, height, 4, fields.pop("seed", 1), **{"format": "png", **fields})


@pytest.mark.parametrize("file_format", ["png", "jpeg"])
@pytest.mark.parametrize("size", [(32, 32), (64, 2048), (2048, 64), (97, 131), (256, 256)])
def test_pictures_have_the_size_asked_for(file_format: str, size: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(draw(shot("A fox", *size, format=file_format)))) as image:
        image.load()
        assert (image.format.lower(), image.size, image.mode) == (file_format, size, "RGB")


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "猫が座っている",
        "مرحبا بالعالم",
        "👩‍🚀 🦊",
        "a\u0301\u0000\u202e\n\t" * 50,
        "x" * 5000,
        "é " * 900,
    ],
)
def test_any_text_can_be_drawn(prompt: str) -> None:
    one = draw(shot(prompt, 256, 256))
    assert one == draw(shot(prompt, 256, 256))


def test_the_prompt_is_on_the_picture() -> None:
    asked = shot("A red fox at night", 512, 512)
    bare = scenery(512, 512, Random(asked.digest))
    with Image.open(io.BytesIO(draw(asked))) as image:
        white = sum(image.convert("L").histogram()[250:])
        assert white > 300 + sum(bare.convert("L").histogram()[250:])
        assert image.crop((0, 0, 512, 256)).tobytes() == bare.crop((0, 0, 512, 256)).tobytes()


@pytest.mark.parametrize("file_format", ["png", "jpeg"])
def test_a_stamp_changes_bytes_but_no_pixels(file_format: str) -> None:
    image = draw(shot(format=file_format))
    stamped = stamp(image, "0123abcd")
    assert stamped != image
    with Image.open(io.BytesIO(image)) as plain, Image.open(io.BytesIO(stamped)) as marked:
        assert plain.tobytes() == marked.tobytes()
        comment = marked.info.get("Comment") or marked.info.get("comment")
        assert comment in {"0123abcd", b"0123abcd"}


def test_the_gallery_is_bounded_and_draws_a_picture_once() -> None:
    async def show() -> None:
        gallery = Gallery(capacity_bytes=100_000)
        try:
            same = await asyncio.gather(*(gallery.picture(shot(), fast=False) for _ in range(9)))
            assert all(image is same[0] for image in same)
            for seed in range(30):
                await gallery.picture(shot(seed=seed), fast=False)
            assert gallery.held_bytes <= 100_000
            assert await gallery.picture(shot(), fast=False) == same[0]
        finally:
            gallery.close()

    asyncio.run(show())
