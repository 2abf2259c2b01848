"""Notices a host that answers every prompt with the same file."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable

from imagemill.jobs import Job

PROMPTS_ENOUGH = 3
_REMEMBERED = 10_000


class Repeats:
    """The latest files, by digest, each with the jobs that it was sent for, by prompt.

    ``known`` are the digests of placeholders from before: one more of these is enough.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known = {bytes.fromhex(digest) for digest in known}
        self._jobs: OrderedDict[bytes, dict[str, list[Job]]] = OrderedDict()

    def is_placeholder(self, content: bytes, job: Job) -> bool:
        """Note a file, and say whether it has been sent for three different prompts."""
        digest = _digest(content)
        prompts = self._jobs.setdefault(digest, {})
        self._jobs.move_to_end(digest)
        if len(prompts) < PROMPTS_ENOUGH or job.prompt in prompts:
            prompts.setdefault(job.prompt, []).append(job)
        while len(self._jobs) > _REMEMBERED:
            self._jobs.popitem(last=False)
        return self._is_placeholder(digest)

    def jobs(self, content: bytes) -> list[Job]:
        """The jobs that got this file, if it is a placeholder."""
        digest = _digest(content)
        prompts = self._jobs.get(digest, {})
        return [job for jobs in prompts.values() for job in jobs] if self._is_placeholder(digest) else []

    def _is_placeholder(self, digest: bytes) -> bool:
        return digest in self._known or len(self._jobs.get(digest, {})) >= PROMPTS_ENOUGH


def digest_of(content: bytes) -> str:
    """The digest by which a placeholder is known."""
    return _digest(content).hex()


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
