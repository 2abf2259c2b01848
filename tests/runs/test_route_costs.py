"""A route's part of the budget holds whatever dies: what each route has charged is known after a resume."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from imagemill.engine.job_log import CUT, UP_NEXT
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import CostSource, Job, JobStatus
from imagemill.runs.session import Session, open_session
from imagemill.settings import RunSettings
from tests.conftest import Place
from tests.runs.test_recovery import killed_at_work, resumed
from tests.runs.test_session import settings

USD = 0.001


@pytest.fixture
def over_both(place: Place, catalog: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> RunSettings:
    """A run over two routes, each with a part of the budget."""
    monkeypatch.setenv("RUNWARE_API_KEY", "k")
    described = settings(place, catalog(prompt=["a"])).model_dump(exclude_unset=True)
    routes = [
        {"provider": name, "usd_per_image": usd, "max_cost_usd": 1.0}
        for name, usd in (("together", USD), ("runware", 2 * USD))
    ]
    return RunSettings.model_validate({**described, "api": "together", "routes": routes})


def spent(session: Session) -> dict[str, tuple[float, float]]:
    """What is charged, and in doubt, of each route's part of the budget, in units of ``USD``."""
    shares = {route.name: route.share for route in session.engine.routes}
    return {
        name: (round(share.spent_usd / USD, 6), round(share.doubtful_usd / USD, 6))
        for name, share in shares.items()
        if share is not None
    }


def moved(session: Session, job: Job) -> None:
    """The first route charges for a wrong picture and loses an answer; then the second has the job."""
    job.route = "together"
    session.recorder.sent(job)
    job.pay(USD, CostSource.LIST)
    session.recorder.attempt_failed(job, ApiError(ErrorClass.INVALID_IMAGE, "wrong size"), 0.0)
    job.requeue()
    job.start(2.0)
    session.recorder.sent(job)
    job.lose_answer(USD)
    session.recorder.attempt_failed(job, ApiError(ErrorClass.TIMEOUT, "no answer"), 0.0)
    job.requeue()
    job.route = "runware"
    job.start(3.0)
    session.recorder.sent(job)
    job.request_id = "r"
    job.pay(2 * USD, CostSource.LIST)
    session.recorder.accepted(job)


@pytest.mark.parametrize("is_saved", [True, False], ids=["the store knows", "only the log knows"])
def test_what_a_route_charged_stays_on_it_when_the_job_has_moved(
    over_both: RunSettings,
    is_saved: bool,  # noqa: FBT001
) -> None:
    """Seeds 3960, 9917, 12187: the share of the route that a job had left was whole after a resume."""
    with open_session(over_both) as session:
        job = killed_at_work(session)
        moved(session, job)

        async def save() -> None:
            session.store.save(job)
            await session.store.commit()

        if is_saved:
            session.wait(save)
    with open_session(over_both) as session:
        resumed(session)
        assert spent(session) == {"together": (1, 1), "runware": (2, 0)}


def test_what_a_lost_machine_may_have_sent_counts_against_every_route(over_both: RunSettings) -> None:
    """Seed 3135: it counted at the first route only, though another had been sent the request."""
    with open_session(over_both) as session:
        job = killed_at_work(session, status=JobStatus.PENDING, attempts=0, started_at=None)
        session.recorder.event(UP_NEXT, jobs=[job.number])
        session.recorder.event(CUT)
        job = resumed(session)
        assert (job.unanswered, job.unanswered_usd) == (1, 2 * USD)  # as much as it may have cost
        assert spent(session) == {"together": (0, 1), "runware": (0, 2)}
    with open_session(over_both) as session:  # nothing was sent in between
        assert spent(session) == {"together": (0, 1), "runware": (0, 2)}
        job.route = "runware"
        job.start(2.0)
        session.recorder.sent(job)
    with open_session(over_both) as session:
        job = resumed(session)
        assert (job.unanswered, job.request_id is not None) == (1, True)  # the second is asked about
        assert spent(session) == {"together": (0, 1), "runware": (0, 2)}
