"""Which image API, or which routes, a run buys from."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)

from imagemill.secrets import refuse_password
from imagemill.settings.group import SettingsGroup, wrapped

ROUTE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


class ApiSettings(SettingsGroup):
    """Which image API and model to use."""

    provider: str = Field(
        default="together",
        description="The vendor: together, fal, replicate, bfl, runware, cloudflare, or openai, for OpenAI"
        " and any server that speaks its API. With a block, the block's own vendor counts.",
        json_schema_extra={
            "enum": ["together", "fal", "replicate", "bfl", "openai", "runware", "cloudflare"]
        },
    )
    block: str | None = Field(
        default=None,
        description="A saved image API block, by name or as TYPE/NAME (imagemill-together/main), with key,"
        " address and model. An address or model given here overrides the block's. Without a block, the key"
        " comes from the vendor's usual environment variable.",
    )
    base_url: str | None = Field(
        default=None,
        description="The API's address, if not the vendor's own. The vendor's path is appended: below its"
        " version if the address names a version or, for openai, has any path.",
    )
    model: str | None = Field(
        default=None,
        description="The model, by its name at the vendor; imagemill models lists them. The default is the"
        " vendor's FLUX.1 [schnell] where it has one.",
    )
    account: str | None = Field(
        default=None,
        description="The account's id, where the vendor's address has one: Cloudflare's, by default from"
        " CLOUDFLARE_ACCOUNT_ID.",
    )
    usd_per_image: float | None = Field(
        default=None,
        ge=0,
        description="Your price in USD per image, if it differs from the list price or that is unknown.",
    )
    usd_per_megapixel: float | None = Field(
        default=None,
        ge=0,
        description="Your price in USD per megapixel, if it differs from the list price or that is unknown.",
    )
    request_timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="Time limit for one attempt at an image, in seconds, without time in the vendor's queue;"
        " by default 60, or the block's own.",
    )
    queue_timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=172_800,
        description="Time limit for a request's wait in the vendor's queue, in seconds; by default 3600, or"
        " the block's own.",
    )
    image_hosts: list[str] = Field(
        default_factory=list,
        description="Further hosts that image links may point to, beside the vendor's own.",
        examples=[["cdn.example.com"]],
    )

    @field_validator("base_url")
    @classmethod
    def _without_password(cls, base_url: str | None) -> str | None:
        if base_url is not None:
            refuse_password(base_url)
        return base_url


class RouteSettings(ApiSettings):
    """One of several accounts that a run buys from."""

    name: str | None = Field(
        default=None,
        description="What the run's records call the route; by default its vendor, with a number from the"
        " second on.",
        json_schema_extra={"pattern": f"^({ROUTE_NAME.pattern})$"},
    )
    family: str | None = Field(
        default=None,
        description="The model family, such as flux.1-schnell, if imagemill does not know it from the model.",
    )
    concurrency: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="Concurrent requests here; by default as the run's limits say."
    )
    max_images_per_minute: float | None = Field(
        default=None, gt=0, description="Never request more images per minute than this here."
    )
    max_cost_usd: float | None = Field(
        default=None, ge=0, description="Take no more jobs here before they cost more than this."
    )

    @field_validator("name", "family")
    @classmethod
    def _safe_name(cls, name: str | None) -> str | None:
        if name is not None and not ROUTE_NAME.fullmatch(name):
            raise ValueError(f"{name[:60]!r} is not a name: use letters, digits, '.', '_' and '-'")
        return name


def _as_route(value: object) -> object:
    """A vendor's name, or the settings of an API, as those of a route."""
    if isinstance(value, ApiSettings) and not isinstance(value, RouteSettings):
        return value.model_dump()
    return {"provider": value} if isinstance(value, str) else value


OneApi = Annotated[ApiSettings, wrapped("provider")]
_ONE_API: TypeAdapter[ApiSettings] = TypeAdapter(OneApi)
_ROUTES: TypeAdapter[list[RouteSettings]] = TypeAdapter(
    Annotated[list[Annotated[RouteSettings, BeforeValidator(_as_route)]], Field(min_length=1, max_length=20)]
)


def _one_or_several(value: Any, _: ValidatorFunctionWrapHandler) -> ApiSettings | list[RouteSettings]:  # noqa: ANN401
    """Errors name the field at fault, which those of a union would not."""
    return (
        _ROUTES.validate_python(value)
        if isinstance(value, (list, tuple))
        else _ONE_API.validate_python(value)
    )


Api = Annotated[ApiSettings | list[RouteSettings], WrapValidator(_one_or_several)]
