"""What a plan counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class PlanCounts:
    """A catalog, counted before anything is asked of the API. Costs in USD, for one image per job."""

    rows: int
    rejected: int
    unique: int
    duplicates: int
    cost_usd: float
    duplicates_usd: float
    negative_prompts: int = 0
    """Rows whose negative prompt the model does not use."""
    unpriced: int = 0
    """Jobs whose price is unknown: the costs are those of the others."""
    levers: list[dict[str, Any]] = field(default_factory=list)
    """What would make the catalog cheaper: see ``imagemill.catalog.cost.Lever``."""
