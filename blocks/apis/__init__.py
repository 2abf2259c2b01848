"""Image APIs: one module a vendor, all behind :class:`ImageApi`."""

from __future__ import annotations

from blocks.apis.base import GeneratedImage, ImageApi, SizeLimits
from blocks.apis.fal import Fal
from blocks.apis.together import Together

PROVIDERS: dict[str, type[ImageApi]] = {api.provider: api for api in (Together, Fal)}
"""The vendors by the name that ``--provider`` takes."""

__all__ = ["PROVIDERS", "Fal", "GeneratedImage", "ImageApi", "SizeLimits", "Together"]
