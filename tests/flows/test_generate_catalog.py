"""The main job through the flow, on a real Prefect server, a real S3 server and real sockets."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from typing import Any

import duckdb
import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.states import State

from imagemill.emulator import Emulator
from imagemill.errors import InputError
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.runs.summary import RunStoppedError, RunSummary
from tests.conftest import Place
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.usefixtures("prefect_server")

CATALOG = {
    "id": ["a", "b", "c", "d", "e", "f", "g"],
    "prompt": ["a red fox", "an owl", " a red fox ", "", "an owl", "a tram", "a tram"],
    "seed": [None, None, None, None, 7, None, None],
    "width": [256, 256, 256, 256, 256, 20_000, 256],
    "shelf": ["x", "y", "z", "x", "y", "z", "x"],
}
"""Rows a and c are one picture; d is blank; e asks for another seed; f is too wide."""


def run(place: Place, emulated: Emulator, provider: str, path: str, **more: Any) -> Any:
    return generate_catalog(
        catalog=path,
        api={"provider": provider, "base_url": emulated.base_url},
        output=place.settings(**more.pop("output", {})),
        picture={"height": 256, "width": 256, **more.pop("picture", {})},
        **more,
    )


@pytest.mark.parametrize("provider", ["together", "fal"])
@pytest.mark.parametrize("store", ["memory", "sqlite"])
def test_a_catalog_becomes_images_and_records(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    provider: str,
    store: str,
) -> None:
    emulated = emulator()

    summary = run(
        place, emulated, provider, catalog(**CATALOG), execution={"store": store, "run_id": "first"}
    )

    assert (summary.rows, summary.rejected, summary.unique, summary.duplicates) == (7, 2, 4, 1)
    assert (summary.done, summary.failed, summary.pending) == (4, 0, 0)
    assert (summary.generated, summary.reused, summary.requests) == (4, 0, 4)
    bill = emulated.bill()
    assert bill["images"] == 4
    assert summary.cost_usd == pytest.approx(bill["usd"], rel=1e-6)
    assert summary.saved_usd == pytest.approx(bill["usd"] / 4, rel=1e-6)

    objects = place.objects()
    rows = {row["id"]: row for row in place.table("manifest.parquet")}
    assert list(rows) == CATALOG["id"]
    assert [row["shelf"] for row in rows.values()] == CATALOG["shelf"]
    assert [row["status"] for row in rows.values()] == [
        *["done"] * 3, "rejected", "done", "rejected", "done",
    ]  # fmt: skip
    assert rows["a"]["uri"] == rows["c"]["uri"]
    assert rows["b"]["uri"] != rows["e"]["uri"]
    for row in rows.values():
        if row["status"] == "done":
            name = f"images/{row['key'][:2]}/{row['key']}.png"
            assert row["uri"] == f"{place.uri}/{name}"
            with Image.open(io.BytesIO(place.read(name))) as image:
                image.load()
                assert (image.format, image.size) == ("PNG", (256, 256))
            head = place.head(name)
            assert head["ContentType"] == "image/png"
            assert head["Metadata"]["key"] == row["key"]
            assert head["Metadata"]["seed"] == str(row["seed"])
    assert len([name for name in objects if name.startswith("images/")]) == 4

    jobs = place.table("runs/first/jobs.parquet")
    assert [(job["id"], job["status"], job["attempts"]) for job in jobs] == [
        ("a", "done", 1), ("b", "done", 1), ("e", "done", 1), ("g", "done", 1),
    ]  # fmt: skip
    assert all(job["latency_s"] > 0 and job["cost_usd"] > 0 for job in jobs)
    rejected = {row["id"]: row["reason"] for row in place.table("runs/first/rejected.parquet")}
    assert rejected["d"] == "blank prompt"
    assert "width 20000" in rejected["f"]
    assert place.table("runs/first/failed.parquet") == []
    metrics = place.table("runs/first/metrics.parquet")
    assert sum(bucket["images"] for bucket in metrics) == 4
    assert sum(bucket["duplicates_saved"] for bucket in metrics) == 1
    assert metrics[-1]["cost_usd_total"] == pytest.approx(summary.cost_usd)
    assert b"a red fox" in place.read("runs/first/report.html")
    events = place.read("runs/first/log.jsonl").splitlines()
    assert sum(b'"event":"done"' in event for event in events) == 4


def test_metrics_of_all_runs_read_as_one_table(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str], tmp_path: Any
) -> None:
    emulated = emulator()
    for number in (1, 2):
        run(place, emulated, "together", catalog(prompt=["x"]), execution={"run_id": f"run-{number}"})

    for name in place.objects():
        if name.startswith("metrics/"):
            target = tmp_path / name
            target.parent.mkdir(parents=True)
            target.write_bytes(place.read(name))
    rows = duckdb.sql(
        f"select run_id, generated, reused from '{tmp_path}/metrics/*/*.parquet' order by run_id"
    ).fetchall()

    assert rows == [("run-1", 1, 0), ("run-2", 0, 1)]


def test_images_in_the_bucket_are_not_paid_again(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()
    first = run(place, emulated, "together", catalog(prompt=["a", "b", "c"]))
    again = run(place, emulated, "together", catalog(prompt=["b", "c", "d"]))

    assert first.run_id != again.run_id
    assert (again.generated, again.reused, again.done) == (1, 2, 3)
    assert emulated.bill()["images"] == 4
    assert again.saved_usd == pytest.approx(2 * again.cost_usd)


def test_copies_are_made_by_the_server_for_each_row(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()
    run(
        place,
        emulated,
        "together",
        catalog(id=["../up", "plain", "C:\\x\n"], prompt=["same", "same", "other"]),
        output={"copies": True},
    )

    copies = {name for name in place.objects() if name.startswith("catalog/")}
    assert copies == {"catalog/..%2Fup.png", "catalog/plain.png", "catalog/C%3A%5Cx%0A.png"}
    assert place.read("catalog/plain.png") == place.read("catalog/..%2Fup.png")
    rows = place.table("manifest.parquet")
    assert rows[1]["copy_uri"] == f"{place.uri}/catalog/plain.png"
    assert emulated.bill()["images"] == 2


def test_one_shard_an_image_and_many_workers(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    summary = run(
        place,
        emulator(),
        "together",
        catalog(prompt=[f"p{n}" for n in range(12)]),
        execution={"shard_size": 1, "workers": 3},
    )
    assert summary.done == 12


def test_seed_policies(place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]) -> None:
    path = catalog(prompt=["x", "x"])
    fixed = run(place, emulator(), "together", path, picture={"seed_policy": "fixed:42"})
    assert fixed.unique == 1
    assert {row["seed"] for row in place.table("manifest.parquet")} == {42}

    random = run(place, emulator(), "together", path, picture={"seed_policy": "random"})
    assert (random.unique, random.duplicates) == (2, 0)


GOOD, BAD = ["good 1", "good 2"], ["bad #fault:400"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "kind", "name", "words"),
    [
        (GOOD, "COMPLETED", "Completed", "2 of 2 images are done (2 generated); it cost $0.0"),
        (
            GOOD + BAD,
            "COMPLETED",
            "CompletedWithFailures",
            "2 of 3 images are done (2 generated), 1 failed; ",
        ),
        (
            [*GOOD, ""],
            "COMPLETED",
            "CompletedWithRejectedRows",
            "(2 generated), 1 row was rejected (most often: ",
        ),
        (
            [*BAD, ""],
            "FAILED",
            "Failed",
            "0 of 1 image is done, 1 failed, 1 row was rejected (most often: ",
        ),
    ],
    ids=["done", "failures", "rejected", "nothing"],
)
def test_the_state_and_its_event_say_what_became_of_a_run(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    prompts: list[str],
    kind: str,
    name: str,
    words: str,
) -> None:
    emulated, path = emulator(), catalog(prompt=prompts)
    execution = {"run_id": f"state-{name}"}
    unmeasured = {"quality": {"measure": "off"}}  # the emulator's fast pictures all look the same
    state: State[Any] = run(
        place, emulated, "together", path, execution=execution, **unmeasured, return_state=True
    )
    assert (state.type, state.name) == (kind, name)
    assert str(state.message).startswith(f"Run state-{name}: ")
    assert words in str(state.message)
    assert not str(state.message).endswith("..")
    assert f"prefect.flow-run.{name}" in events_of(state)
    read = stored_state(state).result(raise_on_failure=False)
    assert isinstance(read, RunSummary)
    # A caller in Python gets the summary whatever the state.
    summary = run(place, emulated, "together", path, execution=execution, **unmeasured)
    assert (summary.done, summary.failed) == (read.done, read.failed)


def test_a_stop_is_a_state_of_its_own(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    state: State[Any] = run(
        place, emulator(), "together", catalog(prompt=GOOD), limits={"max_cost_usd": 0}, return_state=True
    )
    assert (state.type, state.name) == ("FAILED", "Stopped")
    assert " stopped early: The next image would exceed the limit of $0.00" in str(state.message)
    assert str(state.message).endswith(
        "are pending; it cost nothing; start it again with its id as execution.run_id to resume it."
    )
    read = stored_state(state).result(raise_on_failure=False)
    assert isinstance(read, RunSummary)
    assert read.pending == 2
    with pytest.raises(RunStoppedError):
        state.result()


def stored_state(state: State[Any]) -> State[Any]:
    """The state as who started a deployment reads it."""
    with get_client(sync_client=True) as client:
        stored = client.read_flow_run(state.state_details.flow_run_id).state
    assert stored is not None
    return stored


def events_of(state: State[Any]) -> set[str]:
    """The events of a flow run, once its final state's is there."""
    flow_run = f"prefect.flow-run.{state.state_details.flow_run_id}"
    deadline = time.monotonic() + PATIENCE_S
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            wanted = {"filter": {"resource": {"id": [flow_run]}}}
            found = client.request("POST", "/events/filter", json=wanted).json()["events"]
            if any(event["id"] == str(state.id) for event in found):
                return {event["event"] for event in found}
            time.sleep(0.2)
    raise AssertionError("no event of the final state")


