"""The dashboard and its regressions, over a real bucket and a real Prefect server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import State

from imagemill.bucket.access import open_bucket
from imagemill.cli.command import main
from imagemill.emulator import Emulator
from imagemill.flows.build_dashboard import build_dashboard
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.reports.alert_events import emit_alerts
from imagemill.reports.dashboard import publish_dashboard, render_dashboard
from imagemill.reports.regressions import find_regressions
from imagemill.reports.vendors import compare_vendors
from imagemill.runs.history import History, RunRow, history_of
from imagemill.settings import OutputSettings, RegressionSettings
from tests.conftest import Place
from tests.patience import PATIENCE_S
from tests.reports.past_runs import past_runs, run_row
from tests.reports.test_report import HOSTILE, Page

METRICS = 4


def put(place: Place, name: str, content: bytes) -> None:
    client = place.s3.client()
    client.put_object(Bucket="tests", Key=place.prefix + name, Body=content)
    client.close()


def put_rows(place: Place, rows: Sequence[RunRow], **columns: Any) -> None:
    for row in rows:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([row.model_dump(exclude={"run_id"}) | columns]), sink)
        put(place, f"metrics/run_id={row.run_id}/run.parquet", sink.getvalue().to_pybytes())


def page(rows: Sequence[RunRow], **more: Any) -> Page:
    settings = RegressionSettings(**more)
    found = find_regressions(rows, settings)
    built = datetime(2025, 11, 25, tzinfo=UTC)
    return Page(render_dashboard("s3://out/shop", History(list(rows), 0), found, settings, built))


def events_of(server: str, resource_id: str, least: int) -> list[dict[str, Any]]:
    """The regressions that the server heard of; waits for ``least`` of them."""
    wanted = {"event": {"name": ["imagemill.regression"]}, "resource": {"id": [resource_id]}}
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = httpx.post(f"{server}/events/filter", json={"filter": wanted})
        events: list[dict[str, Any]] = answer.raise_for_status().json()["events"]
        if len(events) >= least:
            return events
        assert time.monotonic() < deadline, "no event came"
        time.sleep(0.1)


@pytest.mark.slow
def test_all_runs_are_drawn_and_a_regression_is_told_once(prefect_server: str, place: Place) -> None:
    rows = past_runs()
    put_rows(place, rows)
    for name in ("broken/run.parquet", "run_id=x/run.parquet", "run_id=../y/run.parquet", "notes.txt"):
        put(place, f"metrics/{name}", b"PAR1 no Parquet at all")
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        closing(open_bucket(OutputSettings(**place.settings()))) as bucket,
    ):  # nobody would get the events, so they are left for a dashboard that is built with a server
        without_server = publish_dashboard(bucket, history_of(bucket), RegressionSettings())
        assert emit_alerts(bucket, without_server) == 0

    summary = build_dashboard(output=place.settings())

    assert summary.dashboard == f"{place.uri}/dashboard.html"
    assert (summary.runs, summary.skipped, summary.catalogs) == (40, 4, 3)
    assert summary.cost_usd == pytest.approx(sum(row.cost_usd for row in rows))
    assert place.head("dashboard.html")["ContentType"] == "text/html; charset=utf-8"
    shown = Page(place.read("dashboard.html").decode())
    assert len(shown.having("point")) == 40 * METRICS
    assert "44.2% below the median of 1,136" in shown.text
    assert "skipped 4 files in metrics/" in shown.text

    (regression,) = summary.regressions
    assert [change.metric for change in regression.changes] == ["images_per_minute", "p95_latency_s"]
    assert regression.resource_id == "imagemill.catalog.recipes-parquet.fal"
    (event,) = events_of(prefect_server, regression.resource_id, 1)
    assert event["payload"]["run_id"] == regression.run_id
    assert event["payload"]["report"] == f"{place.uri}/runs/{regression.run_id}/report.html"
    assert event["payload"]["changes"][0]["median"] == pytest.approx(1136, abs=1)
    assert event["resource"]["imagemill.provider"] == "fal"
    related = {each["prefect.resource.role"] for each in event["related"]}
    assert "flow-run" in related

    # Built again, nothing is told again; a regression elsewhere is.
    elsewhere = [run_row(n, catalog="other.parquet") for n in range(3)]
    put_rows(place, [*elsewhere, run_row(3, catalog="other.parquet", images_per_minute=700.0)])
    again = build_dashboard(output=place.settings())
    assert len(again.regressions) == 2
    assert len(events_of(prefect_server, "imagemill.catalog.other-parquet.together", 1)) == 1
    assert len(events_of(prefect_server, regression.resource_id, 1)) == 1


@pytest.mark.usefixtures("prefect_server")
def test_rows_of_real_runs_are_read(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    path = catalog(prompt=["a", "b", "a"])
    for name in ("one", "two"):  # the second finds all images in the bucket
        run = generate_catalog(
            catalog=path,
            api={"provider": "together", "base_url": emulator().base_url},
            output=place.settings(),
            picture={"width": 256, "height": 256},
            execution={"run_id": name},
        )
    assert run.generated == 0
    summary = build_dashboard(output=place.settings())
    assert (summary.runs, summary.skipped, summary.generated) == (2, 0, 2)
    assert "nothing generated" in Page(place.read("dashboard.html").decode()).text


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    "columns",
    [
        {"cost_usd": float("nan")},
        {"cost_usd": -1.0},
        {"error_rate": 7.0},
        {"catalog": "x" * 5_000},
        {"ended_at": "yesterday"},
        {"generated": None},
    ],
    ids=["NaN", "negative", "no share", "long name", "no time", "no number"],
)
def test_rows_that_make_no_sense_are_skipped_and_counted(place: Place, columns: dict[str, Any]) -> None:
    put_rows(place, [run_row(0)], **columns)
    summary = build_dashboard(output=place.settings())
    assert (summary.runs, summary.skipped) == (0, 1)
    assert "There are no runs yet" in Page(place.read("dashboard.html").decode()).text


@pytest.mark.usefixtures("prefect_server")
def test_a_bucket_that_is_not_there_is_one_sentence(place: Place) -> None:
    output = place.settings(uri="s3://no-such-bucket/x")
    state: State[Any] = build_dashboard(output=output, return_state=True)
    assert state.is_failed()
    assert state.message is not None
    assert "does not exist" in state.message


BEFORE = [run_row(n) for n in range(3)]


@pytest.mark.parametrize(
    ("given", "metrics"),
    [
        ({"images_per_minute": 810.0}, []),
        ({"images_per_minute": 790.0}, ["images_per_minute"]),
        ({"images_per_minute": 2_000.0}, []),
        ({"p95_latency_s": 1.5}, ["p95_latency_s"]),
        ({"p95_latency_s": None}, []),
        ({"cost_usd": 0.40}, ["cost_per_image_usd"]),
        ({"cost_usd": 0.01}, []),
        ({"error_rate": 0.02, "failed": 2, "done": 98}, []),
        ({"error_rate": 0.03, "failed": 3, "done": 97}, ["error_rate"]),
        ({"generated": 0, "images_per_minute": 0.0}, []),
    ],
    ids=str,
)
def test_what_is_a_regression(given: dict[str, Any], metrics: list[str]) -> None:
    found = find_regressions([*BEFORE, run_row(3, **given)], RegressionSettings())
    assert [change.metric for each in found for change in each.changes] == metrics


@pytest.mark.parametrize(("suspect", "metrics"), [(5, []), (6, ["suspect_rate"])])
def test_more_suspect_pictures_than_before_are_one(suspect: int, metrics: list[str]) -> None:
    rows = [run_row(n, measured=100, suspect=1) for n in range(3)]
    rows.append(run_row(3, measured=100, suspect=suspect))
    found = find_regressions(rows, RegressionSettings())
    assert [change.metric for each in found for change in each.changes] == metrics
    shown = page(rows)
    assert len(shown.having("point")) == 4 * (METRICS + 1)
    text = " ".join(shown.text.split())
    assert all(f"Suspect rate {each.changes[0].in_words}" in text for each in found)


def test_only_runs_of_the_same_catalog_and_api_that_generated_something_count() -> None:
    slow = run_row(9, images_per_minute=10.0)
    others = [run_row(3, provider="fal"), run_row(4, catalog="b"), run_row(5, generated=0)]
    assert find_regressions([*BEFORE[:2], *others, slow], RegressionSettings()) == []
    (found,) = find_regressions([*BEFORE, *others, slow], RegressionSettings())
    assert (found.run_id, found.runs_before, found.latest) == ("run-009", 3, True)
    assert found.changes[0].change == pytest.approx(-0.99)


def test_share_and_number_of_runs_can_be_set() -> None:
    rows = [*BEFORE[:1], run_row(3, images_per_minute=940.0)]
    assert len(find_regressions(rows, RegressionSettings(share=0.05, runs_before=1))) == 1
    assert find_regressions(rows, RegressionSettings(share=0.1, runs_before=1)) == []


def test_an_earlier_regression_is_shown_apart() -> None:
    shown = page([*BEFORE, run_row(3, images_per_minute=100.0), run_row(4)])
    assert "None of the latest runs is a regression." in shown.text
    assert "1 earlier regression, followed by later runs" in shown.text
    assert len(shown.having("mark")) == 5 * METRICS + 1
    assert len([given for given in shown.having("mark") if "flag" in given["class"]]) == 1


def test_one_run_and_none() -> None:
    assert len(page([run_row(0)]).having("point")) == METRICS
    assert "metrics/ is empty" in page([]).text


def test_asks_nothing_of_any_network() -> None:
    shown = page(past_runs())
    for tag, given in shown.tags:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href"):
            assert given.get(name, "#").startswith(("data:image/", "#", "runs/")), given
    (policy,) = [m["content"] for m in shown.named("meta") if "http-equiv" in m]
    assert "default-src 'none'" in policy
    places = {given["id"] for _, given in shown.tags if "id" in given}
    assert {a["href"][1:] for a in shown.named("a") if a["href"].startswith("#")} <= places


def test_hostile_names_stay_text() -> None:
    rows = [run_row(n, catalog=HOSTILE, provider=HOSTILE, stopped=HOSTILE) for n in range(3)]
    shown = page([*rows, run_row(4, catalog=HOSTILE, provider=HOSTILE, images_per_minute=1.0)])
    assert not shown.named("script")
    assert not shown.named("img")
    assert shown.text.count("<script>") > 5


@pytest.mark.usefixtures("prefect_server")
def test_the_command(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    put_rows(place, [*BEFORE, run_row(3, images_per_minute=880.0)])
    where = ["--output", place.uri, "--s3-endpoint-url", place.s3.endpoint_url]
    assert main(["dashboard", *where, "--regression-share", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "Regression: run run-003, products.parquet on together: throughput 880, 12% below" in out
    assert f"Dashboard {place.uri}/dashboard.html" in out
    assert main(["dashboard", *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["regressions"] == []
    assert main(["dashboard"]) == 2
    assert "--output s3://BUCKET/PREFIX" in capsys.readouterr().err


def test_vendors_are_compared_over_weeks_in_runs_over_one_api_and_over_several() -> None:
    def made(route: str, by: str, images: int, usd: float, per_minute: float, failed: int) -> dict[str, Any]:
        return {
            "route": route,
            "made_by": by,
            "images": images,
            "failed": failed,
            "images_per_minute": per_minute,
            "error_rate": failed / (images + failed),
            "p50_latency_s": 0.5,
            "p95_latency_s": 0.9,
            "cost_usd": usd,
            "measured": images,
            "suspect": 0,
            "requests": images + failed,
        }

    parts = [made("a", "fal/flux", 60, 0.18, 300.0, 0), made("b", "together/flux", 30, 0.03, 500.0, 10)]
    rows = [
        run_row(0, provider="together", model="flux", images_per_minute=700.0),
        run_row(7, provider="several", generated=90, failed=10, routes=json.dumps(parts)),
        run_row(8, provider="several", routes="[damaged"),
    ]
    everything, latest, first = compare_vendors(rows)
    fal, together = everything.vendors
    assert (fal.made_by, fal.runs, fal.images, fal.cost_usd) == ("fal/flux", 1, 60, 0.18)
    assert (together.runs, together.images, together.images_per_minute) == (2, 130, 600.0)
    assert together.error_rate == pytest.approx(10 / 140)
    assert {"images_per_minute", "cost_per_image_usd"} <= together.best
    assert "error_rate" in fal.best
    assert latest.monday is not None
    assert [vendor.made_by for vendor in latest.vendors] == ["fal/flux", "together/flux"]
    assert [vendor.made_by for vendor in first.vendors] == ["together/flux"]
    assert compare_vendors(rows[:1]) == []  # with one vendor there is nothing to compare
    assert "Vendors" in page(rows).text


def test_routes_that_took_no_more_jobs_are_named_with_the_reason() -> None:
    route = {
        "route": "spare",
        "made_by": "fal/flux",
        "images": 0,
        "failed": 0,
        "stopped": "It refused.",
    }
    rest = dict.fromkeys(
        ("images_per_minute", "error_rate", "cost_usd", "measured", "suspect", "requests"), 0
    )
    routes = json.dumps([route | rest | {"p50_latency_s": None, "p95_latency_s": None}])
    assert "spare: It refused." in page([run_row(0, provider="several", routes=routes)]).text


def test_each_column_of_the_weeks_has_its_head() -> None:
    settings = RegressionSettings()
    row = run_row(0, p95_queued_s=3.0)
    html = render_dashboard("s3://out", History([row], 0), [], settings, datetime(2025, 11, 25, tzinfo=UTC))
    weeks = html.partition('id="weeks"')[2].partition("</section>")[0]
    heads, _, body = weeks.partition("</thead>")
    count = [part.count("<th") + part.count("<td") - part.count("<thead") for part in (heads, body)]
    assert count[0] == count[1] > 8
