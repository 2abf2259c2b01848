"""The small interface behind which every image API stands, and what all of them share.

A vendor's module says where to post (:meth:`ImageApi.endpoint`), what (:meth:`ImageApi.body`), and where the
image is in the answer (:meth:`ImageApi.read`); :mod:`imagemill.blocks.apis.queued` adds submitting and
polling.
"""

from __future__ import annotations

import os
import re
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, ClassVar, NamedTuple, Protocol
from urllib.parse import urljoin, urlsplit

import anyio
import httpx
import orjson
from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_validator

from imagemill.blocks.apis.error_classes import class_of_error, error_code
from imagemill.blocks.apis.exchange import (
    MAX_LINK_LENGTH,
    UNKNOWN_ANSWER,
    decoded,
    fetch,
    is_link,
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
    printable,
)
from imagemill.jobs import CostSource, Job
from imagemill.models.listing import find_profile, listed_models
from imagemill.models.price_rules import Price
from imagemill.models.profile import Profile, Sizes, Steps
from imagemill.rate_limit_headers import (
    retry_after_seconds,
    seconds_in_words,
)
from imagemill.secrets import clean_key, keep_secret, masked, refuse_password
from imagemill.usd import exact

MOST_REDIRECTS = 3
"""How often an image link may lead on to another."""

_MOST_AMOUNT = 1e12
"""Larger counts of tokens or sums of money are not believed."""

_MOST_TOLD = 5_000
"""Charges that are remembered; no more requests than that are ever on their way."""

NO_SUCH_MODEL = "no_such_model"

IMAGE_HOST_REFUSED = "image_host_refused"
"""The code of the error for an image link to a host that is not trusted."""

PAID = "paid:"
"""Stands before a request id whose charge is booked: whoever asks about it later does not book it again."""

_VERSION = re.compile(r"/v[0-9]+[a-z0-9]*(/|$)")

_NOT_SENDABLE = (httpx.LocalProtocolError, httpx.UnsupportedProtocol, UnicodeEncodeError)
"""What is wrong with a request itself, such as a header of characters that no header has: it never leaves."""


class Accepted(Protocol):
    """Called with what names a request for later looks; returns once it is stored.

    ``charged_usd`` is what the API charges for it, where it has made the image already.
    """

    def __call__(self, request_id: str, charged_usd: float | None = None, /) -> Awaitable[None]: ...