def test_unusable_input_is_a_failed_state_with_one_sentence_in_the_names_of_settings(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
) -> None:
    state: State[Any] = run(place, emulator(), "together", catalog(text=["a"]), return_state=True)
    assert state.is_failed()
    assert 'as in catalog.columns {"prompt": "NAME"}' in str(state.message)
    with pytest.raises(InputError, match=r"catalog\.columns"):
        stored_state(state).result()


def test_products_in_two_styles(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()
    path = catalog(sku=["m", "v", "m~2"], title=["Mug", "Vase", None], colour=["RED", "Blue", "x"])
    given = {
        "path": path,
        "columns": {"id": "sku"},
        "prompt_template": "{{ style }} of a {{ colour | lower }} {{ title }}",
    }
    one = run(
        place, emulated, "together", {**given, "vary": {"style": ["photo"]}}, execution={"run_id": "one"}
    )
    two = run(
        place,
        emulated,
        "together",
        {**given, "vary": {"style": ["photo", "sketch"]}},
        output={"copies": True},
        execution={"run_id": "two"},
    )

    assert (one.unique, one.rejected, one.generated) == (2, 1, 2)
    assert (two.rows, two.variants, two.unique, two.rejected) == (3, 2, 4, 1)
    assert (two.generated, two.reused) == (2, 2)  # more styles later pay only for the new ones
    assert emulated.bill()["images"] == 4
    rows = place.table("manifest.parquet")
    assert [(row["id"], row["variant"], row["style"], row["status"]) for row in rows] == [
        ("m", 1, "photo", "done"), ("m", 2, "sketch", "done"),
        ("v", 1, "photo", "done"), ("v", 2, "sketch", "done"),
        ("m~2", 1, "photo", "rejected"),
    ]  # fmt: skip
    assert rows[1]["prompt"] == "sketch of a red Mug"
    assert (rows[1]["title"], rows[1]["colour"]) == ("Mug", "RED")
    copies = {name for name in place.objects() if name.startswith("catalog/")}
    assert copies == {
        "catalog/m.png", "catalog/v.png", "catalog/variant-2/m.png", "catalog/variant-2/v.png",
    }  # fmt: skip
    assert rows[1]["copy_uri"] == f"{place.uri}/catalog/variant-2/m.png"
    jobs = place.table("runs/two/jobs.parquet")
    assert [(job["id"], job["variant"], job["varied"]) for job in jobs][:2] == [
        ("m", 1, '{"style": "photo"}'), ("m", 2, '{"style": "sketch"}'),
    ]  # fmt: skip
    report = place.read("runs/two/report.html").decode()
    assert "2 · sketch" in report
    assert "sketch of a blue Vase" in report


def test_the_reports_cost_table_has_each_amount_beside_what_it_was_for(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()

    def run(path: str, run_id: str) -> str:
        generate_catalog(
            catalog=path,
            api={"provider": "together", "base_url": emulated.base_url},
            output=place.settings(replace_manifest=True),
            execution={"run_id": run_id},
        )
        report = place.read(f"runs/{run_id}/report.html").decode()
        table = report.partition('<section id="cost">')[2].partition("</table>")[0]
        return " ".join(re.sub("<[^>]+>", " ", table).split())

    run(catalog(prompt=["large"], width=[1024], height=[1024]), "first")
    prompts = ["large", *["small"] * 10, "x #fault:wrong_size", "y #fault:truncated"]
    sides = [1024, *[256] * 12]
    said = run(catalog(prompt=prompts, width=sides, height=sides), "second")
    assert re.search(r"Generated \D* 1 \$0\.000177 ", said)
    assert re.search(r"Without an image \D* 2 \$0\.000708 ", said)  # two pictures of each were paid for
    assert re.search(r"Reused \D* 1 \$0\.00283 ", said)
    assert re.search(r"Duplicates \D* 9 \$0\.00159 ", said)
    assert said.endswith("Total $0.000885 $0.00442")
