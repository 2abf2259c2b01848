"""The key of a picture, and the seed of a prompt: the one place that derives either."""

from __future__ import annotations

import hashlib
import unicodedata

KEY_VERSION = 1
"""Raised when the digest changes: old pictures are then made anew."""


def normalized(text: str) -> str:
    """A prompt as it is keyed and sent: Unicode NFC, outer white space trimmed."""
    return unicodedata.normalize("NFC", text).strip()


def job_key(
    *,
    model: str,
    prompt: str,
    negative_prompt: str | None,
    width: int,
    height: int,
    steps: int,
    seed: int,
    image_format: str,
) -> str:
    """A digest of everything that decides the picture: 40 hexadecimal digits.

    ``model`` names the API and its model; ``prompt`` is normalized; ``negative_prompt`` is None where the
    model uses none. Equal keys are one job, one object and one payment.
    """
    # Texts are preceded by their lengths, so that none can pass for a part of another.
    negative = "-" if negative_prompt is None else f"{len(negative_prompt)}:{negative_prompt}"
    canonical = (
        f"{KEY_VERSION}|{len(model)}:{model}|{len(image_format)}:{image_format}"
        f"|{width}|{height}|{steps}|{seed}|{negative}|{prompt}"
    )
    return hashlib.blake2b(canonical.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def prompt_seed(prompt: str) -> int:
    """A seed from the normalized prompt, from 0 to 2**31 - 1: the same today and tomorrow."""
    encoded = prompt.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=4).digest(), "big") >> 1
