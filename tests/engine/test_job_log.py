"""A line a job: through logging, on stderr, and the failures in Prefect's log."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.logging.handlers import APILogHandler

from imagemill.cli.command import main
from imagemill.emulator import Emulator
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.reports import failure_log
from tests.conftest import Place

pytestmark = pytest.mark.usefixtures("prefect_server")

PROMPTS = ["an owl", "a fox #fault:500*1", "a tram\n\x9b31m #fault:400"]


def generate(place: Place, emulated: Emulator, path: str, **more: Any) -> Any:
    return generate_catalog(
        catalog=path,
        api={"provider": "together", "base_url": emulated.base_url},
        output=place.settings(),
        picture={"width": 256, "height": 256},
        **more,
    )


def test_each_job_is_a_record_of_the_level_that_it_deserves(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "imagemill.jobs"):
        summary = generate(place, emulator(), catalog(id=["a", "b", "c\x1b[2J"], prompt=PROMPTS))

    records = [record for record in caplog.records if record.name == "imagemill.jobs"]
    levels = [(record.levelname, record.job["id"][0], record.job["event"]) for record in records]  # type: ignore[attr-defined]
    assert sorted(levels) == [
        ("ERROR", "c", "failed"),
        ("INFO", "a", "done"),
        ("INFO", "b", "done"),
        ("WARNING", "b", "attempt_failed"),
    ]
    logged = [json.loads(line) for line in place.read(f"runs/{summary.run_id}/log.jsonl").splitlines()]
    for record in records:
        assert json.loads(json.dumps(record.job)) in logged  # type: ignore[attr-defined]
    failed = next(record for record in records if record.levelname == "ERROR")
    assert {"run_id", "id", "key", "status", "attempt", "error_code", "request_id"} <= set(failed.job)  # type: ignore[attr-defined]
    assert failed.getMessage().startswith("failed: c\\x1b[2J, bad_request")
    assert failed.getMessage().isprintable()


def lines_of(place: Place, emulated: Emulator, path: str, *more: str) -> list[str]:
    return [
        *("run", path, "--provider", "together", "--base-url", emulated.base_url, "--output", place.uri),
        *("--s3-endpoint-url", place.s3.endpoint_url, "--width", "256", "--height", "256", "--json", *more),
    ]


@pytest.mark.slow
def test_the_command_writes_lines_on_stderr_when_asked(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in the command's own process
    path = catalog(prompt=PROMPTS)
    assert main(lines_of(place, emulator(), path, "--log-format", "json")) == 1
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.err.splitlines() if line.startswith("{")]
    assert sorted(line["level"] for line in lines) == ["ERROR", "INFO", "INFO", "WARNING"]
    assert printed.err.isascii()
    assert json.loads(printed.out)["failed"] == 1

    assert main(lines_of(place, emulator(), path, "--log-format", "text")) == 1
    err = capsys.readouterr().err
    assert "ERROR   failed: 2, bad_request" in err
    assert not logging.getLogger("imagemill.jobs").handlers
    assert "\x9b" not in err


def test_the_first_failures_are_in_prefects_log_and_no_other_line(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failure_log, "MOST_LINES", 3)
    path = catalog(prompt=["fine", *[f"p{n} #fault:400" for n in range(8)]])
    state = generate(place, emulator(), path, return_state=True)
    APILogHandler().flush()

    flow_run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id])))
    messages = [log.message for log in logs if log.name == "imagemill.jobs"]
    assert len(messages) == 4
    assert sum(message.startswith("failed: ") for message in messages) == 3
    assert sum("failed.parquet" in message for message in messages) == 1
