"""The small interface behind which every image API stands, and what all of them share.

A vendor's module says where to post (:meth:`ImageApi.endpoint`), what (:meth:`ImageApi.body`), and where the
image is in the answer (:meth:`ImageApi.read`); :mod:`imagemill.blocks.apis.queued` adds submitting and
polling.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, ClassVar, Protocol
from urllib.parse import urlsplit

import anyio
import httpx
from prefect.blocks.core import Block
from pydantic import Field, PrivateAttr, SecretStr, field_validator

from imagemill.blocks.apis.exchange import (
    UNKNOWN_ANSWER,
    decoded,
    fetch,
    is_loopback,
    parsed,
    text_at,
    unexpected_answer,
    words_of,
)
from imagemill.errors import (
    ApiError,
    ErrorClass,
    InputError,
    class_of_status,
    printable,
)
from imagemill.jobs import Job
from imagemill.models.listing import find_profile, listed_models
from imagemill.models.prices import Price, exact
from imagemill.models.profile import Profile, Sizes, Steps
from imagemill.rate_limit_headers import (
    retry_after_seconds,
    seconds_in_words,
)


class Accepted(Protocol):
    """Called with what names a request for later looks; returns once it is stored.

    ``charged_usd`` is what the API charges for it, where it has made the image already.
    """

    def __call__(self, request_id: str, charged_usd: float | None = None, /) -> Awaitable[None]: ...


MAX_LINK_LENGTH = 8_000
"""No image link that is kept may be longer; signed ones have some hundred characters."""


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """An image's bytes as the API gave them, not looked at yet.

    ``cost_usd`` is what the API charges for it, in USD; nothing where that was known, and said, before.
    """

    content: bytes
    cost_usd: float
    flagged: bool = False
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where an answer has the image: an http(s) link, a data URI or bare base64."""

    text: str
    flagged: bool = False

    @classmethod
    def of_list(cls, answer: dict[str, Any]) -> ImageSource:
        """The image of ``{"data": [{"b64_json" or "url": ...}]}``, the shape that OpenAI made common.

        Raises:
            ApiError: the answer has another shape.
        """
        found = text_at(answer, "data", 0, "b64_json") or text_at(answer, "data", 0, "url")
        if found is None:
            raise unexpected_answer(answer)
        return cls(found)


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Widths and heights, in pixels, and steps that an API of your own takes.

    The vendors' models have profiles instead: see :mod:`imagemill.models`.
    """

    smallest: int
    largest: int
    multiple: int
    most_steps: int


class ImageApi(Block):
    """An account at a vendor of images. One instance serves a whole run, from one event loop."""

    _block_schema_capabilities: ClassVar[list[str]] = ["generate-image"]

    provider: ClassVar[str]
    key_variable: ClassVar[str]
    sizes: ClassVar[SizeLimits] = SizeLimits(smallest=64, largest=4096, multiple=1, most_steps=50)
    default_base_url: ClassVar[str]
    default_model: ClassVar[str]
    authorization: ClassVar[tuple[str, str]] = ("authorization", "Bearer {key}")
    formats: ClassVar[frozenset[str]] = frozenset({"png", "jpeg"})
    uses_negative_prompt: ClassVar[bool] = False
    success: ClassVar[frozenset[int]] = frozenset({200})
    typical_latency_s: ClassVar[float] = 0.8
    first_per_s: ClassVar[float] = 20.0
    rate_moves: ClassVar[bool] = False
    largest_seed: ClassVar[int] = 2**32 - 1
    vendor_image_hosts: ClassVar[tuple[str, ...]] = ()

    api_key: SecretStr = Field(description="The account's API key.")
    base_url: str = Field(
        default="",
        description="Scheme, host and any prefix; the vendor's own path follows. Empty: the vendor's.",
        examples=["http://127.0.0.1:8700"],
    )
    model: str = Field(default="", description="The model's name at this vendor. Empty: FLUX.1 [schnell].")
    usd_per_image: float | None = Field(
        default=None, ge=0, description="Your price, in USD an image, where it is not the list price."
    )
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

    _new_links: set[str] = PrivateAttr(default_factory=set)
    _profile: Profile | None = PrivateAttr(default=None)
    _published_price: Price | None = PrivateAttr(default=None)

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

    @property
    def profile(self) -> Profile:
        """What the model takes and costs: as listed, as its vendor published it, or as it is assumed."""
        if self._profile is None or self._profile.name != self.model:
            self._profile = find_profile(self.provider, self.model) or self._assumed_profile()
        return self._profile

    def learn(self, profile: Profile | None, price: Price | None) -> None:
        """Take what the vendor itself published of the model, which wins over what is listed."""
        self._profile = profile or self._profile
        self._published_price = price

    @property
    def published_price(self) -> Price | None:
        """The price that the vendor itself published, where it was asked."""
        return self._published_price

    def _assumed_profile(self) -> Profile:
        listed = listed_models(self.provider)
        note = "Not listed: its fields are assumed, and its price is not known."
        if self.default_model in listed:
            usual = listed[self.default_model]
            return replace(
                usual,
                name=self.model,
                title=self.model,
                price=None,
                open=True,
                confirmed=False,
                origin="assumed",
                source=f"as {usual.title}",
                note=note,
            )
        names = {"prompt": "prompt", "steps": "steps", "seed": "seed"}
        if self.uses_negative_prompt:
            names["negative_prompt"] = "negative_prompt"
        sizes = self.sizes
        return Profile(
            vendor=self.provider,
            name=self.model,
            title=self.model,
            sizes=Sizes(sizes.smallest, sizes.largest, sizes.multiple),
            steps=Steps(1, sizes.most_steps, min(4, sizes.most_steps)),
            names=names,
            formats={name: name for name in self.formats},
            open=True,
            origin="assumed",
            source=f"the class {type(self).__name__}",
            note=note,
        )

    @property
    def image_formats(self) -> frozenset[str]:
        """The formats that the model makes: png, jpeg, webp."""
        return frozenset(self.profile.formats)

    def price(self, width: int, height: int, steps: int | None = None, params: str = "") -> Decimal | None:
        """What one image costs, in USD: the block's own price, or the list price; None where unknown."""
        if self.usd_per_image is not None:
            return exact(self.usd_per_image)
        if self.usd_per_megapixel is not None:
            return exact(Decimal(str(self.usd_per_megapixel)) * width * height / 1_000_000)
        known = self._published_price or self.profile.price
        return known.of(width, height, steps, params) if known else None

    @property
    def price_in_words(self) -> str:
        """The price rule in a few words, and where it is from."""
        if self.usd_per_image is not None:
            return f"{exact(self.usd_per_image):f} USD per image, as you set it"
        if self.usd_per_megapixel is not None:
            return f"{exact(self.usd_per_megapixel):f} USD per megapixel, as you set it"
        known = self._published_price or self.profile.price
        if known is None:
            return "unknown"
        return f"{known}; {known.source}, {known.noted}{'' if known.confirmed else ', not confirmed'}"

    def price_usd(self, width: int, height: int, steps: int | None = None, params: str = "") -> float:
        """As :meth:`price`, as a float, and 0 where the price is unknown."""
        return float(self.price(width, height, steps, params) or 0)

    def refusal(self, width: int, height: int, steps: int) -> str | None:
        """Why the API would refuse a picture of this size, in pixels; None where it would not."""
        return self.profile.refusal(width, height, steps)

    def fields(self, job: Job) -> dict[str, Any]:
        """The model's own fields for a job, its params included."""
        return self.profile.fields(
            prompt=job.prompt,
            negative_prompt=job.negative_prompt,
            width=job.width,
            height=job.height,
            steps=job.steps,
            seed=job.seed,
            image_format=job.format,
            params=job.params,
        )

    @property
    def queues(self) -> bool:
        """Whether the API refuses nothing, but queues what is too much and reports each request's state."""
        return False

    @abstractmethod
    def endpoint(self, job: Job) -> str:
        """The address that a generation request is posted to."""

    @abstractmethod
    def body(self, job: Job) -> dict[str, Any]:
        """The JSON body of a generation request."""

    @abstractmethod
    def read(self, answer: dict[str, Any]) -> ImageSource | None:
        """Where an answer has its image; None while the image is still being made.

        Raises:
            ApiError: the answer says that there will be none, or is of an unknown shape.
        """

    def source_in(self, answer: dict[str, Any]) -> ImageSource | None:
        """What :meth:`read` finds; an answer that it stumbles over is one of an unknown shape."""
        try:
            return self.read(answer)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise unexpected_answer(answer) from None

    @property
    def lists_requests(self) -> bool:
        """Whether the API lists past requests, so that :meth:`find_lost` may find some."""
        return False

    def is_paid(self, request_id: str | None) -> bool:
        """Whether this names a request whose image was made, and booked, when the id became known."""
        return request_id is not None and _is_link(request_id)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every request to the API itself; image links never get them."""
        name, value = self.authorization
        return {name: value.format(key=self.api_key.get_secret_value())}

    async def generate(
        self,
        http: httpx.AsyncClient,
        job: Job,
        accepted: Accepted,
    ) -> GeneratedImage:
        """Make one image. A job with a ``request_id`` is asked about first and not sent again.

        Where the answer is a link, the image is made and charged: the link is the job's request id from
        then on, and trouble with it asks the link again, not for another image.

        Raises:
            ApiError: there is no image, with the class of error that decides what follows.
        """
        link, flagged = job.request_id or "", False
        if not _is_link(link):
            try:
                async with self.attempt():
                    answer = await self.post(http, job)
                    source = self.source_in(answer)
                    if source is None:
                        raise unexpected_answer(answer)
            except ApiError as error:
                error.doubtful = error.doubtful or error.code == UNKNOWN_ANSWER
                raise
            cost_usd, flagged = self.price_usd(job.width, job.height, job.steps, job.params), source.flagged
            if not _is_link(source.text):
                return GeneratedImage(await self.content(http, source), cost_usd, flagged=flagged)
            link = source.text
            if len(link) > MAX_LINK_LENGTH:
                raise ApiError(
                    ErrorClass.BAD_REQUEST,
                    f"an image link of {len(link):,} characters",
                    code="bad_link",
                    charged=True,
                )
            self._new_links.add(link)
            await accepted(link, cost_usd)
        content = await self._behind(http, link)
        self._new_links.discard(link)
        return GeneratedImage(content, 0.0, flagged=flagged, request_id=link)

    async def _behind(self, http: httpx.AsyncClient, link: str) -> bytes:
        """The bytes behind a link whose image is paid for: any trouble leaves the link to be asked again.

        Only one of an earlier day that has expired is given up.
        """
        try:
            async with self.attempt(keep_request=True):
                return await self.download(http, link)
        except ApiError as error:
            error.charged = False  # it is booked since the link is known
            if error.code == "image_link_expired" and link in self._new_links:
                error.error_class, error.code, error.keep_request = ErrorClass.TIMEOUT, "image_link", True
                error.message = error.message.partition(":")[0]
            raise

    async def find_lost(
        self,
        http: httpx.AsyncClient,  # noqa: ARG002 - an API that keeps no list of requests is not asked
        jobs: Sequence[Job],  # noqa: ARG002
        known: Collection[str] = (),  # noqa: ARG002
    ) -> AsyncIterator[tuple[Job, str]]:
        """Requests for these jobs that the API took, and whose answer nobody got: jobs and request ids.

        ``known`` are the ids of requests that were answered.

        Raises:
            ApiError: the API does not tell.
        """
        none: tuple[tuple[Job, str], ...] = ()
        for found in none:
            yield found

    async def post(self, http: httpx.AsyncClient, job: Job) -> dict[str, Any]:
        """Send a generation request; its answer, where the API took it."""
        status, headers, body = await fetch(
            http, "POST", self.endpoint(job), headers=self.headers, json=self.body(job)
        )
        if status not in self.success:
            raise self.error_of(status, headers, body)
        return parsed(body)

    async def content(self, http: httpx.AsyncClient, source: ImageSource) -> bytes:
        """The bytes of an image, from the answer itself or from behind its link."""
        if not isinstance(source.text, str):
            raise unexpected_answer(source.text)
        if _is_link(source.text):
            return await self.download(http, source.text)
        return decoded(source.text)

    def error_of(self, status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
        """The error that an HTTP answer stands for, with the API's own words."""
        retry_after_s = retry_after_seconds(headers)
        words = words_of(body)
        error_class = class_of_status(status, has_retry_after=retry_after_s is not None)
        if error_class is ErrorClass.RATE_LIMITED and retry_after_s is None:
            retry_after_s = seconds_in_words(words)
        return ApiError(
            error_class,
            self.clean(f"HTTP {status}: {words or 'no reason given'}"),
            code=f"http_{status}",
            retry_after_s=retry_after_s,
        )

    def clean(self, text: str) -> str:
        """Text that an API sent, fit for a log: bounded, no control characters, never the key."""
        text = text[:4000].replace(self.api_key.get_secret_value(), "***")
        return printable(text)[:1000]

    @asynccontextmanager
    async def attempt(self, *, keep_request: bool = False) -> AsyncIterator[anyio.CancelScope]:
        """One attempt: at most ``request_timeout_s`` long, network trouble turned into a timeout error.

        The deadline of the scope that it gives may be moved.
        """
        try:
            with anyio.fail_after(self.request_timeout_s) as scope:
                yield scope
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
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise ApiError(
                ErrorClass.TIMEOUT,
                self.clean(f"connection lost ({type(error).__name__}: {error})"),
                code="connection",
                keep_request=keep_request,
            ) from error

    async def download(self, http: httpx.AsyncClient, link: str) -> bytes:
        """The bytes behind an image link, without the key, from a host that may be trusted with it."""
        if not self.is_trusted_link(link):
            raise ApiError(
                ErrorClass.BAD_REQUEST,
                self.clean(f"the image link {link[:200]!r} does not point to a host of the vendor"),
                code="image_host_refused",
                charged=True,
            )
        status, headers, content = await fetch(http, "GET", link)
        if status in {401, 403, 404, 410}:
            raise ApiError(
                ErrorClass.INVALID_IMAGE,
                f"the image link answered HTTP {status}: it has expired",
                code="image_link_expired",
                charged=True,
            )
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

    def is_own_address(self, url: str) -> bool:
        """Whether a URL leads to the host and port that requests are sent to, or both are loopback."""
        try:
            parts, base = urlsplit(url), urlsplit(self.base_url)
            same_place = (parts.hostname, parts.port) == (base.hostname, base.port)
        except ValueError:
            return False
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            return False
        if base.scheme == "https" and parts.scheme != "https":
            return False  # the key would go there in the clear
        return same_place or (is_loopback(parts.hostname) and is_loopback(base.hostname or ""))

    def is_trusted_link(self, link: str) -> bool:
        """Whether an image link leads to the API itself, or over https to a host that is known."""
        if self.is_own_address(link):
            return True
        try:
            parts = urlsplit(link)
            host, _ = parts.hostname or "", parts.port  # a port that is none is refused here
        except ValueError:
            return False
        known = (*self.vendor_image_hosts, *self.image_hosts)
        return parts.scheme == "https" and any(host == h or host.endswith(f".{h}") for h in known)


def _is_link(text: object) -> bool:
    return isinstance(text, str) and text.startswith(("http://", "https://"))
