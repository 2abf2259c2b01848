"""Spoils what is well-formed: bytes, and the values of a JSON document. One generator decides everything."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

_ODD_BYTES = (b"", b"\x00", b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\n", b'"')

_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**63, -(2**63), 10**30),
    *("", " ", "\x00", "\x1b[2J", "\ud800", "é" * 50, "x" * 10_000, "7", "-1", "1e999", "true", "null"),
    *("http://", "https://[", "https://example.com:99999/a", "http://127.0.0.1/a", "//x", "data:,", "paid:"),
    *("data:image/png;base64,!!", "../../etc/passwd", "{}", "[]", [], {}, [[]], [None], {"": None}),
    {"url": {"url": None}},
)


def spoilt_bytes(rnd: random.Random, content: bytes) -> bytes:
    """The content with a few of its bytes changed, cut out, repeated, moved or put in."""
    spoilt = bytearray(content)
    for _ in range(rnd.choice((1, 1, 2, 4, 16))):
        at = _place(rnd, len(spoilt))
        match rnd.randrange(7):
            case 0 if spoilt:
                spoilt[min(at, len(spoilt) - 1)] ^= 1 << rnd.randrange(8)
            case 1 if spoilt:
                spoilt[min(at, len(spoilt) - 1)] = rnd.randrange(256)
            case 2:
                del spoilt[at : at + rnd.choice((1, 4, 100))]
            case 3:
                spoilt[at:at] = rnd.choice(_ODD_BYTES) or rnd.randbytes(rnd.randrange(20))
            case 4:
                spoilt[at : at + 4] = rnd.choice(_ODD_BYTES)
            case 5:
                other = _place(rnd, len(spoilt))
                spoilt[at:at] = spoilt[other : other + rnd.choice((4, 30, 300))]
            case _ if rnd.random() < 0.2:
                del spoilt[at:]
    return bytes(spoilt)


def _place(rnd: random.Random, size: int) -> int:
    """A place in the content: as often near its beginning or end, where its structure is, as anywhere."""
    near = rnd.randrange(4)
    if near == 0:
        return min(rnd.randrange(200), size)
    return max(0, size - rnd.randrange(400)) if near == 1 else rnd.randrange(size + 1)


def spoilt_json(rnd: random.Random, document: Any) -> bytes:
    """The document as JSON with some of its values replaced, left out, repeated or wrapped."""
    spoilt = copy.deepcopy(document)
    for _ in range(rnd.choice((0, 0, 1, 1, 2, 5))):
        spoilt = _changed(rnd, spoilt)
    if rnd.random() < 0.01:
        deep = rnd.choice((500, 5_000, 100_000))
        return b"[" * deep + b"]" * deep
    text = json.dumps(spoilt, separators=(",", ":")).encode()
    return spoilt_bytes(rnd, text) if rnd.random() < 0.1 else text


def _changed(rnd: random.Random, value: Any) -> Any:
    """The value with one of its parts changed, or itself."""
    if isinstance(value, dict) and value and rnd.random() < 0.85:
        name = rnd.choice(list(value))
        if rnd.random() < 0.1:
            del value[name]
        elif rnd.random() < 0.05:
            value[rnd.choice(("x", "", "status", "error", "data"))] = value[name]
        else:
            value[name] = _changed(rnd, value[name])
        return value
    if isinstance(value, list) and value and rnd.random() < 0.85:
        at = rnd.randrange(len(value))
        if rnd.random() < 0.1:
            return value[:at]
        value[at] = _changed(rnd, value[at])
        return value * 2 if rnd.random() < 0.05 else value
    match rnd.randrange(6):
        case 0:
            return [value]
        case 1:
            return {rnd.choice(("message", "url", "x")): value}
        case _:
            return copy.deepcopy(rnd.choice(_ODD_VALUES))
