"""The rate of an account, held for all machines by a Prefect global concurrency limit with slot decay."""

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
from imagemill.engine.limits.leased_rate import LeasedRate
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.runs.remembered_limit import host_of

HEADROOM = 1.1
"""Prefect drops the fraction of a slot at each lease, and at a refusal what has refilled: so much more is
leased out. The rate itself is held by the pace at which each process spends its leases."""

_RESERVE_S = 5.0
_PATIENCE_S = 60.0


def limit_name(api: ImageApi) -> str:
    """The limit that runs make for an account at this provider."""
    return f"imagemill-{api.provider}-{host_of(api).replace(':', '-')}"


def hold_rate(api: ImageApi, per_minute: float) -> None:
    """Make the global limit, or set it anew.

    Raises:
        InputError: no Prefect server answers.
    """
    name = limit_name(api)
    shape = {
        "limit": max(2, math.ceil(_RESERVE_S * per_minute / 60.0)),
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
            f"Prefect's server did not take the global concurrency limit {name!r}"
            f" ({type(error).__name__}): a run on Dask holds its rate there."
        ) from error


def leased_rate(api: ImageApi, per_minute: float) -> LeasedRate:
    """The rate as one process holds it: leased from the global limit, which is there."""
    return LeasedRate(per_minute / 60.0, lease_from(limit_name(api)))


def lease_from(name: str) -> Callable[[int], Awaitable[None]]:
    """Leases slots of a global limit; waits while there are none.

    The function raises StoreUnavailableError where Prefect has not answered for a minute.
    """

    async def lease(slots: int) -> None:
        failed_s = 0.0
        while True:
            try:
                await rate_limit(name, occupy=slots, strict=True)
            except (ConcurrencySlotAcquisitionError, httpx.HTTPError) as error:
                if failed_s >= _PATIENCE_S:
                    raise StoreUnavailableError(
                        f"Prefect's global concurrency limit {name!r} cannot be leased from."
                    ) from error
            else:
                return
            await anyio.sleep(2.0)
            failed_s += 2.0

    return lease
