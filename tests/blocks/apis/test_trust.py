"""Where the key goes and where images may come from; and errors whose class the status does not say."""

from __future__ import annotations

import json

import httpx
import pytest

from imagemill.blocks.apis import (
    PROVIDERS,
    BlackForestLabs,
    Fal,
    ImageApi,
    OpenAICompatible,
    Replicate,
    Together,
)
from imagemill.errors import ApiError, ErrorClass
from tests.blocks.apis.variants import make_job
from tests.virtual_time import run

PICTURE = b"picture"


def ask(
    api: ImageApi, *answers: httpx.Response, request_id: str | None = None
) -> tuple[list[httpx.Request], list[str], ApiError | None]:
    """What was asked, which request ids were stored, and the error, when these answers come in order."""
    left, asked, stored = list(answers), [], []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return left.pop(0)

    async def accepted(handle_of_request: str, _charged_usd: float | None = None) -> None:
        stored.append(handle_of_request)

    async def generate() -> ApiError | None:
        job = make_job(api)
        job.request_id = request_id
        async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as http:
            try:
                assert (await api.generate(http, job, accepted)).content == PICTURE
            except ApiError as error:
                return error
        return None

    return asked, stored, run(generate)


def answer(**content: object) -> httpx.Response:
    return httpx.Response(200, json=content)


def ready(link: str) -> httpx.Response:
    return answer(status="Ready", result={"sample": link})


@pytest.mark.parametrize(
    ("base_url", "polling_url", "trusted"),
    [
        ("", "https://api.bfl.ai/v1/get_result?id=1", True),
        ("", "https://api.eu4.bfl.ai/v1/get_result?id=1", True),
        ("", "https://bfl.ai.evil.com/v1/get_result?id=1", False),
        ("", "https://evilbfl.ai/v1/get_result?id=1", False),
        ("", "http://api.bfl.ai/v1/get_result?id=1", False),
        ("", "https://user@evil.com:443/api.bfl.ai", False),
        ("", "https://[::1/", False),
        ("", "file:///etc/passwd", False),
        ("", "//api.bfl.ai/v1", False),
        ("https://proxy.example/bfl", "https://proxy.example/bfl/v1/get_result?id=1", True),
        ("https://proxy.example/bfl", "http://proxy.example:443/v1/get_result?id=1", False),
        ("http://127.0.0.1:8700", "http://127.0.0.1:8700/v1/get_result?id=1", True),
    ],
)
def test_the_key_goes_to_polling_urls_of_the_vendor_only(
    base_url: str,
    polling_url: str,
    trusted: bool,  # noqa: FBT001
) -> None:
    api = BlackForestLabs(api_key="bfl-test-key", base_url=base_url)
    link = "https://delivery-eu1.bfl.ai/a.png?sig=1"
    submitted = answer(id="1", polling_url=polling_url)
    asked, stored, error = ask(api, submitted, ready(link), httpx.Response(200, content=PICTURE))
    if trusted:
        assert error is None
        assert stored == [polling_url]
        assert [request.headers.get("x-key") for request in asked] == [
            "bfl-test-key",
            "bfl-test-key",
            None,
        ]
        assert str(asked[-1].url) == link
    else:
        assert error is not None
        assert error.code == "polling_host_refused"
        assert (len(asked), stored) == (1, [])


def test_a_stored_polling_url_is_looked_at_again_before_it_gets_the_key() -> None:
    api = BlackForestLabs(api_key="bfl-test-key")
    asked, _, error = ask(api, request_id="https://evil.com/v1/get_result?id=1")
    assert error is not None
    assert error.code == "polling_host_refused"
    assert asked == []


@pytest.mark.parametrize(
    ("link", "code"),
    [
        ("https://fal.media/\x00", "bad_link"),
        ("https://fal.media:99999999/a", "image_host_refused"),
        ("https://[::1/a", "image_host_refused"),
        ("https://fal.media.evil.com/a", "image_host_refused"),
        ("ftp://fal.media/a", "image_host_refused"),
    ],
)
def test_links_that_lead_nowhere_end_as_errors_of_the_api(link: str, code: str) -> None:
    result = answer(images=[{"url": link}])
    _, _, error = ask(Fal(api_key="k"), answer(status="COMPLETED"), result, request_id="1")
    assert error is not None
    assert error.code == code
    assert error.charged


@pytest.mark.parametrize(
    ("provider", "link", "trusted"),
    [
        ("bfl", "https://delivery.bfl.ai/a.png", True),
        ("bfl", "https://example.com/a.png", False),
        ("bfl", "http://169.254.169.254/latest/meta-data", False),
        ("replicate", "https://replicate.delivery/xezq/a.png", True),
        ("replicate", "http://replicate.delivery/a.png", False),
        ("fal", "https://v3.fal.media/files/a.png", True),
        ("fal", "https://fal.media.evil.com/a.png", False),
        ("together", "https://api.together.ai/imgproxy/a.png", True),
        ("openai", "https://api.openai.com/a.png", True),
        ("openai", "https://files.example.com/a.png", False),
        ("runware", "https://im.runware.ai/image/a.png", True),
        ("runware", "https://runware.ai.evil.com/a.png", False),
        ("cloudflare", "https://example.com/a.png", False),
    ],
)
def test_images_come_from_hosts_of_the_vendor_only(provider: str, link: str, trusted: bool) -> None:  # noqa: FBT001
    assert PROVIDERS[provider](api_key="k").is_trusted_link(link) is trusted
    if not trusted and link.startswith("https"):
        host = link.split("/")[2]
        assert PROVIDERS[provider](api_key="k", image_hosts=[host]).is_trusted_link(link)


