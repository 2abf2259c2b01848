"""What a refresh may take away."""

from __future__ import annotations

from pydantic import Field

from imagemill.settings.group import SettingsGroup


class RefreshSettings(SettingsGroup):
    """What a refresh may take away, and what happens if it would take more."""

    max_retired_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Refuse a refresh that would take more than this share of the manifest's rows or, with"
        " prune, delete more than this share of its images. One that would take everything, or whose catalog"
        " has no usable row or hardly any row of the manifest, is refused whatever the share.",
    )
    allow_loss: bool = Field(
        default=False, description="Go on although the refresh takes away more than that."
    )
    approve_loss: bool = Field(
        default=False,
        description="Suspend such a refresh until someone approves it in the UI, instead of refusing it.",
    )
    prune_after_days: float = Field(
        default=7.0,
        ge=0,
        description="With prune, delete an image once no row has used it for this many days; 0 deletes at"
        " once. Until then, a row that returns finds its image.",
    )
    only_paths: list[str] = Field(
        default_factory=list,
        description="Refresh only from catalogs whose path matches one of these patterns, where * stands for"
        " any characters: an event could name any path. A path with .. matches none.",
        examples=[["s3://catalogs/products/*"]],
    )
