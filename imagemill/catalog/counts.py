"""The counts of a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class PlanCounts:
    """Counts of a catalog's rows and jobs. Costs are in USD, for one image per job.

    ``rejected`` are rows none of whose pictures became a job, and single combinations of varied values of the
    others; ``duplicates`` are pictures.
    """

    rows: int
    rejected: int
    unique: int
    duplicates: int
    cost_usd: float
    duplicates_usd: float
    variants: int = 1
    """Pictures per row."""
    negative_prompts: int = 0
    """Rows with a negative prompt that the model ignores."""
    unpriced: int = 0
    """Jobs whose price is unknown: the costs are those of the others."""
    levers: list[dict[str, Any]] = field(default_factory=list)
    """What would make the catalog cheaper: see ``imagemill.catalog.cost.Lever``."""
    columns: dict[str, Any] = field(default_factory=dict)
    """What the catalog's columns are used for: see ``imagemill.catalog.columns.described``."""
