"""Orders: a checked generation request, whichever vendor's wire format it came in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from imagemill.emulator.faults import FLAWS

__all__ = ["Format", "Order", "Shot"]

Format = Literal["jpeg", "png", "webp"]


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture to draw; two equal shots have the same bytes. Sizes in pixels, `flaw` of `FLAWS`."""

    prompt: str
    width: int
    height: int
    steps: int
    seed: int
    format: Format
    flaw: str | None = None

    @property
    def media_type(self) -> str:
        """The media type, such as image/png."""
        return f"image/{self.format}"

    @property
    def extension(self) -> str:
        """The file name's extension, without the dot."""
        return "jpg" if self.format == "jpeg" else self.format

    @property
    def digest(self) -> str:
        """A digest of everything that decides the picture, 64 hexadecimal digits."""
        parts = (self.prompt, self.width, self.height, self.steps, self.seed, self.flaw)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Order:
    """A generation request that passed its checks. Sizes are in pixels.

    `seed` is the seed as asked for, None when the request leaves it open; `drawn_seed` is the
    seed in use. `tokens` are the output tokens of each picture, where tokens are billed.
    """

    provider: str
    model: str
    prompt: str
    width: int
    height: int
    steps: int
    seed: int | None
    drawn_seed: int
    format: Format
    count: int = 1
    tokens: int = 0

    @property
    def text_tokens(self) -> int:
        """The tokens of the prompt, at four characters each."""
        return -(-len(self.prompt) // 4)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of what was asked for, 64 hexadecimal digits.

        Canonical JSON: the object of provider, model, prompt, width, height, steps and seed
        with sorted keys, no white space, and characters beyond ASCII as they are, in UTF-8.
        """
        asked = {
            "provider": self.provider,
            "model": self.model,
            "prompt": self.prompt,
            "width": self.width,
            "height": self.height,
            "steps": self.steps,
            "seed": self.seed,
        }
        text = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def shots(self, fault: str | None) -> list[Shot]:
        """Return the pictures of the order; further ones count the seed up."""
        part = 2 if fault == "wrong_size" else 1
        return [
            Shot(
                prompt=self.prompt,
                width=self.width // part,
                height=self.height // part,
                steps=self.steps,
                seed=self.drawn_seed + index,
                format=self.format,
                flaw="black" if fault == "flagged" else fault if fault in FLAWS else None,
            )
            for index in range(self.count)
        ]
