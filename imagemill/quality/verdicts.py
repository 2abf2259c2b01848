"""Flags that a person should look at, each set when a measure passes a bound.

The bounds are chosen to flag few pictures that are right.
"""

from __future__ import annotations

from enum import StrEnum

from imagemill.quality.measures import Measures

FLAT_SHARE = 0.97
BLURRED_BELOW = 0.06
LETTERBOX_SHARE = 0.06
HALF_DECODED_SHARE = 0.12


class Verdict(StrEnum):
    """Why a picture is suspect."""

    PLACEHOLDER = "placeholder"
    """The same file for three different prompts: no model made it."""
    NEAR_DUPLICATE = "near_duplicate"
    """Another prompt has nearly the same picture."""
    HALF_DECODED = "half_decoded"
    """Its lower end has one colour, as if data were missing."""
    FLAT = "flat"
    """Hardly any detail anywhere."""
    BLURRED = "blurred"
    """No sharp edge anywhere."""
    LETTERBOXED = "letterboxed"
    """Plain bars at two opposite edges."""


def judge(measures: Measures) -> tuple[Verdict, ...]:
    """The verdicts on one picture by itself, worst first."""
    found = []
    if measures.blank_end >= HALF_DECODED_SHARE:
        found.append(Verdict.HALF_DECODED)
    if measures.flat >= FLAT_SHARE:
        found.append(Verdict.FLAT)
    elif measures.sharpness < BLURRED_BELOW and not found:
        found.append(Verdict.BLURRED)
    if measures.border >= LETTERBOX_SHARE:
        found.append(Verdict.LETTERBOXED)
    return tuple(found)
