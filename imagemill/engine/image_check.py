"""Looks at an image's bytes before they are kept: whole, of the asked size, not blank.

The bytes decide, never a header. A PNG's chunks are walked with their checksums, a JPEG's segments to
its end marker: both find a cut or spoilt file without unpacking it. An image that is suspiciously small
for its size is unpacked, within a pixel limit, to see whether it is blank.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

from PIL import Image

from imagemill.errors import ApiError, ErrorClass

BLANK_BYTES_PER_PIXEL = 0.04
BLANK_HEADER_BYTES = 1_000
"""An image of one colour compresses to less than this; one that shows something, mostly to more.

A JPEG has 14 bits at most for 8 x 8 pixels of one colour, 0.027 bytes per pixel; PNG and WebP need less.
"""

MOST_PIXELS = 4096 * 4096
"""What a picture may have whose size the model chooses: it is bounded before anything is unpacked."""

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Picture:
    """What the bytes say: file extension, width and height in pixels."""

    extension: str
    width: int
    height: int


def check_picture(content: bytes, width: int, height: int, *, exact: bool = True) -> Picture:
    """See that ``content`` is one whole image of ``width`` x ``height`` pixels that shows something.

    Where not ``exact``, the model chooses the size itself: any up to ``MOST_PIXELS`` will do.

    Raises:
        ApiError: ``invalid_image``, or ``content_filtered`` where it is blank. Nothing else, whatever the
            bytes are: an API, or whoever stands in for it, may send anything.
    """
    try:
        return _checked(content, width, height, exact=exact)
    except ApiError:
        raise
    except Exception as error:  # a decoder has many ways to stumble over hostile bytes
        raise _invalid(f"an image that does not decode ({type(error).__name__})", "damaged_image") from error


def _checked(content: bytes, width: int, height: int, *, exact: bool) -> Picture:
    if content.startswith(_PNG):
        picture = _walk_png(content)
    elif content.startswith(b"\xff\xd8\xff"):
        picture = _walk_jpeg(content)
    elif content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        picture = _walk_webp(content)
    else:
        raise _invalid(f"not an image: it begins with {content[:12]!r}", "not_an_image")
    if not exact and 0 < picture.width * picture.height <= MOST_PIXELS:
        width, height = picture.width, picture.height
    if (picture.width, picture.height) != (width, height):
        raise _invalid(f"{picture.width} x {picture.height} pixels, not {width} x {height}", "wrong_size")
    if picture.extension == "webp":
        _open(content, picture).close()  # its frames fit its header
    if len(content) < BLANK_HEADER_BYTES + BLANK_BYTES_PER_PIXEL * width * height and _is_blank(
        content, picture
    ):
        raise ApiError(
            ErrorClass.CONTENT_FILTERED,
            "the image is all black or all white, as APIs answer what they flagged",
            code="blank_image",
            charged=True,
        )
    return picture


def _walk_png(content: bytes) -> Picture:
    view = memoryview(content)
    position, size = len(_PNG), (0, 0)
    while position + 12 <= len(view):
        length, kind = struct.unpack_from(">I4s", view, position)
        end = position + 12 + length
        if end > len(view):
            break
        (checksum,) = struct.unpack_from(">I", view, end - 4)
        if zlib.crc32(view[position + 4 : end - 4]) != checksum:
            raise _invalid("a PNG with a wrong checksum", "damaged_image")
        if kind == b"IHDR" and length >= 8 and size == (0, 0):
            size = struct.unpack_from(">II", view, position + 8)
        if kind == b"IEND":
            return Picture("png", *size)
        position = end
    raise _invalid("a PNG that is cut short", "cut_image")


def _walk_jpeg(content: bytes) -> Picture:
    position, size = 2, (0, 0)
    while position + 4 <= len(content):
        if content[position] != 0xFF:
            raise _invalid("a JPEG with a damaged segment", "damaged_image")
        marker = content[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        (length,) = struct.unpack_from(">H", content, position + 2)
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC} and position + 9 <= len(content):
            height, width = struct.unpack_from(">HH", content, position + 5)
            size = (width, height)
        if marker == 0xDA:
            # What follows the scan's header is compressed; a whole file ends in its end marker.
            if b"\xff\xd9" not in content[-64:]:
                break
            return Picture("jpg", *size)
        position += 2 + length
    raise _invalid("a JPEG that is cut short", "cut_image")


def _walk_webp(content: bytes) -> Picture:
    """The size as the header has it: a decoder sets the whole canvas aside before it looks any further."""
    (length,) = struct.unpack_from("<I", content, 4)
    if length + 8 > len(content) or len(content) < 25:
        raise _invalid("a WebP that is cut short", "cut_image")
    kind = content[12:16]
    if kind == b"VP8X":
        return Picture("webp", *(int.from_bytes(content[at : at + 3], "little") + 1 for at in (24, 27)))
    if kind == b"VP8L" and content[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", content, 21)
        return Picture("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 " and content[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", content, 26)
        return Picture("webp", width & 0x3FFF, height & 0x3FFF)
    raise _invalid("a WebP with an unknown header", "damaged_image")


def _open(content: bytes, picture: Picture) -> Image.Image:
    """The image, not unpacked yet, if the decoder reads the same size in it."""
    try:
        image = Image.open(io.BytesIO(content), formats=["PNG", "JPEG", "WEBP"])
    except (OSError, ValueError, SyntaxError) as error:
        raise _invalid(f"an image that does not open ({error})", "damaged_image") from error
    if image.size != (picture.width, picture.height):
        raise _invalid(f"{image.width} x {image.height} pixels, unlike its header", "damaged_image")
    return image


def _is_blank(content: bytes, picture: Picture) -> bool:
    with _open(content, picture) as image:
        image.draft("L", (64, 64))
        levels = image.convert("L").histogram()
    return not any(levels[7:]) or not any(levels[:249])


def _invalid(message: str, code: str) -> ApiError:
    return ApiError(ErrorClass.INVALID_IMAGE, message, code=code, charged=True)
