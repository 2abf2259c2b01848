"""Limits: the token bucket with a given clock, and both limits over the wire."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from imagemill.emulator import Emulator, Settings
from imagemill.emulator.limits import DynamicRate, Limits, TokenBucket
from imagemill.emulator.order import Order
from imagemill.emulator.studio import Studio

Ask = Callable[..., httpx.Response]
Follow = Callable[[httpx.Response], httpx.Response]
Until = Callable[[Callable[[], bool]], None]


def test_a_token_bucket_refills_with_time() -> None:
    bucket = TokenBucket(per_minute=60, burst=2, now=100.0)
    assert [bucket.take(100.0) for _ in range(2)] == [0, 0]
    assert bucket.take(100.0) == pytest.approx(1.0)
    assert bucket.take(100.25) == pytest.approx(0.75)
    assert bucket.take(101.0) == 0
    assert bucket.take(101.0) == pytest.approx(1.0)
    assert bucket.remaining(1000.0) == 2
    assert bucket.reset(1000.0) == 0


def test_a_refused_request_consumes_nothing() -> None:
    limits = Limits()
    limits.configure(max_concurrent=1, per_minute=60, burst=2, now=0.0)
    assert limits.admit(0.0) is None
    assert limits.admit(0.0).limit == "concurrency"
    limits.release()
    assert limits.admit(0.0) is None
    limits.release()
    refused = limits.admit(0.5)
    assert (refused.limit, refused.wait_s) == ("rate", pytest.approx(0.5))
    assert (limits.in_flight, limits.peak_in_flight) == (0, 1)


def test_a_reshaped_bucket_keeps_its_tokens() -> None:
    bucket = TokenBucket(per_minute=60, burst=10, now=0.0)
    bucket.take(0.0)
    bucket.reshape(per_minute=120, burst=4, now=0.0)
    assert bucket.remaining(0.0) == 4
    assert bucket.wait(0.0) == 0


def test_a_line_is_first_come_first_served() -> None:
    limits = Limits()
    limits.configure(max_concurrent=1, per_minute=None, burst=1, now=0.0)
    begun: list[str] = []
    numbers = {name: limits.line_up(lambda name=name: begun.append(name)) for name in "abcd"}
    assert (begun, limits.in_flight, limits.waiting) == (["a"], 1, 3)
    assert [limits.position(numbers[name]) for name in "abcd"] == [0, 0, 1, 2]
    limits.leave(numbers["c"])
    assert limits.position(numbers["d"]) == 1
    limits.release()
    assert (begun, limits.in_flight, limits.waiting) == (["a", "b"], 1, 1)
    limits.configure(max_concurrent=2, per_minute=None, burst=1, now=0.0)
    assert (begun, limits.in_flight, limits.waiting) == (["a", "b", "d"], 2, 0)


def test_a_dynamic_rate_follows_success() -> None:
    rate = DynamicRate(60, 0.0, window_s=600)
    assert rate.take(0.0) is None
    refused = rate.take(0.0)
    assert refused is not None
    assert (refused.limit, refused.wait_s) == ("rate", pytest.approx(1.0))
    for second in range(1, 601):
        assert rate.take(float(second)) is None
        rate.succeeded(float(second))
    assert rate.per_minute(600.0) == pytest.approx(120)
    assert rate.take(601.0) is None
    assert [rate.take(602.0) for _ in range(2)] == [None, None]
    assert rate.per_minute(1100.0) == 60
    assert rate.per_minute(3000.0) == 60


def test_a_burst_within_the_rate_meets_too_little_capacity() -> None:
    rate = DynamicRate(600, 0.0, capacity_per_s=4)
    seen = [rate.take(0.0) for _ in range(11)]
    assert [refused and refused.limit for refused in seen] == [None] * 4 + ["capacity"] * 6 + ["rate"]


def test_concurrency_over_the_wire(together: Ask, emulator: Emulator, until: Until) -> None:
    emulator.configure(max_concurrent=2, latency_s=1, latency_sigma=0)
    with ThreadPoolExecutor(2) as pool:
        held = [pool.submit(together, seed=seed) for seed in (1, 2)]
        until(lambda: emulator.stats()["in_flight"] == 2)
        refused = together(seed=3)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert "retry-after" not in refused.headers
        assert refused.headers["x-ratelimit-limit"] == "2"
        assert refused.headers["x-ratelimit-remaining"] == "0"
        assert [future.result().status_code for future in held] == [200, 200]
    stats = emulator.stats()
    assert (stats["peak_in_flight"], stats["in_flight"], stats["rate_limited"]) == (2, 0, 1)
    assert stats["requests"] == {"POST /v1/images/generations": {"200": 2, "429": 1}}
    assert emulator.bill()["images"] == 2


def test_the_rate_over_the_wire(together: Ask, emulator: Emulator) -> None:
    emulator.configure(per_minute=2, burst=3)
    answers = [together(seed=seed) for seed in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[0].headers["x-ratelimit-remaining"] == "2"
    refused = answers[-1]
    assert 25 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-limit"] == "3"
    assert refused.headers["x-ratelimit-remaining"] == "0"
    assert float(refused.headers["x-ratelimit-reset"]) > 60
    emulator.configure(retry_after=False)
    assert "retry-after" not in together().headers


def test_the_dynamic_rate_over_the_wire(together: Ask, emulator: Emulator) -> None:
    emulator.configure(dynamic_per_minute=120, capacity_per_s=1)
    answers = [together(seed=seed) for seed in range(4)]
    assert [answer.status_code for answer in answers] == [200, 503, 429, 429]
    taken, burst, above, _ = answers
    assert taken.headers["x-ratelimit-limit"] == taken.headers["x-ratelimit-limit-dynamic"] == "2"
    assert taken.headers["x-ratelimit-remaining"] == taken.headers["x-ratelimit-remaining-dynamic"] == "1"
    assert burst.json()["error"]["type"] == "service_unavailable"
    assert above.json()["error_type"] == "dynamic_request_limited"
    assert above.json()["error"]["type"] == "dynamic_request_limited"
    for refused in (burst, above):
        assert 0 < float(refused.headers["x-ratelimit-reset"]) <= 1
        assert "retry-after" not in refused.headers
    assert emulator.bill()["images"] == 1
    emulator.configure(dynamic_window_s=1, capacity_per_s=None)
    assert float(together(seed=5).headers["x-ratelimit-limit-dynamic"]) == 2
    emulator.configure(dynamic_per_minute=None)
    assert "x-ratelimit-limit" not in together(seed=6).headers


def test_latency_is_deterministic_and_lognormal() -> None:
    order = Order("fal", "m", "p", 64, 64, 4, 1, 1, "jpeg")

    def latencies() -> list[float]:
        studio = Studio(Settings(latency_s=2, latency_sigma=0.5, seed=3))
        drawn = [studio.admit(order).latency_s for _ in range(401)]
        studio.gallery.close()
        return drawn

    first = latencies()
    assert first == latencies()
    assert 1.7 < sorted(first)[200] < 2.3
    assert len(set(first)) == 401
