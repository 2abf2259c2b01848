"""Image APIs: one module a vendor, all behind :class:`ImageApi`."""

from __future__ import annotations

from blocks.apis.base import GeneratedImage, ImageApi, ImageSource, SizeLimits
from blocks.apis.bfl import BlackForestLabs
from blocks.apis.fal import Fal
from blocks.apis.openai import OpenAICompatible
from blocks.apis.queued import QueuedApi
from blocks.apis.replicate import Replicate
from blocks.apis.together import Together

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
