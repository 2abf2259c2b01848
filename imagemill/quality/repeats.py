"""Notices a host that answers every prompt with the same file."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from imagemill.jobs import Job

PROMPTS_ENOUGH = 3
_REMEMBERED = 10_000


class Repeats:
    """The latest files, by digest, each with the jobs that it was sent for, by prompt."""

    def __init__(self) -> None:
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
        return len(prompts) >= PROMPTS_ENOUGH

    def jobs(self, content: bytes) -> list[Job]:
        """The jobs that got this file, if it is a placeholder."""
        prompts = self._jobs.get(_digest(content), {})
        return [job for jobs in prompts.values() for job in jobs] if len(prompts) >= PROMPTS_ENOUGH else []


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
