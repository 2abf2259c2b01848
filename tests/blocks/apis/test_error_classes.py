"""Where a 429 is told from an outage, and a bad key or an empty account from a bad row."""

from __future__ import annotations

import json

import httpx
import pytest

from imagemill.blocks.apis import PROVIDERS
from imagemill.blocks.apis.error_classes import ERROR_RULES
from imagemill.errors import ErrorClass

LATER, DOWN = ErrorClass.RATE_LIMITED, ErrorClass.SERVER_ERROR
ROW, KEY, MONEY = ErrorClass.BAD_REQUEST, ErrorClass.UNAUTHORIZED, ErrorClass.OUT_OF_BUDGET
OVERLOADED = {"error": {"message": "The engine is currently overloaded", "type": "server_error"}}
PAGE = b"<html><h1>503 Service Temporarily Unavailable</h1>nginx</html>"


def litellm(message: str, kind: str, code: int) -> dict[str, object]:
    """An error as LiteLLM's proxy words it: the status again in ``code``, its own kind in ``type``."""
    return {"error": {"message": message, "type": kind, "param": None, "code": str(code)}}


@pytest.mark.parametrize(
    ("provider", "status", "body", "error_class"),
    [
        # Together: 429 above the dynamic rate, 503 below it where capacity lacks. Never down.
        ("together", 429, {"error": {"message": "x", "type": "dynamic_request_limited"}}, LATER),
        ("together", 503, OVERLOADED, LATER),
        ("together", 503, PAGE, LATER),
        ("together", 500, OVERLOADED, DOWN),
        ("together", 403, {"error": {"message": "Input token count exceeds the context length"}}, ROW),
        ("together", 403, {"error": {"message": "Forbidden"}}, KEY),
        # Servers in OpenAI's dialect say slower by 503; a proxy's page in front of them is an outage.
        ("openai", 503, OVERLOADED, LATER),
        ("openai", 529, OVERLOADED, LATER),
        ("openai", 503, PAGE, DOWN),
        ("openai", 503, b"", DOWN),
        ("openai", 502, OVERLOADED, DOWN),
        # LiteLLM's proxy: a budget and a key are not a row's fault.
        ("openai", 400, litellm("Budget has been exceeded!", "budget_exceeded", 400), MONEY),
        ("openai", 429, litellm("Budget has been exceeded!", "budget_exceeded", 429), MONEY),
        ("openai", 400, litellm("No connected db.", "no_db_connection", 400), KEY),
        ("openai", 401, litellm("Invalid proxy server token", "token_not_found_in_db", 401), KEY),
        ("openai", 400, litellm("Key expired", "expired_key", 400), KEY),
        ("openai", 429, litellm("litellm.RateLimitError", "throttling_error", 429), LATER),
        ("openai", 400, litellm("litellm.BadRequestError: no", "invalid_request_error", 400), ROW),
        # Nscale answers 429 for an empty account, Fireworks 412 for a suspended one.
        ("openai", 429, {"error": {"message": "Insufficient credit"}}, MONEY),
        ("openai", 412, {"error": {"message": "Account is suspended"}}, KEY),
        # fal.run refuses beyond the requests at once; its queue never does.
        ("fal", 429, {"detail": [{"msg": "Too many", "type": "concurrent_requests_limit"}]}, LATER),
        ("fal", 503, {"detail": "x"}, DOWN),
        ("bfl", 503, {"detail": "maintenance"}, DOWN),
        ("bfl", 429, {"detail": "24 tasks"}, LATER),
        ("replicate", 429, {"detail": "throttled"}, LATER),
        # Every API: 503 and 529 with Retry-After, tested in tests/test_errors.py.
        ("replicate", 503, {"detail": "x"}, DOWN),
    ],
)
def test_each_vendors_own_words(provider: str, status: int, body: object, error_class: ErrorClass) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    error = PROVIDERS[provider](api_key="a long key").error_of(status, httpx.Headers(), content)
    assert error.error_class is error_class


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("status", [503, 529])
def test_a_wait_that_is_named_is_a_rate_limit_everywhere(provider: str, status: int) -> None:
    headers = httpx.Headers({"retry-after": "7"})
    error = PROVIDERS[provider](api_key="a long key").error_of(status, headers, PAGE)
    assert (error.error_class, error.retry_after_s) == (LATER, 7.0)


def test_every_rule_has_a_source_and_can_match() -> None:
    for provider, rules in ERROR_RULES.items():
        assert provider in PROVIDERS
        for rule in rules:
            assert rule.source
            assert rule.statuses or rule.codes or rule.words
