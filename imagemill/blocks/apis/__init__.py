"""Image APIs: one module per vendor, all behind :class:`ImageApi`."""

from __future__ import annotations

from imagemill.blocks.apis.account import SizeLimits
from imagemill.blocks.apis.base import ImageApi
from imagemill.blocks.apis.bfl import BlackForestLabs
from imagemill.blocks.apis.cloudflare import Cloudflare
from imagemill.blocks.apis.fal import Fal
from imagemill.blocks.apis.generated_image import Charge, GeneratedImage, ImageSource
from imagemill.blocks.apis.openai import OpenAICompatible
from imagemill.blocks.apis.queued import QueuedApi
from imagemill.blocks.apis.replicate import Replicate
from imagemill.blocks.apis.runware import Runware
from imagemill.blocks.apis.together import Together
from imagemill.jobs import CostSource

PROVIDERS: dict[str, type[ImageApi]] = {
    api.provider: api
    for api in (Together, Fal, Replicate, BlackForestLabs, OpenAICompatible, Runware, Cloudflare)
}
"""The vendors by the name that ``--provider`` takes."""

__all__ = [
    "PROVIDERS",
    "BlackForestLabs",
    "Charge",
    "Cloudflare",
    "CostSource",
    "Fal",
    "GeneratedImage",
    "ImageApi",
    "ImageSource",
    "OpenAICompatible",
    "QueuedApi",
    "Replicate",
    "Runware",
    "SizeLimits",
    "Together",
]
