"""Sends the first failed jobs of a run to Prefect's log, where people look first."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.logging.handlers import APILogHandler

from imagemill.engine.job_log import jobs_logger

MOST_LINES = 100
"""The most failures of a run that are sent to Prefect's API; ten thousand would overload it."""


class _FailureLog(logging.Handler):
    """Passes the failed jobs of one run to Prefect's own handler, and no other job events."""

    def __init__(self, run_id: str, flow_run_id: str) -> None:
        super().__init__(logging.ERROR)
        self._run_id = run_id
        self._flow_run_id = flow_run_id
        self._seen = 0
        self._api = APILogHandler()

    def emit(self, record: logging.LogRecord) -> None:
        job = getattr(record, "job", None)
        if job is None or job["run_id"] != self._run_id or self._seen > MOST_LINES:
            return
        self._seen += 1
        own = copy.copy(record)
        own.flow_run_id = self._flow_run_id
        if self._seen > MOST_LINES:
            own.msg = "More jobs failed than the %s above: failed.parquet of run %s lists them all."
            own.args = (MOST_LINES, self._run_id)
        self._api.handle(own)


@contextmanager
def failures_logged(run_id: str, flow_run_id: str) -> Iterator[None]:
    """Send the run's failures to the flow run's log while the block runs."""
    handler = _FailureLog(run_id, flow_run_id)
    jobs_logger.addHandler(handler)
    try:
        yield
    finally:
        jobs_logger.removeHandler(handler)
