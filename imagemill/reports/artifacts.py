"""A run in Prefect's UI: progress and headline while it runs, metrics and report when it ends."""

from __future__ import annotations

import contextvars
import json
import logging
import math
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import UUID

import httpx
import pyarrow.parquet as pq
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.engine.job_log import spelled_out
from imagemill.engine.recorder import Progress
from imagemill.formatting import money, percent, rate, seconds
from imagemill.reports.failure_log import failures_logged
from imagemill.runs.caller import at_a_terminal
from imagemill.runs.session import Session
from imagemill.runs.summary import RunSummary
from imagemill.runs.wording import in_names_of_settings
from imagemill.secrets import masked, masked_values

REFRESH_S = 2.0
"""How often progress and headline are updated at first, in seconds; Prefect wants at most one per second."""

_SLOWEST_S = 30.0
_UPDATES = 30
"""They are updated about this often while the age of a run doubles, and at least every 30 s: Prefect Cloud
limits requests and events."""

MOST_ROWS = 200
_LINK_DAYS = 7
_PATIENCE_S = 10.0
"""How long the end of a run waits for the last artifacts, in seconds."""

_MARKDOWN = re.compile(r"[\\`*\[\]<>&#|~@]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.", re.IGNORECASE)
"""What Markdown reads as more than text."""

logger = logging.getLogger(__name__)


class _Artifact(NamedTuple):
    """What an artifact shows; ``name`` is the end of its key."""

    name: str
    type: str
    data: object
    description: str


class RunArtifacts:
    """The artifacts of one run, written by their own thread so that a failure cannot affect the run."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._bucket = session.bucket
        self._metrics = session.folder.path / "metrics.parquet"
        self._flow_run_id = UUID(str(flow_run.get_id()))
        self._summary: RunSummary | None = None
        self._ids: dict[str, UUID] = {}
        self._complained = False
        self._ending = threading.Event()
        # The thread needs the flow run's context: it has the settings with Prefect's address.
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._keep_writing,), daemon=True
        )

    def start(self) -> None:
        """Start writing."""
        self._thread.start()

    def conclude(self, summary: RunSummary) -> None:
        """The run has ended, whatever the outcome."""
        self._summary = summary

    def stop(self) -> None:
        """Write the last artifacts, and wait for that for a few seconds."""
        self._ending.set()
        self._thread.join(_PATIENCE_S)

    def _keep_writing(self) -> None:
        try:
            with get_client(sync_client=True) as client:
                written: Progress | None = None
                begun = time.monotonic()
                while not self._ending.wait(refresh_s(time.monotonic() - begun)):
                    progress = self._session.portal.call(self._session.recorder.progress)
                    if progress != written:
                        self._write(client, _live(progress))
                        written = progress
                if self._summary is not None:
                    self._write(client, self._final(self._summary))
        except Exception:  # artifacts are not worth failing a run for
            logger.warning("The run's artifacts could not be written.", exc_info=True)

    def _write(self, client: SyncPrefectClient, artifacts: Sequence[_Artifact]) -> None:
        try:
            for name, kind, unmasked, words in artifacts:
                data, description = masked_values(unmasked), masked(words)
                if name in self._ids:
                    update = ArtifactUpdate(data=data, description=description)
                    client.update_artifact(self._ids[name], update)
                    continue
                made = client.create_artifact(
                    ArtifactCreate(
                        key=f"imagemill-{name}",
                        type=kind,
                        data=data,
                        description=description,
                        flow_run_id=self._flow_run_id,
                    )
                )
                self._ids[name] = made.id
        except (httpx.HTTPError, PrefectException, OSError) as error:
            if not self._complained:
                logger.warning("Prefect did not accept the run's artifacts (%s).", type(error).__name__)
            self._complained = True

    def _final(self, summary: RunSummary) -> list[_Artifact]:
        finished = summary.done + summary.failed
        share = 100.0 * finished / summary.unique if summary.unique else 100.0
        final = [_progress(summary.run_id, share), _headline(summary)]
        if summary.metrics is not None and self._metrics.exists():
            rows = metrics_rows(pq.ParquetFile(self._metrics).read().to_pylist())
            text = f"The metrics of run {summary.run_id} over time."
            final.append(_Artifact("metrics", "table", json.dumps(rows), text))
        if summary.refreshed and summary.manifest is not None:
            text = f"What run {summary.run_id} changed in the manifest, in rows; pruned counts images."
            final.append(_Artifact("changes", "table", json.dumps([summary.changes]), text))
        if summary.report is not None:
            text = f"The report is at {summary.report}."
            name, title = f"runs/{summary.run_id}/report.html", f"Open the report of run {summary.run_id}"
            final.append(_Artifact("report", "markdown", link_to(self._bucket, name, title), text))
        return final


def refresh_s(age_s: float) -> float:
    """How long the artifacts of a run of this age stay as they are, in seconds."""
    return max(REFRESH_S, min(_SLOWEST_S, age_s * math.log(2) / _UPDATES))


def link_to(bucket: ImageBucket, name: str, title: str) -> str:
    """A link to an object for people, in Markdown."""
    text = f"### [{title}]({bucket.link(name, 86_400 * _LINK_DAYS)})\n\n"
    text += f"The link works for {_LINK_DAYS} days, or until the credentials it was made with expire."
    if bucket.endpoint_url is None:
        key = quote(bucket.prefix + name, safe="")
        console = f"https://console.aws.amazon.com/s3/object/{bucket.name}?prefix={key}"
        text += f" After that, open it in [the AWS console]({console})."
    return text


@contextmanager
def shown_in_prefect(session: Session) -> Iterator[RunArtifacts]:
    """Show a run in Prefect's UI while the block runs: artifacts, and failed jobs in the log."""
    artifacts = RunArtifacts(session)
    with failures_logged(session.settings.run_id, str(flow_run.get_id())):
        artifacts.start()
        try:
            yield artifacts
        finally:
            artifacts.stop()


