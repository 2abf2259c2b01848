"""Sorts an API's error into a class: here a 429 is told from an outage, and a bad key from a bad row.

The HTTP status decides (:func:`imagemill.errors.class_of_status`) unless one of the vendor's rules below
matches first. Each rule is a fact about one vendor with its source; what happens to each class is in
:data:`imagemill.errors.RETRY_RULES`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from imagemill.blocks.apis.exchange import words_of
from imagemill.errors import ErrorClass, class_of_status
from imagemill.rate_limit_headers import retry_after_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRule:
    """Answers that match everything named here belong to ``error_class``.

    ``statuses`` are HTTP statuses, ``codes`` error codes or types in the body or in ``X-Fal-Error-Type``,
    ``words`` parts of the message in lower case. Where several are given, one of each must match.
    ``of_api`` leaves out answers without a JSON body: those come from a proxy in front of the API.
    """

    error_class: ErrorClass
    source: str
    statuses: frozenset[int] = frozenset()
    codes: frozenset[str] = frozenset()
    words: tuple[str, ...] = ()
    of_api: bool = False

    def matches(self, status: int, codes: frozenset[str], words: str, *, is_json: bool) -> bool:
        """Whether an answer is one that this rule is about."""
        return (
            (not self.statuses or status in self.statuses)
            and (not self.codes or not self.codes.isdisjoint(codes))
            and (not self.words or any(word in words for word in self.words))
            and (is_json or not self.of_api)
        )


_REFUSED_ROW = frozenset({400, 403, 404, 413, 422})
"""Statuses of an answer that is about the row, if its words say so."""

ERROR_RULES: Mapping[str, tuple[ErrorRule, ...]] = {
    "together": (
        ErrorRule(
            error_class=ErrorClass.RATE_LIMITED,
            source="docs.together.ai/docs/rate-limits: 503 where a burst at or below the rate meets too"
            " little capacity, 429 above the rate",
            statuses=frozenset({503, 529}),
        ),
        ErrorRule(
            error_class=ErrorClass.CONTENT_FILTERED,
            source="not confirmed: no code for moderation is documented",
            statuses=_REFUSED_ROW,
            words=("nsfw", "content policy", "content_policy", "moderation", "safety"),
        ),
        ErrorRule(
            error_class=ErrorClass.BAD_REQUEST,
            source="docs.together.ai/docs/error-codes: 403 is a request with too many tokens",
            statuses=frozenset({403}),
            words=("token", "context length", "too long"),
        ),
    ),
    "fal": (
        ErrorRule(
            error_class=ErrorClass.OUT_OF_BUDGET,
            source="fal's client and its users: an exhausted balance locks the user, with 403",
            statuses=frozenset({403}),
            words=("balance", "locked"),
        ),
        ErrorRule(
            error_class=ErrorClass.RATE_LIMITED,
            source="fal.run beyond the account's requests at once; the queue never refuses",
            codes=frozenset({"concurrent_requests_limit"}),
        ),
        ErrorRule(
            error_class=ErrorClass.CONTENT_FILTERED,
            source="docs.fal.ai/model-apis/errors",
            statuses=frozenset({422}),
            codes=frozenset({"content_policy_violation"}),
        ),
        ErrorRule(
            error_class=ErrorClass.CONTENT_FILTERED,
            source="docs.fal.ai/model-apis/errors",
            statuses=frozenset({422}),
            words=("nsfw",),
        ),
    ),
    "openai": (
        ErrorRule(
            error_class=ErrorClass.OUT_OF_BUDGET,
            source="platform.openai.com/docs/guides/error-codes; budget_exceeded: LiteLLM's proxy, with 400"
            " up to 1.80 and with 429 since",
            codes=frozenset(
                {"insufficient_quota", "billing_hard_limit_reached", "insufficient_credit", "budget_exceeded"}
            ),
        ),
        ErrorRule(
            error_class=ErrorClass.OUT_OF_BUDGET,
            source="docs.nscale.com/docs/faqs/error-codes: 429 is insufficient credit there",
            statuses=frozenset({429}),
            words=("insufficient credit", "insufficient balance", "budget has been exceeded"),
        ),
        ErrorRule(
            error_class=ErrorClass.OUT_OF_BUDGET,
            source="LiteLLM's proxy 1.108: a deployment whose budget is spent is 429, internal_server_error",
            statuses=frozenset({400, 429}),
            words=("crossed budget",),
        ),
        ErrorRule(
            error_class=ErrorClass.UNAUTHORIZED,
            source="LiteLLM's proxy: a key that it does not know is no_db_connection with 400 where it has"
            " no database, and one of the others where it has one",
            codes=frozenset(
                {
                    "no_db_connection",
                    "token_not_found_in_db",
                    "expired_key",
                    "key_model_access_denied",
                    "team_model_access_denied",
                    "user_model_access_denied",
                    "org_model_access_denied",
                    "invalid_api_key",
                }
            ),
        ),
        ErrorRule(
            error_class=ErrorClass.UNAUTHORIZED,
            source="docs.fireworks.ai/guides/inference-error-codes: 412 is a suspended account",
            statuses=frozenset({412}),
        ),
        ErrorRule(
            error_class=ErrorClass.CONTENT_FILTERED,
            source="platform.openai.com/docs/guides/error-codes; content_filter: Azure",
            codes=frozenset({"content_policy_violation", "moderation_blocked", "content_filter"}),
        ),
        ErrorRule(
            error_class=ErrorClass.CONTENT_FILTERED,
            source="LiteLLM's proxy 1.108 keeps OpenAI's words for a flagged prompt, and drops its code",
            statuses=_REFUSED_ROW,
            words=("rejected by the safety system", "rejected by our safety system"),
        ),
        ErrorRule(
            error_class=ErrorClass.RATE_LIMITED,
            source='OpenAI ("Slow Down", "engine overloaded"), Fireworks and CoreWeave answer 503 to say'
            " slower, with their own error body; a proxy's page without one is an outage",
            statuses=frozenset({503, 529}),
            of_api=True,
        ),
    ),
    "runware": (
        ErrorRule(
            error_class=ErrorClass.RATE_LIMITED,
            source="runware.ai/docs/platform/errors: 429 and 503 mean later",
            statuses=frozenset({503}),
            of_api=True,
        ),
        ErrorRule(
            error_class=ErrorClass.UNAUTHORIZED,
            source="runware.ai/docs/platform/errors",
            codes=frozenset({"invalidApiKey", "missingApiKey"}),
        ),
        ErrorRule(
            error_class=ErrorClass.OUT_OF_BUDGET,
            source="runware.ai/docs/platform/errors: 402; the code is not confirmed",
            codes=frozenset({"insufficientCredits", "insufficientBalance"}),
        ),
        ErrorRule(
            error_class=ErrorClass.CONTENT_FILTERED,
            source="not confirmed",
            words=("nsfw", "content policy", "moderation", "safety"),
        ),
        ErrorRule(
            error_class=ErrorClass.SERVER_ERROR,
            source="runware.ai/docs/platform/errors: the provider behind it took too long",
            codes=frozenset({"timeoutProvider", "providerError"}),
        ),
    ),
    "cloudflare": (
        ErrorRule(
            error_class=ErrorClass.OUT_OF_BUDGET,
            source="developers.cloudflare.com/workers-ai/platform/errors: 3036, with 429, the day's free"
            " neurons are used up (4006 in older answers)",
            codes=frozenset({"3036", "4006"}),
        ),
        ErrorRule(
            error_class=ErrorClass.RATE_LIMITED,
            source="developers.cloudflare.com/workers-ai/platform/errors: 3040, with 429, out of capacity",
            codes=frozenset({"3040"}),
        ),
        ErrorRule(
            error_class=ErrorClass.CONTENT_FILTERED,
            source="not confirmed: 3030 with 400, prompts that the model's filter refuses",
            codes=frozenset({"3030"}),
            words=("nsfw", "flagged", "safety"),
        ),
        ErrorRule(
            error_class=ErrorClass.UNAUTHORIZED,
            source="Cloudflare's API: 10000 authentication error, 9109 invalid access token, with 400 or 403",
            codes=frozenset({"10000", "9109", "6003"}),
        ),
    ),
}
"""What vendors say in their own way, by provider; the first rule that matches decides."""


def class_of_error(provider: str, status: int, headers: Mapping[str, str], body: bytes) -> ErrorClass:
    """The class of an HTTP answer that brought no image."""
    document = _json_of(body)
    codes = frozenset(_codes(document))
    if fal_type := headers.get("x-fal-error-type"):
        codes |= {fal_type}
    words = words_of(body).lower()
    for rule in ERROR_RULES.get(provider, ()):
        if rule.matches(status, codes, words, is_json=isinstance(document, dict)):
            return rule.error_class
    return class_of_status(status, has_retry_after=retry_after_seconds(headers) is not None)


def error_code(body: bytes) -> str | None:
    """The first error code or type that a body names, other than a status; None where it names none."""
    return next((code for code in _codes(_json_of(body)) if not (len(code) == 3 and code.isdigit())), None)


def _json_of(body: bytes) -> Any:  # noqa: ANN401 - whatever the API sent
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _codes(document: Any) -> Iterator[str]:  # noqa: ANN401
    """Codes and types, the more telling first, wherever one of the vendors puts them."""
    if not isinstance(document, dict):
        return
    places = [document.get("error"), document]
    for listed in (document.get("errors"), document.get("detail")):
        places += listed[:5] if isinstance(listed, list) else []
    for place in places:
        if not isinstance(place, dict):
            continue
        for name in ("code", "type", "error_type"):
            code = place.get(name)
            if (isinstance(code, str) and code) or (isinstance(code, int) and not isinstance(code, bool)):
                yield str(code)
