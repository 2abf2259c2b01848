"""fal's platform API, api.fal.ai/v1: models with their schemas, prices, past requests, and what was charged.

Source: fal.ai/docs/platform-apis/v1 (models, models/pricing, models/requests/by-endpoint,
models/billing-events), read 2026-11-25. Cursors encode a page's number, as in "Mg==". Requests are listed by
the time of their end, so that one still running is not among them (the order is documented, the absence of
running ones unconfirmed). Billing events need an admin key; how soon they show is `billing_lag_s`. One
question names at most 50 requests and spans at most 90 days. An event has its cost before and after the
discount, in USD, and after it in 1e-9 USD.

Unconfirmed: the shape of errors.
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from imagemill.emulator.answers import json_answer
from imagemill.emulator.bill import nano_usd
from imagemill.emulator.fal import output_of
from imagemill.emulator.fal_input import published
from imagemill.emulator.models import find_model, models_of

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from imagemill.emulator.fal import Fal
    from imagemill.emulator.queue import Task

__all__ = ["FalPlatform"]

_UNITS_A_USD = 10**10
_LARGEST_PAGE = {"requests": 100, "events": 10_000}
_MOST_NAMED = 50
_LONGEST_BILL = timedelta(days=90)


class FalPlatform:
    """Answers like fal's platform API, about what went through its queue."""

    def __init__(self, fal: Fal) -> None:
        """Tell of this account."""
        self._fal = fal

    async def models(self, request: Request) -> Response:
        """Answer `GET /v1/models`: the models named, with their schema where `expand=openapi-3.0` asks."""
        asked, whole = _names(request, "endpoint_id"), "openapi-3.0" in _names(request, "expand")
        models = []
        for name, model in models_of("fal").items():
            if asked and name not in asked:
                continue
            title = model.facts["title"]
            metadata = {"display_name": title, "category": "text-to-image", "status": "active"}
            schema = {"openapi": published(model)} if whole else {}
            models.append({"endpoint_id": name, "metadata": metadata, **schema})
        return json_answer({"models": models, "next_cursor": None, "has_more": False})

    async def pricing(self, request: Request) -> Response:
        """Answer `GET /v1/models/pricing`."""
        if not self._fal.known(request):
            return _error(401)
        asked = _names(request, "endpoint_id")
        if asked - models_of("fal").keys():
            return _error(404)
        prices = [
            {"endpoint_id": name, "unit_price": _unit_usd(name), "unit": "megapixels", "currency": "USD"}
            for name in models_of("fal")
            if not asked or name in asked
        ]
        return json_answer({"prices": prices, "next_cursor": None, "has_more": False})

    async def requests(self, request: Request) -> Response:
        """Answer `GET /v1/models/requests/by-endpoint`: the requests that are over, the last first."""
        if not self._fal.known(request):
            return _error(401)
        try:
            since, until = _span(request)
            size, page = _page(request, _LARGEST_PAGE["requests"])
        except ValueError:
            return _error(400)
        status, models = request.query_params.get("status"), _names(request, "endpoint_id")
        over = [
            task
            for task in self._fal.queue.ended(since, until)
            if task.ticket.order.model in models and (status is None or status == _outcome(task))
        ]
        payloads = "payloads" in _names(request, "expand")
        items = [
            self._past(request, task, payloads=payloads) for task in over[page * size : (page + 1) * size]
        ]
        return _paged("items", items, len(over), size, page)

    async def billing_events(self, request: Request) -> Response:
        """Answer `GET /v1/models/billing-events`: what each request was charged, in 1e-9 USD."""
        if not self._fal.known(request, admin=True):
            return _error(403 if self._fal.known(request) else 401)
        try:
            since, until = _span(request)
            size, page = _page(request, _LARGEST_PAGE["events"])
        except ValueError:
            return _error(400)
        asked, models = _names(request, "request_id"), _names(request, "endpoint_id")
        if len(asked) > _MOST_NAMED or len(models) > _MOST_NAMED or until - since > _LONGEST_BILL:
            return _error(400)
        lag = timedelta(seconds=self._fal.studio.settings.billing_lag_s)
        charged = [
            task
            for task in self._fal.queue.ended(since, min(until, datetime.now(UTC) - lag))
            if task.end == "done"
            and (not asked or task.id in asked)
            and (not models or task.ticket.order.model in models)
        ]
        events = [_event(task) for task in charged[page * size : (page + 1) * size]]
        return _paged("billing_events", events, len(charged), size, page)

    def _past(self, request: Request, task: Task, *, payloads: bool) -> dict[str, Any]:
        ended, began = task.ended_at or task.created_at, task.began_at
        item: dict[str, Any] = {
            "request_id": task.id,
            "endpoint_id": task.ticket.order.model,
            "started_at": began.isoformat() if began else None,
            "sent_at": task.created_at.isoformat(),
            "ended_at": ended.isoformat(),
            "status_code": self._fal.status_of(task),
            "duration": (ended - began).total_seconds() if began else None,
        }
        if payloads:
            item["json_input"] = task.asked
            urls = self._fal.queue.links(request, task) if task.end == "done" else None
            item["json_output"] = output_of(task.ticket, urls) if urls else None
        return item


