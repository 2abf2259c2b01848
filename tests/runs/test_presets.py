"""A run's own parameters against those of its deployment."""

from __future__ import annotations

from typing import Any

import pytest

from imagemill.runs.presets import lost_presets

PRESET = {
    "catalog": {"path": "a.parquet", "columns": {"prompt": "text", "id": "sku"}},
    "output": {"uri": "s3://images/a", "s3_bucket_block": "images"},
    "api": {"provider": "fal", "base_url": "http://127.0.0.1:8700", "model": None},
    "prune": True,
}


@pytest.mark.parametrize(
    ("given", "lost"),
    [
        ({}, []),
        ({"api": {"model": "dev"}}, ["api.base_url", "api.provider"]),
        ({"api": {"block": "imagemill-fal/main", "base_url": "http://x"}}, []),
        ({"api": "together"}, ["api.base_url"]),
        ({"output": "s3://images/b", "prune": False}, ["output.s3_bucket_block"]),
        ({"catalog": {"path": "b.parquet", "columns": {"prompt": "words"}}}, ["catalog.columns.id"]),
    ],
)
def test_what_a_run_leaves_out_of_its_own_parameters_is_named(given: dict[str, Any], lost: list[str]) -> None:
    assert lost_presets(PRESET, {**PRESET, **given}) == lost
