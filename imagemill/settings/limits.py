"""Limits on speed and cost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, WithJsonSchema, field_validator, model_validator

from imagemill.settings.group import SettingsGroup


class LimitSettings(SettingsGroup):
    """Limits on speed and cost."""

    concurrency: (
        Annotated[int, WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 1000})] | Literal["auto"]
    ) = Field(
        default="auto",
        description="Requests at once: auto starts at 10 and finds the account's limit; a number is a cap.",
    )
    max_images_per_minute: float | None = Field(
        default=None, gt=0, description="Never request more images per minute than this."
    )
    max_cost_usd: float | None = Field(
        default=None, ge=0, description="Stop before the run costs more than this. It can be resumed."
    )
    approve_above_usd: float | None = Field(
        default=None,
        ge=0,
        description="Suspend runs that would cost more than this until someone approves them in the UI,"
        " beside a preview of up to 12 pictures, which costs no more than this.",
    )
    route_policy: Literal["fastest", "cheapest", "failover"] = Field(
        default="fastest",
        description="Which of several routes takes a job: fastest keeps each at its limit; cheapest takes a"
        " dearer one only where the cheaper ones are closed, down or too slow for the deadline; failover"
        " takes the first that works.",
    )
    finish_by: AwareDatetime | None = Field(
        default=None,
        description="When a run with the policy cheapest should be finished, with a time zone.",
        examples=["2026-12-01T06:00:00+01:00"],
    )
    max_hours: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="The same as hours from the start, or from a resume.",
    )
    outage_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Treat the API as down, and only probe it, once more than this share of the last 200"
        " attempts failed with server errors or timeouts.",
    )
    outage_timeout_s: float = Field(
        default=300.0,
        ge=0,
        description="Stop once the API has been down, or (after 2 minutes at least) has refused every request"
        " with a 429, for this many seconds. The run can be resumed.",
    )
    setup_fault_share: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Stop once the first 10 rows, or later more than this share of the last 50 requests, have"
        " failed in the same way for a reason that lies in the setup. The run can be resumed; 1 never stops.",
    )

    @model_validator(mode="after")
    def _one_deadline(self) -> LimitSettings:
        deadlines = [at for at in (self.finish_by, self.max_hours) if at is not None]
        if deadlines and self.route_policy != "cheapest":
            raise ValueError("only the route policy cheapest has a deadline; the others take no longer")
        if len(deadlines) > 1:
            raise ValueError("give either finish_by or max_hours")
        return self

    @field_validator("concurrency")
    @classmethod
    def _bounded(cls, concurrency: int | str) -> int | str:
        if isinstance(concurrency, int) and not 1 <= concurrency <= 1000:
            raise ValueError(f"{concurrency} is not between 1 and 1000")
        return concurrency
