"""The account's limit as last measured, kept in a Prefect Variable. The next run starts from it.

Limits are an account's own, and at some vendors a model's: each account and model has its own Variable.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Literal
from urllib.parse import urlsplit

from prefect.variables import Variable
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imagemill.blocks.apis import ImageApi
from imagemill.engine.limits.pacer import Limit

KEPT_FOR = timedelta(days=30)
"""Accounts move between tiers, so an older limit is ignored."""

_ROUNDS = 50_000
"""Makes guessing keys by their digest slow."""

_MOVES_WITHIN = timedelta(hours=1)
"""A rate that follows the past hour's use fades as that hour passes."""


class KnownLimit(BaseModel):
    """The JSON in the Variable: the limit, when it was measured, and at which host."""

    model_config = ConfigDict(frozen=True)

    concurrency: int = Field(ge=1, le=1000, description="Concurrent requests.")
    per_minute: float | None = Field(
        default=None, gt=0, description="Images per minute; null if no limit was seen."
    )
    took_per_s: float | None = Field(
        default=None,
        gt=0,
        description="Requests per second that it took, if no limit on their rate was seen.",
    )
    kind: Literal["refuse", "queue", "rate"] = Field(
        default="refuse",
        description="What the API does with more: refuse it, queue it, or refuse what exceeds a rate that"
        " follows the past hour's use.",
    )
    measured_at: datetime
    host: str = Field(description="The host and port of the API's base URL.")
    model: str = Field(default="", description="The model's name at the vendor.")


def account_digest(api: ImageApi, *more: str) -> str:
    """Twelve characters that stand for an account at a host, and do not lead back to its key."""
    key = api.api_key.get_secret_value().encode()
    salt = "\n".join(("imagemill", api.provider, host_of(api), *more)).encode()
    return hashlib.pbkdf2_hmac("sha256", key, salt, _ROUNDS).hex()[:12]


def variable_name(api: ImageApi) -> str:
    """The name of the Variable for the limit of this account and model."""
    return f"imagemill_{api.provider}_limit_{account_digest(api, api.model)}"


def host_of(api: ImageApi) -> str:
    """The host and port that requests go to."""
    return urlsplit(api.base_url).netloc


def read_limit(api: ImageApi, *, now: datetime | None = None) -> Limit | None:
    """The account's limit, if a recent one for the same host is stored. Never raises."""
    try:
        raw = Variable.get(variable_name(api))
        found = KnownLimit.model_validate(json.loads(raw) if isinstance(raw, str) else raw)
    except ValidationError:
        return None
    except Exception:  # noqa: BLE001 - the limit only saves seconds, and a run reports elsewhere that Prefect is down
        return None
    age = (now or datetime.now(UTC)) - found.measured_at
    if age > KEPT_FOR or found.host != host_of(api):
        return None
    left = max(0.0, 1 - age / _MOVES_WITHIN) if api.rate_moves else 1.0
    if found.kind != "rate" or found.per_minute is None:
        return Limit(found.concurrency, found.per_minute, left * (found.took_per_s or 0.0) or None)
    per_minute = left * found.per_minute
    return Limit(found.concurrency, per_minute) if per_minute > 60 * api.first_per_s else None


def write_limit(api: ImageApi, limit: Limit) -> KnownLimit:
    """Store the account's limit for the next run; without a Prefect server, only return it."""
    found = KnownLimit(
        concurrency=limit.concurrency,
        per_minute=limit.per_minute,
        took_per_s=limit.took_per_s,
        kind="queue" if api.queues else "rate" if api.rate_moves and limit.per_minute else "refuse",
        measured_at=datetime.now(UTC),
        host=host_of(api),
        model=api.model,
    )
    with contextlib.suppress(Exception):
        Variable.set(variable_name(api), found.model_dump(mode="json"), overwrite=True)
    return found
