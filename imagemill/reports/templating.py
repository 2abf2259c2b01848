"""The template environment of report and dashboard, which makes untrusted text harmless."""

from __future__ import annotations

import base64
import functools
import re

import jinja2
from markupsafe import Markup

from imagemill.formatting import cut, duration, money, percent, price, rate, seconds, utc


@functools.cache
def environment() -> jinja2.Environment:
    """The templates and their filters."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("imagemill.reports"),
        autoescape=True,
        finalize=_harmless,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        cut=cut,
        money=money,
        price=price,
        percent=percent,
        rate=rate,
        seconds=seconds,
        duration=duration,
        utc=utc,
        base64=lambda content: base64.b64encode(content).decode(),
    )
    return made


_INVISIBLE = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
"""Invisible characters, and those that reorder text; not joiners and plain direction marks, which some
scripts need."""


def _harmless(value: object) -> object:
    """What a template prints: text with its invisible characters escaped."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _INVISIBLE.sub(lambda found: f"\u27e8U+{ord(found[0]):04X}\u27e9", value)
    return value
