"""What a run holds open in one process: event loop, HTTP client, bucket, job store, engine.

Threads of one process share it: the flow opens it, each shard joins it, the last to leave closes it. A
process that only got a shard, on another machine, opens its own.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import anyio
import boto3
import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from prefect.blocks.core import Block
from pydantic import ValidationError

from imagemill.blocks.apis import PROVIDERS, ImageApi
from imagemill.blocks.store_servers import StoreServer
from imagemill.bucket.image_bucket import ImageBucket
from imagemill.catalog.files import CatalogFiles, open_catalog
from imagemill.cluster.global_rate import leased_rate
from imagemill.cluster.log_parts import LogPart
from imagemill.cluster.membership import Crew, member_name
from imagemill.engine.breaker import Breaker
from imagemill.engine.cost_limit import CostLimit
from imagemill.engine.engine import Engine, StopKind
from imagemill.engine.job_log import JobLog
from imagemill.engine.limits.leased_rate import LeasedRate
from imagemill.engine.limits.pacer import CEILING, Limit, Pacer
from imagemill.engine.recorder import Recorder
from imagemill.engine.telemetry import Telemetry
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.runs.folder import RunFolder
from imagemill.runs.remembered_limit import read_limit
from imagemill.settings import (
    ApiSettings,
    CatalogSettings,
    ExecutionSettings,
    OutputSettings,
    RunSettings,
    input_error,
)
from imagemill.stores import Board, JobStore, open_store

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Session:
    """A run's open resources. ``portal`` runs coroutines on the run's event loop, from any thread."""

    settings: RunSettings
    folder: RunFolder
    api: ImageApi
    bucket: ImageBucket
    store: JobStore
    recorder: Recorder
    cost: CostLimit
    pacer: Pacer
    engine: Engine
    portal: BlockingPortal
    crew: Crew | None = None
    part: LogPart | None = None

    def wait(self, function: Callable[..., Awaitable[T]], *arguments: object) -> T:
        """Run a coroutine function on the run's event loop and wait for it."""
        return self.portal.call(function, *arguments)


@dataclass(slots=True)
class _Shared:
    session: Session
    stack: ExitStack
    users: int = 0


_sessions: dict[str, _Shared] = {}
_lock = threading.Lock()


@contextmanager
def open_session(settings: RunSettings, *, member: bool = False) -> Iterator[Session]:
    """The run's session in this process; opened by the first to ask, closed by the last to leave.

    A ``member`` works on a run that another process leads.

    Raises:
        InputError: something the settings name cannot be used; says what.
    """
    with _lock:
        shared = _sessions.get(settings.run_id)
        if shared is None:
            shared = _open(settings, member=member)
            _sessions[settings.run_id] = shared
        shared.users += 1
    try:
        yield shared.session
    finally:
        with _lock:
            shared.users -= 1
            last = shared.users == 0
            if last:
                del _sessions[settings.run_id]
        if last:
            shared.stack.close()


def interrupt(reason: str) -> bool:
    """Stop all runs of this process, resumably. False where there is none."""
    with _lock:
        sessions = [shared.session for shared in _sessions.values()]
    for session in sessions:
        session.portal.start_task_soon(session.engine.stop, StopKind.INTERRUPTED, reason)
    return bool(sessions)


@contextmanager
def stopped_with_the_flow(session: Session) -> Iterator[None]:
    """Stop the run, resumably, where the block is left by an exception: cancelled, or a shard that crashed.

    Otherwise the threads that work on shards would go on to the shards' ends, and Prefect, which waits half a
    minute for a cancelled run, would kill the process.
    """
    try:
        yield
    except BaseException:
        session.portal.call(
            session.engine.stop, StopKind.INTERRUPTED, "The flow run was cancelled, or its process ended."
        )
        raise


