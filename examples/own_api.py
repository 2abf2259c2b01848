"""An image API of your own, in one short file: everything a vendor's module needs.

This one is synchronous. For an API that takes a request and is polled, derive from ``QueuedApi`` instead and
add ``handle_of`` (where the answer has the request's id) and ``look_url`` (where to ask about it).

Prefect finds the block in every process once your package names this module in its own entry points:

    [project.entry-points."prefect.collections"]
    our-images = "our_package.own_api"

Then register it (``prefect block register -m our_package.own_api``), save one in the UI or from Python, and
run with ``imagemill run ... --api-block imagemill-own/NAME``.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from imagemill.blocks.apis import ImageApi, ImageSource, SizeLimits
from imagemill.jobs import Job


class OwnApi(ImageApi):
    """Our own GPU server: ``POST /paint`` answers ``{"picture": BASE64}``."""

    _block_type_name = "Image API: our own"
    _block_type_slug = "imagemill-own"

    provider: ClassVar[str] = "own"  # part of each picture's key: two APIs never share a picture
    key_variable: ClassVar[str] = "OWN_API_KEY"
    authorization: ClassVar[tuple[str, str]] = ("authorization", "Bearer {key}")
    default_base_url: ClassVar[str] = "http://gpu.internal:8000"
    default_model: ClassVar[str] = "schnell"
    sizes: ClassVar[SizeLimits] = SizeLimits(smallest=128, largest=2048, multiple=8, most_steps=8)
    formats: ClassVar[frozenset[str]] = frozenset({"png"})
    uses_negative_prompt: ClassVar[bool] = True  # so it is part of the key, and must be sent

    usd_per_image: float | None = Field(default=0.0005, ge=0, description="What a picture costs us, in USD.")

    def endpoint(self, job: Job) -> str:
        """Where a request for an image is posted to."""
        return f"{self.base_url}/paint"

    def body(self, job: Job) -> dict[str, Any]:
        """What is posted, as JSON."""
        return {
            "text": job.prompt,
            "without": job.negative_prompt or "",
            "size": [job.width, job.height],
            "steps": job.steps,
            "seed": job.seed,
        }

    def read(self, answer: dict[str, Any]) -> ImageSource:
        """Where the answer has the image: base64, a data URI, or a link to the server itself."""
        return ImageSource(answer["picture"])

    # Errors are read from their status (429, 5xx, 401, ...) and the usual shapes of their words. Where your
    # server says it differently, override error_of(status, headers, body) and change the error's class.
