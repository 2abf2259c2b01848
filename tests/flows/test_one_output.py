"""An output has one writer and one catalog; a run id stands for one plan; paid images are kept whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pytest

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.bucket.output_lease import output_lease
from imagemill.emulator import Emulator
from imagemill.engine.engine import StopKind
from imagemill.errors import InputError
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.runs.summary import RunStoppedError
from tests.bucket.s3_front import Answer, Asked, S3Front
from tests.conftest import Place, full_disk

pytestmark = pytest.mark.usefixtures("prefect_server")


def run(place: Place, emulated: Emulator, path: str, **more: Any) -> Any:
    return generate_catalog(
        catalog=path,
        api={"provider": "together", "base_url": emulated.base_url},
        output=place.settings(**more.pop("output", {})),
        picture={"height": 256, "width": 256, **more.pop("picture", {})},
        **more,
    )


@pytest.fixture
def front(place: Place) -> Iterator[S3Front]:
    with S3Front(urlsplit(place.s3.endpoint_url).port or 0) as made:
        yield made


def refused(part: str) -> Callable[[Asked], Answer | None]:
    return lambda asked: Answer(403, "AccessDenied") if asked.method == "PUT" and part in asked.path else None


def test_a_second_run_on_an_output_is_refused_before_it_buys(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()
    path = catalog(prompt=["a", "b"])
    bucket = ImageBucket(place.uri, endpoint_url=place.s3.endpoint_url)
    with (
        output_lease(bucket, "first", lambda _: None),
        pytest.raises(InputError, match="Run first is writing"),
    ):
        run(place, emulated, path)
    bucket.close()
    assert emulated.bill()["images"] == 0
    assert run(place, emulated, path).done == 2
    assert "refresh.lease" not in place.objects()


def test_a_run_that_loses_its_output_stops_and_publishes_nothing(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("imagemill.bucket.output_lease.RENEW_S", 0.3)
    emulated = emulator(latency_s=0.3, max_concurrent=2)
    path = catalog(prompt=[f"p{n}" for n in range(60)])
    client = place.s3.client()

    def steal() -> None:
        while not emulated.bill()["images"]:
            time.sleep(0.05)
        thief = b'{"holder": "thief", "nonce": "x", "expires_at": "2999-01-01T00:00:00+00:00"}'
        client.put_object(Bucket=urlsplit(place.uri).netloc, Key=f"{place.prefix}refresh.lease", Body=thief)

    threading.Thread(target=steal, daemon=True).start()
    with pytest.raises(RunStoppedError, match="Run thief took it over") as caught:
        run(place, emulated, path, execution={"run_id": "robbed"}, limits={"concurrency": 2})
    client.close()
    assert caught.value.summary.pending > 0
    assert "manifest.parquet" not in place.objects()
    assert b"thief" in place.read("refresh.lease")


def test_a_manifest_knows_its_catalog(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()
    first, second = catalog("chairs-2026-11-25.parquet", prompt=["a"]), catalog("lamps.parquet", prompt=["b"])
    run(place, emulated, first)
    with pytest.raises(
        InputError, match=r"chairs-2026-11-25\.parquet', not of .*lamps\.parquet.*replace_manifest"
    ):
        run(place, emulated, second)
    assert emulated.bill()["images"] == 1
    assert [row["prompt"] for row in place.table("manifest.parquet")] == ["a"]
    run(place, emulated, catalog("chairs-2026-11-26.parquet", prompt=["a", "c"]))  # the next day's export
    assert run(place, emulated, second, output={"replace_manifest": True}).done == 1
    assert [row["prompt"] for row in place.table("manifest.parquet")] == ["b"]


def test_a_catalog_of_rejected_rows_replaces_no_manifest(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()
    run(place, emulated, catalog(prompt=["a", "b"]))
    before = place.read("manifest.parquet")
    bad = catalog(prompt=["", "x", None], width=[256, 20_000, 256])
    state = run(place, emulated, bad, execution={"run_id": "bad"}, return_state=True)
    assert state.is_failed()
    assert "3 rows were rejected (most often: blank prompt)" in state.message
    summary = state.result()
    assert (summary.rejected, summary.unique, summary.rejections["blank prompt"]) == (3, 0, 2)
    assert place.read("manifest.parquet") == before
    with pytest.raises(InputError, match=r"Every row .* was rejected, 2 of 2 .*: width 17 "):
        run(place, emulated, catalog(prompt=["", "x"][1:] * 2), picture={"width": 17})


def test_a_catalog_without_rows_is_refused_where_there_is_a_manifest(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated, empty = emulator(), catalog("empty.parquet", prompt=pa.nulls(0, pa.string()))
    run(place, emulated, catalog("shop.parquet", prompt=["a", "b"]))
    with pytest.raises(InputError, match=r"empty\.parquet' has no rows, but the manifest in .* has 2\."):
        run(place, emulated, empty)
    assert len(place.table("manifest.parquet")) == 2
    assert run(place, emulated, empty, output={"merge_manifest": True}).rows == 0
    assert run(place, emulated, empty, output={"replace_manifest": True}).rows == 0
    assert place.table("manifest.parquet") == []


def test_rejected_rows_are_repaired_whatever_was_wrong_with_them(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str], tmp_path: Path
) -> None:
    emulated = emulator()
    first = catalog(id=["1", "", "a", "a", "x" * 3000], prompt=["one", "none", "first", "other", "long"])
    rejected = run(place, emulated, first).rejected_rows(place.settings())
    before = place.table("manifest.parquet")
    assert [row["id"] for row in before] == ["1", None, "a", "a", None]

    repaired = tmp_path / "repaired.parquet"
    rejected.assign(id=["b", "a", "c"]).to_parquet(repaired)
    with pytest.raises(InputError, match=r"1 of the ids .* such as 'a', are still those of other rows"):
        run(place, emulated, str(repaired))
    rejected.assign(id=["b", "", "c"]).to_parquet(repaired)
    summary = run(place, emulated, str(repaired))
    assert (summary.done, summary.rejected) == (2, 1)
    rejected.assign(id=["b", "d", "c"]).to_parquet(repaired)
    assert run(place, emulated, str(repaired)).done == 3
    pictures = {row["id"]: row["prompt"] for row in place.table("manifest.parquet") if row["uri"]}
    assert pictures == {"1": "one", "a": "first", "b": "none", "c": "long", "d": "other"}
    assert None not in [row["id"] for row in place.table("manifest.parquet")]

    run(place, emulated, catalog(id=["1", ""], prompt=["one", "none"]), output={"replace_manifest": True})
    others = rejected.assign(id=["k1", "k2", "k3"], prompt=["foreign 1", "foreign 2", "foreign 3"])
    others.to_parquet(tmp_path / "others.parquet")
    with pytest.raises(InputError, match="0 of its 1 ids are in this catalog"):
        run(place, emulated, str(tmp_path / "others.parquet"))
    run(place, emulated, str(tmp_path / "others.parquet"), output={"merge_manifest": True})
    left = [row["prompt"] for row in place.table("manifest.parquet") if row["id"] is None]
    assert left == ["none"]  # of which no row that was merged is a repair

    elsewhere = {"uri": f"{place.uri}/elsewhere"}
    run(place, emulated, catalog("whole.parquet", prompt=["p", "q"]), output=elsewhere)
    with pytest.raises(InputError, match="0 of its 2 ids are in this catalog"):  # none was rejected there
        run(place, emulated, str(repaired), output=elsewhere)


@pytest.mark.slow
def test_a_run_id_with_something_else_is_refused_never_ignored(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()
    path, once = catalog(prompt=["a", "b"]), {"execution": {"run_id": "once"}}
    run(place, emulated, path, **once)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"picture": {"width": 512}}, "with the width 256, not 512"),
        ({"picture": {"seed_policy": "fixed:7"}}, "seed policy"),
        ({"api": {"model": "black-forest-labs/FLUX.1-dev"}}, "with the model"),
    ]
    for change, words in changes:
        given = {**once, **change}
        api = {"provider": "together", "base_url": emulated.base_url, **given.pop("api", {})}
        with pytest.raises(InputError, match=words):
            generate_catalog(
                catalog=path, output=place.settings(), api=api, execution=given["execution"],
                picture={"height": 256, "width": 256, **given.get("picture", {})},
            )  # fmt: skip
    assert run(place, emulated, path, **once).generated == 2  # as it was
    catalog(prompt=["a", "b", "c"])
    with pytest.raises(InputError, match=r"has changed since run 'once' was planned \(2 rows then, 3 now\)"):
        run(place, emulated, path, **once)
    catalog(prompt=["a", "other"])  # as many rows
    with pytest.raises(InputError, match="has changed since run 'once' was planned"):
        run(place, emulated, path, **once)
    assert run(place, emulated, path, execution={"run_id": "once", "keep_plan": True}).done == 2
    Path(path).unlink()
    assert run(place, emulated, path, **once).done == 2
    assert emulated.bill()["images"] == 2


@pytest.mark.parametrize("part", ["jobs.parquet", "manifest.parquet", "report.html"])
def test_a_refusal_at_publishing_can_be_resumed(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str], front: S3Front, part: str
) -> None:
    emulated = emulator()
    given: dict[str, Any] = {"execution": {"run_id": "refused"}, "output": {"s3_endpoint_url": front.url}}
    path = catalog(prompt=["a", "b"])
    front.before = refused(part)
    with pytest.raises(RunStoppedError, match="AccessDenied") as caught:
        run(place, emulated, path, **given)
    assert caught.value.kind is StopKind.UNAVAILABLE
    front.before = lambda _: None
    given = {"execution": {"run_id": "refused"}, "output": {"s3_endpoint_url": front.url}}
    summary = run(place, emulated, path, **given)
    assert (summary.done, summary.manifest) == (2, f"{place.uri}/manifest.parquet")
    assert {row["status"] for row in place.table("manifest.parquet")} == {"done"}
    assert emulated.bill()["images"] == 2


@pytest.mark.parametrize("run_id", ["named", None])
def test_a_retry_of_the_flow_run_goes_on_with_its_plan_though_the_catalog_has_changed(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    front: S3Front,
    run_id: str | None,
) -> None:
    emulated = emulator()
    path = catalog(prompt=["a", "b"])
    given = {
        "catalog": path,
        "api": {"provider": "together", "base_url": emulated.base_url},
        "output": place.settings(s3_endpoint_url=front.url),
        "picture": {"height": 256, "width": 256},
        "execution": {"run_id": run_id},
    }
    if run_id:  # planned by another flow run
        assert generate_catalog(**given).done == 2
        front.asked.clear()

    def refuse_once(asked: Asked) -> Answer | None:
        answer = refused("manifest.parquet")(asked)
        if answer is not None:
            front.before = lambda _: None
            catalog(prompt=["a", "b", "c"])
        return answer

    front.before = refuse_once
    summary = generate_catalog.with_options(retries=1, retry_delay_seconds=0)(**given)
    assert (summary.done, summary.unique, summary.pending) == (2, 2, 0)
    assert emulated.bill()["images"] == 2
    with pytest.raises(InputError, match="has changed since run"):  # another flow run is no retry
        generate_catalog(**{**given, "execution": {"run_id": summary.run_id}})


def test_a_broken_picture_in_the_runs_folder_is_no_done_one(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    front: S3Front,
    own_home: Path,
) -> None:
    emulated = emulator()
    path = catalog(prompt=["a", "b", "c"])
    more: dict[str, Any] = {"limits": {"concurrency": 3}, "execution": {"run_id": "away"}}
    front.before = refused("/images/")
    with pytest.raises(RunStoppedError):
        run(place, emulated, path, output={"s3_endpoint_url": front.url}, **more)
    bought = emulated.bill()["images"]
    kept = sorted((own_home / "runs" / "away" / "unsaved").glob("*.png"))
    assert len(kept) == bought >= 1
    kept[0].write_bytes(kept[0].read_bytes()[:-40])  # as a full disk left it, before this version
    front.before = lambda _: None
    summary = run(place, emulated, path, output={"s3_endpoint_url": front.url}, **more)
    assert (summary.done, summary.lost_images) == (3, 1)
    assert emulated.bill()["images"] == 4
    assert not list((own_home / "runs" / "away" / "unsaved").iterdir())
    for row in place.table("manifest.parquet"):
        assert place.read(row["uri"].removeprefix(f"{place.uri}/")).endswith(b"IEND\xaeB`\x82")


def test_what_neither_bucket_nor_disk_keeps_is_counted_and_said(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    front: S3Front,
    own_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulated = emulator()
    front.before = refused("/images/")

    monkeypatch.setattr("imagemill.engine.engine.write_whole", full_disk)  # the store has room still
    with pytest.raises(RunStoppedError, match=r"could keep [123] images that were paid for") as caught:
        run(place, emulated, catalog(prompt=["a", "b", "c"]), output={"s3_endpoint_url": front.url})
    bought = emulated.bill()["images"]
    assert caught.value.summary.lost_images == bought >= 1
    folder = own_home / "runs" / caught.value.summary.run_id
    assert (folder / "log.jsonl").read_bytes().count(b'"event":"image_lost"') == bought
