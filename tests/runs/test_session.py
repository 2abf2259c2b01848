"""A run's session: what Prefect does with one that a task is given, and an interrupt while it opens."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.utilities.collections import visit_collection

from imagemill.blocks.apis import OpenAICompatible
from imagemill.bucket.manifest import OWN_COLUMNS
from imagemill.cli.interrupts import InterruptedCaller
from imagemill.emulator import Emulator
from imagemill.engine.job_log import JobLog
from imagemill.engine.recorder import Progress
from imagemill.errors import InputError
from imagemill.runs.caller import Caller, called_by, current_caller
from imagemill.runs.planning import newer_than, plan_run, refuse_other_run
from imagemill.runs.session import CANCEL_GRACE_S, Session, open_session
from imagemill.settings import RunSettings
from tests.bucket.s3_front import Answer, S3Front
from tests.conftest import Place, full_disk
from tests.s3_server import S3Server


def settings(place: Place, catalog: str, **execution: object) -> RunSettings:
    return RunSettings.model_validate(
        {
            "run_id": "r",
            "catalog": catalog,
            "api": "together",
            "output": place.settings(),
            "limits": {"concurrency": 5},
            "execution": execution,
        }
    )


@pytest.fixture
def silent_server() -> Iterator[socket.socket]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_prefect_does_not_walk_through_a_session(place: Place, catalog: Callable[..., str]) -> None:
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        seen: list[object] = []
        visit_collection({"session": session}, seen.append, return_data=False)
        assert [each for each in seen if not isinstance(each, str | dict)] == [session]
        assert isinstance(session, Session)
        assert session.catalog is not None  # opened once, and handed on


def test_the_default_store_is_chosen_by_the_pictures_that_a_catalog_asks_for(
    place: Place, catalog: Callable[..., str]
) -> None:
    given = settings(place, catalog(prompt=[str(number) for number in range(11)]))
    many = given.catalog.model_copy(update={"variations": 100})
    with open_session(given.model_copy(update={"catalog": many})) as session:
        assert session.store.name == "sqlite"


def test_a_plan_that_a_kill_kept_from_the_bucket_is_there_for_another_machine_after_a_resume(
    place: Place, catalog: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(place, catalog(prompt=["a", None]))
    with open_session(given) as session:
        plan_run(session)
    for name in ("rejected.parquet", "run.json"):  # the last of the plan's files
        place.delete(f"runs/r/{name}")
    with open_session(given) as session:
        plan_run(session)
    monkeypatch.setenv("IMAGEMILL_HOME", str(tmp_path / "another machine"))
    with open_session(given) as session:
        assert plan_run(session)[0].rejected == 1
        assert pq.read_table(session.folder.rejected).num_rows == 1


def test_another_machine_does_not_go_on_with_another_model(
    place: Place, catalog: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pictures would lie under the keys of the first one's."""
    given = settings(place, catalog(prompt=["a"]))
    with open_session(given) as session:
        plan_run(session)
    monkeypatch.setenv("IMAGEMILL_HOME", str(tmp_path / "another machine"))
    api = given.api.model_copy(update={"model": "black-forest-labs/FLUX.1-dev"})
    with (
        open_session(given.model_copy(update={"api": api})) as session,
        pytest.raises(InputError, match=r"exists with the model 'black-forest-labs/FLUX\.1-schnell'"),
    ):
        plan_run(session)


OTHER_RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "catalog": ("catalog", {"path": "other.parquet"}),
    "columns": ("catalog", {"columns": {"prompt": "text"}}),
    "carried columns": ("catalog", {"carry": ["photo"]}),
    "limit": ("catalog", {"limit": 3}),
    "prompt template": ("catalog", {"prompt_template": "A {{ title }}"}),
    "negative prompt template": ("catalog", {"negative_prompt_template": "no {{ title }}"}),
    "variations": ("catalog", {"variations": 2}),
    "varied values": ("catalog", {"vary": {"steps": ["1", "2"]}}),
    "provider": ("api", {"provider": "fal"}),
    "model": ("api", {"model": "another"}),
    "output": ("output", {"uri": "s3://tests/elsewhere"}),
    "width": ("picture", {"width": 512}),
    "height": ("picture", {"height": 512}),
    "steps": ("picture", {"steps": 7}),
    "params": ("picture", {"params": {"guidance": 3}}),
    "seed policy": ("picture", {"seed_policy": "random"}),
    "format": ("picture", {"format": "webp"}),
    "mix models": ("picture", {"mix_models": True}),
}


