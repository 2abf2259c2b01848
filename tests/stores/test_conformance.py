"""What every job store must do, the same cases for all four, with real servers."""

from __future__ import annotations

import os
import sqlite3
import sys
import traceback
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from imagemill.errors import InputError, StoreUnavailableError
from imagemill.jobs import JOB_FIELDS, Job
from imagemill.store_address import split_password
from imagemill.stores import JobStore, JobTotals, open_store
from imagemill.stores.encoding import from_json, to_json
from imagemill.stores.redis import RedisStore
from imagemill.stores.sql import SqlStore
from imagemill.stores.tables import VERSIONS
from tests.servers import PASSWORD, Server
from tests.stores.conftest import Make
from tests.stores.sample import done, job

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def planned(store: JobStore, jobs: list[Job]) -> None:
    await store.clear()
    await store.add(jobs)
    await store.mark_planned()


async def everything(store: JobStore) -> list[Job]:
    return [job async for batch in store.all_jobs() for job in batch]


async def test_a_plan_counts_once_it_is_marked(make: Make) -> None:
    async with make() as store:
        assert not await store.is_planned()
        await store.clear()
        await store.add([job(0), job(1)])
        assert not await store.is_planned()
    async with make() as store:
        assert not await store.is_planned()
        await store.clear()
        assert await everything(store) == []
        await store.add([job(number) for number in range(3)])
        await store.add([job(number) for number in range(3, 5)])
        await store.mark_planned()
        await store.mark_planned()
        assert await store.is_planned()
    async with make() as store:
        assert await store.is_planned()
        assert await everything(store) == [job(number) for number in range(5)]
        await store.clear()
        assert not await store.is_planned()
        assert await everything(store) == []
    async with make() as store:
        assert not await store.is_planned()


async def test_unfinished_jobs_by_range(make: Make) -> None:
    async with make() as store:
        await planned(store, [job(number) for number in range(1000)])
        for number in range(1000):
            if number % 300 or number == 600:
                store.save(done(number))
        running = job(900)
        running.start(5.0)
        store.save(running)
        failed = job(300)
        failed.fail(6.0, error_class="bad_request", code="422", message="no", retryable=False)
        store.save(failed)
        await store.commit()
        assert list(await store.unfinished_numbers()) == [0, 900]
        assert await store.unfinished(0, 999) == [job(0), running]
        assert await store.unfinished(1, 899) == []
        assert await store.unfinished(900, 900) == [running]
        assert await store.unfinished(5000, 6000) == []


async def test_numbers_of_many_are_compact(make: Make) -> None:
    async with make() as store:
        await planned(store, [job(number) for number in range(70_000)])
        numbers = await store.unfinished_numbers()
        assert list(numbers) == list(range(70_000))
        assert memoryview(numbers).nbytes == 70_000 * 8  # type: ignore[arg-type]


async def test_what_was_saved_survives_a_reopening(make: Make) -> None:
    failed = job(1)
    failed.start(1.0)
    failed.request_id = "req-1"
    failed.fail(2.5, error_class="timeout", code="timeout", message="too long", retryable=True)
    async with make() as store:
        await planned(store, [job(0), job(1), job(2)])
        store.save(done(0))
        store.save(failed)
    async with make() as store:
        assert await everything(store) == [done(0), failed, job(2)]


async def test_the_latest_state_wins_and_is_a_copy(make: Make) -> None:
    async with make() as store:
        await planned(store, [job(0)])
        changing = job(0)
        changing.start(1.0)
        store.save(changing)
        await store.commit()
        assert (await everything(store))[0].status == "running"
        changing.requeue()
        store.save(changing)
        changing.start(2.0)
        changing.request_id = "second"
        store.save(changing)
        changing.request_id = "not saved"
        await store.commit()
        assert [(j.status, j.attempts, j.request_id) for j in await everything(store)] == [
            ("running", 2, "second")
        ]


