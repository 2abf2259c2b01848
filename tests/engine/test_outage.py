"""The API or the bucket goes away in mid-run: the run waits, or stops resumably, and pays nothing twice."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest

from imagemill.emulator import Emulator
from imagemill.engine.breaker import PROBE_S, RARE_PROBE_S, Breaker, OutageError
from imagemill.errors import ErrorClass
from tests.cli.test_command import arguments, wait_for
from tests.conftest import Command, Place
from tests.fault_proxy import FaultProxy
from tests.patience import PATIENCE_S
from tests.servers import url_of
from tests.virtual_time import run


def test_the_breaker_opens_probes_and_closes() -> None:
    async def scenario() -> None:
        breaker, stopping = Breaker(0.5, patience_s=60), anyio.Event()
        for number in range(60):
            breaker.record(ErrorClass.SERVER_ERROR if number % 2 else None)
        for _ in range(60):
            breaker.record(ErrorClass.BAD_REQUEST)  # an API that refuses prompts is not down
        assert not breaker.is_open
        while not breaker.is_open:
            breaker.record(ErrorClass.TIMEOUT)
        begun = anyio.current_time()
        for probe in (1, 2):
            await breaker.admit(stopping)
            assert anyio.current_time() - begun == 5 * probe
            breaker.record(ErrorClass.TIMEOUT)
        await breaker.admit(stopping)
        assert breaker.record(None)
        assert not breaker.is_open
        await breaker.admit(stopping)
        assert anyio.current_time() - begun == 15

    run(scenario)


def test_the_breaker_gives_up_after_its_patience() -> None:
    async def scenario() -> None:
        breaker, stopping = Breaker(0.5, patience_s=60), anyio.Event()
        for _ in range(50):
            breaker.record(ErrorClass.TIMEOUT)
        begun = anyio.current_time()

        async def probe_for_ever() -> None:
            while True:
                await breaker.admit(stopping)
                breaker.record(ErrorClass.TIMEOUT)

        with pytest.raises(OutageError):
            await probe_for_ever()
        assert 60 < anyio.current_time() - begun <= 66

    run(scenario)


def test_a_few_failures_are_no_outage() -> None:
    async def scenario() -> None:
        breaker = Breaker(0.5, patience_s=60)
        for _ in range(49):
            breaker.record(ErrorClass.TIMEOUT)
        assert not breaker.is_open

    run(scenario)


def test_the_share_of_failures_is_exceeded_not_met_from_the_fiftieth_attempt_on() -> None:
    for failures, opens in ((25, False), (26, True)):
        breaker = Breaker(0.5, patience_s=60, clock=lambda: 0.0)
        outcomes = [None] * (50 - failures) + [ErrorClass.TIMEOUT] * failures
        assert [breaker.record(outcome) for outcome in outcomes] == [False] * 49 + [opens]
        assert breaker.is_open is opens


def test_failures_in_a_row_open_it_where_other_apis_can_step_in() -> None:
    now = 0.0
    breaker = Breaker(0.5, patience_s=60, in_a_row=4, clock=lambda: now)
    for _ in range(2):
        assert breaker.wait_s() == 0.0
        assert not any(breaker.record(ErrorClass.TIMEOUT) for _ in range(3))
        assert not breaker.record(None)
        assert [breaker.record(ErrorClass.SERVER_ERROR) for _ in range(4)] == [False, False, False, True]
        assert breaker.wait_s() == PROBE_S
        now += PROBE_S - 1
        assert breaker.wait_s() == 1.0
        assert not breaker.record(ErrorClass.TIMEOUT)  # it stays open
        breaker.sent()
        assert breaker.wait_s() == PROBE_S
        now += 2 * PROBE_S
        assert breaker.wait_s() == 0.0
        assert breaker.record(None)
        assert not breaker.is_open


def test_an_api_that_refuses_every_request_for_too_long_counts_as_down() -> None:
    now = 0.0
    breaker = Breaker(0.5, patience_s=300, clock=lambda: now)
    for outcome in (None, ErrorClass.BAD_REQUEST, ErrorClass.INVALID_IMAGE):
        assert not breaker.record(ErrorClass.RATE_LIMITED)
        now += 299
        assert not breaker.record(ErrorClass.RATE_LIMITED)
        assert not breaker.record(outcome)  # it took a request
    for _ in range(3):
        assert not breaker.record(ErrorClass.RATE_LIMITED)
        breaker.record(ErrorClass.TIMEOUT)
        now += 100
    assert not breaker.is_open
    now += 1
    assert breaker.record(ErrorClass.RATE_LIMITED)
    assert breaker.is_refusing
    assert breaker.has_given_up
    assert breaker.wait_s() == RARE_PROBE_S
    assert not breaker.record(ErrorClass.RATE_LIMITED)
    assert breaker.record(None)
    assert not breaker.is_open


def test_an_api_that_nobody_asked_meanwhile_has_not_refused_everything() -> None:
    """Such as a route that steps in for another one now and then: its first requests are a burst."""
    now = 0.0
    breaker = Breaker(0.5, patience_s=300, clock=lambda: now)
    assert not breaker.record(ErrorClass.RATE_LIMITED)
    now = 400.0
    for _ in range(9):
        assert not breaker.record(ErrorClass.RATE_LIMITED)
    now = 699.0
    assert not breaker.record(ErrorClass.RATE_LIMITED)
    now = 701.0
    assert breaker.record(ErrorClass.RATE_LIMITED)


def test_an_api_that_nobody_asked_for_as_long_as_the_run_waits_may_be_up_again() -> None:
    """Seed 409354: a route took no more jobs, and its last request was given up unasked."""
    now = 0.0
    breaker = Breaker(0.5, patience_s=60, in_a_row=1, clock=lambda: now)
    assert breaker.record(ErrorClass.TIMEOUT)
    now = 30.0
    assert not breaker.record(ErrorClass.TIMEOUT)
    now = 61.0
    breaker.wait_anew()
    assert breaker.has_given_up  # it was asked half a minute ago
    now = 91.0
    breaker.wait_anew()
    assert not breaker.has_given_up
    assert breaker.wait_s() == 0.0
    now = 152.0
    assert not breaker.record(ErrorClass.TIMEOUT)
    assert breaker.has_given_up


def test_an_api_that_refuses_everything_is_not_up_because_nobody_asked_it_for_a_while() -> None:
    now = 0.0
    breaker = Breaker(0.5, patience_s=300, clock=lambda: now)
    breaker.record(ErrorClass.RATE_LIMITED)
    now = 301.0
    assert breaker.record(ErrorClass.RATE_LIMITED)
    now = 640.0
    breaker.wait_anew()
    assert not breaker.has_given_up
    assert not breaker.record(ErrorClass.RATE_LIMITED)
    assert breaker.is_refusing
    now = 941.0
    assert breaker.has_given_up


def test_a_minutes_allowance_that_is_used_up_is_no_outage() -> None:
    now = 0.0
    breaker = Breaker(0.5, patience_s=0, clock=lambda: now)
    for _ in range(3):
        assert not breaker.record(ErrorClass.RATE_LIMITED)
        now += 59.0


def test_a_stop_wakes_those_who_wait_for_the_api() -> None:
    async def scenario() -> None:
        breaker, stopping = Breaker(0.5, patience_s=60, in_a_row=1), anyio.Event()
        breaker.record(ErrorClass.TIMEOUT)
        async with anyio.create_task_group() as group:
            group.start_soon(breaker.admit, stopping)
            await anyio.sleep(1)
            stopping.set()
            breaker.stop()
        assert anyio.current_time() == 1

    run(scenario)


@pytest.mark.slow
def test_an_api_that_stays_down_stops_the_run_resumably(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
) -> None:
    emulated = emulator(faults={"502": 1.0})
    path = catalog(prompt=[f"p{n}" for n in range(300)])
    given = arguments(place, emulated, "--run-id", "down", "--json")
    down = command("run", path, *given, "--outage-timeout", "8")
    assert down.code == 3, down.err
    assert "The API has been down" in down.err
    assert down.json["failed"] <= 60  # those whose budget was spent before it was clear
    assert down.json["pending"] >= 240

    emulated.configure(faults={})
    again = command("resume", "down", "--json")
    assert again.code == (1 if down.json["failed"] else 0)
    assert again.json["done"] == 300 - down.json["failed"]
    retried = command("retry-failed", "down", "--json")
    assert (retried.code, retried.json["done"], retried.json["failed"]) == (0, 300, 0)
    assert emulated.bill()["images"] == 300


@pytest.mark.slow
def test_a_bucket_that_comes_back_is_waited_for(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    start_command: Callable[..., subprocess.Popen[str]],
) -> None:
    emulated = emulator(latency_s=0.2)
    path = catalog(prompt=[f"p{n}" for n in range(300)])
    with FaultProxy(urlsplit(place.s3.endpoint_url).port or 0) as proxy:
        given = arguments(place, emulated, "--s3-endpoint-url", f"http://127.0.0.1:{proxy.port}")
        process = start_command("run", path, *given, "--json")
        wait_for(lambda: emulated.bill()["images"] >= 60, process)
        proxy.away = True
        wait_for(lambda: proxy.refused >= 60, process)
        proxy.away = False
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert '"done":300' in out
    assert emulated.bill()["images"] == 300


@pytest.mark.slow
def test_images_that_the_bucket_did_not_take_are_kept_and_not_paid_again(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
    own_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("imagemill.s3.connection.RETRIES", 3)  # else it is waited for for most of a minute
    emulated = emulator(latency_s=0.2)
    path = catalog(prompt=[f"p{n}" for n in range(300)])
    with FaultProxy(urlsplit(place.s3.endpoint_url).port or 0) as proxy:
        given = arguments(place, emulated, "--s3-endpoint-url", f"http://127.0.0.1:{proxy.port}")
        given += ["--run-id", "away", "--json"]

        def go_away() -> None:
            while emulated.bill()["images"] < 60:
                time.sleep(0.02)
            proxy.away = True

        going = threading.Thread(target=go_away)
        going.start()
        stopped = command("run", path, *given)
        going.join(PATIENCE_S)
        assert stopped.code == 3, stopped.err
        assert "imagemill resume away" in stopped.err
        unsaved = own_home / "runs" / "away" / "unsaved"
        kept = f"{len([*unsaved.glob('*.png')])} paid images wait in {unsaved} until a resume uploads them."
        assert kept in stopped.json["stopped"]
        assert kept in stopped.err
        proxy.away = False
        done = command("run", path, *given)
    assert done.code == 0, done.err
    assert done.json["done"] == 300
    assert emulated.bill()["images"] == 300
    assert not list(unsaved.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgres", "redis"])
def test_a_job_store_that_comes_back_is_waited_for(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    start_command: Callable[..., subprocess.Popen[str]],
    request: pytest.FixtureRequest,
    kind: str,
) -> None:
    server = request.getfixturevalue(f"{kind}_server")
    emulated = emulator(latency_s=0.2, max_concurrent=10)
    path = catalog(prompt=[f"p{n}" for n in range(150)])
    with FaultProxy(server.port) as proxy:
        given = arguments(place, emulated, "--provider", "fal", "--store", url_of(server, port=proxy.port))
        process = start_command("run", path, *given, "--json")
        wait_for(lambda: emulated.bill()["images"] >= 30, process)
        proxy.away = True
        wait_for(lambda: proxy.refused >= 4, process)  # the store's own patience: after some seconds
        proxy.away = False
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert '"done":150' in out
    assert emulated.bill()["images"] == 150


@pytest.mark.slow
def test_prefect_that_comes_back_is_waited_for(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    start_command: Callable[..., subprocess.Popen[str]],
    prefect_server: str,
) -> None:
    emulated = emulator(latency_s=0.2, max_concurrent=10)
    path = catalog(prompt=[f"p{n}" for n in range(200)])
    with FaultProxy(urlsplit(prefect_server).port or 0) as proxy:
        given = arguments(place, emulated, "--shard-size", "20", "--json")
        process = start_command("run", path, *given, PREFECT_API_URL=f"http://127.0.0.1:{proxy.port}/api")
        wait_for(lambda: emulated.bill()["images"] >= 30, process)
        proxy.away = True
        # By now shards have ended that Prefect could not be told of.
        wait_for(lambda: emulated.bill()["images"] >= 150, process)
        proxy.away = False
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert '"done":200' in out
    assert emulated.bill()["images"] == 200
