"""Escapes text that a store's server would refuse: NUL, and lone surrogates.

A catalog can contain NUL characters, and an API's error message anything that JSON can express.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

MARK = "\x1a"
"""SUBSTITUTE starts an escape, followed by four hexadecimal digits. It is itself escaped."""

_ODD = re.compile("[\x00\x1a\ud800-\udfff]")
_ESCAPE = re.compile("\x1a([0-9a-f]{4})")


def is_odd(text: str) -> bool:
    """Whether :func:`escape` would change the text."""
    if text.isascii():  # much faster than the expression
        return "\x00" in text or MARK in text
    return _ODD.search(text) is not None


def escape(text: str) -> str:
    """The text without NUL and surrogates; most texts stay as they are."""
    return _ODD.sub(lambda odd: f"{MARK}{ord(odd[0]):04x}", text)


def unescape(text: str) -> str:
    """The text that :func:`escape` was given."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text) if MARK in text else text


def to_json(value: object) -> bytes:
    """Encode as JSON, whatever the strings contain."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # a lone surrogate, or a number beyond 64 bits
        return json.dumps(value).encode()


def from_json(text: bytes) -> Any:  # noqa: ANN401 - whatever was written
    """Decode what :func:`to_json` wrote, with tuples as lists.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            return json.loads(text)
        except RecursionError:
            raise ValueError("JSON that is nested too deeply") from None
