"""What an API has taken is kept while it can be asked about: nothing that is made is bought again."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest
from PIL import Image

from imagemill.blocks.apis import Fal, ImageApi, Replicate, Runware
from imagemill.jobs import Job, JobStatus
from tests.blocks.apis.variants import Outcome, make_job

WorkAll = Callable[..., list[Outcome]]

PRICE_USD = 0.01


def picture() -> bytes:
    held = io.BytesIO()
    Image.effect_noise((512, 512), 90).convert("RGB").save(held, "PNG")
    return held.getvalue()


PNG = picture()
PROXY_PAGE = httpx.Response(200, content=b"<html>")


class Vendor:
    """fal's queue and its list, or Runware's tasks: what was bought, and how often each thing was asked."""

    def __init__(
        self,
        *,
        host: str,
        instead: Callable[[str, int], httpx.Response | None] = lambda _what, _before: None,
    ) -> None:
        self.bought: dict[str, Any] = {}
        self.asked: dict[str, int] = {}
        self.host = host
        self._instead = instead

    def __call__(self, request: httpx.Request) -> httpx.Response:
        url = str(request.url)
        body = json.loads(request.content) if request.content else None
        if isinstance(body, list):
            what, answer = self._task(body[0])
        elif request.method == "POST":
            self.bought[name := f"r{len(self.bought) + 1}"] = body
            what, answer = "submit", {"request_id": name}
        elif "by-endpoint" in url:
            what, answer = "list", {"items": [self._listed(name) for name in reversed(self.bought)]}
        elif url.endswith(".png"):
            what, answer = "link", PNG
        elif url.endswith("/stream"):
            return httpx.Response(405)
        elif url.endswith("/status"):
            what, answer = "status", {"status": "COMPLETED"}
        else:
            what, answer = "result", self._listed(url.rpartition("/")[2])["json_output"]
        before = self.asked[what] = self.asked.get(what, 0) + 1
        instead = self._instead(what, before - 1)
        if instead is not None:
            return instead
        if isinstance(answer, httpx.Response):
            return answer
        return httpx.Response(200, content=answer if isinstance(answer, bytes) else json.dumps(answer))

    def _task(self, task: dict[str, Any]) -> tuple[str, Any]:
        name = task["taskUUID"]
        made = {
            "data": [{"taskUUID": name, "imageURL": f"https://{self.host}/{name}.png", "cost": PRICE_USD}]
        }
        if task["taskType"] == "getTaskDetails":
            unknown = httpx.Response(404, json={"errors": [{"code": "taskNotFound", "message": "No"}]})
            return "details", {"data": [{"response": made}]} if name in self.bought else unknown
        if name in self.bought:
            return "task", httpx.Response(
                409, json={"errors": [{"code": "conflictTaskUUID", "message": "No"}]}
            )
        self.bought[name] = task
        return "task", made

    def _listed(self, name: str) -> dict[str, Any]:
        output = {"images": [{"url": f"https://{self.host}/{name}.png"}]}
        asked = self.bought.get(name)
        return {"request_id": name, "status_code": 200, "json_input": asked, "json_output": output}


def fal(**settings: Any) -> ImageApi:
    return Fal(api_key="a long key", usd_per_image=PRICE_USD, request_timeout_s=3000, **settings)


def runware(**settings: Any) -> ImageApi:
    return Runware(api_key="a long key", usd_per_image=PRICE_USD, request_timeout_s=3000, **settings)


APIS: dict[str, tuple[Callable[..., ImageApi], str]] = {
    "fal": (fal, "v3.fal.media"),
    "runware": (runware, "im.runware.ai"),
}


def work_one(work_all: WorkAll, api: ImageApi, job: Job, vendor: Vendor) -> Job:
    (outcome,) = work_all(api, [job], transport=httpx.MockTransport(vendor))
    return outcome.job


def assert_bought_once(job: Job, vendor: Vendor) -> None:
    assert job.status is JobStatus.DONE, job.error_message
    assert len(vendor.bought) == 1
    assert (job.cost_usd, job.unanswered) == (PRICE_USD, 0)


@pytest.mark.parametrize("content", [b'{"request_id": "r', b'{"status": "IN_QUEUE"}'])
def test_a_submit_that_is_accepted_in_an_unreadable_answer_is_looked_for(
    content: bytes, work_all: WorkAll
) -> None:
    def cut_off(what: str, before: int) -> httpx.Response | None:
        return httpx.Response(200, content=content) if what == "submit" and not before else None

    api, vendor = fal(), Vendor(host="v3.fal.media", instead=cut_off)
    assert_bought_once(work_one(work_all, api, make_job(api), vendor), vendor)
    assert vendor.asked["list"] == 1


@pytest.mark.parametrize("details_before", [0, 1])
def test_an_unreadable_answer_about_a_task_does_not_end_it(details_before: int, work_all: WorkAll) -> None:
    # The task is asked about first, or after Runware said that it has it already.
    def in_between(what: str, before: int) -> httpx.Response | None:
        if what == "task" and not before:
            return httpx.Response(502, content=b"bad gateway")
        if what == "details" and before < details_before:
            return httpx.Response(404, json={"errors": [{"code": "taskNotFound", "message": "No"}]})
        return PROXY_PAGE if what == "details" and before == details_before else None

    api, vendor = runware(), Vendor(host="im.runware.ai", instead=in_between)
    job = make_job(api)
    failed = work_one(work_all, api, job, vendor)
    if failed.status is JobStatus.FAILED:  # two server errors are all that a job has
        failed.reopen(PRICE_USD)
        failed = work_one(work_all, api, failed, vendor)
    assert_bought_once(failed, vendor)


def test_the_next_task_has_the_id_of_one_that_never_left(work_all: WorkAll) -> None:
    """Seed 389256: a lost machine had sent the task of that id, and the picture was bought under the next."""
    vendor, names = Vendor(host="im.runware.ai"), list[str]()

    def answer(request: httpx.Request) -> httpx.Response:
        (task,) = json.loads(request.content or b"[{}]")
        if task.get("taskType") == "imageInference":
            names.append(task["taskUUID"])
            if len(names) == 1:
                raise httpx.ConnectError("no connection", request=request)
        return vendor(request)

    (outcome,) = work_all(api := runware(), [make_job(api)], transport=httpx.MockTransport(answer))
    assert_bought_once(outcome.job, vendor)
    assert names[0] == names[1]


@pytest.mark.parametrize("name", APIS)
def test_an_image_on_another_host_is_booked_and_fetched_once_the_host_is_trusted(
    name: str, work_all: WorkAll
) -> None:
    make, _ = APIS[name]
    vendor = Vendor(host="cdn.elsewhere.com")
    api = make()
    job = work_one(work_all, api, make_job(api), vendor)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "image_host_refused")
    assert (job.cost_usd, job.unanswered) == (PRICE_USD, 0)
    job.reopen(PRICE_USD)
    api = make(image_hosts=["cdn.elsewhere.com"])
    assert_bought_once(work_one(work_all, api, job, vendor), vendor)


@pytest.mark.parametrize("name", APIS)
def test_a_link_that_is_not_there_yet_is_asked_again(name: str, work_all: WorkAll) -> None:
    make, host = APIS[name]

    def late(what: str, before: int) -> httpx.Response | None:
        return httpx.Response(404) if what == "link" and before < 3 else None

    api, vendor = make(), Vendor(host=host, instead=late)
    assert_bought_once(work_one(work_all, api, make_job(api), vendor), vendor)


def test_a_request_that_is_sent_after_the_list_was_read_is_looked_for_in_a_new_reading(
    work_all: WorkAll,
) -> None:
    def forgotten(what: str, _before: int) -> httpx.Response | None:
        return httpx.Response(404, json={"detail": "No"}) if what in {"status", "result"} else None

    api, vendor = fal(), Vendor(host="v3.fal.media", instead=forgotten)
    earlier = make_job(api, request_id="r0", attempts=1, started_at=time.time() - 86_400)
    vendor.bought["r0"] = {}
    assert work_one(work_all, api, earlier, vendor).status is JobStatus.DONE
    job = work_one(work_all, api, make_job(api, "Another fox"), vendor)
    assert job.status is JobStatus.DONE, job.error_message
    assert (len(vendor.bought), vendor.asked["list"], job.cost_usd) == (2, 2, PRICE_USD)


@pytest.mark.parametrize("cancelling_s", [0.0, 50.0], ids=["at once", "after a poll has seen it"])
def test_a_request_withdrawn_by_an_interrupt_fails_no_job(work_all: WorkAll, cancelling_s: float) -> None:
    posts = 0
    withdrawn = False

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal posts, withdrawn
        url = str(request.url)
        if url.endswith("/cancel"):
            withdrawn = True
            await anyio.sleep(cancelling_s)  # longer than it may take: the answer is lost
        elif request.method == "POST":
            posts += 1
            if posts == 1:
                return httpx.Response(500, json={"detail": "Oops"})  # the job's one server error is spent
            return httpx.Response(201, json={"id": "p", "status": "starting"})
        elif not withdrawn:
            await anyio.sleep(0.01)
        return httpx.Response(200, json={"id": "p", "status": "canceled" if withdrawn else "starting"})

    api = Replicate(api_key="a long key", request_timeout_s=3000)
    transport = httpx.MockTransport(answer)
    (outcome,) = work_all(api, [make_job(api)], transport=transport, interrupt_after_s=60.0)
    job = outcome.job
    assert withdrawn
    assert (job.status, job.request_id, job.unanswered) == (JobStatus.PENDING, None, 0)


@pytest.mark.parametrize(
    ("begun_s", "look_s"),
    [(0.0, 0.01), (1.0, 0.01), (0.0, 2.0)],
    ids=["still in the queue", "begun meanwhile", "seen to wait some time ago"],
)
def test_a_request_of_fals_that_may_have_begun_when_it_was_cancelled_may_be_billed(
    work_all: WorkAll, begun_s: float, look_s: float
) -> None:
    cancelled_at: list[float] = []

    def status() -> httpx.Response:
        if not cancelled_at:
            return httpx.Response(202, json={"status": "IN_QUEUE", "queue_position": 1})
        if anyio.current_time() < cancelled_at[0] + begun_s:
            return httpx.Response(202, json={"status": "IN_PROGRESS"})
        return httpx.Response(200, json={"status": "COMPLETED", "error": "cancelled"})

    async def answer(request: httpx.Request) -> httpx.Response:
        await anyio.sleep(look_s if request.url.path.endswith("status") else 0.01)
        if request.method == "PUT":
            cancelled_at.append(anyio.current_time())
            return httpx.Response(202, json={"status": "CANCELLATION_REQUESTED"})
        if request.method == "POST":
            return httpx.Response(200, json={"request_id": "p"})
        match str(request.url).rpartition("/")[2]:
            case "stream":
                return httpx.Response(404, json={"detail": "no stream"})
            case "status":
                return status()
            case _:
                return httpx.Response(499, json={"detail": "The request was cancelled."})

    api = Fal(api_key="a long key", request_timeout_s=3000, usd_per_image=PRICE_USD)
    transport = httpx.MockTransport(answer)
    (outcome,) = work_all(api, [make_job(api)], transport=transport, interrupt_after_s=60.0)
    job = outcome.job
    assert cancelled_at
    doubtful = begun_s > 0 or look_s > 1
    assert (job.status, job.request_id, job.unanswered) == (JobStatus.PENDING, None, doubtful)


@pytest.mark.parametrize("started_at", [None, "2026-11-27T07:00:00Z"])
def test_replicate_charges_for_what_was_begun_before_it_was_cancelled(
    work_all: WorkAll, started_at: str | None
) -> None:
    """It says when a prediction was started."""
    withdrawn = False

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal withdrawn
        withdrawn = withdrawn or str(request.url).endswith("/cancel")
        await anyio.sleep(0.01)
        status = "canceled" if withdrawn else "starting"
        return httpx.Response(200, json={"id": "p", "status": status, "started_at": started_at})

    api = Replicate(api_key="a long key", request_timeout_s=3000, usd_per_image=PRICE_USD)
    transport = httpx.MockTransport(answer)
    (outcome,) = work_all(api, [make_job(api)], transport=transport, interrupt_after_s=60.0)
    assert withdrawn
    assert (outcome.job.status, outcome.job.unanswered) == (JobStatus.PENDING, int(started_at is not None))
