"""The engine: jobs in, images in the bucket and states in the store out. Knows nothing of Prefect."""

from __future__ import annotations

import contextlib
import random
import time
import traceback
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import orjson
from anyio.abc import TaskGroup

from imagemill.blocks.apis import CostSource, GeneratedImage
from imagemill.blocks.apis.error_codes import NO_SUCH_MODEL, QUEUE_TIMEOUT
from imagemill.blocks.apis.exchange import not_taken
from imagemill.blocks.apis.queued import QueuedApi
from imagemill.bucket.image_bucket import ImageBucket, image_name
from imagemill.durable import write_whole
from imagemill.engine.admission import Admission
from imagemill.engine.breaker import OUTAGE, PROBE_S
from imagemill.engine.cost_limit import CostLimit
from imagemill.engine.earlier_requests import EarlierRequests
from imagemill.engine.image_check import Picture, check_picture
from imagemill.engine.judging import Judging
from imagemill.engine.limits.pacer import Slot, SlotWatch
from imagemill.engine.purchase import Purchase
from imagemill.engine.receipt import RECEIPT_SUFFIX, Receipt, drop_with_receipt, image_metadata
from imagemill.engine.recorder import Recorder
from imagemill.engine.route import PATIENCE_S, Route
from imagemill.engine.routes import Routes
from imagemill.engine.setup_fault import is_suspect
from imagemill.engine.stops import STOP_WORDS, Stop, StopKind
from imagemill.engine.work import KeptPicture, Work, is_doubtful
from imagemill.errors import (
    RETRY_RULES,
    ApiError,
    ErrorClass,
    Outcome,
    StoreUnavailableError,
)
from imagemill.formatting import cut
from imagemill.jobs import TERMINAL, Job, JobStatus
from imagemill.quality.inspection import (
    PLACEHOLDER,
    SUSPECT,
    Finding,
    Inspection,
    OnSuspect,
)
from imagemill.quality.judge import UNANSWERED
from imagemill.quality.repeats import digest_of
from imagemill.quality.verdicts import Verdict
from imagemill.request_watch import RequestState
from imagemill.stores import JobStore

__all__ = ["GRACE_S", "Engine", "Stop", "StopKind"]

GRACE_S = 10.0
"""How long requests in flight may still come home once the run is interrupted, in seconds."""

_LEAST_UP_NEXT = 50
"""At least so many jobs are named as those that come next: how fast a run begins is not known."""

_LEFT_AT_ONCE = 1_000
"""So many of the jobs that are left at the end are tried at once."""

_UPLOADS = 32
"""Images held in memory while they go to the bucket, beside the requests in flight."""


