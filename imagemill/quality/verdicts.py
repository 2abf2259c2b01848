"""Flags that a person should look at, each set when a measure passes a bound.

The bounds are chosen to flag few pictures that are right; benchmarks/quality.md has precision and recall.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    JUDGED = "judged"
    """The judge that the settings name scored it below the threshold."""


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


def reason(verdict: str, measures: Mapping[str, float | None]) -> str:
    """Why a picture with these measures has a verdict, in words; "" if they do not say."""
    if verdict not in _REASONS:
        return _MEANINGS.get(verdict, "")
    name, words = _REASONS[verdict]
    value = measures.get(name)
    return "" if value is None else words(value)


_REASONS: dict[str, tuple[str, Callable[[float], str]]] = {
    Verdict.HALF_DECODED: (
        "blank_end",
        lambda share: f"the lower {share:.0%} has one colour; {HALF_DECODED_SHARE:.0%} is suspect",
    ),
    Verdict.FLAT: ("flat", lambda share: f"{share:.0%} shows no detail; {FLAT_SHARE:.0%} is suspect"),
    Verdict.BLURRED: ("sharpness", lambda value: f"sharpness {value:.2f}; below {BLURRED_BELOW} is suspect"),
    Verdict.LETTERBOXED: (
        "border",
        lambda share: f"plain bars take {share:.0%}; {LETTERBOX_SHARE:.0%} is suspect",
    ),
}
_MEANINGS: dict[str, str] = {
    Verdict.PLACEHOLDER: "the same file for three different prompts",
    Verdict.NEAR_DUPLICATE: "another prompt has nearly the same picture",
    Verdict.JUDGED: "the judge scored it below the threshold",
}
