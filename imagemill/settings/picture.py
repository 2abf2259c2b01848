"""What each picture looks like, where its row does not say."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from imagemill.settings.group import SettingsGroup

SEED_POLICY = re.compile(r"prompt|random|fixed:(0|[1-9][0-9]{0,9})")
_LARGEST_SEED = 2**32 - 1


PARAM = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")


class PictureSettings(SettingsGroup):
    """Defaults for rows that do not set their own."""

    width: int = Field(default=1024, ge=1, le=4096, description="Width in pixels, for rows without one.")
    height: int = Field(default=1024, ge=1, le=4096, description="Height in pixels, for rows without one.")
    steps: int | None = Field(
        default=None,
        ge=1,
        le=500,
        description="Inference steps, for rows without their own. The default is the model's usual number.",
    )
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="Further fields of the model, named as in its own documents. A param_ column of the"
        " catalog overrides them. They are checked before the run, and are part of each picture's key.",
        examples=[{"guidance_scale": 3.5}],
    )
    seed_policy: str = Field(
        default="prompt",
        description="The seed for rows without one: prompt (derived from the prompt), fixed:N or random.",
        json_schema_extra={"pattern": f"^({SEED_POLICY.pattern})$"},
    )
    format: Literal["png", "jpeg", "webp"] = Field(
        default="png", description="The image format: png, jpeg or, if the API supports it, webp."
    )

    mix_models: bool = Field(
        default=False,
        description="Let several routes have models of different families. Which of them makes a picture is"
        " then chance.",
    )

    @field_validator("params")
    @classmethod
    def _named_params(cls, params: dict[str, Any]) -> dict[str, Any]:
        for name in params:
            if not PARAM.fullmatch(name):
                raise ValueError(f"{name[:60]!r} is not the name of a field")
        return params

    @field_validator("seed_policy")
    @classmethod
    def _known_policy(cls, policy: str) -> str:
        if not SEED_POLICY.fullmatch(policy):
            raise ValueError(f"{policy!r} is not prompt, random or fixed:N")
        if int(policy.partition(":")[2] or 0) > _LARGEST_SEED:
            raise ValueError(f"{policy!r} is too large: a seed is at most {_LARGEST_SEED:,}")
        return policy
