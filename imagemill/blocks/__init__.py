"""Prefect block types that users save: image APIs and the servers of job stores.

``prefect block register -m imagemill.blocks`` registers them. They are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imagemill.blocks.apis import (
        BlackForestLabs,
        Cloudflare,
        Fal,
        OpenAICompatible,
        Replicate,
        Runware,
        Together,
    )
    from imagemill.blocks.store_servers import PostgresServer, RedisServer

__all__ = [
    "BlackForestLabs",
    "Cloudflare",
    "Fal",
    "OpenAICompatible",
    "PostgresServer",
    "RedisServer",
    "Replicate",
    "Runware",
    "Together",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "imagemill.blocks.store_servers" if name.endswith("Server") else "imagemill.blocks.apis"
    found: object = getattr(import_module(home), name)
    return found
