"""The job store in Redis (or Valkey), through redis-py.

A run's keys all begin with ``imagemill:{RUN_ID}:``; the braces keep them on one node of a cluster.

- ``jobs:N``: a list of JSON arrays of jobs as they were planned, for numbers N * 256 to N * 256 + 255.
- ``numbers``: a list of packed 64-bit integers, the numbers of all jobs that were added.
- ``states``: a hash, number to the JSON array of a job's state fields; pending jobs that were never begun
  have none.
- ``finished``: a bitmap of the numbers that are done or failed.
- ``planned``: the layout's version and imagemill's, once all jobs are there.
- ``lease``: a hash of who holds the run, and until when by the server's clock. It has no time to live: after
  a longer outage, the holder must be able to tell that no other process took the run in between.
- ``notes``: a hash of the latest note of each process that works on the run, with its time.
- ``committed``: what the run has spent or reserved, in USD.
"""

from __future__ import annotations

import ssl
from array import array
from collections.abc import AsyncIterator, Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import anyio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

from imagemill.errors import InputError, StoreUnavailableError
from imagemill.jobs import JOB_FIELDS, STATE_FIELDS, TERMINAL, Job, JobStatus
from imagemill.store_address import PASSWORD_VARIABLE, StoreAddress
from imagemill.stores.base import CONNECT_S, JobState, JobStore, JobTotals, reason_of
from imagemill.stores.board import Board, Note
from imagemill.stores.encoding import from_json, to_json
from imagemill.stores.version import StoreVersion
from imagemill.takes import REJECTED
from imagemill.usd import of_picos, picos

_CHUNK = 256
_PAGE = 10_240
_values_of = attrgetter(*JOB_FIELDS)
_JobValues = list[Any]

# Atomic, so that no reader sees half a batch, and nothing is written for jobs that no longer exist.
_WRITE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for i = 1, #ARGV, 3 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 2])
  redis.call('SETBIT', KEYS[3], ARGV[i], ARGV[i + 1])
end
return 1
"""

_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"
_LEASE = (
    _NOW
    + """
local held = redis.call('HGET', KEYS[1], 'holder')
if held and held ~= ARGV[1] and held ~= ARGV[2]
   and tonumber(redis.call('HGET', KEYS[1], 'expires_ms')) > now then return held end
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'expires_ms', now + ARGV[3])
return ARGV[1]
"""
)
_RENEW = (
    _NOW
    + """
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'expires_ms', now + ARGV[2])
return 1
"""
)
_EXCHANGE = (
    _NOW
    + """
