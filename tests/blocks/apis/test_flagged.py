"""An image that its API flagged is charged, never kept and never made again, whatever happens to its link."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from imagemill.blocks.apis import PROVIDERS, Fal, ImageApi
from imagemill.errors import ErrorClass
from imagemill.jobs import CostSource, JobStatus
from tests.blocks.apis.variants import Outcome, make_job

LINK = "https://v3.fal.media/files/a.png"


def flagging(asked: list[str]) -> Callable[[httpx.Request], httpx.Response]:
    """A vendor that flags what it makes, and whose links never work."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.host}")
        if request.url.host == "queue.fal.run" and request.method == "GET":
            if request.url.path.endswith("/status"):
                return httpx.Response(200, json={"status": "COMPLETED"})
            return httpx.Response(200, json={"images": [{"url": LINK}], "has_nsfw_concepts": [True]})
        if request.url.host == "queue.fal.run":
            return httpx.Response(200, json={"request_id": "r"})
        if request.url.host == "fal.run":
            return httpx.Response(200, json={"images": [{"url": LINK}], "has_nsfw_concepts": [True]})
        if request.url.host == "api.runware.ai":
            (task,) = json.loads(request.content)
            found = {"taskUUID": task["taskUUID"], "imageURL": "https://im.runware.ai/a.png"}
            return httpx.Response(200, json={"data": [found | {"NSFWContent": True, "cost": 0.0013}]})
        return httpx.Response(503)

    return answer


@pytest.mark.parametrize(
    ("api", "source", "usd"),
    [
        (Fal(api_key="k", queued=False), CostSource.LIST, None),
        (Fal(api_key="k"), CostSource.LIST, None),
        (PROVIDERS["runware"](api_key="k"), CostSource.TOLD, 0.0013),
    ],
    ids=["fal at once", "fal", "runware"],
)
def test_a_flag_outlives_a_link_in_trouble(
    api: ImageApi, source: CostSource, usd: float | None, work_all: Callable[..., list[Outcome]]
) -> None:
    asked: list[str] = []
    (outcome,) = work_all(api, [make_job(api)], transport=httpx.MockTransport(flagging(asked)))
    job = outcome.job
    assert (job.status, job.error_class, job.error_code, job.retryable, job.attempts) == (
        JobStatus.FAILED, ErrorClass.CONTENT_FILTERED, "flagged", False, 1,
    )  # fmt: skip
    assert (job.cost_source, job.cost_usd) == (source, api.price_usd(512, 512, 4) if usd is None else usd)
    assert len([one for one in asked if one.startswith("POST")]) == 1
    assert not [one for one in asked if "media" in one or "im." in one]  # what is not kept is not fetched
