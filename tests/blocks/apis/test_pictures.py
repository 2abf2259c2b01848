"""Formats and sizes: what each API offers, what is refused before a request, and what the bytes decide."""

from __future__ import annotations

from collections.abc import Callable

import boto3
import pytest

from imagemill.blocks.apis import PROVIDERS, ImageApi, Replicate, Together
from imagemill.bucket.image_bucket import ImageBucket
from imagemill.catalog.plan import Planner
from imagemill.emulator import Emulator
from imagemill.errors import InputError
from imagemill.jobs import Job, JobStatus
from imagemill.settings import PictureSettings
from tests.blocks.apis.variants import VARIANTS, Outcome, make_job

Work = Callable[[ImageApi, Job], Outcome]

EXTENSIONS = {"png": "png", "jpeg": "jpg", "webp": "webp"}
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
OFFERED = [
    (variant, image_format)
    for variant, make in VARIANTS.items()
    for image_format in sorted(make("http://127.0.0.1").formats)
]


@pytest.mark.parametrize(("variant", "image_format"), OFFERED)
def test_each_format_arrives_as_itself(
    variant: str, image_format: str, emulator: Emulator, work: Work, bucket: ImageBucket
) -> None:
    api = VARIANTS[variant](emulator.base_url)
    job = work(api, make_job(api, f"A fox in {variant}", format=image_format)).job
    assert job.status is JobStatus.DONE, job.error_message
    assert job.image is not None
    made = "jpeg" if variant == "cloudflare" else image_format  # it makes JPEG whatever is asked for
    assert job.image.endswith(f".{EXTENSIONS[made]}")
    client = boto3.Session("test", "test", region_name="us-east-1").client(
        "s3", endpoint_url=bucket.endpoint_url
    )
    stored = client.head_object(Bucket="images", Key=f"run/{job.image}")
    client.close()
    assert stored["ContentType"] == MEDIA_TYPES[made]
    assert stored["Metadata"]["key"] == job.key
    assert stored["Metadata"]["seed"] == "7"


def test_the_bytes_decide_what_a_picture_is(emulator: Emulator, work: Work) -> None:
    class Stubborn(Together):
        _block_type_slug = "tests-stubborn"

        def body(self, job: Job) -> dict[str, object]:
            return {**super().body(job), "output_format": "jpeg"}

    job = work(api := Stubborn(api_key="k", base_url=emulator.base_url), make_job(api, "A stubborn fox")).job
    assert job.format == "png"
    assert job.image is not None
    assert job.image.endswith(".jpg")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_format_that_is_not_offered_is_refused_in_one_sentence(provider: str) -> None:
    api = PROVIDERS[provider](api_key="k")
    if "webp" in api.formats:
        Planner(api, PictureSettings(format="webp"))
        return
    with pytest.raises(
        InputError, match=f"^The provider {provider} does not make webp images. Choose jpeg or png.$"
    ):
        Planner(api, PictureSettings(format="webp"))


def test_replicate_takes_the_sizes_that_its_ratios_bring_and_no_other(emulator: Emulator, work: Work) -> None:
    api = Replicate(api_key="k", base_url=emulator.base_url)
    assert len(api.profile.sizes.listed) == 22
    for width, height in ((1024, 1024), (1344, 768), (320, 768)):
        assert api.refusal(width, height, 4) is None
        job = make_job(api, f"A fox of {width}", width=width, height=height)
        assert work(api, job).job.status is JobStatus.DONE
    assert api.refusal(1280, 720, 4) == "Replicate has no size 1280 x 720; the nearest is 1344 x 768"
    assert api.refusal(1024, 1024, 5) == "steps 5 is not between 1 and 4"
    refused = work(api, make_job(api, "A wide fox", width=1280, height=720)).job
    assert (refused.error_class, refused.retryable) == ("bad_request", False)
    assert emulator.stats()["generation_requests"] == 3


@pytest.mark.parametrize(
    ("provider", "width", "height", "steps", "refused"),
    [
        ("together", 1000, 1024, 4, "width 1000 is not a multiple of 16"),
        ("together", 1024, 2048, 4, "height 2048 is not between 64 and 1792"),
        ("fal", 1023, 777, 12, None),
        ("fal", 1024, 1024, 13, "steps 13 is not between 1 and 12"),
        ("bfl", 1440, 256, 4, None),
        ("bfl", 1456, 256, 4, "width 1456 is not between 256 and 1440"),
        ("bfl", 1424, 256, 4, "width 1424 is not a multiple of 32"),
        ("openai", 1024, 1536, 50, None),
        ("openai", 1024, 512, 50, "1024 x 512 has fewer than 655,360 pixels"),
    ],
)
def test_limits(provider: str, width: int, height: int, steps: int, refused: str | None) -> None:
    model = "gpt-image-2" if provider == "openai" else ""
    api = PROVIDERS[provider](api_key="k", base_url="http://api.internal", model=model)
    assert api.refusal(width, height, steps) == refused
