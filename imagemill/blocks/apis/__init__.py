"""Image APIs: one module a vendor, all behind :class:`ImageApi`."""

from __future__ import annotations

from imagemill.blocks.apis.base import GeneratedImage, ImageApi, ImageSource, SizeLimits
from imagemill.blocks.apis.bfl import BlackForestLabs
from imagemill.blocks.apis.fal import Fal
from imagemill.blocks.apis.openai import OpenAICompatible
from imagemill.blocks.apis.queued import QueuedApi
from imagemill.blocks.apis.replicate import Replicate
from imagemill.blocks.apis.together import Together

PROVIDERS: dict[str, type[ImageApi]] = {
    api.provider: api for api in (Together, Fal, Replicate, BlackForestLabs, OpenAICompatible)
}
"""The vendors by the name that ``--provider`` takes."""

__all__ = [
    "PROVIDERS",
    "BlackForestLabs",
    "Fal",
    "GeneratedImage",
    "ImageApi",
    "ImageSource",
    "OpenAICompatible",
    "QueuedApi",
    "Replicate",
    "SizeLimits",
    "Together",
]
