"""Inspects each picture of a run before it is kept: measures it, judges it, and notices repeated files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial

import anyio
import anyio.to_thread
import orjson

from imagemill.jobs import Job
from imagemill.quality.judge import Answer, Opinion
from imagemill.quality.measures import Measures, measure
from imagemill.quality.repeats import PROMPTS_ENOUGH, Repeats
from imagemill.quality.sampling import AUTO_SHARE, Sampling
from imagemill.quality.verdicts import Verdict, judge

SUSPECT = "suspect"
"""The error code of a job whose picture is suspect."""

PLACEHOLDER = (
    f"The API answered {PROMPTS_ENOUGH} different prompts with the same file, a placeholder: no more of them"
    " are paid for. Ask the vendor, or set --quality off if the pictures are right."
)


class OnSuspect(StrEnum):
    """What happens to a suspect picture."""

    KEEP = "keep"
    FAIL = "fail"
    RETRY = "retry"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found in one picture; ``measures`` is None if it was not measured, ``opinion`` not judged.

    ``unjudged`` says why the judge that was asked has no opinion.
    """

    measures: Measures | None = None
    verdicts: tuple[Verdict, ...] = ()
    opinion: Opinion | None = None
    unjudged: str = ""

    @property
    def quality(self) -> str:
        """The measures and the judge's opinion as JSON; "" if there are none."""
        found = asdict(self.measures) if self.measures else {}
        if self.opinion:
            found |= {"judge_score": self.opinion.score, "judge_words": self.opinion.words}
        if self.unjudged:
            found["judge_failure"] = self.unjudged
        return orjson.dumps(found).decode() if found else ""

    @property
    def suspect(self) -> str:
        """The verdicts, with commas between them; "" if there are none."""
        return ",".join(self.verdicts)

    @property
    def in_words(self) -> str:
        """Why the picture is suspect, with the judge's words."""
        words = f": {self.opinion.words}" if self.opinion and self.opinion.words else ""
        return f"a suspect picture ({self.suspect}{words})"

    @property
    def merit(self) -> tuple[int, float, float]:
        """A sort key: the better picture has the larger one."""
        score = self.opinion.score if self.opinion else 0.0
        return -len(self.verdicts), score, self.measures.sharpness if self.measures else 0.0

    def judged(self, answer: Answer, threshold: float) -> Finding:
        """The finding with the judge's answer, and its verdict if the score is below the threshold."""
        opinion = answer.opinion
        if opinion is None:
            return replace(self, unjudged=answer.failure)
        more = (Verdict.JUDGED,) if opinion.score < threshold else ()
        return replace(self, opinion=opinion, verdicts=(*self.verdicts, *more))


class Inspection:
    """Inspects the pictures of one run in one process.

    Args:
        share: of the CPU time that may go into measuring: 1 measures each picture, 0 looks at none.
        placeholders: the digests of those that the run has found before.
    """

    def __init__(self, share: float = AUTO_SHARE, placeholders: Iterable[str] = ()) -> None:
        self._sampling = Sampling(share) if share else None
        self._repeats = Repeats(placeholders)
        self._threads = anyio.CapacityLimiter(1)

    def repeated(self, content: bytes) -> list[Job]:
        """The jobs that got this file, if it is a placeholder."""
        return self._repeats.jobs(content)

    async def look(self, content: bytes, job: Job) -> Finding:
        """Inspect a job's picture, which has been checked. If it cannot be measured, it is not suspect."""
        if self._sampling is None:
            return Finding()
        if self._repeats.is_placeholder(content, job):
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