@pytest.mark.parametrize("name", OTHER_RUNS)
def test_a_run_id_is_not_taken_for_other_pictures(name: str) -> None:
    """Each of these was once ignored where the run existed: the old run was taken, without a word."""
    given = {
        "run_id": "r",
        "catalog": {"path": "c.parquet"},
        "api": {"provider": "together", "model": "m"},
        "output": {"uri": "s3://tests/here"},
        "picture": {"steps": 4},
    }
    known = RunSettings.model_validate(given)
    refuse_other_run(known, known)
    group, change = OTHER_RUNS[name]
    other = RunSettings.model_validate({**given, group: {**given[group], **change}})  # type: ignore[dict-item]
    with pytest.raises(InputError, match=f"^Run 'r' exists with the {name} "):
        refuse_other_run(other, known)


@pytest.mark.usefixtures("prefect_server")
def test_a_run_does_not_go_on_with_other_fields_than_its_keys_were_made_of(
    place: Place, catalog: Callable[..., str]
) -> None:
    def save(guidance: int) -> None:
        fields = {"guidance": guidance}
        api = OpenAICompatible(api_key="k", model="m", base_url="http://127.0.0.1:9", extra_fields=fields)
        api.save("own", overwrite=True)

    described = settings(place, catalog(prompt=["a"])).model_dump(exclude_unset=True)
    given = RunSettings.model_validate({**described, "api": {"block": "imagemill-openai/own"}})
    for guidance in (3, 3):
        save(guidance)
        with open_session(given) as session:
            plan_run(session)
    save(4)
    with open_session(given) as session, pytest.raises(InputError, match="planned with other further fields"):
        plan_run(session)


def test_a_run_is_planned_after_the_manifest_whatever_the_clock_says(
    place: Place, catalog: Callable[..., str], tmp_path: Path
) -> None:
    schema = pa.schema([(name, pa.string()) for name in OWN_COLUMNS])
    publisher = json.dumps(["ahead", "2090-01-01T00:00:00.000+00:00"])
    manifest = tmp_path / "manifest.parquet"
    pq.write_table(schema.with_metadata({"imagemill.published_by": publisher}).empty_table(), manifest)
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        session.bucket.upload(manifest, "manifest.parquet", "x/y")
        plan_run(session)
        assert session.folder.read_planned_at() == "2090-01-01T00:00:00.001+00:00"
        assert newer_than(session) is None


