"""What vendors say they charged, request by request, for those that publish it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable
from urllib.parse import parse_qs, urlsplit

import httpx

from imagemill.blocks.apis.generated_image import PAID


class BillingEvent(NamedTuple):
    """One charge of a vendor for one request, in USD; a request may have several, which add up."""

    request_id: str
    usd: Decimal


@runtime_checkable
class ListsCharges(Protocol):
    """An API whose vendor lists what it charged for each request."""

    admin_key_variable: ClassVar[str]
    """The environment variable with the key that may read charges, if the account's usual key may not."""

    def billing_events(
        self, http: httpx.AsyncClient, since: datetime, until: datetime, request_ids: Sequence[str] = ()
    ) -> AsyncIterator[BillingEvent]:
        """The charges of this model from ``since`` until just before ``until``, or only of some requests.

        Raises:
            ApiError: the vendor does not say.
        """
        ...


def billed_name(request_id: str | None) -> str | None:
    """What a vendor's bill calls a request: its id, also where the request is known by a link with its id.

    None for a link that only leads to the image.
    """
    if request_id is None:
        return None
    name = request_id.removeprefix(PAID)
    if not name.startswith(("http://", "https://")):
        return name or None
    try:
        return parse_qs(urlsplit(name).query).get("id", [None])[0]
    except ValueError:
        return None
