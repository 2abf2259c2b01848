"""Asks the judge about pictures: its price is set aside first, and its failure fails no job."""

from __future__ import annotations

import contextlib
from typing import Any

import anyio.to_thread
import pyarrow as pa

from imagemill.catalog.planned_rows import PlannedRows
from imagemill.engine.cost_limit import BudgetSpentError, CostLimit
from imagemill.engine.recorder import Recorder
from imagemill.errors import StoreUnavailableError
from imagemill.jobs import INPUT_FIELDS, Job
from imagemill.quality.inspection import Finding
from imagemill.quality.judge import Answer, Candidate, Judge, failure_of
from imagemill.usd import plus


class Judging:
    """The judge at work in one run and process.

    Args:
        threshold: a picture with a lower score is suspect.
        rows: the catalog's rows, for a judge that reads them.
    """

    def __init__(
        self,
        judge: Judge,
        threshold: float,
        cost: CostLimit,
        recorder: Recorder,
        rows: PlannedRows | None = None,
    ) -> None:
        self._judge = judge
        self._rows = rows if judge.reads_rows else None
        self._threshold = threshold
        self._cost = cost
        self._recorder = recorder

    async def look(self, job: Job, content: bytes, found: Finding) -> Finding:
        """What was found in the picture, with the judge's opinion if it gives one."""
        answer = await self._ask(job, content)
        self._recorder.judged(job, answer)
        return found.judged(answer, self._threshold)

    @property
    def price_usd(self) -> float:
        """About what the next opinion costs."""
        return self._judge.price_usd

    async def _ask(self, job: Job, content: bytes) -> Answer:
        price_usd = self._judge.price_usd
        try:
            if price_usd:
                await self._cost.promise(price_usd)
        except BudgetSpentError:
            return Answer(failure="the cost limit leaves nothing for the judge")
        except StoreUnavailableError as error:  # several processes share the limit through the store
            return Answer(failure=str(error))
        try:
            row = await self._row(job)
            answer = await self._judge.ask(Candidate(content, job.prompt, row))
        except Exception as error:  # noqa: BLE001 - a judge may fail in any way: no job fails with it
            answer = Answer(failure=failure_of(error), doubtful_usd=price_usd)
        except BaseException:
            self._cost.settle(price_usd, doubtful_usd=price_usd)  # cancelled: it may be charged for
            raise
        # Apart: what is promised for images does not become dearer by what the judge costs.
        self._cost.settle(price_usd)
        # Nobody can ask it later about a request without an answer: what it may have charged is booked, too.
        if usd := plus(answer.usd, answer.doubtful_usd):
            self._cost.settle(0.0, charged_usd=usd)
            job.judge_usd = plus(job.judge_usd, usd)
            self._recorder.charged(usd)
        return answer

    async def _row(self, job: Job) -> dict[str, Any]:
        """The job's input with this take's seed, and the catalog's other columns if the plan is here."""
        own = {name: getattr(job, name) for name in INPUT_FIELDS} | {"seed": job.take_seed}
        if self._rows is None:
            return own
        with contextlib.suppress(OSError, pa.ArrowException):
            own = await anyio.to_thread.run_sync(self._rows.of, job.number) | own
        return own
