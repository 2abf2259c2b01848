"""Image links: files that the emulator serves for a while."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.responses import Response

from imagemill.emulator.answers import Cut, base_url, json_answer
from imagemill.emulator.gallery import spoil

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from imagemill.emulator.answers import Connections
    from imagemill.emulator.order import Shot
    from imagemill.emulator.stats import Stats

__all__ = ["Link", "Links"]


@dataclass(slots=True)
class Link:
    """A link to a picture. `made_at` is monotonic time in seconds."""

    url: str
    shot: Shot
    fault: str | None
    made_at: float
    downloads: int = 0
    signature: str | None = None


class Links:
    """Mints image links and answers them. `ttl_s` is their life in seconds, None for ever."""

    def __init__(
        self,
        picture: Callable[[Shot], Awaitable[bytes]],
        connections: Connections,
        stats: Stats,
        clock: Callable[[], float],
    ) -> None:
        """Serve what `picture` draws; `clock` is a monotonic one in seconds."""
        self.ttl_s: float | None = None
        self._picture = picture
        self._connections = connections
        self._stats = stats
        self._clock = clock
        self._links: dict[str, Link] = {}

    def mint(self, request: Request, shot: Shot, fault: str | None, *, signed: bool = False) -> Link:
        """Return a new link on the base URL of a request; a signed one only works as it was given."""
        name = f"{uuid.uuid4().hex}.{shot.extension}"
        signature = uuid.uuid4().hex if signed else None
        url = f"{base_url(request)}/files/{name}" + (f"?sig={signature}" if signature else "")
        link = Link(url, shot, fault, self._clock(), signature=signature)
        self._links[name] = link
        return link

    def expired(self, link: Link) -> bool:
        """Say whether a link is past its time, or carries the fault of an expired one."""
        if link.fault == "expired_link":
            return True
        return self.ttl_s is not None and self._clock() - link.made_at > self.ttl_s

    async def download(self, request: Request) -> Response:
        """Answer `GET /files/<name>`: the picture, 404 when unknown, 403 when expired.

        The fault "reset_body" cuts the first download of a link off; "truncated" and "garbage"
        spoil every one.
        """
        self._stats.downloads += 1
        link = self._links.get(request.path_params["name"])
        if link is None:
            return json_answer({"detail": "There is no such file."}, 404)
        if link.signature != request.query_params.get("sig"):
            return json_answer({"detail": "The signature does not match."}, 403)
        if self.expired(link):
            return json_answer({"detail": "The link has expired."}, 403)
        link.downloads += 1
        image = await self._picture(link.shot)
        answer = Response(spoil(image, link.fault), media_type=link.shot.media_type)
        if link.fault == "reset_body" and link.downloads == 1:
            return Cut(self._connections, answer)
        return answer
