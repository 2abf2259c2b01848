"""The engine: jobs in, images in the bucket and states in the store out. Knows nothing of Prefect."""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import anyio
import httpx

from imagemill.blocks.apis import GeneratedImage, ImageApi
from imagemill.bucket.image_bucket import ImageBucket, image_name
from imagemill.engine.breaker import OUTAGE, PROBE_S, Breaker, OutageError
from imagemill.engine.cost_limit import BudgetSpentError, CostLimit
from imagemill.engine.image_check import Picture, check_picture
from imagemill.engine.limits.pacer import Pacer, Slot, StoppedError
from imagemill.engine.receipt import Receipt
from imagemill.engine.recorder import Recorder
from imagemill.errors import (
    RETRY_RULES,
    ApiError,
    ErrorClass,
    Outcome,
    StoreUnavailableError,
)
from imagemill.jobs import TERMINAL, Job
from imagemill.stores import JobStore

INTERRUPT_GRACE_S = 0.5
"""How long requests in flight may still finish once the run is interrupted, in seconds."""

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""No connection, no request: nothing can have been charged."""

_UPLOADS = 32
"""Images held in memory while they go to the bucket, beside the requests in flight."""


class StopKind(StrEnum):
    """Why a run stopped before its end; all of them can be resumed."""

    UNAUTHORIZED = "unauthorized"
    OUT_OF_BUDGET = "out_of_budget"
    UNAVAILABLE = "unavailable"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop, and the sentence that says why."""

    kind: StopKind
    reason: str


