"""The estimate before a run is the emulator's bill after it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagemill.blocks.apis import PROVIDERS, BlackForestLabs, ImageApi, Together
from imagemill.blocks.apis.replicate import SIZES
from imagemill.catalog.estimate import estimate
from imagemill.catalog.files import open_catalog
from imagemill.catalog.plan import Planner
from imagemill.emulator import Emulator
from imagemill.jobs import Job, JobStatus
from imagemill.models.prices import PRICES, list_price
from imagemill.settings import ApiSettings, CatalogSettings, LimitSettings, PictureSettings
from tests.blocks.apis.variants import VARIANTS, Outcome

WorkAll = Callable[[ImageApi, list[Job]], list[Outcome]]

ANY_SIZES = [(256, 256), (512, 512), (512, 1024), (1024, 1024), (1280, 704)]


def sizes_of(api: ImageApi) -> list[tuple[int, int]]:
    return list(SIZES)[::4] if api.provider == "replicate" else ANY_SIZES


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
        ApiSettings(provider=api.provider, base_url=api.base_url),
        PictureSettings(),
        LimitSettings(),
    )
    planned = Planner(api, PictureSettings()).plan(open_catalog(catalog))
    jobs = [job for _, _, batch in planned for job in batch]
    ended = work_all(api, jobs)
    assert {outcome.job.status for outcome in ended} == {JobStatus.DONE}
    bill = emulator.bill()
    assert bill["images"] == before.unique == len(jobs)
    assert before.cost_usd == pytest.approx(bill["usd"], rel=0.01)
    assert sum(outcome.job.cost_usd for outcome in ended) == pytest.approx(bill["usd"], rel=1e-6)


def test_each_provider_has_a_price_with_a_date_and_a_source() -> None:
    for provider in PROVIDERS:
        price = list_price(provider, "a model nobody named")
        assert price is not None
        assert price.source
        assert date(2025, 1, 1) < price.noted
    assert all(price.usd > 0 for price in PRICES.values())


def test_a_model_has_its_own_price_and_the_block_goes_before_the_table() -> None:
    assert BlackForestLabs(api_key="k").price_usd(1024, 1024) == 0.025
    assert BlackForestLabs(api_key="k", model="flux-pro-1.1").price_usd(1024, 1024) == 0.04
    assert Together(api_key="k", usd_per_megapixel=0.01).price_usd(1000, 500) == pytest.approx(0.005)
    assert Together(api_key="k", usd_per_megapixel=0.01, usd_per_image=0).price_usd(1000, 500) == 0
