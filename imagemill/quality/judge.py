"""A judge of one's own: what it is given, and what it answers.

Whatever it answers is checked and bounded here: it may come from a model, or from code in development.
"""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from PIL import Image

from imagemill.errors import printable
from imagemill.formatting import cut
from imagemill.secrets import masked

UNANSWERED = "the run stopped before the judge's answer was recorded"
"""Why a picture that was kept has no opinion, after a stop or a kill."""

_MOST_WORDS = 500
"""Characters of an opinion that are kept."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A picture to judge: its encoded bytes, its prompt, and its row.

    The row has the job's input (``id``, ``seed``, ``width``, ``variant`` ...) and the other columns of the
    catalog.
    """

    content: bytes
    prompt: str
    row: Mapping[str, Any]

    def image(self) -> Image.Image:
        """The picture, decoded.

        Raises:
            OSError: it does not decode.
        """
        with Image.open(io.BytesIO(self.content), formats=["PNG", "JPEG", "WEBP"]) as image:
            image.load()
            return image


@dataclass(frozen=True, slots=True)
class Opinion:
    """A score from 0, worst, to 1, and the reason for it in words."""

    score: float
    words: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of asking a judge: an opinion, or else why there is none; and what it cost in USD.

    ``doubtful_usd`` may have been charged beyond that, for requests without an answer.
    """

    opinion: Opinion | None = None
    failure: str = ""
    usd: float = 0.0
    doubtful_usd: float = 0.0


class OpinionError(ValueError):
    """A judge answered something else than a score from 0 to 1 with words."""


class Judge(ABC):
    """Gives opinions on pictures; an async context manager, used from one event loop."""

    price_usd: float = 0.0
    """About what the next opinion costs, in USD."""
    reads_rows: bool = False
    """Whether it looks at more of a catalog's row than the prompt."""

    @abstractmethod
    async def ask(self, candidate: Candidate) -> Answer:
        """The opinion on a picture, within a bounded time. Raises nothing."""

    async def __aenter__(self) -> Self:
        """Get ready.

        Raises:
            InputError: the judge cannot be used; says why.
        """
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what :meth:`__aenter__` opened."""
        return


def opinion_of(score: object, words: object = "") -> Opinion:
    """An opinion from what a judge answered, whose type nobody knows.

    Raises:
        OpinionError: the score is no number from 0 to 1.
    """
    try:
        number = math.nan if isinstance(score, (bool, str, bytes)) else float(score)  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - an object's own conversion may raise anything
        number = math.nan
    if not 0 <= number <= 1:
        raise OpinionError(f"the score {_shown(score)} is not a number from 0 to 1")
    text = words if isinstance(words, str) else ""
    return Opinion(round(number, 4), masked(printable(cut(text, _MOST_WORDS))))


def failure_of(error: BaseException) -> str:
    """An exception from a judge's code in words, even if its own cannot be read."""
    name = type(error).__name__
    try:
        words = f"{name}: {error}"
    except BaseException:  # noqa: BLE001 - an exception of that code's may raise another from its __str__
        words = f"{name}, whose text cannot be read"
    return masked(printable(cut(words, 250)))


def _shown(score: object) -> str:
    try:
        return printable(cut(repr(score), 40))
    except Exception:  # noqa: BLE001 - ValueError for an int of more than 4300 digits
        return f"of type {type(score).__name__}"