async def test_saves_are_committed_in_groups(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async with make() as store:
        await planned(store, [job(number) for number in range(500)])
        sizes: list[int] = []
        write = store._write

        async def counted(batch: list[object], *, durable: bool) -> None:
            sizes.append(len(batch))
            await write(batch, durable=durable)  # type: ignore[arg-type]

        monkeypatch.setattr(store, "_write", counted)
        for number in range(500):
            store.save(done(number))
        await store.commit()
        await store.commit()  # nothing is waited for that is there
        assert sum(sizes) == 500
        assert len(sizes) <= 2
        assert list(await store.unfinished_numbers()) == []


async def test_all_jobs_come_in_order_and_batches(make: Make) -> None:
    async with make() as store:
        await planned(store, [job(number) for number in range(700)])
        sizes, numbers = [], []
        async for batch in store.all_jobs(batch_size=100):
            sizes.append(len(batch))
            numbers += [one.number for one in batch]
        assert numbers == list(range(700))
        assert max(sizes) <= 100


async def test_columns_of_jobs_are_their_fields(make: Make) -> None:
    async with make() as store:
        await planned(store, [replace(job(number), prompt=f"nul \0 {number}") for number in range(7)])
        store.save(done(3))
        for number in (2, 5):
            failed = job(number)
            failed.start(1.0)
            failed.fail(3.0, error_class="timeout", code="c", message="\0", retryable=number == 2)
            store.save(failed)
        await store.commit()
        jobs = await everything(store)
        for chosen, failed_only in ((jobs, False), ([jobs[2], jobs[5]], True)):
            found: dict[str, list[Any]] = {name: [] for name in JOB_FIELDS}
            async for batch in store.all_columns(JOB_FIELDS, failed_only=failed_only, batch_size=2):
                assert batch.num_rows <= 2
                for name, values in batch.to_pydict().items():
                    found[name].extend(values)
            assert found == {name: [getattr(one, name) for one in chosen] for name in JOB_FIELDS}
            assert {type(value) for value in found["retryable"]} <= {bool, type(None)}


async def test_totals(make: Make) -> None:
    async with make() as store:
        assert await store.totals() == JobTotals()
        await planned(store, [job(number) for number in range(6)])
        assert await store.totals() == JobTotals(pending=6)
        store.save(done(0))
        found = job(1)
        found.finish(1.0, image="images/1.png", image_bytes=1, latency_s=None, reused=True)
        store.save(found)
        retried = job(2)
        for _ in range(3):
            retried.start(1.0)
        retried.cost_usd = 0.5
        retried.fail(3.0, error_class="timeout", code="timeout", message="", retryable=True)
        store.save(retried)
        running = job(3)
        running.start(1.0)
        store.save(running)
        await store.commit()
        totals = await store.totals()
        assert (totals.done, totals.failed, totals.pending) == (2, 1, 3)
        assert (totals.reused, totals.generated, totals.retries, totals.attempts) == (1, 1, 2, 5)
        assert totals.cost_usd == pytest.approx(0.503)


async def test_runs_do_not_see_each_other(make: Make) -> None:
    async with make("one") as one, make("other") as other:
        await planned(one, [job(0), job(1)])
        await planned(other, [job(0, prompt="another")])
        one.save(done(0))
        await one.commit()
        assert await everything(other) == [job(0, prompt="another")]
        await other.clear()
        assert not await other.is_planned()
        assert await everything(one) == [done(0), job(1)]
        await one.clear()


async def test_odd_characters_are_kept(make: Make) -> None:
    odd = [
        "nul \x00 in \x00\x00", "\x1a0000 as an escape", "\x1a", "é e\u0301 \u202e 🏞️ 👩‍👩‍👧", "\ufeff\uffff",
        "half a pair \ud83d", "'; DROP TABLE imagemill_jobs; --", "tab\tline\nreturn\r\\N", "", "{run}:*",
    ]  # fmt: skip
    jobs = [job(number, id=text, prompt=text, negative_prompt=text) for number, text in enumerate(odd)]
    failed = [job(number, id=text, prompt=text, negative_prompt=text) for number, text in enumerate(odd)]
    async with make() as store:
        await planned(store, jobs)
        assert await store.unfinished(0, 100) == jobs
        for one in failed:
            one.request_id = one.id
            one.fail(1.0, error_class="bad_request", code=one.id, message=one.id, retryable=False)
            store.save(one)
    async with make() as store:
        assert await everything(store) == failed


async def test_a_run_is_held_by_one(make: Make) -> None:
    async with make() as store:
        await planned(store, [job(0)])
        with pytest.raises(InputError, match=r"in use by process \d+ on .+ since \d{4}-.* UTC"):
            await make().__aenter__()
        store.save(done(0))
        await store.commit()
    async with make() as store:  # it was given back
        assert await everything(store) == [done(0)]


async def test_a_run_that_is_started_again_waits_until_it_is_free(make: Make) -> None:
    async def wait() -> None:
        again = make()
        again.patience_s = 60.0
        async with again:
            assert await everything(again) == [done(0)]

    async with anyio.create_task_group() as group, make() as store:
        await planned(store, [job(0)])
        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        store.save(done(0))


async def test_a_lease_that_ran_out_is_free_and_its_old_holder_fails(make: Make) -> None:
    first = make()
    first.lease_s = 0.3
    async with first:
        await planned(first, [job(0), job(1)])
        # As if this process had been suspended: no heartbeat.
        first._renew = never  # type: ignore[method-assign]
        second = make()
        second.lease_s = 0.3
        await wait_until_opened(second)
        try:
            del first._renew  # type: ignore[method-assign]
            with pytest.raises(StoreUnavailableError, match="another process took the run"):
                await first._renew()
            first._renewed_at = -1e9
            first.save(done(0))
            with pytest.raises(StoreUnavailableError, match="another process took the run"):
                await first.commit()
            with pytest.raises(StoreUnavailableError):
                first.save(done(1))
            assert (await first.totals()).done == 2  # what it has done, be it that no store took it
            assert (await second.totals()).done == 0
            assert list(await second.unfinished_numbers()) == [0, 1]
        finally:
            await second.__aexit__(None, None, None)


async def never() -> None:
    return


async def wait_until_opened(store: JobStore) -> None:
    until = anyio.current_time() + 10
    while True:
        try:
            await store.__aenter__()
        except InputError:
            assert anyio.current_time() < until
            await anyio.sleep(0.05)
        else:
            return


async def test_the_heartbeat_keeps_a_lease_and_finds_a_loss(make: Make) -> None:
    store = make()
    store.lease_s = 0.6
    async with store:
        beats = []
        renew = store._renew_lease

        async def beat(holder: str) -> bool:
            beats.append(await renew(holder))
            return beats[-1]

        store._renew_lease = beat  # type: ignore[method-assign]
        with anyio.fail_after(10):
            while len(beats) < 4:  # noqa: ASYNC110 - longer than the lease
                await anyio.sleep(0.05)
        assert all(beats)
        with pytest.raises(InputError, match="in use"):
            await make().__aenter__()
        await store._lease("somebody else", store._holder.to_text())
        with anyio.fail_after(10):
            while store._failure is None:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        with pytest.raises(StoreUnavailableError, match="another process"):
            store.save(job(0))
        with pytest.raises(StoreUnavailableError, match="another process"):
            await store.commit()


CHILD = """
import anyio, os, signal, sys
sys.path[:0] = sys.argv[5:]
from pathlib import Path
from imagemill.stores import open_store
from tests.stores.sample import done, job

async def main():
    store = open_store(sys.argv[1], rows=10, run_id=sys.argv[2], folder=Path(sys.argv[3]))
    async with store:
        first = int(sys.argv[4])
        if first == 0:
            await store.clear()
            await store.add([job(number) for number in range(300)])
            await store.mark_planned()
        for number in range(first, first + 50):
            store.save(done(number))
        await store.commit()
        os.kill(os.getpid(), signal.SIGKILL)

anyio.run(main)
"""


async def test_nothing_committed_is_lost_with_its_process(
    make: Make, url: str, run_id: str, tmp_path: Path
) -> None:
    folder = tmp_path / run_id if url == "memory" else tmp_path
    root = str(Path(__file__).parents[2])
    for first in range(0, 150, 50):  # each also takes over the lease of the one that was killed, at once
        child = await anyio.run_process(
            [sys.executable, "-c", CHILD, url, run_id, str(folder), str(first), root],
            check=False,
        )  # fmt: skip
        assert child.returncode == -9, child.stderr.decode()
    async with make() as store:
        assert list(await store.unfinished_numbers()) == list(range(150, 300))
        assert (await store.totals()).done == 150


async def test_others_may_join_a_run_in_a_server(make: Make, server: Server | None) -> None:
    if server is None:
        with pytest.raises(InputError, match="needs Postgres or Redis"):
            make(join=True)
        return
    async with make() as holder:
        await planned(holder, [job(0), job(1)])
        async with make(join=True) as joined:
            joined.save(done(1))
            await joined.commit()
            assert await holder.unfinished(0, 9) == [job(0)]
        with pytest.raises(InputError, match="in use"):
            await make().__aenter__()


async def test_a_server_may_go_away_for_a_moment(make: Make, server: Server | None) -> None:
    if server is None:
        pytest.skip("no server")
    async with make() as store:
        await planned(store, [job(number) for number in range(20)])
        store.save(done(0))
        await store.commit()
        server.stop(server.abrupt)
        try:
            store.save(done(1))
            store._wake.set()
        finally:
            server.start()
        assert len(await store.unfinished(0, 100)) >= 18
        store.save(done(2))
        await store.commit()
        assert list(await store.unfinished_numbers()) == list(range(3, 20))
    async with make() as store:
        assert (await store.totals()).done == 3


async def test_columns_are_read_on_after_a_server_went_away_for_a_moment(
    make: Make, server: Server | None
) -> None:
    if server is None:
        pytest.skip("no server")
    async with make() as store:
        store.outage_s = 5.0
        await planned(store, [job(number) for number in range(4)])
        batches = store.all_columns(["number", "id"], batch_size=2)
        assert (await anext(batches))["number"].to_pylist() == [0, 1]
        server.stop(server.abrupt)
        server.start()
        assert (await anext(batches))["number"].to_pylist() == [2, 3]


async def test_a_server_that_stays_away_stops_the_run(
    make: Make, server: Server | None, caplog: pytest.LogCaptureFixture
) -> None:
    if server is None:
        pytest.skip("no server")
    async with make() as store:
        store.outage_s = 0.3
        await planned(store, [job(0), job(1)])
        server.stop(server.abrupt)
        try:
            store.save(done(0))
            with pytest.raises(StoreUnavailableError, match="has not answered for") as failure:
                await store.commit()
            with pytest.raises(StoreUnavailableError):
                await store.unfinished(0, 9)
            with pytest.raises(StoreUnavailableError):
                await store.add([job(2)])
            assert_secret(failure.value, caplog)
        finally:
            server.start()
    async with make() as store:  # whose lease could not be given back: its holder is this very process
        pass


async def test_a_server_that_is_not_there(
    make: Make, server: Server | None, caplog: pytest.LogCaptureFixture
) -> None:
    if server is None:
        pytest.skip("no server")
    server.stop(server.abrupt)
    try:
        with pytest.raises(
            InputError, match=rf"127.0.0.1:{server.port}\) cannot be used: Connection refused"
        ) as failure:
            await make().__aenter__()
    finally:
        server.start()
    assert_secret(failure.value, caplog)


async def test_a_wrong_password_is_not_repeated(
    url: str,
    server: Server | None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if server is None:
        pytest.skip("no server")
    bare, _ = split_password(url)
    assert PASSWORD not in bare
    for wrong in (None, "wr0ng-p@ss"):
        store = open_bare(bare, SecretStr(wrong) if wrong else None)
        with pytest.raises(InputError, match="set IMAGEMILL_STORE_PASSWORD") as failure:
            await store.__aenter__()
        assert_secret(failure.value, caplog, "wr0ng")
        assert "wr0ng" not in repr(store) + repr(vars(store).get("_address"))
    monkeypatch.setenv("IMAGEMILL_STORE_PASSWORD", PASSWORD)
    async with open_bare(bare) as store:
        assert not await store.is_planned()


async def test_a_store_of_another_version_is_refused_and_left_alone(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make() as store:
        await planned(store, [job(0), job(1)])
        store.save(done(0))
    made_by = version("imagemill")
    for ours in (0, 7):  # one that the store is newer than, one that it is older than
        monkeypatch.setattr("imagemill.stores.version.STORE_VERSION", ours)
        monkeypatch.setattr("imagemill.stores.version.version", lambda _, ours=ours: f"{ours}.9.0")
        with pytest.raises(InputError) as refusal:
            await make().__aenter__()
        sentence = str(refusal.value)
        assert f"was made by imagemill {made_by}, in version 6; this is imagemill {ours}.9.0" in sentence
        assert f"which reads version {ours}. Continue with the version that made it" in sentence
    monkeypatch.undo()
    async with make() as store:
        assert await everything(store) == [done(0), job(1)]


async def test_a_store_of_version_1_is_brought_up_to_date(make: Make, run_id: str, tmp_path: Path) -> None:
    async with make() as store:
        await planned(store, [job(0), job(2)])
        store.save(done(0))
    if isinstance(store, SqlStore):
        await store._change(
            *[
                sa.text(f"ALTER TABLE imagemill_jobs DROP COLUMN {name}")
                for name in ("params", "variant", "varied")
            ],
            sa.update(VERSIONS).values(number=1, made_by="0.1.0"),
        )
        await store._engine.dispose()
    elif isinstance(store, RedisStore):
        await store._redis.set(store._key("planned"), "1 0.1.0")
        key = store._key("jobs:0")
        rows = from_json((await store._redis.lrange(key, 0, -1))[0])
        await store._redis.delete(key)
        await store._redis.rpush(key, to_json([row[: JOB_FIELDS.index("params")] for row in rows]))
        await store._redis.aclose()
    else:
        checkpoint = tmp_path / run_id / "checkpoint.json"
        document = from_json(checkpoint.read_bytes())
        for row in document["jobs"]:
            del row["params"], row["variant"], row["varied"]
        checkpoint.write_bytes(to_json({**document, "version": 1}))
    async with make() as store:
        assert await everything(store) == [done(0), job(2)]
        store.save(done(2))
        await store.commit()
    async with make() as store:
        assert await everything(store) == [done(0), done(2)]
        await planned(store, [job(1)])
        assert await everything(store) == [job(1)]


async def test_a_store_from_before_there_were_versions_goes_on(
    make: Make, run_id: str, tmp_path: Path
) -> None:
    async with make() as store:
        await planned(store, [job(0), job(1)])
        store.save(done(0))
    if isinstance(store, SqlStore):
        await store._change(sa.schema.DropTable(VERSIONS))
        await store._engine.dispose()
    elif isinstance(store, RedisStore):
        await store._redis.set(store._key("planned"), "1")
        await store._redis.aclose()
    else:
        checkpoint = tmp_path / run_id / "checkpoint.json"
        checkpoint.write_bytes(checkpoint.read_bytes().replace(b'"made_by"', b'"nobody"'))
    for _ in range(2):
        async with make() as store:
            assert await everything(store) == [done(0), job(1)]


async def test_tables_of_before_that_are_not_as_ours_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE imagemill_jobs (run_id TEXT, number BIGINT, prompt TEXT)")
    with pytest.raises(
        InputError, match=r"was made by an older imagemill, which gave it no version; this is"
    ):
        await open_store(f"sqlite:{path}", rows=1, run_id="old", folder=tmp_path).__aenter__()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("imagemill_jobs",)]


def open_bare(url: str, password: SecretStr | None = None) -> JobStore:
    return open_store(url, rows=1, run_id="bare", folder=Path(), password=password)


def assert_secret(error: BaseException, caplog: pytest.LogCaptureFixture, secret: str = PASSWORD) -> None:
    told = "".join(traceback.format_exception(error)) + caplog.text
    assert secret not in told
    assert "s3cret" not in told


async def test_sqlites_log_is_safe_before_a_commit_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the memory store's: a power cut left a cost whose request no line named, and it was booked again."""
    log, commits = tmp_path / "log.jsonl", tmp_path / "jobs.sqlite-wal"
    log.write_text("{}\n")
    synced: list[tuple[str, int]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), commits.stat().st_size))
        fsync(descriptor)

    async with open_store("sqlite", rows=1, run_id="r", folder=tmp_path) as store:
        await planned(store, [job(0)])
        before = commits.stat().st_size
        monkeypatch.setattr("os.fsync", noted)
        store.save(done(0))
        await store.commit()
        assert synced[0] == (str(log), before)
        assert commits.stat().st_size > before
