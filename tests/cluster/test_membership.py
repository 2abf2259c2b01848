"""Who may work on a shard: one process at a time, and none that stood still while another took over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import boto3
import httpx
import pytest

from imagemill.blocks.apis import Together
from imagemill.bucket.image_bucket import ImageBucket
from imagemill.cluster.membership import BEAT_S, LEADER_STALE_S, STALE_S, Membership, joined
from imagemill.engine.breaker import Breaker
from imagemill.engine.cost_limit import CostLimit
from imagemill.engine.engine import Engine
from imagemill.engine.job_log import JobLog
from imagemill.engine.limits.leased_rate import LeasedRate
from imagemill.engine.limits.pacer import Pacer
from imagemill.engine.recorder import Recorder
from imagemill.engine.route import Route
from imagemill.engine.routes import Routes
from imagemill.engine.stops import Stop, StopKind
from imagemill.engine.telemetry import Telemetry
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.stores import Board, MemoryStore, Note, Shard
from tests.blocks.apis.variants import make_job
from tests.virtual_time import run

SHARD = Shard(0, 49)
OTHER = Shard(50, 99)
THIRD = Shard(100, 149)


class LocalBoard(Board):
    """A board in memory, on the loop's clock."""

    def __init__(self) -> None:
        self._notes: dict[str, tuple[float, dict[str, Any]]] = {}
        self.away = False
        self.exchanges = 0

    async def exchange(self, owner: str, content: dict[str, Any] | None) -> list[Note]:
        self.exchanges += 1
        await anyio.sleep(0.01)
        if self.away:
            raise StoreUnavailableError("The job store is away.")
        self._notes.pop(owner, None)
        now = anyio.current_time()
        if content is not None:
            self._notes[owner] = (now, content)
        return [Note(name, now - at, found) for name, (at, found) in self._notes.items()]

    async def clear_board(self) -> None:
        self._notes.clear()

    async def set_committed(self, usd: float) -> None:
        raise NotImplementedError

    async def _commit_usd(self, usd: float, limit_usd: float, token: str) -> bool:
        raise NotImplementedError


class Process:
    """A process of the run: it exchanges notes, unless it stands still."""

    def __init__(
        self, board: LocalBoard, membership: Membership, engine: Engine, recorder: Recorder, rate: LeasedRate
    ) -> None:
        self.board, self.membership = board, membership
        self.engine, self.recorder, self.rate = engine, recorder, rate
        self._scope = anyio.CancelScope()

    def again(self) -> Membership:
        """The membership of another process that leads the run."""
        more = {"engine": self.engine, "recorder": self.recorder}
        return Membership(self.board, f"{self.membership.name} again", leads=True, **more)

    async def beat(self) -> None:
        with self._scope:
            await self.membership.keep_exchanging(lambda: None)

    def stand_still(self) -> None:
        """As a process that was suspended, or whose machine was."""
        self._scope.cancel()


@pytest.fixture
def processes(tmp_path: Path) -> Callable[..., Any]:
    """``processes("leader", "a", "b")``: these processes, on one board, the first of them the leader."""

    @asynccontextmanager
    async def start(*names: str) -> AsyncIterator[list[Process]]:
        board, api = LocalBoard(), Together(api_key="k")
        session = boto3.Session("test", "test", region_name="us-east-1")
        bucket = ImageBucket("s3://images/run", endpoint_url="http://127.0.0.1:1", session=session)
        async with (
            httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(500))) as http,
            anyio.create_task_group() as group,
        ):
            started: list[Process] = []
            for name in names:
                pacer = Pacer(1)
                log = JobLog("run", tmp_path / f"{name}.jsonl")
                recorder = Recorder("run", log, pacer, Telemetry("run", api.provider, api.model))
                engine = Engine(
                    routes=Routes([Route.of(api, http, pacer, Breaker(0.5, 300.0), recorder)]),
                    bucket=bucket,
                    store=MemoryStore(tmp_path / f"{name}.json"),
                    cost=CostLimit(None),
                    recorder=recorder,
                    unsaved=tmp_path,
                )
                rate = LeasedRate(1.0, anyio.sleep)
                membership = Membership(
                    board, name, leads=not started, engine=engine, recorder=recorder, rates=[rate]
                )
                process = Process(board, membership, engine, recorder, rate)
                await membership.join()
                group.start_soon(process.beat)
                started.append(process)
            try:
                yield started
            finally:
                group.cancel_scope.cancel()
                for process in started:
                    process.recorder.close()
                bucket.close()

    return start


