"""Inspects each picture of a run before it is kept: measures it, judges it, and notices repeated files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import anyio
import anyio.to_thread
import orjson

from imagemill.quality.measures import Measures, measure
from imagemill.quality.repeats import PROMPTS_ENOUGH, Repeats
from imagemill.quality.sampling import AUTO_SHARE, Sampling
from imagemill.quality.verdicts import Verdict, judge

SUSPECT = "suspect"
"""The error code of a job whose picture is suspect."""

PLACEHOLDER = (
    f"The API answered {PROMPTS_ENOUGH} different prompts with the same file, a placeholder: the run stops"
    " before it pays for more. Ask the vendor, or set --quality off if the pictures are right."
)


class OnSuspect(StrEnum):
    """What happens to a suspect picture."""

    KEEP = "keep"
    FAIL = "fail"
    RETRY = "retry"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found in one picture; ``measures`` is None if it was not measured."""

    measures: Measures | None = None
    verdicts: tuple[Verdict, ...] = ()

    @property
    def quality(self) -> str:
        """The measures as JSON; "" if there are none."""
        return orjson.dumps(self.measures).decode() if self.measures else ""

    @property
    def suspect(self) -> str:
        """The verdicts, with commas between them; "" if there are none."""
        return ",".join(self.verdicts)

    @property
    def merit(self) -> tuple[int, float]:
        """A sort key: the better picture has the larger one."""
        return -len(self.verdicts), self.measures.sharpness if self.measures else 0.0


class Inspection:
    """Inspects the pictures of one run in one process.

    Args:
        share: of the CPU time that may go into measuring: 1 measures each picture, 0 looks at none.
    """

    def __init__(self, share: float = AUTO_SHARE) -> None:
        self._sampling = Sampling(share) if share else None
        self._repeats = Repeats()
        self._threads = anyio.CapacityLimiter(1)

    async def look(self, content: bytes, prompt: str) -> Finding:
        """Inspect a picture that has been checked. If it cannot be measured, it is not suspect."""
        if self._sampling is None:
            return Finding()
        if self._repeats.is_placeholder(content, prompt):
            return Finding(verdicts=(Verdict.PLACEHOLDER,))
        if not self._sampling.is_due():
            return Finding()
        work = partial(self._sampling.timed, partial(_judged, content))
        return await anyio.to_thread.run_sync(work, limiter=self._threads)


def _judged(content: bytes) -> Finding:
    try:
        measures = measure(content)
    except Exception:  # noqa: BLE001 - a picture that is paid for is not lost to a decoder that stumbles
        return Finding()
    return Finding(measures, judge(measures))
