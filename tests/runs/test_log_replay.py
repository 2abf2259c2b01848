"""What a killed process wrote to its log but not to its job store is there after a resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from imagemill.blocks.apis import Runware, Together
from imagemill.blocks.apis.generated_image import PAID
from imagemill.engine.job_log import JobLog, lines_with
from imagemill.engine.limits.pacer import Pacer
from imagemill.engine.recorder import Recorder
from imagemill.engine.telemetry import Telemetry
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import CostSource, Job, JobStatus
from imagemill.quality.judge import Answer, Opinion
from imagemill.runs.log_replay import (
    LastLine,
    catch_up,
    costs_of,
    holds,
    known_placeholders,
    last_lines,
    perhaps_sent,
    was_unanswered,
)
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


AT = "2026-11-26T12:00:00.000+00:00"


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes a log of these lines, as text or as what they say beside the time; its path."""

    def write(*lines: bytes | dict[str, Any]) -> Path:
        log = tmp_path / "log.jsonl"
        texts = [x if isinstance(x, bytes) else orjson.dumps({"at": AT, **x}) for x in lines]
        log.write_bytes(b"".join(text + b"\n" for text in texts))
        return log

    return write


def event(name: str, attempt: int = 1, *, job: int = 0, **more: Any) -> dict[str, Any]:
    return {"event": name, "job": job, "attempt": attempt, **more}


def test_the_last_line_of_each_job_holds_what_all_of_its_lines_say(written: Callable[..., Path]) -> None:
    refused = {"error_class": "rate_limited"}
    log = written(
        event("sent", at="2026-11-26T11:00:00.000+00:00"),
        event("accepted", request_id="first", cost_usd=0.003, cost_source="list", judge_usd=0.001),
        event("judged", score=0.4, words="dull"),
        event("attempt_failed", error_class="server_error", unanswered=1, unanswered_usd=0.003),
        event("sent", 2, job=7),
        event("attempt_failed", 2, route="other", **refused),
        event("judged", 2, failure="HTTP 500"),
        event("attempt_failed", 3, request_id="second", **refused),  # a look, not a new request
        event("sent", 4, route="first"),
    )
    lines = last_lines(log, [0, 3])
    assert lines.keys() == {0}
    line = lines[0]
    assert (line.event, line.attempt, line.request_id, line.route) == ("sent", 4, None, "first")
    assert (line.cost_usd, line.cost_source, line.judge_usd) == (0.003, CostSource.LIST, 0.001)
    assert (line.unanswered, line.unanswered_usd) == (1, 0.003)
    assert line.request_ids == {"first", "second"}
    assert line.refused == {2: "other"}
    assert line.answers == {1: Answer(Opinion(0.4, "dull")), 2: Answer(failure="HTTP 500")}
    assert line.begun_at == datetime(2026, 11, 26, 11, tzinfo=UTC)
    assert last_lines(log, []) == {}
    assert last_lines(log.with_name("none"), [0]) == {}


@pytest.mark.parametrize("lost", [False, True])
def test_the_last_request_of_a_lost_machine_may_have_gone_to_any_route(
    written: Callable[..., Path], *, lost: bool
) -> None:
    """Seed 30889: its line of a refusal was lost with it, and the request in doubt was another route's."""
    log = written(event("sent", route="first"), *[{"event": "log_cut"}] * lost)
    job = make_job(Together(api_key="k"))
    catch_up(job, last_lines(log, [0])[0])
    job.lose_answer(0.003)
    costs = costs_of(job, last_lines(log, [0])[0])
    assert (costs.anywhere, dict(costs.doubtful)) == ((1, {}) if lost else (0, {"first": 0.003}))


def test_lines_that_are_cut_damaged_or_of_something_else_are_skipped(written: Callable[..., Path]) -> None:
    sent = event("sent", 1, request_id="kept")
    log = written(
        sent,
        b'{"job":0,"event":"sen',
        b'{"job":0,"event":"retaken","attempt":9,"at":"2026-11-26T12:00:00.000+00:00"}',
        event("sent", -1),
        event("sent", 9, cost_usd=1e9),
        orjson.dumps({"at": AT, **event("sent", 9)}).replace(b'"event"', b" " * 1_000_001 + b'"event"'),
        b'\xff\x00 no JSON, "job":0',
    )
    line = last_lines(log, [0])[0]
    assert (line.attempt, line.request_id) == (1, "kept")
    with log.open("ab") as file:
        file.write(orjson.dumps({"at": AT, **event("sent", 2, request_id="last")}) + b"\n")
    assert last_lines(log, [0])[0].request_id == "last"


def test_lines_are_found_wherever_they_are_in_a_long_log(written: Callable[..., Path]) -> None:
    padding = "x" * 500
    log = written(*[event("sent", 1, job=job, request_id=f"{job} {padding}") for job in range(2_000)])
    found = last_lines(log, range(2_000))
    assert {job: line.request_id for job, line in found.items()} == {
        job: f"{job} {padding}" for job in range(2_000)
    }
    assert last_lines(log, [1_234, 5_000]).keys() == {1_234}
    lines = log.read_bytes().splitlines(keepends=True)
    for job in range(0, 2_000, 50):
        assert list(lines_with(log, b'"job":%d,' % job)) == [lines[job]]
    assert list(lines_with(log, padding.encode())) == lines
    assert holds(log, lines[-1])


def stands(**fields: Any) -> Job:
    """A job as the store has it."""
    return make_job(API, **{"status": JobStatus.RUNNING, "attempts": 1, **fields})


