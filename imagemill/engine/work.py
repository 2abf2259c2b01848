"""A job that is being worked on: what it has cost, how it has failed, and which requests it has sent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import anyio

from imagemill.blocks.apis.error_codes import CANCELLED, UNPAID
from imagemill.blocks.apis.exchange import NEVER_SENT
from imagemill.blocks.apis.generated_image import PAID
from imagemill.engine.limits.pacer import SlotWatch
from imagemill.engine.purchase import Purchase
from imagemill.engine.route import Route
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import Job
from imagemill.quality.inspection import Finding
from imagemill.request_watch import RequestState


@dataclass(frozen=True, slots=True)
class KeptPicture:
    """A picture in the bucket: the object's name, its bytes, and how long it took, if that is known."""

    name: str
    size: int
    found: Finding
    latency_s: float | None
    queued_s: float | None


@dataclass(slots=True)
class Work:
    """One job at work. ``is_lost`` says that its request got no answer and the API may list it.

    ``watch`` follows its request while that is on the way; ``withdrawal`` is set once the API has answered
    whether it cancelled it. ``taken_over``: another process has the job now. ``kept`` is the better of the
    pictures made so far, and ``again`` whether a suspect one is made once more. ``redone``: the job came with
    a picture, in place of which another is wanted. ``asked``: the latest attempt sent nothing but asked about
    an earlier request; ``from_list``: one that a list told of in place of a lost one. ``was_accepted``: the
    log has told of a request's id, be it that the API did not take that request in the end. ``latency_s`` and
    ``queued_s`` are what its latest request has taken so far, without the pauses between the attempts that
    wait for it; None where another process sent it.

    ``route`` is that of its latest request, or the one that its next takes. It may go to no route that is
    ``excluded``, and to those in ``not_before`` only from a moment on, in monotonic seconds; it probes none
    that ``let_down`` names, where it has found the API down.
    """

    job: Job
    purchase: Purchase
    route: Route
    failures: Counter[tuple[str, ErrorClass]] = field(default_factory=Counter)
    excluded: set[Route] = field(default_factory=set)
    let_down: set[Route] = field(default_factory=set)
    not_before: dict[Route, float] = field(default_factory=dict)
    is_lost: bool = False
    watch: SlotWatch | None = None
    withdrawal: anyio.Event | None = None
    taken_over: bool = False
    kept: KeptPicture | None = None
    again: bool = False
    redone: bool = False
    asked: bool = False
    from_list: bool = False
    was_accepted: bool = False
    latency_s: float | None = None
    queued_s: float | None = None

    def __post_init__(self) -> None:
        self.redone = self.job.image is not None
        self.is_lost = self.job.unanswered > 0 and self.job.request_id is None
        self.was_accepted = self.job.request_id is not None or bool(self.job.earlier)

    def go(self, route: Route) -> None:
        """Take one of several routes: from now on the job is this model's, at this price."""
        self.route = route
        self.purchase.move(route.price(self.job), route.share)
        self.job.model = route.api.model

    def begin_attempt(self) -> None:
        """An attempt begins, which may only ask about an earlier request."""
        self.asked = self.job.request_id is not None
        if not self.asked:
            self.latency_s = self.queued_s = 0.0

    def add_time(self, took_s: float, queued_s: float) -> None:
        """An attempt took so long, of which its request waited in the vendor's queue for so long."""
        if self.latency_s is not None and self.queued_s is not None:
            self.latency_s += max(0.0, took_s - queued_s)
            self.queued_s += queued_s

    def failed(self, error_class: ErrorClass) -> int:
        """Count a failure; how many of this class there are now, at this route."""
        self.failures[self.route.name, error_class] += 1
        return self.failures[self.route.name, error_class]

    async def was_withdrawn(self, error: ApiError) -> bool:
        """Whether an attempt ended because the stop cancelled its request, and for nothing else.

        A poll may see the cancellation before the call that cancels has its answer, or that may be lost; then
        the request was free unless the error says that it may have begun.
        """
        if self.watch is None or self.withdrawal is None:
            return False
        await self.withdrawal.wait()
        free = error.code == CANCELLED and not error.doubtful
        self.watch.withdrawn = self.watch.withdrawn or free
        return self.watch.withdrawn

    def is_own_trouble(self, error: ApiError) -> bool:
        """Whether the API answers, and an earlier request of this job's still brings no image."""
        answered = self.watch is not None and self.watch.state is not RequestState.SENT
        return self.asked and (answered or error.code == "image_link")

    def mark_booked(self) -> None:
        """Mark the request that the job keeps, if it is booked: a resume must not book it again."""
        request_id = self.job.request_id
        if request_id is not None and self.purchase.is_charged and not self.route.api.is_paid(request_id):
            self.job.request_id = f"{PAID}{request_id}"

    def keeps_request(self, error: ApiError) -> bool:
        """Whether the API still has the job's request after this error."""
        return error.keep_request and self.job.request_id is not None


def is_doubtful(error: ApiError) -> bool:
    """Whether a request that nobody can ask about any more may have been charged."""
    free = error.code in UNPAID or isinstance(error.__cause__, NEVER_SENT)
    timed_out = error.error_class is ErrorClass.TIMEOUT and not free
    return not error.charged and (error.doubtful or timed_out)
