"""An account at a vendor: its key and address, the model in use, and which fields that model takes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, field_validator

from imagemill.errors import InputError, printable
from imagemill.jobs import Job
from imagemill.models.listing import find_profile, listed_models
from imagemill.models.price_rules import Price
from imagemill.models.profile import Profile, Sizes, Steps
from imagemill.secrets import clean_key, keep_secret, masked, refuse_password

_VERSION = re.compile(r"/v[0-9]+[a-z0-9]*(/|$)")


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Widths and heights, in pixels, and steps that an API of your own takes.

    The vendors' models have profiles instead: see :mod:`imagemill.models`.
    """

    smallest: int
    largest: int
    multiple: int
    most_steps: int


class Account(Block):
    """An account at a vendor of images."""

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

    _profile: Profile | None = PrivateAttr(default=None)
    _published_price: Price | None = PrivateAttr(default=None)

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
    def from_environment(cls, **settings: Any) -> Self:  # noqa: ANN401 - the block's own fields
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
    def headers(self) -> dict[str, str]:
        """The headers of every request to the API itself; image links never get them."""
        name, value = self.authorization
        return {name: value.format(key=self.api_key.get_secret_value())}

    def clean(self, text: str) -> str:
        """Text that an API sent, fit for a log: bounded, no control characters, never the key."""
        return masked(printable(text[:4000]))[:1000]