if ARGV[2] == '' then redis.call('HDEL', KEYS[1], ARGV[1])
else redis.call('HSET', KEYS[1], ARGV[1], now .. ' ' .. ARGV[2]) end
return {tostring(now), redis.call('HGETALL', KEYS[1])}
"""
)
_COMMIT = """
if redis.call('SISMEMBER', KEYS[2], ARGV[3]) == 1 then return 1 end
local usd = tonumber(ARGV[1])
local committed = tonumber(redis.call('GET', KEYS[1]) or '0')
if usd > 0 and committed + usd > tonumber(ARGV[2]) + 1e-9 then return 0 end
redis.call('INCRBYFLOAT', KEYS[1], ARGV[1])
redis.call('SADD', KEYS[2], ARGV[3])
return 1
"""
_FREE = "if redis.call('HGET', KEYS[1], 'holder') == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class RedisStore(JobStore, Board):
    """The jobs of ``run_id`` in the Redis at ``address``."""

    outages = (RedisError, OSError)

    def __init__(self, address: StoreAddress, run_id: str, *, join: bool = False) -> None:
        super().__init__(join=join)
        self.name = f"Redis at {address}"
        self._address = address
        self._prefix = f"imagemill:{{{run_id}}}:"
        # Any: redis-py's annotations say text or bytes, and change from version to version.
        self._redis: Any = _client(address)
        self._write_script = self._redis.register_script(_WRITE)
        self._lease_script = self._redis.register_script(_LEASE)
        self._renew_script = self._redis.register_script(_RENEW)
        self._free_script = self._redis.register_script(_FREE)
        self._exchange_script = self._redis.register_script(_EXCHANGE)
        self._commit_script = self._redis.register_script(_COMMIT)

    async def is_planned(self) -> bool:
        return bool(await self.patiently(self._redis.exists, self._key("planned")))

    async def clear(self) -> None:
        chunks = {number // _CHUNK for number in await self._numbers()}
        keys = [self._key(name) for name in ("planned", "numbers", "states", "finished")]
        keys[1:1] = [self._key(f"jobs:{chunk}") for chunk in sorted(chunks)]
        for start in range(0, len(keys), 1000):
            await self.patiently(self._redis.unlink, *keys[start : start + 1000])

    async def add(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        pipeline = self._redis.pipeline(transaction=True)
        for chunk, members in groupby(jobs, lambda job: job.number // _CHUNK):
            pipeline.rpush(self._key(f"jobs:{chunk}"), to_json([_values_of(job) for job in members]))
        pipeline.rpush(self._key("numbers"), array("q", [job.number for job in jobs]).tobytes())
        try:
            await pipeline.execute()
        except self.outages as error:
            raise StoreUnavailableError(
                f"{self._title} did not accept the plan: {reason_of(error)}."
            ) from error

    async def mark_planned(self) -> None:
        here = StoreVersion.here()
        await self.patiently(self._redis.set, self._key("planned"), f"{here.number} {here.made_by}")

    async def unfinished_numbers(self) -> Sequence[int]:
        numbers = await self._numbers()
        finished = await self.patiently(self._redis.get, self._key("finished")) or b""
        if not any(finished):
            return numbers
        return array("q", (number for number in numbers if not _bit(finished, number)))

    async def unfinished(self, first: int, last: int) -> list[Job]:
        start = first // _CHUNK * _CHUNK
        finished = await self.patiently(self._redis.getrange, self._key("finished"), start // 8, last // 8)
        all_finished = b"\xff" * (_CHUNK // 8)
        chunks = [
            chunk
            for chunk in range(start // _CHUNK, last // _CHUNK + 1)
            if finished[(chunk * _CHUNK - start) // 8 :][: _CHUNK // 8] != all_finished
        ]
        found: list[Job] = []
        for jobs in self._pages(chunks):
            found += await self.patiently(self._jobs_of, jobs, first, last, finished, start)
        return [job for job in found if job.status not in TERMINAL]

    async def all_jobs(self, batch_size: int = 2_000) -> AsyncIterator[list[Job]]:
        chunks = sorted({number // _CHUNK for number in await self._numbers()})
        for page in self._pages(chunks):
            jobs = await self.patiently(self._jobs_of, page)
            for start in range(0, len(jobs), batch_size):
                yield jobs[start : start + batch_size]

    async def _totals(self) -> JobTotals:
        numbers = await self._numbers()
        states = await self.patiently(self._redis.hlen, self._key("states"))
        if not states:
            return JobTotals(pending=len(numbers))
        done = failed = rejected = reused = attempts = retries = unanswered = 0
        cost = unanswered_cost = judge_cost = 0
        for start in range(0, len(numbers), _PAGE):
            page = numbers[start : start + _PAGE].tolist()
            for state in await self.patiently(self._redis.hmget, self._key("states"), page):
                if state is None:
                    continue
                known = dict(zip(STATE_FIELDS, from_json(state), strict=False))
                status, tries, was_reused = known["status"], known["attempts"], known["reused"]
                done += status == JobStatus.DONE
                failed += status == JobStatus.FAILED
                rejected += status == JobStatus.FAILED and known["error_code"] == REJECTED
                reused += status == JobStatus.DONE and was_reused
                attempts += tries
                retries += max(0, tries - 1)
                cost += picos(known["cost_usd"])
                unanswered += known["unanswered"]
                unanswered_cost += picos(known["unanswered_usd"])
                judge_cost += picos(known.get("judge_usd", 0.0))  # states of earlier versions lack it
        return JobTotals(
            done=done,
            failed=failed - rejected,
            rejected=rejected,
            pending=len(numbers) - done - failed,
            reused=reused,
            attempts=attempts,
            retries=retries,
            cost_usd=of_picos(cost + judge_cost),
            unanswered=unanswered,
            unanswered_usd=of_picos(unanswered_cost),
            judge_usd=of_picos(judge_cost),
        )

    async def exchange(self, owner: str, content: dict[str, Any] | None) -> list[Note]:
        text = b"" if content is None else to_json(content)

        async def run() -> tuple[bytes, list[bytes]]:
            found: tuple[bytes, list[bytes]] = await self._exchange_script(
                keys=[self._key("notes")], args=[owner, text]
            )
            return found

        now, flat = await self.patiently(run)
        notes = []
        for name, value in zip(flat[::2], flat[1::2], strict=True):
            at, _, text = value.partition(b" ")
            notes.append(Note(name.decode(), (float(now) - float(at)) / 1000, from_json(text)))
        return notes

    async def clear_board(self) -> None:
        await self.patiently(self._redis.unlink, self._key("notes"))

    async def set_committed(self, usd: float) -> None:
        await self.patiently(self._redis.unlink, self._key("reservations"))
        await self.patiently(self._redis.set, self._key("committed"), repr(usd))

    async def _commit_usd(self, usd: float, limit_usd: float, token: str) -> bool:
        async def run() -> bool:
            keys = [self._key("committed"), self._key("reservations")]
            return bool(await self._commit_script(keys=keys, args=[f"{usd:.12f}", repr(limit_usd), token]))

        return await self.patiently(run)

    def _key(self, name: str) -> str:
        return self._prefix + name

    async def _numbers(self) -> array[int]:
        numbers = array("q")
        for packed in await self.patiently(self._redis.lrange, self._key("numbers"), 0, -1):
            numbers.frombytes(packed)
        return numbers

    def _pages(self, chunks: Sequence[int]) -> Iterable[Sequence[int]]:
        size = _PAGE // _CHUNK
        return (chunks[start : start + size] for start in range(0, len(chunks), size))

    async def _jobs_of(
        self,
        chunks: Sequence[int],
        first: int = 0,
        last: int | None = None,
        finished: bytes = b"",
        finished_from: int = 0,
    ) -> list[Job]:
        """The chunks' jobs as they stand, from ``first`` to ``last``; without those of the bitmap."""
        pipeline = self._redis.pipeline(transaction=False)
        for chunk in chunks:
            pipeline.lrange(self._key(f"jobs:{chunk}"), 0, -1)
        found: list[_JobValues] = [
            values
            for lists in await pipeline.execute()
            for text in lists
            for values in from_json(text)
            if values[0] >= first
            and (last is None or values[0] <= last)
            and not _bit(finished, values[0] - finished_from)
        ]
        if not found:
            return []
        states = await self._redis.hmget(self._key("states"), [str(values[0]) for values in found])
        return [_job(values, state) for values, state in zip(found, states, strict=True)]

    async def _open(self) -> None:
        try:
            with anyio.fail_after(CONNECT_S):
                planned = await self._redis.get(self._key("planned"))
        except self.outages as error:
            raise InputError(f"{self._title} cannot be used: {self._advice(error)}.") from error
        if planned is not None:
            number, _, made_by = planned.decode().partition(" ")
            StoreVersion(int(number), made_by or None).check(self._title)
            if int(number) != StoreVersion.here().number:
                await self.mark_planned()

    def _advice(self, error: Exception) -> str:
        refused = isinstance(error, (AuthenticationError, NoPermissionError))
        if refused or (isinstance(error, ResponseError) and "AUTH" in str(error).upper()):
            return f"the password is wrong or missing: set {PASSWORD_VARIABLE}"
        if isinstance(error, TimeoutError):
            return f"it has not answered within {CONNECT_S:.0f} s"
        return reason_of(error)

    async def _close(self) -> None:
        await self._redis.aclose()

    async def _write(self, batch: Sequence[JobState], *, durable: bool) -> None:  # noqa: ARG002
        if not batch:
            return
        arguments: list[Any] = []
        for number, *state in batch:
            arguments += (number, int(state[0] in TERMINAL), to_json(state))
        keys = [self._key(name) for name in ("numbers", "states", "finished")]
        if not await self._write_script(keys=keys, args=arguments):
            raise StoreUnavailableError(
                f"{self._title} has lost the run's jobs. Was it restarted without persistence? A resume"
                " restores them from the plan, and finds the images in the bucket."
            )

    async def _lease(self, holder: str, instead_of: str | None) -> str:
        arguments: list[Any] = [holder, instead_of or "", round(self.lease_s * 1000)]
        held: bytes = await self._lease_script(keys=[self._key("lease")], args=arguments)
        return held.decode()

    async def _renew_lease(self, holder: str) -> bool:
        arguments: list[Any] = [holder, round(self.lease_s * 1000)]
        return bool(await self._renew_script(keys=[self._key("lease")], args=arguments))

    async def _free_lease(self, holder: str) -> None:
        await self._free_script(keys=[self._key("lease")], args=[holder])


