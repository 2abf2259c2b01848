"""Makes a few of a run's pictures, as a preview before all are paid for."""

from __future__ import annotations

import contextlib

import httpx
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectException

from imagemill.formatting import money
from imagemill.reports.preview import Preview, link_to, make_preview
from imagemill.runs.session import Session
from imagemill.runs.user_errors import without_secrets_in_errors
from imagemill.tasks.approval import refuse_without_server
from imagemill.tasks.prepare import Prepared

IMAGES = 12
"""How many pictures are enough for a look."""


@task(name="preview", task_run_name="preview", cache_policy=NO_CACHE, persist_result=False)
@without_secrets_in_errors
def preview(
    session: Session, prepared: Prepared, images: int = IMAGES, most_usd: float | None = None
) -> Preview:
    """Make ``images`` pictures, spread over the catalog, and a page with them and the cost of the whole.

    With ``most_usd``, only those that cost no more than that together.

    Raises:
        StoreUnavailableError: the bucket is unavailable.
    """
    found = make_preview(session, prepared.counts, images, most_usd)
    with contextlib.suppress(httpx.HTTPError, PrefectException, OSError):  # an artifact is not worth a run
        create_markdown_artifact(f"### {in_words(session, found)}", key="imagemill-preview")
    return found


def preview_within(session: Session, prepared: Prepared, limit_usd: float) -> str:
    """A preview of a run that must be approved, for what it may spend without: Markdown, "" for none.

    On a cluster there is none: its workers make the images.

    Raises:
        InputError: there is nobody to ask for approval.
    """
    on_dask = session.settings.execution.on_dask
    if prepared.cost_usd <= limit_usd or on_dask:
        return ""
    refuse_without_server()  # before the preview is paid for
    images = min(IMAGES, int(limit_usd / (prepared.cost_usd / prepared.images)))
    if not images:
        return ""
    found = preview(session, prepared, images, limit_usd)
    return in_words(session, found) if found.shown else ""


def in_words(session: Session, found: Preview) -> str:
    """A link to the preview's page, as Markdown, and what its pictures cost."""
    pictures = "1 picture" if found.shown == 1 else f"{found.shown} pictures"
    return f"[Look at {pictures} of it]({link_to(session)}), which cost {money(found.paid_usd)}."
