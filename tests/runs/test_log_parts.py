"""The log of a run in its bucket, part by part, and what a machine makes of the parts of others."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import anyio
import orjson
import pytest

from imagemill.blocks.apis import Fal
from imagemill.bucket.access import open_bucket
from imagemill.bucket.image_bucket import ImageBucket
from imagemill.engine.job_log import JobLog
from imagemill.engine.limits.pacer import Pacer
from imagemill.engine.recorder import Recorder
from imagemill.engine.telemetry import Telemetry
from imagemill.errors import ApiError, ErrorClass, StoreUnavailableError
from imagemill.runs.folder import RunFolder
from imagemill.runs.log_parts import LeaderLog, WorkerLog, catch_up_with_others, published_lines
from imagemill.runs.log_replay import perhaps_sent
from imagemill.settings import OutputSettings
from tests.blocks.apis.variants import make_job
from tests.conftest import Place


class Machine:
    """A machine with a disk of its own, on which processes lead the run one after the other."""

    def __init__(self, bucket: ImageBucket, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("IMAGEMILL_HOME", str(home))
        self.folder = RunFolder("r")
        self.folder.create()
        self.folder.record.write_bytes(b"{}")
        self.bucket = bucket
        self.parts: LeaderLog

    def start(self) -> None:
        self.parts = LeaderLog(self.bucket, self.folder)
        self.parts.is_open = True

    def write(self, *events: str) -> None:
        log = JobLog("r", self.folder.log)
        for event in events:
            log.event(event)
        log.close()

    def send(self) -> None:
        anyio.run(self.parts.send)

    @property
    def events(self) -> list[str]:
        return events_of(self.folder.log.read_bytes().splitlines())


def events_of(lines: list[bytes]) -> list[str]:
    return [line.split(b'"event":"')[1].split(b'"')[0].decode() for line in lines]


@pytest.fixture
def bucket(place: Place) -> Iterator[ImageBucket]:
    made = open_bucket(OutputSettings.model_validate(place.settings()))
    yield made
    made.close()


@pytest.fixture
def machine(bucket: ImageBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Machine]:
    return lambda name: Machine(bucket, tmp_path / name, monkeypatch)


def test_machines_that_lead_a_run_in_turn_have_each_line_once(
    machine: Callable[[str], Machine], bucket: ImageBucket, place: Place
) -> None:
    first, second, third = machine("first"), machine("second"), machine("third")
    first.start()
    first.write("a")
    first.send()
    first.write("b")  # the process dies before it is uploaded
    first.start()
    first.write("c", "log_closed")
    first.send()
    assert len(place.objects()) == 2  # a series of each process, however often it is sent
    second.start()
    second.write("d")
    second.send()
    second.write("e")  # lost with the machine
    third.start()
    third.write("f", "log_closed")
    third.send()
    first.start()

    there = ["a", "b", "c", "log_closed", "d", "log_cut", "f", "log_closed"]
    assert third.events == first.events == events_of(list(published_lines(bucket, "r"))) == there
    anyio.run(third.parts.retire)
    assert not place.objects()


def test_that_lines_may_be_missing_is_said_though_who_found_out_was_killed_at_once(
    machine: Callable[[str], Machine],
) -> None:
    """Seed 31904: the next process on that machine took the log for whole, and paid again."""
    first, second, third = machine("first"), machine("second"), machine("third")
    first.start()
    first.write("a")
    first.send()
    second.start()
    second.start()
    second.write("b")
    second.send()
    third.start()
    assert third.events == ["a", "log_cut", "b", "log_cut"]


def test_further_lines_are_taken_once_though_who_took_them_was_killed_before_it_had_noted_that(
    machine: Callable[[str], Machine],
) -> None:
    """What they named counted twice as perhaps sent, here and on the next machine."""
    first, second, third = machine("first"), machine("second"), machine("third")
    first.start()
    first.write("a")
    first.send()
    second.start()  # it is turned away, since the first one lives
    first.write("up_next")
    first.send()
    before = second.folder.parts.read_bytes()
    second.start()
    second.folder.parts.write_bytes(before)
    second.start()
    assert second.events == ["a", "log_cut", "up_next", "log_cut"]
    second.send()
    third.start()
    assert third.events == ["a", "up_next", "log_cut", "log_cut"]


@pytest.mark.parametrize(
    ("boot", "lines", "known"),
    [
        ("another", ["a"], ["a", "log_cut"]),
        ("another", ["a", "log_closed"], ["a", "log_closed"]),
        (None, ["a"], ["a"]),
    ],
    ids=["it has started anew", "the log was closed", "the process was killed"],
)
def test_lines_may_be_missing_where_the_machine_has_started_anew_since(
    machine: Callable[[str], Machine], boot: str | None, lines: list[str], known: list[str]
) -> None:
    """Seed 168282: a power cut took lines that no record had, and the rest passed for a whole log."""
    first = machine("first")
    first.start()
    first.write(*lines)
    first.send()
    state = orjson.loads(first.folder.parts.read_bytes())
    first.folder.parts.write_bytes(orjson.dumps({**state, "boot": boot or state["boot"]}))
    for _ in range(2):
        first.start()
        assert first.events == known


@pytest.mark.parametrize(
    "boot", ["another", "", None], ids=["started anew", "not known", "the disk was full"]
)
def test_a_line_that_a_power_cut_took_half_of_says_nothing(
    machine: Callable[[str], Machine], place: Place, boot: str | None
) -> None:
    """Seed 256052: it named its job, which was no longer among those that might have been sent."""
    first = machine("first")
    first.start()
    first.write("a")
    with first.folder.log.open("ab") as log:
        log.write(b'{"event":"up_next","jobs":[0]}\n{"event":"sent","job":0,"sta')
    state = orjson.loads(first.folder.parts.read_bytes())
    first.folder.parts.write_bytes(orjson.dumps({**state, "boot": state["boot"] if boot is None else boot}))
    away = ImageBucket("s3://not-there", endpoint_url=place.s3.endpoint_url)
    with closing(away), pytest.raises(StoreUnavailableError):
        LeaderLog(away, first.folder)
    for _ in range(2):
        first.start()
        assert first.events == ["a", "up_next", "log_cut"]


def test_lines_may_be_missing_where_the_first_one_after_a_closed_log_was_cut(
    machine: Callable[[str], Machine],
) -> None:
    """The disk was full from then on: without the half line the log seemed whole."""
    first = machine("first")
    first.start()
    first.write("up_next", "log_closed")
    with first.folder.log.open("ab") as log:
        log.write(b'{"event":"up_next","jo')
    for _ in range(2):
        first.start()
        assert first.events == ["up_next", "log_closed", "log_cut"]


def test_that_lines_may_be_missing_is_uploaded_though_who_found_out_was_turned_away(
    machine: Callable[[str], Machine],
) -> None:
    """A process that another one's lease keeps out closes its log all the same."""
    first, second, third = machine("first"), machine("second"), machine("third")
    first.start()
    first.write("a")
    first.send()
    second.start()
    second.write("log_closed")
    second.start()
    second.write("b", "log_closed")
    second.send()
    third.start()
    assert third.events == ["a", "log_cut", "log_closed", "b", "log_closed"]


