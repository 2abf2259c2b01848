"""Charged is charged, whatever comes after: a link in trouble is asked again, and the cost limit holds."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from imagemill.blocks.apis import OpenAICompatible, Together
from imagemill.engine.engine import StopKind
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import Job, JobStatus
from tests.blocks.apis.link_server import Answer, link_server, picture
from tests.blocks.apis.variants import Outcome, make_job
from tests.engine.test_image_check import HOSTILE_WEBP
from tests.virtual_time import run

WorkAll = Callable[..., list[Outcome]]

PRICE_USD = 0.01
PICTURE: Answer = (200, {}, picture())
TROUBLE: dict[str, Answer | None] = {
    "503": (503, {"retry-after": "1"}, b""),
    "302 to a host that is not the vendor's": (302, {"location": "https://example.com/a.png"}, b""),
    "404": (404, {}, b""),
    "403": (403, {}, b""),
    "cut off": None,
}


def api_at(base_url: str) -> OpenAICompatible:
    # An hour, of which the fast clock makes a minute: a busy machine takes a second for its first request.
    return OpenAICompatible(api_key="k", base_url=base_url, usd_per_image=PRICE_USD, request_timeout_s=3000)


def jobs_of(api: OpenAICompatible, count: int) -> list[Job]:
    return [make_job(api, f"Fox {n}", number=n) for n in range(count)]


@pytest.mark.parametrize("trouble", TROUBLE)
def test_a_link_in_trouble_is_asked_again_and_the_image_not_bought_again(
    trouble: str, work_all: WorkAll
) -> None:
    with link_server(lambda before: TROUBLE[trouble] if before < 2 else PICTURE) as server:
        api = api_at(server.base_url)
        ended = work_all(api, jobs_of(api, 5))
    assert {outcome.job.status for outcome in ended} == {JobStatus.DONE}, ended[0].job.error_message
    assert server.billed == 5
    assert set(server.asked.values()) == {3}
    assert [outcome.job.cost_usd for outcome in ended] == [PRICE_USD] * 5
    assert [outcome.job.unanswered for outcome in ended] == [0] * 5


@pytest.mark.parametrize("trouble", TROUBLE)
def test_what_links_that_stay_in_trouble_cost_is_booked_and_the_limit_holds(
    trouble: str, work_all: WorkAll
) -> None:
    with link_server(lambda _: TROUBLE[trouble]) as server:
        api = api_at(server.base_url)
        ended = work_all(api, jobs_of(api, 30), 3.5 * PRICE_USD)
    assert server.billed == 3
    assert sum(outcome.job.cost_usd for outcome in ended) == pytest.approx(3 * PRICE_USD)
    failed = [outcome.job for outcome in ended if outcome.job.status is JobStatus.FAILED]
    assert [job.error_class for job in failed] == [ErrorClass.TIMEOUT] * 3
    assert all(job.retryable for job in failed)
    stopped = ended[0].stopped
    assert stopped is not None
    assert stopped.kind is StopKind.OUT_OF_BUDGET
    assert stopped.reason == (
        "The next image would exceed the limit of $0.035 ($0.03 is spent): raise --max-cost to go on."
    )


@pytest.mark.parametrize("in_vain", [2, 100])
def test_a_link_that_does_not_answer_is_asked_again_and_the_image_not_bought_again(
    in_vain: int, work_all: WorkAll
) -> None:
    asked = dict.fromkeys(("POST", "GET"), 0)

    async def answer(request: httpx.Request) -> httpx.Response:
        asked[request.method] += 1
        if request.method == "POST":
            return httpx.Response(200, json={"data": [{"url": "https://api.together.ai/imgproxy/7"}]})
        if asked["GET"] <= in_vain:
            raise httpx.ReadTimeout("", request=request)
        return httpx.Response(200, content=PICTURE[2])

    api = Together(api_key="a long key", usd_per_image=PRICE_USD, request_timeout_s=3000)
    jobs = jobs_of(api, 2)
    ended = work_all(api, jobs, 1.5 * PRICE_USD, transport=httpx.MockTransport(answer))
    assert asked["POST"] == 1  # a second image would exceed the limit
    assert sum(outcome.job.cost_usd for outcome in ended) == PRICE_USD
    assert sum(outcome.job.unanswered for outcome in ended) == 0
    came = {outcome.job.status for outcome in ended} - {JobStatus.PENDING}
    assert came == {JobStatus.DONE if in_vain == 2 else JobStatus.FAILED}


def test_a_resume_asks_the_link_and_pays_nothing(work_all: WorkAll) -> None:
    with link_server(lambda _: PICTURE) as server:
        api = api_at(server.base_url)
        paid = make_job(api, request_id=f"{server.base_url}/files/1", attempts=1, cost_usd=PRICE_USD)
        (outcome,) = work_all(api, [paid], PRICE_USD, PRICE_USD)
    assert outcome.job.status is JobStatus.DONE
    assert (server.billed, outcome.job.cost_usd) == (0, PRICE_USD)


def test_a_link_that_has_expired_since_an_earlier_day_is_given_up(work_all: WorkAll) -> None:
    with link_server(lambda before: PICTURE if before >= 10 else (404, {}, b"")) as server:
        api = api_at(server.base_url)
        paid = make_job(api, request_id=f"{server.base_url}/files/7", attempts=4, cost_usd=PRICE_USD)
        server.asked["/files/1"] = 10  # the new image's link works
        (outcome,) = work_all(api, [paid])
    assert outcome.job.status is JobStatus.DONE
    assert (server.billed, outcome.job.cost_usd) == (1, 2 * PRICE_USD)
    assert server.asked["/files/7"] == 4  # it might have been late


def test_an_attempt_is_long_enough_to_see_that_a_link_has_expired() -> None:
    """It was not at three seconds or less: each attempt ended as a timeout, and the job failed for ever."""
    api = Together(api_key="k", request_timeout_s=2)
    paid = make_job(api, request_id="https://api.together.ai/imgproxy/7", attempts=4, cost_usd=PRICE_USD)

    async def accepted(_: str, __: float | None = None) -> None: ...

    async def ask() -> None:
        gone = httpx.MockTransport(lambda _: httpx.Response(404))
        async with httpx.AsyncClient(transport=gone) as http:
            await api.generate(http, paid, accepted)

    with pytest.raises(ApiError) as raised:
        run(ask)
    assert (raised.value.code, raised.value.keep_request) == ("image_link_expired", False)


def test_a_link_of_seconds_before_a_restart_is_tried_again_while_it_is_late(work_all: WorkAll) -> None:
    """Seed 40117."""
    with link_server(lambda before: PICTURE if before >= 2 else (404, {}, b"")) as server:
        api = api_at(server.base_url)
        paid = make_job(api, request_id=f"{server.base_url}/files/7", attempts=1, cost_usd=PRICE_USD)
        (outcome,) = work_all(api, [paid])
    assert outcome.job.status is JobStatus.DONE
    assert (server.billed, outcome.job.cost_usd) == (0, PRICE_USD)


@pytest.mark.parametrize("sent", [b"garbage", *HOSTILE_WEBP.values()], ids=["garbage", *HOSTILE_WEBP])
def test_a_hostile_image_fails_its_job_and_not_the_run(sent: bytes, work_all: WorkAll) -> None:
    with link_server(lambda _: (200, {}, sent)) as server:
        api = api_at(server.base_url)
        ended = work_all(api, jobs_of(api, 3))
    assert ended[0].stopped is None
    assert {outcome.job.status for outcome in ended} == {JobStatus.FAILED}
    assert {outcome.job.error_class for outcome in ended} == {ErrorClass.INVALID_IMAGE}
    assert server.billed == 6  # an image that does not decode is made once more
    assert sum(outcome.job.cost_usd for outcome in ended) == pytest.approx(6 * PRICE_USD)
