"""What a plan counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlanCounts:
    """A catalog, counted before anything is asked of the API. Costs in USD, for one image a job."""

    rows: int
    rejected: int
    unique: int
    duplicates: int
    cost_usd: float
    duplicates_usd: float
    negative_prompts: int = 0
    """Rows whose negative prompt the model does not use."""
