"""A refresh generates what is new or changed, keeps what is unchanged, and retires what is gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from imagemill.emulator import Emulator
from imagemill.errors import InputError
from imagemill.flows.refresh_catalog import refresh_catalog
from tests.conftest import BUCKET, Place

pytestmark = pytest.mark.usefixtures("prefect_server")


def refresh(place: Place, emulated: Emulator, source: Any, **more: Any) -> Any:
    return refresh_catalog(
        catalog=source,
        api={"provider": "fal", "base_url": emulated.base_url},
        output=place.settings(),
        picture={"width": 256, "height": 256},
        **more,
    )


@pytest.mark.slow
def test_only_what_changed_is_paid_for(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()
    first = refresh(
        place, emulated, catalog(id=["a", "b", "c", "d"], prompt=["1", "2", "3", "3"], price=[1, 2, 3, 4])
    )
    assert (first.added, first.changed, first.unchanged, first.retired) == (4, 0, 0, 0)

    monday = catalog(id=["a", "b", "d", "e"], prompt=["1", "two", "3", "5"], price=[9, 9, 9, 9])
    second = refresh(place, emulated, monday)
    assert (second.added, second.changed, second.unchanged, second.retired) == (1, 1, 2, 1)
    assert (second.generated, second.reused) == (2, 2)
    assert second.saved_usd == pytest.approx(second.cost_usd)
    rows = {row["id"]: row for row in place.table("manifest.parquet")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a": "done", "b": "done", "d": "done", "e": "done", "c": "retired",
    }  # fmt: skip
    assert (rows["a"]["price"], rows["c"]["price"]) == (9, 3)

    asked = emulated.stats()["generation_requests"]
    third = refresh(place, emulated, monday, prune=True, refresh={"prune_after_days": 0})
    assert emulated.stats()["generation_requests"] == asked
    assert (third.unchanged, third.retired, third.cost_usd) == (4, 0, 0)
    # c shared its picture with d, which is still there; b's old picture went when b changed.
    images = {name for name in place.objects() if name.startswith("images/")}
    rows = {row["id"]: row for row in place.table("manifest.parquet")}
    assert {row["uri"].removeprefix(f"{place.uri}/") for row in rows.values() if row["uri"]} <= images


def test_pruning_deletes_what_no_row_uses_any_more(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()
    refresh(place, emulated, catalog(id=["a", "b", "c", "d"], prompt=["1", "2", "3", "3"]))
    summary = refresh(
        place,
        emulated,
        catalog(id=["a", "b", "d"], prompt=["one", "2", "3"]),
        prune=True,
        refresh={"prune_after_days": 0},
    )

    assert (summary.changed, summary.retired, summary.pruned) == (1, 1, 1)
    images = {name for name in place.objects() if name.startswith("images/")}
    rows = {row["id"]: row for row in place.table("manifest.parquet")}
    assert {row["uri"].removeprefix(f"{place.uri}/") for row in rows.values() if row["uri"]} == images
    assert (rows["c"]["status"], rows["c"]["uri"]) == ("retired", rows["d"]["uri"])  # which d still uses

    back = refresh(place, emulated, catalog(id=["a", "b", "c", "d"], prompt=["one", "2", "3", "3"]))
    assert (back.added, back.unchanged, back.generated) == (1, 3, 0)


@pytest.mark.slow
def test_pruning_finds_what_earlier_refreshes_left_and_nothing_else(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()

    def images() -> set[str]:
        return {name for name in place.objects() if name.startswith("images/")}

    def used() -> set[str]:
        rows = place.table("manifest.parquet")
        return {row["uri"].removeprefix(f"{place.uri}/") for row in rows if row["uri"]}

    refresh(place, emulated, catalog(id=["a", "b", "c"], prompt=["1", "2", "3"]))
    first = images()
    refresh(place, emulated, catalog(id=["a", "b"], prompt=["one", "two"]))
    refresh(place, emulated, catalog(id=["a", "b", "c"], prompt=["uno", "2", "three"]))  # b turned back
    client = place.s3.client()
    others = "images/ff/ffff.png"  # of a run that is under way, or of another catalog
    client.put_object(Bucket=BUCKET, Key=place.prefix + others, Body=b"image")
    client.close()
    assert len(images()) == 7 + 1

    summary = refresh(
        place,
        emulated,
        catalog(id=["a", "b"], prompt=["uno", "2"]),
        prune=True,
        refresh={"prune_after_days": 0},
    )
    assert (summary.unchanged, summary.retired, summary.pruned) == (2, 1, 5)
    assert images() == used() | {others}
    assert len(images() & first) == 1

    again = refresh(
        place,
        emulated,
        catalog(id=["a", "b"], prompt=["uno", "2"]),
        prune=True,
        refresh={"prune_after_days": 0},
    )
    assert (again.pruned, again.generated) == (0, 0)
    back = refresh(place, emulated, catalog(id=["a", "b"], prompt=["1", "2"]))
    assert (back.changed, back.generated) == (1, 1)
    assert (
        refresh(
            place,
            emulated,
            catalog(id=["a", "b"], prompt=["1", "2"]),
            prune=True,
            refresh={"prune_after_days": 0},
        ).pruned
        == 1
    )
    assert images() == used() | {others}


@pytest.mark.slow
def test_a_refresh_that_would_hurt_is_refused_before_it_buys(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()
    shop = {"id": list("abcde"), "prompt": list("12345")}
    refresh(place, emulated, catalog(**shop))
    before = place.read("manifest.parquet")
    asked = emulated.stats()["generation_requests"]
    cut, empty = catalog("cut.parquet", id=["a"], prompt=["new"]), pa.array([], pa.string())
    with pytest.raises(
        InputError, match=r"would take 4 of 5 rows .* 80%, and at most 20% .* refresh.allow_loss"
    ):
        refresh(place, emulated, cut, prune=True)
    with pytest.raises(InputError, match="has no row that can become an image"):
        refresh(place, emulated, catalog("none.parquet", id=empty, prompt=empty))
    with pytest.raises(InputError, match=r"'.*cut.parquet' is not one of those .* s3://shop/\*"):
        refresh(place, emulated, "shop.parquet", path=cut, refresh={"only_paths": ["s3://shop/*"]})
    with pytest.raises(InputError, match="is not one of those"):
        refresh(place, emulated, "shop.parquet", path="/shop/../cut", refresh={"only_paths": ["/shop/*"]})
    assert place.read("manifest.parquet") == before
    assert emulated.stats()["generation_requests"] == asked

    # Version 0.1 only carried a column whose name has other capitals: now it would change every image.
    seeds = catalog("seeds.parquet", **shop, Seed=[1, 2, 3, 4, 5])
    refresh(place, emulated, {"path": seeds, "columns": {"seed": ""}})
    assert emulated.stats()["generation_requests"] == asked
    with pytest.raises(
        InputError, match=r'5 of 5 images would be made anew.* {"seed": "Seed"} to use it, .* {"seed": ""}'
    ):
        refresh(place, emulated, seeds)
    assert emulated.stats()["generation_requests"] == asked

    two = catalog("two.parquet", id=["f", "a"], prompt=["6", "1"])
    part = refresh(place, emulated, {"path": two, "limit": 2})
    assert (part.added, part.unchanged, part.retired, part.rows) == (1, 1, 0, 2)
    assert {row["id"]: row["status"] for row in place.table("manifest.parquet")} == dict.fromkeys(
        "abcdef", "done"
    )

    state = refresh(place, emulated, cut, refresh={"allow_loss": True}, return_state=True)
    assert "0 rows added, 1 changed, 0 unchanged, 5 retired, 0 images pruned" in str(state.message)


def test_two_refreshes_of_one_place_do_not_interleave(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()
    path = catalog(prompt=["x"])

    def lease(expires: datetime) -> None:
        client = place.s3.client()
        body = json.dumps({"holder": "another", "expires_at": expires.isoformat()}).encode()
        client.put_object(Bucket=BUCKET, Key=f"{place.prefix}refresh.lease", Body=body)
        client.close()

    lease(datetime.now(UTC) + timedelta(minutes=1))
    with pytest.raises(InputError, match="Run another is writing to"):
        refresh(place, emulated, path)
    assert emulated.stats()["generation_requests"] == 0

    lease(datetime.now(UTC) - timedelta(seconds=1))
    assert refresh(place, emulated, path).done == 1
    assert "refresh.lease" not in place.objects()
