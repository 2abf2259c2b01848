"""Faults: which generation request goes wrong, and in which way."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["CHARGED", "FLAWS", "LINK", "NAMES", "STATUS", "FaultPlan", "UnknownFaultError"]

STATUS = frozenset({"400", "401", "402", "429", "500", "502", "503", "504"})
"""Faults that answer with an HTTP status instead of a picture. Nothing is charged."""

FLAWS = frozenset(
    {"black", "blurred", "flat", "half_decoded", "letterboxed", "near_duplicate", "placeholder"}
)
"""Flaws of a picture that is complete and has the right size."""

CHARGED = frozenset(
    {
        "timeout_after_charge",
        "reset_body",
        "truncated",
        "wrong_size",
        "garbage",
        "expired_link",
        *FLAWS,
    }
)
"""Faults in which a picture was made, so that it is charged."""

LINK = frozenset({"reset_body", "truncated", "garbage", "expired_link"})
"""Faults that apply to the file behind an image link, where the picture goes by link."""

NAMES = STATUS | CHARGED | {"hang", "reset", "html", "wrong_shape", "flagged", "fail"}
"""The names of all faults."""

_MARKER = re.compile(r"#fault:(\w+)(?:\*(\d{1,9}))?")


class UnknownFaultError(ValueError):
    """A prompt marker names a fault that does not exist."""


class FaultPlan:
    """Draws the fault of each generation request, from a seed or from markers in the prompt.

    A marker `#fault:NAME` in a prompt brings that fault to each request with the prompt,
    `#fault:NAME*2` to its first two requests only. Several markers are used up in order, and
    then the requests are normal. A prompt with markers is exempt from the drawn faults.
    """

    def __init__(self, rates: Mapping[str, float], seed: int) -> None:
        """Draw faults at these rates (shares from 0 to 1 of the requests)."""
        self._rates = dict(rates)
        self._seed = seed
        self._arrivals: dict[str, int] = {}

    def configure(self, rates: Mapping[str, float], seed: int) -> None:
        """Replace the rates and the seed, keeping the count of the markers used up."""
        self._rates = dict(rates)
        self._seed = seed

    def draw(self, prompt: str, arrival: int) -> str | None:
        """Return the fault of the request with this prompt and arrival number, None for none."""
        if "#fault:" in prompt:
            markers = list(_markers(prompt))
            if markers:
                count = self._arrivals.get(prompt, 0)
                self._arrivals[prompt] = count + 1
                return _marked(markers, count)
        if not self._rates:
            return None
        point = random.Random(f"fault:{self._seed}:{arrival}").random()
        for name, rate in sorted(self._rates.items()):
            if point < rate:
                return name
            point -= rate
        return None

    def reset(self) -> None:
        """Forget which markers were used up."""
        self._arrivals.clear()

    @staticmethod
    def check(prompt: str) -> None:
        """Check that the markers of a prompt name known faults.

        Raises:
            UnknownFaultError: A marker names another fault.
        """
        if "#fault:" in prompt:
            for name, _ in _markers(prompt):
                if name not in NAMES:
                    raise UnknownFaultError(name)


def _markers(prompt: str) -> Iterator[tuple[str, int | None]]:
    for match in _MARKER.finditer(prompt):
        yield match[1], int(match[2]) if match[2] else None


def _marked(markers: list[tuple[str, int | None]], count: int) -> str | None:
    for name, times in markers:
        if times is None or count < times:
            return name
        count -= times
    return None
