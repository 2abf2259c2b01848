"""A setup fault stops the run after some ten requests; it is not each row's own fault."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable

import pytest
from PIL import Image

from imagemill.blocks.apis import PROVIDERS, ImageApi
from imagemill.emulator import Emulator
from imagemill.engine.engine import StopKind
from imagemill.errors import ErrorClass
from imagemill.jobs import Job, JobStatus
from tests.blocks.apis.variants import Outcome, make_job
from tests.http_server import Answer, Asked, serving

WorkAll = Callable[[ImageApi, list[Job]], list[Outcome]]

MOST_ASKED = 12
"""Ten that fail alike; a retry may go between the first of them and the others."""


def picture(side: int, seed: int = 0) -> bytes:
    """A PNG that shows something."""
    image = Image.effect_noise((side, side), 90 + seed % 7).convert("RGB")
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


PNG = picture(512)
ENCODED = base64.b64encode(PNG).decode()


def image(**where: str) -> Answer:
    return Answer({"data": [where]})


FAULTS: dict[str, tuple[Answer, str, str]] = {
    # What the API answers, and what the sentence that stops the run says of the fault and of the way out.
    "an image link to another host": (
        image(url="https://cdn.example.com/a.png"),
        "leads to cdn.example.com",
        "--image-host cdn.example.com",
    ),
    "a wrong size": (
        image(b64_json=base64.b64encode(picture(256)).decode()),
        "256 x 256 pixels, not 512 x 512",
        "--width",
    ),
    "a wrong model name": (
        Answer({"error": {"message": "no such model: flux", "type": "not_found"}}, 404),
        "no such model: flux",
        "--model",
    ),
    "a field it does not know": (
        Answer({"error": {"message": "unknown field 'steps'"}}, 400),
        "unknown field 'steps'",
        "further fields",
    ),
    "an unknown shape": (Answer({"pictures": []}), "an answer of an unknown shape", "--base-url"),
    "a web page": (Answer(b"<html>Welcome</html>"), "an answer of an unknown shape", "--base-url"),
    "no image": (image(b64_json=base64.b64encode(b"text").decode()), "not an image", "--base-url"),
    "a redirect": (
        Answer(b"", 301, {"location": "https://api.example.com/v1/images/generations?key=1"}),
        "redirects to https://api.example.com/v1/images/generations",
        "--base-url",
    ),
}


def jobs_of(api: ImageApi, count: int = 60) -> list[Job]:
    return [make_job(api, f"Fox {number}", number=number) for number in range(count)]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("provider", ["together", "openai"])
def test_rows_that_fail_alike_from_the_start_stop_the_run(
    provider: str, fault: str, work_all: WorkAll
) -> None:
    answer, words, way_out = FAULTS[fault]
    with serving(lambda _: answer) as server:
        api = PROVIDERS[provider](api_key="a long key", base_url=server.base_url, request_timeout_s=3000)
        ended = work_all(api, jobs_of(api))
    stopped = ended[0].stopped
    assert stopped is not None
    assert stopped.kind is StopKind.SETUP
    assert words in stopped.reason
    assert way_out in stopped.reason
    assert server.count("POST") <= MOST_ASKED
    # Nothing is given up: a resume with the right setup makes them all.
    assert {outcome.job.status for outcome in ended} == {JobStatus.PENDING}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("provider", ["together", "runware", "bfl", "replicate"])
def test_a_wrong_model_stops_a_run_of_few_rows_too(
    provider: str, rows: int, emulator: Emulator, work_all: WorkAll
) -> None:
    api = PROVIDERS[provider](api_key="a long key", base_url=emulator.base_url, model="acme/no-such")
    ended = work_all(api, jobs_of(api, rows))
    stopped = ended[0].stopped
    assert stopped is not None
    assert stopped.kind is StopKind.SETUP
    assert stopped.reason.startswith("The first row failed" if rows == 1 else "The first 3 rows failed")
    assert "Check --model." in stopped.reason
    assert {outcome.job.status for outcome in ended} == {JobStatus.PENDING}


@pytest.mark.slow
def test_a_run_that_worked_stops_once_most_requests_fail_alike(work_all: WorkAll) -> None:
    good = image(b64_json=ENCODED)

    def answers(asked: Asked) -> Answer:
        number = int(asked.body["prompt"].removeprefix("Fox "))
        return good if number < 40 else FAULTS["a wrong size"][0]

    with serving(answers) as server:
        api = PROVIDERS["together"](api_key="a long key", base_url=server.base_url, request_timeout_s=3000)
        ended = work_all(api, jobs_of(api, 200))
    assert ended[0].stopped is not None
    assert ended[0].stopped.kind is StopKind.SETUP
    assert "of the last 50 requests failed in the same way" in ended[0].stopped.reason
    statuses = [outcome.job.status for outcome in ended]
    assert statuses[:40] == [JobStatus.DONE] * 40
    assert set(statuses[40:]) == {JobStatus.PENDING}
    assert server.count("POST") <= 40 + 41 + 20


@pytest.mark.slow
@pytest.mark.parametrize("bad_of_ten", [3, 5])
def test_bad_rows_among_good_ones_stop_nothing(bad_of_ten: int, work_all: WorkAll) -> None:
    def answers(asked: Asked) -> Answer:
        number = int(asked.body["prompt"].removeprefix("Fox "))
        bad = number % 10 < bad_of_ten
        return FAULTS["a field it does not know"][0] if bad else image(b64_json=ENCODED)

    with serving(answers) as server:
        api = PROVIDERS["together"](api_key="a long key", base_url=server.base_url, request_timeout_s=3000)
        ended = work_all(api, jobs_of(api, 120))
    assert ended[0].stopped is None
    failed = [outcome.job for outcome in ended if outcome.job.status is JobStatus.FAILED]
    assert len(failed) == 12 * bad_of_ten
    assert {job.error_class for job in failed} == {ErrorClass.BAD_REQUEST}


def test_refused_prompts_are_the_rows_own_fault(work_all: WorkAll) -> None:
    refused = Answer({"error": {"message": "no", "code": "moderation_blocked"}}, 400)
    with serving(lambda _: refused) as server:
        api = PROVIDERS["openai"](api_key="a long key", base_url=server.base_url, request_timeout_s=3000)
        ended = work_all(api, jobs_of(api, 40))
    assert ended[0].stopped is None
    assert {outcome.job.error_class for outcome in ended} == {ErrorClass.CONTENT_FILTERED}


def test_a_redirect_of_an_image_link_is_followed_to_trusted_hosts_only(work_all: WorkAll) -> None:
    def answers(asked: Asked) -> Answer:
        if asked.method == "POST":
            return image(url=f"/{asked.body['prompt'].replace(' ', '-')}")
        if asked.path == "/moved":
            return Answer(PNG)
        elsewhere = "https://evil.example/a.png" if asked.path == "/Fox-1" else "/moved"
        return Answer(b"", 302, {"location": elsewhere})

    with serving(answers) as server:
        api = PROVIDERS["openai"](api_key="a long key", base_url=server.base_url, request_timeout_s=3000)
        good, bad = work_all(api, jobs_of(api, 2))
    assert good.job.status is JobStatus.DONE
    assert (bad.job.status, bad.job.error_code) == (JobStatus.FAILED, "image_link")
    assert bad.job.error_message is not None
    assert "evil.example" in bad.job.error_message


@pytest.mark.slow
def test_requests_that_the_api_still_has_are_asked_about_and_not_in_doubt(work_all: WorkAll) -> None:
    def answers(asked: Asked) -> Answer:
        if asked.method == "POST":
            return Answer({"request_id": asked.body["prompt"].replace(" ", "-")})
        number = int(re.findall("Fox-([0-9]+)", asked.path)[0])
        return Answer({"detail": f"no field {chr(97 + number)}"}, 400)  # in different words, so 30 fail first

    with serving(answers) as server:
        api = PROVIDERS["fal"](api_key="a long key", base_url=server.base_url, request_timeout_s=3000)
        ended = work_all(api, jobs_of(api))
    assert ended[0].stopped is not None
    assert ended[0].stopped.kind is StopKind.SETUP
    asked_about = [outcome.job for outcome in ended if outcome.job.request_id is not None]
    assert asked_about
    assert {job.status for job in asked_about} == {JobStatus.PENDING}
    assert {(job.unanswered, job.unanswered_usd) for job in asked_about} == {(0, 0.0)}
