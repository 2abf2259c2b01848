"""The estimate before a run is the emulator's bill after it."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagemill.blocks.apis import BlackForestLabs, ImageApi, OpenAICompatible, Together
from imagemill.catalog.estimate import estimate
from imagemill.catalog.files import open_catalog
from imagemill.catalog.plan import Planner
from imagemill.emulator import Emulator
from imagemill.jobs import Job, JobStatus
from imagemill.settings import ApiSettings, CatalogSettings, LimitSettings, PictureSettings
from tests.blocks.apis.variants import VARIANTS, Outcome

WorkAll = Callable[[ImageApi, list[Job]], list[Outcome]]

ANY_SIZES = [(256, 256), (512, 512), (512, 1024), (1024, 1024), (1280, 704)]


def sizes_of(api: ImageApi) -> list[tuple[int, int]]:
    return list(api.profile.sizes.listed)[::4] or ANY_SIZES


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_estimate_is_the_bill(
    variant: str, emulator: Emulator, work_all: WorkAll, tmp_path: Path
) -> None:
    emulator.configure(pictures="fast")
    api = VARIANTS[variant](emulator.base_url)
    sizes = sizes_of(api)
    rows = {
        "prompt": [f"a fox {number % 8}" for number in range(2 * len(sizes))],
        "width": [width for width, _ in sizes * 2],
        "height": [height for _, height in sizes * 2],
        "seed": [1] * len(sizes) + [2] * len(sizes),
    }
    pq.write_table(pa.table(rows), tmp_path / "catalog.parquet")
    catalog = CatalogSettings(path=str(tmp_path / "catalog.parquet"))
    before = estimate(
        catalog,
        ApiSettings(
            provider=api.provider,
            base_url=api.base_url,
            account=getattr(api, "account", ""),
            usd_per_image=api.usd_per_image,
            usd_per_megapixel=api.usd_per_megapixel,
        ),
        PictureSettings(),
        LimitSettings(),
    )
    planned = Planner(api, PictureSettings()).plan(open_catalog(catalog))
    jobs = [job for _, _, batch in planned for job in batch]
    ended = work_all(api, jobs)
    assert {outcome.job.status for outcome in ended} == {JobStatus.DONE}
    bill = emulator.bill()
    assert bill["images"] == before.unique == len(jobs)
    assert before.cost_usd == bill["usd"]
    assert math.fsum(outcome.job.cost_usd for outcome in ended) == pytest.approx(bill["usd"], abs=1e-12)


def test_a_model_has_its_own_price_and_the_block_goes_before_the_list() -> None:
    assert BlackForestLabs(api_key="k").price(1024, 1024) == Decimal("0.025")
    assert BlackForestLabs(api_key="k", model="flux-pro-1.1").price(1024, 1024) == Decimal("0.04")
    assert Together(api_key="k", usd_per_megapixel=0.01).price(1000, 500) == Decimal("0.005")
    assert Together(api_key="k", usd_per_megapixel=0.01, usd_per_image=0).price(1000, 500) == 0


def test_an_unknown_price_is_not_guessed() -> None:
    for api in (
        Together(api_key="k", model="somebody/new"),
        OpenAICompatible(api_key="k", base_url="http://a.b"),
    ):
        assert api.price(1024, 1024) is None
        assert api.price_in_words == "unknown"
