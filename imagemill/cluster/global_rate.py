"""The account's rate, shared by all machines through a Prefect global concurrency limit with slot decay."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import anyio
import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError, rate_limit
from prefect.exceptions import ObjectNotFound, PrefectException

from imagemill.blocks.apis import ImageApi
from imagemill.engine.limits.leased_rate import LEAST_BATCH, LeasedRate
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.runs.remembered_limit import account_digest, host_of

HEADROOM = 1.1
"""Prefect drops fractions of a slot at each lease, so the limit hands out a tenth more than the rate. The
rate itself is kept by the pace at which each process spends its leases."""

_RESERVE_S = 5.0
_PATIENCE_S = 60.0


def limit_name(api: ImageApi) -> str:
    """The name of the limit for an account at this provider."""
    return f"imagemill-{api.provider}-{host_of(api).replace(':', '-')}-{account_digest(api)}"


def hold_rate(api: ImageApi, per_minute: float, processes: int) -> None:
    """Create the global limit, or update it, so that so many processes can hold their batches at once.

    A lease that Prefect denies costs all that its limit has regained since the last one. A cluster that has
    no process yet may get one.

    Raises:
        InputError: no Prefect server answers.
    """
    name = limit_name(api)
    shape = {
        "limit": max(2 * LEAST_BATCH * max(1, processes), math.ceil(_RESERVE_S * per_minute / 60.0)),
        "slot_decay_per_second": HEADROOM * per_minute / 60.0,
    }
    try:
        with get_client(sync_client=True) as client:
            try:
                client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(**shape))
            except ObjectNotFound:
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, **shape))
    except (httpx.HTTPError, PrefectException) as error:
        raise InputError(
            f"Prefect's server did not accept the global concurrency limit {name!r}"
            f" ({type(error).__name__}), which a run on Dask needs for --max-images-per-minute."
        ) from error


def leased_rate(api: ImageApi, per_minute: float) -> LeasedRate:
    """One process's share of the rate, leased from the existing global limit."""
    return LeasedRate(per_minute / 60.0, lease_from(limit_name(api)))


def lease_from(name: str) -> Callable[[int], Awaitable[None]]:
    """A function that leases slots of a global limit, and waits while there are none.

    It raises StoreUnavailableError if Prefect has not answered for a minute.
    """

    async def lease(slots: int) -> None:
        failed_s = 0.0
        while True:
            try:
                await rate_limit(name, occupy=slots, strict=True)
            except (ConcurrencySlotAcquisitionError, httpx.HTTPError) as error:
                if failed_s >= _PATIENCE_S:
                    raise StoreUnavailableError(
                        f"Prefect does not answer, which leases out the rate (limit {name!r})."
                    ) from error
            else:
                return
            await anyio.sleep(2.0)
            failed_s += 2.0

    return lease
