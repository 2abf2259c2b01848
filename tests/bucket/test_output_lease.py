"""One run at a time writes to an output: the lease taken, renewed, lost and given back, in virtual time."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import boto3
import orjson
import pytest
from botocore.credentials import RefreshableCredentials

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.bucket.output_lease import EXPIRY_S, LEASE, RENEW_S, OutputLease, holder_of, output_lease
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.holder import Holder
from tests.bucket.s3_front import Answer, Asked, S3Front


class Clock:
    """Time that passes only where somebody waits. The S3 server's goes on by itself; it is close enough."""

    def __init__(self) -> None:
        self.now = 0.0
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


class Run:
    """A run in a process of its own, as far as the lease can tell."""

    def __init__(self, bucket: ImageBucket, run_id: str, clock: Clock) -> None:
        self.lost: list[str] = []
        self.lease = OutputLease(bucket, run_id, self.lost.append, clock=clock, sleep=clock.sleep)

    def renew(self, clock: Clock, times: int = 1) -> None:
        for _ in range(times):
            clock.sleep(RENEW_S)
            self.lease.renew()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lie(bucket: ImageBucket, **changes: object) -> None:
    """Put a lease into the bucket as another process would have written it."""
    found = bucket.read_version(LEASE)
    lease = {
        "holder": "other", "nonce": "of-another-process", "process": "",
        "expires_at": (datetime.now(UTC) + timedelta(seconds=EXPIRY_S)).isoformat(),
    } | changes  # fmt: skip
    bucket.write_version(LEASE, orjson.dumps(lease), "application/json", found and found[1])


def lease_in(bucket: ImageBucket) -> dict[str, str]:
    found = bucket.read(LEASE)
    assert found is not None
    lease: dict[str, str] = orjson.loads(found)
    return lease


def test_a_second_run_is_refused_in_one_sentence(bucket: ImageBucket, clock: Clock) -> None:
    first, second = Run(bucket, "first", clock), Run(bucket, "second", clock)
    first.lease.take()
    assert holder_of(bucket) == "first"
    words = (
        rf"Run first is writing to {bucket.uri}: wait for its end \(its lease expires at \d\d:\d\d:\d\d UTC "
    )
    with pytest.raises(InputError, match=words):
        second.lease.take()
    second.lease.give_back()  # which is not its own
    assert lease_in(bucket)["holder"] == "first"
    first.lease.give_back()
    assert bucket.read(LEASE) is None
    assert holder_of(bucket) is None
    second.lease.take()
    assert lease_in(bucket)["holder"] == "second"


def test_two_that_take_it_at_once_do_not_both_get_it(
    bucket: ImageBucket, clock: Clock, front: S3Front
) -> None:
    runs = [Run(bucket, name, clock) for name in ("first", "second")]

    def overtake(asked: Asked) -> None:
        if asked.is_object_write:
            front.before = lambda _: None
            runs[1].lease.take()

    front.before = overtake
    with pytest.raises(InputError, match="has just begun"):
        runs[0].lease.take()
    runs[1].lease.renew()
    runs[1].lease.check()


def test_renewals_keep_it_as_long_as_the_run_takes(bucket: ImageBucket, clock: Clock) -> None:
    run = Run(bucket, "run", clock)
    run.lease.take()
    run.renew(clock, 40)  # twenty minutes
    run.lease.check()
    assert run.lost == []
    assert lease_in(bucket)["expires_at"].endswith("+00:00")  # whatever this machine's time zone
    expires = datetime.fromisoformat(lease_in(bucket)["expires_at"]).timestamp()
    assert expires == pytest.approx(time.time() + EXPIRY_S, abs=10)


