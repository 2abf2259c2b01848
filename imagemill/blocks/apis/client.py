"""Talks to a vendor's API: attempts with a time limit, their errors, and questions that cost nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import orjson

from imagemill.blocks.apis.error_classes import class_of_error, error_code
from imagemill.blocks.apis.error_codes import NO_SUCH_MODEL
from imagemill.blocks.apis.exchange import fetch, joined, unexpected_answer, words_of
from imagemill.blocks.apis.pricing import PricedAccount
from imagemill.errors import ApiError, ErrorClass
from imagemill.rate_limit_headers import retry_after_seconds, seconds_in_words

_NOT_SENDABLE = (httpx.LocalProtocolError, httpx.UnsupportedProtocol, UnicodeEncodeError)
"""What is wrong with a request itself, such as a header of characters that no header has: it never leaves."""


class ApiClient(PricedAccount):
    """Sends requests to the vendor's API and turns what goes wrong into an :class:`ApiError`."""

    @asynccontextmanager
    async def attempt(self, *, keep_request: bool = False) -> AsyncIterator[anyio.CancelScope]:
        """One attempt: at most ``request_timeout_s`` long, network trouble turned into a timeout error.

        The deadline of the scope that it gives may be moved.
        """
        try:
            with anyio.move_on_after(self.request_timeout_s) as scope:
                yield scope
            if scope.cancelled_caught:  # also where the deadline was moved just after it had passed
                raise TimeoutError  # noqa: TRY301 - caught with its kind below
        except (TimeoutError, httpx.TimeoutException) as error:
            raise ApiError(
                ErrorClass.TIMEOUT,
                f"no answer within {self.request_timeout_s:g} s",
                code="timeout",
                keep_request=keep_request,
            ) from error
        except httpx.InvalidURL as error:
            raise ApiError(
                ErrorClass.BAD_REQUEST,
                self.clean(f"a link that cannot be followed ({error})"),
                code="bad_link",
                charged=True,
            ) from error
        except _NOT_SENDABLE as error:
            raise ApiError(
                ErrorClass.BAD_REQUEST,
                self.clean(f"the request could not be sent ({error})"),
                code="not_sent",
                keep_request=keep_request,
            ) from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise ApiError(
                ErrorClass.TIMEOUT,
                self.clean(f"connection lost ({type(error).__name__}: {error})"),
                code="connection",
                keep_request=keep_request,
            ) from error

    def error_of(self, status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
        """The error that an HTTP answer stands for, with the API's own words.

        Its class comes from :mod:`imagemill.blocks.apis.error_classes`.
        """
        if 300 <= status < 400:
            return self._redirected(status, headers)
        words = words_of(body)
        error_class = class_of_error(self.provider, status, headers, body)
        retry_after_s = retry_after_seconds(headers)
        if error_class is ErrorClass.RATE_LIMITED and retry_after_s is None:
            retry_after_s = seconds_in_words(words)
        code = error_code(body) if self.names_errors else None
        return ApiError(
            error_class,
            self.clean(f"HTTP {status}: {words or 'no reason given'}"),
            code=self.clean(code)[:60] if code else f"http_{status}",
            retry_after_s=retry_after_s,
        )

    def _redirected(self, status: int, headers: Mapping[str, str]) -> ApiError:
        """The error for an API that lives elsewhere: a request with a key is not sent on."""
        place = joined(f"{self.base_url}/", headers.get("location", "")).partition("?")[0]
        return ApiError(
            ErrorClass.BAD_REQUEST,
            self.clean(f"HTTP {status}: {self.base_url} redirects to {place[:200]}, which is not followed"),
            code="redirected",
        )

    async def look_up(self, http: httpx.AsyncClient) -> str:
        """Ask, free of charge, whether key and model are good; what the API said, in a few words.

        Raises:
            ApiError: with the class ``unauthorized`` or ``out_of_budget`` where nothing could be bought, with
                the code ``no_such_model`` where it has none of this name, or with any other where it does not
                say.
        """
        del http
        raise ApiError(ErrorClass.BAD_REQUEST, "it has no question that is free of charge", code="not_asked")

    async def question(self, http: httpx.AsyncClient, url: str, *, json: object = None) -> Any:  # noqa: ANN401
        """The answer to a free question, as JSON; posted where it has a body.

        Raises:
            ApiError: there is none; an unknown model is told from an unknown path at the vendor itself.
        """
        method = "GET" if json is None else "POST"
        status, headers, body = await fetch(http, method, url, headers=self.headers, json=json)
        if status == 200:
            return _json_of(body)
        error = self.error_of(status, headers, body)
        if status == 404 and self.base_url == self.default_base_url:
            error.code = NO_SUCH_MODEL
        raise error

    def no_such_model(self) -> ApiError:
        """The error for a model that the vendor says it does not have."""
        message = f"{self.provider} has no model {self.model!r}: choose another by --model"
        return ApiError(ErrorClass.BAD_REQUEST, self.clean(message), code=NO_SUCH_MODEL)


def _json_of(body: bytes) -> Any:  # noqa: ANN401 - whatever the API sent
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise unexpected_answer(body) from None
