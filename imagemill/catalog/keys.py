"""The key of a picture, and the seed of a prompt: the one place that derives either."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

KEY_BYTES = 20
KEY_VERSION = 1
"""Raised when the digest changes: old pictures are then made anew."""


def normalized(text: str) -> str:
    """A prompt as it is keyed and sent: Unicode NFC, outer white space trimmed."""
    return text.strip() if text.isascii() else unicodedata.normalize("NFC", text).strip()


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
    params: str = "",
) -> str:
    """A digest of everything that decides the picture: 40 hexadecimal digits.

    ``model`` names the API and its model; ``prompt`` is normalized; ``negative_prompt`` is None where the
    model uses none; ``params`` are the model's further fields as JSON with sorted names, "" for none. Equal
    keys are one job, one object and one payment.
    """
    head = key_head(
        model=model, image_format=image_format, width=width, height=height, steps=steps, params=params
    )
    return job_keys([head], [seed], [negative_prompt], [prompt])[0]


def key_head(*, model: str, image_format: str, width: int, height: int, steps: int, params: str = "") -> str:
    """What :func:`job_key` digests first: the part that most rows of a catalog share."""
    # Texts are preceded by their lengths, so that none can pass for a part of another.
    head = f"{KEY_VERSION}|{len(model)}:{model}|{len(image_format)}:{image_format}|{width}|{height}|{steps}"
    # Nothing where there are none: pictures of before there were params keep their keys. What follows here
    # otherwise is a seed, which has no colon.
    return f"{head}|{len(params)}:{params}" if params else head


def job_keys(
    heads: Iterable[str], seeds: Iterable[int], negatives: Iterable[str | None], prompts: Iterable[str]
) -> list[str]:
    """The keys of many rows, each as :func:`job_key` has it."""
    return in_hex(job_digests(heads, seeds, negatives, prompts))


def job_digests(
    heads: Iterable[str], seeds: Iterable[int], negatives: Iterable[str | None], prompts: Iterable[str]
) -> bytes:
    """The same as bytes, ``KEY_BYTES`` of each, which follow each other."""
    rows = zip(heads, seeds, negatives, prompts, strict=True)
    digests = [
        blake2b(
            (
                f"{head}|{seed}|-|{prompt}"
                if negative is None
                else f"{head}|{seed}|{len(negative)}:{negative}|{prompt}"
            ).encode("utf-8", "surrogatepass"),
            digest_size=KEY_BYTES,
        ).digest()
        for head, seed, negative, prompt in rows
    ]
    return b"".join(digests)


def in_hex(digests: bytes) -> list[str]:
    """The keys that digests are."""
    text, size = digests.hex(), 2 * KEY_BYTES
    return [text[start : start + size] for start in range(0, len(text), size)]


def variation_seed(seed: int, turn: int) -> int:
    """The seed of a row's further picture, from 0 to 2**31 - 1; ``turn`` counts from 1, and 0 is ``seed``."""
    digest = blake2b(f"{seed}|{turn}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def prompt_seed(prompt: str) -> int:
    """A seed from the normalized prompt, from 0 to 2**31 - 1: the same today and tomorrow."""
    return prompt_seeds([prompt])[0]


def prompt_seeds(prompts: Iterable[str]) -> list[int]:
    """The seeds of many prompts, each as :func:`prompt_seed` has it."""
    digests = [blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest() for text in prompts]
    seeds: list[int] = (np.frombuffer(b"".join(digests), ">u4") >> 1).tolist()
    return seeds
