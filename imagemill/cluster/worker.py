"""Works off shards of a run that another process leads, in a worker process of a cluster."""

from __future__ import annotations

import contextlib
import contextvars
import threading

import anyio

from imagemill.errors import StoreUnavailableError
from imagemill.runs.session import Session, open_session
from imagemill.settings import RunSettings
from imagemill.stores import Shard
from imagemill.tasks.prepare import find_images, upload_unsaved

_SEND_EVERY_S = 5.0

_kept: set[str] = set()
_lock = threading.Lock()


def work_off(settings: RunSettings, shard: Shard) -> None:
    """Work off the unfinished jobs of a shard; what a process that died had begun is looked for first."""
    with open_session(settings, member=True) as session, session.recorder.telemetry.shard(*shard):
        assert session.crew  # noqa: S101 - a member's session has one
        _keep_open(settings)
        before = session.wait(session.crew.take, shard)
        try:
            if before:
                unfinished = session.wait(session.store.unfinished_numbers)
                find_images(session, [n for n in unfinished if shard.first <= n <= shard.last], begun=True)
            session.wait(session.engine.run_shard, *shard)
        finally:
            session.portal.call(session.recorder.write_pace)
            _send_lines(session)
            session.wait(session.crew.put_down, shard)


def _keep_open(settings: RunSettings) -> None:
    """Keep the session open between shards until the run is over: engine, connections, what was learned."""
    with _lock:
        if settings.run_id in _kept:
            return
        _kept.add(settings.run_id)
    # The thread has to see this task run's settings: they say where Prefect's API is.
    keep = contextvars.copy_context().run
    threading.Thread(target=keep, args=(_keep, settings), name="imagemill-member", daemon=True).start()


def _keep(settings: RunSettings) -> None:
    try:
        with open_session(settings, member=True) as session:
            with contextlib.suppress(StoreUnavailableError):
                upload_unsaved(session)
            while not session.wait(_is_over, session):
                _send_lines(session)
    finally:
        with _lock:
            _kept.discard(settings.run_id)


async def _is_over(session: Session) -> bool:
    with anyio.move_on_after(_SEND_EVERY_S):
        assert session.crew  # noqa: S101
        await session.crew.over.wait()
        return True
    return False


def _send_lines(session: Session) -> None:
    with contextlib.suppress(StoreUnavailableError):
        if session.part:
            session.part.send()
