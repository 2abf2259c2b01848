"""Opens the resources of a run in one process: event loop, HTTP client, bucket, job store, engine.

A flow opens the session once and passes it to its tasks. A worker on another machine opens its own session,
and joins the run.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from imagemill.blocks.apis import ImageApi
from imagemill.blocks.apis.connections import http_client
from imagemill.blocks.loading import job_store
from imagemill.bucket.access import open_bucket
from imagemill.bucket.image_bucket import ImageBucket
from imagemill.bucket.output_lease import OutputLease, output_lease
from imagemill.bucket.probe import probe
from imagemill.catalog.access import catalog_of
from imagemill.catalog.files import CatalogFiles
from imagemill.catalog.makers import PictureMaker
from imagemill.catalog.planned_rows import PlannedRows
from imagemill.engine.cost_limit import CostLimit
from imagemill.engine.engine import Engine, StopKind
from imagemill.engine.job_log import JobLog
from imagemill.engine.judging import Judging
from imagemill.engine.limits.leased_rate import EvenRate, LeasedRate
from imagemill.engine.limits.pacer import CEILING, PaceOfAll, Pacer
from imagemill.engine.recorder import Progress, Recorder
from imagemill.engine.telemetry import Telemetry
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.jobs import Job
from imagemill.quality.inspection import Inspection, OnSuspect
from imagemill.quality.judge import Judge
from imagemill.quality.named_judge import named_judge
from imagemill.quality.sampling import AUTO_SHARE
from imagemill.runs.accounts import (
    Account,
    accounts_of,
    learn_models,
    maker_of,
    named_settings,
    pacer_of,
    refuse_past_deadline,
    routes_to,
)
from imagemill.runs.caller import at_a_terminal, current_caller
from imagemill.runs.folder import RunFolder
from imagemill.runs.log_parts import SEND_AGAIN_S, SEND_EVERY_S, LeaderLog, catch_up_with_others
from imagemill.runs.log_replay import known_placeholders
from imagemill.settings import RunSettings
from imagemill.stores import Board, JobStore, JobTotals, open_store

T = TypeVar("T")

CANCEL_GRACE_S = 20.0
"""How long requests in flight may take to finish after a cancellation, at least, in seconds."""


WAKE_S = 1.0
"""No wait of the main thread for requests is longer, in seconds: Python hears of a signal that comes just as
one begins once it ends."""

_DISK_PATIENCE_S = 60.0
"""How long requests wait for a disk that does not take the log before the run stops, in seconds."""

HANDOVER_S = 75.0
"""How long a run that Prefect starts again waits for the process before to let go of it, in seconds: Prefect
kills that one 30 s after SIGTERM, and then its leases last another 30 s."""


class Session:
    """A run's open resources. ``portal`` runs coroutines on the run's event loop, from any thread.

    ``maker`` is the API that makes the pictures, or what stands for several. ``catalog`` is None if the
    run was already planned; ``lease`` is that of the process that leads the run. ``before`` are the store's
    totals as it was opened.

    Not a dataclass: Prefect would walk through its fields whenever a task is given one.
    """

    __slots__ = (
        "_begun", "_disk_trouble", "_half_named", "before", "bucket", "catalog", "cost", "engine", "folder",
        "lease", "log", "maker", "portal", "recorder", "settings", "store",
    )  # fmt: skip

    def __init__(
        self,
        *,
        settings: RunSettings,
        folder: RunFolder,
        maker: PictureMaker,
        bucket: ImageBucket,
        catalog: CatalogFiles | None,
        store: JobStore,
        recorder: Recorder,
        cost: CostLimit,
        engine: Engine,
        log: LeaderLog | None,
        portal: BlockingPortal,
        begun: float,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.maker = maker
        self.bucket = bucket
        self.catalog = catalog
        self.store = store
        self.recorder = recorder
        self.cost = cost
        self.engine = engine
        self.log = log
        self.portal = portal
        self.lease: OutputLease | None = None
        self.before = JobTotals()
        self._begun = begun
        self._half_named = -1
        self._disk_trouble = ""

    @property
    def api(self) -> ImageApi:
        """The API of the first route: of most runs, the only one."""
        return self.engine.routes.first.api

    @property
    def makers(self) -> dict[str, str] | None:
        """The vendor and model of each route, by its name; None in a run over one."""
        routes = self.engine.routes
        if not routes.are_several:
            return None
        return {route.name: f"{route.api.provider}/{route.api.model}" for route in routes}

    def api_of(self, job: Job) -> ImageApi:
        """The API that the job's latest request went to."""
        return self.engine.routes.of(job).api

    @property
    def wall_s(self) -> float:
        """How long the run has been open in this process, in seconds."""
        return time.monotonic() - self._begun

    def wait(self, function: Callable[..., Awaitable[T]], *arguments: object) -> T:
        """Run a coroutine function on the run's event loop and wait for it."""
        return self.portal.call(function, *arguments)

    def work_off(self, function: Callable[[], Awaitable[object]]) -> None:
        """As :meth:`wait`; an interrupt of this thread stops the run and waits for what is in flight."""
        work = self.portal.start_task_soon(function)
        try:
            while not wait([work], WAKE_S).done:
                pass
            work.result()
        except BaseException:
            self._cancel()
            work.exception()  # what is paid for comes home before anything is closed
            raise

    def stop(self, kind: StopKind, reason: str) -> None:
        """Stop the run so that it can be resumed."""
        self.portal.call(self.engine.stop, kind, reason)

    def _cancel(self) -> None:
        """Stop the run as its flow run is cancelled: Prefect waits half a minute before it kills."""
        self.engine.grace_s = max(self.engine.grace_s, CANCEL_GRACE_S)
        self.stop(StopKind.INTERRUPTED, "The flow run was cancelled, or its process ended.")

    def give_way(self, reason: str) -> None:
        """Stop the run because another one may be writing to its output: nothing is published."""
        self.stop(StopKind.INTERRUPTED, reason)

    async def announce(self, unfinished: Sequence[int]) -> None:
        """Tell the bucket which of these jobs come first, before any of them is sent."""
        self.engine.line_up(unfinished)
        if self.log is not None:
            await self._send_log(self.log)

    @property
    def _names_jobs(self) -> bool:
        """Whether the log names the jobs that come next. On a cluster, workers send them."""
        return not self.settings.execution.on_dask

    async def _send_log(self, log: LeaderLog) -> None:
        """Upload the log's new lines, and the names of jobs that may be sent before the next ones."""
        names = self.engine.up_next() if self._names_jobs else []
        try:
            is_sent = await _send(log, self.recorder, names)
        except OSError as error:
            self._disk_trouble = self.folder.trouble(error)
            return
        self._disk_trouble = ""
        if is_sent and names:
            self._half_named = names[len(names) // 2]

    async def keep_sending_log(self) -> None:
        """Upload the log's new lines every few seconds, until cancelled; lines about money sooner."""
        while self.log is not None:
            with anyio.move_on_after(SEND_AGAIN_S):
                await self.recorder.names_wanted()
            with anyio.move_on_after(SEND_EVERY_S - SEND_AGAIN_S):
                await self.recorder.urgent()
            await self._send_log(self.log)

    async def may_send(self, job: Job) -> bool:
        """Wait until the log in the bucket has named the job: another machine may have to ask about it.

        A bucket that is away is waited for a few seconds; it takes no images either. A full disk is waited
        for until the run stops: requests, and what they came to, would be known to nobody.
        """
        await self.holds_output()
        if self._names_jobs and self.log is not None and self.log.is_open:
            if job.number > self._half_named:
                self.recorder.want_names()
            if self.engine.is_unsent(job.number) and not self.recorder.has_named(job.number):
                await self.recorder.until_safe()
            if job.request_id is None:  # to ask about one costs nothing, and may bring its picture home
                await self._until_log_is_written()
        return True

    async def _until_log_is_written(self) -> None:
        trouble = ""
        with anyio.move_on_after(_DISK_PATIENCE_S) as patience:
            while (trouble := self._log_trouble()) and self.engine.stopped is None:
                await self.recorder.until_safe()
        if patience.cancelled_caught and trouble:
            self.engine.stop(StopKind.UNAVAILABLE, trouble)

    def _log_trouble(self) -> str:
        """Why the disk does not take the log, if it does not."""
        try:
            self.recorder.flush()
        except OSError as error:
            return self.folder.trouble(error)
        return self._disk_trouble

    async def holds_output(self) -> None:
        """If the output's lease expired while this process was suspended, wait until it is ours again.

        The lease's own thread renews it, or stops the run.
        """
        while self.lease is not None and self.lease.is_late and self.engine.stopped is None:  # noqa: ASYNC110
            await anyio.sleep(0.1)

    async def may_upload(self) -> None:
        """Wait as :meth:`holds_output` does, before an image is uploaded.

        Raises:
            StoreUnavailableError: another run holds the output, and may have uploaded that picture.
        """
        await self.holds_output()
        if self.lease is not None:
            self.lease.refuse_if_lost()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Stop the run when its caller interrupts it or an exception leaves the block. It can be resumed.

        Interrupted once more, it does not wait for requests in flight. Without the block, the threads would
        continue to the end of their shards, and Prefect, which waits half a minute for a cancelled run, would
        kill the process.
        """
        times = itertools.count()

        def interrupt(reason: str) -> None:
            if not next(times):
                self.portal.start_task_soon(self.engine.stop, StopKind.INTERRUPTED, reason)
            elif self.settings.execution.on_dask:  # the requests are the workers'
                raise KeyboardInterrupt(f"Interrupted. Resume with: imagemill resume {self.settings.run_id}")
            else:
                self.portal.start_task_soon(self.engine.let_go)

        with current_caller().interrupting(interrupt):
            try:
                yield
            except BaseException:
                self._cancel()
                raise


@dataclass(frozen=True, slots=True)
class Joining:
    """How a process joins a run that another one leads.

    ``name`` identifies it in logs; ``rate`` is its share of the account's images per minute.
    """

    name: str
    rate: Callable[[ImageApi, float], LeasedRate]


@contextmanager
def open_session(settings: RunSettings, joining: Joining | None = None) -> Iterator[Session]:
    """Open a run in this process, and close everything after the block.

    Raises:
        InputError: something that the settings name cannot be used.
    """
    begun = time.monotonic()
    with ExitStack() as stack:
        settings, apis = named_settings(settings)
        judge = named_judge(settings.quality, settings.limits, Pacer(settings.quality.judge_concurrency))
        bucket = open_bucket(settings.output)
        stack.callback(bucket.close)
        probe(bucket)
        folder = RunFolder(settings.run_id)
        with folder.trouble_named():
            catalog = None if joining else _unplanned_catalog(settings, folder, bucket)
            if catalog is not None:
                refuse_past_deadline(settings.limits)
            store = _open_store(settings, folder, catalog, join=joining is not None)
            if joining:
                folder.fetch_models(bucket, [route.name for route in settings.routes])
            learn_models(settings, apis, folder)
            maker, accounts = maker_of(settings, apis), accounts_of(settings, apis)
            show = current_caller().show
            portal = stack.enter_context(
                start_blocking_portal(
                    name="imagemill-engine", backend_options={"use_uvloop": find_spec("uvloop") is not None}
                )
            )
            parts = _Parts(
                settings, folder, maker, accounts, bucket, catalog, store, show, portal, begun, judge
            )
            session = stack.enter_context(on_loop(portal, _running(parts, joining)))
        if joining is None:
            lease = output_lease(bucket, settings.run_id, session.give_way, patience_s=_patience_s())
            session.lease = stack.enter_context(lease)
            session.engine.fence = session.may_send
            session.engine.before_upload = session.may_upload
            if session.log is not None:
                session.log.is_open = True
        yield session


def _patience_s() -> float:
    """How long to wait for another process that works on the same run; a person is told at once."""
    return 0.0 if at_a_terminal() else HANDOVER_S


@contextmanager
def on_loop(portal: BlockingPortal, context: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enter a context on the portal's event loop while the block runs.

    It does not see what the block raises: its task groups would wrap that in an ExceptionGroup.
    """
    with ExitStack() as stack:
        entered = stack.enter_context(portal.wrap_async_context_manager(context))
        entering = stack.pop_all()
    try:
        yield entered
    finally:
        entering.close()


def _unplanned_catalog(settings: RunSettings, folder: RunFolder, bucket: ImageBucket) -> CatalogFiles | None:
    """The catalog, if the run has not been planned yet, here or on another machine."""
    folder.fetch(bucket)
    if folder.record.exists():
        catch_up_with_others(bucket, folder)
    return None if folder.read_record() else catalog_of(settings.catalog, settings.output)


def _open_store(
    settings: RunSettings, folder: RunFolder, catalog: CatalogFiles | None, *, join: bool
) -> JobStore:
    jobs = catalog.rows * catalog.variations.per_row if catalog else 0
    if not join and (record := folder.read_record()):
        jobs = record[1].rows * record[1].variants
    folder.create()
    named, password = job_store(settings.execution)
    store = open_store(
        named, rows=jobs, run_id=settings.run_id, folder=folder.path, password=password, join=join
    )
    store.patience_s = _patience_s()
    if settings.execution.on_dask and not isinstance(store, Board):
        raise InputError("A run on Dask needs a job store in Postgres or Redis.")
    return store


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts that are open before the event loop runs."""

    settings: RunSettings
    folder: RunFolder
    maker: PictureMaker
    accounts: list[Account]
    bucket: ImageBucket
    catalog: CatalogFiles | None
    store: JobStore
    show: Callable[[Progress], None] | None
    portal: BlockingPortal
    begun: float
    judge: Judge | None


@asynccontextmanager
async def _running(parts: _Parts, joining: Joining | None) -> AsyncIterator[Session]:
    settings, store, accounts = parts.settings, parts.store, parts.accounts
    limits, several = settings.limits, len(parts.accounts) > 1
    async with AsyncExitStack() as stack:
        clients = [
            http_client(account.api.request_timeout_s, account.concurrency or CEILING) for account in accounts
        ]
        for http in clients:
            await stack.enter_async_context(http)
        await stack.enter_async_context(store)
        leased = [
            joining.rate(account.api, account.per_minute) if joining and account.per_minute else None
            for account in accounts
        ]
        joint = EvenRate(limits.max_images_per_minute) if several and limits.max_images_per_minute else None
        pacers = [pacer_of(account, rate, joint) for account, rate in zip(accounts, leased, strict=True)]
        log = None
        if joining is None:
            if parts.folder.is_overtaken:
                if not isinstance(store, Board):  # a server's store is the other machines' too
                    await store.clear()
                parts.folder.set_overtaken(False)
            log = await anyio.to_thread.run_sync(LeaderLog, parts.bucket, parts.folder)
            stack.push_async_callback(_send_last, log)
        recorder = _recorder(parts, PaceOfAll(pacers) if several else pacers[0], joining)
        stack.callback(recorder.close)
        before = await store.totals()
        if joining and isinstance(store, Board):
            cost = CostLimit(limits.max_cost_usd, set_aside=_set_aside(store, limits.max_cost_usd))
            stack.push_async_callback(cost.give_back)
        else:
            cost = CostLimit(limits.max_cost_usd, before.cost_usd, before.unanswered_usd)
        judging = None
        if parts.judge is not None:
            judge = await stack.enter_async_context(parts.judge)
            rows = PlannedRows(parts.folder.plan)
            judging = Judging(judge, settings.quality.judge_threshold, cost, recorder, rows)
        routes = await routes_to(
            accounts,
            pacers,
            clients,
            recorder,
            store,
            before,
            limits,
            settings.execution.give_up,
            log=parts.folder.log,
        )
        routes.parks = routes.parks and joining is None
        engine = Engine(
            routes=routes,
            bucket=parts.bucket,
            store=store,
            cost=cost,
            recorder=recorder,
            inspection=Inspection(
                {"auto": AUTO_SHARE, "all": 1.0, "off": 0.0}[settings.quality.measure],
                placeholders=known_placeholders(parts.folder.log),
            ),
            on_suspect=OnSuspect(settings.quality.on_suspect),
            judging=judging,
            unsaved=parts.folder.unsaved,
        )
        engine.grace_s = settings.execution.grace_s
        watch = await stack.enter_async_context(anyio.create_task_group())
        watch.start_soon(recorder.keep_time)
        watch.start_soon(engine.abandon_when_interrupted)
        for rate, pacer in zip(leased, pacers, strict=True):
            if rate is not None:
                watch.start_soon(_keep_leasing, rate, engine, pacer)
        stack.callback(watch.cancel_scope.cancel)
        session = Session(
            settings=settings,
            folder=parts.folder,
            maker=parts.maker,
            bucket=parts.bucket,
            catalog=parts.catalog,
            store=store,
            recorder=recorder,
            cost=cost,
            engine=engine,
            log=log,
            portal=parts.portal,
            begun=parts.begun,
        )
        session.before = before
        watch.start_soon(session.keep_sending_log)
        yield session


async def _send(log: LeaderLog, recorder: Recorder, up_next: Sequence[int]) -> bool:
    """Upload the log's new lines; whether the bucket took them. Else they go with the next ones.

    Raises:
        OSError: the disk does not take them.
    """
    if not log.is_open:
        return False
    named = recorder.up_next(up_next)
    try:
        unsafe = recorder.uploading()
        await log.send()
    except StoreUnavailableError:
        return False
    recorder.named_safely(named)
    for event in unsafe:
        event.set()
    return True


async def _send_last(log: LeaderLog) -> None:
    with anyio.CancelScope(shield=True), suppress(StoreUnavailableError, OSError):
        await log.send()


def _recorder(parts: _Parts, pacer: Pacer | PaceOfAll, joining: Joining | None) -> Recorder:
    run_id = parts.settings.run_id
    log = worker_log(parts.folder, joining.name) if joining else parts.folder.log
    job_log = JobLog(run_id, log, worker=joining.name if joining else None)
    telemetry = Telemetry(run_id, parts.settings.providers, parts.maker.model)
    return Recorder(run_id, job_log, pacer, telemetry, listener=parts.show)


def worker_log(folder: RunFolder, name: str) -> Path:
    """The log of the process that joined the run under this name."""
    return folder.path / f"log-{name}.jsonl"


async def _keep_leasing(rate: LeasedRate, engine: Engine, pacer: Pacer) -> None:
    try:
        await rate.keep(pacer.look_again)
    except StoreUnavailableError as error:
        engine.stop(StopKind.UNAVAILABLE, str(error))


def _set_aside(board: Board, limit_usd: float | None) -> Callable[[float, float], Awaitable[bool]]:
    async def set_aside(usd: float, spare_usd: float) -> bool:
        return await board.commit_usd(usd, (limit_usd or 0.0) - spare_usd)

    return set_aside
