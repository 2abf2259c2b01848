"""Images are looked at before they are kept."""

from __future__ import annotations

import contextlib
import io
import resource
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagemill.engine.image_check import check_picture
from imagemill.errors import ApiError

SIZE = (96, 64)


def encoded(kind: str, size: tuple[int, int] = SIZE, colour: Any = None, **options: Any) -> bytes:
    image = Image.effect_noise(size, 80).convert("RGB") if colour is None else Image.new("RGB", size, colour)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def refusal(content: bytes) -> tuple[str, str]:
    with pytest.raises(ApiError) as caught:
        check_picture(content, *SIZE)
    return caught.value.error_class.value, caught.value.code


@pytest.mark.parametrize(
    ("kind", "options", "extension"),
    [
        ("PNG", {}, "png"), ("JPEG", {}, "jpg"), ("JPEG", {"progressive": True}, "jpg"),
        ("JPEG", {"comment": b"x" * 500, "quality": 30}, "jpg"), ("WEBP", {}, "webp"),
    ],
)  # fmt: skip
def test_whole_images_pass(kind: str, options: dict[str, Any], extension: str) -> None:
    picture = check_picture(encoded(kind, **options), *SIZE)
    assert (picture.extension, picture.width, picture.height) == (extension, *SIZE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
def test_cut_images_are_invalid(kind: str, share: float) -> None:
    content = encoded(kind)
    assert refusal(content[: int(len(content) * share)])[0] == "invalid_image"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_wrong_size_is_invalid(kind: str) -> None:
    assert refusal(encoded(kind, (64, 96))) == ("invalid_image", "wrong_size")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_model_that_chooses_the_size_may_choose_any_that_is_bounded(kind: str) -> None:
    picture = check_picture(encoded(kind, (64, 96)), *SIZE, exact=False)
    assert (picture.width, picture.height) == (64, 96)
    with pytest.raises(ApiError, match="pixels, not"):
        check_picture(encoded(kind, (8200, 2056), colour="red"), *SIZE, exact=False)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("colour", ["black", "white", (2, 0, 1)])
def test_blank_images_are_filtered(kind: str, colour: Any) -> None:
    assert refusal(encoded(kind, colour=colour)) == ("content_filtered", "blank_image")


def test_a_plain_colour_is_no_blank_image() -> None:
    assert check_picture(encoded("PNG", colour=(30, 90, 160)), *SIZE).extension == "png"


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"GIF89a" + bytes(50), b"\xff\xd8\xff"])
def test_what_is_no_image_is_invalid(content: bytes) -> None:
    assert refusal(content)[0] == "invalid_image"


def test_a_flipped_bit_in_a_png_is_found() -> None:
    content = bytearray(encoded("PNG"))
    content[len(content) // 2] ^= 1
    assert refusal(bytes(content)) == ("invalid_image", "damaged_image")


def test_a_pixel_bomb_is_refused_by_its_header() -> None:
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000_000)))
    assert refusal(bomb + chunk(b"IEND", b"")) == ("invalid_image", "wrong_size")


def test_a_png_whose_pixels_do_not_unpack_is_invalid() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", *SIZE, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"junk") + chunk(b"IEND", b"")
    assert refusal(content) == ("invalid_image", "damaged_image")


def webp(kind: bytes, chunk: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(chunk)) + chunk + b"\0" * (len(chunk) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


HOSTILE_WEBP = {
    "a canvas of 16,383 x 16,383, with nothing on it": webp(
        b"VP8X", b"\x10\0\0\0" + (16_382).to_bytes(3, "little") * 2
    ),
    "a canvas of 16,777,216 x 16,777,216": webp(b"VP8X", b"\x10\0\0\0" + b"\xff" * 6),
    "lossless, 16,384 x 16,384": webp(b"VP8L", b"\x2f" + b"\xff" * 9),
    "lossy, 16,383 x 16,383": webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383)),
}


@pytest.mark.parametrize("content", HOSTILE_WEBP.values(), ids=HOSTILE_WEBP)
def test_a_webp_bomb_is_refused_by_its_header_in_little_memory(content: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(content) == ("invalid_image", "wrong_size")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # in KiB


def test_a_webp_of_the_right_canvas_with_a_hostile_frame_is_invalid() -> None:
    canvas = b"\x10\0\0\0" + (SIZE[0] - 1).to_bytes(3, "little") + (SIZE[1] - 1).to_bytes(3, "little")
    frame = webp(b"VP8L", b"\x2f" + b"\xff" * 9)[12:]
    content = webp(b"VP8X", canvas)[12:] + frame
    whole = b"RIFF" + struct.pack("<I", len(content) + 4) + b"WEBP" + content
    assert refusal(whole) == ("invalid_image", "damaged_image")


def test_a_jpeg_whose_frames_contradict_each_other_is_invalid() -> None:
    content = encoded("JPEG", colour=(30, 90, 160))
    frame = content.index(b"\xff\xc0")
    huge = content[frame : frame + 5] + struct.pack(">HH", 65_000, 65_000) + content[frame + 9 : frame + 19]
    assert refusal(content[:frame] + huge + content[frame:])[0] == "invalid_image"


@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.data())
@settings(max_examples=300, deadline=None)
def test_spoilt_bytes_end_as_an_error_of_the_api_or_pass(kind: str, data: st.DataObject) -> None:
    content = bytearray(encoded(kind, colour=data.draw(st.sampled_from([None, (30, 90, 160)]))))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content) - 1, 200)))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ApiError):
        check_picture(bytes(content), *SIZE)
