"""The receipt that is stored with an image: which run paid for it, and how much.

The image is stored before anything else about a finished job. If a process cannot store more, because of a
full disk, or if the job store is lost, a resume reads the outcome from the receipt.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from imagemill.jobs import Job

RECEIPT_SUFFIX = ".json"
"""Of the receipt beside an image that is kept in the run's folder."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The attempts and costs of a job when its image was stored. Costs are in USD, times in seconds."""

    run_id: str
    attempts: int
    latency_s: float | None
    cost_usd: float
    unanswered: int
    unanswered_usd: float
    cost_source: str = ""
    queued_s: float | None = 0.0
    route: str = ""

    @classmethod
    def of(cls, run_id: str, job: Job, latency_s: float | None, queued_s: float | None) -> Self:
        """The receipt of a job whose image has just arrived."""
        return cls(
            run_id,
            job.attempts,
            latency_s,
            job.cost_usd,
            job.unanswered,
            job.unanswered_usd,
            job.cost_source,
            queued_s,
            job.route,
        )

    def to_metadata(self) -> dict[str, str]:
        """The receipt as an object's metadata."""
        return {
            "run-id": self.run_id,
            "attempts": str(self.attempts),
            "latency-s": _text_of(self.latency_s),
            "queued-s": _text_of(self.queued_s),
            "cost-usd": repr(round(self.cost_usd, 12)),
            "cost-source": self.cost_source or "none",
            "unanswered": str(self.unanswered),
            "unanswered-usd": repr(round(self.unanswered_usd, 12)),
            **({"route": self.route} if self.route else {}),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self | None:
        """The receipt in an object's metadata; None if there is no readable one."""
        try:
            found = cls(
                str(metadata["run-id"]),
                int(metadata["attempts"]),
                _seconds_of(metadata["latency-s"]),
                float(metadata["cost-usd"]),
                int(metadata["unanswered"]),
                float(metadata["unanswered-usd"]),
                _source_of(str(metadata.get("cost-source", ""))),
                _seconds_of(metadata.get("queued-s", "0")),
                str(metadata.get("route", "")),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        numbers = (
            *(found.attempts, found.latency_s or 0.0, found.queued_s or 0.0),
            *(found.cost_usd, found.unanswered, found.unanswered_usd),
        )
        return found if all(math.isfinite(number) and number >= 0 for number in numbers) else None

    def settle(self, job: Job) -> None:
        """Raise a job's counts to those of the receipt, which knows its time in the vendor's queue."""
        job.queued_s = self.queued_s
        job.route = self.route or job.route
        job.attempts = max(job.attempts, self.attempts)
        job.cost_usd = max(job.cost_usd, self.cost_usd)
        job.cost_source = job.cost_source or self.cost_source
        job.unanswered = max(job.unanswered, self.unanswered)
        job.unanswered_usd = max(job.unanswered_usd, self.unanswered_usd)


def image_metadata(job: Job, receipt: Receipt | None, *, vendor: str = "") -> dict[str, str]:
    """The metadata that a job's image is stored with: what it was made from, and the receipt if known.

    ``vendor`` is who made it, in a run over several.
    """
    digest = hashlib.sha256(job.prompt.encode("utf-8", "surrogatepass")).hexdigest()
    made_from = {"key": job.key, "seed": str(job.take_seed), "model": job.model, "prompt-sha256": digest}
    if vendor:
        made_from["vendor"] = vendor
    return made_from | (receipt.to_metadata() if receipt else {})


def drop_with_receipt(file: Path) -> None:
    """Delete an image that was kept in the run's folder, and then its receipt."""
    for path in (file, file.with_suffix(RECEIPT_SUFFIX)):
        path.unlink(missing_ok=True)


def _text_of(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds:.4f}"


def _seconds_of(text: str) -> float | None:
    return None if text == "unknown" else float(text)


def _source_of(text: str) -> str:
    """A source of cost as an object carries it; the list price for receipts of earlier versions."""
    return {"none": "", "told": "told", "unknown": "unknown"}.get(text, "list")
