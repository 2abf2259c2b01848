"""What runs are compared by."""

from __future__ import annotations

from pydantic import Field

from imagemill.settings.group import SettingsGroup


class RegressionSettings(SettingsGroup):
    """When a run counts as a regression, on the dashboard and in its events."""

    share: float = Field(
        default=0.2,
        gt=0,
        le=10,
        description="How much worse than the median of earlier runs counts as a regression: 0.2 is 20 % less"
        " throughput, or 20 % more latency, errors, suspect pictures or cost per image.",
    )
    runs_before: int = Field(
        default=3,
        ge=1,
        description="How many earlier runs of the same catalog and API are needed to compare with.",
    )
