"""Previews a run before it is paid for: a few of its pictures, and what all of it would cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import anyio
from pydantic import BaseModel, ConfigDict, Field

from imagemill.catalog.counts import PlanCounts
from imagemill.formatting import counted, money
from imagemill.jobs import JobStatus
from imagemill.media_types import HTML
from imagemill.reports.contact_sheet import Tile, spread_rows, tiles_of
from imagemill.reports.measurement import count
from imagemill.reports.templating import environment
from imagemill.runs.session import Session
from imagemill.runs.summary import RunSummary
from imagemill.settings import RunSettings

_THUMBNAIL = 360
LINK_S = 7 * 86_400
"""How long the link to a preview works, in seconds."""


class Preview(BaseModel):
    """A few pictures of a run, and what the whole run would cost. Costs are in USD."""

    model_config = ConfigDict(frozen=True)

    run_id: str = Field(description="The run's id; resuming it makes the rest.")
    rows: int = Field(description="Rows of the catalog.")
    variants: int = Field(description="Pictures per row.")
    rejected: int = Field(description="Rows that no picture can be made of.")
    rejections: dict[str, int] = Field(description="The most frequent reasons, with their rows.")
    unique: int = Field(description="Pictures that the whole run makes.")
    duplicates: int = Field(description="Pictures that are the same as another one's.")
    cost_usd: float | None = Field(description="What the whole would cost; null if a price is unknown.")
    shown: int = Field(description="Pictures of this preview.")
    failed: int = Field(description="Pictures of this preview that could not be made.")
    generated: int = Field(description="Images that the run has paid for so far.")
    paid_usd: float = Field(description="What it has paid for them.")
    left: int = Field(description="Pictures that are left to make.")
    left_usd: float | None = Field(description="What they would cost; null if a price is unknown.")
    page: str = Field(description="Where preview.html is.")
    file: str = Field(description="The same on this machine.")

    def __str__(self) -> str:
        """What was made, what all of it would cost and how to go on, in one sentence."""
        made = counted(self.shown - self.failed, "picture is", "pictures are")
        failed = f", {self.failed:,} failed" if self.failed else ""
        rejected = f", {counted(self.rejected, 'row was', 'rows were')} rejected" if self.rejected else ""
        paid = money(self.paid_usd) if self.paid_usd else "nothing"
        whole = "an unknown amount" if self.cost_usd is None else money(self.cost_usd)
        of_all = counted(self.unique, "picture", "pictures")
        go_on = f"; start generate-catalog with this run id to make the other {self.left:,}"
        return (
            f"Preview {self.run_id}: {made} done{failed}{rejected}; it cost {paid}, and all {of_all} would"
            f" cost {whole}{go_on if self.left else ''}."
        )


@dataclass(frozen=True, slots=True)
class PreviewPage:
    """What the page of a preview shows."""

    preview: Preview
    settings: RunSettings
    model: str
    tiles: list[Tile]


def render_preview(page: PreviewPage) -> str:
    """The page as one HTML document."""
    return (
        environment()
        .get_template("preview.html.j2")
        .render(page=page, preview=page.preview, settings=page.settings)
    )


def make_preview(session: Session, counts: PlanCounts, images: int, most_usd: float | None = None) -> Preview:
    """Make some of a planned run's pictures, spread over its catalog, and the page that shows them.

    The run can continue from there: these pictures are done. With ``most_usd``, those are left out that would
    cost more than that together, a second one of each suspect picture included.

    Raises:
        StoreUnavailableError: the bucket is unavailable, or the disk is full.
    """
    rows = spread_rows(session.folder.plan, images, counts.variants)
    if most_usd is not None:
        rows = _affordable(session, rows, most_usd)
    numbers = sorted({row["job"] for row in rows})

    async def work_off() -> None:
        await session.engine.check_account()
        async with anyio.create_task_group() as group:
            for number in numbers:
                group.start_soon(session.engine.run_shard, number, number)

    with session.interruptible():
        session.work_off(work_off)
    images_of, faults = session.wait(_outcomes, session, numbers)
    tiles = tiles_of(session.bucket, rows, images_of, faults, side=_THUMBNAIL)
    preview = _preview(session, counts, count(session, counts), len(tiles), len(faults))
    page = PreviewPage(preview, session.settings, session.maker.model, tiles)
    file = session.folder.path / "preview.html"
    with session.folder.trouble_named():
        file.write_text(render_preview(page), encoding="utf-8")
    session.bucket.upload(file, _name(session), HTML)
    return preview


def _affordable(session: Session, rows: list[dict[str, Any]], most_usd: float) -> list[dict[str, Any]]:
    """Those rows of a plan whose pictures cost no more than that together: sizes have their own prices."""
    requests = 2 if session.settings.quality.on_suspect == "retry" else 1
    chosen: set[int] = set()
    left = most_usd + 1e-9
    for row in rows:
        sizes = row["width"], row["height"], row["steps"], row.get("params") or ""
        usd = requests * (session.maker.price_usd(*sizes) + session.engine.judge_usd)
        if row["job"] not in chosen and usd <= left:
            chosen.add(row["job"])
            left -= usd
    return [row for row in rows if row["job"] in chosen]


def _name(session: Session) -> str:
    return f"runs/{session.settings.run_id}/preview.html"


async def _outcomes(session: Session, numbers: list[int]) -> tuple[dict[int, str | None], dict[int, str]]:
    """The objects of these jobs' images, and why the others have none, by job."""
    images: dict[int, str | None] = {}
    faults: dict[int, str] = {}
    wanted = set(numbers)
    async for jobs in session.store.all_jobs():
        for job in jobs:
            if job.number in wanted and job.status is JobStatus.DONE:
                images[job.number] = job.image
            elif job.number in wanted and job.status is JobStatus.FAILED:
                faults[job.number] = f"{job.error_class}: {job.error_message or ''}"
        if not wanted or jobs[-1].number >= numbers[-1]:
            break
    return images, faults


def _preview(session: Session, counts: PlanCounts, summary: RunSummary, shown: int, failed: int) -> Preview:
    known = not counts.unpriced
    share = summary.pending / counts.unique if counts.unique else 0.0
    return Preview(
        run_id=summary.run_id,
        rows=counts.rows,
        variants=counts.variants,
        rejected=counts.rejected,
        rejections=summary.rejections,
        unique=counts.unique,
        duplicates=counts.duplicates,
        cost_usd=counts.cost_usd if known else None,
        shown=shown,
        failed=failed,
        generated=summary.generated,
        paid_usd=summary.cost_usd,
        left=summary.pending,
        left_usd=round(counts.cost_usd * share, 12) if known else None,
        page=session.bucket.uri_of(_name(session)),
        file=str(session.folder.path / "preview.html"),
    )


def link_to(session: Session) -> str:
    """A link to a preview's page for people without access to the bucket, for a week."""
    link: Any = session.bucket.link(_name(session), LINK_S)
    return str(link)
