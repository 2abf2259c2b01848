"""The error table of imagemill/errors.py, row by row, against an API that really answers so."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagemill.emulator import Emulator
from imagemill.engine.engine import StopKind
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.runs.summary import RunStoppedError, RunSummary
from tests.conftest import Place

pytestmark = pytest.mark.usefixtures("prefect_server")

CASES = {
    # fault: (requests sent, final status, class, retryable)
    "429": (4, "failed", "rate_limited", True),
    "429*3": (4, "done", None, None),
    "503": (4, "failed", "rate_limited", True),  # the emulator's 503 has a Retry-After
    "500": (2, "failed", "server_error", True),
    "500*1": (2, "done", None, None),
    "502": (2, "failed", "server_error", True),
    "504*1": (2, "done", None, None),
    "html": (2, "failed", "server_error", True),
    "wrong_shape": (2, "failed", "server_error", True),
    "hang": (4, "failed", "timeout", True),
    "hang*3": (4, "done", None, None),
    "reset": (4, "failed", "timeout", True),
    "reset*1": (2, "done", None, None),
    "reset_body*1": (2, "done", None, None),
    "400": (1, "failed", "bad_request", False),
    "flagged": (1, "failed", "content_filtered", False),
    "black": (1, "failed", "content_filtered", False),
    "garbage": (2, "failed", "invalid_image", True),
    "truncated": (2, "failed", "invalid_image", True),
    "truncated*1": (2, "done", None, None),
    "wrong_size": (2, "failed", "invalid_image", True),
    "500*1 #fault:429*3 #fault:hang*2": (7, "done", None, None),  # each class has its own budget
}

UNANSWERED = {
    "hang": 4,
    "hang*3": 3,
    "reset": 4,
    "reset*1": 1,
    "reset_body*1": 1,
    "500*1 #fault:429*3 #fault:hang*2": 2,
    "html": 2,  # answered with status 200, and unreadable: it may have been charged
    "wrong_shape": 2,
}

IN_BOTH = ("attempts", "cost_usd", "unanswered", "unanswered_usd", "request_id", "finished_at")
"""Columns that failed.parquet shares with jobs.parquet."""


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["together", "fal"])
def test_each_class_has_its_own_budget_and_its_own_end(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str], provider: str
) -> None:
    emulated = emulator(retry_after=False, hang_s=5)
    prompts = [f"case {number} #fault:{fault}" for number, fault in enumerate(CASES)]

    summary = generate_catalog(
        catalog=catalog(id=list(CASES), prompt=[*prompts], good=[False] * len(CASES)),
        api={"provider": provider, "base_url": emulated.base_url, "request_timeout_s": 1.0},
        output=place.settings(),
        picture={"width": 256, "height": 256},
        limits={"concurrency": 40},
        execution={"run_id": "faults"},
    )

    sent = Counter(request["body"]["prompt"] for request in emulated.requests(last=1000))
    jobs = {job["id"]: job for job in place.table("runs/faults/jobs.parquet")}
    failed = {job["id"]: job for job in place.table("runs/faults/failed.parquet")}
    expected = dict(CASES)
    if provider == "fal":
        # An image by link: what was cut on the way is fetched again, free of charge.
        expected["reset_body*1"] = (1, "done", None, None)
    for (fault, (requests, status, error_class, retryable)), prompt in zip(
        expected.items(), prompts, strict=True
    ):
        assert (fault, sent[prompt]) == (fault, requests)
        assert (fault, jobs[fault]["status"]) == (fault, status)
        assert (fault, jobs[fault]["error_class"]) == (fault, error_class)
        if status == "failed":
            assert failed[fault]["retryable"] is retryable
            assert failed[fault]["prompt"] == prompt
            assert failed[fault]["error_message"]
            assert failed[fault] == failed[fault] | {name: jobs[fault][name] for name in IN_BOTH}
    assert summary.failed == sum(status == "failed" for _, status, *_ in expected.values())
    assert summary.done == len(CASES) - summary.failed
    # Hangs and resets, before anything was kept to ask about. On a synchronous API one image of them was
    # charged, whose answer broke off: the bill is between what is known and what may be.
    price = 0.0027 * 256 * 256 / 1e6 if provider == "together" else 0.003
    unanswered = UNANSWERED | ({"reset_body*1": 0} if provider == "fal" else {})
    assert summary.unanswered == sum(unanswered.values())
    assert summary.unanswered_usd == pytest.approx(summary.unanswered * price)
    charged = price if provider == "together" else 0.0
    assert summary.cost_usd + charged == pytest.approx(emulated.bill()["usd"])
    assert {fault: jobs[fault]["unanswered"] for fault in unanswered} == unanswered

    events = [json.loads(line) for line in place.read("runs/faults/log.jsonl").splitlines()]
    bad = next(e for e in events if e["event"] == "failed" and e["id"] == "400")
    assert bad["input"]["prompt"] == prompts[list(CASES).index("400")]
    assert summary.errors == dict(Counter(e["error_class"] for e in events if e["event"] == "attempt_failed"))


def run(place: Place, emulated: Emulator, path: str, **more: Any) -> RunSummary:
    return generate_catalog(
        catalog=path,
        api={"provider": more.pop("provider", "together"), "base_url": emulated.base_url},
        output=place.settings(),
        picture={"width": 256, "height": 256},
        execution={"run_id": "stopped"},
        **more,
    )


def stopped(place: Place, emulated: Emulator, path: str, **more: Any) -> RunStoppedError:
    with pytest.raises(RunStoppedError) as caught:
        run(place, emulated, path, **more)
    return caught.value


@pytest.mark.parametrize("provider", ["together", "fal"])
def test_a_refused_key_stops_the_run_within_one_round(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str], provider: str
) -> None:
    emulated = emulator(api_keys=("another",), latency_s=0.05)
    stop = stopped(place, emulated, catalog(prompt=[f"p{n}" for n in range(300)]), provider=provider)

    assert stop.kind is StopKind.UNAUTHORIZED
    assert "refused the key" in str(stop)
    assert (stop.summary.done, stop.summary.failed, stop.summary.pending) == (0, 0, 300)
    assert emulated.stats()["generation_requests"] <= 10
    assert {row["status"] for row in place.table("manifest.parquet")} == {"pending"}


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["together", "fal"])
def test_exhausted_credit_stops_the_run_and_a_resume_goes_on(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str], provider: str
) -> None:
    emulated = emulator(credit_images=25, latency_s=0.02)
    path = catalog(prompt=[f"p{n}" for n in range(60)])
    stop = stopped(place, emulated, path, provider=provider)

    assert stop.kind is StopKind.OUT_OF_BUDGET
    assert (stop.summary.done, stop.summary.pending) == (25, 35)

    emulated.configure(credit_images=None)
    summary = run(place, emulated, path, provider=provider)
    assert (summary.done, summary.generated, summary.pending) == (60, 60, 0)
    assert {entry["count"] for entry in emulated.bill()["by_key"].values()} == {1}


@pytest.mark.slow
def test_the_runs_own_budget_is_never_exceeded_and_a_larger_one_goes_on(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator(latency_s=0.05)
    image_usd = 0.0027 * 256 * 256 / 1e6
    path = catalog(prompt=[f"p{n}" for n in range(50)])
    # What an earlier process paid counts: the same limit buys nothing more, a larger one the difference.
    for images in (20, 20, 35):
        stop = stopped(place, emulated, path, limits={"max_cost_usd": (images + 0.5) * image_usd})
        assert stop.kind is StopKind.OUT_OF_BUDGET
        assert (stop.summary.done, stop.summary.pending) == (images, 50 - images)
        assert emulated.bill()["images"] == images
    summary = run(place, emulated, path)
    assert (summary.done, summary.pending) == (50, 0)
    assert {entry["count"] for entry in emulated.bill()["by_key"].values()} == {1}


def test_a_line_that_a_crash_cut_short_does_not_spoil_the_next(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str], own_home: Path
) -> None:
    emulated = emulator()
    path = catalog(prompt=[f"p{n}" for n in range(4)])
    stopped(place, emulated, path, limits={"max_cost_usd": 1e-9})
    with (own_home / "runs" / "stopped" / "log.jsonl").open("ab") as log:
        log.write(b'{"at":"2026-11-25T06:00:00.000+00:00","event":"do')
    assert run(place, emulated, path).done == 4

    lines = place.read("runs/stopped/log.jsonl").splitlines()
    whole = [json.loads(line) for line in lines if line.endswith(b"}")]
    assert [line["event"] for line in whole].count("done") == 4