def _client(address: StoreAddress) -> Redis:
    database = address.database or "0"
    if not database.isdecimal():
        raise InputError(f"The Redis database {database!r} is not a number.")
    encrypted: dict[str, Any] = {}
    if address.scheme == "rediss":
        encrypted = {"ssl": True, "ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
        if "ssl_ca_certs" in address.query:
            encrypted["ssl_ca_certs"] = address.query["ssl_ca_certs"]
    return Redis(
        host=address.host,
        port=address.port,
        db=int(database),
        username=address.user,
        password=address.password,
        socket_connect_timeout=CONNECT_S,
        socket_timeout=30,
        # The store repeats operations itself.
        retry=Retry(NoBackoff(), 0),
        client_name="imagemill",
        **encrypted,
    )


def _bit(bitmap: bytes, number: int) -> bool:
    index = number >> 3
    return index < len(bitmap) and bool(bitmap[index] >> (7 - (number & 7)) & 1)


def _job(values: _JobValues, state: bytes | None) -> Job:
    # A run of an earlier version has shorter rows: fields that came later keep their default.
    named = dict(zip(JOB_FIELDS, values, strict=False))
    if state is not None:
        named |= dict(zip(STATE_FIELDS, from_json(state), strict=False))
    named["status"] = JobStatus(named["status"])
    return Job(**named)