@pytest.mark.parametrize("room", [20, 70, 150], ids=["in a line", "between two lines", "in the last line"])
@pytest.mark.parametrize("killed", [False, True], ids=["by a full disk", "by a kill"])
def test_that_lines_may_be_missing_is_said_though_taking_them_was_interrupted(
    machine: Callable[[str], Machine], room: int, *, killed: bool
) -> None:
    first, second = machine("first"), machine("second")
    first.start()
    first.write("a", "b")
    first.send()
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if killed else signal.SIG_IGN)
        try:
            second.start()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert (os.waitstatus_to_exitcode(status) == -signal.SIGXFSZ) is killed
    second.start()
    assert second.events == ["a", "b", "log_cut"]


def test_lines_that_a_power_cut_took_come_back_from_the_bucket(machine: Callable[[str], Machine]) -> None:
    only = machine("only")
    only.start()
    only.write("a", "b", "c")
    only.send()
    only.folder.log.write_bytes(only.folder.log.read_bytes()[:70])
    only.start()
    assert only.events == ["a", "b", "c", "log_cut"]


def test_a_log_whose_name_a_power_cut_took_is_begun_anew(
    machine: Callable[[str], Machine], bucket: ImageBucket
) -> None:
    """Seed 968169: the part was noted as begun, and the bucket never got it."""
    only = machine("only")
    only.start()
    only.write("a")
    only.send()
    bucket.try_delete([part.name for part in bucket.objects("runs/r/parts")])
    only.folder.log.unlink()
    only.start()
    only.write("b")
    only.send()
    assert events_of(list(published_lines(bucket, "r"))) == ["b"]


