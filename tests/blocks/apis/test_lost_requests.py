"""A submit whose answer was lost is found in the vendor's list of requests, and nothing else is."""

from __future__ import annotations

import asyncio
import io
import time
from typing import Any

import anyio
import httpx
import pytest
from PIL import Image

from imagemill.blocks.apis import PROVIDERS, ImageApi
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


@pytest.mark.slow
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


def test_the_key_does_not_follow_a_list_into_the_clear() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        url = "http://api.replicate.com/v1/predictions?cursor=2"
        return httpx.Response(200, json={"results": [], "next": url})

    api = PROVIDERS["replicate"](api_key="k")
    assert found(api, [make_job(api)], httpx.MockTransport(answer)) == {}
    assert len(asked) == 1
    assert asked[0].startswith("https://")


@pytest.mark.parametrize("variant", LISTING)
def test_one_prompt_in_several_sizes_is_found_each_to_its_own(variant: str, emulator: Emulator) -> None:
    api = VARIANTS[variant](emulator.base_url)
    sizes = [(512, 512), (1024, 1024), (672, 384), (384, 672)]
    jobs = [
        make_job(api, number=number, width=width, height=height)
        for number, (width, height) in enumerate(sizes)
    ]
    submitted(api, jobs, emulator)
    ids = found(api, jobs)
    assert ids.keys() == {0, 1, 2, 3}
    headers = {name: value for name, value in api.headers.items() if name != "prefer"}
    for job in jobs:
        url = api.look_url(ids[job.number])
        answer = httpx.get(url, headers=headers, trust_env=False).json()
        link = answer["images"][0]["url"] if "images" in answer else answer["output"][0]
        with Image.open(io.BytesIO(httpx.get(link, trust_env=False).content)) as image:
            assert image.size == (job.width, job.height)


@pytest.mark.parametrize("variant", LISTING)
def test_of_requests_alike_the_newest_that_was_not_answered_is_taken(
    variant: str, emulator: Emulator
) -> None:
    api = VARIANTS[variant](emulator.base_url)
    job = make_job(api)
    first = second = ""
    for _ in range(2):
        submitted(api, [job], emulator)
        first, second = second, found(api, [job])[0]
    assert first != second

    async def inside() -> dict[int, str]:
        async with httpx.AsyncClient(trust_env=False) as http:
            return {of.number: request_id async for of, request_id in api.find_lost(http, [job], {second})}

    assert asyncio.run(inside()) == {0: first}


def test_a_request_whose_charge_is_booked_is_no_lost_one() -> None:
    api = PROVIDERS["replicate"](api_key="k")
    job = make_job(api, started_at=time.time())
    listed = {"id": "p", "model": api.model, "status": "succeeded", "input": api.input_of(job)}  # type: ignore[attr-defined]
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"results": [listed], "next": None}))

    async def inside(*known: str) -> list[str]:
        async with httpx.AsyncClient(transport=transport) as http:
            return [request_id async for _, request_id in api.find_lost(http, [job], known)]

    assert asyncio.run(inside()) == ["p"]
    assert asyncio.run(inside("p")) == asyncio.run(inside("paid:p")) == []
