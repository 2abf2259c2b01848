"""A route: one account at one vendor, with what finds its limit, watches over it and counts its money."""

from __future__ import annotations

from dataclasses import dataclass, field

import anyio
import httpx

from imagemill.blocks.apis import ImageApi
from imagemill.catalog.makers import makes
from imagemill.engine.breaker import OUTAGE, Breaker
from imagemill.engine.cost_limit import CostLimit
from imagemill.engine.limits.pacer import Pacer
from imagemill.engine.lost_requests import LostRequests
from imagemill.engine.recorder import Recorder
from imagemill.engine.setup_fault import SetupFault
from imagemill.engine.stops import Stop, StopKind
from imagemill.engine.throughput import Throughput
from imagemill.errors import ErrorClass
from imagemill.jobs import Job

PATIENCE_S = 10.0
"""How long a free question to an API may take, in seconds."""

_ASKABLE = frozenset({StopKind.OUT_OF_BUDGET, StopKind.SETUP})
"""Why a route takes no more jobs although it can still be asked about the requests that it has."""


@dataclass(slots=True, eq=False)
class Route:
    """One of the accounts that a run buys from; most runs have one.

    ``outage`` are the API's words in its latest outage. ``closed`` says why it takes no more jobs in this
    run; ``closing`` is set then, and when the run stops. ``share`` is its part of the budget, if it has one.
    ``is_given_up``: nobody asks about its requests any more. ``refused`` are the jobs that failed because it
    refuses everything.
    """

    name: str
    api: ImageApi
    http: httpx.AsyncClient
    pacer: Pacer
    breaker: Breaker
    setup: SetupFault
    lost: LostRequests
    share: CostLimit | None = None
    outage: str = ""
    closed: Stop | None = None
    closing: anyio.Event = field(default_factory=anyio.Event)
    is_given_up: bool = False
    refused: list[Job] = field(default_factory=list)
    throughput: Throughput = field(default_factory=Throughput)
    _makes: dict[tuple[object, ...], bool] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        api: ImageApi,
        http: httpx.AsyncClient,
        pacer: Pacer,
        breaker: Breaker,
        recorder: Recorder,
        *,
        setup: SetupFault | None = None,
        name: str = "",
        share: CostLimit | None = None,
    ) -> Route:
        """A route to an API; by default by its vendor's name."""
        lost = LostRequests(api, http, breaker, recorder)
        watch = setup or SetupFault(share=0.8)
        return cls(name or api.provider, api, http, pacer, breaker, watch, lost, share)

    def price(self, job: Job) -> float:
        """What an image for the job costs here, in USD; 0 where the price is unknown."""
        return self.api.price_usd(job.width, job.height, job.steps, job.params)

    @property
    def is_down(self) -> bool:
        """Whether only probes are sent."""
        return self.breaker.is_open

    @property
    def can_be_asked(self) -> bool:
        """Whether the API may still know what became of the requests that it has."""
        return self.closed is None or self.closed.kind in _ASKABLE

    @property
    def can_look(self) -> bool:
        """Whether a lost request may be looked for in the list of the API's requests."""
        return self.lost.can_look and not self.is_given_up

    @property
    def why_down(self) -> str:
        """The sentence for an API that is down."""
        cause = f" ({self.outage})" if self.outage else ""
        if self.breaker.is_refusing:
            return f"The API has taken no request for too long: {self.api.base_url} refuses all{cause}."
        since = "has been down for too long" if self.breaker.has_given_up else "is down"
        return f"The API {since}: {self.api.base_url} does not work{cause}."

    @property
    def stop(self) -> Stop | None:
        """Why it makes nothing any more: it is closed, or down; None while it works."""
        if self.closed is None and self.is_down:
            return Stop(StopKind.UNAVAILABLE, self.why_down)
        return self.closed

    def is_out_for_all(self, error_class: ErrorClass) -> bool:
        """Whether it is down, and an error of this class says so: that is no job's own failure."""
        refused = error_class is ErrorClass.RATE_LIMITED and self.breaker.is_refusing
        return self.is_down and (refused or error_class in OUTAGE)

    def close(self, stop: Stop) -> None:
        """Take no more jobs in this run."""
        self.closed = self.closed or stop
        self.wake()

    def give_up(self) -> None:
        """Take no more jobs, and forget the requests that are here: others make their pictures."""
        self.is_given_up = True
        self.close(Stop(StopKind.UNAVAILABLE, "You gave this route up."))

    def wake(self) -> None:
        """Let those who wait here see that the route closes, or the run stops."""
        self.closing.set()
        self.breaker.stop()
        self.setup.stop()

    def accepted(self) -> None:
        """The API has taken a request: those that failed before failed by themselves."""
        self.breaker.accepted()
        self.refused.clear()

    def served(self, took_s: float) -> None:
        """A request was answered with its image after so long."""
        self.lost.took(took_s)
        self.throughput.served(took_s)

    def makes(self, job: Job, *, negative_prompts: bool) -> bool:
        """Whether the model here makes the job's picture; ``negative_prompts``: its key holds one if set."""
        large = job.seed > self.api.largest_seed
        negative = negative_prompts and job.negative_prompt is not None
        asked = (job.width, job.height, job.steps, job.format, job.params, large, negative)
        known = self._makes.get(asked)
        if known is None:
            known = self._makes[asked] = makes(
                self.api,
                width=job.width,
                height=job.height,
                steps=job.steps,
                image_format=job.format,
                params=job.params,
                large_seed=large,
                negative=negative,
            )
        return known
