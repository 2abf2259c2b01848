"""Notices a host that answers every prompt with the same file."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

PROMPTS_ENOUGH = 3
_REMEMBERED = 20_000


class Repeats:
    """The latest files, by digest, each with the prompts that it was sent for."""

    def __init__(self) -> None:
        self._prompts: OrderedDict[bytes, set[str]] = OrderedDict()

    def is_placeholder(self, content: bytes, prompt: str) -> bool:
        """Note a file, and say whether it has been sent for three different prompts."""
        digest = hashlib.blake2b(content, digest_size=16).digest()
        prompts = self._prompts.setdefault(digest, set())
        self._prompts.move_to_end(digest)
        if len(prompts) < PROMPTS_ENOUGH:
            prompts.add(prompt)
        while len(self._prompts) > _REMEMBERED:
            self._prompts.popitem(last=False)
        return len(prompts) >= PROMPTS_ENOUGH
