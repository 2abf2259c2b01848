"""The key of a picture, and the seed of a prompt: the one place that derives either."""

from __future__ import annotations

import hashlib
import json
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
    fields = [KEY_VERSION, model, prompt, negative_prompt, width, height, steps, seed, image_format]
    canonical = json.dumps(fields, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=20).hexdigest()


def prompt_seed(prompt: str) -> int:
    """A seed from the normalized prompt, from 0 to 2**31 - 1: the same today and tomorrow."""
    encoded = prompt.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=4).digest(), "big") >> 1
