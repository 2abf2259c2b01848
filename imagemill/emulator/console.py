"""The console: bill, statistics, settings and received requests, under `/__...`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imagemill.emulator.answers import BodyTooLargeError, json_answer, parse_object, read_body
from imagemill.emulator.settings import SettingsError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from imagemill.emulator.studio import Studio

__all__ = ["Console"]

_DIGITS = 4


class Console:
    """Answers questions about the emulator, and changes its settings at run time."""

    def __init__(self, studio: Studio) -> None:
        """Look into this studio."""
        self._studio = studio

    async def bill(self, request: Request) -> Response:
        """Answer `GET /__bill`."""
        del request
        return json_answer(self._studio.bill.as_dict())

    async def stats(self, request: Request) -> Response:
        """Answer `GET /__stats`."""
        del request
        return json_answer(self._studio.report())

    async def config(self, request: Request) -> Response:
        """Answer `GET /__config`, and `POST /__config` with the settings to change."""
        if request.method == "POST":
            try:
                changes = parse_object(await read_body(request))
            except BodyTooLargeError:
                return json_answer({"error": "The request body is too large."}, 413)
            if changes is None:
                return json_answer({"error": "The body must be a JSON object."}, 400)
            try:
                self._studio.configure(self._studio.settings.changed(changes))
            except SettingsError as error:
                return json_answer({"error": str(error)}, 400)
        return json_answer(self._studio.settings.as_dict())

    async def reset(self, request: Request) -> Response:
        """Answer `POST /__reset`: clear bill, statistics and the markers used up."""
        del request
        self._studio.reset()
        return json_answer({"status": "reset"})

    async def requests(self, request: Request) -> Response:
        """Answer `GET /__requests?last=N`: the last generation requests as received."""
        last = request.query_params.get("last", "20")
        if not last.isascii() or not last.isdecimal() or len(last) > _DIGITS:
            return json_answer({"error": "last must be a whole number from 0 to 9999."}, 400)
        return json_answer(self._studio.stats.last(int(last)))