class Engine:
    """Works off shards of jobs; one for a whole process, from one event loop.

    Everything it touches is passed in: the routes to the accounts that it buys from, the bucket, the store,
    the cost limit, the look at pictures, the judge, the recorder, the folder for images that the bucket did
    not take, the clocks (``wall`` in Unix seconds) and the random numbers. ``grace_s``, which may be set, is
    how long requests in flight may still come home once the run is interrupted, in seconds.
    ``before_upload``, which may be set, raises StoreUnavailableError where another run may have uploaded the
    image.
    """

    def __init__(
        self,
        *,
        routes: Routes,
        bucket: ImageBucket,
        store: JobStore,
        cost: CostLimit,
        recorder: Recorder,
        unsaved: Path,
        inspection: Inspection | None = None,
        on_suspect: OnSuspect = OnSuspect.KEEP,
        judging: Judging | None = None,
        clock: Callable[[], float] = anyio.current_time,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self.routes = routes
        self._bucket = bucket
        self._store = store
        self._cost = cost
        self._inspection = inspection or Inspection(share=0)
        self._on_suspect = on_suspect
        self._judging = judging
        self._unsaved = unsaved
        self._recorder = recorder
        self._clock = clock
        self._wall = wall
        self._rng = rng or random.Random()
        self.grace_s = GRACE_S
        self.before_upload: Callable[[], Awaitable[None]] | None = None
        self.earlier = EarlierRequests(routes)
        for route in routes:
            route.api.begin(recorder.run_id)
        self._on_the_way: dict[int, Work] = {}
        self._lined_up: Sequence[int] = ()
        self._last_begun = -1
        self._unsent: dict[int, int] = {}
        self._looked_for: dict[int, None] = {}
        self._sending = anyio.Lock()
        self._sent = 0
        self._uploads = anyio.Semaphore(_UPLOADS)
        self._stopping = anyio.Event()
        self._interrupted = anyio.Event()
        self._let_go = anyio.Event()
        self._shards: list[anyio.CancelScope] = []
        self.stopped: Stop | None = None
        self._admission = Admission(routes, self.earlier, cost, store, recorder, self._stopping, self.stop)

    @property
    def fence(self) -> Callable[[Job], Awaitable[bool]] | None:
        """Asked right before each purchase whether the job is still this process's."""
        return self._admission.fence

    @fence.setter
    def fence(self, fence: Callable[[Job], Awaitable[bool]] | None) -> None:
        self._admission.fence = fence

    def stop(self, kind: StopKind, reason: str) -> None:
        """Send nothing more; what is in flight may finish, after an interrupt within a grace."""
        if kind is StopKind.INTERRUPTED:
            self._interrupted.set()  # also where the run is stopping already, and waits for what is in flight
        if self.stopped is None:
            self.stopped = Stop(kind, reason)
            self._recorder.event("stopping", kind=kind, reason=reason)
            self._stopping.set()
            self.routes.stop()
            self._cost.stop()
        elif kind is StopKind.UNAVAILABLE and self.stopped.kind is StopKind.OUT_OF_BUDGET:
            self.stopped = Stop(kind, reason)  # a store that took nothing more has old counts and costs

    def let_go(self) -> None:
        """Wait no longer for what is in flight once the run is interrupted; it counts as unanswered."""
        self._let_go.set()

    def line_up(self, unfinished: Sequence[int]) -> None:
        """The numbers of the run's unfinished jobs, ascending: shards will be of these."""
        self._lined_up, self._last_begun = unfinished, -1

    def up_next(self) -> list[int]:
        """The jobs that may be sent in the next seconds, judged by how many were sent since the last call."""
        sent, self._sent = self._sent, 0
        count = max(3 * sent + 2 * len(self._on_the_way), _LEAST_UP_NEXT)
        apart = self.routes.waiting() | self._looked_for  # others may be sent before them
        found = [*apart, *islice((number for number in self._unsent if number not in apart), count)]
        start = bisect_right(self._lined_up, self._last_begun)
        return [*found, *self._lined_up[start : start + max(0, count - len(found))]]

    def is_unsent(self, job: int) -> bool:
        """Whether this process has yet to send a first request of the job of this number."""
        return job in self._unsent

    async def run_shard(self, first: int, last: int) -> None:
        """Work off the unfinished jobs from number ``first`` to ``last``; returns when all are committed.

        Shards send one after another: if they took turns, all of them would wait for their last images at the
        same time, with nothing left to send. Never raises for a job. After a stop, jobs that are not finished
        stay pending.
        """
        if self.stopped:
            return
        try:
            jobs = await self._store.unfinished(first, last)
            jobs.sort(key=lambda job: job.request_id is None)  # to ask costs nothing, and may free money
            self._last_begun = max(self._last_begun, last)
            unsent = [job for job in jobs if job.request_id is None or self.routes.of(job).is_given_up]
            self._unsent |= {job.number: first for job in unsent}
            with anyio.CancelScope() as scope:
                self._shards.append(scope)
                async with anyio.create_task_group() as group, self._sending:
                    for job in jobs:
                        if not await self._begin(job, group):
                            break
            self._shards.remove(scope)
            await self._store.commit()
            await self._cost.give_back()
        except StoreUnavailableError as error:
            self.stop(StopKind.UNAVAILABLE, str(error))
        finally:
            for number in [number for number, shard in self._unsent.items() if shard == first]:
                del self._unsent[number]

    async def _begin(self, job: Job, group: TaskGroup) -> bool:
        """Send a job's request as soon as it may leave; False once the run stops."""
        work = self._work_on(job)
        is_forgotten = work.route.is_given_up and job.request_id is not None
        if work.route.is_given_up:
            if job.route == work.route.name:
                work.is_lost = False  # it was sent there, and nowhere else
            try:
                await self._forget_request(work)
            except StoreUnavailableError as error:
                self.stop(StopKind.UNAVAILABLE, str(error))
                return False
        if self._admission.is_spent and job.request_id is None:
            return True
        # These must hold up no other job: until a route is free, or the log safe.
        waits_apart = (
            is_forgotten
            or self._admission.is_in_question(work)
            or (self.routes.are_several and not self.routes.is_free(job))
        )
        if waits_apart or (work.is_lost and any(route.can_look for route in self.routes)):
            group.start_soon(self._work, work, None)
            return True
        slot = await self._admission.admit(work)
        if slot is not None:
            group.start_soon(self._work, work, slot)
        return slot is not None or self.stopped is None

    async def _forget_request(self, work: Work) -> None:
        """The job's request is at a route that was given up: it may be charged, and another one is sent."""
        job = work.job
        if job.request_id is not None:
            await work.purchase.promise()
            work.purchase.doubt()
            work.purchase.end()
            job.drop_request()
            self._admission.expected.discard(job.number)
            self._recorder.given_up(job)
            self._store.save(job)

    async def run_parked(self) -> None:
        """Ask about the requests of routes that were down, once all other jobs are over.

        What had no route then may have one now. The run stops, to be resumed, where a job has none left: its
        request must not be paid for twice.
        """
        self.routes.parks = False
        for route in self.routes:
            route.breaker.wait_anew()
        left = self._admission.take_left()
        for start in range(0, len(left), _LEFT_AT_ONCE):
            async with anyio.create_task_group() as group:
                for number in left[start : start + _LEFT_AT_ONCE]:
                    group.start_soon(self.run_shard, number, number)
        if (stop := self.stranded) is not None:
            self.stop(stop.kind, stop.reason)

    @property
    def stranded(self) -> Stop | None:
        """Why jobs have no route left, if any has none."""
        return self._admission.why_stranded

    async def stopped_routes(self) -> dict[str, str]:
        """Why routes take no more jobs, by their names."""
        return {route.name: route.stop.reason for route in self.routes if route.stop is not None}

    @property
    def judge_usd(self) -> float:
        """About what the judge's opinion on one picture costs."""
        return self._judging.price_usd if self._judging is not None else 0.0

    def expect(self, jobs: Sequence[Job]) -> None:
        """Count what these jobs' requests may cost: an earlier process sent them, this one will ask."""
        for job in jobs:
            route = self.routes.of(job)
            if not route.api.is_paid(job.request_id):
                self._admission.expected.add(job.number)
                self._cost.recover(expected_usd=route.price(job))
                if route.share is not None:
                    route.share.recover(expected_usd=route.price(job))

    def reopen(self, job: Job, *, is_new: bool = True) -> None:
        """Make a failed job pending again; a request of it that the API still has is in doubt no more.

        A line says so, unless that is not ``is_new`` to the log, which has later ones.
        """
        doubtful_usd, route, why = job.unanswered_usd, self.routes.of(job), (job.error_class, job.error_code)
        job.reopen(None if route.api.is_paid(job.request_id) else route.price(job))
        for limit in filter(None, (self._cost, route.share)):
            limit.doubtful_usd += job.unanswered_usd - doubtful_usd
        if is_new:
            self._recorder.reopened(job, *why)

    async def check_account(self) -> None:
        """Ask each API, free of charge, whether it will sell images for this key and of this model.

        The route is closed where it will not; where the API does not say, or is away, nothing happens.
        """
        async with anyio.create_task_group() as group:
            for route in self.routes.open:
                group.start_soon(self._check_account, route)

    async def _check_account(self, route: Route) -> None:
        try:
            with anyio.fail_after(PATIENCE_S):
                await route.api.look_up(route.http)
        except ApiError as error:
            if error.code == NO_SUCH_MODEL:
                self._admission.close(route, StopKind.SETUP, f"{route.api.no_such_model().message}.")
            elif RETRY_RULES[error.error_class].outcome is Outcome.STOP:
                self._close_for(route, error)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
            pass

    async def until_stopping(self) -> None:
        """Wait until the engine is told to stop."""
        await self._stopping.wait()

    async def abandon_when_interrupted(self) -> None:
        """Let requests in flight come home for a while after an interrupt, then let go; runs until then.

        What still waits in the vendor's queue is cancelled at once, so that it is not paid for.
        """
        await self._interrupted.wait()
        async with anyio.create_task_group() as group:
            for work in self._on_the_way.values():
                group.start_soon(self._withdraw, work)
            with anyio.move_on_after(self.grace_s):
                await self._let_go.wait()
                group.cancel_scope.cancel()
        for scope in self._shards:
            scope.cancel()

    async def _withdraw(self, work: Work) -> None:
        watch, request_id = work.watch, work.job.request_id
        route = work.route
        if not isinstance(route.api, QueuedApi) or watch is None or request_id is None:
            return
        if watch.state is RequestState.QUEUED:
            work.withdrawal = anyio.Event()
            try:
                watch.withdrawn = await route.api.cancel(route.http, request_id)
            finally:
                work.withdrawal.set()

    def _work_on(self, job: Job) -> Work:
        route = self.routes.of(job)
        purchase = Purchase(
            job,
            route.price(job),
            self._cost,
            self._recorder,
            expected=job.number in self._admission.expected,
            charged=route.api.is_paid(job.request_id),
        )
        return Work(job, purchase, route)

    async def _work(self, work: Work, slot: Slot | None) -> None:
        """One job until it is done, failed, or left pending by a stop."""
        job = work.job
        self._admission.at_work += 1
        try:
            slot = slot or await self._next(work)
            while slot is not None:
                try:
                    with self._recorder.telemetry.attempt(job):
                        await self._attempt(work, slot)
                except ApiError as error:
                    if await work.was_withdrawn(error):
                        break  # by the stop: no failure of the job's
                    self._bill(work, error)
                    wait_s = self._verdict(work, error)
                    if wait_s is None:
                        return
                    job.requeue()  # a resume must not take it for a request in flight
                    self._store.save(job)
                    await self._pause(work, wait_s)
                    slot = await self._next(work)
                else:
                    return
            self._leave(work)
        except StoreUnavailableError as error:
            self.stop(StopKind.UNAVAILABLE, str(error))
            self._leave(work)
        except anyio.get_cancelled_exc_class():
            self._leave(work)
            raise
        finally:
            self._admission.at_work -= 1
            if job.number not in self._admission.parked:
                self._admission.expected.discard(job.number)
            if self._admission.is_spent:
                self._admission.spend_no_more()

    async def _pause(self, work: Work, wait_s: float) -> None:
        """Wait before a retry; where another request may be paid for, until what the last came to is safe.

        So a machine that is lost can have sent one request of a job that nobody knows, not two; and a resume
        elsewhere that still asks about an accepted one would not know that another followed.
        """
        job = work.job
        if job.request_id is None and (job.cost_usd or job.unanswered or work.was_accepted):
            await self._recorder.until_safe()
        with anyio.move_on_after(wait_s):
            await self._stopping.wait()

    async def _next(self, work: Work) -> Slot | None:
        """Look for the job's lost request where the API lists requests; then ask about it, or send anew."""
        if work.is_lost:
            work.is_lost = False
            self._looked_for[work.job.number] = None
            before, went_there = work.route, work.watch is not None or work.job.route == work.route.name
            try:
                request_id = await self._find(work)
            finally:
                del self._looked_for[work.job.number]
            if request_id is not None:
                is_here = went_there and work.route is before
                work.purchase.found(request_id, in_share=is_here)
                self._store.save(work.job, durable=True)
        return await self._admission.admit(work)

    def _close_for(self, route: Route, error: ApiError) -> None:
        """Buy no more at a route whose API refuses the account."""
        kind = StopKind(error.error_class.value)
        self._admission.close(route, kind, f"{STOP_WORDS[kind]}: {error.message.rstrip('.')}.")

    async def _find(self, work: Work) -> str | None:
        """The id of the job's lost request; of one that an earlier process sent, at whichever route it is."""
        found: str | None = None

        async def look(route: Route) -> None:
            nonlocal found
            request_id = await route.lost.find(work.job, self._stopping)
            if request_id is not None and found is None:
                found = request_id
                if self.routes.are_several:
                    work.go(route)
                    self.routes.place(work.job, route)
                group.cancel_scope.cancel()

        is_here = work.watch and not work.from_list
        routes = [work.route] if is_here else [route for route in self.routes if route.can_look]
        async with anyio.create_task_group() as group:
            for route in routes:
                group.start_soon(look, route)
        return found

    async def _attempt(self, work: Work, slot: Slot) -> None:
        """One request, and its image checked and uploaded.

        Raises:
            ApiError: there is no image. No other error of the API's making leaves here: nothing that an API
                sends can end a run.
        """
        job = work.job
        try:
            image = await self._generate(work, slot)
            try:
                if image.flagged:
                    raise ApiError(ErrorClass.CONTENT_FILTERED, "the API flagged the image", code="flagged")
                picture = self._checked(work, image)
                with anyio.CancelScope(shield=True):  # it is paid for, and kept only after the look
                    found = await self._look_at(work, image)
                work.route.setup.succeeded(job)
                name = image_name(job.key, picture.extension, job.take)
                made = KeptPicture(name, len(image.content), found, work.latency_s, work.queued_s)
                made = await self._choose(work, made, image.content)
            finally:
                self._uploads.release()
        except (ApiError, StoreUnavailableError):
            raise
        except Exception as error:
            self._recorder.event("unexpected_error", job=job.number, error=_place_of(error))
            raise ApiError(
                ErrorClass.INVALID_IMAGE,
                f"an answer that imagemill cannot handle ({type(error).__name__})",
                code="unexpected_error",
                keep_request=True,
            ) from error
        if made.found.verdicts and self._on_suspect is OnSuspect.RETRY and not (work.again or work.redone):
            work.again = True
            self._take(job, work.kept or made)
            raise ApiError(ErrorClass.INVALID_IMAGE, made.found.in_words, code=SUSPECT)
        self._finish(work, work.kept or made)
        if self.stopped or work.route.closed is not None:
            await self._take_back(image.content)

    async def _choose(self, work: Work, made: KeptPicture, content: bytes) -> KeptPicture:
        """Judge a picture and keep the better of the job's; the picture with all that was found in it.

        A judge may take its time. Before it is asked the picture is in the bucket or, if it may yet be
        refused, on this disk: a kill in between must not lose what is paid for.
        """
        job, before = work.job, work.kept
        receipt = Receipt.of(self._recorder.run_id, job, made.latency_s, made.queued_s)
        may_fail = self._on_suspect is OnSuspect.FAIL
        if self._judging is not None and not (may_fail and made.found.verdicts):
            if may_fail:
                self._save_here(made.name, content, receipt)
            elif before is None:
                await self._keep(job, made.name, content, receipt)
                work.kept = replace(made, found=replace(made.found, unjudged=UNANSWERED))
            made = replace(made, found=await self._judging.look(job, content, made.found))
            if work.kept is not before:
                work.kept = made
                return made
        fails = may_fail and bool(made.found.verdicts)
        if not fails and (before is None or made.found.merit > before.found.merit):
            await self._keep(job, made.name, content, receipt)
            work.kept = made
        if may_fail and self._judging is not None:
            drop_with_receipt(self._unsaved / Path(made.name).name)
        if fails:
            if not work.redone:
                job.quality = made.found.quality
            raise ApiError(ErrorClass.CONTENT_FILTERED, made.found.in_words, code=SUSPECT)
        return made

    async def _look_at(self, work: Work, image: GeneratedImage) -> Finding:
        """Check whether the picture is suspect, and whether its route is paid for placeholders."""
        found = await self._inspection.look(image.content, work.job)
        if Verdict.PLACEHOLDER in found.verdicts:
            self._admission.close(work.route, StopKind.SETUP, PLACEHOLDER)
            self._recorder.placeholder(digest_of(image.content))
            await self._take_back(image.content)
            raise ApiError(ErrorClass.INVALID_IMAGE, "a placeholder", code=Verdict.PLACEHOLDER)
        return found

    async def _take_back(self, content: bytes) -> None:
        """If a file is a placeholder, the jobs that it is the picture of are pending again.

        It is deleted as far as the bucket allows that: another run would take it for their picture.
        """
        names: list[str] = []
        for job in self._inspection.repeated(content):
            if job.status is JobStatus.DONE and job.image is not None:
                names.append(job.image)
                self._recorder.redo(job)
                job.redo()
                job.suspect, job.quality = Verdict.PLACEHOLDER.value, ""
                self._store.save(job)
                if self.routes.are_several:
                    self._admission.strand(job, perhaps_later=True)
        if names:
            with contextlib.suppress(StoreUnavailableError):
                await anyio.to_thread.run_sync(self._bucket.try_delete, names)

    def _finish(self, work: Work, kept: KeptPicture) -> None:
        """The job is done: its picture, or the better of two, is in the bucket."""
        job = work.job
        job.finish(self._wall(), image=kept.name, image_bytes=kept.size, latency_s=kept.latency_s)
        self._take(job, kept)
        if work.again:
            better = "the second has fewer flags, or as many and a higher score, or is sharper"
            why = better if job.take > 1 else "the second did not come, or is no better"
            self._recorder.retaken("suspect_retried", job, why)
        if work.redone:
            self._recorder.retaken("redone", job, "another picture was wanted")
        self._store.save(job)
        self._recorder.finished(job)

    @staticmethod
    def _take(job: Job, kept: KeptPicture) -> None:
        """The job has this picture, be it that another is made in place of it."""
        job.image, job.image_bytes = kept.name, kept.size
        job.latency_s, job.queued_s = kept.latency_s, kept.queued_s
        job.quality, job.suspect = kept.found.quality, kept.found.suspect

    def _fall_back(self, job: Job, error: ApiError) -> None:
        """Another picture was wanted and none came: the one there is stays."""
        job.finish(
            self._wall(),
            image=job.image or "",
            image_bytes=job.image_bytes or 0,
            latency_s=job.latency_s,
            reused=job.reused,
        )
        self._recorder.retaken("redone", job, f"no other came: {error.message}")
        self._store.save(job)
        self._recorder.finished(job)

    async def _generate(self, work: Work, slot: Slot) -> GeneratedImage:
        """One request, or one more look at an earlier one: its image.

        Gives the slot back, but not before there is a place among the uploads, which the caller gives
        back: a slow bucket slows the requests down instead of filling the memory with images.
        """
        job, purchase, route = work.job, work.purchase, work.route
        image: GeneratedImage | None = None
        if self.routes.are_several:
            job.route = route.name
        job.start(self._wall())
        self._store.save(job)
        self._recorder.sent(job)
        self._unsent.pop(job.number, None)
        self._sent += 1
        sent = self._clock()
        work.begin_attempt()
        watch = work.watch = SlotWatch(partial(self._accepted, work), route.pacer, slot)
        self._on_the_way[job.number] = work
        try:
            try:
                image = await route.api.generate(route.http, job, watch)
            finally:
                work.add_time(self._clock() - sent, watch.queued_s)
            slot.served = True
            if work.latency_s is not None and work.queued_s is not None:
                route.served(work.latency_s + work.queued_s)
            purchase.charge(image.cost_usd, image.cost_source)
            self._note_health(route, None)
            await self._uploads.acquire()
        except ApiError as error:
            route.throughput.failed()
            if not work.is_own_trouble(error):
                self._note_health(route, None if error.code == QUEUE_TIMEOUT else error.error_class)
            slot.refused = error.error_class is ErrorClass.RATE_LIMITED
            slot.retry_after_s = error.retry_after_s
            raise
        except BaseException as error:  # cancelled, or an answer that nobody foresaw
            if image is not None and not isinstance(error, Exception):
                self._set_aside(work, image)
            elif job.request_id is None:
                purchase.doubt()
            raise
        finally:
            route.pacer.release(slot)
            del self._on_the_way[job.number]
        return image

    async def _accepted(self, work: Work, request_id: str, charged_usd: float | None = None) -> None:
        """The API has the request: its id goes to disk, but no picture waits for a store that is away.

        One that this client names is about to be sent: whether the API takes it is not known yet.
        """
        if request_id != work.route.api.name_of(work.job):
            work.route.accepted()
        work.job.accept(request_id)
        work.was_accepted = True
        if charged_usd is not None:
            expected = work.route.api.charge(work.job)
            work.purchase.charge(
                charged_usd, expected.source if expected.usd == charged_usd else CostSource.LIST
            )
        self._recorder.accepted(work.job)  # in the log at once, where a batch takes its time
        try:
            self._store.save(work.job, durable=True)
        except StoreUnavailableError as error:
            # It is paid for: where its id cannot be kept, its image still goes into the bucket.
            self.stop(StopKind.UNAVAILABLE, str(error))

    def _bill(self, work: Work, error: ApiError) -> None:
        """What a request that brought no image costs; nothing is known yet of one that the API keeps."""
        if work.keeps_request(error):
            return
        if error.charged:
            work.purchase.charge(*work.route.api.charge(work.job))
        elif is_doubtful(error) or work.job.is_listed:
            work.purchase.doubt()  # one from a list may be another run's: what was lost may be there yet

    def _set_aside(self, work: Work, image: GeneratedImage) -> None:
        """Keep an image that is paid for, where the run is cancelled before its upload begins."""
        job = work.job
        with contextlib.suppress(ApiError):
            picture = self._checked(work, image)
            receipt = Receipt.of(self._recorder.run_id, job, work.latency_s, work.queued_s)
            self._save_here(image_name(job.key, picture.extension, job.take), image.content, receipt)

    @staticmethod
    def _checked(work: Work, image: GeneratedImage) -> Picture:
        """The image, seen to be what was asked for; a model that takes no size chooses one itself."""
        exact = work.route.api.profile.sizes.exact
        return check_picture(image.content, work.job.width, work.job.height, exact=exact)

    def _save_here(self, name: str, content: bytes, receipt: Receipt) -> None:
        """Keep an image in the run's folder, whole or not at all: a resume uploads it with its receipt."""
        file = self._unsaved / Path(name).name
        try:
            write_whole(file.with_suffix(RECEIPT_SUFFIX), orjson.dumps(receipt.to_metadata()))
            write_whole(file, content)
        except OSError as error:
            self._recorder.lost_image(name, error.strerror or type(error).__name__)

    async def _keep(self, job: Job, name: str, content: bytes, receipt: Receipt) -> None:
        try:
            if self.before_upload is not None:
                await self.before_upload()
            vendor = self.routes.of(job).api.provider if self.routes.are_several else ""
            await self._bucket.put_image(name, content, image_metadata(job, receipt, vendor=vendor))
        except (StoreUnavailableError, anyio.get_cancelled_exc_class()):
            self._save_here(name, content, receipt)  # it is paid for
            raise

    def _note_health(self, route: Route, error_class: ErrorClass | None) -> None:
        if error_class not in {*OUTAGE, ErrorClass.RATE_LIMITED}:
            route.accepted()
        if route.breaker.record(error_class):
            if route.breaker.is_refusing:
                self._take_up_again(route.refused)
            named = {"route": route.name} if self.routes.are_several else {}
            self._recorder.event("api_down" if route.is_down else "api_up", **named)
            if self.routes.are_several:
                self.routes.look_again()

    def _verdict(self, work: Work, error: ApiError) -> float | None:
        """What becomes of a job after an error: seconds to wait before a retry, None where it ends."""
        job, route, several = work.job, work.route, self.routes.are_several
        is_outage = error.error_class in OUTAGE or route.is_out_for_all(error.error_class)
        if is_outage and not work.is_own_trouble(error):
            route.outage = cut(error.message.rstrip("."))
            work.let_down.add(route)
        if not work.keeps_request(error):
            work.from_list = job.is_listed
            in_doubt = work.from_list or (job.request_id is None and is_doubtful(error))
            work.is_lost = route.lost.can_look and in_doubt
            if not_taken(error):
                job.request_id = None  # the next one may have the same id
            job.drop_request()
            work.purchase.end()
        work.mark_booked()
        if self._closes(work, error):
            if several and self.stopped is None:
                if job.request_id is None:
                    return 0.0  # another route takes the job, or it stays pending
                self._admission.strand(job, perhaps_later=True)
            self._leave(work)
            return None
        wait_s: float | None
        if route.is_out_for_all(error.error_class) and not work.is_own_trouble(error):
            # The API is down for everybody: that is no job's own failure, and spends no job's budget.
            wait_s = 0.0 if several else PROBE_S
        else:
            wait_s = self._retry_s(work, error)
        self._recorder.attempt_failed(job, error, wait_s)
        if wait_s is None:
            self._end(work, error)
        return wait_s

    def _retry_s(self, work: Work, error: ApiError) -> float | None:
        """Seconds until the job is tried again, here or at another route; None where it has failed."""
        rule, retry, route = RETRY_RULES[error.error_class], work.failed(error.error_class), work.route
        if self._moves(work, error, retry > rule.retries):
            work.excluded.add(route)
            return 0.0
        if retry > rule.retries:
            return None
        wait_s = rule.wait_s(retry, error.retry_after_s, self._rng)
        if self.routes.are_several and work.job.request_id is None and not work.is_lost:
            work.not_before[route] = self._clock() + wait_s  # another may take the job at once
            return 0.0
        return wait_s

    def _end(self, work: Work, error: ApiError) -> None:
        """The job's budget is spent: it has the picture that there is, or has failed."""
        job = work.job
        if job.request_id is not None:
            work.purchase.doubt()  # the API still has it: it may be made and charged yet
        if work.kept is not None:
            self._finish(work, work.kept)
        elif work.redone and job.has_picture:
            self._fall_back(job, error)
        else:
            retryable = RETRY_RULES[error.error_class].outcome is Outcome.RETRYABLE
            job.fail(
                self._wall(),
                error_class=error.error_class,
                code=error.code,
                message=error.message,
                retryable=retryable,
            )
            self._store.save(job)
            self._recorder.gave_up(job)
            if error.error_class is ErrorClass.RATE_LIMITED:
                work.route.refused.append(job)

    def _take_up_again(self, jobs: Sequence[Job]) -> None:
        """Jobs that failed for what is no fault of theirs are pending again."""
        for job in jobs:
            if job.status is JobStatus.FAILED:
                self._recorder.took_back()
                self.reopen(job)
                if job.request_id is not None:
                    self.expect([job])
                self._store.save(job)
                self._admission.strand(job, perhaps_later=True)

    def _closes(self, work: Work, error: ApiError) -> bool:
        """Whether the error is the account's or the setup's, and no job's own: then its route is closed."""
        wait_s = 0.0 if self.routes.are_several else None
        if RETRY_RULES[error.error_class].outcome is Outcome.STOP:
            self._recorder.attempt_failed(work.job, error, wait_s)
            self._close_for(work.route, error)
            return True
        if self._is_set_up_wrongly(work, error):
            self._recorder.attempt_failed(work.job, error, wait_s)
            return True
        return False

    def _moves(self, work: Work, error: ApiError, is_over: bool) -> bool:  # noqa: FBT001
        """Whether another route should make the job that this one failed to make.

        What the API flagged is not offered to the next, and a wrong picture is not paid for here again.
        """
        if not self.routes.are_several or work.job.request_id is not None or work.kept is not None:
            return False
        is_wrong = error.error_class is ErrorClass.INVALID_IMAGE and error.code != SUSPECT
        if error.error_class is ErrorClass.CONTENT_FILTERED or not (is_over or is_wrong):
            return False
        return any(route is not work.route for route in self.routes.candidates(work))

    def _is_set_up_wrongly(self, work: Work, error: ApiError) -> bool:
        """Whether a failure is the setup's; the first that shows it closes the route.

        Jobs that failed before it was clear are pending again: a resume with the right setup makes them.
        """
        route = work.route
        reason = route.setup.failed(work.job, error)
        if reason is not None and self.stopped is None and route.closed is None:
            self._admission.close(route, StopKind.SETUP, reason)
            self._take_up_again(route.setup.suspects())
        stop = route.closed if self.routes.are_several else self.stopped
        return stop is not None and stop.kind is StopKind.SETUP and is_suspect(error)

    def _leave(self, work: Work) -> None:
        """Leave a job pending for a resume, its request id with it, unless its request was withdrawn."""
        if work.watch is not None and work.watch.withdrawn:
            work.job.drop_request()
        work.mark_booked()
        is_ours = work.job.status not in TERMINAL and not work.taken_over
        if is_ours and work.kept is not None and work.job.request_id is not None:
            work.purchase.doubt()  # the job ends here: nobody will ask about it
        work.purchase.leave()
        if is_ours:
            if work.kept is not None:
                with contextlib.suppress(StoreUnavailableError):
                    self._finish(work, work.kept)
                return
            work.job.requeue()
            with contextlib.suppress(StoreUnavailableError):
                self._store.save(work.job)


def _place_of(error: BaseException) -> str:
    """An exception's type and where it was raised: its own words may hold anything."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