def test_another_machines_lines_that_a_power_cut_took_come_back_too(
    machine: Callable[[str], Machine],
) -> None:
    first, second = machine("first"), machine("second")
    first.start()
    first.write("a")
    first.send()
    second.start()
    second.folder.log.write_bytes(b"")
    second.start()
    assert second.events == ["a", "log_cut"]


def test_parts_that_could_not_be_deleted_are_not_read_twice(
    machine: Callable[[str], Machine], bucket: ImageBucket
) -> None:
    first, second = machine("first"), machine("second")
    first.start()
    first.write("a", "b")
    first.send()
    bucket.upload(first.folder.log, "runs/r/log.jsonl", "application/jsonl")
    bucket.download("runs/r/log.jsonl", second.folder.log)
    second.start()
    assert second.events == ["a", "b"]


def test_a_machine_that_comes_back_takes_what_another_one_has_published_since(
    machine: Callable[[str], Machine], bucket: ImageBucket
) -> None:
    first, second, third = machine("first"), machine("second"), machine("third")
    first.start()
    first.write("a")
    first.send()
    first.write("b")  # counted as lost by the second
    second.start()
    second.write("c")
    second.send()
    bucket.upload(second.folder.log, "runs/r/log.jsonl", "application/jsonl")
    anyio.run(second.parts.retire)
    second.write("log_closed")

    for back, overtaken in ((second, False), (first, True)):
        catch_up_with_others(bucket, back.folder)
        assert back.folder.is_overtaken is overtaken
    first.start()
    first.write("d", "log_closed")
    first.send()
    catch_up_with_others(bucket, third.folder)
    third.start()
    catch_up_with_others(bucket, second.folder)
    second.start()

    there = ["a", "log_cut", "c", "d", "log_closed"]
    assert first.events == third.events == second.events == there


def test_lines_of_workers_are_merged_by_their_time(
    machine: Callable[[str], Machine], bucket: ImageBucket
) -> None:
    leader = machine("leader")
    leader.start()
    leader.write("begun")
    for name, event in (("z", "earlier"), ("y", "later")):
        file = leader.folder.path / f"log-{name}.jsonl"
        log = JobLog("r", file, worker=name)
        log.event(event)
        log.close()
        WorkerLog(bucket, "r", name, file).send()
    anyio.run(leader.parts.gather)
    leader.write("ended")
    leader.send()
    assert leader.events == ["begun", "earlier", "later", "ended"]
    other = machine("other")
    other.start()
    assert sorted(other.events) == sorted(["begun", "ended", "earlier", "later", "log_cut"])


def test_what_a_lost_machine_may_have_sent_is_what_it_had_named_and_the_retries_that_were_due(
    tmp_path: Path,
) -> None:
    api = Fal(api_key="k")
    log = tmp_path / "log.jsonl"
    recorder = Recorder("run", JobLog("run", log), Pacer(1), Telemetry("run", api.provider, api.model))
    jobs = [make_job(api) for _ in range(5)]
    for number, job in enumerate(jobs):
        job.number = number
    recorder.up_next([0, 1, 2, 4])
    recorder.up_next([0, 1, 2])  # such as in an outage, when few are sent
    jobs[0].start(0.0)
    recorder.sent(jobs[0])
    jobs[3].start(0.0)
    recorder.sent(jobs[3])
    recorder.attempt_failed(jobs[3], ApiError(ErrorClass.RATE_LIMITED, "later", code="429"), 1.0)
    assert not perhaps_sent(log)  # nothing is lost as long as the log is whole
    recorder.event("log_cut")
    assert perhaps_sent(log).keys() == {1, 2, 3}
    jobs[2].start(0.0)
    recorder.sent(jobs[2])
    assert perhaps_sent(log).keys() == {1, 3}
    recorder.reopened(jobs[1], "timeout", "connection")  # by a retry of a retry (seed 1019384)
    recorder.close()
    assert perhaps_sent(log).keys() == {1, 3}
