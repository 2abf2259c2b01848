"""Loads the image API, the job store and the S3 credentials that the settings name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import boto3
import httpx
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from pydantic import SecretStr, ValidationError

from imagemill.blocks.apis import PROVIDERS, ImageApi
from imagemill.blocks.store_servers import PostgresServer, RedisServer, StoreServer
from imagemill.errors import InputError
from imagemill.s3.connection import own_session
from imagemill.s3.rotation import read_again
from imagemill.settings import ApiSettings, ExecutionSettings, OutputSettings, input_error

_OVERRIDES = {
    "base_url",
    "model",
    "account",
    "request_timeout_s",
    "queue_timeout_s",
    "usd_per_image",
    "usd_per_megapixel",
}


def image_api(settings: ApiSettings, *, needs_key: bool = True) -> ImageApi:
    """The image API that the settings name: a saved block, or the vendor with the environment's key.

    ``needs_key=False`` is for estimates, which send nothing to the API.

    Raises:
        InputError: there is no such block or vendor, or a value is invalid.
    """
    if settings.block:
        block = _load(settings.block, [*PROVIDERS.values()])
        if not isinstance(block, ImageApi):
            raise InputError(f"The block {settings.block!r} is not an image API.")
        return _with_overrides(block, settings)
    api = PROVIDERS.get(settings.provider)
    if api is None:
        raise InputError(
            f"There is no provider {settings.provider!r}. Choose one of {', '.join(sorted(PROVIDERS))}."
        )
    given = _given(api, settings)
    try:
        return api.from_environment(**given) if needs_key else api(api_key="none", **given)
    except ValidationError as error:
        raise input_error(error) from error


def _with_overrides(block: ImageApi, settings: ApiSettings) -> ImageApi:
    """The block, with the address, model, time limit, price and hosts of the settings if they have them."""
    held = {name: getattr(block, name) for name in type(block).model_fields}
    try:
        return type(block)(**held | _given(type(block), settings, block.image_hosts))
    except ValidationError as error:
        raise input_error(error) from error


def _given(api: type[ImageApi], settings: ApiSettings, image_hosts: Sequence[str] = ()) -> dict[str, Any]:
    """What the settings say of an API's fields; their image hosts come after those it has."""
    given = settings.model_dump(include=_OVERRIDES & set(api.model_fields))
    given["image_hosts"] = [*image_hosts, *settings.image_hosts]
    return {name: value for name, value in given.items() if value is not None}


def resolved(settings: ApiSettings) -> ApiSettings:
    """The settings with the provider and the model by their names, whether a block or a default has them.

    Raises:
        InputError: there is no such block or vendor.
    """
    api = image_api(settings, needs_key=False)
    return settings.model_copy(update={"provider": api.provider, "model": api.model})


def job_store(settings: ExecutionSettings) -> tuple[str | None, SecretStr | None]:
    """The job store that the settings name, directly or as a saved block, and its password.

    Raises:
        InputError: there is no such block.
    """
    kind, _, name = (settings.store or "").partition(":")
    if kind != "block":
        return settings.store, settings.store_password
    block = _load(name, [PostgresServer, RedisServer])
    if not isinstance(block, StoreServer):
        raise InputError(f"The block {name!r} is not a job store.")
    return block.url, block.password


def aws_session(output: OutputSettings) -> tuple[boto3.Session, str | None]:
    """The boto3 session and S3 endpoint that the settings name: a saved S3Bucket block's, or boto3's own.

    Keys that are rotated there, in the block or where boto3 finds them, are used by the session in time.

    Raises:
        InputError: there is no such block.
    """
    session, endpoint_url = _aws_session(output)
    read_again(session, lambda: _aws_session(output)[0])
    return session, endpoint_url


def _aws_session(output: OutputSettings) -> tuple[boto3.Session, str | None]:
    if not output.s3_bucket_block:
        return own_session(), output.s3_endpoint_url
    # The package loads its ECS worker too, half a second of CPU, and only a saved block needs it.
    from prefect_aws.s3 import S3Bucket  # noqa: PLC0415

    block = _load(output.s3_bucket_block, [S3Bucket])
    if not isinstance(block, S3Bucket):
        raise InputError(f"The block {output.s3_bucket_block!r} is not an S3Bucket.")
    credentials = block.credentials
    parameters = getattr(credentials, "aws_client_parameters", None)
    endpoint = output.s3_endpoint_url or (parameters and parameters.endpoint_url)
    return credentials.get_boto3_session(), endpoint


def _load(name: str, kinds: Sequence[type[Block]]) -> object:
    """A saved block by TYPE/NAME, or by NAME alone where only one block of these kinds has it.

    Raises:
        InputError: there is no such block, or several; the message lists those that exist.
    """
    name = name.strip()
    if "/" in name:
        with suppress(ValueError):
            return Block.load(name)
    with get_client(sync_client=True) as client:
        saved = []
        for slug in (kind.get_block_type_slug() for kind in kinds):
            try:
                documents = client.read_block_documents_by_type(slug, include_secrets=False)
            except PrefectHTTPStatusError as error:
                if error.response.status_code != httpx.codes.NOT_FOUND:
                    raise
                continue  # a type that nobody has registered yet
            saved += [f"{slug}/{document.name}" for document in documents]
    found = [each for each in saved if each.partition("/")[2] == name]
    if len(found) == 1:
        return Block.load(found[0])
    if found:
        raise InputError(f"Several saved blocks are called {name!r}: {', '.join(found)}. Name one in full.")
    raise InputError(f"There is no saved block {name!r}. There are: {', '.join(saved) or 'none'}.")