@pytest.mark.parametrize(
    ("api", "status", "body", "error_class", "code", "retry_after_s"),
    [
        (OpenAICompatible, 429, {"error": {"message": "Slow", "code": "rate_limit_exceeded"}},
         ErrorClass.RATE_LIMITED, "rate_limit_exceeded", None),
        (OpenAICompatible, 429, {"error": {"message": "Pay", "code": "insufficient_quota"}},
         ErrorClass.OUT_OF_BUDGET, "insufficient_quota", None),
        (OpenAICompatible, 400, {"error": {"message": "No", "code": "moderation_blocked"}},
         ErrorClass.CONTENT_FILTERED, "moderation_blocked", None),
        (OpenAICompatible, 400, {"error": "No"}, ErrorClass.BAD_REQUEST, "http_400", None),
        (Replicate, 429, {"detail": "Request was throttled. Your rate limit resets in ~30s."},
         ErrorClass.RATE_LIMITED, "http_429", 30.0),
        (Replicate, 402, {"title": "Insufficient credit", "detail": "Pay"},
         ErrorClass.OUT_OF_BUDGET, "http_402", None),
        (Replicate, 422, {"detail": "- input.seed: no"}, ErrorClass.BAD_REQUEST, "http_422", None),
        (BlackForestLabs, 402, {"detail": "No credits"}, ErrorClass.OUT_OF_BUDGET, "http_402", None),
        (BlackForestLabs, 403, {"detail": "Not authenticated"}, ErrorClass.UNAUTHORIZED, "http_403", None),
        (BlackForestLabs, 503, {"detail": "Load"}, ErrorClass.SERVER_ERROR, "http_503", None),
        (Fal, 403, {"detail": "User is locked. Reason: Exhausted balance."},
         ErrorClass.OUT_OF_BUDGET, "http_403", None),
        (Fal, 422, {"detail": [{"loc": 5, "msg": "nsfw", "type": "content_policy_violation"}]},
         ErrorClass.CONTENT_FILTERED, "http_422", None),
        (Together, 422, {"error": {"message": "NSFW"}}, ErrorClass.CONTENT_FILTERED, "http_422", None),
        (Together, 429, {"error": "Try again in 250ms"}, ErrorClass.RATE_LIMITED, "http_429", 0.25),
    ],
)  # fmt: skip
def test_what_an_error_means(
    api: type[ImageApi],
    status: int,
    body: object,
    error_class: ErrorClass,
    code: str,
    retry_after_s: float | None,
) -> None:
    error = api(api_key="a long key").error_of(status, httpx.Headers(), json.dumps(body).encode())
    assert (error.error_class, error.code, error.retry_after_s) == (error_class, code, retry_after_s)


@pytest.mark.parametrize(
    ("task", "error_class", "code"),
    [
        ({"status": "Request Moderated"}, ErrorClass.CONTENT_FILTERED, "request_moderated"),
        ({"status": "Content Moderated"}, ErrorClass.CONTENT_FILTERED, "content_moderated"),
        ({"status": "Task not found"}, ErrorClass.TIMEOUT, "request_gone"),
        (
            {"status": "Error", "details": {"error": "bfl-test-key \x1b[31m"}},
            ErrorClass.SERVER_ERROR,
            "task_error",
        ),
        ({"status": "Ready", "result": None}, ErrorClass.SERVER_ERROR, "unknown_answer"),
        ({"status": ["Ready"]}, ErrorClass.SERVER_ERROR, "unknown_answer"),
    ],
)
def test_states_of_a_task(task: dict[str, object], error_class: ErrorClass, code: str) -> None:
    api = BlackForestLabs(api_key="bfl-test-key")
    _, _, error = ask(api, *[answer(**task)] * 9, request_id="https://api.bfl.ai/v1/get_result?id=1")
    assert error is not None
    assert (error.error_class, error.code) == (error_class, code)
    assert error.keep_request is (code == "unknown_answer")
    assert "bfl-test-key" not in error.message
    assert "\x1b" not in error.message


def test_a_request_of_an_earlier_process_is_not_gone_at_once_whatever_clocks_say() -> None:
    """Seed 897901: a clock that had jumped made it old, and it was bought again."""
    api = BlackForestLabs(api_key="k")
    gone, made = answer(status="Task not found"), ready("https://delivery-eu1.bfl.ai/a.png?sig=1")
    earlier = "https://api.bfl.ai/v1/get_result?id=1"
    asked, _, error = ask(api, gone, gone, made, httpx.Response(200, content=PICTURE), request_id=earlier)
    assert (len(asked), error) == (4, None)


def test_an_answer_to_a_submit_without_an_id_is_not_an_id() -> None:
    for wrong in ({"polling_url": ""}, {"polling_url": 5}, {"polling_url": "x" * 3000}, {"id": "1"}):
        _, stored, error = ask(BlackForestLabs(api_key="k"), answer(**wrong))
        assert error is not None
        assert error.code == "unknown_answer"
        assert stored == []
