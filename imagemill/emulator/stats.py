"""Statistics: requests by route and outcome, and the last requests as received."""

from __future__ import annotations

import json
import time
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Stats"]

_RING = 1000
_LARGEST_BODY_KEPT = 65_536
_SECRET = frozenset({"authorization", "x-key", "cookie", "proxy-authorization"})


class Stats:
    """Counts requests and keeps the last generation requests in a ring of 1,000."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.reset()

    def reset(self) -> None:
        """Forget all counts and requests."""
        self.requests: dict[str, dict[str, int]] = {}
        self.generation_requests = 0
        self.polls = 0
        self.downloads = 0
        self.first_request_at: float | None = None
        self.last_answer_at: float | None = None
        self._ring: deque[dict[str, Any]] = deque(maxlen=_RING)

    def arrive(self) -> None:
        """Note that a request of a vendor's API came in."""
        if self.first_request_at is None:
            self.first_request_at = time.time()

    def answer(self, route: str, outcome: str) -> None:
        """Count an answer by its route and its status, or "hang" or "reset" for none."""
        self.last_answer_at = time.time()
        outcomes = self.requests.setdefault(route, {})
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    def keep(self, path: str, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> None:
        """Keep a generation request as received, with credentials masked to their scheme."""
        self.generation_requests += 1
        kept = {}
        for raw_name, raw_value in headers:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            if name in _SECRET:
                scheme, space, _ = value.partition(" ")
                value = f"{scheme} ***" if space else "***"
            kept[name] = value
        self._ring.append({"path": path, "headers": kept, "body": body[:_LARGEST_BODY_KEPT]})

    def last(self, count: int) -> list[dict[str, Any]]:
        """Return the last generation requests, oldest first; bodies are JSON where they parse."""
        kept = list(self._ring)[-count:] if count > 0 else []
        return [entry | {"body": _readable(entry["body"])} for entry in kept]

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as plain values; times are in Unix seconds."""
        return {
            "requests": {route: dict(outcomes) for route, outcomes in self.requests.items()},
            "generation_requests": self.generation_requests,
            "rate_limited": sum(outcomes.get("429", 0) for outcomes in self.requests.values()),
            "polls": self.polls,
            "downloads": self.downloads,
            "first_request_at": self.first_request_at,
            "last_answer_at": self.last_answer_at,
        }


def _readable(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace")
