"""A job store on a server, as Postgres is: SQLite's logic on a file that outlives every machine.

It is reached over a network, whose answers may be lost, and keeps what it was told whatever becomes of who
told it. It stands in Postgres's place, so that a run takes it for a store that machines share.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import anyio
import sqlalchemy as sa

from imagemill.errors import InputError, StoreUnavailableError
from imagemill.jobs import Job
from imagemill.store_address import StoreAddress
from imagemill.stores import Board
from imagemill.stores.sql import SqliteStore
from tests.simulation.process import scene
from tests.simulation.world import EPOCH

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServerWeather:
    """How likely each statement meets trouble, from 0 to 1; latencies in seconds."""

    latency_s: float = 0.002
    lost: float = 0.0
    lost_answer: float = 0.0
    away: tuple[float, float] = (0.0, 0.0)
    """Virtual seconds from when to when the server does not answer."""


class StoreServer:
    """The server of one simulation: its weather and its draws."""

    def __init__(self, seed: int) -> None:
        self.weather = ServerWeather()
        self._rng = random.Random(f"server:{seed}")

    async def asked(self, action: Callable[..., Awaitable[T]], *arguments: object) -> T:
        """What an action on the server brings.

        Raises:
            OSError: it was not reached, or its answer was lost.
        """
        world, weather, rng = scene.world, self.weather, self._rng
        world.point("store request")
        draw, there_s, back_s = rng.random(), rng.expovariate(1), rng.expovariate(1)
        start, end = weather.away
        await anyio.sleep(there_s * weather.latency_s)
        if start <= world.loop.now < end or draw < weather.lost:
            world.met["store server: lost"] += 1
            raise ConnectionError
        world.point("store reached")
        result = await action(*arguments)
        world.point("store done")
        await anyio.sleep(back_s * weather.latency_s)
        if draw > 1 - weather.lost_answer:
            world.met["store server: lost answer"] += 1
            raise ConnectionError
        world.point("store answer")
        return result


class ServerStore(SqliteStore):
    """The jobs of ``run_id`` on the server."""

    now = sa.bindparam(None, callable_=lambda: EPOCH + scene.world.loop.now, type_=sa.Double)

    def __init__(self, address: StoreAddress, run_id: str, *, join: bool = False) -> None:
        super().__init__(scene.home / "server" / "jobs.sqlite", run_id, join=join)
        self.name = f"Postgres at {address}"
        self._server = scene.store_server

    async def patiently(self, action: Callable[..., Awaitable[T]], *arguments: object) -> T:
        return await super().patiently(self._server.asked, action, *arguments)

    async def add(self, jobs: Sequence[Job]) -> None:
        try:
            await self._server.asked(super().add, jobs)
        except ConnectionError as error:
            raise StoreUnavailableError(f"{self._title} did not accept the plan.") from error

    async def _open(self) -> None:
        try:
            await self._server.asked(super()._open)
        except ConnectionError as error:
            raise InputError(f"{self._title} cannot be used.") from error

    async def _renew_lease(self, holder: str) -> bool:
        return await self._server.asked(super()._renew_lease, holder)

    async def _free_lease(self, holder: str) -> None:
        await self._server.asked(super()._free_lease, holder)


Board.register(ServerStore)