@pytest.mark.parametrize("lost", ["the first take", "a renewal"])
def test_a_lost_answer_does_not_lose_the_lease(
    bucket: ImageBucket, clock: Clock, front: S3Front, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    run = Run(bucket, "run", clock)

    def hide(asked: Asked) -> Exception | None:
        return ConnectionError() if asked.is_object_write else None

    def forget() -> None:
        front.after = lambda _: None

    if lost == "the first take":
        front.after = hide
    else:
        run.lease.take()
        front.after = hide
    # Both attempts of the client are lost, the second is refused by the ETag that the first has left.
    run.lease.take() if lost == "the first take" else run.renew(clock)
    forget()
    written, pass_on = list[int](), front.pass_on

    def note(asked: Asked) -> tuple[int, list[tuple[str, str]], bytes]:
        answer = pass_on(asked)
        if asked.is_object_write:
            written.append(answer[0])
        return answer

    monkeypatch.setattr(front, "pass_on", note)
    for _ in range(10):
        run.renew(clock)
        run.lease.check()
    assert (run.lost, written.count(200) > 5) == ([], True)
    run.lease.give_back()
    assert bucket.read(LEASE) is None


def test_a_lease_that_another_run_took_is_lost_and_left_alone(bucket: ImageBucket, clock: Clock) -> None:
    run = Run(bucket, "run", clock)
    run.lease.take()
    lie(bucket, holder="thief")
    run.renew(clock, 3)
    assert len(run.lost) == 1
    assert "Run thief took it over" in run.lost[0]
    with pytest.raises(StoreUnavailableError, match="lost its lease"):
        run.lease.check()
    run.lease.give_back()
    assert lease_in(bucket)["holder"] == "thief"


def test_a_lease_that_cannot_be_renewed_is_held_while_the_bucket_may_come_back(
    bucket: ImageBucket, clock: Clock, front: S3Front
) -> None:
    run = Run(bucket, "run", clock)
    run.lease.take()
    front.before = lambda _: Answer(403, "AccessDenied")
    run.renew(clock, 8)
    assert clock.now > EXPIRY_S
    assert run.lost == []
    front.before = lambda _: None
    run.renew(clock)
    run.lease.check()
    front.before = lambda _: Answer(403, "AccessDenied")
    run.renew(clock, 13)
    assert run.lost == [f"The run lost its lease of {bucket.uri}. It could not be renewed in time."]


@pytest.mark.parametrize("taken_over", [True, False])
def test_a_stalled_process_finds_out_whether_its_lease_is_still_its_own(
    bucket: ImageBucket,
    clock: Clock,
    taken_over: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    run = Run(bucket, "run", clock)
    run.lease.take()
    clock.now += EXPIRY_S + 1  # a laptop that slept: no renewal came to its turn
    if taken_over:
        lie(bucket, holder="next")
        with pytest.raises(StoreUnavailableError, match="Run next took it over"):
            run.lease.check()
    else:
        run.lease.check()
    assert len(run.lost) == taken_over


@pytest.mark.slow
def test_credentials_that_expire_for_a_while_do_not_end_the_renewals(
    bucket: ImageBucket, bucket_name: str, clock: Clock
) -> None:
    hour = timedelta(hours=1)
    now = datetime.now(UTC)
    keys = {"access_key": "a", "secret_key": "s", "token": "t"}
    expired = {**keys, "expiry_time": now.isoformat()}
    session = boto3.Session()
    session._session._credentials = RefreshableCredentials(
        **keys,
        expiry_time=now + hour,
        refresh_using=lambda: expired,
        method="test",
        time_fetcher=lambda: now,
    )
    own = ImageBucket(f"s3://{bucket_name}/own", endpoint_url=bucket.endpoint_url, session=session)
    run = Run(own, "run", clock)
    run.lease.take()
    now += 2 * hour  # botocore raises a RuntimeError: the credentials that it fetched have expired
    run.renew(clock, 5)
    assert (run.lease.is_late, run.lost) == (True, [])
    now -= 3 * hour
    run.renew(clock)
    assert not run.lease.is_late
    own.close()


def test_a_lease_that_somebody_deleted_is_written_anew(bucket: ImageBucket, clock: Clock) -> None:
    run = Run(bucket, "run", clock)
    run.lease.take()
    bucket.delete([LEASE])
    run.renew(clock, 2)
    run.lease.check()
    assert lease_in(bucket)["holder"] == "run"


def test_a_dead_process_on_this_machine_keeps_nobody_out(bucket: ImageBucket, clock: Clock) -> None:
    here = Holder.here()
    dead = Holder.of_text(orjson.dumps({**orjson.loads(here.to_text()), "started": "1"}).decode())
    assert dead is not None
    lie(bucket, holder="killed", process=dead.to_text())
    Run(bucket, "next", clock).lease.take()
    assert lease_in(bucket)["holder"] == "next"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"holder": 1}', b'{"expires_at": "soon"}'])
def test_a_damaged_lease_keeps_nobody_out(bucket: ImageBucket, clock: Clock, content: bytes) -> None:
    bucket.write_version(LEASE, content, "application/json", None)
    Run(bucket, "run", clock).lease.take()
    assert lease_in(bucket)["holder"] == "run"


def test_a_lease_of_the_version_before_counts(bucket: ImageBucket, clock: Clock) -> None:
    for hours, free in ((1, False), (-1, True)):
        expires = (datetime.now(UTC) + timedelta(hours=hours)).isoformat()
        lie(bucket, holder="of 0.1", expires_at=expires, nonce=None, process=None)
        run = Run(bucket, "run", clock)
        if free:
            assert holder_of(bucket) is None
            run.lease.take()
        else:
            with pytest.raises(InputError, match=r"Run of 0\.1 is writing"):
                run.lease.take()


def test_the_same_run_on_another_machine_is_waited_for_or_refused(bucket: ImageBucket, clock: Clock) -> None:
    """Killed there a moment ago, it is taken over when its lease has expired; alive, it renews."""
    soon = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    lie(bucket, holder="run", expires_at=soon)
    clock.meanwhile = lambda: time.sleep(0.2)
    run = Run(bucket, "run", clock)
    run.lease.take()
    run.lease.check()

    lie(bucket, holder="run")
    clock.meanwhile = lambda: bucket.delete([LEASE])  # it has ended there
    Run(bucket, "run", clock).lease.take()

    lie(bucket, holder="run")
    clock.meanwhile = lambda: lie(bucket, holder="run")
    with pytest.raises(InputError, match="Run run is being worked on by another process"):
        Run(bucket, "run", clock).lease.take()


def test_a_run_that_is_started_again_waits_for_the_process_that_is_stopping(
    bucket: ImageBucket, clock: Clock
) -> None:
    """As Prefect starts one again while its last pod still uploads; but not for one that does not stop."""
    renewals = iter(range(4))

    def stopping() -> None:
        if next(renewals, None) is None:
            bucket.delete([LEASE])
        else:
            lie(bucket, holder="run")

    again = OutputLease(bucket, "run", print, patience_s=75, clock=clock, sleep=clock.sleep)
    lie(bucket, holder="run")
    clock.meanwhile = stopping
    again.take()
    again.check()

    begun = clock.now
    clock.meanwhile = lambda: lie(bucket, holder="run")
    with pytest.raises(InputError, match="is being worked on by another process"):
        OutputLease(bucket, "run", print, patience_s=75, clock=clock, sleep=clock.sleep).take()
    assert 75 <= clock.now - begun < 85


def test_a_clock_that_is_wrong_takes_nothing_over(bucket: ImageBucket, clock: Clock) -> None:
    slow = OutputLease(bucket, "slow", lambda _: None, clock=clock, wall=lambda: time.time() - 3600)
    slow.take()
    slow.renew()
    with pytest.raises(InputError, match="Run slow is writing"):
        Run(bucket, "right", clock).lease.take()
    slow.give_back()
    Run(bucket, "right", clock).lease.take()
    ahead = OutputLease(bucket, "ahead", lambda _: None, clock=clock, wall=lambda: time.time() + 3600)
    with pytest.raises(InputError, match="Run right is writing"):
        ahead.take()


def test_a_clock_that_is_set_back_meanwhile_gives_nothing_away(bucket: ImageBucket, clock: Clock) -> None:
    """Seed 15713: the renewals after that had expired when they were written, and another run began."""
    set_back_s = 0.0
    run = OutputLease(bucket, "run", print, clock=clock, wall=lambda: time.time() - set_back_s)
    run.take()
    set_back_s = 850.0
    run.renew()
    with pytest.raises(InputError, match="Run run is writing"):
        Run(bucket, "second", clock).lease.take()


def test_without_conditional_writes_the_last_of_two_has_it(bucket: ImageBucket, clock: Clock) -> None:
    bucket.conditional = False
    first, second = Run(bucket, "first", clock), Run(bucket, "second", clock)

    def overtake() -> None:
        clock.meanwhile = lambda: None
        lie(bucket, holder="second", nonce=second.lease._nonce)

    clock.meanwhile = overtake
    with pytest.raises(InputError, match="has just begun"):
        first.lease.take()
    second.lease._etag = (bucket.read_version(LEASE) or (b"", ""))[1]
    second.renew(clock, 3)
    second.lease.check()
    lie(bucket, holder="third")
    second.renew(clock)
    assert len(second.lost) == 1


def test_without_conditional_writes_a_slow_first_write_waits_until_the_other_has_looked(
    bucket: ImageBucket, clock: Clock, front: S3Front
) -> None:
    bucket.conditional = False
    slow, quick = Run(bucket, "slow", clock), Run(bucket, "quick", clock)

    def overtake(asked: Asked) -> None:
        if asked.is_object_write:
            front.before = lambda _: None
            quick.lease.take()
            due_at = clock() + RENEW_S
            assert due_at < 2 * RENEW_S  # it was not slow: a short wait was enough
            clock.sleep(1.0)
            clock.meanwhile = lambda: quick.lease.renew() if clock() >= due_at else None

    front.before = overtake
    slow.lease.take()
    assert len(quick.lost) == 1
    slow.renew(clock, 3)
    slow.lease.check()


def test_a_lease_that_expired_and_is_gone_may_have_been_anothers(bucket: ImageBucket, clock: Clock) -> None:
    """Seed 44140: it was written anew, and what the other run had made since was bought again."""
    run = Run(bucket, "run", clock)
    run.lease.take()
    clock.sleep(EXPIRY_S + 1)
    bucket.delete([LEASE])
    run.lease.renew()
    assert len(run.lost) == 1
    assert bucket.read(LEASE) is None


@pytest.mark.parametrize(
    ("late_s", "write_s", "answer", "lost"),
    [
        (0.0, 10.0, None, False),
        (EXPIRY_S, 0.5, None, False),
        (EXPIRY_S, 10.0, None, True),
        (EXPIRY_S, 10.0, ConnectionError(), True),
    ],
)
def test_without_conditional_writes_a_slow_renewal_of_an_expired_lease_comes_too_late(
    bucket: ImageBucket,
    clock: Clock,
    front: S3Front,
    late_s: float,
    write_s: float,
    answer: Exception | None,
    *,
    lost: bool,
) -> None:
    """Seed 40999: it replaced the lease of a run that had taken over meanwhile, and both bought."""
    bucket.conditional = False
    reasons, begun = list[str](), time.time()
    lease = OutputLease(
        bucket, "run", reasons.append, clock=clock, wall=lambda: begun + clock.now, sleep=clock.sleep
    )
    lease.take()

    def slow(asked: Asked) -> None:
        if asked.is_object_write:
            clock.sleep(write_s)

    clock.sleep(late_s)
    front.before = slow
    front.after = lambda asked: answer if asked.is_object_write else None
    lease.renew()
    assert bool(reasons) is lost


def test_it_is_held_while_the_block_runs(bucket: ImageBucket) -> None:
    with output_lease(bucket, "run", lambda _: None) as lease:
        lease.check()
        assert lease_in(bucket)["holder"] == "run"
    assert bucket.read(LEASE) is None


@pytest.mark.parametrize("taken_over", [False, True])
def test_a_run_that_stood_still_past_its_lease_asks_before_it_buys(
    bucket: ImageBucket, clock: Clock, *, taken_over: bool
) -> None:
    run = Run(bucket, "run", clock)
    run.lease.take()
    assert not run.lease.is_late
    clock.sleep(EXPIRY_S + 1)  # without a renewal
    assert run.lease.is_late
    if taken_over:
        lie(bucket)
    run.lease.renew()
    assert (run.lease.is_late, len(run.lost)) == (taken_over, taken_over)


def test_its_time_runs_from_the_moment_at_which_its_renewal_was_sent(
    bucket: ImageBucket, clock: Clock, front: S3Front
) -> None:
    run = Run(bucket, "run", clock)
    run.lease.take()

    def slow(asked: Asked) -> None:
        if asked.is_object_write:
            clock.sleep(10.0)

    front.before = slow
    run.lease.renew()
    front.before = lambda _: None
    clock.sleep(EXPIRY_S - 10.5)
    assert not run.lease.is_late
    clock.sleep(1.0)
    assert run.lease.is_late


def test_its_time_runs_from_a_renewal_whose_answer_was_lost(bucket: ImageBucket, clock: Clock) -> None:
    run = Run(bucket, "run", clock)
    run.lease.take()
    sent = datetime.now(UTC) - timedelta(seconds=10)  # the object has another ETag since
    expires = (sent + timedelta(seconds=EXPIRY_S)).isoformat()
    lie(bucket, holder="run", nonce=run.lease._nonce, expires_at=expires)
    run.lease.renew()
    clock.sleep(EXPIRY_S - 12.0)
    assert not run.lease.is_late
    clock.sleep(4.0)
    assert run.lease.is_late
    run.lease.renew()  # with the ETag that it has now
    assert not run.lease.is_late
    assert run.lost == []


def test_a_bucket_that_is_away_at_the_end_is_no_error(
    bucket: ImageBucket, clock: Clock, front: S3Front
) -> None:
    run = Run(bucket, "run", clock)
    run.lease.take()
    front.before = lambda _: Answer(403, "AccessDenied")
    run.lease.give_back()  # it expires
    front.before = lambda _: None
    assert lease_in(bucket)["holder"] == "run"


def test_a_lease_that_cannot_be_renewed_lets_nothing_be_written(
    bucket: ImageBucket, clock: Clock, front: S3Front
) -> None:
    run = Run(bucket, "run", clock)
    run.lease.take()
    asked = len(front.asked)
    run.lease.check()
    assert len(front.asked) == asked  # it is fresh
    clock.sleep(EXPIRY_S + 1)
    front.before = lambda _: Answer(403, "AccessDenied")
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="It could not be renewed in time"):
            run.lease.check()
    assert len(run.lost) == 1
