"""What is put in place of the outside world, below the product's own code, while simulations run.

Clocks, threads, processes' identities, random names, S3 clients, HTTP clients and SQLite's threads. All of
:mod:`imagemill` above that runs as it is.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import inspect
import random
import sys
import time
import types
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from unittest import mock

import aiosqlite.core
import anyio
import anyio._core._eventloop
import anyio.to_thread
import boto3
import obstore
import pyarrow.parquet as pq
import sqlalchemy as sa
from anyio._backends._asyncio import CancelScope
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.util import LRUCache

import imagemill.bucket.access
import imagemill.bucket.image_bucket
import imagemill.bucket.output_lease
import imagemill.bucket.probe
import imagemill.engine.engine
import imagemill.holder
import imagemill.pipeline
import imagemill.quality.inspection
import imagemill.reports.measurement
import imagemill.runs.accounts
import imagemill.runs.folder
import imagemill.runs.log_parts
import imagemill.runs.records
import imagemill.runs.session
import imagemill.s3.connection
import imagemill.stores.sql
import imagemill.stores.tables
import imagemill.stores.version
from imagemill.blocks.apis import PROVIDERS
from imagemill.bucket.manifest_diff import Changes
from imagemill.catalog.counts import PlanCounts
from imagemill.quality.measures import Measures, measure
from imagemill.runs.session import Session
from imagemill.runs.summary import RunSummary
from imagemill.store_address import PASSWORD_VARIABLE
from imagemill.stores.sql import SqliteStore
from imagemill.stores.tables import METADATA
from tests.simulation.object_store import Bucket, Client, ImageStore
from tests.simulation.vendor import STAMP, Vendors
from tests.simulation.world import Killed, Process, World, call

if TYPE_CHECKING:
    from tests.simulation.store_server import StoreServer

_REAL_TIME, _REAL_MONOTONIC = time.time, time.monotonic
_REAL_DATETIME = dt.datetime


class Scene:
    """The world of the simulation that runs now."""

    world: World
    bucket: Bucket
    vendors: Vendors
    store_server: StoreServer
    home: Path
    measures = True
    """Whether reports are made too, which take most of the real time of a simulation."""


scene = Scene()


class _DateTime(_REAL_DATETIME):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]
        return _REAL_DATETIME.fromtimestamp(scene.world.wall(), tz)


def _process() -> Process:
    process = scene.world.process
    if process is None:
        raise RuntimeError("this is asked outside of a simulated process")
    return process


# Threads


class _Portal:
    """The portal to the loop: from greenlets instead of threads."""

    def call(self, function: Callable[..., Any], *arguments: object) -> Any:
        scene.world.point("wait")
        return scene.world.wait(scene.world.loop.create_task(call(function, *arguments)))

    def start_task_soon(self, function: Callable[..., Any], *arguments: object) -> _Result:
        return _Result(scene.world.loop.create_task(call(function, *arguments)))

    def wrap_async_context_manager(
        self, context: AbstractAsyncContextManager[Any]
    ) -> AbstractContextManager[Any]:
        return self._entered(context)

    @contextmanager
    def _entered(self, context: AbstractAsyncContextManager[Any]) -> Iterator[Any]:
        world = scene.world
        entered: asyncio.Future[Any] = world.loop.create_future()
        leave = asyncio.Event()

        async def hold() -> None:
            try:
                async with context as value:
                    entered.set_result(value)
                    await leave.wait()
            except BaseException as error:
                if not entered.done():
                    entered.set_exception(error if not isinstance(error, Killed) else RuntimeError("killed"))
                    return
                raise

        task = world.loop.create_task(hold())
        value = world.wait(entered)
        try:
            yield value
        finally:
            leave.set()
            world.wait(task)


class _Result:
    def __init__(self, task: asyncio.Future[Any]) -> None:
        self._task = task

    def result(self) -> Any:
        return scene.world.wait(self._task)


@contextmanager
def _portal(**_: object) -> Iterator[_Portal]:
    yield _Portal()


class _Executor:
    """A thread pool that runs each function where it is asked."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: object) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done

    def map(self, function: Callable[..., Any], *arguments: Iterable[Any]) -> Iterator[Any]:
        return iter([function(*each) for each in zip(*arguments, strict=False)])


