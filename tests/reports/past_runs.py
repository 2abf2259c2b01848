"""Six weeks of runs, as a bucket's ``metrics/`` would tell of them."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from imagemill.runs.history import RunRow

BEGIN = datetime(2025, 10, 13, 2, 30, tzinfo=UTC)

CATALOGS = {
    # catalog: (days between runs, images, hour)
    "s3://catalogs/products/*.parquet": (3, 2_400, 2),
    "s3://catalogs/newsletter.parquet": (7, 180, 6),
    "recipes.parquet": (6, 640, 21),
}
APIS = {
    # provider: (images a minute, p95 latency in seconds, USD an image)
    "together": (1_450.0, 1.31, 0.0027),
    "fal": (1_120.0, 1.74, 0.003),
}


def run_row(number: int, **given: Any) -> RunRow:
    """A run ``number`` days after the beginning; a plain one unless said otherwise."""
    at = BEGIN + timedelta(days=number)
    values: dict[str, Any] = {
        "run_id": f"run-{number:03}",
        "started_at": at,
        "ended_at": at + timedelta(minutes=2),
        "catalog": "products.parquet",
        "provider": "together",
        "unique": 100,
        "done": 100,
        "failed": 0,
        "generated": 100,
        "images_per_minute": 1_000.0,
        "error_rate": 0.0,
        "p95_latency_s": 1.2,
        "cost_usd": 0.27,
        "saved_usd": 0.0,
    }
    return RunRow(**values | given)


def past_runs() -> list[RunRow]:
    """Forty runs of three catalogs on two APIs over six weeks, by time; the last one regressed."""
    rng = random.Random(11)
    rows: list[RunRow] = []
    for catalog, (days, images, hour) in CATALOGS.items():
        for day in range(0, 42, days):
            for provider, (pace, p95, price) in APIS.items():
                if provider == "fal" and (catalog.endswith("newsletter.parquet") or day % 6):
                    continue
                at = BEGIN.replace(hour=hour) + timedelta(days=day, minutes=rng.randrange(50))
                generated = (
                    0 if (catalog, day) == ("recipes.parquet", 18) else int(images * rng.uniform(0.7, 1.15))
                )
                failed = sum(rng.random() < 0.002 for _ in range(generated))
                rows.append(
                    RunRow(
                        run_id=f"{at:%Y%m%d-%H%M%S}-{rng.randrange(16**6):06x}",
                        started_at=at if generated else None,
                        ended_at=at + timedelta(minutes=3),
                        catalog=catalog,
                        provider=provider,
                        unique=images,
                        done=images - failed,
                        failed=failed,
                        generated=generated,
                        images_per_minute=pace * rng.gauss(1, 0.05) if generated else 0.0,
                        error_rate=failed / images,
                        p95_latency_s=p95 * rng.gauss(1, 0.04) if generated else None,
                        cost_usd=price * generated,
                        saved_usd=price * (images - failed - min(images - failed, generated)),
                    )
                )
    rows.sort(key=lambda row: row.at)
    rows = rows[-40:]
    last = max(place for place, row in enumerate(rows) if row.provider == "fal" and row.generated)
    rows[last] = rows[last].model_copy(
        update={
            "images_per_minute": rows[last].images_per_minute * 0.56,
            "p95_latency_s": (rows[last].p95_latency_s or 0.0) * 1.83,
        }
    )
    return rows