def test_a_process_that_stood_still_past_its_takeover_may_buy_nothing_more(
    processes: Callable[..., Any],
) -> None:
    async def scenario() -> None:
        async with processes("leader", "a", "b") as (_, a, b):
            assert not await a.membership.claim(SHARD)
            assert not await a.membership.claim(OTHER)
            assert await a.membership.owns(0)
            a.stand_still()
            assert await b.membership.claim(SHARD)  # which waits until a's note is stale
            assert STALE_S < anyio.current_time() < STALE_S + BEAT_S
            assert [await b.membership.owns(number) for number in (0, 49, 50)] == [True, True, False]
            assert [await a.membership.owns(number) for number in (0, 49, 50)] == [False, False, True]
            await a.membership.release(SHARD)  # which it has not any more
            assert await b.membership.owns(0)

    run(scenario)


def test_nor_where_others_have_or_have_finished_its_shards_meanwhile(processes: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with processes("leader", "a", "b", "c") as (_, a, b, c):
            for shard in (SHARD, OTHER, THIRD):
                await a.membership.claim(shard)
            a.stand_still()
            await c.membership.claim(THIRD)
            for shard in (SHARD, OTHER):
                await b.membership.claim(shard)
                await b.membership.release(shard)
            assert [await a.membership.owns(number) for number in (0, 50, 100)] == [False, False, False]
            assert await c.membership.owns(100)

    run(scenario)


def test_one_that_took_a_dead_ones_shard_and_stands_still_goes_on(processes: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with processes("leader", "a", "b") as (_, a, b):
            await a.membership.claim(SHARD)
            a.stand_still()  # for ever
            await b.membership.claim(SHARD)
            b.stand_still()
            await anyio.sleep(2 * STALE_S)
            assert await b.membership.owns(0)
            assert not await a.membership.owns(0)

    run(scenario)


def test_one_whose_shard_nobody_took_goes_on(processes: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with processes("leader", "a", "b") as (_, a, b):
            await a.membership.claim(SHARD)
            a.stand_still()
            await anyio.sleep(3 * STALE_S)
            assert await a.membership.owns(0)
            with anyio.move_on_after(STALE_S / 2) as waited:
                await b.membership.claim(SHARD)
            assert waited.cancelled_caught  # it is fresh again
            assert await a.membership.owns(0)

    run(scenario)


@pytest.mark.parametrize("pause_s", [0.0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.5])
def test_of_one_that_comes_back_and_one_that_takes_over_only_one_buys(
    processes: Callable[..., Any], pause_s: float
) -> None:
    async def scenario() -> None:
        async with processes("leader", "a", "b") as (_, a, b), anyio.create_task_group() as group:
            await a.membership.claim(SHARD)
            a.stand_still()
            await anyio.sleep(2 * STALE_S)
            group.start_soon(b.membership.claim, SHARD)
            await anyio.sleep(pause_s)
            owned = [await a.membership.owns(0)]
            await anyio.sleep(0.1)
            owned = [owned[0] and await a.membership.owns(0), await b.membership.owns(0)]
            assert owned.count(True) <= 1
            await anyio.sleep(2 * STALE_S)
            assert (await a.membership.owns(0)) != (await b.membership.owns(0)) or not owned[0]
            group.cancel_scope.cancel()

    run(scenario)


def test_one_whose_leader_has_gone_buys_nothing_more(processes: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with processes("leader", "a") as (leader, a):
            await a.membership.claim(SHARD)
            a.stand_still()
            leader.stand_still()
            await anyio.sleep(LEADER_STALE_S + 1)
            await a.membership.owns(0)
            assert a.engine.stopped is not None

    run(scenario)


def test_a_stop_reaches_all_at_the_next_beat_with_its_words(processes: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with processes("leader", "a", "b") as (leader, a, b):
            await anyio.sleep(0.3)
            a.engine.stop(StopKind.OUT_OF_BUDGET, "It is spent.")
            await anyio.sleep(1.1 * BEAT_S)
            for process in (leader, b):
                assert process.engine.stopped == Stop(StopKind.OUT_OF_BUDGET, "It is spent.")
            before = a.board.exchanges
            await anyio.sleep(5 * BEAT_S)
            assert a.board.exchanges - before <= 3 * 6  # and is not announced over and over

    run(scenario)


def test_the_others_end_with_their_leader(processes: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with processes("leader", "a", "idle") as (leader, a, idle):
            await a.membership.claim(SHARD)
            leader.stand_still()
            await leader.membership.leave()
            with anyio.fail_after(1.1 * BEAT_S):
                await a.membership.over.wait()
                await idle.membership.over.wait()
            words = "The process that leads the run has disappeared."
            assert a.engine.stopped == Stop(StopKind.INTERRUPTED, words)
            assert idle.engine.stopped is None  # it has nothing to stop
            idle.stand_still()
            with pytest.raises(InputError, match="no leader any more"):
                await idle.membership.join()

    run(scenario)


def test_a_leader_that_begins_anew_ends_the_others(processes: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with processes("leader", "a") as (leader, a):
            await a.membership.claim(SHARD)
            a.stand_still()
            leader.stand_still()
            await anyio.sleep(STALE_S)
            other = leader.again()
            await other.join()
            await a.membership.owns(0)
            assert a.membership.over.is_set()
            assert a.engine.stopped is not None

    run(scenario)


def test_a_new_leader_waits_for_those_of_an_earlier_session(processes: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with processes("leader", "a") as (leader, a):
            leader.stand_still()
            begun = anyio.current_time()
            with pytest.raises(InputError, match="Other machines are still working"):
                await leader.membership.join()
            assert anyio.current_time() - begun == pytest.approx(LEADER_STALE_S, abs=0.1)
            a.stand_still()
            await leader.membership.join()
            assert STALE_S - BEAT_S < anyio.current_time() - begun - LEADER_STALE_S < STALE_S + BEAT_S
            assert [note.owner for note in await leader.board.exchange("other", None)] == ["leader"]

    run(scenario)


def test_who_leaves_gives_its_shards_up_at_once(processes: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with processes("leader", "a", "b") as (_, a, b):
            await a.membership.claim(SHARD)
            a.stand_still()
            await a.membership.leave()
            assert not await b.membership.claim(SHARD)
            await b.membership.release(SHARD)
            assert not await b.membership.owns(0)
            assert anyio.current_time() < BEAT_S

    run(scenario)


def test_the_rate_is_shared_by_those_at_work(processes: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with processes("leader", "a", "b") as (leader, a, b):
            await leader.membership.expect(4)
            await anyio.sleep(3.5 * BEAT_S)
            assert (leader.rate.share, a.rate.share) == (1 / 4, 1.0)  # those to come are not there yet
            await anyio.sleep(BEAT_S)
            assert leader.rate.share == 1.0
            await a.membership.claim(SHARD)
            await b.membership.claim(OTHER)
            await anyio.sleep(1.1 * BEAT_S)
            assert [process.rate.share for process in (leader, a, b)] == [0.5, 0.5, 0.5]
            a.stand_still()
            await anyio.sleep(STALE_S + 1.1 * BEAT_S)
            assert b.rate.share == 1.0

    run(scenario)


def test_the_leader_sees_what_the_others_do_and_why_their_jobs_have_no_route(
    processes: Callable[..., Any],
) -> None:
    async def scenario() -> None:
        async with processes("leader", "a", "b") as (leader, a, b):
            leader.recorder.begin(unique=10, done=2, failed=1, cost_usd=0.5)
            for process in (leader, a, b):
                process.recorder.charged(0.125)
            b.engine._admission.strand(make_job(Together(api_key="k")), perhaps_later=False)
            await anyio.sleep(2.1 * BEAT_S)
            assert (leader.recorder.done, leader.recorder.cost_usd) == (2, 0.75)
            assert leader.membership.stranded == {"b": b.engine.stranded.reason}
            assert [process.recorder.left for process in (leader, a, b)] == [7, 7, 7]
            await a.membership.claim(SHARD)
            await b.membership.claim(OTHER)
            await anyio.sleep(2.1 * BEAT_S)
            assert [process.recorder.left for process in (leader, a, b)] == [7, 4, 4]
            assert a.membership.stranded == {}
            b.stand_still()
            await b.membership.leave()
            await anyio.sleep(1.1 * BEAT_S)
            assert leader.membership.stranded == {"b": b.engine.stranded.reason}

    run(scenario)


def test_who_cannot_reach_the_board_stops(processes: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with processes("leader", "a") as (leader, a):
            a.board.away = True
            await anyio.sleep(1.1 * BEAT_S)
            for process in (leader, a):
                assert process.engine.stopped == Stop(StopKind.UNAVAILABLE, "The job store is away.")
                assert process.membership.over.is_set()
            await a.membership.leave()  # its note becomes stale

    run(scenario)


def test_a_member_is_one_while_the_block_runs(processes: Callable[..., Any]) -> None:
    async def scenario() -> None:
        async with processes("leader", "a") as (leader, a):
            a.stand_still()
            await a.membership.leave()
            changes: list[float] = []
            async with joined(a.membership, lambda: changes.append(anyio.current_time())):
                await anyio.sleep(3.5 * BEAT_S)
                assert len(changes) == 3
                assert {note.owner for note in await leader.board.exchange("other", None)} == {"leader", "a"}
            assert {note.owner for note in await leader.board.exchange("other", None)} == {"leader"}

    run(scenario)
