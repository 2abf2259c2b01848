"""What a calibration may spend."""

from __future__ import annotations

from pydantic import Field

from imagemill.settings.group import SettingsGroup


class Budget(SettingsGroup):
    """What a calibration may spend. It makes real images, which the vendor charges for."""

    images: int = Field(
        default=300,
        ge=20,
        le=10_000,
        description="The most images to pay for. They are real, and are discarded.",
    )
    seconds: float = Field(
        default=120.0, gt=0, le=3600, description="Stop sending requests after this many seconds."
    )
    width: int = Field(default=512, ge=64, le=4096, description="Width of the images in pixels.")
    height: int = Field(default=512, ge=64, le=4096, description="Height of the images in pixels.")
