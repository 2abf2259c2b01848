"""Settings of an emulator: one frozen value, checked when it is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from imagemill.emulator.faults import NAMES

__all__ = ["Settings", "SettingsError"]


_WORDS = {"pictures": ("full", "fast"), "runware_repeats": ("refused", "answered", "made_again")}


class SettingsError(ValueError):
    """A setting has a value that the emulator cannot use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the emulated vendors behave.

    Attributes:
        max_concurrent: Generation requests in progress at once. Beyond it fal's queue lets requests wait, and
            every other API refuses them. None: no limit.
        per_minute: Rate limit as a token bucket, in generation requests a minute. None: no limit.
        burst: Capacity of the token bucket, in requests.
        dynamic_per_minute: Base of Together's dynamic rate, in requests a minute; the vendor's is 60. None:
            no dynamic rate.
        dynamic_growth: The dynamic rate as a multiple of what succeeded in the window before.
        dynamic_window_s: That window, in seconds.
        capacity_per_s: Requests a second that Together has capacity for, counted beside the dynamic rate;
            more of them within the rate are answered with a 503. None: no end.
        polls_per_minute: Rate limit of questions about queued requests, apart from the other; a
            second's worth at once. None: no limit.
        retry_after: Whether a 429 answer carries Retry-After where the wait is known.
        latency_s: Median of the lognormal generation latency, in seconds. 0: none.
        latency_sigma: Sigma of the lognormal latency (of the logarithm, so without a unit).
        faults: Rate of each fault, a share from 0 to 1 of the generation requests, by fault name.
        hang_s: Seconds after which a hanging request is cut off.
        api_keys: Keys that are accepted. Empty: every key that is not blank.
        admin_keys: Keys that may read what was charged, at fal. Empty: those that are accepted.
        result_ttl_s: Seconds until a queued request's result is forgotten (fal, Replicate).
        billing_lag_s: Seconds until a charge shows among fal's billing events.
        runware_repeats: What a taskUUID that Runware knows brings: "refused" as a conflict, "answered"
            with the first response, or "made_again" and charged again.
        credit_images: Images that may be charged before the credit is exhausted. None: no end.
        link_ttl_s: Seconds until an image link expires. None: never.
        pictures: "full" draws each picture; "fast" draws one a size and only makes it unique.
        seed: Seed of every random draw (latency, faults, seeds that a request leaves open).
    """

    max_concurrent: int | None = None
    per_minute: float | None = None
    burst: int = 1
    dynamic_per_minute: float | None = None
    dynamic_growth: float = 2.0
    dynamic_window_s: float = 3600.0
    capacity_per_s: float | None = None
    polls_per_minute: float | None = None
    retry_after: bool = True
    latency_s: float = 0.4
    latency_sigma: float = 0.35
    faults: Mapping[str, float] = field(default_factory=dict)
    hang_s: float = 30.0
    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    result_ttl_s: float = 3600.0
    billing_lag_s: float = 0.0
    runware_repeats: Literal["refused", "answered", "made_again"] = "refused"
    credit_images: int | None = None
    link_ttl_s: float | None = None
    pictures: Literal["full", "fast"] = "full"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            SettingsError: A value is of the wrong type or out of its range.
        """
        _whole("max_concurrent", self.max_concurrent, least=1, optional=True)
        _real("per_minute", self.per_minute, optional=True, positive=True)
        _whole("burst", self.burst, least=1)
        _real("dynamic_per_minute", self.dynamic_per_minute, optional=True, positive=True)
        _real("dynamic_growth", self.dynamic_growth, positive=True)
        _real("dynamic_window_s", self.dynamic_window_s, positive=True)
        _real("capacity_per_s", self.capacity_per_s, optional=True, positive=True)
        _real("polls_per_minute", self.polls_per_minute, optional=True, positive=True)
        _real("latency_s", self.latency_s)
        _real("latency_sigma", self.latency_sigma)
        _real("hang_s", self.hang_s)
        _real("result_ttl_s", self.result_ttl_s)
        _real("billing_lag_s", self.billing_lag_s)
        _whole("credit_images", self.credit_images, least=0, optional=True)
        _real("link_ttl_s", self.link_ttl_s, optional=True)
        _whole("seed", self.seed, least=0)
        if not isinstance(self.retry_after, bool):
            _refuse("retry_after", "true or false", self.retry_after)
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                _refuse(name, " or ".join(map(repr, words)), getattr(self, name))
        for name in ("api_keys", "admin_keys"):
            keys = getattr(self, name)
            if not isinstance(keys, (tuple, list)) or not all(isinstance(k, str) and k.strip() for k in keys):
                _refuse(name, "a list of keys that are not blank", keys)
            object.__setattr__(self, name, tuple(keys))
        if not isinstance(self.faults, Mapping):
            _refuse("faults", "a rate by fault name", self.faults)
        for name, rate in self.faults.items():
            if name not in NAMES:
                message = f"There is no fault {name!r}: choose among {', '.join(sorted(NAMES))}."
                raise SettingsError(message)
            _real(f"faults[{name}]", rate)
        if sum(self.faults.values()) > 1 + 1e-9:
            message = "The rates of all faults together must not be above 1."
            raise SettingsError(message)
        object.__setattr__(self, "faults", dict(self.faults))

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """Return these settings with some values changed.

        Raises:
            SettingsError: A name is unknown or a value cannot be used.
        """
        known = {item.name for item in fields(self)}
        for name in changes:
            if name not in known:
                message = f"There is no setting {name!r}: choose among {', '.join(sorted(known))}."
                raise SettingsError(message)
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values that JSON can hold."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        lists = {"api_keys": list(self.api_keys), "admin_keys": list(self.admin_keys)}
        return values | lists | {"faults": dict(self.faults)}


def _refuse(name: str, wanted: str, value: object) -> None:
    message = f"The setting {name} must be {wanted}, not {value!r:.80}."
    raise SettingsError(message)


def _whole(name: str, value: object, *, least: int, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        _refuse(name, f"a whole number of at least {least}", value)


def _real(name: str, value: object, *, optional: bool = False, positive: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _refuse(name, "a number", value)
    elif not math.isfinite(value) or value < 0 or (positive and value == 0):
        _refuse(name, "a finite number above 0" if positive else "a finite number from 0", value)