def _event(task: Task) -> dict[str, Any]:
    nano, model = nano_usd(task.ticket.order), task.ticket.order.model
    return {
        "request_id": task.id,
        "endpoint_id": model,
        "timestamp": (task.ended_at or task.created_at).isoformat(),
        "output_units": nano / (_unit_usd(model) * 1e9),
        "unit_price": _unit_usd(model),
        "percent_discount": None,
        "cost_subtotal": nano / 1e9,
        "cost_discount": 0,
        "cost_total": nano / 1e9,
        "cost_estimate_nano_usd": nano,
    }


def _unit_usd(name: str) -> float:
    """Return the price of a model's megapixel, in USD."""
    model = find_model("fal", name)
    units: int = model.facts["units"]["megapixel"] if model else 0
    return units / _UNITS_A_USD


def _outcome(task: Task) -> str:
    """Return the word that the list's filter has for an end."""
    return "success" if task.end == "done" else "user_error" if task.end == "rejected" else "error"


def _names(request: Request, name: str) -> set[str]:
    """Return the values of a query field, given several times or with commas between."""
    return {part for value in request.query_params.getlist(name) for part in value.split(",") if part}


def _span(request: Request) -> tuple[datetime, datetime]:
    """Return start and end, the last day where nothing is said.

    Raises:
        ValueError: One is no date.
    """
    now = datetime.now(UTC)
    ends = []
    for name, usual in (("start", now - timedelta(days=1)), ("end", now + timedelta(seconds=1))):
        text = request.query_params.get(name)
        at = datetime.fromisoformat(text) if text else usual
        ends.append(at if at.tzinfo else at.replace(tzinfo=UTC))
    return ends[0], ends[1]


def _page(request: Request, largest: int) -> tuple[int, int]:
    """Return the size of a page and its number, from 0.

    Raises:
        ValueError: Either cannot be read.
    """
    size = min(largest, max(1, int(request.query_params.get("limit", 50))))
    cursor = request.query_params.get("cursor")
    try:
        return size, int(base64.b64decode(cursor, validate=True)) - 1 if cursor else 0
    except binascii.Error as error:
        raise ValueError(cursor) from error


def _paged(name: str, items: list[dict[str, Any]], count: int, size: int, page: int) -> Response:
    more = count > (page + 1) * size
    cursor = base64.b64encode(str(page + 2).encode()).decode() if more else None
    return json_answer({name: items, "next_cursor": cursor, "has_more": more})


def _error(status: int) -> Response:
    kinds = {
        400: "validation_error",
        401: "authorization_error",
        403: "authorization_error",
        404: "not_found",
    }
    messages = {
        400: "A query field cannot be used.",
        401: "Authentication is required.",
        403: "An admin key is required.",
        404: "There is no such endpoint.",
    }
    return json_answer({"error": {"type": kinds[status], "message": messages[status]}}, status)
