"""DataFrames in and out: a catalog that is a frame, and a run's records as frames."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prefect.client.orchestration import get_client

import imagemill
from imagemill import InputError, RunSummary, generate_catalog, preview_catalog
from imagemill.cli.running import resumed_arguments
from imagemill.emulator import Emulator
from tests.conftest import Place, full_disk

pytestmark = pytest.mark.usefixtures("prefect_server")

SHOP = pd.DataFrame(
    {
        "sku": ["m-1", "c-2", "l-3"],
        "prompt": ["a mug", "a chair #fault:400", " "],
        "stock": pd.array([3, None, 2**60 + 1], dtype="Int64"),
    }
)


def catalog_of(frame: Any) -> dict[str, Any]:
    return {"path": frame, "columns": {"id": "sku"}}


@pytest.mark.slow
def test_a_frame_is_stored_with_its_run_which_then_needs_no_frame(
    place: Place, emulator: Callable[..., Emulator], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    emulated = emulator()
    how = {
        "output": place.settings(),
        "api": {"provider": "together", "base_url": emulated.base_url},
        "picture": {"width": 256, "height": 256},
        "execution": {"run_id": "framed"},
    }

    state = generate_catalog(catalog_of(SHOP), **how, return_state=True)
    summary = state.result()
    assert (summary.done, summary.failed, summary.rejected) == (1, 1, 1)

    path = f"{place.uri}/runs/framed/catalog.parquet"
    with get_client(sync_client=True) as client:
        parameters = client.read_flow_run(state.state_details.flow_run_id).parameters
    assert parameters["catalog"]["path"] == path
    assert "a mug" not in json.dumps(parameters)

    again = generate_catalog.with_options(name="by another name")(catalog_of(SHOP), **how)
    assert (again.run_id, again.requests) == ("framed", summary.requests)
    with pytest.raises(InputError, match="was planned from another catalog than this frame"):
        generate_catalog(catalog_of(SHOP[:2]), **how)
    assert len(place.table("runs/framed/catalog.parquet")) == len(SHOP)
    assert generate_catalog(**resumed_arguments("framed")).requests == summary.requests
    monkeypatch.setenv("IMAGEMILL_HOME", str(tmp_path / "another machine"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(InputError, match=r"framed \(No space left on device\)"):
            generate_catalog(catalog_of(SHOP), **how)
    assert generate_catalog(**how | {"catalog": catalog_of(path)}).done == 1

    preview = preview_catalog(SHOP.rename(columns={"sku": "id"}), **how | {"execution": {}})
    assert preview.rows == len(SHOP)
    assert f"runs/{preview.run_id}/catalog.parquet" in place.objects()
    assert emulated.bill()["images"] == 1


@pytest.mark.slow
def test_records_of_runs_are_frames(place: Place, emulator: Callable[..., Emulator]) -> None:
    summary = generate_catalog(
        catalog_of(SHOP),
        output=place.settings(),
        api={"provider": "together", "base_url": emulator().base_url},
        picture={"width": 256, "height": 256},
    )
    assert (summary.columns, summary.carried) == ({"prompt": "prompt", "id": "sku"}, ["stock"])
    report = place.read(f"runs/{summary.run_id}/report.html").decode()
    assert "<bdi>sku</bdi> is the id. Kept in the manifest: <bdi>stock</bdi>." in report
    for known in (summary, RunSummary.model_validate_json(summary.model_dump_json())):
        assert dict(known.jobs()[["id", "status"]].to_numpy()) == {"m-1": "done", "c-2": "failed"}
        assert list(known.failed_jobs()["error_class"]) == ["bad_request"]
        assert list(known.rejected_rows()["reason"]) == ["blank prompt"]
        manifest = known.manifest_rows()
        assert manifest["stock"].equals(SHOP["stock"])  # exact, though one is missing
        assert list(manifest["status"]) == ["done", "failed", "rejected"]

    runs = imagemill.runs(place.settings())
    assert list(runs["run_id"]) == [summary.run_id]
    assert list(runs["catalog"]) == [f"{place.uri}/runs/*/catalog.parquet"]
    assert list(runs["requests"]) == [summary.requests]
    assert str(runs["ended_at"].dt.tz) == "UTC"
    nothing_yet = imagemill.runs(place.settings(uri=f"{place.uri}/elsewhere"))
    assert nothing_yet.empty
    assert "cost_usd" in nothing_yet

    elsewhere = summary.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(InputError, match=r"cannot be reached .* pass output"):
        elsewhere.jobs()
    assert len(elsewhere.jobs(place.settings())) == summary.unique
    with pytest.raises(InputError, match="has not published its records"):
        summary.model_copy(update={"manifest": None}).jobs()


@pytest.mark.slow
def test_frames_of_other_rows_do_not_replace_each_others_manifest(
    place: Place, emulator: Callable[..., Emulator]
) -> None:
    how = {
        "output": place.settings(),
        "api": {"provider": "together", "base_url": emulator().base_url},
        "picture": {"width": 256, "height": 256},
    }
    generate_catalog(pd.DataFrame({"prompt": ["a mug", "a lamp"]}), **how)
    with pytest.raises(InputError, match="is that of the catalog"):
        generate_catalog(pd.DataFrame({"prompt": ["a chair", "a table"]}), **how)
    assert [row["prompt"] for row in place.table("manifest.parquet")] == ["a mug", "a lamp"]
