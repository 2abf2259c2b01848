"""The retry table as data, Retry-After in both forms, and what an error says."""

from __future__ import annotations

import email.utils
import random
from typing import Any

import pytest
from pydantic import SecretStr

from imagemill.blocks.apis import Fal, Together
from imagemill.errors import (
    RETRY_RULES,
    ErrorClass,
    Outcome,
    class_of_status,
)
from imagemill.rate_limit_headers import retry_after_seconds


def test_every_class_has_a_rule() -> None:
    assert set(RETRY_RULES) == set(ErrorClass)
    assert {c for c, rule in RETRY_RULES.items() if rule.outcome is Outcome.STOP} == {
        ErrorClass.UNAUTHORIZED,
        ErrorClass.OUT_OF_BUDGET,
    }


def test_the_retry_table() -> None:
    """Retries, outcome, first wait, longest wait, jitter."""
    assert {
        error_class.value: (rule.retries, rule.outcome.value, rule.base_s, rule.max_s, rule.jitter)
        for error_class, rule in RETRY_RULES.items()
    } == {
        "rate_limited": (3, "retryable", 2.0, 60.0, True),
        "server_error": (1, "retryable", 2.0, 60.0, False),
        "timeout": (3, "retryable", 1.0, 60.0, True),
        "bad_request": (0, "permanent", 0.0, 60.0, False),
        "content_filtered": (0, "permanent", 0.0, 60.0, False),
        "invalid_image": (1, "retryable", 0.0, 60.0, False),
        "unauthorized": (0, "stop", 0.0, 60.0, False),
        "out_of_budget": (0, "stop", 0.0, 60.0, False),
    }


def test_backoff_doubles_with_full_jitter_and_retry_after_wins() -> None:
    rule, rng = RETRY_RULES[ErrorClass.RATE_LIMITED], random.Random(1)
    for retry, ceiling in ((1, 2.0), (2, 4.0), (3, 8.0)):
        waits = [rule.wait_s(retry, None, rng) for _ in range(500)]
        assert min(waits) < 0.1 * ceiling
        assert 0.9 * ceiling < max(waits) <= ceiling
    assert all(30 <= rule.wait_s(1, 30.0, rng) <= 33.1 for _ in range(100))
    assert RETRY_RULES[ErrorClass.SERVER_ERROR].wait_s(1, None, rng) == 2.0


@pytest.mark.parametrize(
    ("status", "retry_after", "error_class"),
    [
        (429, False, "rate_limited"), (503, True, "rate_limited"), (529, True, "rate_limited"),
        (503, False, "server_error"), (500, True, "server_error"), (502, False, "server_error"),
        (504, False, "server_error"), (529, False, "server_error"), (408, False, "timeout"),
        (400, False, "bad_request"), (404, False, "bad_request"), (413, False, "bad_request"),
        (422, False, "bad_request"), (401, False, "unauthorized"), (403, False, "unauthorized"),
        (402, False, "out_of_budget"), (302, False, "bad_request"),
    ],
)  # fmt: skip
def test_a_status_has_one_class(status: int, retry_after: bool, error_class: str) -> None:  # noqa: FBT001
    assert class_of_status(status, has_retry_after=retry_after) == error_class


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "30"}, 30.0),
        ({"retry-after": " 0.5 "}, 0.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": email.utils.formatdate(1_000_030, usegmt=True)}, 30.0),
        ({"retry-after": email.utils.formatdate(999_000, usegmt=True)}, 0.0),
        ({"retry-after": "-5"}, 0.0),
        ({"retry-after": "1e300"}, 3600.0),
        ({"retry-after": "inf"}, 3600.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "x", "retry-after": "2"}, 2.0),
    ],
)
def test_retry_after_in_both_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, now=1_000_000) == seconds


def test_an_error_never_says_the_key_and_never_moves_the_cursor() -> None:
    api = Together(api_key=SecretStr("sk-secret-123"))
    body = b'{"error": {"message": "Invalid key sk-secret-123\\u001b[2J\\r\\n"}}'
    error = api.error_of(401, {}, body)
    assert error.error_class is ErrorClass.UNAUTHORIZED
    assert "sk-secret-123" not in error.message
    assert error.message.isprintable()
    assert "sk-secret" not in repr(api)


@pytest.mark.parametrize(
    ("api", "status", "body", "error_class"),
    [
        (Together, 422, b'{"error": {"message": "NSFW content detected"}}', "content_filtered"),
        (Together, 400, b'{"error": {"message": "width must be a multiple of 16"}}', "bad_request"),
        (Together, 402, b'{"error": {"message": "credit limit exceeded"}}', "out_of_budget"),
        (Fal, 403, b'{"detail": "User is locked. Reason: Exhausted balance"}', "out_of_budget"),
        (Fal, 403, b'{"detail": "Forbidden"}', "unauthorized"),
        (Fal, 422, b'{"detail": [{"msg": "bad", "type": "content_policy_violation"}]}', "content_filtered"),
        (Fal, 422, b'{"detail": [{"loc": ["seed"], "msg": "not an int"}]}', "bad_request"),
        (Fal, 500, b"<html>oops</html>", "server_error"),
    ],
)  # fmt: skip
def test_vendors_own_errors(api: Any, status: int, body: bytes, error_class: str) -> None:
    assert api(api_key=SecretStr("k")).error_of(status, {}, body).error_class == error_class


@pytest.mark.parametrize(
    ("base_url", "link", "may"),
    [
        ("", "https://v3.fal.media/files/x.png", True),
        ("", "http://v3.fal.media/files/x.png", False),
        ("", "https://fal.media.evil.example/x.png", False),
        ("", "https://evilfal.media/x.png", False),
        ("", "http://169.254.169.254/latest/meta-data", False),
        ("", "http://127.0.0.1:8000/x", False),
        ("", "file:///etc/passwd", False),
        ("", "https://[::1/x", False),
        ("http://127.0.0.1:8700", "http://127.0.0.1:8700/files/x", True),
        ("http://127.0.0.1:8700", "http://localhost:8701/files/x", True),
        ("http://127.0.0.1:8700", "http://10.0.0.1/x", False),
    ],
)
def test_image_links_are_followed_only_to_the_vendors_hosts(
    base_url: str,
    link: str,
    may: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    assert Fal(api_key=SecretStr("k"), base_url=base_url).is_trusted_link(link) is may
