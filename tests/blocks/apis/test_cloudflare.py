"""Cloudflare Workers AI: an account in the address, one size, no seed, and two kinds of 429."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import pytest
from PIL import Image

from imagemill.blocks.apis import Cloudflare, ImageApi
from imagemill.engine.engine import StopKind
from imagemill.errors import ErrorClass, InputError
from imagemill.jobs import Job, JobStatus
from tests.blocks.apis.variants import Outcome, make_job
from tests.http_server import Answer, serving

Work = Callable[[ImageApi, Job], Outcome]


def picture() -> bytes:
    held = io.BytesIO()
    Image.effect_noise((1024, 1024), 90).convert("RGB").save(held, "JPEG")
    return held.getvalue()


GOOD = Answer({"result": {"image": base64.b64encode(picture()).decode()}, "success": True, "errors": []})


def refused(code: int, message: str, status: int) -> Answer:
    return Answer({"result": None, "success": False, "errors": [{"code": code, "message": message}]}, status)


def job_of(api: ImageApi, prompt: str = "A lighthouse") -> Job:
    return make_job(api, prompt, width=1024, height=1024)


def test_a_picture(work: Work) -> None:
    with serving(lambda _: GOOD) as server:
        api = Cloudflare(
            api_key="a long key", account="abc123", base_url=server.base_url, request_timeout_s=3000
        )
        job = work(api, job_of(api)).job
    assert job.status is JobStatus.DONE, job.error_message
    assert job.image is not None
    assert job.image.endswith(".jpg")
    (asked,) = server.asked
    assert asked.path == "/client/v4/accounts/abc123/ai/run/@cf/black-forest-labs/flux-1-schnell"
    assert asked.headers["authorization"] == "Bearer a long key"
    assert asked.body == {"prompt": "A lighthouse", "steps": 4}
    assert job.cost_usd == pytest.approx(0.0006336)


@pytest.mark.parametrize(
    ("base_url", "address"),
    [
        ("", "https://api.cloudflare.com/client/v4/accounts/abc/ai/run/m"),
        ("https://p.example/client/v4", "https://p.example/client/v4/accounts/abc/ai/run/m"),
        ("https://p.example/client/v4/accounts/xyz", "https://p.example/client/v4/accounts/xyz/ai/run/m"),
    ],
)
def test_where_the_account_goes(base_url: str, address: str) -> None:
    api = Cloudflare(api_key="a long key", account="abc", base_url=base_url, model="m")
    assert api.endpoint(make_job(api)) == address


def test_other_sizes_are_refused_and_the_notice_says_what_is_not_taken() -> None:
    api = Cloudflare(api_key="a long key", account="abc")
    assert api.refusal(1024, 1024, 4) is None
    assert api.refusal(512, 512, 4) is not None
    assert api.refusal(1024, 1024, 9) is not None
    assert "neither size nor seed" in api.notice


@pytest.mark.parametrize(
    ("answer", "stopped", "error_class", "asked"),
    [
        (refused(3036, "You have used up your daily free allocation", 429), StopKind.OUT_OF_BUDGET, None, 1),
        (refused(3040, "Capacity temporarily exceeded", 429), None, ErrorClass.RATE_LIMITED, 4),
        (refused(10000, "Authentication error", 403), StopKind.UNAUTHORIZED, None, 1),
        (refused(5007, "No such model", 400), None, ErrorClass.BAD_REQUEST, 1),
        (refused(3007, "Request timeout", 408), None, ErrorClass.TIMEOUT, 4),
    ],
)
def test_its_errors(
    answer: Answer, stopped: StopKind | None, error_class: ErrorClass | None, asked: int, work: Work
) -> None:
    with serving(lambda _: answer) as server:
        api = Cloudflare(
            api_key="a long key", account="abc", base_url=server.base_url, request_timeout_s=3000
        )
        ended = work(api, job_of(api))
    assert (ended.stopped.kind if ended.stopped else None) is stopped
    assert ended.job.error_class == error_class
    assert len(server.asked) == asked


def test_a_prompt_that_is_too_long_is_not_sent(work: Work) -> None:
    with serving(lambda _: GOOD) as server:
        api = Cloudflare(
            api_key="a long key", account="abc", base_url=server.base_url, request_timeout_s=3000
        )
        job = work(api, job_of(api, "x" * 2049)).job
    assert (job.error_class, job.error_code) == (ErrorClass.BAD_REQUEST, "prompt_too_long")
    assert server.asked == []


def test_the_account_is_named_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "a long key")
    monkeypatch.delenv("CLOUDFLARE_ACCOUNT_ID", raising=False)
    with pytest.raises(InputError, match=r"CLOUDFLARE_ACCOUNT_ID.*--account"):
        Cloudflare.from_environment()
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "abc")
    assert "/accounts/abc/" in Cloudflare.from_environment().endpoint(
        make_job(Cloudflare(api_key="a long key"))
    )