def _live(progress: Progress) -> list[_Artifact]:
    share = 100.0 * (progress.done + progress.failed) / progress.unique if progress.unique else 0.0
    return [_progress(progress.run_id, share), _headline(progress)]


def _progress(run_id: str, share: float) -> _Artifact:
    return _Artifact("progress", "progress", round(share, 1), f"Finished jobs of run {run_id}.")


def _headline(run: Progress | RunSummary) -> _Artifact:
    """The run in one table, in the same form while it runs and afterwards."""
    finished = run.done + run.failed
    cells = {
        "done": f"**{run.done:,}** of {run.unique:,}",
        "failed": f"{run.failed:,} ({percent(run.failed / finished) if finished else '0%'})",
        "images/min": rate(run.images_per_minute),
        "p95 latency": seconds(run.p95_latency_s),
        "429s": f"{run.rate_limited:,}",
        "retries": f"{run.retries:,}",
        "cost": money(run.cost_usd),
    }
    if isinstance(run, Progress):
        cells["in flight"] = f"{run.in_flight:,} of {run.concurrency:,}"
    lines = [f"### Run {run.run_id}", "", *_table(cells)]
    if isinstance(run, RunSummary) and run.refreshed and run.manifest is not None:
        lines += ["", *_table({name: f"{number:,}" for name, number in run.changes.items()})]
    if isinstance(run, RunSummary):
        lines += _stopped(run) if run.stopped else ["", _literal(in_names_of_settings(str(run)))]
    return _Artifact("headline", "markdown", "\n".join(lines), "The run in a few numbers.")


def _stopped(run: RunSummary) -> list[str]:
    """Why a run stopped early, and how to resume it, in Markdown."""
    lines = ["", _literal(run.rejections_in_words)] if run.rejected else []
    if run.unanswered:
        lines += ["", f"{run.unanswered_in_words.removeprefix('; ')}."]
    why, resume = str(run.stopped), f"Resume it with `imagemill resume {run.run_id}`."
    if not at_a_terminal():
        why = in_names_of_settings(why)
        resume = f"To resume it, start it again with `execution.run_id` set to `{run.run_id}`."
    return [*lines, "", f"Stopped early: {_literal(why)}", "", resume]


def _literal(text: str) -> str:
    """Text from a catalog or an API as Markdown that shows it as it is, and makes no link of it."""
    return _MARKDOWN.sub(r"\\\g<0>", " ".join(spelled_out(text).split()))


def _table(cells: dict[str, str]) -> list[str]:
    rows = (cells.keys(), ["---:"] * len(cells), cells.values())
    return [f"| {' | '.join(row)} |" for row in rows]


def metrics_rows(buckets: Sequence[dict[str, Any]]) -> list[dict[str, object]]:
    """The rows of metrics.parquet for display, merged so that there are at most 200."""
    joined = -(-len(buckets) // MOST_ROWS) or 1
    rows = []
    for start in range(0, len(buckets), joined):
        of_row = buckets[start : start + joined]
        images, failed = sum(b["images"] for b in of_row), sum(b["failed"] for b in of_row)
        latencies, queued = (
            [b[name] for b in of_row if b[name] is not None] for name in ("p95_latency_s", "p95_queued_s")
        )
        span_s = sum(b["bucket_s"] for b in of_row)
        rows.append(
            {
                "UTC": f"{of_row[0]['bucket_start']:%Y-%m-%d %H:%M:%S}",
                "images/min": round(60 * images / span_s, 1),
                "error rate": percent(failed / (images + failed)) if images + failed else "0%",
                "p95 latency": seconds(max(latencies, default=None)),
                "p95 in queue": seconds(max(queued, default=None)),
                "cost": money(sum(b["cost_usd"] for b in of_row)),
                "total cost": money(of_row[-1]["cost_usd_total"]),
                "images": images,
                "failed": failed,
                "429s": sum(b["rate_limited"] for b in of_row),
                "retries": sum(b["retries"] for b in of_row),
            }
        )
    return rows
