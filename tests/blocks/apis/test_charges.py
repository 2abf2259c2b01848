"""What an API says that it charged is booked; else the price, or that it is not known."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from imagemill.blocks.apis import BlackForestLabs, ImageApi, OpenAICompatible, Together
from imagemill.jobs import CostSource, Job, JobStatus
from tests.blocks.apis.variants import Outcome, make_job
from tests.http_server import Answer, Asked, serving

Work = Callable[[ImageApi, Job], Outcome]


def picture(side: int) -> bytes:
    held = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGB").save(held, "PNG")
    return held.getvalue()


PNG = picture(512)
SMALL = base64.b64encode(picture(256)).decode()


@pytest.mark.parametrize(("cost", "usd", "source"), [(1.4, 0.014, "told"), (None, 0.05, "list")])
def test_credits_in_the_answer_to_a_submit(cost: float | None, usd: float, source: str, work: Work) -> None:
    looks = 0

    def answers(asked: Asked) -> Answer:
        nonlocal looks
        here = f"http://{asked.headers['host']}"
        if asked.method == "POST":
            return Answer({"id": "1", "polling_url": f"{here}/v1/get_result?id=1", "cost": cost})
        if not asked.path.startswith("/v1/get_result"):
            return Answer(PNG)
        looks += 1
        if looks == 1:  # what was told is still known when the request is asked about again
            return Answer(b"<html>Bad gateway</html>", 502)
        return Answer({"status": "Ready", "result": {"sample": f"{here}/a.png"}})

    with serving(answers) as server:
        api = BlackForestLabs(
            api_key="a long key", base_url=server.base_url, usd_per_image=0.05, request_timeout_s=3000
        )
        job = work(api, make_job(api)).job
    assert job.status is JobStatus.DONE, job.error_message
    assert (job.cost_usd, job.cost_source) == (usd, source)


def image_of(encoded: str) -> dict[str, Any]:
    return {"data": [{"b64_json": encoded}]}


def test_an_image_that_is_thrown_away_is_booked_as_it_was_charged(work: Work) -> None:
    told = {"x-litellm-response-cost": "0.04"}
    answers = [Answer(image_of(SMALL), headers=told), Answer(image_of(base64.b64encode(PNG).decode()))]
    with serving(lambda _: answers.pop(0)) as server:
        api = OpenAICompatible(
            api_key="a long key", base_url=server.base_url, usd_per_image=0.01, request_timeout_s=3000
        )
        job = work(api, make_job(api)).job
    assert job.status is JobStatus.DONE
    assert job.cost_usd == pytest.approx(0.05)
    assert job.cost_source == "list"  # as sure as the least sure of its parts


def test_a_link_that_is_refused_is_booked_as_it_was_charged(work: Work) -> None:
    link = Answer({"data": [{"url": "https://x.example/a"}]}, headers={"x-litellm-response-cost": "0.04"})
    with serving(lambda _: link) as server:
        api = OpenAICompatible(
            api_key="a long key", base_url=server.base_url, usd_per_image=0.01, request_timeout_s=3000
        )
        job = work(api, make_job(api)).job
    assert (job.status, job.cost_usd, job.cost_source) == (JobStatus.FAILED, 0.04, "told")


def test_a_price_that_nobody_knows_is_unknown(work: Work) -> None:
    good = Answer(image_of(base64.b64encode(PNG).decode()))
    with serving(lambda _: good) as server:
        api = Together(
            api_key="a long key", base_url=server.base_url, model="somebody/new-model", request_timeout_s=3000
        )
        job = work(api, make_job(api)).job
    assert (job.cost_usd, job.cost_source) == (0.0, "unknown")


def test_a_total_is_as_sure_as_the_least_sure_of_its_parts() -> None:
    assert CostSource.of_total([]) is None
    assert CostSource.of_total(["told", ""]) is CostSource.TOLD
    assert CostSource.of_total(["told", "list"]) is CostSource.LIST
    assert CostSource.of_total(["unknown", "told", "list"]) is CostSource.UNKNOWN
