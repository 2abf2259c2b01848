"""Terminal output: a progress bar and tables, or plain lines if stderr is no terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from imagemill.engine.job_log import JsonLines, jobs_logger
from imagemill.engine.recorder import Progress as RunProgress
from imagemill.formatting import counted, duration, money, seconds

if TYPE_CHECKING:  # these load Prefect, which listing runs does not need
    from imagemill.blocks.apis import ImageApi
    from imagemill.catalog.estimate import Estimate
    from imagemill.engine.calibration import Calibration
    from imagemill.reports.dashboard import DashboardSummary
    from imagemill.reports.preview import Preview
    from imagemill.runs.summary import RunSummary

_PLAIN_EVERY_S = 10.0
_ROOM_FOR_WORDS = 60
_SPINNER_AND_TIME = 13
"""The characters of both on the line of progress, with a space after each of its columns."""

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)


@contextmanager
def progress_shown() -> Iterator[Callable[[RunProgress], None]]:
    """Yield a function that shows a run's progress on stderr."""
    if not stderr.is_terminal:
        yield _PlainLines().update
        return
    whole = Column(no_wrap=True)  # only the bar gives way in a narrow terminal
    bar = Progress(
        SpinnerColumn(table_column=whole),
        TextColumn("{task.description}", table_column=whole),
        BarColumn(bar_width=30),
        MofNCompleteColumn(table_column=whole),
        TextColumn("{task.fields[pace]}", table_column=whole),
        TimeElapsedColumn(table_column=whole),
        console=stderr,
        refresh_per_second=5,
    )
    task = bar.add_task("Preparing", total=None, pace="")

    def update(progress: RunProgress) -> None:
        if progress.unique:
            doing = "Generating" if progress.left else "Publishing"
            description = doing if stderr.width >= _ROOM_FOR_WORDS else ""
            counts = f"{progress.unique}/{progress.unique}"
            others = len(description) + len(counts) + _SPINNER_AND_TIME
            bar.update(
                task,
                description=description,
                total=progress.unique,
                completed=progress.done,
                pace=pace_line(progress, seconds_left=True, room=stderr.width - others),
            )

    with bar:
        yield update


@contextmanager
def job_lines_shown(form: str) -> Iterator[None]:
    """Write one line per job event to stderr while the block runs, as text or JSON."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else plain)
    before = jobs_logger.level
    jobs_logger.setLevel(logging.INFO)
    jobs_logger.addHandler(handler)
    try:
        yield
    finally:
        jobs_logger.removeHandler(handler)
        jobs_logger.setLevel(before)


class _PlainLines:
    """One line every ten seconds, and one when all jobs are finished."""

    def __init__(self) -> None:
        self._next_at = time.monotonic() + _PLAIN_EVERY_S
        self._ended = False

    def update(self, progress: RunProgress) -> None:
        now = time.monotonic()
        ended = progress.unique > 0 and progress.left == 0
        if not progress.unique:
            return
        if now >= self._next_at or (ended and not self._ended):
            self._next_at = now + _PLAIN_EVERY_S
            self._ended = ended
            stderr.print(f"{progress.done:,}/{progress.unique:,}  {pace_line(progress)}", soft_wrap=True)


def pace_line(progress: RunProgress, *, seconds_left: bool = False, room: int | None = None) -> str:
    """A run's progress in one short line; without the less important parts where ``room`` is short."""
    parts = {"pace": f"{progress.images_per_minute:,.0f}/min"}
    if progress.p95_latency_s is not None:
        parts["p95"] = f"p95 {seconds(progress.p95_latency_s)}"
    if progress.in_flight > progress.concurrency:  # sent before the limit fell
        parts["in flight"] = f"{progress.in_flight} in flight, limit now {progress.concurrency}"
    else:
        parts["in flight"] = f"{progress.in_flight}/{progress.concurrency} in flight"
    if progress.rate_limited:
        parts["429s"] = f"429s {progress.rate_limited:,}"
    if progress.failed:
        parts["failed"] = f"failed {progress.failed:,}"
    parts["cost"] = money(progress.cost_usd)
    if seconds_left and progress.left and progress.images_per_minute:
        parts["left"] = f"{duration(60 * progress.left / progress.images_per_minute)} left"
    for least in ("p95", "429s", "in flight", "pace", "left", "cost", "failed"):
        if room is None or len(" · ".join(parts.values())) <= room:
            break
        parts.pop(least, None)
    return " · ".join(parts.values())


