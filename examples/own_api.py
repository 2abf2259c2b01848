"""Your own image API in one short file, with everything that a vendor's module needs.

This one is synchronous. For an API that is polled, derive from ``QueuedApi`` instead and add ``handle_of``
(where the answer has the request id) and ``look_url`` (where to poll it).

Prefect finds the block in every process if your package names this module in its entry points:

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

    provider: ClassVar[str] = "own"  # part of every key: two APIs never share a picture
    key_variable: ClassVar[str] = "OWN_API_KEY"
    authorization: ClassVar[tuple[str, str]] = ("authorization", "Bearer {key}")
    default_base_url: ClassVar[str] = "http://gpu.internal:8000"
    default_model: ClassVar[str] = "schnell"
    sizes: ClassVar[SizeLimits] = SizeLimits(smallest=128, largest=2048, multiple=8, most_steps=8)
    formats: ClassVar[frozenset[str]] = frozenset({"png"})
    uses_negative_prompt: ClassVar[bool] = True  # so it is part of the key, and has to be sent

    usd_per_image: float | None = Field(default=0.0005, ge=0, description="Our cost of a picture, in USD.")

    def endpoint(self, job: Job) -> str:
        """The address to which requests are posted."""
        return f"{self.base_url}/paint"

    def body(self, job: Job) -> dict[str, Any]:
        """The JSON to post."""
        return {
            "text": job.prompt,
            "without": job.negative_prompt or "",
            "size": [job.width, job.height],
            "steps": job.steps,
            "seed": job.seed,
        }

    def read(self, answer: dict[str, Any]) -> ImageSource:
        """The image in the answer: base64, a data URI, or a link to the server itself."""
        return ImageSource(answer["picture"])

    # Errors are recognized by status (429, 5xx, 401, ...) and the usual forms of message. If your server
    # reports them differently, override error_of(status, headers, body) and change the error's class.
