"""What an API gives for a request: where the image is, its bytes, and what it costs."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from imagemill.blocks.apis.exchange import text_at, unexpected_answer
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import CostSource

PAID = "paid:"
"""Stands before a request id whose charge is booked: whoever asks about it later does not book it again."""


class Accepted(Protocol):
    """Called with what names a request for later looks; returns once it is stored.

    ``charged_usd`` is what the API charges for it, where it has made the image already.
    """

    def __call__(self, request_id: str, charged_usd: float | None = None, /) -> Awaitable[None]: ...


class Charge(NamedTuple):
    """What an API charges for an image, in USD, and how that is known."""

    usd: float
    source: CostSource


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """An image's bytes as the API gave them, not looked at yet.

    ``cost_usd`` is what the API charges for it, in USD; nothing where that was known, and said, before.
    """

    content: bytes
    cost_usd: float
    flagged: bool = False
    request_id: str | None = None
    cost_source: CostSource = CostSource.LIST


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where an answer has the image: an http(s) link, a data URI or bare base64."""

    text: str
    flagged: bool = False

    @classmethod
    def of_list(cls, answer: dict[str, Any]) -> ImageSource:
        """The image of ``{"data": [{"b64_json" or "url": ...}]}``, the shape that OpenAI made common.

        Raises:
            ApiError: the answer has another shape.
        """
        found = text_at(answer, "data", 0, "b64_json") or text_at(answer, "data", 0, "url")
        if found is None:
            raise unexpected_answer(answer)
        return cls(found)


def flagged_image() -> ApiError:
    """The error for an image that the API made and flagged: it is charged, and never kept."""
    return ApiError(ErrorClass.CONTENT_FILTERED, "the API flagged the image", code="flagged", charged=True)
