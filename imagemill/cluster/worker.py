"""The work of a Dask worker process on a run that another process leads."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from distributed import WorkerPlugin, get_worker

from imagemill.blocks.apis import ImageApi
from imagemill.cluster.global_rate import leased_rate
from imagemill.cluster.membership import Membership, joined, member_name
from imagemill.engine.limits.leased_rate import LeasedRate
from imagemill.errors import StoreUnavailableError
from imagemill.runs.log_parts import WorkerLog
from imagemill.runs.recovery import find_images, upload_unsaved
from imagemill.runs.session import Joining, Session, on_loop, open_session, worker_log
from imagemill.settings import RunSettings
from imagemill.stores import Shard

_SEND_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class _Member:
    """This process's session, its membership in the run, and its part of the log."""

    session: Session
    membership: Membership
    part: WorkerLog


class RunMember(WorkerPlugin):  # type: ignore[misc] # Dask has no types
    """A Dask worker plugin with the session that all shards of a run share in the worker's process.

    The first shard opens the session. It stays open between shards, with its connections and what it has
    learned about the account's limit, until the run is over.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.name = plugin_name(settings)
        self._settings = settings

    def setup(self, worker: Any) -> None:  # noqa: ANN401, ARG002 - Dask's interface
        """Initialize in the worker's process, without opening anything yet."""
        self._opened: Future[_Member] | None = None
        self._changed = threading.Condition()
        self._shards = 0

    def teardown(self, worker: Any) -> None:  # noqa: ANN401
        """Nothing to do: the session closes itself when the run is over."""

    @contextmanager
    def member(self) -> Iterator[_Member]:
        """The open session, for one shard."""
        with self._changed:
            self._shards += 1
            opened = self._opened
            if opened is None:
                opened = self._opened = Future()
                # The thread needs the task run's context: it has the settings with Prefect's address.
                keep = contextvars.copy_context().run
                threading.Thread(
                    target=keep, args=(self._keep, opened), name="imagemill-member", daemon=True
                ).start()
        try:
            yield opened.result()
        finally:
            with self._changed:
                self._shards -= 1
                self._changed.notify_all()

    def _keep(self, opened: Future[_Member]) -> None:
        try:
            with _open_member(self._settings) as member:
                opened.set_result(member)
                with contextlib.suppress(StoreUnavailableError):
                    upload_unsaved(member.session)
                while not member.session.wait(_is_over, member.membership):
                    _send_lines(member)
                with self._changed:
                    self._opened = None
                    self._changed.wait_for(lambda: self._shards == 0)
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)
        finally:
            with self._changed:
                if self._opened is opened:
                    self._opened = None


def plugin_name(settings: RunSettings) -> str:
    """The name of a run's plugin in the workers."""
    return f"imagemill-{settings.run_id}"


def work_off(settings: RunSettings, shard: Shard) -> None:
    """Process the unfinished jobs of a shard, after recovering what a dead process had begun."""
    plugin: RunMember = get_worker().plugins[plugin_name(settings)]
    with plugin.member() as member, member.session.recorder.telemetry.shard(*shard):
        session, membership = member.session, member.membership
        before = session.wait(membership.claim, shard)
        try:
            if before:
                unfinished = session.wait(session.store.unfinished_numbers)
                find_images(session, [n for n in unfinished if shard.first <= n <= shard.last], begun=True)
            session.wait(session.engine.run_shard, *shard)
        finally:
            session.portal.call(session.recorder.write_pace)
            _send_lines(member)
            session.wait(membership.release, shard)


@contextmanager
def _open_member(settings: RunSettings) -> Iterator[_Member]:
    name = member_name()
    leased: list[LeasedRate] = []

    def rate(api: ImageApi, per_minute: float) -> LeasedRate:
        leased.append(leased_rate(api, per_minute))
        return leased[-1]

    with open_session(settings, Joining(name, rate)) as session:
        part = WorkerLog(session.bucket, settings.run_id, name, worker_log(session.folder, name))
        membership = Membership(
            session.store,  # type: ignore[arg-type] # a run on Dask has a board, or was refused
            name,
            leads=False,
            engine=session.engine,
            recorder=session.recorder,
            rates=leased,
        )
        session.engine.fence = lambda job: membership.owns(job.number)
        with on_loop(session.portal, joined(membership, session.engine.routes.look_again)):
            yield _Member(session, membership, part)


async def _is_over(membership: Membership) -> bool:
    with anyio.move_on_after(_SEND_EVERY_S):
        await membership.over.wait()
        return True
    return False


def _send_lines(member: _Member) -> None:
    with contextlib.suppress(StoreUnavailableError):
        member.part.send()
