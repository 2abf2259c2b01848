"""An account's limit as it was found last: kept in a Prefect Variable, which the next run starts from."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from prefect.variables import Variable
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imagemill.blocks.apis import ImageApi
from imagemill.engine.limits.pacer import Limit

KEPT_FOR = timedelta(days=30)
"""Accounts move between tiers: what is older than this says nothing."""


class KnownLimit(BaseModel):
    """What an account took, when, and at which host: the JSON in the Variable."""

    model_config = ConfigDict(frozen=True)

    concurrency: int = Field(ge=1, le=1000, description="Requests at once.")
    per_minute: float | None = Field(default=None, gt=0, description="Images a minute; null: no limit seen.")
    measured_at: datetime
    host: str = Field(description="The host and port of the API's base URL.")


def variable_name(api: ImageApi) -> str:
    """The Variable that holds the limit of an account at this provider."""
    return f"imagemill_{api.provider}_limit"


def host_of(api: ImageApi) -> str:
    """Host and port that requests go to."""
    return urlsplit(api.base_url).netloc


def read_limit(api: ImageApi, *, now: datetime | None = None) -> Limit | None:
    """The account's limit, where one is known that is fresh and of the same host. Never fails a run."""
    try:
        raw = Variable.get(variable_name(api))
        found = KnownLimit.model_validate(json.loads(raw) if isinstance(raw, str) else raw)
    except ValidationError:
        return None
    except Exception:  # noqa: BLE001 - what is known only saves seconds; a server that is away is not news
        return None
    age = (now or datetime.now(UTC)) - found.measured_at
    if age > KEPT_FOR or found.host != host_of(api):
        return None
    return Limit(found.concurrency, found.per_minute)


def write_limit(api: ImageApi, limit: Limit) -> KnownLimit:
    """Keep the account's limit for the next run; where no Prefect server answers, it is only returned."""
    found = KnownLimit(
        concurrency=limit.concurrency,
        per_minute=limit.per_minute,
        measured_at=datetime.now(UTC),
        host=host_of(api),
    )
    with contextlib.suppress(Exception):
        Variable.set(variable_name(api), found.model_dump(mode="json"), overwrite=True)
    return found
