"""Learns what a vendor publishes of a model before anything is paid: fields and ranges, and fal's price."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx
import orjson

from imagemill.blocks.apis.base import ImageApi
from imagemill.durable import write_whole
from imagemill.errors import InputError
from imagemill.models.listing import find_profile
from imagemill.models.published import (
    PUBLISHING,
    price_url,
    published_price,
    published_profile,
    schema_url,
)

ANSWER_S = 10.0
"""How long a vendor may take to answer, in seconds."""

_LARGEST_ANSWER = 8_000_000
_NOT_OFFERED = {404, 405, 501}


def learn_published(api: ImageApi, cache: Path | None = None, *, keyed: bool = True) -> None:
    """As :func:`learn`, with an HTTP client of its own, where there is anything to ask."""
    if api.provider in PUBLISHING:
        with httpx.Client() as http:
            learn(api, http, cache, keyed=keyed)


def learn(api: ImageApi, http: httpx.Client, cache: Path | None = None, *, keyed: bool = True) -> None:
    """Let an API know what its vendor publishes of its model: once, then from ``cache``, a file.

    A model that is listed needs no schema. Without a key (``keyed=False``) nothing is asked that needs one:
    fal's prices, Replicate's schemas.

    Raises:
        InputError: there is no such model, it makes no images from a prompt, or its vendor cannot be asked.
    """
    if api.provider not in PUBLISHING:
        return
    known = _read(cache)
    if known.get("model") != api.model:
        known = {"model": api.model, "noted": datetime.now(UTC).date().isoformat()}
        headers = api.headers if keyed else {}
        if find_profile(api.provider, api.model) is None and (keyed or api.provider == "fal"):
            known["schema"] = _schema(api, http, headers)
        if api.provider == "fal" and keyed:
            known["price"] = _answer(http, price_url(api.model, _platform(api)), headers)[1]
        if cache is not None:
            write_whole(cache, orjson.dumps(known))
    noted = date.fromisoformat(known["noted"])
    schema, price = known.get("schema"), known.get("price")
    api.learn(
        published_profile(api.provider, api.model, schema, noted) if schema else None,
        published_price(api.model, price, noted) if price else None,
    )


def _schema(api: ImageApi, http: httpx.Client, headers: Mapping[str, str]) -> Any:  # noqa: ANN401
    platform = _platform(api)
    status, document = _answer(http, schema_url(api.provider, api.model, platform), headers)
    if document is not None:
        return document
    if status in _NOT_OFFERED and platform != PUBLISHING[api.provider]:
        return None  # a server in the vendor's place that publishes no schemas
    if status == 404:
        raise InputError(
            f"There is no model {api.model!r} at {api.provider}. List models with: imagemill models"
        )
    if status in {401, 403}:
        raise InputError(
            f"{api.provider} refused the key when asked about {api.model!r} (HTTP {status}). Check"
            f" {api.key_variable}."
        )
    reason = f"HTTP {status}" if status else "no answer"
    raise InputError(
        f"imagemill does not know the model {api.model!r}, and {platform} did not describe it ({reason})."
        " Try again, or choose one that is listed by: imagemill models"
    )


def _answer(http: httpx.Client, url: str, headers: Mapping[str, str]) -> tuple[int, Any]:
    """The status and the JSON of an answer: 0 where there was none, None where it is no JSON object."""
    try:
        with http.stream("GET", url, headers=dict(headers), timeout=ANSWER_S) as answer:
            body = bytearray()
            for part in answer.iter_bytes():
                body += part
                if len(body) > _LARGEST_ANSWER:
                    return answer.status_code, None
        document = orjson.loads(body) if answer.status_code == 200 else None
    except (httpx.HTTPError, httpx.InvalidURL):
        return 0, None
    except orjson.JSONDecodeError:
        return answer.status_code, None
    return answer.status_code, document if isinstance(document, dict) else None


def _platform(api: ImageApi) -> str:
    """Where schemas and prices are: the vendor's platform, or the address in the vendor's place."""
    vendors_own = {api.default_base_url, "https://fal.run"}
    return PUBLISHING[api.provider] if api.base_url in vendors_own else api.base_url


def _read(cache: Path | None) -> dict[str, Any]:
    if cache is None:
        return {}
    try:
        found = orjson.loads(cache.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("noted"), str) else {}
