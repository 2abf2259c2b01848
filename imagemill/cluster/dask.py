"""Runs shards on a Dask cluster, after checking that it is usable."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from prefect import Task, unmapped

from imagemill.blocks.apis import ImageApi
from imagemill.cluster.global_rate import hold_rate
from imagemill.cluster.membership import BEAT_S, Membership, joined, member_name
from imagemill.engine.engine import StopKind
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.prefect_address import lasting_server
from imagemill.runs.session import Session, on_loop
from imagemill.settings import ExecutionSettings
from imagemill.stores import Shard

_CONNECT_S = 5
_NO_WORKER_S = 60.0
_STOP_GRACE_S = 20.0
_LOOK_EVERY_S = 0.25


def installed() -> str:
    """The version of imagemill in this process; workers run this function too."""
    return version("imagemill")


def check_cluster(execution: ExecutionSettings) -> None:
    """Check that the Dask cluster can execute the run, if the run is to use one.

    Raises:
        InputError: it cannot.
    """
    if not execution.on_dask:
        return
    if find_spec("prefect_dask") is None:
        raise InputError("Running on Dask needs an extra: pip install 'imagemill[dask]'.")
    if lasting_server() is None:
        raise InputError(
            "A run on Dask needs a Prefect server that all machines can reach: set PREFECT_API_URL."
        )
    from distributed import Client  # noqa: PLC0415 - an extra

    address = execution.scheduler or ""
    try:
        with Client(address, timeout=_CONNECT_S, set_as_default=False) as client:
            found: dict[str, Any] = client.run(installed, on_error="return")
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"The Dask scheduler {address!r} does not answer ({type(error).__name__}). Check its address,"
            " or start one with: dask scheduler."
        ) from error
    if not found:
        raise InputError(f"The Dask scheduler {address!r} has no workers. Start some with: dask worker.")
    for worker, answer in found.items():
        if answer != installed():
            raise InputError(
                f"The Dask worker {worker} has a different imagemill, or none ({str(answer)[:100]}). Install"
                f" imagemill {installed()} there."
            )


@contextmanager
def leading(session: Session) -> Iterator[Membership]:
    """Lead a run on Dask while the block runs.

    Raises:
        InputError: other machines are still working on it.
    """
    membership = Membership(
        session.store,  # type: ignore[arg-type] # a run on Dask has a board, or was refused
        member_name(),
        leads=True,
        engine=session.engine,
        recorder=session.recorder,
    )
    with on_loop(session.portal, joined(membership, session.engine.routes.look_again)):
        yield membership


def run_on_cluster(
    session: Session, membership: Membership, task: Task[..., Any], shards: Sequence[Shard]
) -> None:
    """Process all shards on the cluster's workers, then add their log lines to the run's log.

    ``task`` takes the run's settings and a shard.
    """
    from distributed import KilledWorker  # noqa: PLC0415 - an extra
    from prefect_dask import DaskTaskRunner  # noqa: PLC0415 - an extra

    from imagemill.cluster.worker import RunMember, plugin_name  # noqa: PLC0415 - needs the extra

    settings = session.settings
    if not shards:
        return
    rates = list(_rates(session))
    session.wait(_set_budget, session)
    try:
        with DaskTaskRunner(address=settings.execution.scheduler) as runner:
            client = runner.client
            workers = len(client.scheduler_info(n_workers=-1)["workers"])
            for api, per_minute in rates:
                hold_rate(api, per_minute, workers)
            session.wait(membership.expect, min(workers, len(shards)))
            client.register_plugin(RunMember(settings), name=plugin_name(settings))
            futures = runner.map(task, {"settings": unmapped(settings), "shard": shards})
            _wait(session, client, [f.wrapped_future for f in futures])
            for future in futures:
                if future.wrapped_future.done():
                    future.result()
            if not session.engine.stopped:
                client.unregister_worker_plugin(plugin_name(settings))
    except KilledWorker:
        reason = "Dask gave up on a shard because every worker that had it died. See the workers' logs."
        session.stop(StopKind.UNAVAILABLE, reason)
    except (OSError, TimeoutError, CancelledError) as error:
        reason = f"The Dask scheduler {settings.execution.scheduler} is gone ({type(error).__name__})."
        session.stop(StopKind.UNAVAILABLE, reason)
    if session.log is not None:
        with session.folder.trouble_named():
            session.wait(session.log.gather)
    _stop_if_incomplete(session, membership)


def _wait(session: Session, client: Any, futures: list[Any]) -> None:  # noqa: ANN401
    idle_s = stopping_s = 0.0
    while not all(future.done() for future in futures):
        time.sleep(_LOOK_EVERY_S)
        workers = client.scheduler_info(n_workers=-1).get("workers")  # none where the scheduler is gone
        idle_s = 0.0 if workers else idle_s + _LOOK_EVERY_S
        stopping_s = stopping_s + _LOOK_EVERY_S if session.engine.stopped else 0.0
        if idle_s > _NO_WORKER_S:
            session.stop(StopKind.UNAVAILABLE, "The Dask cluster has had no workers for a minute.")
        if stopping_s > _STOP_GRACE_S:
            return


def _stop_if_incomplete(session: Session, membership: Membership) -> None:
    """Stop a run, resumably, of which a worker left jobs: they have no route, or its shard was left."""
    try:
        for wait_s in (0.0, 2 * BEAT_S):  # a worker's own stop, and its reason, may be on the way
            time.sleep(wait_s)
            if session.engine.stopped or not session.wait(session.store.totals).pending:
                return
    except StoreUnavailableError as error:
        session.stop(StopKind.UNAVAILABLE, str(error))
    stood_still = "A worker stood still for too long, and left a part of the run."
    session.stop(StopKind.UNAVAILABLE, next(iter(membership.stranded.values()), stood_still))


def _rates(session: Session) -> Iterator[tuple[ImageApi, float]]:
    """The accounts whose rate all machines hold together, in images per minute.

    Raises:
        InputError: a limit is that of all routes together, or of a route's money, which no account's own
            rate can hold.
    """
    settings, per_minute = session.settings, session.settings.limits.max_images_per_minute
    if settings.routes and per_minute:
        raise InputError(
            "A run over several routes on Dask needs a rate for each of them: set max_images_per_minute of"
            " the routes instead of --max-images-per-minute."
        )
    if settings.routes and (settings.limits.finish_by or settings.limits.max_hours):
        raise InputError("A run on Dask has no deadline: leave --finish-by and --max-hours out.")
    if any(route.max_cost_usd is not None for route in settings.routes):
        raise InputError(
            "A run over several routes on Dask has one budget: set --max-cost, and leave max_cost_usd of the"
            " routes out."
        )
    if per_minute:
        yield session.api, per_minute
    for route, named in zip(session.engine.routes, settings.routes, strict=False):
        if named.max_images_per_minute:
            yield route.api, named.max_images_per_minute


async def _set_budget(session: Session) -> None:
    await session.store.set_committed(session.cost.committed_usd)  # type: ignore[attr-defined]
