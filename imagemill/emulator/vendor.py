"""What all vendors' wire formats share: how a generation request is taken, each wording its own answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar

from imagemill.emulator.answers import BodyTooLargeError, json_answer, parse_object, read_body
from imagemill.emulator.faults import STATUS
from imagemill.emulator.fields import FieldError
from imagemill.emulator.studio import Refusal, Studio, Ticket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from imagemill.emulator.order import Order

__all__ = ["Vendor"]


class Vendor(ABC):
    """A vendor's wire format before the studio.

    Attributes:
        schemes: Schemes of the Authorization header, in lower case.
        stranger: The status for a key that is not known.
        exhausted: The status for a credit that is exhausted.
        moves: Whether the rate limit is the dynamic one.
    """

    schemes: ClassVar[frozenset[str]] = frozenset({"bearer"})
    stranger: ClassVar[int] = 401
    exhausted: ClassVar[int] = 402
    moves: ClassVar[bool] = False

    def __init__(self, studio: Studio) -> None:
        """Make the pictures in this studio."""
        self.studio = studio

    @abstractmethod
    def order(self, request: Request, fields: dict[str, Any]) -> Order:
        """Return the order that a request body stands for.

        Raises:
            FieldError: A field cannot be used.
        """

    @abstractmethod
    def error(
        self, status: int, detail: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Return the vendor's answer for a status."""

    @abstractmethod
    def invalid(self, error: FieldError) -> Response:
        """Return the vendor's answer to a field that cannot be used."""

    def refusal(self, refusal: Refusal) -> Response:
        """Return the vendor's answer to a request beyond a limit."""
        seconds = refusal.header if self.studio.settings.retry_after else None
        return self.error(refusal.status, headers={"retry-after": seconds} if seconds else None)

    def known(self, request: Request) -> bool:
        """Say whether a request carries a key that is accepted."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() in self.schemes and self.studio.accepts(key)

    async def take(self, request: Request, body: bytes | None = None) -> Ticket | Response:
        """Return the ticket of an admitted request, or the answer to one that is not."""
        fields = await self.fields(request, body)
        if not isinstance(fields, dict):
            return fields
        try:
            order = self.order(request, fields)
        except FieldError as error:
            return self.invalid(error)
        return self.admit(order, fields)

    async def fields(self, request: Request, body: bytes | None = None) -> dict[str, Any] | Response:
        """Return what a request with a known key asks for, not yet checked; or the answer to another."""
        received = await self.received(request, body)
        if not isinstance(received, bytes):
            return received
        parsed = parse_object(received)
        if parsed is None:
            return self.invalid(FieldError("", "The request body must be a JSON object.", kind="dict_type"))
        return parsed

    async def received(self, request: Request, body: bytes | None = None) -> bytes | Response:
        """Return the body of a request with a known key, or the answer to another."""
        try:
            body = await read_body(request) if body is None else body
        except BodyTooLargeError:
            return self.error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if self.buys(body):
            self.studio.stats.keep(request.url.path, request.headers.raw, body)
        elif wait_s := self.studio.poll():
            return self.refusal(Refusal(429, "rate", wait_s))
        return body if self.known(request) else self.error(self.stranger)

    def buys(self, body: bytes) -> bool:
        """Say whether a request asks for pictures; otherwise it is a question that costs nothing."""
        del body
        return True

    def admit(self, order: Order, fields: dict[str, Any], *, queues: bool = False) -> Ticket | Response:
        """Return the ticket of a checked order, or the answer of a limit or a fault.

        `queues`: beyond the slots it waits instead of being refused.
        """
        try:
            ticket = self.studio.admit(order, queues=queues, moves=self.moves)
        except Refusal as refusal:
            if refusal.status == HTTPStatus.PAYMENT_REQUIRED:
                return self.error(self.exhausted)
            return self.refusal(refusal)
        ticket.asked = fields
        return self._fault(ticket) or ticket

    def _fault(self, ticket: Ticket) -> Response | None:
        """Return the answer of a fault of the request itself, None without one."""
        if ticket.fault not in STATUS:
            return self.studio.early(ticket, json_answer({"ok": True, "job": {"state": "new"}}))
        self.studio.release(ticket)
        status = int(ticket.fault)
        if status == HTTPStatus.PAYMENT_REQUIRED:
            return self.error(self.exhausted)
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            return self.refusal(Refusal(status, "rate", 1.0))
        later = {"retry-after": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
        return self.error(status, headers=later)