def image_api(settings: ApiSettings, *, needs_key: bool = True) -> ImageApi:
    """The image API that the settings name: a saved block, or the vendor with the environment's key.

    ``needs_key=False`` is for estimates, which ask the API nothing.
    """
    if settings.block:
        try:
            block = Block.load(settings.block)
        except ValueError as error:
            raise InputError(f"There is no saved block {settings.block!r}: {error}") from error
        if not isinstance(block, ImageApi):
            raise InputError(f"The block {settings.block!r} is not an image API.")
        return _as_said(block, settings)
    api = PROVIDERS.get(settings.provider)
    if api is None:
        raise InputError(
            f"There is no provider {settings.provider!r}: choose one of {', '.join(sorted(PROVIDERS))}."
        )
    given = {
        "base_url": settings.base_url or "",
        "model": settings.model or "",
        "request_timeout_s": settings.request_timeout_s,
    }
    try:
        return api.from_environment(**given) if needs_key else api(api_key="none", **given)
    except ValidationError as error:
        raise input_error(error) from error


def _as_said(block: ImageApi, settings: ApiSettings) -> ImageApi:
    """The block, but for the address and the model that the settings name beside it."""
    said = {"base_url": settings.base_url, "model": settings.model}
    held = {name: getattr(block, name) for name in type(block).model_fields}
    try:
        return type(block)(**held | {name: value for name, value in said.items() if value is not None})
    except ValidationError as error:
        raise input_error(error) from error


def store_of(settings: ExecutionSettings) -> str | None:
    """The job store that the settings name: as it stands there, or of a saved block."""
    kind, _, name = (settings.store or "").partition(":")
    if kind != "block":
        return settings.store
    try:
        block = Block.load(name)
    except ValueError as error:
        raise InputError(f"There is no saved block {name!r}: {error}") from error
    if not isinstance(block, StoreServer):
        raise InputError(f"The block {name!r} is not a job store.")
    return block.store()


def aws_session(output: OutputSettings) -> tuple[boto3.Session, str | None]:
    """The boto3 session and S3 endpoint that the settings name: a saved S3Bucket block's, or boto3's own."""
    if not output.s3_bucket_block:
        return boto3.Session(), output.s3_endpoint_url
    # The package loads its ECS worker too, half a second of CPU, and only a saved block needs it.
    from prefect_aws.s3 import S3Bucket  # noqa: PLC0415

    try:
        block = S3Bucket.load(output.s3_bucket_block)
    except ValueError as error:
        raise InputError(f"There is no saved block {output.s3_bucket_block!r}: {error}") from error
    credentials = block.credentials
    parameters = getattr(credentials, "aws_client_parameters", None)
    endpoint = output.s3_endpoint_url or (parameters and parameters.endpoint_url)
    return credentials.get_boto3_session(), endpoint


def catalog_of(catalog: CatalogSettings, output: OutputSettings | None) -> CatalogFiles:
    """The catalog, its files found and their columns checked; s3:// is reached as the output is."""
    if not catalog.path.startswith("s3://"):
        return open_catalog(catalog)
    session, endpoint_url = aws_session(output) if output else (boto3.Session(), None)
    return open_catalog(catalog, session=session, endpoint_url=endpoint_url)


def open_bucket(output: OutputSettings) -> ImageBucket:
    """The bucket that the settings name; seen to be there."""
    session, endpoint_url = aws_session(output)
    bucket = ImageBucket(output.uri, endpoint_url=endpoint_url, session=session)
    bucket.check()
    return bucket


