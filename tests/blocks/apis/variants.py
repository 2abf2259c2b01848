"""Every API in every form it can be used in, and jobs that all of them take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imagemill.blocks.apis import PROVIDERS, Fal, ImageApi, Replicate
from imagemill.engine.engine import Stop
from imagemill.jobs import Job

VARIANTS: dict[str, Callable[[str], ImageApi]] = {
    "together": lambda base: PROVIDERS["together"](api_key="k", base_url=base),
    # What a server of one's own charges is not listed anywhere.
    "openai": lambda base: PROVIDERS["openai"](api_key="k", base_url=base, usd_per_image=0.003),
    "fal": lambda base: PROVIDERS["fal"](api_key="k", base_url=base),
    "fal at once": lambda base: Fal(api_key="k", base_url=f"{base}/sync", queued=False),
    "replicate": lambda base: PROVIDERS["replicate"](api_key="k", base_url=base),
    "replicate waiting": lambda base: Replicate(api_key="k", base_url=base, wait_s=60),
    "bfl": lambda base: PROVIDERS["bfl"](api_key="k", base_url=base),
    # Its prices go by compute time, and are not listed: this is what the emulator charges.
    "runware": lambda base: PROVIDERS["runware"](api_key="k", base_url=base, usd_per_megapixel=0.0013),
    "cloudflare": lambda base: PROVIDERS["cloudflare"](api_key="k", base_url=base, account="abc"),
}
"""Every API in every form it can be used in, by a name for the test's report."""

QUEUED = {"fal", "replicate", "replicate waiting", "bfl"}


def make_job(api: ImageApi, prompt: str = "A lighthouse", *, number: int = 0, **fields: Any) -> Job:
    """A job of 512 x 512, or of the one size that the API has."""
    sizes = api.profile.sizes.listed
    width, height = next(iter(sizes)) if len(sizes) == 1 else (512, 512)
    given = {"width": width, "height": height, "steps": 4, "seed": 7, "format": "png", **fields}
    key = f"{abs(hash((prompt, *given.values()))):040x}"[:40]
    return Job(
        number=number, id=str(number), key=key, prompt=prompt, negative_prompt=None, model=api.model, **given
    )


@dataclass(frozen=True)
class Outcome:
    """What became of one job, and of the run."""

    job: Job
    stopped: Stop | None
    rate_limited: int