class Engine:
    """Works off shards of jobs; one for a whole process, from one event loop.

    Everything it touches is passed in: the API and its HTTP client, the bucket, the store, the pacer, the
    cost limit, the breaker, the recorder, the folder for images that the bucket did not take, the clocks
    (``wall`` in Unix seconds) and the random numbers.
    """

    def __init__(
        self,
        *,
        api: ImageApi,
        http: httpx.AsyncClient,
        bucket: ImageBucket,
        store: JobStore,
        pacer: Pacer,
        cost: CostLimit,
        breaker: Breaker,
        recorder: Recorder,
        unsaved: Path,
        clock: Callable[[], float] = anyio.current_time,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._api = api
        self._http = http
        self._bucket = bucket
        self._store = store
        self._pacer = pacer
        self._cost = cost
        self._breaker = breaker
        self._unsaved = unsaved
        self._recorder = recorder
        self._clock = clock
        self._wall = wall
        self._rng = rng or random.Random()
        self._uploads = anyio.Semaphore(_UPLOADS)
        self._stopping = anyio.Event()
        self._shards: set[anyio.CancelScope] = set()
        self.stopped: Stop | None = None

    def stop(self, kind: StopKind, reason: str) -> None:
        """Send nothing more; what is in flight may finish, unless the run is interrupted."""
        if self.stopped is None:
            self.stopped = Stop(kind, reason)
            self._recorder.event("stopping", kind=kind, reason=reason)
            self._stopping.set()
            self._breaker.stop()
            self._pacer.stop()

    async def run_shard(self, first: int, last: int) -> None:
        """Work off the unfinished jobs from number ``first`` to ``last``; returns when all are committed.

        Never raises for a job. After a stop, jobs that are not finished stay pending.
        """
        if self.stopped:
            return
        try:
            jobs = await self._store.unfinished(first, last)
            with anyio.CancelScope() as scope:
                self._shards.add(scope)
                async with anyio.create_task_group() as group:
                    for job in jobs:
                        slot = await self._admit(job)
                        if slot is None:
                            break
                        group.start_soon(self._work, job, slot)
            self._shards.discard(scope)
            await self._store.commit()
        except StoreUnavailableError as error:
            self.stop(StopKind.UNAVAILABLE, str(error))

    async def find_lost(self, jobs: Sequence[Job]) -> None:
        """Ask the API about requests whose answer nobody got; a job whose request it has gets its id."""
        found = 0
        try:
            async for job, request_id in self._api.find_lost(self._http, jobs):
                job.find_request(request_id, self._price(job))
                found += 1
        except ApiError as error:
            self._recorder.event("requests_not_listed", reason=error.message)
        self._recorder.event("requests_found", found=found, lost=len(jobs))

    async def until_stopping(self) -> None:
        """Wait until the engine is told to stop."""
        await self._stopping.wait()

    async def abandon_when_interrupted(self) -> None:
        """Give requests in flight a moment after an interrupt, then let go of them; runs until then."""
        await self._stopping.wait()
        if self.stopped and self.stopped.kind is StopKind.INTERRUPTED:
            await anyio.sleep(INTERRUPT_GRACE_S)
            for scope in self._shards:
                scope.cancel()

    async def _admit(self, job: Job) -> Slot | None:
        """Wait until the job's request may be sent and paid for; None once the run is stopping."""
        price = self._price(job)
        try:
            await self._cost.promise(price, already_asked=job.request_id is not None)
        except BudgetSpentError:
            self.stop(
                StopKind.OUT_OF_BUDGET,
                f"The next image would exceed the limit of ${self._cost.limit_usd:,.2f}{self._cost.words}.",
            )
            return None
        try:
            await self._breaker.admit(self._stopping)
            return await self._pacer.acquire()
        except OutageError:
            self.stop(StopKind.UNAVAILABLE, "The API has been down for too long.")
        except StoppedError:
            pass
        self._cost.settle(price, charged=False)
        return None

    async def _work(self, job: Job, slot: Slot) -> None:
        """One job until it is done, failed, or left pending by a stop."""
        failures: Counter[ErrorClass] = Counter()
        try:
            admitted: Slot | None = slot
            while admitted is not None:
                try:
                    with self._recorder.telemetry.attempt(job):
                        await self._attempt(job, admitted)
                except ApiError as error:
                    wait_s = self._verdict(job, error, failures)
                    if wait_s is None:
                        return
                    self._store.save(job)
                    with anyio.move_on_after(wait_s):
                        await self._stopping.wait()
                    admitted = await self._admit(job)
                else:
                    return
            self._leave(job)
        except StoreUnavailableError as error:
            self.stop(StopKind.UNAVAILABLE, str(error))
            self._leave(job)
        except anyio.get_cancelled_exc_class():
            self._leave(job)
            raise

    async def _attempt(self, job: Job, slot: Slot) -> None:
        """One request, and its image checked and uploaded."""
        image, latency_s = await self._generate(job, slot)
        try:
            if image.flagged:
                raise ApiError(ErrorClass.CONTENT_FILTERED, "the API flagged the image", code="flagged")
            picture = check_picture(image.content, job.width, job.height)
            await self._keep(job, picture, image.content, latency_s)
        finally:
            self._uploads.release()
        job.finish(
            self._wall(),
            image=image_name(job.key, picture.extension),
            image_bytes=len(image.content),
            latency_s=latency_s,
        )
        self._store.save(job)
        self._recorder.finished(job)

    async def _generate(self, job: Job, slot: Slot) -> tuple[GeneratedImage, float]:
        """One request: its image, and the latency in seconds.

        Gives the slot back, but not before there is a place among the uploads, which the caller gives
        back: a slow bucket slows the requests down instead of filling the memory with images.
        """
        price = self._price(job)
        charged = doubtful = False
        job.start(self._wall())
        self._store.save(job)
        self._recorder.sent(job)
        sent = self._clock()

        async def accepted(request_id: str) -> None:
            job.request_id = request_id
            self._recorder.accepted(job)  # on disk at once, where a commit takes its time
            try:
                self._store.save(job)
                await self._store.commit()
            except StoreUnavailableError as error:
                # It is paid for: where its id cannot be kept, its image still goes into the bucket.
                self.stop(StopKind.UNAVAILABLE, str(error))

        try:
            image = await self._api.generate(self._http, job, accepted)
            latency_s = self._clock() - sent
            charged = slot.served = True
            self._note_health(None)
            await self._uploads.acquire()
        except ApiError as error:
            self._note_health(error.error_class)
            slot.refused = error.error_class is ErrorClass.RATE_LIMITED
            slot.retry_after_s = error.retry_after_s
            if not error.keep_request:
                charged = error.charged
                timed_out = error.error_class is ErrorClass.TIMEOUT
                doubtful = timed_out and not isinstance(error.__cause__, _NEVER_SENT)
            raise
        except anyio.get_cancelled_exc_class():
            doubtful = not charged and job.request_id is None
            raise
        finally:
            self._pacer.release(slot)
            if told := self._api.take_allowance():
                self._pacer.heard(told)
            if charged:
                job.cost_usd += price
                self._recorder.charged(price)
            elif doubtful:
                job.lose_answer(price)
            self._cost.settle(price, charged=charged, doubtful=doubtful)
        return image, latency_s

    async def _keep(self, job: Job, picture: Picture, content: bytes, latency_s: float) -> None:
        digest = hashlib.sha256(job.prompt.encode("utf-8", "surrogatepass")).hexdigest()
        name = image_name(job.key, picture.extension)
        metadata = {"key": job.key, "seed": str(job.seed), "model": job.model, "prompt-sha256": digest}
        metadata |= Receipt.of(self._recorder.run_id, job, latency_s).to_metadata()
        try:
            await self._bucket.put_image(name, content, metadata)
        except (StoreUnavailableError, anyio.get_cancelled_exc_class()):
            # It is paid for: a resume uploads it from here instead of asking for it again.
            with contextlib.suppress(OSError):
                self._unsaved.mkdir(parents=True, exist_ok=True)
                (self._unsaved / Path(name).name).write_bytes(content)
            raise

    def _note_health(self, error_class: ErrorClass | None) -> None:
        if self._breaker.record(error_class):
            self._recorder.event("api_down" if self._breaker.is_open else "api_up")

    def _verdict(self, job: Job, error: ApiError, failures: Counter[ErrorClass]) -> float | None:
        """What becomes of a job after an error: seconds to wait before a retry, None where it ends."""
        rule = RETRY_RULES[error.error_class]
        if not error.keep_request:
            job.request_id = None
        if rule.outcome is Outcome.STOP:
            self._recorder.attempt_failed(job, error, None)
            kind = StopKind(error.error_class.value)
            self.stop(kind, f"{_STOP_WORDS[kind]}: {error.message}.")
            self._leave(job)
            return None
        if self._breaker.is_open and error.error_class in OUTAGE:
            # The API is down for everybody: that is no job's own failure, and spends no job's budget.
            self._recorder.attempt_failed(job, error, PROBE_S)
            return PROBE_S
        failures[error.error_class] += 1
        retry = failures[error.error_class]
        if retry <= rule.retries:
            wait_s = rule.wait_s(retry, error.retry_after_s, self._rng)
            self._recorder.attempt_failed(job, error, wait_s)
            return wait_s
        self._recorder.attempt_failed(job, error, None)
        job.fail(
            self._wall(),
            error_class=error.error_class,
            code=error.code,
            message=error.message,
            retryable=rule.outcome is Outcome.RETRYABLE,
        )
        self._store.save(job)
        self._recorder.gave_up(job)
        return None

    def _leave(self, job: Job) -> None:
        """Leave a job pending for a resume, its request id with it."""
        if job.status not in TERMINAL:
            job.requeue()
            with contextlib.suppress(StoreUnavailableError):
                self._store.save(job)

    def _price(self, job: Job) -> float:
        return self._api.price_usd(job.width, job.height, job.steps, job.params)


_STOP_WORDS = {
    StopKind.UNAUTHORIZED: "The API refused the key",
    StopKind.OUT_OF_BUDGET: "The account's credit is exhausted",
}