def show_summary(summary: RunSummary, *, places: bool = True) -> None:
    """Print a run's summary as a table, and where its files are in the bucket."""
    table = Table(title=f"Run {summary.run_id}", title_justify="left", show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_column(justify="right")
    cells = [
        ("rows", f"{summary.rows:,}"),
        ("images/min", f"{summary.images_per_minute:,.1f}"),
        ("rejected", f"{summary.rejected:,}"),
        ("error rate", f"{summary.error_rate:.2%}"),
        ("duplicates", f"{summary.duplicates:,}"),
        ("p50 latency", seconds(summary.p50_latency_s)),
        ("unique images", f"{summary.unique:,}"),
        ("p95 latency", seconds(summary.p95_latency_s)),
        ("done", f"{summary.done:,}"),
        ("total cost", money(summary.cost_usd)),
        ("  generated", f"{summary.generated:,}"),
        ("saved", money(summary.saved_usd)),
        ("  reused", f"{summary.reused:,}"),
        ("requests", f"{summary.requests:,}"),
        ("failed", f"{summary.failed:,}"),
        ("429s", f"{summary.rate_limited:,}"),
        ("pending", f"{summary.pending:,}"),
        ("wall time", duration(summary.wall_s)),
    ]
    if summary.measured or summary.suspect:
        cells += [("suspect", f"{summary.suspect:,}"), ("measured", f"{summary.measured:,}")]
    for left, right in zip(cells[::2], cells[1::2], strict=True):
        table.add_row(*left, *right)
    stdout.print(table)
    _say_routes(summary)
    if summary.rejected_in_review:
        say(f"{counted(summary.rejected_in_review, 'picture was', 'pictures were')} rejected in review.")
    if summary.refreshed:
        say(f"{summary.changes_in_words}.")
    if summary.judged_in_words:
        say(summary.judged_in_words)
    if summary.unanswered:
        say(
            f"Requests without an answer: {summary.unanswered:,}. The API may have charged"
            f" {money(summary.unanswered_usd)} for them, which is not part of the total."
            + (" A resume first asks for those that the API keeps." if summary.stopped else "")
        )
    if summary.errors:
        classes = ", ".join(f"{name} {number:,}" for name, number in sorted(summary.errors.items()))
        say(f"Failed attempts: {classes}")
    for name in ("manifest", "metrics", "report") if places else ():
        if place := getattr(summary, name):
            say(f"{name.capitalize():9} {place}")


def _say_routes(summary: RunSummary) -> None:
    for route in summary.routes:
        p95 = seconds(route.p95_latency_s)
        say(
            f"{route.route}: {route.images:,} images, {route.images_per_minute:,.1f} a minute,"
            f" {route.error_rate:.2%} failed, p95 {p95}, {money(route.cost_usd)}"
        )
        if route.stopped is not None and summary.stopped is None:  # which says it of all of them
            say(f"{route.route} takes no more jobs in this run. {route.stopped}")


def suspects_in_words(summary: RunSummary, where: Sequence[str] = ()) -> str:
    """How many pictures look wrong, and how to see them; ``where`` has the options of the run's bucket."""
    pictures = counted(summary.suspect, "picture looks", "pictures look")
    them = "it" if summary.suspect == 1 else "them"
    return f"{pictures} wrong. Look at {them}: {' '.join(['imagemill review', summary.run_id, *where])}"


def show_failures(summary: RunSummary, where: Sequence[str] = (), again: Sequence[str] = ()) -> None:
    """Print how many images failed, how to see why, and how to retry them with the options ``again``."""
    failed = counted(summary.failed, "image", "images")
    say(f"{failed} failed. See why: {' '.join(['imagemill runs', summary.run_id, '--failed', *where])}")
    say(
        f"Retry them: {' '.join(['imagemill retry-failed', summary.run_id, *again])}"
        " (--permanent includes those that would fail again with the same input)"
    )


def how_to_resume(run_id: str, stopped: str | None = None, again: Sequence[str] = ()) -> str:
    """The command that resumes a run, which ``stopped`` for this reason, with the options ``again``."""
    if stopped and "max_cost_usd" in stopped:  # a route's, which no resume raises
        return ""
    if stopped and "raise --max-cost" in stopped:
        again = [*(each for each in again if not each.startswith("--max-cost ")), "--max-cost MORE"]
    return f" Resume with: {' '.join(['imagemill resume', run_id, *again])}"


def show_estimate(estimate: Estimate) -> None:
    """Print what a run would do."""
    from imagemill.catalog.cost import SAY_YOUR_PRICE

    table = Table(title="Estimate", title_justify="left", show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_row("rows", f"{estimate.rows:,}")
    if estimate.variants > 1:
        table.add_row("pictures per row", f"{estimate.variants:,}")
    table.add_row("rejected", f"{estimate.rejected:,}")
    table.add_row("duplicates", f"{estimate.duplicates:,}")
    table.add_row("unique images", f"{estimate.unique:,}")
    known = estimate.cost_usd is not None and estimate.saved_usd is not None
    table.add_row("cost", money(estimate.cost_usd or 0) if known else "unknown")
    if estimate.judge_usd != 0:
        table.add_row(
            "judge", "unknown" if estimate.judge_usd is None else f"about {money(estimate.judge_usd)}"
        )
    table.add_row("saved by duplicates", money(estimate.saved_usd or 0) if known else "unknown")
    table.add_row("time", f"about {duration(estimate.seconds)}")
    stdout.print(table)
    say(f"Price: {estimate.price}")
    if estimate.unpriced:
        say(f"The price of {estimate.unpriced:,} images is unknown. {SAY_YOUR_PRICE}.")
    for lever in estimate.levers:
        say(str(lever))
    say(f"The time assumes {estimate.assuming}. Images already in the bucket cost nothing.")
    for reason, number in list(estimate.reasons.items())[:10]:
        say(f"Rejected: {number:,} x {reason}")
    for note in estimate.notes:
        say(note)


def show_preview(found: Preview) -> None:
    """Print what a preview made, what all images would cost, and where the pictures are."""
    whole = "an unknown price" if found.cost_usd is None else money(found.cost_usd)
    left = "an unknown price" if found.left_usd is None else money(found.left_usd)
    say(
        f"{found.shown:,} of {found.unique:,} pictures for {money(found.paid_usd)}."
        f" The whole would cost {whole}."
    )
    if found.failed:
        say(f"{found.failed:,} of them failed; the page says why.")
    for reason, number in found.rejections.items():
        say(f"Rejected: {number:,} x {reason}")
    say(f"Preview   {found.file}")
    say(f"          {found.page}")
    if found.left:
        say(f"Make the other {found.left:,}, for {left}: imagemill resume {found.run_id}")


def show_dashboard(summary: DashboardSummary) -> None:
    """Print what a dashboard shows, and where it is."""
    say(f"{summary.runs:,} runs, {summary.generated:,} images, {money(summary.cost_usd)} in total.")
    if summary.skipped:
        say(f"Skipped {summary.skipped:,} files in metrics/ that do not describe a run.")
    for each in summary.regressions:
        if each.latest:
            say(f"Regression: run {each.run_id}, {each.catalog} on {each.provider}: {each.in_words}")
    say(f"Dashboard {summary.dashboard}")


def show_calibration(found: Calibration) -> None:
    """Print the limit that was measured, and the measurements."""
    table = Table(title=f"{found.provider} at {found.host}", title_justify="left", pad_edge=False)
    for column in ("concurrency", "images", "seconds", "images/min", "429s", "p50 latency"):
        table.add_column(column, justify="right")
    for level in found.levels:
        table.add_row(
            f"auto: {level.concurrency}" if level.auto else str(level.concurrency),
            f"{level.images:,}",
            f"{level.seconds:.1f}",
            f"{level.per_minute:,.0f}",
            f"{level.refused_share:.1%}",
            seconds(level.p50_latency_s),
        )
    stdout.print(table)
    rate = f" and {found.per_minute:,.0f} images per minute" if found.per_minute else ""
    if found.limit_seen:
        say(f"The account allows {found.concurrency} concurrent requests{rate}. Runs with auto start there.")
    else:
        say(f"No limit was reached with {found.concurrency} concurrent requests{rate}. Nothing was stored.")
    say(f"Paid for {found.images:,} images: {money(found.cost_usd)}.")


def say(text: str) -> None:
    """Print a line as it is, without markup or wrapping."""
    stdout.print(Text(text), soft_wrap=True)


def warn(api: ImageApi) -> None:
    """Print what a person should know of an API before a run."""
    if api.notice:
        complain(api.notice)


def complain(text: str) -> None:
    """Print an error message."""
    stderr.print(Text(f"imagemill: {text}"), soft_wrap=True)
