"""When queued APIs are asked: few looks, little waiting, whatever the latencies are; none where one tells."""

from __future__ import annotations

import json
import math
import random
from collections.abc import AsyncIterator, Callable

import anyio
import httpx
import pytest

from imagemill.blocks.apis import Fal, Replicate
from imagemill.blocks.apis.base import ImageApi
from imagemill.blocks.apis.polling import CompletionTimes
from imagemill.errors import ApiError, ErrorClass
from tests.blocks.apis.variants import make_job
from tests.virtual_time import run


def looks_and_delay(times: CompletionTimes, latencies: list[float], skip: int = 200) -> tuple[float, float]:
    """Looks an image, and the latency that waiting for a look adds, as a share of the generation time."""
    looks = added_s = total_s = 0.0
    for number, latency_s in enumerate(latencies):
        seen_s, count = 0.0, 0
        while True:
            look_s = times.next_look(seen_s)
            assert look_s > seen_s
            count += 1
            if look_s >= latency_s:
                break
            seen_s = look_s
        times.completed(seen_s, look_s)
        if number >= skip:
            looks, added_s, total_s = looks + count, added_s + look_s - latency_s, total_s + latency_s
    return looks / (len(latencies) - skip), added_s / total_s


def lognormal(median_s: float, sigma: float, count: int, seed: int = 1) -> list[float]:
    draws = random.Random(seed)
    return [median_s * math.exp(sigma * draws.gauss(0, 1)) for _ in range(count)]


@pytest.mark.parametrize("median_s", [0.2, 0.8, 5.0])
@pytest.mark.parametrize(
    ("sigma", "most_added"),
    # The least that blind looks can add at two an image: 0.10, 0.13, 0.17, 0.23 (benchmarks/polling.md).
    [(0.2, 0.12), (0.25, 0.15), (0.35, 0.19), (0.5, 0.26)],
)
def test_looks_stay_under_two_and_add_little(median_s: float, sigma: float, most_added: float) -> None:
    looks, added = looks_and_delay(CompletionTimes(0.4), lognormal(median_s, sigma, 3000))
    assert looks < 2.0
    assert added < most_added


def test_the_looks_follow_a_vendor_that_changes_its_pace() -> None:
    times = CompletionTimes(0.4)
    looks_and_delay(times, lognormal(0.5, 0.25, 1000))
    for median_s in (2.0, 0.5):
        looks, added = looks_and_delay(times, lognormal(median_s, 0.25, 1500), skip=300)
        assert looks < 2.0
        assert added < 0.15


def test_two_kinds_of_images_still_get_few_looks() -> None:
    mixed = lognormal(0.5, 0.15, 2000) + lognormal(3.0, 0.15, 500)
    random.Random(1).shuffle(mixed)
    looks, added = looks_and_delay(CompletionTimes(0.4), mixed)
    assert looks < 2.4
    assert added < 0.5


def test_an_image_that_takes_for_ever_is_looked_at_less_and_less() -> None:
    times = CompletionTimes(0.4)
    looks_and_delay(times, lognormal(0.5, 0.25, 500))
    seen_s, count = 0.0, 0
    while seen_s < 600:
        before, seen_s = seen_s, times.next_look(seen_s)
        assert seen_s - before <= 30
        count += 1
    assert count < 60


def test_samples_of_any_kind_keep_the_looks_sane() -> None:
    times = CompletionTimes(0.0)
    for after_s, by_s in [(0, 0), (0, 1e9), (1e9, 1e9), (5, 5), (0, 1e-9), (1e-9, 2e-9), (3, 1)]:
        times.completed(after_s, by_s)
        for elapsed_s in (0.0, 1e-9, 0.5, 1e6):
            assert elapsed_s < times.next_look(elapsed_s) < math.inf


Handler = Callable[[httpx.Request], httpx.Response]


def generate_with(
    api: ImageApi, handler: Handler, request_id: str | None = None
) -> tuple[float, ApiError | None]:
    """Generate an image against a handler: seconds it took, and its error."""

    async def generate() -> tuple[float, ApiError | None]:
        job = make_job(api)
        job.request_id = request_id

        async def accepted(_: str, _charged_usd: float | None = None) -> None:
            return None

        begun = anyio.current_time()
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as http:
            try:
                await api.generate(http, job, accepted)
            except ApiError as error:
                return anyio.current_time() - begun, error
        return anyio.current_time() - begun, None

    return run(generate)


def replicate_with(handler: Handler) -> tuple[float, ApiError | None]:
    return generate_with(Replicate(api_key="k", request_timeout_s=100), handler, request_id="one")


def answering(*answers: tuple[int, dict[str, str], object]) -> tuple[Handler, list[str]]:
    left, asked = list(answers), []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url}")
        status, headers, body = left.pop(0) if len(left) > 1 else left[0]
        return httpx.Response(
            status, headers=headers, content=body if isinstance(body, bytes) else json.dumps(body)
        )

    return handle, asked


COMPLETED_S = 2.5
EVENTS = b'data: {"status": "IN_QUEUE"}\n\n: comment\n\ndata: {"status": "IN_PROGRESS"}\n\n'
COMPLETED = b'data: {"status": "COMPLETED"}\n\n'


