"""The gallery: encoded pictures, drawn in threads and kept as far as memory allows."""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from imagemill.emulator.picture import draw

if TYPE_CHECKING:
    from imagemill.emulator.order import Shot

__all__ = ["Gallery", "spoil", "stamp"]

_CAPACITY_BYTES = 64 * 2**20
_THREADS = 2
_PNG_HEAD_BYTES = 33
_JPEG_START_BYTES = 2
_GARBAGE_BYTES = 4096


class Gallery:
    """Makes pictures and keeps the last of them, up to a number of bytes."""

    def __init__(self, capacity_bytes: int = _CAPACITY_BYTES) -> None:
        """Start empty; threads start when the first picture is drawn."""
        self._capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self._held: OrderedDict[Shot, bytes] = OrderedDict()
        self._drawing: dict[Shot, asyncio.Future[bytes]] = {}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="emulator-picture")
        self._closed = False

    async def picture(self, shot: Shot, *, fast: bool) -> bytes:
        """Return the encoded picture; `fast` stamps one base picture a size instead of drawing."""
        if not fast or shot.flaw is not None:
            return await self._drawn(shot)
        base = replace(shot, prompt="Emulated picture", steps=4, seed=0)
        return stamp(await self._drawn(base), shot.digest)

    async def _drawn(self, shot: Shot) -> bytes:
        held = self._held.get(shot)
        if held is not None:
            self._held.move_to_end(shot)
            return held
        drawing = self._drawing.get(shot)
        if drawing is None:
            loop = asyncio.get_running_loop()
            drawing = loop.run_in_executor(self._threads, self._draw, shot)
            self._drawing[shot] = drawing
            drawing.add_done_callback(lambda done: self._keep(shot, done))
        return await asyncio.shield(drawing)

    def _draw(self, shot: Shot) -> bytes:
        return b"" if self._closed else draw(shot)

    def _keep(self, shot: Shot, done: asyncio.Future[bytes]) -> None:
        self._drawing.pop(shot, None)
        if done.cancelled() or done.exception() is not None:
            return
        self._held[shot] = done.result()
        self.held_bytes += len(done.result())
        while self.held_bytes > self._capacity_bytes and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self.held_bytes -= len(dropped)

    def stop(self) -> None:
        """Let pictures that still wait for a thread end at once, as empty files."""
        self._closed = True

    def close(self) -> None:
        """End the threads."""
        self._closed = True
        self._threads.shutdown(wait=True)


def stamp(image: bytes, text: str) -> bytes:
    """Return the PNG, JPEG or WebP file with a comment in it, which makes the file unique."""
    note = text.encode("ascii")
    if image.startswith(b"\x89PNG"):
        body = b"tEXtComment\0" + note
        chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
        return image[:_PNG_HEAD_BYTES] + chunk + image[_PNG_HEAD_BYTES:]
    if image.startswith(b"RIFF"):
        chunk = b"note" + len(note).to_bytes(4, "little") + note + b"\0" * (len(note) % 2)
        return image[:4] + (len(image) - 8 + len(chunk)).to_bytes(4, "little") + image[8:] + chunk
    segment = b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note
    cut = _JPEG_START_BYTES
    if image[2:4] == b"\xff\xe0":
        cut += 2 + int.from_bytes(image[4:6], "big")
    return image[:cut] + segment + image[cut:]


def spoil(image: bytes, fault: str | None) -> bytes:
    """Return the file as a fault leaves it: "truncated" to its half, or "garbage"."""
    if fault == "truncated":
        return image[: len(image) // 2]
    if fault == "garbage":
        block = hashlib.sha512(image).digest()
        return b"not an image\n" + block * (_GARBAGE_BYTES // len(block))
    return image