def _open(settings: RunSettings, *, member: bool) -> _Shared:
    with ExitStack() as stack:
        api = image_api(settings.api)
        bucket = open_bucket(settings.output)
        stack.callback(bucket.close)
        folder = RunFolder(settings.run_id)
        rows = 0
        if not member:
            folder.fetch(bucket)
            record = folder.read_record()
            rows = record[1].rows if record else catalog_of(settings.catalog, settings.output).rows
        folder.create()
        named = store_of(settings.execution)
        store = open_store(named, rows=rows, run_id=settings.run_id, folder=folder.path, join=member)
        on_dask = settings.execution.task_runner == "dask"
        if on_dask and not isinstance(store, Board):
            raise InputError("A run on Dask needs a job store in Postgres or Redis.")
        known = read_limit(api) if settings.limits.concurrency == "auto" else None
        per_minute = settings.limits.max_images_per_minute
        leased = leased_rate(api, per_minute) if member and per_minute else None
        portal = stack.enter_context(start_blocking_portal(name="imagemill-engine"))
        running = _running(settings, folder, api, bucket, store, known, portal, leased, member=member)
        session = stack.enter_context(portal.wrap_async_context_manager(running))
        return _Shared(session, stack.pop_all())


@asynccontextmanager
async def _running(
    settings: RunSettings,
    folder: RunFolder,
    api: ImageApi,
    bucket: ImageBucket,
    store: JobStore,
    known: Limit | None,
    portal: BlockingPortal,
    leased: LeasedRate | None,
    *,
    member: bool,
) -> AsyncIterator[Session]:
    limits = settings.limits
    fixed = limits.concurrency if isinstance(limits.concurrency, int) else None
    connections = (fixed or CEILING) + 8
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            httpx.AsyncClient(
                timeout=httpx.Timeout(settings.api.request_timeout_s, connect=10.0),
                limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
                trust_env=True,
            )
        )
        await stack.enter_async_context(store)
        pacer = Pacer(fixed, limits.max_images_per_minute, known=known, leased=leased)
        telemetry = Telemetry(settings.run_id, settings.api.provider, api.model)
        name = member_name()
        log = folder.path / f"log-{name}.jsonl" if member else folder.log
        job_log = JobLog(settings.run_id, log, worker=name if member else None)
        recorder = Recorder(settings.run_id, job_log, pacer, telemetry)
        stack.callback(recorder.close)
        if member and isinstance(store, Board):
            cost = CostLimit(limits.max_cost_usd, set_aside=_set_aside(store, limits.max_cost_usd))
            stack.push_async_callback(cost.give_back)
        else:
            before = await store.totals()
            cost = CostLimit(limits.max_cost_usd, before.cost_usd, before.unanswered_usd)
        engine = Engine(
            api=api,
            http=http,
            bucket=bucket,
            store=store,
            pacer=pacer,
            cost=cost,
            breaker=Breaker(limits.outage_share, limits.outage_timeout_s),
            recorder=recorder,
            unsaved=folder.unsaved,
        )
        crew = None
        if isinstance(store, Board) and settings.execution.task_runner == "dask":
            crew = Crew(store, name, leads=not member, engine=engine, recorder=recorder, rate=leased)
            await crew.join()
            stack.push_async_callback(crew.leave)
        watch = await stack.enter_async_context(anyio.create_task_group())
        watch.start_soon(recorder.keep_time)
        watch.start_soon(engine.abandon_when_interrupted)
        if crew is not None:
            watch.start_soon(crew.keep_touch, pacer.look_again)
        if leased is not None:
            watch.start_soon(_keep_leasing, leased, engine, pacer)
        stack.callback(watch.cancel_scope.cancel)
        part = LogPart(bucket, settings.run_id, name, log) if member else None
        yield Session(settings, folder, api, bucket, store, recorder, cost, pacer, engine, portal, crew, part)


async def _keep_leasing(rate: LeasedRate, engine: Engine, pacer: Pacer) -> None:
    try:
        await rate.keep(pacer.look_again)
    except StoreUnavailableError as error:
        engine.stop(StopKind.UNAVAILABLE, str(error))


def _set_aside(board: Board, limit_usd: float | None) -> Callable[[float], Awaitable[bool]]:
    async def set_aside(usd: float) -> bool:
        return await board.commit_usd(usd, limit_usd or 0.0)

    return set_aside
