"""The classes of error, the retry table, and the exceptions.

The retry table is the only place that says what happens after an error: each class has its own retry budget
and outcome. An image API only decides which class an answer belongs to.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from imagemill.secrets import masked


class ErrorClass(StrEnum):
    """The classes of error of a generation request."""

    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    BAD_REQUEST = "bad_request"
    CONTENT_FILTERED = "content_filtered"
    INVALID_IMAGE = "invalid_image"
    UNAUTHORIZED = "unauthorized"
    OUT_OF_BUDGET = "out_of_budget"


class Outcome(StrEnum):
    """What happens to a job when its budget for a class of error is used up."""

    RETRYABLE = "retryable"
    """The job fails; it may succeed later."""
    PERMANENT = "permanent"
    """The job fails; the same input would fail again."""
    STOP = "stop"
    """The run stops; this job and all other unfinished ones stay pending."""


@dataclass(frozen=True, slots=True)
class RetryRule:
    """How often a class of error is retried, and how long each retry waits.

    The wait before retry ``n`` (from 1) is ``base_s * 2 ** (n - 1)`` seconds, at most ``max_s``; with
    ``jitter`` a random share of it ("full jitter"). A Retry-After header overrides both.
    """

    retries: int
    outcome: Outcome
    base_s: float = 0.0
    max_s: float = 60.0
    jitter: bool = False

    def wait_s(self, retry: int, retry_after_s: float | None, rng: random.Random) -> float:
        """Seconds to wait before retry number ``retry`` (from 1)."""
        if retry_after_s is not None:
            # All requests got the same Retry-After: a little jitter keeps them from returning together.
            return retry_after_s + rng.uniform(0.0, 0.1 * retry_after_s + 0.1)
        wait = min(self.max_s, self.base_s * 2.0 ** (retry - 1))
        return rng.uniform(0.0, wait) if self.jitter else wait


NOT_TAKEN = frozenset({ErrorClass.RATE_LIMITED, ErrorClass.OUT_OF_BUDGET, ErrorClass.UNAUTHORIZED})
"""After such an error the API has not taken the request, and may take the same one later."""

RETRY_RULES: Mapping[ErrorClass, RetryRule] = {
    ErrorClass.RATE_LIMITED: RetryRule(3, Outcome.RETRYABLE, base_s=2.0, jitter=True),
    ErrorClass.SERVER_ERROR: RetryRule(1, Outcome.RETRYABLE, base_s=2.0),
    ErrorClass.TIMEOUT: RetryRule(3, Outcome.RETRYABLE, base_s=1.0, jitter=True),
    ErrorClass.BAD_REQUEST: RetryRule(0, Outcome.PERMANENT),
    ErrorClass.CONTENT_FILTERED: RetryRule(0, Outcome.PERMANENT),
    ErrorClass.INVALID_IMAGE: RetryRule(1, Outcome.RETRYABLE),
    ErrorClass.UNAUTHORIZED: RetryRule(0, Outcome.STOP),
    ErrorClass.OUT_OF_BUDGET: RetryRule(0, Outcome.STOP),
}
"""The retry table: one rule, one budget and one counter per class."""


class ApiError(Exception):
    """A generation request that produced no usable image; its class decides what happens next.

    With ``keep_request``, the API still knows the request: a retry follows it up instead of paying for a new
    one. With ``charged``, the API made an image and will charge for it nevertheless; with ``doubtful``
    it may have, and cannot be asked.
    """

    def __init__(
        self,
        error_class: ErrorClass,
        message: str,
        *,
        code: str | None = None,
        retry_after_s: float | None = None,
        keep_request: bool = False,
        charged: bool = False,
        doubtful: bool = False,
    ) -> None:
        message = masked(message)
        super().__init__(message)
        self.error_class = error_class
        self.message = message
        self.code = masked(code or error_class.value)
        self.retry_after_s = retry_after_s
        self.keep_request = keep_request
        self.charged = charged
        self.doubtful = doubtful


class InputError(Exception):
    """Unusable input or settings; the message says what is wrong, where, and what to do."""

    def __init__(self, sentence: str) -> None:
        super().__init__(masked(printable(sentence)))


class StoreUnavailableError(Exception):
    """The bucket or the job store was unavailable for too long; the run can be resumed later."""

    def __init__(self, sentence: str) -> None:
        super().__init__(masked(printable(sentence)))


def printable(text: str) -> str:
    """Text from a catalog or a server, safe for terminals and logs: control characters are escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def class_of_status(status: int, *, has_retry_after: bool = False) -> ErrorClass:
    """The class of an HTTP status code, if the vendor gives no better reason."""
    if status == 429 or (status in {503, 529} and has_retry_after):
        return ErrorClass.RATE_LIMITED
    if status in {401, 403}:
        return ErrorClass.UNAUTHORIZED
    if status == 402:
        return ErrorClass.OUT_OF_BUDGET
    if status == 408:
        return ErrorClass.TIMEOUT
    if status >= 500:
        return ErrorClass.SERVER_ERROR
    return ErrorClass.BAD_REQUEST