@pytest.mark.parametrize("silent", ["s3", "redis", "postgresql"])
def test_an_interrupt_while_a_server_does_not_answer_ends_the_opening(
    place: Place, catalog: Callable[..., str], silent_server: socket.socket, silent: str
) -> None:
    path, port = catalog(prompt=["a"]), silent_server.getsockname()[1]
    caller, ended = Caller(), threading.Event()
    pressed_at = 0.0

    def interrupt(*_: object) -> None:
        assert not caller.interrupt("Interrupted.")  # nothing is running that could be stopped
        raise KeyboardInterrupt

    def press() -> None:
        nonlocal pressed_at
        connection, _ = silent_server.accept()
        with connection:
            connection.recv(1)  # asked: from now on the answer is waited for
            pressed_at = time.monotonic()
            while not ended.is_set():  # again: Python ignores an exception in a finalizer that just runs
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                ended.wait(2)

    before = signal.signal(signal.SIGINT, interrupt)
    presses = threading.Thread(target=press)
    presses.start()
    try:
        if silent == "s3":
            place.s3 = S3Server(f"http://127.0.0.1:{port}")
            given = settings(place, path)
        else:
            given = settings(place, path, store=f"{silent}://mill@127.0.0.1:{port}/0")
        with called_by(caller), pytest.raises(KeyboardInterrupt), open_session(given):
            raise AssertionError("opened")
        assert time.monotonic() - pressed_at < 4.0  # a server is waited for up to 5 s
    finally:
        ended.set()
        presses.join()
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """Whatever a test does to the handlers of signals, the next test has those that were there before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_handlers")
def test_a_signal_ends_at_once_what_cannot_be_stopped() -> None:
    """The first one, too: a run that opens may wait for a server that never answers."""
    caller, reasons = InterruptedCaller(), list[str]()
    with called_by(caller), caller.signals():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # the next one kills, whichever it is
    caller = InterruptedCaller()
    with called_by(caller), caller.interrupting(reasons.append):
        for times in (1, 2):
            os.kill(os.getpid(), signal.SIGINT)
            assert reasons == ["Interrupted."] * times
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("own_handlers")
def test_a_second_signal_while_a_run_ends_ends_it_no_sooner_and_a_fourth_kills() -> None:
    """The run is writing its summary, or waits for its store; Python may not get to raise anything."""
    caller = InterruptedCaller()
    with caller.signals():
        with caller.interrupting(lambda _: None):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), caller.interrupting(lambda _: None):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


@pytest.mark.usefixtures("own_handlers")
def test_a_third_signal_names_the_run_and_its_cost() -> None:
    caller = InterruptedCaller()
    with caller.interrupting(lambda _: None):
        assert caller.show is not None
        caller.show(Progress("mine", 9, 1, 0, 1.0, None, 0, 0, {}, 5, 5, 0.25))
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt, match=r"kept: \$0\.25 so far; .*imagemill resume mine$"):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("own_handlers")
def test_the_end_of_the_terminal_stops_a_run_once() -> None:
    """Shell and kernel both say so, perhaps after a Ctrl-C: requests in flight still come home."""
    caller, reasons = InterruptedCaller(), list[str]()
    with caller.interrupting(reasons.append):
        for number in (signal.SIGHUP, signal.SIGHUP):
            os.kill(os.getpid(), number)
            assert reasons == ["Interrupted."]
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(reasons) == 2


@pytest.mark.usefixtures("own_handlers")
def test_a_run_under_nohup_outlives_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    reasons: list[str] = []
    with InterruptedCaller().interrupting(reasons.append):
        os.kill(os.getpid(), signal.SIGHUP)
    assert (reasons, signal.getsignal(signal.SIGHUP)) == ([], signal.SIG_IGN)


def test_a_caller_stops_only_what_can_be_stopped() -> None:
    caller = Caller()
    reasons: list[str] = []
    assert not caller.interrupt("too early")
    with called_by(caller):
        assert current_caller() is caller
        with caller.interrupting(reasons.append):
            assert caller.interrupt("now")
    assert current_caller() is not caller
    assert not caller.interrupt("too late")
    assert reasons == ["now"]


def test_an_error_of_the_block_comes_out_as_it_was(place: Place, catalog: Callable[..., str]) -> None:
    with pytest.raises(InputError, match="mine"), open_session(settings(place, catalog(prompt=["a"]))):
        raise InputError("mine")


def test_an_interrupt_waits_for_what_is_in_flight(place: Place, catalog: Callable[..., str]) -> None:
    ended: list[str] = []
    with open_session(settings(place, catalog(prompt=["a"]))) as session:

        async def work() -> None:
            await anyio.sleep(0.1)  # until the thread waits
            os.kill(os.getpid(), signal.SIGINT)
            await session.engine.until_stopping()
            await anyio.sleep(0.05)
            ended.append("all")

        with pytest.raises(KeyboardInterrupt), session.interruptible():
            session.work_off(work)
        assert ended == ["all"]
        assert session.engine.grace_s == CANCEL_GRACE_S  # of the half minute after which Prefect kills


def test_a_bucket_that_takes_no_objects_ends_the_opening(
    place: Place, catalog: Callable[..., str], own_home: Path
) -> None:
    """It answers HeadBucket and lists its objects; images would be bought that it does not take."""
    path = catalog(prompt=["a"])
    with S3Front(urlsplit(place.s3.endpoint_url).port or 0) as front:
        front.before = lambda asked: Answer(403, "AccessDenied") if asked.method == "PUT" else None
        place.s3 = S3Server(front.url)
        with pytest.raises(InputError, match="does not take images"), open_session(settings(place, path)):
            raise AssertionError("opened")
    assert not list(own_home.glob("runs/*"))


def test_a_job_is_named_in_the_bucket_before_it_is_sent_though_later_ones_were_first(
    place: Place, catalog: Callable[..., str], emulator: Callable[..., Emulator]
) -> None:
    """Such as one that waited for the end of the run: its route was down."""
    given = settings(place, catalog(prompt=[str(number) for number in range(60)]))
    api = given.api.model_copy(update={"base_url": emulator().base_url})
    with open_session(given.model_copy(update={"api": api})) as session:
        plan_run(session)
        session.wait(session.announce, [0, 59])
        session.wait(session.engine.run_shard, 59, 59)
        session.wait(session.announce, [59])
        session.wait(session.engine.run_shard, 0, 0)
        lines = [json.loads(line) for line in session.folder.log.read_bytes().splitlines()]
    sent = next(n for n, line in enumerate(lines) if line["event"] == "sent" and line["job"] == 0)
    named = [line["jobs"] for line in lines[:sent] if line["event"] == "up_next"]
    assert 0 in named[-1]


def test_a_job_is_not_named_in_the_bucket_while_a_full_disk_does_not_take_the_line(
    place: Place, catalog: Callable[..., str]
) -> None:
    """Seed 330134: it was sent as if it were, and bought again once the machine was lost."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        plan_run(session)
        size = session.folder.log.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
        try:
            session.wait(session.announce, [0])
            assert not session.recorder.has_named(0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        session.wait(session.announce, [0])
        assert session.recorder.has_named(0)
        lines = [json.loads(line) for line in session.folder.log.read_bytes().splitlines()]
        assert lines[-1]["jobs"] == [0]


def test_a_job_that_is_tried_again_is_named_in_the_bucket_again(
    place: Place, catalog: Callable[..., str], emulator: Callable[..., Emulator]
) -> None:
    """A machine that is lost then may have sent it twice: the lines between say that it came to nothing."""
    given = settings(place, catalog(prompt=["bad #fault:400*9"]))
    api = given.api.model_copy(update={"base_url": emulator().base_url})
    with open_session(given.model_copy(update={"api": api})) as session:
        plan_run(session)

        async def retry() -> None:
            async for (job,) in session.store.all_jobs():
                session.recorder.took_back()
                session.engine.reopen(job)
                session.store.save(job)
            await session.store.commit()

        session.wait(session.announce, [0])
        session.wait(session.engine.run_shard, 0, 0)
        session.wait(retry)
        session.wait(session.engine.run_shard, 0, 0)
        lines = [json.loads(line) for line in session.folder.log.read_bytes().splitlines()]
    events = [line["event"] for line in lines if line["event"] in {"up_next", "sent", "reopened"}]
    assert events == ["up_next", "sent", "reopened", "up_next", "sent"]


@pytest.mark.parametrize("stays_full", [False, True])
def test_nothing_is_sent_while_a_full_disk_keeps_the_log_from_naming_it(
    place: Place, catalog: Callable[..., str], monkeypatch: pytest.MonkeyPatch, *, stays_full: bool
) -> None:
    """Seed 554734: the machine was lost a second later, and what it had sent was in no record."""
    failures = itertools.count()

    def full(_: JobLog) -> None:
        if next(failures) < 3 or stays_full:
            full_disk()

    monkeypatch.setattr("imagemill.engine.recorder._SAFE_S", 0.05)
    monkeypatch.setattr("imagemill.runs.session._DISK_PATIENCE_S", 0.5 if stays_full else 60.0)
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        plan_run(session)
        monkeypatch.setattr(JobLog, "flush", full)
        session.wait(session.announce, [0])
        (job,) = session.wait(session.store.unfinished, 0, 0)
        monkeypatch.setattr(session.engine, "is_unsent", lambda _: True)
        session.wait(session.may_send, job)
        assert session.recorder.has_named(0) is not stays_full
        assert (session.engine.stopped is not None) is stays_full
        if session.engine.stopped is not None:
            assert "runs/" in session.engine.stopped.reason
            assert "(No space left on device)" in session.engine.stopped.reason


def test_a_full_disk_holds_back_a_second_request_but_no_question_about_the_first(
    place: Place, catalog: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it came to is in no record, nor are its charges: retries of a minute were counted by nobody."""
    failures = itertools.count()

    def full(_: JobLog) -> None:
        if next(failures) < 3:
            full_disk()

    monkeypatch.setattr("imagemill.engine.recorder._SAFE_S", 0.05)
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        plan_run(session)
        session.wait(session.announce, [0])
        (job,) = session.wait(session.store.unfinished, 0, 0)
        monkeypatch.setattr(JobLog, "flush", full)
        session.wait(session.may_send, replace(job, request_id="task"))
        assert next(failures) == 0
        session.wait(session.may_send, job)
        assert next(failures) > 2
