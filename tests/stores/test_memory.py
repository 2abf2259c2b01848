"""The memory store's checkpoint on a disk that fails it, and the lease beside it."""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel
import orjson
import pytest

from imagemill.errors import InputError, StoreUnavailableError
from imagemill.holder import Holder
from imagemill.stores import MemoryStore
from tests.conftest import full_disk
from tests.stores.sample import done, job

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.json"


async def write(path: Path) -> None:
    async with MemoryStore(path) as store:
        await store.add([job(number) for number in range(10)])
        await store.mark_planned()
        store.save(done(0))


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda _: b"",
        lambda _: b"\x00" * 4096,
        lambda _: b"[]",
        lambda _: b'{"version": 1, "jobs": [{"number": 0}]}',
        lambda _: b'{"version": 1, "jobs": [{"number": 0, "status": "lost"}]}',
        lambda raw: re.sub(rb'"cost_usd":[^,]+', b'"cost_usd":1e300', raw),
    ],
    ids=["truncated", "empty", "zeros", "no object", "fields missing", "unknown status", "too dear"],
)
async def test_a_damaged_checkpoint_is_set_aside(path: Path, damage: object) -> None:
    await write(path)
    damaged = damage(path.read_bytes())  # type: ignore[operator]
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"is damaged and was set aside as checkpoint\.damaged-\d+"):
        await MemoryStore(path).__aenter__()
    assert not path.exists()
    assert [aside.read_bytes() for aside in path.parent.glob("*.damaged-*")] == [damaged]
    async with MemoryStore(path) as store:
        assert not await store.is_planned()


async def test_another_version_is_left_alone(path: Path) -> None:
    content = orjson.dumps({"version": 7, "jobs": [{"of": "the future"}]})
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"by a newer imagemill, in version 7; .* which reads version 6"):
        await MemoryStore(path).__aenter__()
    assert path.read_bytes() == content


async def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(path)
    before = path.read_bytes()

    store = MemoryStore(path)
    store.outage_s = 0.2
    async with store:
        monkeypatch.setattr("os.fsync", full_disk)
        store.save(done(1))
        with pytest.raises(
            StoreUnavailableError, match=r"\(memory\) has not answered for 0 s \(No space left on device\)"
        ):
            await store.commit()
        with pytest.raises(StoreUnavailableError):
            store.save(done(2))
        assert (await store.totals()).done == 3  # what the summary of a stopped run reads
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.tmp"))
    async with MemoryStore(path) as resumed:
        assert list(await resumed.unfinished_numbers()) == list(range(1, 10))


async def test_a_disk_that_was_full_for_a_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await write(path)
    failures = [OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken")]
    fsync = os.fsync

    def flaky(descriptor: int) -> None:
        if failures:
            raise failures.pop()
        fsync(descriptor)

    async with MemoryStore(path) as store:
        monkeypatch.setattr("os.fsync", flaky)
        store.save(done(1))
        await store.commit()
        assert not failures
        assert orjson.loads(path.read_bytes())["jobs"][1]["status"] == "done"


async def test_the_log_and_the_name_are_safe_before_the_commit_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 132379: of a request that a checkpoint had counted, a power cut left no line in the log."""
    log = path.with_name("log.jsonl")
    log.write_text("{}\n")
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    async with MemoryStore(path, log) as store:
        monkeypatch.setattr("os.fsync", noted)
        await store.add([job(0)])
        await store.mark_planned()
        *before, written, folder = map(Path, synced)
        assert before == [log, log.parent]
        assert (written.parent, written.suffix, folder) == (path.parent, ".part", path.parent)


async def take(path: Path, holder: Holder) -> None:
    store = MemoryStore(path)
    store._holder = holder
    await store._open()
    await store._lease(holder.to_text(), None)


async def test_the_lease_of_another_host_holds_until_it_expires(path: Path) -> None:
    other = replace(Holder.here(), host="elsewhere", token="other", pid=1)
    await take(path, other)
    with pytest.raises(InputError, match="by process 1 on elsewhere since"):
        await MemoryStore(path).__aenter__()
    lease = path.with_suffix(".lease")
    os.utime(lease, (0, lease.stat().st_mtime - 31))
    async with MemoryStore(path):
        pass


@pytest.mark.parametrize(
    "changes",
    [{"started": "1"}, {"pid": 2**22 + 1}, {"boot": "another"}],
    ids=["its number is another's now", "no such process", "before the last boot"],
)
async def test_the_lease_of_the_dead_is_taken_at_once(path: Path, changes: dict[str, object]) -> None:
    here = replace(Holder.here(), machine="a" * 32)
    gone = replace(here, token="gone", **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Holder, "here", classmethod(lambda _: here))
        await take(path, gone)
        async with MemoryStore(path):
            pass


@pytest.mark.parametrize(
    "changes",
    [{"host": "elsewhere"}, {"machine": "another"}, {"pid_space": "pid:[1]"}, {}],
    ids=["host", "machine", "container", "alive"],
)
def test_who_may_be_alive_is_not_gone(changes: dict[str, object]) -> None:
    pid = changes and 2**22 + 1
    holder = replace(Holder.here(), **({"pid": pid} if pid else {}), **changes)
    assert not holder.is_gone()
    assert Holder.of_text(holder.to_text()) == holder
    assert socket.gethostname() in str(replace(holder, host=socket.gethostname()))


async def test_an_unreadable_lease_holds_nobody_up(path: Path) -> None:
    path.with_suffix(".lease").write_bytes(b"\xff{")
    async with MemoryStore(path):
        pass


async def test_a_cancelled_run_gives_its_lease_back(path: Path) -> None:
    with anyio.CancelScope() as scope:
        async with MemoryStore(path) as store:
            await store.add([job(0)])
            await store.mark_planned()
            store.save(done(0))
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert path.with_suffix(".lease").read_bytes() == b""
    async with MemoryStore(path) as store:
        assert (await store.totals()).done == 1


async def test_a_process_that_stood_still_past_its_lease_learns_that_it_lost_the_run(path: Path) -> None:
    first, second = MemoryStore(path), MemoryStore(path)
    first.lease_s = second.lease_s = 0.2
    async with first:
        await first.hold()
        time.sleep(0.3)  # noqa: ASYNC251 - the process stands still, its renewals too
        await first.hold()  # nobody took it
        time.sleep(0.3)  # noqa: ASYNC251
        elsewhere = Holder.here().to_text()
        # Without an await: the first would renew its lease meanwhile.
        assert second._lease_file.take(elsewhere, None, second.lease_s) == elsewhere
        with pytest.raises(StoreUnavailableError, match="another process took the run"):
            await first.hold()


async def test_an_attempt_on_a_dead_connection_does_not_use_up_the_patience(path: Path) -> None:
    attempts = 0

    async def answer() -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await anyio.sleep(0.1)  # until the driver gives the connection up
            raise TimeoutError
        return "there again"

    store = MemoryStore(path)
    store.outage_s = 0.05
    async with store:
        assert await store.patiently(answer) == "there again"