class SlowStream(httpx.AsyncByteStream):
    """A stream whose last chunk comes when the image is made."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.chunks[0]
        await anyio.sleep(COMPLETED_S)
        for chunk in self.chunks[1:]:
            yield chunk


def fal_answering(stream: Callable[[], httpx.Response]) -> tuple[Handler, list[str]]:
    """fal, whose images take COMPLETED_S from their submit on, and what it was asked for."""
    asked: list[str] = []
    begun = 0.0

    def handle(request: httpx.Request) -> httpx.Response:
        nonlocal begun
        what = request.url.path.partition("/requests/r1")[2] if request.method == "GET" else "submit"
        asked.append(what or "result")
        if what == "submit":
            begun = anyio.current_time()
            return httpx.Response(200, json={"request_id": "r1"})
        if what == "/status/stream":
            return stream()
        if what == "/status":
            done = anyio.current_time() - begun >= COMPLETED_S
            return httpx.Response(
                200 if done else 202, json={"status": "COMPLETED" if done else "IN_PROGRESS"}
            )
        return httpx.Response(200, json={"images": [{"url": "data:image/png;base64,aGVsbG8="}]})

    return handle, asked


def test_an_api_that_tells_is_not_looked_at() -> None:
    for chunks in ((EVENTS, COMPLETED), (EVENTS, COMPLETED[:9], COMPLETED[9:])):
        handle, asked = fal_answering(lambda chunks=chunks: httpx.Response(200, stream=SlowStream(*chunks)))
        assert generate_with(Fal(api_key="k"), handle)[1] is None
        assert asked == ["submit", "/status/stream", "result"]


@pytest.mark.parametrize(
    "stream",
    [
        lambda: httpx.Response(200, content=EVENTS),  # it ends before the image is made
        lambda: httpx.Response(200, content=b"<html>"),
        lambda: httpx.Response(200, content=b"data: [1]\n\ndata: \xff\n\n"),
        lambda: httpx.Response(200, stream=SlowStream(b"data: ", b"x" * 300_000)),
        lambda: httpx.Response(429),
        lambda: httpx.Response(302, headers={"location": "http://169.254.169.254/"}),
    ],
)
def test_where_a_stream_breaks_off_the_status_is_asked_for(stream: Callable[[], httpx.Response]) -> None:
    handle, asked = fal_answering(stream)
    seconds, error = generate_with(Fal(api_key="k"), handle)
    assert error is None
    assert asked[:2] == ["submit", "/status/stream"]
    assert asked[-2:] == ["/status", "result"]
    assert seconds >= COMPLETED_S


def test_a_server_without_streams_is_asked_for_one_once() -> None:
    handle, asked = fal_answering(lambda: httpx.Response(404))
    api = Fal(api_key="k")
    for _ in range(3):
        assert generate_with(api, handle)[1] is None
    assert asked.count("/status/stream") == 1
    assert asked.count("result") == 3


def test_looks_that_come_too_often_wait_and_cost_the_job_nothing() -> None:
    done = {"status": "succeeded", "output": ["data:image/png;base64,aGVsbG8="]}
    throttled = {"detail": "Request was throttled. Your rate limit resets in ~30s."}
    handle, asked = answering((429, {}, throttled), (429, {"retry-after": "20"}, throttled), (200, {}, done))
    seconds, error = replicate_with(handle)
    assert error is None
    assert len(asked) == 3
    assert 50 <= seconds < 80


@pytest.mark.parametrize(
    ("answer", "error_class", "keep"),
    [
        ((500, {}, {"detail": "oh"}), ErrorClass.SERVER_ERROR, True),
        ((200, {}, b"<html>"), ErrorClass.SERVER_ERROR, True),
        ((200, {}, {"status": "dancing"}), ErrorClass.SERVER_ERROR, True),
        ((200, {}, {"status": ["succeeded"], "output": [[]]}), ErrorClass.SERVER_ERROR, True),
        ((404, {}, {"detail": "no"}), ErrorClass.TIMEOUT, False),
        ((200, {}, {"status": "failed", "error": "CUDA"}), ErrorClass.SERVER_ERROR, False),
        ((200, {}, {"status": "failed", "error": {"NSFW": 1}}), ErrorClass.CONTENT_FILTERED, False),
        ((200, {}, {"status": "canceled"}), ErrorClass.SERVER_ERROR, False),
        ((401, {}, {"detail": "no"}), ErrorClass.UNAUTHORIZED, True),
    ],
)
def test_trouble_while_asking_keeps_the_request(
    answer: tuple[int, dict[str, str], object],
    error_class: ErrorClass,
    keep: bool,  # noqa: FBT001
) -> None:
    handle, _ = answering(answer)
    _, error = replicate_with(handle)
    assert error is not None
    assert (error.error_class, error.keep_request) == (error_class, keep)


def test_a_state_that_comes_just_after_the_deadline_makes_it_no_less_a_timeout() -> None:
    async def scenario() -> None:
        async with Fal(api_key="k").attempt() as scope:
            scope.deadline = anyio.current_time() - 1
            await anyio.lowlevel.cancel_shielded_checkpoint()
            scope.deadline = anyio.current_time() + 60  # as a new state moves it
            await anyio.sleep(1)

    with pytest.raises(ApiError) as caught:
        anyio.run(scenario)
    assert caught.value.code == "timeout"