def test_a_job_without_a_newer_line_is_as_the_store_has_it(written: Callable[..., Path]) -> None:
    line = last_lines(written(event("failed", 1, cost_usd=0.5, request_id="r")), [0])[0]
    for older in (None, line):
        assert catch_up(stands(attempts=2), older)  # its process died at work
        assert not catch_up(stands(attempts=2, status=JobStatus.PENDING), older)
    job = stands(status=JobStatus.PENDING)
    assert not catch_up(job, line)  # the attempt was over, and saved
    assert job == stands(status=JobStatus.PENDING)


@pytest.mark.parametrize(
    ("name", "attempt", "kept"),
    [
        ("sent", 1, "mine"),
        ("judged", 1, "mine"),
        ("attempt_failed", 1, None),
        ("failed", 1, None),
        ("given_up", 1, None),
        ("sent", 2, None),
    ],
)
def test_a_request_that_the_api_answered_is_not_asked_about_again(
    name: str, attempt: int, kept: str | None, written: Callable[..., Path]
) -> None:
    job = stands(request_id="mine")
    assert catch_up(job, last_lines(written(event(name, attempt)), [0])[0])
    assert (job.attempts, job.request_id) == (attempt, kept)
    job = stands(request_id="mine")
    assert catch_up(job, last_lines(written(event(name, attempt, request_id="other")), [0])[0])
    assert job.request_id == "other"


def test_what_store_and_log_counted_is_never_less_than_either(written: Callable[..., Path]) -> None:
    more = {"cost_usd": 0.02, "judge_usd": 0.2, "unanswered": 2, "unanswered_usd": 0.04}
    less = {name: amount / 2 if isinstance(amount, float) else 1 for name, amount in more.items()}
    for stored, logged in ((more, less), (less, more), (more, {}), ({}, more)):
        job = stands(cost_source="told" if stored else "", route="", **stored)
        source = {"cost_source": "list"} if logged else {}
        assert catch_up(job, last_lines(written(event("accepted", 1, route="a", **logged, **source)), [0])[0])
        assert {name: getattr(job, name) for name in more} == more
        assert job.cost_source == ("list" if logged else "told")  # as sure as the less sure of both
        assert (job.route, job.started_at) == ("a", datetime.fromisoformat(AT).timestamp())
    job = stands(route="b", started_at=5.0)
    assert catch_up(job, last_lines(written(event("accepted")), [0])[0])
    assert (job.route, job.started_at, job.cost_usd, job.cost_source) == ("b", 5.0, 0.0, "")


def test_a_request_is_unanswered_while_the_last_that_is_known_of_it_is_that_it_was_sent(
    written: Callable[..., Path],
) -> None:
    def line(name: str, attempt: int = 1) -> LastLine:
        return last_lines(written(event(name, attempt)), [0])[0]

    assert was_unanswered(stands(), None)
    assert was_unanswered(stands(), line("sent"))
    assert was_unanswered(stands(attempts=2), line("attempt_failed"))  # of the attempt before
    assert not was_unanswered(stands(), line("attempt_failed"))
    for known in (None, line("sent")):
        assert not was_unanswered(stands(request_id="r"), known)


def test_what_a_lost_machine_may_have_sent_is_dated_and_survives_damaged_lines(
    written: Callable[..., Path],
) -> None:
    named, failed = (f"2026-11-26T1{hour}:00:00.000+00:00" for hour in (1, 2))
    log = written(
        {"event": "log_cut"},
        {"event": "up_next", "jobs": [1, 2, 3], "at": named},
        {"event": "up_next", "jobs": "all"},
        event("sent", job=1),
        event("attempt_failed", job=1, retry_in_s=1.0, at=failed),
        event("attempt_failed", job=4, retry_in_s=None),
        event("attempt_failed", job=5, retry_in_s="soon"),
        event("attempt_failed", job=6, retry_in_s=0.5),
        event("sent", 2, job=6),
        {"event": "log_cut"},
        {"event": "log_cut"},
    )
    since = {1: failed, 2: named, 3: named}
    assert perhaps_sent(log) == {job: [datetime.fromisoformat(at)] for job, at in since.items()}
    assert perhaps_sent(log.with_name("none")) == {}


def test_each_machine_that_is_lost_may_have_sent_a_request_of_what_it_had_named_last(
    written: Callable[..., Path],
) -> None:
    log = written(
        {"event": "up_next", "jobs": [0, 1], "at": "2026-11-26T11:00:00.000+00:00"},
        event("sent", job=0),
        event("sent", job=1),
        {"event": "up_next", "jobs": [0, 1], "at": "2026-11-26T12:00:00.000+00:00"},  # by a restarted process
        event("sent", 2, job=1),
        {"event": "log_cut"},
        {"event": "up_next", "jobs": [0, 1], "at": "2026-11-26T13:00:00.000+00:00"},
        {"event": "log_cut"},
    )
    hours = {job: [at.hour for at in since] for job, since in perhaps_sent(log).items()}
    assert hours == {0: [12, 13], 1: [13]}


def test_placeholders_and_words_are_found_in_a_log_and_in_no_log_at_all(written: Callable[..., Path]) -> None:
    first, second = "0a" * 16, "ff" * 16
    log = written(
        {"event": "placeholder", "digest": first},
        {"event": "placeholder", "digest": second},
        {"event": "placeholder", "digest": "no digest"},
        event("sent", digest="12" * 16),
    )
    assert known_placeholders(log) == {first, second}
    assert holds(log, b"no digest")
    assert holds(log, b'{"at"')
    assert not holds(log, b"placeholders")
    for nothing in (written(), log.with_name("none")):
        assert known_placeholders(nothing) == set()
        assert not holds(nothing, b"")