class Charge(NamedTuple):
    """What an API charges for an image, in USD, and how that is known."""

    usd: float
    source: CostSource


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """An image's bytes as the API gave them, not looked at yet.

    ``cost_usd`` is what the API charges for it, in USD; nothing where that was known, and said, before.
    """

    content: bytes
    cost_usd: float
    flagged: bool = False
    request_id: str | None = None
    cost_source: CostSource = CostSource.LIST


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

    # A key that cannot be one is not repeated.
    model_config = ConfigDict(hide_input_in_errors=True)

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
    version: ClassVar[str] = "/v1"
    notice: ClassVar[str] = ""  # what a person should know before a run, in one sentence
    names_errors: ClassVar[bool] = False  # whether error bodies have codes that tell more than the status
    vendor_image_hosts: ClassVar[tuple[str, ...]] = ()

    api_key: SecretStr = Field(description="The account's API key.")
    base_url: str = Field(
        default="",
        description="The API's address; the vendor's own path follows, below its version if the address has"
        " one. Empty: the vendor's.",
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

    # Links and request ids of this process, and when they became known, in Unix seconds.
    _known_here: dict[str, float] = PrivateAttr(default_factory=dict)
    _profile: Profile | None = PrivateAttr(default=None)
    _published_price: Price | None = PrivateAttr(default=None)
    _told_usd: dict[str, float] = PrivateAttr(default_factory=dict)

    @field_validator("api_key")
    @classmethod
    def _check_key(cls, value: SecretStr) -> SecretStr:
        key = clean_key(value.get_secret_value())
        keep_secret(key)
        return SecretStr(key)

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        if value and (urlsplit(value).scheme not in {"http", "https"} or not urlsplit(value).hostname):
            raise ValueError(f"{value!r} is not an http or https address")
        refuse_password(value)
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
        try:
            key = clean_key(os.environ.get(cls.key_variable, ""))
        except ValueError as error:
            raise InputError(f"The environment variable {cls.key_variable}: {error}.") from error
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
        """The price rule in a few words, and when and where it was noted, on a second line."""
        if self.usd_per_image is not None:
            return f"{exact(self.usd_per_image):f} USD per image, as you set it"
        if self.usd_per_megapixel is not None:
            return f"{exact(self.usd_per_megapixel):f} USD per megapixel, as you set it"
        known = self._published_price or self.profile.price
        if known is None:
            return "unknown"
        doubt = "" if known.confirmed else ", not confirmed"
        return f"{known}\n({known.source}; {known.noted}{doubt})"

    def price_usd(self, width: int, height: int, steps: int | None = None, params: str = "") -> float:
        """As :meth:`price`, as a float, and 0 where the price is unknown."""
        return float(self.price(width, height, steps, params) or 0)

    def charge(self, job: Job) -> Charge:
        """What the image just made for a job costs: as the API told with it, or else by its price."""
        reported = self._told_usd.get(job.key)
        return self.expected_charge(job) if reported is None else Charge(reported, CostSource.TOLD)

    def expected_charge(self, job: Job) -> Charge:
        """What an image for a job costs by its price, before the API said anything."""
        price = self.price(job.width, job.height, job.steps, job.params)
        return Charge(float(price or 0), CostSource.UNKNOWN if price is None else CostSource.LIST)

    def told_usd(self, headers: Mapping[str, str], answer: Mapping[str, Any], job: Job) -> float | None:
        """What an answer to a generation request says the image is charged at, in USD; None where nothing."""
        del headers, answer, job
        return None

    def address(self, path: str) -> str:
        """A path below the API's version, which goes in between unless the base URL has one."""
        return f"{self.base_url}{'' if _VERSION.search(self.base_url) else self.version}{path}"

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
            seed=job.take_seed,
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

    def payload(self, job: Job) -> object:
        """What is posted for a generation request: the body, unless the API wants it wrapped."""
        return self.body(job)

    def begin(self, run_id: str) -> None:
        """A run is about to send requests: an API that lets its client name them names them after it."""

    @abstractmethod
    def read(self, answer: dict[str, Any]) -> ImageSource | None:
        """Where an answer has its image; None while the image is still being made.

        Raises:
            ApiError: the answer says that there will be none, or is of an unknown shape.
        """

    def source_in(self, answer: dict[str, Any]) -> ImageSource | None:
        """What :meth:`read` finds; an answer that makes it fail has an unknown shape.

        Raises:
            ApiError: as :meth:`read` does; and where the API flagged the image, which is not fetched then.
        """
        try:
            source = self.read(answer)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise unexpected_answer(answer) from None
        if source is not None and source.flagged:
            raise flagged_image()
        return source

    @property
    def picture_model(self) -> str:
        """What makes the picture, as a picture's key has it: vendor, model, and what is set of both."""
        return f"{self.provider}/{self.model}"

    @property
    def lists_requests(self) -> bool:
        """Whether the API lists past requests, so that :meth:`find_lost` may find some."""
        return False

    def name_of(self, job: Job) -> str | None:
        """The id of the job's latest request where it follows from the job; None where the API chooses it."""
        del job
        return None

    def is_paid(self, request_id: str | None) -> bool:
        """Whether this names a request whose image was made, and booked, when the id became known."""
        return request_id is not None and (_is_link(request_id) or request_id.startswith(PAID))

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
        link, charged = job.request_id or "", Charge(0.0, CostSource.LIST)
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
            if not (isinstance(source.text, str) and is_link(source.text)):
                content = await self.content(http, source)
                charged = self.charge(job)
                return GeneratedImage(content, charged.usd, cost_source=charged.source)
            link = joined(f"{self.base_url}/", source.text)
            if len(link) > MAX_LINK_LENGTH:
                raise ApiError(
                    ErrorClass.BAD_REQUEST,
                    f"an image link of {len(link):,} characters",
                    code="bad_link",
                    charged=True,
                )
            self._known_here[link] = time.time()
            charged = self.charge(job)
            await accepted(link, charged.usd)
        content = await self._behind(http, link)
        self._known_here.pop(link, None)
        return GeneratedImage(content, charged.usd, request_id=link, cost_source=charged.source)

    async def _behind(self, http: httpx.AsyncClient, link: str) -> bytes:
        """The bytes behind a link whose image is paid for: any trouble leaves the link to be asked again.

        Only one of an earlier day that has expired is given up.
        """
        try:
            async with self.attempt(keep_request=True):
                return await self.download(http, link)
        except ApiError as error:
            error.charged = False  # it is booked since the link is known
            self._keep_made(error, link)
            raise

    def _keep_made(self, error: ApiError, request_id: str) -> None:
        """An image that is made and cannot be fetched now is asked for again; a new link may only be late."""
        if error.code == IMAGE_HOST_REFUSED:
            error.keep_request = True  # a resume that trusts the host fetches the image
        if error.code == "image_link_expired" and request_id in self._known_here:
            error.error_class, error.code, error.keep_request = ErrorClass.TIMEOUT, "image_link", True
            error.message = error.message.partition(":")[0]

    @asynccontextmanager
    async def _fetching(self, job: Job, request_id: str, accepted: Accepted) -> AsyncIterator[None]:
        """Fetch the image that a request made: while that fails, the request is kept, and not sent anew.

        The image may never be fetched: its charge is booked at once.
        """
        try:
            yield
        except ApiError as error:
            self._keep_made(error, request_id)
            if error.charged and error.keep_request:
                await accepted(f"{PAID}{request_id}", self.charge(job).usd)
            raise
        self._known_here.pop(request_id, None)

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
            http, "POST", self.endpoint(job), headers=self.headers, json=self.payload(job)
        )
        if status not in self.success:
            raise self.error_of(status, headers, body)
        answer = parsed(body)
        self._note_charge(job, self.told_usd(headers, answer, job))
        return answer

    def _note_charge(self, job: Job, told_usd: float | None) -> None:
        """Keep what the API told of a job's latest image; of those that are long over nothing is kept."""
        self._told_usd.pop(job.key, None)
        if told_usd is not None:
            self._told_usd[job.key] = told_usd
        if len(self._told_usd) > _MOST_TOLD:
            del self._told_usd[next(iter(self._told_usd))]

    async def content(self, http: httpx.AsyncClient, source: ImageSource) -> bytes:
        """The bytes of an image, from the answer itself or from behind its link."""
        if not isinstance(source.text, str):
            raise unexpected_answer(source.text)
        if is_link(source.text):
            return await self.download(http, joined(f"{self.base_url}/", source.text))
        return decoded(source.text)

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

    def clean(self, text: str) -> str:
        """Text that an API sent, fit for a log: bounded, no control characters, never the key."""
        return masked(printable(text[:4000]))[:1000]

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

    async def download(self, http: httpx.AsyncClient, link: str) -> bytes:
        """The bytes behind an image link, without the key, from a host that may be trusted with it.

        Redirects are followed as far as each leads to such a host.
        """
        if not self.is_trusted_link(link):
            raise self._untrusted(link)
        words = ""
        for _ in range(1 + MOST_REDIRECTS):
            status, headers, content = await fetch(http, "GET", link)
            if status not in {301, 302, 303, 307, 308} or "location" not in headers:
                break
            link = joined(link, headers["location"])
            if not self.is_trusted_link(link):
                words = f": {self._untrusted(link).message}"
                break
        if status == 200:
            return content
        if status in {401, 403, 404, 410}:
            raise ApiError(
                ErrorClass.INVALID_IMAGE,
                f"the image link answered HTTP {status}: it has expired",
                code="image_link_expired",
                charged=True,
            )
        raise ApiError(
            ErrorClass.TIMEOUT,
            f"the image link answered HTTP {status}{words}",
            code="image_link",
            retry_after_s=retry_after_seconds(headers),
            keep_request=True,
            charged=True,
        )

    def _untrusted(self, link: str) -> ApiError:
        """The error for an image link that is not followed: it names the host, and how to allow it."""
        try:
            parts = urlsplit(link)
            host = parts.hostname if parts.scheme == "https" else None
        except ValueError:
            host = None
        if host:
            advice = (
                f"the image link leads to {host}, which is not a host of {self.provider}: if you trust it,"
                f" allow it with --image-host {host}"
            )
        else:
            advice = f"the image link {link[:200]!r} is not an https address of a host of {self.provider}"
        return ApiError(
            ErrorClass.BAD_REQUEST,
            self.clean(advice),
            code=IMAGE_HOST_REFUSED,
            charged=True,
        )

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


def flagged_image() -> ApiError:
    """The error for an image that the API made and flagged: it is charged, and never kept."""
    return ApiError(ErrorClass.CONTENT_FILTERED, "the API flagged the image", code="flagged", charged=True)


def _is_link(text: object) -> bool:
    return isinstance(text, str) and text.startswith(("http://", "https://"))


def amount_of(value: object) -> float | None:
    """A number that an API sent, also as text; None if it is not one, or is negative or absurdly large."""
    try:
        amount = float(value)  # type: ignore[arg-type] # whatever cannot be converted is refused below
    except (TypeError, ValueError, OverflowError):
        return None
    return amount if 0 <= amount <= _MOST_AMOUNT and not isinstance(value, bool) else None


def joined(base: str, link: str) -> str:
    """A link, absolute or relative to ``base``; as it is where it is no link at all."""
    try:
        return urljoin(base, link)
    except ValueError:
        return link


def _json_of(body: bytes) -> Any:  # noqa: ANN401 - whatever the API sent
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise unexpected_answer(body) from None