class _Event:
    def __init__(self) -> None:
        self._set = False
        self._waiting: list[asyncio.Future[None]] = []

    def set(self) -> None:
        self._set = True
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float) -> bool:
        if not self._set:
            over = scene.world.loop.create_future()
            self._waiting.append(over)
            scene.world.loop.call_later(timeout, lambda: over.done() or over.set_result(None))
            scene.world.wait(over)
            self._waiting.remove(over)
        return self._set


class _Thread:
    def __init__(self, target: Callable[[], None], **_: object) -> None:
        self._target = target

    def start(self) -> None:
        self._over = _process().spawn(self._target)

    def join(self) -> None:
        if not self._over.done():
            scene.world.wait(self._over)


class _Runner:
    """Shards in greenlets, in place of Prefect's task runner."""

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, task: Any, parameters: dict[str, Any]) -> _Runner:
        session = parameters["session"].value
        self._over = [
            _process().spawn(lambda shard=shard: task.fn(session, shard)) for shard in parameters["shard"]
        ]
        return self

    def result(self) -> None:
        for over in self._over:
            if not over.done():
                scene.world.wait(over)
            over.result()


class _PlainTask:
    """A task without Prefect: its options say only what the UI shows."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def with_options(self, **_: object) -> Callable[..., Any]:
        return self._function


async def _run_sync(
    function: Callable[..., Any], *arguments: object, abandon_on_cancel: bool = False, **_: object
) -> Any:
    scene.world.point("wait")
    process = scene.world.process
    if process is None:
        return function(*arguments)
    await asyncio.sleep(0.0005)
    with anyio.CancelScope(shield=not abandon_on_cancel):
        return await process.spawn(lambda: function(*arguments))


# Identities


class _Random:
    """The module ``random`` with generators that the seed of the simulation decides."""

    @staticmethod
    def Random() -> random.Random:  # noqa: N802
        return random.Random(scene.world.uuids.random())


def _uuid4() -> uuid.UUID:
    return uuid.UUID(int=scene.world.uuids.getrandbits(128), version=4)


def _read(path: str) -> str:
    machine = _process().machine
    return {"/etc/machine-id": machine.name, "/proc/sys/kernel/random/boot_id": f"{machine.boots}"}.get(
        path, ""
    )


def _process_start(pid: int) -> str | None:
    other = scene.world.alive.get(pid)
    return str(pid) if other is not None and other.alive else None


# S3


def _client(connection: Any, *, attempts: int = 6, **_: object) -> Client:
    connection._address = "http://s3"
    return Client(scene.bucket, attempts)


def _store(_: object, *, retries: int = 8) -> ImageStore:
    return ImageStore(scene.bucket, retries)


async def _put_async(store: ImageStore, key: str, content: bytes, **given: Any) -> dict[str, Any]:
    return await store.put_async(key, content, given["attributes"])


def _put(store: ImageStore, key: str, content: bytes, **_: object) -> dict[str, Any]:
    return {"e_tag": store.blocking(f"PutObject {key}", lambda: store.bucket.put(key, content))}


class _Got:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def bytes(self) -> bytes:
        return self._content


def _get(store: ImageStore, key: str) -> _Got:
    return _Got(store.blocking(f"GetObject {key}", lambda: store.bucket.get(key).content))


def _head(store: ImageStore, key: str) -> dict[str, Any]:
    found = store.blocking(f"HeadObject {key}", lambda: store.bucket.get(key))
    return {"size": len(found.content)}


def _get_range(store: ImageStore, path: str, *, start: int, length: int) -> bytes:
    return store.blocking(f"GetObject {path}", lambda: store.bucket.get(path).content[start : start + length])


# SQLite, without its thread


class _NoThread:
    def __init__(self, *_: object, **__: object) -> None:
        self.daemon = True

    def start(self) -> None:
        pass


class _InlineQueue:
    """Takes what aiosqlite would hand to its thread, and does it at once."""

    def put_nowait(self, item: tuple[asyncio.Future[Any] | None, Callable[[], Any]]) -> None:
        future, function = item
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - handed on, as the thread does
            if future is not None:
                future.set_exception(error)
                future.exception()
        else:
            if future is not None:
                future.set_result(result)


def _clocks() -> Iterator[tuple[object, str, object]]:
    """What in the product holds a clock: names in modules, and defaults of functions."""
    swaps: dict[object, object] = {_REAL_TIME: _wall, _REAL_MONOTONIC: _monotonic, time.sleep: _sleep}
    swaps[time.process_time, time.thread_time] = (_monotonic, _monotonic)
    for name, module in list(sys.modules.items()):
        if not name.startswith("imagemill"):
            continue
        if getattr(module, "datetime", None) is _REAL_DATETIME:
            yield module, "datetime", _DateTime
        for item in list(vars(module).values()):
            methods = list(vars(item).values()) if inspect.isclass(item) else [item]
            for method in methods:
                function = getattr(method, "__wrapped__", method)
                defaults = getattr(function, "__kwdefaults__", None)
                if isinstance(function, types.FunctionType) and defaults:
                    try:
                        swapped = {key: swaps.get(value, value) for key, value in defaults.items()}
                    except TypeError:
                        continue
                    if swapped != defaults:
                        yield function, "__kwdefaults__", swapped


def _wall() -> float:
    return scene.world.wall()


def _monotonic() -> float:
    return scene.world.monotonic()


def _sleep(seconds: float) -> None:
    scene.world.sleep(seconds)


def _measured(session: Session, counts: PlanCounts, changes: Changes) -> RunSummary:
    if scene.measures:
        return imagemill.reports.measurement.publish_measurements(session, counts, changes)
    return imagemill.reports.measurement.count(session, counts)


def _engine(*given: Any, **named: Any) -> AsyncEngine:
    engine = create_async_engine(*given, **named)
    engine.sync_engine._compiled_cache = _compiled
    return engine


class _Tables:
    """The tables of a store, made by statements that are compiled once for all simulations."""

    _statements = tuple(
        str(made.compile(dialect=sqlite.dialect()))
        for table in METADATA.sorted_tables
        for made in (
            CreateTable(table, if_not_exists=True),
            *(CreateIndex(index, if_not_exists=True) for index in table.indexes),
        )
    )

    def create_all(self, connection: sa.Connection) -> None:
        for statement in self._statements:
            connection.exec_driver_sql(statement)


_parquet_writer = pq.ParquetWriter.__init__


def _plain_writer(writer: pq.ParquetWriter, *given: Any, **named: Any) -> None:
    """Opens a writer that neither packs nor counts values, which takes thrice the time of a small file."""
    _parquet_writer(writer, *given, **{**named, "compression": "none", "use_dictionary": False})


@functools.cache
def _measures_without_stamp(content: bytes) -> Measures:
    return measure(content)


def _measures(content: bytes) -> Measures:
    """What is measured in a picture. They differ only in their stamps, so few are measured."""
    found = STAMP.search(content)
    return _measures_without_stamp(content.replace(found[0], b"", 1) if found else content)


_compiled: LRUCache[Any, Any] = LRUCache(1000)
"""Statements, compiled once for all simulations."""


def _http(timeout_s: float, _: int) -> Any:
    return scene.vendors.client(timeout_s)


@contextmanager
def outside_world(home: Path) -> Iterator[None]:
    """Simulated surroundings for all that runs in the block; runs' folders are below ``home``."""
    with ExitStack() as stack:

        def put(target: object, name: str, value: object) -> None:
            stack.enter_context(mock.patch.object(target, name, value))

        for target, name, value in list(_clocks()):
            put(target, name, value)
        put(time, "time", _wall)
        put(time, "monotonic", _monotonic)
        put(uuid, "uuid4", _uuid4)
        put(anyio.to_thread, "run_sync", _run_sync)
        put(CancelScope, "__hash__", lambda scope: hash(scope._host_task))  # not its address: seeds replay
        put(imagemill.engine.engine, "random", _Random)
        put(imagemill.holder, "_read", _read)
        put(imagemill.holder, "_pid_space", lambda: "pid:1")
        put(imagemill.holder, "_process_start", _process_start)
        put(imagemill.holder, "os", types.SimpleNamespace(getpid=lambda: _process().pid))
        put(imagemill.holder, "socket", types.SimpleNamespace(gethostname=lambda: _process().machine.name))
        put(imagemill.runs.folder, "home", lambda: home / _process().machine.name)
        session: Any = imagemill.runs.session
        put(session, "start_blocking_portal", _portal)
        put(session, "wait", lambda *_: types.SimpleNamespace(done=True))
        for name in ("learn_published", "read_limit"):
            put(imagemill.runs.accounts, name, lambda *_: None)
        put(session, "http_client", _http)
        for name, module in list(sys.modules.items()):
            ours = name.startswith(("imagemill.bucket", "imagemill.runs", "imagemill.reports"))
            if ours and hasattr(module, "ThreadPoolExecutor"):
                put(module, "ThreadPoolExecutor", _Executor)
        put(imagemill.bucket.output_lease, "threading", types.SimpleNamespace(Event=_Event, Thread=_Thread))
        pipeline: Any = imagemill.pipeline
        for name, value in {
            "ThreadPoolTaskRunner": _Runner,
            "_wait_for": _Runner.result,
            "write_limit": lambda *_: None,
            "publish": _PlainTask(pipeline.publish.fn),
            "measure": _PlainTask(_measured),
        }.items():
            put(pipeline, name, value)
        session_of_boto3 = boto3.Session("simulated", S3_SECRET, region_name="us-east-1")
        put(imagemill.bucket.access, "aws_session", lambda _: (session_of_boto3, None))
        put(imagemill.s3.connection.S3Connection, "client", _client)
        put(imagemill.s3.connection.S3Connection, "store", _store)
        for function in (_put_async, _put, _get, _head, _get_range):
            put(obstore, function.__name__.removeprefix("_"), function)
        put(imagemill.stores.sql, "create_async_engine", _engine)
        put(
            pq.ParquetFile,
            "iter_batches",
            functools.partialmethod(pq.ParquetFile.iter_batches, use_threads=False),
        )
        put(pq.ParquetWriter, "__init__", _plain_writer)
        put(anyio._core._eventloop, "current_async_library", lambda: "asyncio")
        # Statements are compiled for a dialect, of which each engine has its own.
        put(SQLiteDialect_aiosqlite, "__hash__", lambda _: 0)
        put(SQLiteDialect_aiosqlite, "__eq__", lambda one, other: type(one) is type(other))
        put(imagemill.stores.tables, "METADATA", _Tables())
        put(imagemill.stores.version, "version", functools.cache(metadata.version))
        put(imagemill.quality.inspection, "measure", _measures)
        put(SqliteStore, "now", sa.bindparam(None, callable_=_wall, type_=sa.Double))
        put(aiosqlite.core, "Thread", _NoThread)
        put(aiosqlite.core, "SimpleQueue", _InlineQueue)
        stack.enter_context(
            mock.patch.dict(
                "os.environ",
                {
                    **{api.key_variable: KEY for api in PROVIDERS.values()},
                    "AWS_ACCESS_KEY_ID": "simulated",
                    "AWS_SECRET_ACCESS_KEY": S3_SECRET,
                    PASSWORD_VARIABLE: STORE_PASSWORD,
                    "AWS_DEFAULT_REGION": "us-east-1",
                },
            )
        )
        yield


KEY = "sk-simulated-key-0123456789"
STORE_PASSWORD = "simulated-store-password-5678901234"
S3_SECRET = "simulated-s3-secret-key-9876543210"
