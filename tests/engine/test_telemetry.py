"""Spans and metrics, as an OpenTelemetry SDK that a user configured sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

from imagemill.emulator import Emulator
from tests.conftest import Place
from tests.patience import PATIENCE_S

PROGRAM = textwrap.dedent(
    """
    import json, sys
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(tracing)
    metrics.set_meter_provider(MeterProvider([reader]))

    from imagemill import generate_catalog

    catalog, base_url, uri, endpoint = sys.argv[1:]
    generate_catalog(
        catalog=catalog,
        api={"provider": "together", "base_url": base_url},
        output={"uri": uri, "s3_endpoint_url": endpoint},
        picture={"width": 256, "height": 256},
        execution={"run_id": "seen", "shard_size": 2},
    )
    made = [
        {
            "name": span.name,
            "id": span.context.span_id,
            "parent": span.parent and span.parent.span_id,
            "trace": span.context.trace_id,
            "status": span.status.status_code.name,
            "attributes": dict(span.attributes),
        }
        for span in spans.get_finished_spans()
    ]
    points = {
        metric.name: [
            [dict(point.attributes), getattr(point, "value", getattr(point, "count", None))]
            for point in metric.data.data_points
        ]
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        if scope.scope.name == "imagemill"
        for metric in scope.metrics
    }
    print(json.dumps({"spans": made, "points": points}))
    """
)


@pytest.mark.slow
def test_spans_and_metrics_of_a_run(
    prefect_server: str, place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()
    path = catalog(id=["a", "b", "c"], prompt=["an owl", "a fox #fault:500*1", "a tram #fault:400"])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path, emulated.base_url, place.uri, place.s3.endpoint_url],
        env={**os.environ, "PREFECT_API_URL": prefect_server},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])

    spans = {span["id"]: span for span in seen["spans"]}
    named = {name: [s for s in spans.values() if s["name"] == f"imagemill.{name}"] for name in KINDS}
    assert {name: len(of) for name, of in named.items()} == {"run": 1, "shard": 2, "attempt": 4}
    (run,) = named["run"]
    assert run["attributes"]["imagemill.run_id"] == "seen"
    for attempt in named["attempt"]:
        assert attempt["trace"] == run["trace"]
        assert spans[attempt["parent"]]["name"] == "imagemill.shard"
    outcomes = sorted(
        (s["attributes"]["imagemill.job.id"], s["attributes"]["imagemill.attempt"], s["status"],
         s["attributes"].get("error.type"))
        for s in named["attempt"]
    )  # fmt: skip
    assert outcomes == [
        ("a", 1, "UNSET", None),
        ("b", 1, "ERROR", "server_error"),
        ("b", 2, "UNSET", None),
        ("c", 1, "ERROR", "bad_request"),
    ]

    points = seen["points"]
    assert {labels["status"]: value for labels, value in points["imagemill.jobs"]} == {"done": 2, "failed": 1}
    assert sum(value for _, value in points["imagemill.cost"]) == pytest.approx(emulated.bill()["usd"])
    assert [count for _, count in points["imagemill.image.duration"]] == [2]
    failed = {labels["error.type"]: value for labels, value in points["imagemill.attempts.failed"]}
    assert failed == {"server_error": 1, "bad_request": 1}


KINDS = ("run", "shard", "attempt")
