"""Fetches images, from an answer itself or from behind its link: only from hosts that may be trusted."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx

from imagemill.blocks.apis.client import ApiClient
from imagemill.blocks.apis.error_codes import IMAGE_HOST_REFUSED
from imagemill.blocks.apis.exchange import decoded, fetch, is_link, is_loopback, joined, unexpected_answer
from imagemill.blocks.apis.generated_image import ImageSource
from imagemill.errors import ApiError, ErrorClass
from imagemill.rate_limit_headers import retry_after_seconds

MOST_REDIRECTS = 3
"""How often an image link may lead on to another."""


class ImageFetcher(ApiClient):
    """Fetches images without ever sending the key to where a link leads."""

    async def content(self, http: httpx.AsyncClient, source: ImageSource) -> bytes:
        """The bytes of an image, from the answer itself or from behind its link."""
        if not isinstance(source.text, str):
            raise unexpected_answer(source.text)
        if is_link(source.text):
            return await self.download(http, joined(f"{self.base_url}/", source.text))
        return decoded(source.text)

    async def download(self, http: httpx.AsyncClient, link: str) -> bytes:
        """The bytes behind an image link, without the key, from a host that may be trusted with it.

        Redirects are followed as far as each leads to such a host.
        """
        if not self.is_trusted_link(link):
            raise self._untrusted(link)
        words = ""
        for _ in range(1 + MOST_REDIRECTS):
            status, headers, content = await fetch(http, "GET", link)
            if status not in {301, 302, 303, 307, 308} or "location" not in headers:
                break
            link = joined(link, headers["location"])
            if not self.is_trusted_link(link):
                words = f": {self._untrusted(link).message}"
                break
        if status == 200:
            return content
        if status in {401, 403, 404, 410}:
            raise ApiError(
                ErrorClass.INVALID_IMAGE,
                f"the image link answered HTTP {status}: it has expired",
                code="image_link_expired",
                charged=True,
            )
        raise ApiError(
            ErrorClass.TIMEOUT,
            f"the image link answered HTTP {status}{words}",
            code="image_link",
            retry_after_s=retry_after_seconds(headers),
            keep_request=True,
            charged=True,
        )

    def _untrusted(self, link: str) -> ApiError:
        """The error for an image link that is not followed: it names the host, and how to allow it."""
        try:
            parts = urlsplit(link)
            host = parts.hostname if parts.scheme == "https" else None
        except ValueError:
            host = None
        if host:
            advice = (
                f"the image link leads to {host}, which is not a host of {self.provider}: if you trust it,"
                f" allow it with --image-host {host}"
            )
        else:
            advice = f"the image link {link[:200]!r} is not an https address of a host of {self.provider}"
        return ApiError(
            ErrorClass.BAD_REQUEST,
            self.clean(advice),
            code=IMAGE_HOST_REFUSED,
            charged=True,
        )

    def is_own_address(self, url: str) -> bool:
        """Whether a URL leads to the host and port that requests are sent to, or both are loopback."""
        try:
            parts, base = urlsplit(url), urlsplit(self.base_url)
            same_place = (parts.hostname, parts.port) == (base.hostname, base.port)
        except ValueError:
            return False
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            return False
        if base.scheme == "https" and parts.scheme != "https":
            return False  # the key would go there in the clear
        return same_place or (is_loopback(parts.hostname) and is_loopback(base.hostname or ""))

    def is_trusted_link(self, link: str) -> bool:
        """Whether an image link leads to the API itself, or over https to a host that is known."""
        if self.is_own_address(link):
            return True
        try:
            parts = urlsplit(link)
            host, _ = parts.hostname or "", parts.port  # a port that is none is refused here
        except ValueError:
            return False
        known = (*self.vendor_image_hosts, *self.image_hosts)
        return parts.scheme == "https" and any(host == h or host.endswith(f".{h}") for h in known)
