"""What a killed process wrote to its log but not to its job store is there after a resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from imagemill.blocks.apis import Runware, Together
from imagemill.blocks.apis.generated_image import PAID
from imagemill.engine.job_log import JobLog
from imagemill.engine.limits.pacer import Pacer
from imagemill.engine.recorder import Recorder
from imagemill.engine.telemetry import Telemetry
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import CostSource, Job
from imagemill.quality.judge import Answer, Opinion
from imagemill.runs.log_replay import catch_up, last_lines, was_unanswered
from tests.blocks.apis.variants import make_job

API = Together(api_key="k")


def accepted(recorder: Recorder, job: Job) -> None:
    """The image is made and charged, and its link is known."""
    job.request_id = "https://api.together.ai/imgproxy/a.png"
    job.pay(0.003, CostSource.LIST)
    recorder.accepted(job)


def asked_again(recorder: Recorder, job: Job) -> None:
    accepted(recorder, job)
    job.requeue()
    job.start(1.0)
    recorder.sent(job)


@pytest.mark.parametrize("killed_after", [accepted, asked_again])
def test_what_an_image_link_cost_is_read_from_the_log(
    killed_after: Callable[[Recorder, Job], None], tmp_path: Path
) -> None:
    job = make_job(API)
    stored = replace(job)  # all that the job store has
    log = tmp_path / "log.jsonl"
    recorder = Recorder("run", JobLog("run", log), Pacer(1), Telemetry("run", API.provider, API.model))
    job.start(0.0)
    recorder.sent(job)
    killed_after(recorder, job)
    recorder.close()

    assert catch_up(stored, last_lines(log, [0])[0])
    assert API.is_paid(stored.request_id)  # the engine will not book it again
    assert (stored.cost_usd, stored.cost_source) == (0.003, CostSource.LIST)


def test_what_the_judge_cost_is_read_from_the_log(tmp_path: Path) -> None:
    job = make_job(API)
    stored = replace(job)
    log = tmp_path / "log.jsonl"
    recorder = Recorder("run", JobLog("run", log), Pacer(1), Telemetry("run", API.provider, API.model))
    job.start(0.0)
    recorder.sent(job)
    job.pay(0.003, CostSource.LIST)
    job.judge_usd = 0.0004
    recorder.judged(job, Answer(Opinion(0.2, "no"), usd=0.0004))
    recorder.close()

    line = last_lines(log, [0])[0]
    assert catch_up(stored, line)
    assert (stored.cost_usd, stored.judge_usd, stored.total_usd) == (0.003, 0.0004, 0.0034)
    assert not was_unanswered(stored, line)


def found_and_asked_again(recorder: Recorder, job: Job) -> None:
    job.find_request("request-1", 0.003)
    job.requeue()
    job.start(1.0)
    recorder.sent(job)


def sent_again(recorder: Recorder, job: Job) -> None:
    job.requeue()
    job.start(1.0)
    recorder.sent(job)


def made(recorder: Recorder, job: Job) -> None:
    sent_again(recorder, job)
    job.finish(2.0, image="images/a.png", image_bytes=1, latency_s=1.0)
    recorder.finished(job)


@pytest.mark.parametrize(
    ("killed_after", "unanswered"), [(sent_again, 1), (made, 1), (found_and_asked_again, 0)]
)
def test_a_request_without_an_answer_is_still_counted_after_the_next_one(
    killed_after: Callable[[Recorder, Job], None], unanswered: int, tmp_path: Path
) -> None:
    job = make_job(API)
    stored = replace(job)
    log = tmp_path / "log.jsonl"
    recorder = Recorder("run", JobLog("run", log), Pacer(1), Telemetry("run", API.provider, API.model))
    job.start(0.0)
    recorder.sent(job)
    job.lose_answer(0.003)
    recorder.attempt_failed(job, ApiError(ErrorClass.TIMEOUT, "connection lost", code="connection"), 1.0)
    killed_after(recorder, job)
    recorder.close()

    assert catch_up(stored, last_lines(log, [0])[0])
    assert stored.unanswered == unanswered


def test_what_the_store_has_booked_is_booked_though_a_power_cut_took_its_line(tmp_path: Path) -> None:
    api = Runware(api_key="k")
    job = make_job(api)
    log = tmp_path / "log.jsonl"
    recorder = Recorder("run", JobLog("run", log), Pacer(1), Telemetry("run", api.provider, api.model))
    job.start(0.0)
    recorder.sent(job)
    job.request_id = "task-1"
    recorder.accepted(job)
    recorder.close()
    job.request_id = f"{PAID}task-1"
    job.pay(0.003, CostSource.TOLD)

    assert catch_up(job, last_lines(log, [0])[0])
    assert api.is_paid(job.request_id)
    assert job.cost_usd == 0.003


def test_ids_of_answered_requests_are_known_where_a_later_one_is_lost(tmp_path: Path) -> None:
    """Or the vendor's list has an answered request pass for the lost one, and it is booked twice."""
    job = make_job(API)
    log = tmp_path / "log.jsonl"
    recorder = Recorder("run", JobLog("run", log), Pacer(1), Telemetry("run", API.provider, API.model))
    job.start(0.0)
    recorder.sent(job)
    accepted(recorder, job)
    job.request_id = None
    recorder.attempt_failed(job, ApiError(ErrorClass.INVALID_IMAGE, "too small", code="wrong_size"), 0.0)
    sent_again(recorder, job)
    recorder.close()
    assert last_lines(log, [0])[0].request_ids == {"https://api.together.ai/imgproxy/a.png"}
