"""The small interface behind which every image API stands, and what all of them share."""

from __future__ import annotations

import ipaddress
import math
import os
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias
from urllib.parse import urlsplit

import anyio
import httpx
import orjson
from prefect.blocks.core import Block
from pydantic import Field, SecretStr, field_validator

from blocks.errors import (
    ApiError,
    ErrorClass,
    InputError,
    class_of_status,
    printable,
    retry_after_seconds,
)
from blocks.jobs import Job

MAX_ANSWER_BYTES = 96 * 1024 * 1024
"""No answer and no image may be larger; a 2048 x 2048 PNG is at most some 16 MB."""

Accepted: TypeAlias = Callable[[str], Awaitable[None]]
"""Called with a queued API's request id; returns once the id is stored."""


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """An image's bytes as the API gave them, not looked at yet, and what the API charges for it, in USD."""

    content: bytes
    cost_usd: float
    flagged: bool = False
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Widths and heights, in pixels, and steps that an API takes."""

    smallest: int
    largest: int
    multiple: int
    most_steps: int

    def refusal(self, width: int, height: int, steps: int) -> str | None:
        """Why the API would refuse this; None where it would not."""
        for name, value in (("width", width), ("height", height)):
            if not self.smallest <= value <= self.largest:
                return f"{name} {value} is not between {self.smallest} and {self.largest}"
            if value % self.multiple:
                return f"{name} {value} is not a multiple of {self.multiple}"
        if not 1 <= steps <= self.most_steps:
            return f"steps {steps} is not between 1 and {self.most_steps}"
        return None


class ImageApi(Block):
    """An account at a vendor of images. One instance serves a whole run, from one event loop."""

    _block_schema_capabilities: ClassVar[list[str]] = ["generate-image"]

    provider: ClassVar[str]
    key_variable: ClassVar[str]
    sizes: ClassVar[SizeLimits]
    default_base_url: ClassVar[str]
    default_model: ClassVar[str]
    default_usd_per_megapixel: ClassVar[float]
    typical_latency_s: ClassVar[float] = 0.8
    largest_seed: ClassVar[int] = 2**32 - 1
    vendor_image_hosts: ClassVar[tuple[str, ...]] = ()

    api_key: SecretStr = Field(description="The account's API key.")
    base_url: str = Field(
        default="",
        description="Scheme, host and any prefix; the vendor's own path follows. Empty: the vendor's.",
        examples=["http://127.0.0.1:8700"],
    )
    model: str = Field(default="", description="The model's name at this vendor. Empty: FLUX.1 [schnell].")
    usd_per_megapixel: float | None = Field(
        default=None,
        ge=0,
        description="Your price, in USD a megapixel, where it is not the list price.",
    )
    request_timeout_s: float = Field(
        default=60.0, gt=0, description="How long one attempt at an image may take, in seconds."
    )
    image_hosts: list[str] = Field(
        default_factory=list,
        description="Further hosts that image links may point to, beside the vendor's own.",
    )

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        if value and (urlsplit(value).scheme not in {"http", "https"} or not urlsplit(value).hostname):
            raise ValueError(f"{value!r} is not an http or https address")
        return value.rstrip("/")

    def model_post_init(self, context: object, /) -> None:
        """Fill in the vendor's own values."""
        super().model_post_init(context)
        self.base_url = self.base_url or self.default_base_url
        self.model = self.model or self.default_model

    @classmethod
    def from_environment(cls, **settings: Any) -> ImageApi:  # noqa: ANN401 - the block's own fields
        """The account whose key lies in the vendor's usual environment variable.

        Raises:
            InputError: the variable is not set.
        """
        key = os.environ.get(cls.key_variable, "").strip()
        if not key:
            raise InputError(
                f"There is no API key for {cls.provider}: set the environment variable"
                f" {cls.key_variable} to your account's key."
            )
        return cls(api_key=SecretStr(key), **settings)

    def price_usd(self, width: int, height: int) -> float:
        """What one image of this size costs, in USD."""
        rate = self.default_usd_per_megapixel if self.usd_per_megapixel is None else self.usd_per_megapixel
        return rate * self.billed_megapixels(width, height)

    def billed_megapixels(self, width: int, height: int) -> float:
        """Megapixels that the vendor bills for one image."""
        return width * height / 1e6

    @abstractmethod
    async def generate(self, http: httpx.AsyncClient, job: Job, accepted: Accepted) -> GeneratedImage:
        """Make one image. A job with a ``request_id`` is asked about first and not sent again.

        Raises:
            ApiError: there is no image, with the class of error that decides what follows.
        """

    def error_of(self, status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
        """The error that an HTTP answer stands for, with the API's own words."""
        retry_after_s = retry_after_seconds(headers)
        error_class = class_of_status(status, has_retry_after=retry_after_s is not None)
        return ApiError(
            error_class,
            self.clean(f"HTTP {status}: {words_of(body) or 'no reason given'}"),
            code=f"http_{status}",
            retry_after_s=retry_after_s,
        )

    def clean(self, text: str) -> str:
        """Text that an API sent, fit for a log: bounded, no control characters, never the key."""
        text = text[:4000].replace(self.api_key.get_secret_value(), "***")
        return printable(text)[:1000]

    @asynccontextmanager
    async def attempt(self, *, keep_request: bool = False) -> AsyncIterator[None]:
        """One attempt: at most ``request_timeout_s`` long, network trouble turned into a timeout error."""
        try:
            with anyio.fail_after(self.request_timeout_s):
                yield
        except (TimeoutError, httpx.TimeoutException) as error:
            raise ApiError(
                ErrorClass.TIMEOUT,
                f"no answer within {self.request_timeout_s:g} s",
                code="timeout",
                keep_request=keep_request,
            ) from error
        except httpx.TransportError as error:
            raise ApiError(
                ErrorClass.TIMEOUT,
                self.clean(f"connection lost ({type(error).__name__}: {error})"),
                code="connection",
                keep_request=keep_request,
            ) from error

    async def download(self, http: httpx.AsyncClient, link: str) -> bytes:
        """The bytes behind an image link, without the key, from a host that may be trusted with it."""
        if not self._may_fetch(link):
            raise ApiError(
                ErrorClass.BAD_REQUEST,
                self.clean(f"the image link points to {urlsplit(link).hostname!r}, not a host of the vendor"),
                code="image_host_refused",
                charged=True,
            )
        status, headers, content = await fetch(http, "GET", link)
        if status != 200:
            raise ApiError(
                ErrorClass.TIMEOUT,
                f"the image link answered HTTP {status}",
                code="image_link",
                retry_after_s=retry_after_seconds(headers),
                keep_request=True,
                charged=True,
            )
        return content

    def _may_fetch(self, link: str) -> bool:
        try:
            parts, base = urlsplit(link), urlsplit(self.base_url)
            same_place = (parts.hostname, parts.port) == (base.hostname, base.port)
        except ValueError:
            return False
        host = parts.hostname
        if parts.scheme not in {"http", "https"} or not host:
            return False
        if same_place or (_is_loopback(host) and _is_loopback(base.hostname or "")):
            return True
        known = (*self.vendor_image_hosts, *self.image_hosts)
        return parts.scheme == "https" and any(host == h or host.endswith(f".{h}") for h in known)


async def fetch(
    http: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    json: Mapping[str, object] | None = None,
) -> tuple[int, httpx.Headers, bytes]:
    """One HTTP exchange, its body bounded: status, headers, body. Redirects are not followed."""
    content = None
    sent = {"accept-encoding": "identity", **(headers or {})}
    if json is not None:
        content = orjson.dumps(json)
        sent["content-type"] = "application/json"
    async with http.stream(method, url, headers=sent, content=content, follow_redirects=False) as answer:
        chunks: list[bytes] = []
        held = 0
        async for chunk in answer.aiter_bytes():
            chunks.append(chunk)
            held += len(chunk)
            if held > MAX_ANSWER_BYTES:
                raise ApiError(
                    ErrorClass.INVALID_IMAGE,
                    f"the answer is larger than {MAX_ANSWER_BYTES // 2**20} MB",
                    code="answer_too_large",
                )
        return answer.status_code, answer.headers, b"".join(chunks)


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object of an answer that should be one.

    Raises:
        ApiError: it is something else, such as a proxy's HTML page with status 200.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise unexpected_answer(body)
    return document


def unexpected_answer(body: bytes) -> ApiError:
    """The error for an answer of another shape than the vendor documents."""
    start = printable(body[:80].decode("utf-8", "replace"))
    return ApiError(ErrorClass.SERVER_ERROR, f"an answer of an unknown shape: {start}", code="unknown_answer")


def words_of(body: bytes) -> str:
    """The sentence in an error body, whichever of the vendors' shapes it has."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body[:300].decode("utf-8", "replace").strip()
    found = document
    if isinstance(document, dict):
        found = document.get("error") or document.get("detail") or document.get("message") or document
    if isinstance(found, dict):
        found = found.get("message") or found
    if isinstance(found, list):
        found = "; ".join(
            f"{'.'.join(map(str, item.get('loc', [])))}: {item.get('msg', '')}"
            if isinstance(item, dict)
            else str(item)
            for item in found[:5]
        )
    return found if isinstance(found, str) else orjson.dumps(found).decode()[:300]


def whole_megapixels(width: int, height: int) -> int:
    """Megapixels, rounded up."""
    return math.ceil(width * height / 1e6)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
