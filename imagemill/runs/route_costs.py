"""What a job has cost, and may have cost, at each route that it went to: each has a part of the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from imagemill.engine.route import Route
from imagemill.engine.routes import Routes
from imagemill.jobs import Job


@dataclass(frozen=True, slots=True)
class RouteCosts:
    """A job's costs by the name of a route, in USD.

    ``anywhere`` counts the requests that a lost machine may have sent, to whichever route: ``unplaced_usd``
    is what the job's ``unanswered_usd`` holds for them.
    """

    charged: Mapping[str, float] = field(default_factory=dict)
    doubtful: Mapping[str, float] = field(default_factory=dict)
    unanswered: int = 0
    anywhere: int = 0
    unplaced_usd: float = 0.0

    def at(
        self,
        cost_usd: float,
        unanswered_usd: float,
        unanswered: int,
        *,
        charged_by: str,
        doubtful_at: str | None,
    ) -> RouteCosts:
        """The costs once a job's sums are these: what came on top was charged, and is in doubt, there.

        ``doubtful_at`` None: nobody knows where a new request in doubt went.
        """
        more_usd = cost_usd - sum(self.charged.values())
        doubt_usd = unanswered_usd - sum(self.doubtful.values()) - self.unplaced_usd
        costs = replace(self, charged=_plus(self.charged, charged_by, more_usd), unanswered=unanswered)
        if doubtful_at is None and doubt_usd > 0:
            return replace(
                costs,
                anywhere=self.anywhere + max(0, unanswered - self.unanswered),
                unplaced_usd=self.unplaced_usd + doubt_usd,
            )
        return replace(costs, doubtful=_plus(self.doubtful, doubtful_at or charged_by, doubt_usd))


def _plus(amounts: Mapping[str, float], name: str, usd: float) -> Mapping[str, float]:
    if not usd:
        return amounts
    return {**amounts, name: max(0.0, amounts.get(name, 0.0) + usd)}


def count_in_shares(routes: Routes, job: Job, costs: RouteCosts, before: RouteCosts | None = None) -> None:
    """Count what a job has cost, or may have, against the parts of the budget, beyond what is counted yet."""
    before = before or RouteCosts()
    for route in routes:
        if route.share is not None:
            usd, doubtful_usd = _at(route, job, costs)
            counted_usd, counted_doubtful_usd = _at(route, job, before)
            route.share.recover(spent_usd=usd - counted_usd, doubtful_usd=doubtful_usd - counted_doubtful_usd)


def _at(route: Route, job: Job, costs: RouteCosts) -> tuple[float, float]:
    anywhere_usd = costs.anywhere * route.price(job)  # each route may have had the request
    return costs.charged.get(route.name, 0.0), costs.doubtful.get(route.name, 0.0) + anywhere_usd
