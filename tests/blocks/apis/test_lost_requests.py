"""A submit whose answer was lost is found in the vendor's list of requests, and nothing else is."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anyio
import httpx
import pytest

from imagemill.blocks.apis import ImageApi
from imagemill.emulator import Emulator
from imagemill.errors import ApiError
from imagemill.jobs import Job
from tests.blocks.apis.variants import QUEUED, VARIANTS, make_job

LISTING = sorted(QUEUED - {"bfl"})


def found(api: ImageApi, jobs: list[Job], transport: httpx.MockTransport | None = None) -> dict[int, str]:
    async def inside() -> dict[int, str]:
        async with httpx.AsyncClient(trust_env=False, transport=transport) as http:
            return {job.number: request_id async for job, request_id in api.find_lost(http, jobs)}

    return asyncio.run(inside())


def submitted(api: ImageApi, jobs: list[Job], emulator: Emulator) -> None:
    """Post the jobs, and drop the answers; then wait until the API is done with them."""

    async def inside() -> None:
        limit = anyio.CapacityLimiter(20)

        async def post(http: httpx.AsyncClient, job: Job) -> None:
            async with limit:
                await api.post(http, job)

        async with httpx.AsyncClient(trust_env=False) as http, anyio.create_task_group() as group:
            for job in jobs:
                group.start_soon(post, http, job)

    asyncio.run(inside())
    while emulator.stats()["in_flight"]:
        time.sleep(0.01)


@pytest.mark.parametrize("variant", LISTING)
def test_what_the_api_took_is_found_page_by_page(variant: str, emulator: Emulator) -> None:
    api = VARIANTS[variant](emulator.base_url)
    jobs = [make_job(api, f"Fox {n}", number=n, started_at=time.time()) for n in range(250)]
    submitted(api, jobs[:-1], emulator)
    ids = found(api, jobs)
    assert ids.keys() == set(range(249))
    assert len(set(ids.values())) == 249


@pytest.mark.parametrize("variant", LISTING)
def test_what_asks_for_something_else_is_not_taken(variant: str, emulator: Emulator) -> None:
    api = VARIANTS[variant](emulator.base_url)
    others: list[dict[str, Any]] = [
        {"seed": 8},
        {"steps": 3},
        {"format": "jpeg"},
        {"width": 1024, "height": 1024},
    ]
    submitted(api, [make_job(api, **fields) for fields in others], emulator)
    assert found(api, [make_job(api)]) == {}


@pytest.mark.parametrize("variant", sorted(VARIANTS.keys() - set(LISTING)))
def test_an_api_that_lists_nothing_is_not_asked(variant: str, emulator: Emulator) -> None:
    api = VARIANTS[variant](emulator.base_url)
    assert found(api, [make_job(api)]) == {}
    assert emulator.stats()["requests"] == {}


@pytest.mark.parametrize("variant", LISTING)
@pytest.mark.parametrize(
    "listed",
    [
        None,
        "all",
        [None, 7, "x"],
        [{}],
        [{"id": 7, "request_id": {}, "input": {"prompt": []}, "json_input": 7}],
    ],
)
def test_whatever_a_list_holds_nothing_breaks(variant: str, listed: object) -> None:
    page = {"items": listed, "results": listed, "has_more": True, "next_cursor": None, "next": "http://[bad"}
    api = VARIANTS[variant]("http://127.0.0.1:1")
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=page))
    assert found(api, [make_job(api)], transport) == {}


@pytest.mark.parametrize("variant", LISTING)
def test_a_list_without_end_is_not_followed_for_ever(variant: str) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        url = f"http://127.0.0.1:1/v1/predictions?cursor={len(asked)}"
        return httpx.Response(
            200, json={"items": [], "results": [], "has_more": True, "next_cursor": url, "next": url}
        )

    api = VARIANTS[variant]("http://127.0.0.1:1")
    assert found(api, [make_job(api)], httpx.MockTransport(answer)) == {}
    assert len(asked) == 50


@pytest.mark.parametrize("variant", LISTING)
def test_a_key_that_may_not_list_is_an_error_of_the_api(variant: str) -> None:
    api = VARIANTS[variant]("http://127.0.0.1:1")
    with pytest.raises(ApiError, match="HTTP 403"):
        found(api, [make_job(api)], httpx.MockTransport(lambda _: httpx.Response(403, json={"detail": "no"})))
