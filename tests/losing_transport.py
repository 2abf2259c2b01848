"""A network that loses answers: the server has done what it was asked, and the client never hears of it."""

from __future__ import annotations

from collections.abc import Callable

import httpx


class LosingTransport(httpx.AsyncBaseTransport):
    """Real sockets, but for what ``answer`` puts in place of an answer.

    It gets the request and how often its method and URL were asked before. It returns "lost" where the
    answer is lost after the server has given it, a response where one stands in its place (nothing is
    asked then), or None.
    """

    def __init__(self, answer: Callable[[httpx.Request, int], httpx.Response | str | None]) -> None:
        self._answer = answer
        self._inner = httpx.AsyncHTTPTransport()
        self._asked: dict[tuple[str, str, bytes], int] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        key = (request.method, str(request.url), request.content)
        before = self._asked.get(key, 0)
        self._asked[key] = before + 1
        instead = self._answer(request, before)
        if isinstance(instead, httpx.Response):
            return instead
        answer = await self._inner.handle_async_request(request)
        if instead is not None:
            await answer.aread()
            await answer.aclose()
            raise httpx.ReadError("the connection was reset", request=request)
        return answer

    async def aclose(self) -> None:
        await self._inner.aclose()
