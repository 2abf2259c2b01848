"""Runware's tasks: named by us before they are sent, so that nothing is bought twice."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from imagemill.blocks.apis import ImageApi, Runware
from imagemill.engine.engine import StopKind
from imagemill.errors import ErrorClass
from imagemill.jobs import Job, JobStatus
from tests.blocks.apis.variants import Outcome, make_job
from tests.http_server import Answer, Asked, Server, serving

Work = Callable[[ImageApi, Job], Outcome]


def picture() -> bytes:
    held = io.BytesIO()
    Image.effect_noise((512, 512), 90).convert("RGB").save(held, "PNG")
    return held.getvalue()


PNG = picture()


class Tasks:
    """A server with Runware's tasks, as its documentation has them: each task bought once, answers kept.

    ``lose`` is how many answers to new tasks are lost although the task is done; ``unknown_to_details`` how
    often a task's details are not there yet.
    """

    def __init__(
        self, *, lose: int = 0, unknown_to_details: int = 0, refuse: list[Answer] | None = None
    ) -> None:
        self.bought: dict[str, dict[str, Any]] = {}
        self.lose = lose
        self.unknown_to_details = unknown_to_details
        self.refuse = list(refuse or [])

    def __call__(self, asked: Asked) -> Answer:
        if asked.method == "GET":
            return Answer(PNG)
        (task,) = asked.body
        if task["taskType"] == "getTaskDetails":
            return self._details(task["taskUUID"])
        if self.refuse:
            return self.refuse.pop(0)
        return self._image(asked, task)

    def _details(self, name: str) -> Answer:
        if self.unknown_to_details or name not in self.bought:
            self.unknown_to_details = max(0, self.unknown_to_details - 1)
            return error("taskNotFound", "No such task", 404)
        kept = {"taskType": "getTaskDetails", "taskUUID": name, "request": [], "response": self.bought[name]}
        return Answer({"data": [kept]})

    def _image(self, asked: Asked, task: dict[str, Any]) -> Answer:
        name = task["taskUUID"]
        assert uuid.UUID(name).version == 4  # what the documentation asks for
        if name in self.bought:
            return error("conflictTaskUUID", "The taskUUID is already in use", 409)
        made = {"taskType": "imageInference", "taskUUID": name, "imageURL": f"http://{asked.headers['host']}/a",
                "cost": 0.0013, "seed": task["seed"]}  # fmt: skip
        self.bought[name] = {"data": [made]}
        if self.lose:
            self.lose -= 1
            return Answer(b"<html>504 Gateway Time-out</html>", 504)
        return Answer(self.bought[name])


def error(code: str, message: str, status: int) -> Answer:
    return Answer({"errors": [{"code": code, "message": message, "taskUUID": "x"}]}, status)


def api_at(server: Server) -> Runware:
    return Runware(api_key="a long key", base_url=server.base_url, request_timeout_s=3000)


def tasks_sent(server: Server) -> list[dict[str, Any]]:
    return [a.body[0] for a in server.asked if a.body and a.body[0]["taskType"] == "imageInference"]


def test_a_picture_and_what_it_is_charged_at(work: Work) -> None:
    tasks = Tasks()
    with serving(tasks) as server:
        api = api_at(server)
        job = work(api, make_job(api, "A lighthouse")).job
    assert job.status is JobStatus.DONE, job.error_message
    assert job.cost_usd == 0.0013
    (sent,) = tasks_sent(server)
    assert job.request_id == sent["taskUUID"]
    assert sent == {
        "taskType": "imageInference",
        "taskUUID": sent["taskUUID"],
        "model": "runware:100@1",
        "positivePrompt": "A lighthouse",
        "width": 512,
        "height": 512,
        "steps": 4,
        "seed": 7,
        "outputFormat": "PNG",
        "numberResults": 1,
        "outputType": "URL",
        "includeCost": True,
        "deliveryMethod": "sync",
    }
    assert server.asked[0].path == "/v1"
    assert server.asked[0].headers["authorization"] == "Bearer a long key"
    assert "authorization" not in server.asked[-1].headers


@pytest.mark.parametrize("unknown_to_details", [0, 2])
def test_a_lost_answer_is_asked_for_and_never_bought_twice(unknown_to_details: int, work: Work) -> None:
    tasks = Tasks(lose=1, unknown_to_details=unknown_to_details)
    with serving(tasks) as server:
        api = api_at(server)
        job = work(api, make_job(api)).job
    assert job.status is JobStatus.DONE, job.error_message
    assert len(tasks.bought) == 1
    assert (job.cost_usd, job.unanswered) == (0.0013, 0)
    assert len({task["taskUUID"] for task in tasks_sent(server)}) == 1


def test_another_machine_that_knows_nothing_of_the_request_does_not_buy_it_again(work: Work) -> None:
    tasks = Tasks()
    with serving(tasks) as server:
        api = api_at(server)
        assert work(api, make_job(api)).job.status is JobStatus.DONE
        again = api_at(server)  # same run, same picture, same attempt: the same task
        job = work(again, make_job(again)).job
    assert job.status is JobStatus.DONE
    assert len(tasks.bought) == 1


def test_a_task_in_doubt_keeps_its_id_where_a_rate_limit_refuses_to_take_it_again(work: Work) -> None:
    """Seed 236293: it was under way, got another id for the next attempt, and was bought twice."""
    tasks = Tasks(lose=1, unknown_to_details=3)

    def limited(asked: Asked) -> Answer:
        if len(tasks.bought) == 1 and asked.body and asked.body[0]["taskType"] == "imageInference":
            refused = [error("rateLimit", "Slower", 429)] * (len(tasks_sent(server)) < 3)
            return (refused or [tasks(asked)])[0]
        return tasks(asked)

    with serving(limited) as server:
        api = api_at(server)
        ended = work(api, make_job(api))
    assert (ended.job.status, ended.rate_limited) == (JobStatus.DONE, 1)
    assert len({task["taskUUID"] for task in tasks_sent(server)}) == len(tasks.bought) == 1


def test_a_task_in_doubt_keeps_its_id_where_no_credit_is_left_to_send_it_again(work: Work) -> None:
    """It may have taken the last: it was forgotten, and bought again by the resume."""
    tasks = Tasks(lose=1, unknown_to_details=3)

    def spent(asked: Asked) -> Answer:
        if len(tasks.bought) == 1 and asked.body and asked.body[0]["taskType"] == "imageInference":
            return error("insufficientCredits", "No credits", 402)
        return tasks(asked)

    with serving(spent) as server:
        api = api_at(server)
        ended = work(api, make_job(api))
    assert ended.stopped is not None
    assert ended.stopped.kind is StopKind.OUT_OF_BUDGET
    assert (ended.job.status, [ended.job.request_id]) == (JobStatus.PENDING, list(tasks.bought))


def test_another_machine_finds_the_task_that_was_taken_after_refusals(work: Work) -> None:
    tasks = Tasks(refuse=[error("tooManyRequests", "Slow down", 429)] * 2)
    with serving(tasks) as server:
        api = api_at(server)
        assert work(api, make_job(api)).job.attempts == 3
        again = api_at(server)
        assert work(again, make_job(again)).job.status is JobStatus.DONE
    assert len(tasks.bought) == 1


def test_the_task_after_one_that_failed_is_the_same_however_often_that_one_is_asked_about(work: Work) -> None:
    """Seed 345798: a power cut took its id, the next attempt gave it another one, and it was bought twice."""
    tasks, failed = Tasks(), list[str]()

    def answers(asked: Asked) -> Answer:
        (task,) = asked.body or [{}]
        if asked.method == "POST" and not failed:
            failed.append(task["taskUUID"])
        if task.get("taskUUID") in failed:
            broken = error("internalServerError", "It broke", 500)
            if task["taskType"] == "imageInference":
                return broken
            return Answer({"data": [{"taskType": "getTaskDetails", "response": broken.content}]})
        return tasks(asked)

    with serving(answers) as server:
        api = api_at(server)
        assert work(api, make_job(api)).job.attempts == 2
        again = api_at(server)
        job = make_job(again)
        job.attempts, job.request_id = 2, failed[0]  # what is left of it: its second attempt had begun
        assert work(again, job).job.status is JobStatus.DONE
    assert len(tasks.bought) == 1


def test_runs_and_attempts_have_tasks_of_their_own() -> None:
    api = Runware(api_key="a long key")
    api.begin("one")
    job = make_job(api)
    first = api.task_of(job)
    assert api.task_of(job) == first
    job.attempts = 2
    second = job.request_id = api.task_of(job)
    third = api.task_of(job)  # after the second has failed
    api.begin("another")
    assert len({first, second, third, api.task_of(job)}) == 4


def test_a_task_that_is_not_done_yet_is_waited_for(work: Work) -> None:
    api_holder: dict[str, Any] = {"asked": 0}
    tasks = Tasks(lose=1)

    def answers(asked: Asked) -> Answer:
        if asked.body and asked.body[0]["taskType"] == "getTaskDetails" and api_holder["asked"] < 3:
            api_holder["asked"] += 1
            name = asked.body[0]["taskUUID"]
            empty = {"taskType": "getTaskDetails", "taskUUID": name, "request": [], "response": {}}
            return Answer({"data": [empty]})
        return tasks(asked)

    with serving(answers) as server:
        api = api_at(server)
        job = work(api, make_job(api)).job
    assert job.status is JobStatus.DONE, job.error_message
    assert len(tasks.bought) == 1


@pytest.mark.parametrize(
    ("refusal", "stopped", "error_class"),
    [
        (error("invalidApiKey", "Invalid API key", 401), StopKind.UNAUTHORIZED, None),
        (error("insufficientCredits", "No credits", 402), StopKind.OUT_OF_BUDGET, None),
        (error("invalidModel", "No such model", 400), StopKind.SETUP, None),
        (error("invalidPositivePrompt", "Too long", 400), None, ErrorClass.BAD_REQUEST),
    ],
)
def test_refusals(
    refusal: Answer, stopped: StopKind | None, error_class: ErrorClass | None, work: Work
) -> None:
    with serving(Tasks(refuse=[refusal] * 4)) as server:
        api = api_at(server)
        ended = work(api, make_job(api))
    assert (ended.stopped.kind if ended.stopped else None) is stopped
    assert ended.job.error_class == error_class
    assert len(tasks_sent(server)) == 1


def test_a_rate_limit_is_tried_again_as_a_new_task(work: Work) -> None:
    tasks = Tasks(refuse=[error("rateLimit", "Slower", 429), error("busy", "Later", 503)])
    with serving(tasks) as server:
        api = api_at(server)
        ended = work(api, make_job(api))
    assert ended.job.status is JobStatus.DONE
    assert (ended.rate_limited, len(tasks.bought)) == (2, 1)


def test_a_task_that_failed_is_not_asked_about_for_ever(work: Work) -> None:
    failed = {"errors": [{"code": "providerError", "message": "It broke", "taskUUID": "x"}]}
    with serving(lambda _: Answer(failed)) as server:
        api = api_at(server)
        ended = work(api, make_job(api))
    assert ended.job.status is JobStatus.FAILED
    assert (ended.job.error_class, ended.job.error_code) == (ErrorClass.SERVER_ERROR, "providerError")
    assert len(tasks_sent(server)) == 2


@pytest.mark.parametrize(
    ("parameter", "error_class", "sent"),
    [(None, ErrorClass.SERVER_ERROR, 2), ("width", ErrorClass.BAD_REQUEST, 1)],
)
def test_an_error_of_a_task_is_the_requests_where_it_names_a_parameter(
    parameter: str | None, error_class: ErrorClass, sent: int, work: Work
) -> None:
    failed = {"errors": [{"code": "somethingNew", "message": "It broke", "parameter": parameter}]}
    with serving(lambda _: Answer(failed)) as server:
        api = api_at(server)
        ended = work(api, make_job(api))
    assert (ended.job.error_class, ended.job.error_code) == (error_class, "somethingNew")
    assert len(tasks_sent(server)) == sent
