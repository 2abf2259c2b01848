"""Estimates a run before it: rows, rejected, unique, cost and time, without one generation request."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from imagemill.blocks.apis import PROVIDERS, ImageApi
from imagemill.blocks.apis.learning import learn_published
from imagemill.blocks.loading import image_api
from imagemill.catalog.access import catalog_of
from imagemill.catalog.cost import Lever
from imagemill.catalog.makers import makers_of
from imagemill.catalog.plan import Planner
from imagemill.settings import (
    Api,
    ApiSettings,
    Catalog,
    CatalogSettings,
    LimitSettings,
    Output,
    OutputSettings,
    PictureSettings,
    QualitySettings,
    input_error,
)
from imagemill.usd import exact

USUAL_CONCURRENCY = 25
"""What most accounts settle at is 20 to 50; an estimate for ``auto`` takes this."""


class Estimate(BaseModel):
    """What a run would do. Costs in USD, time in seconds."""

    model_config = ConfigDict(frozen=True)

    rows: int
    variants: int = Field(default=1, description="Pictures per row.")
    rejected: int
    unique: int
    duplicates: int
    cost_usd: float | None = Field(
        description="The cost of one image per job, without paid retries; null if the price is unknown."
    )
    saved_usd: float | None = Field(description="What the duplicates would have cost.")
    judge_usd: float | None = Field(
        default=0.0, description="About what a vision model asks for its opinion on them; null if unknown."
    )
    price: str = Field(description="The price rule, and its source.")
    unpriced: int = Field(description="Images whose price is unknown until they are made.")
    levers: list[Lever] = Field(description="Ways to make this catalog cheaper, and by how much.")
    seconds: float
    assuming: str = Field(description="The assumptions behind the time.")
    reasons: dict[str, int] = Field(description="Rejected rows by reason.")
    columns: dict[str, str] = Field(description="The catalog's columns that are used, by imagemill's names.")
    notes: list[str] = Field(description="What may surprise about the catalog's columns.")


def estimate(
    catalog: CatalogSettings | Mapping[str, object] | str,
    api: ApiSettings | Mapping[str, object] | str | Sequence[object] = "together",
    picture: PictureSettings | Mapping[str, object] = PictureSettings(),
    limits: LimitSettings | Mapping[str, object] = LimitSettings(),
    output: OutputSettings | Mapping[str, object] | str | None = None,
    quality: QualitySettings | Mapping[str, object] = QualitySettings(),
) -> Estimate:
    """Plan a run without keeping the plan; the vendor is asked only for what it publishes about the model.

    Takes what :func:`imagemill.generate_catalog` takes. ``output`` says how an s3:// catalog is reached.

    Raises:
        InputError: the catalog or a setting cannot be used.
    """
    try:
        given = _Given(
            catalog=catalog, api=api, picture=picture, limits=limits, output=output, quality=quality
        )
    except ValidationError as error:
        raise input_error(error) from error
    return _estimate(given)


class _Given(BaseModel):
    catalog: Catalog
    api: Api
    picture: PictureSettings
    limits: LimitSettings
    output: Output | None
    quality: QualitySettings


def _estimate(given: _Given) -> Estimate:
    limits = given.limits
    routes = given.api if isinstance(given.api, list) else []
    apis = given.api if isinstance(given.api, list) else [given.api]
    vendors = [_vendor(each) for each in apis]
    if len(vendors) > 1:
        providers = zip(routes, vendors, strict=True)
        routes = [each.model_copy(update={"provider": api.provider}) for each, api in providers]
    several = len(vendors) > 1
    maker = makers_of(routes, vendors, mix=given.picture.mix_models) if several else vendors[0]
    planner = Planner(maker, given.picture)
    reasons: dict[str, int] = {}
    catalog = catalog_of(given.catalog, given.output)
    for _, rejected, _ in planner.plan(catalog.for_counting()):
        for reason in rejected["reason"].to_pylist():
            reasons[reason] = reasons.get(reason, 0) + 1
    counts = planner.counts
    concurrency = USUAL_CONCURRENCY if limits.concurrency == "auto" else limits.concurrency
    per_second = sum(concurrency / vendor.typical_latency_s for vendor in vendors)
    latencies = " or ".join(dict.fromkeys(f"{vendor.typical_latency_s:g} s" for vendor in vendors))
    assuming = f"{concurrency} concurrent requests{' per route' * several}, {latencies} per image"
    if limits.max_images_per_minute and limits.max_images_per_minute < 60 * per_second:
        per_second = limits.max_images_per_minute / 60
        assuming = f"{limits.max_images_per_minute:g} images per minute"
    opinion_usd = given.quality.usual_judge_usd
    return Estimate(
        rows=counts.rows,
        variants=counts.variants,
        rejected=counts.rejected,
        unique=counts.unique,
        duplicates=counts.duplicates,
        cost_usd=None if counts.unpriced else counts.cost_usd,
        saved_usd=None if counts.unpriced else counts.duplicates_usd,
        judge_usd=None if opinion_usd is None else float(exact(counts.unique * opinion_usd)),
        price=maker.price_in_words,
        unpriced=counts.unpriced,
        levers=[Lever(**lever) for lever in counts.levers],
        seconds=round(counts.unique / per_second, 1),
        assuming=assuming,
        reasons=dict(sorted(reasons.items(), key=lambda item: -item[1])),
        columns=catalog.columns,
        notes=catalog.usage.notes,
    )


def _vendor(api: ApiSettings) -> ImageApi:
    keyed = bool(api.block or os.environ.get(_key_variable(api), "").strip())
    vendor = image_api(api, needs_key=keyed)
    learn_published(vendor, keyed=keyed)
    return vendor


def _key_variable(api: ApiSettings) -> str:
    vendor = PROVIDERS.get(api.provider)
    return vendor.key_variable if vendor else ""
