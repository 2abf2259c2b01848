"""Several accounts in one run: added up, one after another, and with one that fails."""

from __future__ import annotations

import base64
import io
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from PIL import Image

from imagemill.blocks.apis import Fal, ImageApi, Runware, Together
from imagemill.engine.breaker import Breaker
from imagemill.engine.cost_limit import CostLimit
from imagemill.engine.engine import Engine, StopKind
from imagemill.engine.job_log import JobLog
from imagemill.engine.limits.pacer import Limit, Pacer
from imagemill.engine.purchase import Purchase
from imagemill.engine.recorder import Recorder
from imagemill.engine.route import Route
from imagemill.engine.routes import Routes
from imagemill.engine.schedule import Schedule
from imagemill.engine.telemetry import Telemetry
from imagemill.engine.work import Work
from imagemill.jobs import CostSource, Job, JobStatus
from tests.engine.accounts import SIZE, Account, Ended, jobs_of, run_over
from tests.virtual_time import run


def together(key: str, usd: float = 0.001, **settings: Any) -> Account:
    api = Together(api_key=key, base_url=f"http://{key}.test", usd_per_image=usd)
    return Account(api, **{"latency_s": 0.5, "latency_sigma": 0.2, **settings})


def fal(key: str, usd: float = 0.002, **settings: Any) -> Account:
    api = Fal(api_key=key, base_url=f"http://{key}.test", usd_per_image=usd)
    return Account(api, **{"latency_s": 0.5, "latency_sigma": 0.2, **settings})


def runware(key: str, usd: float = 0.002, **settings: Any) -> Account:
    api = Runware(api_key=key, base_url=f"http://{key}.test", usd_per_image=usd)
    return Account(api, **{"latency_s": 0.5, "latency_sigma": 0.2, **settings})


@pytest.fixture
def over(tmp_path: Path) -> Callable[..., Ended]:
    """``over(accounts, count, policy=…)``: a run of so many jobs over these accounts."""

    def work(accounts: dict[str, Account], count: int, **given: Any) -> Ended:
        return run(lambda: run_over(tmp_path, accounts, jobs_of(count), **given))

    return work


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    recorder = Recorder("run", JobLog("run", tmp_path / "log"), Pacer(1), Telemetry("run", "all", "m"))
    yield recorder
    recorder.close()


def paid_twice(*accounts: Account) -> dict[str, int]:
    charged = Counter(prompt for account in accounts for _, prompt in account.charged)
    return {prompt: count for prompt, count in charged.items() if count > 1}


def after(
    seconds: float, *changes: Callable[[], object], every_s: float = 20.0
) -> Callable[[], Awaitable[None]]:
    """What happens to the accounts: the first change after so long, the next ones at intervals."""

    async def change() -> None:
        await anyio.sleep(seconds)
        for each in changes:
            each()
            await anyio.sleep(every_s)

    return change


def set_down(account: Account, down: bool) -> Callable[[], None]:  # noqa: FBT001
    return lambda: setattr(account, "down", down)


def test_fastest_adds_up_the_limits_of_three_accounts(over: Callable[..., Ended]) -> None:
    accounts = {
        "small": together("one-key", max_concurrent=6),
        "slow": together("two-key", usd=0.004, max_concurrent=10, latency_s=1.0),
        "queue": fal("three-key", max_concurrent=10),
    }
    ended = over(accounts, 600)
    assert ended.statuses == {"done": 600}
    assert not paid_twice(*accounts.values())
    for name, account in accounts.items():
        assert ended.made_by[name] == len(account.charged) > 60
        models = {image["model"] for image in ended.images.values() if image["route"] == name}
        assert models == {account.api.model}
    allowed = (6 / 0.53) + (10 / 1.03) + (10 / 0.53)
    assert 600 / ended.seconds > 0.6 * allowed  # a short run, most of which is the search for the limits


def test_the_last_images_are_not_waited_for_at_a_slow_route(over: Callable[..., Ended]) -> None:
    accounts = {
        "fast": together("fast-key", max_concurrent=10, latency_sigma=0.0),
        "slow": together("slow-key", max_concurrent=10, latency_s=8.0, latency_sigma=0.0),
    }
    ended = over(accounts, 600, concurrency=10)
    assert ended.statuses == {"done": 600}
    assert ended.made_by["slow"] >= 20
    last = {name: max(at for at, _ in account.charged) for name, account in accounts.items()}
    assert last["slow"] < last["fast"] + 1.0


@pytest.mark.parametrize("kind", [together, fal])
def test_failover_survives_a_first_route_that_dies_and_comes_back(
    over: Callable[..., Ended], kind: Callable[..., Account]
) -> None:
    first, second = kind("first-key", max_concurrent=10), together("second-key", max_concurrent=10)
    happens = after(6.0, set_down(first, down=True), set_down(first, down=False))
    ended = over({"first": first, "second": second}, 500, policy="failover", meanwhile=happens)
    assert ended.statuses == {"done": 500}
    assert not paid_twice(first, second)
    taken = [at for at, _ in second.charged]
    assert taken
    assert min(taken) > 5.9
    assert max(taken) < 35.0  # and no more once the first is back
    assert ended.cost.spent_usd == pytest.approx(
        sum(len(account.charged) * (account.api.usd_per_image or 0) for account in (first, second))
    )


@pytest.mark.parametrize(("status", "kind"), [(401, StopKind.UNAUTHORIZED), (402, StopKind.OUT_OF_BUDGET)])
def test_failover_survives_a_first_route_that_is_refused_or_out_of_credit(
    over: Callable[..., Ended], status: int, kind: StopKind
) -> None:
    first, second = fal("first-key", max_concurrent=10), together("second-key", max_concurrent=10)
    happens = after(5.0, lambda: setattr(first, "refuses", status))
    ended = over({"first": first, "second": second}, 200, policy="failover", meanwhile=happens)
    assert ended.statuses == {"done": 200}
    assert not paid_twice(first, second)
    assert min(at for at, _ in second.charged) > 4.9
    assert first.charged
    both = over(
        {"first": first, "second": second},
        100,
        meanwhile=after(2.0, lambda: setattr(second, "refuses", status)),
    )
    assert both.stopped is not None
    assert both.stopped.kind is kind
    assert "first: " in both.stopped.reason
    assert "second: " in both.stopped.reason
    assert ".." not in both.stopped.reason


def test_what_lies_in_the_queue_of_a_route_that_stays_down_is_left_for_a_resume(
    over: Callable[..., Ended], tmp_path: Path
) -> None:
    first, second = fal("first-key", max_concurrent=10), together("second-key", max_concurrent=10)
    happens = after(5.0, set_down(first, down=True))
    given = {"policy": "failover", "patience_s": 60.0}
    ended = over({"first": first, "second": second}, 200, meanwhile=happens, **given)
    left = [job for job in ended.jobs if job.status is JobStatus.PENDING]
    assert 0 < len(left) < 30
    assert all(job.request_id and job.route == "first" for job in left)
    assert ended.stopped is not None
    assert ended.stopped.kind is StopKind.UNAVAILABLE
    assert "no route left. first: The API has been down for too long" in ended.stopped.reason
    assert ended.stopped.reason.endswith("are made elsewhere with --give-up first.")
    first.down = False
    both = {"first": first, "second": second}
    again: Ended = run(lambda: run_over(tmp_path, both, ended.jobs, policy="failover"))
    assert again.statuses == {"done": 200}
    assert not paid_twice(first, second)


def test_what_lies_in_the_queue_of_a_route_comes_home_before_the_run_stops_for_want_of_money(
    over: Callable[..., Ended], tmp_path: Path
) -> None:
    """Seed 25274: the last route had spent its share, and the summary lacked what the first one had."""
    first, second = fal("first-key", max_concurrent=10), together("second-key", max_concurrent=10)
    both = {"first": first, "second": second}
    ended = over(both, 90, meanwhile=after(2.0, set_down(first, down=True)), policy="failover")
    left = [job for job in ended.jobs if job.status is JobStatus.PENDING]
    assert left
    first.down = False
    jobs = [*ended.jobs, *jobs_of(95)[90:]]
    limits = {"limit_usd": 0.002 * len(left) + 0.0015, "shares": {"second": 0.0}}
    again: Ended = run(lambda: run_over(tmp_path, both, jobs, **limits))
    assert again.statuses == {"done": 90, "pending": 5}
    assert again.stopped is not None
    assert again.stopped.kind is StopKind.OUT_OF_BUDGET
    assert again.stopped.reason.startswith("No route is left. first: The next image would exceed the limit")


def test_what_lies_in_the_queue_of_a_route_that_is_given_up_is_made_elsewhere(
    over: Callable[..., Ended], tmp_path: Path
) -> None:
    first, second = fal("first-key", max_concurrent=10), together("second-key", max_concurrent=10)
    both = {"first": first, "second": second}
    happens = after(5.0, set_down(first, down=True))
    ended = over(both, 200, meanwhile=happens, policy="failover", patience_s=60.0)
    left = [job.number for job in ended.jobs if job.status is JobStatus.PENDING]
    posted, unnamed = first.posted, set[int]()

    async def watch(recorder: Recorder, engine: Engine) -> None:
        async def fence(job: Job) -> bool:
            if engine.is_unsent(job.number) and not recorder.has_named(job.number):
                unnamed.add(job.number)  # a machine that is lost then may have sent it, and nobody would know
            return True

        recorder.up_next(left)
        recorder.named_safely(left)
        engine.fence = fence

    play = partial(run_over, tmp_path, both, ended.jobs, given_up={"first"}, uploaded=watch)
    again: Ended = run(play)
    assert unnamed >= set(left)
    assert again.statuses == {"done": 200}
    assert again.stopped is None
    assert first.posted == posted
    doubted = [job for job in again.jobs if job.unanswered]
    assert [job.number for job in doubted] == left
    assert {job.route for job in doubted} == {"second"}
    assert again.cost.doubtful_usd == pytest.approx(len(left) * 0.002)
    assert again.cost.expected_usd == pytest.approx(0.0)
    assert paid_twice(first, second).keys() <= {str(number) for number in left}


def test_a_store_that_fails_while_the_requests_of_a_route_are_given_up_stops_the_run(tmp_path: Path) -> None:
    first, second = fal("first-key"), together("second-key", max_concurrent=2)
    jobs = jobs_of(200)
    for job in jobs[100:]:
        job.route, job.request_id = "first", f"r{job.number}"

    both = {"first": first, "second": second}
    play = partial(run_over, tmp_path, both, jobs, given_up={"first"}, store_away_after_s=3.0)
    ended: Ended = run(play)
    assert ended.stopped is not None
    assert ended.stopped.kind is StopKind.UNAVAILABLE


def test_another_route_takes_a_job_once_it_is_safe_in_the_log_that_the_first_has_no_request(
    tmp_path: Path,
) -> None:
    """Seed 539043: the log had a task's id; a lost machine's successor asked for it, and paid twice."""
    first, second = runware("first-key"), together("second-key")
    first.down = True
    safe_at: list[float] = []

    async def upload(recorder: Recorder, _: Engine) -> None:
        recorder.uploading()
        while True:
            await recorder.urgent()
            await anyio.sleep(1.5)
            safe_at.append(anyio.current_time())
            for event in recorder.uploading():
                event.set()

    both = {"first": first, "second": second}
    ended: Ended = run(partial(run_over, tmp_path, both, jobs_of(1), policy="failover", uploaded=upload))
    assert ended.made_by == {"second": 1}
    assert safe_at[0] < second.posted_at[0]


async def submitted(account: Account, job: Job) -> str:
    """The id of the job's request, which somebody has sent to this account."""
    account.open()
    async with httpx.AsyncClient(transport=account) as http:
        answer = await http.post(
            f"{account.api.base_url}/{job.model}", json=account.api.body(job), headers=account.api.headers
        )
    assert answer.is_success
    return str(answer.json()["request_id"])


def test_a_request_that_was_answered_is_not_taken_for_a_lost_one_by_another_process(tmp_path: Path) -> None:
    """Such as a worker on another machine, which has no log of the first."""
    first = fal("first-key", latency_s=8.0, latency_sigma=0.0)
    (job,) = jobs_of(1, model=first.api.model)
    job.started_at = time.time()

    async def play() -> Ended:
        job.request_id = await submitted(first, job)
        await anyio.sleep(20.0)
        job.pay(0.002, CostSource.LIST)  # its picture was cut off
        job.drop_request()
        lost.append(await submitted(first, job))
        job.lose_answer(0.002)
        return await run_over(tmp_path, {"first": first}, [job])

    lost: list[str] = []
    ended: Ended = run(play)
    (done,) = ended.jobs
    assert (done.status, done.request_id) == (JobStatus.DONE, lost[0])
    assert (done.cost_usd, done.unanswered) == (0.004, 0)


def test_a_request_from_the_list_that_fails_in_a_later_process_is_looked_for_again(
    tmp_path: Path,
) -> None:
    """Another run's, which had failed; the process that found it ended before it could ask about it."""
    first = fal("first-key", latency_s=6.0, latency_sigma=0.0)
    (job,) = jobs_of(1, model=first.api.model)
    job.started_at = time.time()

    async def play() -> Ended:
        first.open()
        first.studio.configure(replace(first.studio.settings, faults={"fail": 1.0}))
        others = await submitted(first, job)
        await anyio.sleep(20.0)
        first.studio.configure(replace(first.studio.settings, faults={}))
        await submitted(first, job)
        job.lose_answer(0.002)
        job.find_request(others, 0.002, listed=True)
        return await run_over(tmp_path, {"first": first}, [job])

    ended: Ended = run(play)
    assert ended.statuses == {"done": 1}
    assert not paid_twice(first)


@pytest.mark.parametrize("ends_after_s", [0.5, 8.0])
@pytest.mark.parametrize("given_up", [[], ["first"]])
def test_what_a_lost_machine_may_have_sent_is_looked_for_at_all_routes(
    tmp_path: Path, ends_after_s: float, given_up: list[str]
) -> None:
    """Seed 26236: it had gone to the second account, and only the first one's list was read."""
    first, second = fal("first-key"), fal("second-key", latency_s=ends_after_s, latency_sigma=0.0)
    (job,) = jobs_of(1, model=second.api.model)
    job.started_at = time.time()
    job.lose_answer(0.002)

    async def play() -> Ended:
        await submitted(second, job)
        return await run_over(tmp_path, {"first": first, "second": second}, [job], given_up=given_up)

    ended: Ended = run(play)
    assert ended.made_by == {"second": 1}
    assert (ended.jobs[0].unanswered, ended.cost.spent_usd) == (0, pytest.approx(0.002))
    assert not paid_twice(first, second)


def test_a_request_that_never_ends_fails_its_job_and_is_no_outage(over: Callable[..., Ended]) -> None:
    """Its vendor answers every question about it: nothing is left that a resume could wait for."""
    slow = Fal(api_key="first-key", base_url="http://first.test", usd_per_image=0.002, request_timeout_s=5.0)
    stuck = Account(slow, latency_s=0.5, faults={"timeout_after_charge": 0.2}, max_concurrent=10)
    accounts = {"first": stuck, "second": together("second-key", max_concurrent=10)}
    ended = over(accounts, 20, policy="failover")
    failed = [job for job in ended.jobs if job.status is JobStatus.FAILED]
    assert failed
    assert all(job.request_id and job.retryable for job in failed)
    assert ended.statuses == {"done": 20 - len(failed), "failed": len(failed)}
    assert ended.stopped is None
    assert ended.seconds < 300
    assert not paid_twice(*accounts.values())


def test_a_request_of_a_route_with_its_share_set_aside_is_asked_about(over: Callable[..., Ended]) -> None:
    """It is what the share is set aside for: jobs that no longer fit must not keep it waiting."""
    first = Fal(api_key="first-key", base_url="http://first.test", usd_per_image=0.01, request_timeout_s=5.0)
    slow = Account(first, latency_s=8.0, latency_sigma=0.0)
    accounts = {"first": slow, "second": together("second-key", usd=0.02)}
    ended = over(accounts, 40, policy="failover", shares={"first": 0.02})
    assert ended.made_by == {"first": 2, "second": 38}


def test_cheapest_pays_the_dearer_only_for_what_the_deadline_takes(over: Callable[..., Ended]) -> None:
    def accounts() -> dict[str, Account]:
        return {
            "dear": together("dear-key", usd=0.01, max_concurrent=20),
            "cheap": together("cheap-key", usd=0.001, max_concurrent=5, latency_sigma=0),
        }

    assert over(accounts(), 100, policy="cheapest").made_by == {"cheap": 100}
    middling = {"middling": together("middling-key", usd=0.005)}
    assert over(accounts() | middling, 100, policy="cheapest", hours=1.0).made_by == {"cheap": 100}
    late = over(accounts(), 100, policy="cheapest", hours=-1.0)  # a resume after its deadline
    assert late.statuses == {"done": 100}
    assert late.made_by["dear"] > late.made_by["cheap"]
    ended = over(accounts(), 800, policy="cheapest", hours=60 / 3600)
    assert ended.statuses == {"done": 800}
    assert ended.seconds <= 60
    by_the_cheap = 5 / 0.53 * 60
    assert ended.made_by["dear"] < 1.5 * (800 - by_the_cheap)  # nor is a minute enough to measure a rate


def test_a_dear_route_is_spared_where_a_middling_one_is_fast_enough(over: Callable[..., Ended]) -> None:
    accounts = {
        "dear": together("dear-key", usd=0.01, max_concurrent=20),
        "middling": together("middling-key", usd=0.004, max_concurrent=12),
        "cheap": together("cheap-key", usd=0.001, max_concurrent=5),
    }
    allowed_by_two = (5 + 12) / 0.55 * 60
    ended = over(accounts, int(0.7 * allowed_by_two), policy="cheapest", hours=60 / 3600)
    assert set(ended.statuses) == {"done"}
    assert ended.seconds <= 60
    assert ended.made_by.get("dear", 0) < 0.03 * len(ended.jobs)
    assert ended.made_by["cheap"] > 0.9 * 5 / 0.55 * 60


def test_only_the_dearest_route_waits_until_the_limits_of_the_cheaper_ones_show(recorder: Recorder) -> None:
    cheap, dearer = (
        Route.of(together(name).api, httpx.AsyncClient(), Pacer(None), Breaker(0.5, 60.0), recorder)
        for name in ("cheap-key", "dearer-key")
    )
    now = 0.0
    schedule = Schedule(350.0, lambda: 12_000, lambda: now)

    def is_needed(*, is_dearest: bool) -> bool:
        return schedule.needs_more([cheap], dearer, 1, [cheap, dearer], is_dearest=is_dearest)

    while now < 1.0:  # 10 a second, and 35 are needed
        cheap.throughput.sent(now)
        now += 0.1
    assert not is_needed(is_dearest=True)  # it can make up for it later
    assert is_needed(is_dearest=False)  # what it does not make now, the dearest is paid for


@dataclass
class Deadline:
    """A deadline in 350 s for 12,000 images, and routes that make so many a second, each in so long."""

    recorder: Recorder
    left: int = 12_000
    now: float = 0.0

    def __post_init__(self) -> None:
        self.schedule = Schedule(350.0, lambda: self.left, lambda: self.now)
        self.cheap, self.dear = (
            Route.of(together(name).api, httpx.AsyncClient(), Pacer(None), Breaker(0.5, 60.0), self.recorder)
            for name in ("cheap-key", "dear-key")
        )
        self.routes = [self.cheap, self.dear]

    def work(self, until: float, cheap_s: float = 1.0) -> None:
        """Thirty images a second at the cheap route, each in so long, and ten at the dear one."""
        while self.now < until:
            for route, count, took_s in ((self.cheap, 3, cheap_s), (self.dear, 1, 0.4)):
                for _ in range(count):
                    route.throughput.sent(self.now)
                    route.throughput.served(took_s)
                    self.left -= 1
            self.now += 0.1

    @property
    def is_dear_needed(self) -> bool:
        return self.schedule.needs_more([self.cheap], self.dear, 1, self.routes, is_dearest=True)

    @property
    def in_time(self) -> list[Route]:
        return list(self.schedule.in_time(self.routes, self.routes))


def test_a_dear_route_stops_once_it_could_make_up_for_what_the_cheap_ones_lack(recorder: Recorder) -> None:
    run_of = Deadline(recorder)
    run_of.work(until=30.0)
    assert run_of.is_dear_needed
    run_of.work(until=145.0)
    by_the_cheap = 30.0 * (350.0 - run_of.now - 1.25)
    run_of.left = int(1.02 * by_the_cheap)
    assert run_of.is_dear_needed
    run_of.left = int(1.005 * by_the_cheap)  # a rate that was guessed too low would be paid for
    assert not run_of.is_dear_needed


def test_a_route_whose_images_would_come_late_is_left_out_if_the_others_can_make_the_rest(
    recorder: Recorder,
) -> None:
    run_of = Deadline(recorder)
    run_of.work(until=349.0, cheap_s=2.0)
    for left, in_time in ((5, [run_of.dear]), (50, run_of.routes)):
        run_of.left = left
        assert run_of.in_time == in_time
    run_of.now = 349.9
    assert not run_of.in_time


def test_no_higher_limit_is_looked_for_shortly_before_the_deadline(recorder: Recorder) -> None:
    """The look was refused, and its job came after all others, too late."""
    now = 0.0
    pacer = Pacer(None)
    route = Route.of(together("key").api, httpx.AsyncClient(), pacer, Breaker(0.5, 60.0), recorder)
    Routes([route], "cheapest", deadline=60.0, left=lambda: 500, clock=lambda: now)
    assert pacer.unsent() == 500
    now = 56.0
    assert pacer.unsent() == 0
    now = 61.0  # the run goes on
    assert pacer.unsent() == 500


def test_near_its_deadline_a_run_sends_nothing_that_comes_late(over: Callable[..., Ended]) -> None:
    """The last images of the cheap account came late, or the job of a refused look."""
    accounts = {
        "cheap": together("cheap-key", max_concurrent=8, latency_s=1.0, seed=7),
        "quick": together("quick-key", usd=0.002, max_concurrent=12, seed=7),
        "queue": fal("queue-key", usd=0.004, max_concurrent=10, latency_s=0.8, seed=7),
    }
    for account, known in zip(
        accounts.values(), (Limit(8, None, 8.0), Limit(12, None, 24.0), Limit(10)), strict=True
    ):
        account.known = known
    ended = over(accounts, 600, policy="cheapest", hours=17.465 / 3600)
    assert ended.statuses == {"done": 600}
    assert ended.seconds <= 17.465


def test_a_route_with_its_share_spent_leaves_the_rest_to_the_others(over: Callable[..., Ended]) -> None:
    accounts = {"first": together("first-key", usd=0.01), "second": together("second-key", usd=0.02)}
    ended = over(accounts, 120, policy="failover", shares={"first": 0.5})
    assert ended.made_by == {"first": 50, "second": 70}


def test_near_the_limit_the_cheaper_route_goes_on(over: Callable[..., Ended]) -> None:
    accounts = {"dear": together("dear-key", usd=0.03), "cheap": together("cheap-key", usd=0.01)}
    ended = over(accounts, 200, limit_usd=1.0)
    assert ended.cost.spent_usd == pytest.approx(1.0)
    assert ended.stopped is not None
    assert ended.stopped.kind is StopKind.OUT_OF_BUDGET


def test_jobs_go_where_they_can_be_made(tmp_path: Path) -> None:
    wide = jobs_of(60)
    for job in wide[::2]:
        job.width = job.height = 1920  # more than Together makes
    accounts: dict[str, Account] = {"together": together("one-key"), "fal": fal("two-key")}

    ended: Ended = run(lambda: run_over(tmp_path, accounts, wide, policy="failover"))
    assert ended.made_by == {"together": 30, "fal": 30}


def test_a_route_that_makes_wrong_pictures_is_left_alone(over: Callable[..., Ended]) -> None:
    wrong: ImageApi = Together(api_key="wrong-key", base_url="http://wrong.test", usd_per_image=0.001)
    accounts = {
        "wrong": Account(wrong, latency_s=0.5, faults={"wrong_size": 1.0}),
        "right": together("right-key"),
    }
    ended = over(accounts, 100)
    assert ended.statuses == {"done": 100}
    assert ended.made_by == {"right": 100}
    assert len(accounts["wrong"].charged) < 60


def test_jobs_of_a_route_that_closes_go_to_a_dearer_one_only_within_the_limit(tmp_path: Path) -> None:
    jobs = jobs_of(100, width=1920, height=1920)  # more than Together makes: all of them wait at once
    accounts = {
        "cheap": fal("cheap-key", usd=0.001),
        "dear": fal("dear-key", usd=0.01, latency_s=2.0),
        "small": together("small-key", usd=0.01),
    }
    accounts["cheap"].refuses = 422
    given: dict[str, Any] = {"policy": "failover", "concurrency": 10, "limit_usd": 0.05}
    ended: Ended = run(lambda: run_over(tmp_path, accounts, jobs, **given))
    assert ended.cost.spent_usd == pytest.approx(0.05)
    assert ended.made_by == {"dear": 5}


def test_a_request_that_is_yet_to_be_asked_about_counts_against_its_routes_share(recorder: Recorder) -> None:
    (job,) = jobs_of(1)
    job.request_id = "from-an-earlier-process"
    cost, share = CostLimit(None), CostLimit(0.05)
    for limit in (cost, share):
        limit.recover(expected_usd=0.01)
    purchase = Purchase(job, 0.01, cost, recorder, expected=True)

    async def ask() -> None:
        await purchase.promise()
        purchase.move(0.01, share)

    run(ask)
    assert (share.committed_usd, cost.committed_usd) == (pytest.approx(0.01), pytest.approx(0.01))
    purchase.defer()
    assert (share.committed_usd, cost.committed_usd) == (pytest.approx(0.01), pytest.approx(0.01))
    run(ask)
    purchase.charge(0.01)
    assert (share.spent_usd, share.committed_usd) == (0.01, pytest.approx(0.01))


def test_thousands_of_jobs_wait_for_a_route_at_no_cost(recorder: Recorder) -> None:
    accounts = {"one": together("one-key"), "two": fal("two-key")}
    pacers = {name: Pacer(10) for name in accounts}
    routes = Routes(
        [
            Route.of(each.api, httpx.AsyncClient(), pacers[name], Breaker(0.5, 60.0), recorder, name=name)
            for name, each in accounts.items()
        ],
        "failover",
    )
    jobs, gone = jobs_of(1_000), Counter[str]()

    async def go(job: Job) -> None:
        work = Work(job, Purchase(job, 0.001, CostLimit(None), recorder), routes.first)
        route, slot = await routes.turn(work, anyio.Event())
        gone[route.name] += 1
        await anyio.sleep(1.0)
        route.pacer.release(slot)

    async def go_all() -> None:
        async with anyio.create_task_group() as group:
            for job in jobs:
                group.start_soon(go, job)

    begun = time.process_time()
    run(go_all)
    assert gone == {"one": 1_000}
    assert time.process_time() - begun < 8.0  # it was two minutes when each looked at all the others


def test_a_route_that_its_pace_alone_holds_back_is_used_as_soon_as_it_may(recorder: Recorder) -> None:
    pacers = {"paced": Pacer(1, per_minute=200.0), "busy": Pacer(1)}
    routes = Routes(
        [
            Route.of(together(name).api, httpx.AsyncClient(), pacer, Breaker(0.5, 60.0), recorder, name=name)
            for name, pacer in pacers.items()
        ],
        "fastest",
    )
    sent: list[float] = []

    async def go(job: Job) -> None:
        work = Work(job, Purchase(job, 0.001, CostLimit(None), recorder), routes.first)
        route, slot = await routes.turn(work, anyio.Event())
        sent.append(anyio.current_time())
        await anyio.sleep(0.2 if route is routes.first else 100.0)
        route.pacer.release(slot)

    async def go_all() -> None:
        async with anyio.create_task_group() as group:
            for job in jobs_of(8):
                group.start_soon(go, job)

    run(go_all)
    gaps = [later - sooner for sooner, later in pairwise(sent)]
    assert max(gaps) == pytest.approx(0.3)  # the next change was waited for, up to a second


@pytest.mark.parametrize("kind", [Together, Fal])
def test_a_route_that_never_answers_is_tried_once_per_job_and_ever_more_rarely(
    over: Callable[..., Ended], kind: type[ImageApi]
) -> None:
    """Whatever it is sent may be charged, and the last jobs do not wait for it."""
    api = kind(api_key="first-key", base_url="http://first.test", usd_per_image=0.002, request_timeout_s=20)
    mute, works = Account(api), together("second-key", max_concurrent=2, seed=1)
    mute.hangs = True
    ended = over({"first": mute, "second": works}, 600, patience_s=30.0)
    assert ended.statuses == {"done": 600}
    assert ended.made_by == {"second": 600}
    assert max(job.unanswered for job in ended.jobs) == 1
    assert ended.seconds < 600 * 0.55 / 2 + 80  # the time limit, and the search for what was lost
    assert mute.posted < 26


def picture(width: int, *, black: bool = False) -> bytes:
    noise = Image.effect_noise((width, width), 60.0).convert("RGB")
    file = io.BytesIO()
    (Image.new("RGB", noise.size) if black else noise).save(file, "JPEG")
    return file.getvalue()


def with_picture(content: bytes) -> dict[str, Any]:
    return {"json": {"data": [{"b64_json": base64.b64encode(content).decode()}]}}


ODD: dict[str, tuple[dict[str, Any], int]] = {
    "random bytes": ({"content": random.Random(1).randbytes(500)}, 0),
    "a proxy's page": ({"html": "<html><h1>Welcome</h1></html>"}, 0),
    "another shape": ({"json": {"ok": True}}, 0),
    "nothing": ({"content": b""}, 0),
    "another size": (with_picture(picture(128)), 10),
    "a black picture": (with_picture(picture(SIZE, black=True)), 10),
    "no picture": (with_picture(bytes(3000)), 10),
    "an endless redirect": ({"status_code": 302, "headers": {"location": "/v1/images/generations"}}, 0),
}
"""What an account may answer to everything, and how many images it charges before it is left aside."""


@pytest.mark.parametrize("policy", ["fastest", "failover"])
@pytest.mark.parametrize("what", ODD)
def test_a_route_that_answers_oddly_is_left_aside(over: Callable[..., Ended], what: str, policy: str) -> None:
    answer, charged = ODD[what]
    odd, works = together("odd-key"), together("second-key", usd=0.002, max_concurrent=10)
    odd.answers = lambda request: httpx.Response(**{"status_code": 200, **answer}, request=request)
    ended = over({"odd": odd, "works": works}, 60, policy=policy)
    assert ended.stopped is None
    assert ended.made_by == {"works": 60}
    assert odd.posted <= 20
    assert ended.cost.spent_usd == pytest.approx(60 * 0.002 + charged * 0.001)


def test_a_route_that_refuses_every_row_in_other_words_is_left_aside(over: Callable[..., Ended]) -> None:
    """There was always one more on its way that might have brought an image."""
    odd, works = together("odd-key"), together("second-key", max_concurrent=10)
    words = random.Random(1)
    odd.answers = lambda request: httpx.Response(
        400, json={"error": {"message": "".join(words.choices("abcdefgh ", k=30))}}, request=request
    )
    ended = over({"odd": odd, "works": works}, 120)
    assert ended.made_by == {"works": 120}
    assert odd.posted <= 40


def test_a_route_that_answers_with_a_placeholder_is_left_aside(over: Callable[..., Ended]) -> None:
    """The whole run stopped, and the other account with it."""
    odd, works = together("odd-key"), together("second-key", max_concurrent=10)
    same = with_picture(picture(SIZE))
    odd.answers = lambda request: httpx.Response(200, **same, request=request)
    ended = over({"odd": odd, "works": works}, 60, measured=1e-9)
    assert ended.stopped is None
    assert ended.made_by == {"works": 60}
    assert odd.posted <= 20
    assert {image["route"] for image in ended.images.values()} == {"works"}


def refusing(**headers: str) -> Callable[[httpx.Request], httpx.Response]:
    return lambda request: httpx.Response(429, headers=headers, request=request)


@pytest.mark.parametrize("headers", [{}, {"retry-after": "3600"}], ids=["plain", "with Retry-After"])
@pytest.mark.parametrize("policy", ["fastest", "cheapest", "failover"])
def test_a_route_that_refuses_everything_counts_as_down(
    over: Callable[..., Ended], policy: str, headers: dict[str, str]
) -> None:
    """Each job was kept for an hour or more, at one request a minute."""
    full, works = together("first-key"), together("second-key", usd=0.002, max_concurrent=10)
    full.answers = refusing(**headers)
    ended = over({"first": full, "second": works}, 60, policy=policy)
    assert ended.stopped is None
    assert ended.made_by == {"second": 60}
    assert full.posted < 20
    assert ended.seconds < 360


@pytest.mark.parametrize("headers", [{}, {"retry-after": "3600"}], ids=["plain", "with Retry-After"])
@pytest.mark.parametrize("kinds", [[together], [fal], [runware], [together, fal], [together, runware]])
def test_a_run_whose_accounts_all_refuse_everything_stops_and_keeps_its_jobs(
    over: Callable[..., Ended], kinds: list[Callable[..., Account]], headers: dict[str, str]
) -> None:
    accounts = {kind.__name__: kind(f"{kind.__name__}-key") for kind in kinds}
    for account in accounts.values():
        account.answers = refusing(**headers)
    ended = over(accounts, 30)
    assert ended.statuses == {"pending": 30}
    assert ended.stopped is not None
    assert ended.stopped.kind is StopKind.UNAVAILABLE
    for account in accounts.values():
        assert f"taken no request for too long: {account.api.base_url} refuses all" in ended.stopped.reason
    assert ended.seconds < 720


def test_requests_whose_jobs_failed_before_the_api_counted_as_down_count_against_the_limit(
    tmp_path: Path,
) -> None:
    """Those jobs are pending again, and their requests counted neither as unanswered nor as expected."""
    account, jobs = runware("only-key"), jobs_of(8, "runware:100@1")
    account.answers = refusing()
    for job in jobs:
        job.request_id = f"task-{job.number}"
    ended: Ended = run(lambda: run_over(tmp_path, {"only": account}, jobs, patience_s=900.0))
    assert {job.status for job in ended.saves} >= {JobStatus.FAILED}
    assert (ended.statuses, {job.request_id is None for job in ended.jobs}) == ({"pending": 8}, {False})
    assert ended.cost.committed_usd == pytest.approx(8 * 0.002)


class LosesTheSecond(Account):
    """The answer to the second request is lost."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        if request.method == "POST" and self.posted == 2:
            raise httpx.ReadError("lost", request=request)
        return answer


def test_a_request_that_was_answered_is_not_taken_for_a_lost_one_as_its_job_is_tried_again_at_the_end(
    tmp_path: Path,
) -> None:
    """The lost one's picture was never fetched, and a third was bought."""
    first = LosesTheSecond(fal("first-key").api, latency_s=3.0, latency_sigma=0)
    second, jobs = together("second-key"), jobs_of(1)
    second.refuses, jobs[0].prompt = 401, "fox #fault:garbage*1"
    accounts = {"first": first, "second": second}
    ended: Ended = run(lambda: run_over(tmp_path, accounts, jobs, policy="failover"))
    assert (ended.statuses, first.posted) == ({"done": 1}, 2)
    assert ended.jobs[0].cost_usd == pytest.approx(2 * 0.002)


@pytest.mark.parametrize("kind", [together, fal, runware])
def test_what_a_route_that_cannot_be_reached_was_not_sent_is_made_elsewhere(
    over: Callable[..., Ended], kind: Callable[..., Account]
) -> None:
    """At Runware a task had its name already, and was kept for the route as if it had been sent."""
    first, second = kind("first-key"), together("second-key", max_concurrent=10)
    first.down = True
    ended = over({"first": first, "second": second}, 60, policy="failover")
    assert (ended.stopped, ended.made_by) == (None, {"second": 60})
    assert not any(job.unanswered for job in ended.jobs)


def test_what_only_one_route_makes_is_made_once_that_is_back(tmp_path: Path) -> None:
    jobs = jobs_of(120)
    for job in jobs[::10]:
        job.width = job.height = 1920  # more than Together makes
    accounts: dict[str, Account] = {
        "fal": fal("one-key"),
        "together": together("two-key", max_concurrent=2, latency_s=2.0),
    }
    happens = after(0.5, set_down(accounts["fal"], down=True), set_down(accounts["fal"], down=False))
    ended: Ended = run(lambda: run_over(tmp_path, accounts, jobs, patience_s=8.0, meanwhile=happens))
    assert ended.statuses == {"done": 120}
    assert ended.stopped is None
    assert not paid_twice(*accounts.values())


@pytest.mark.parametrize("first_s", [0.0, 10.0])
@pytest.mark.parametrize("limit", [{"max_concurrent": 10}, {"per_minute": 300, "burst": 5}])
def test_an_account_that_refused_everything_for_a_while_is_soon_used_to_its_limit_again(
    tmp_path: Path, first_s: float, limit: dict[str, Any]
) -> None:
    """The pace had fallen to a request a minute by then, and hardly grew: 600 images took two hours."""
    account = together("only-key", **{"latency_s": 0.5, **limit})

    async def refuse_for_a_while() -> None:
        await anyio.sleep(first_s)
        account.refuses = 429
        await anyio.sleep(20.0)
        account.refuses = None

    jobs = jobs_of(300, account.api.model)
    ended: Ended = run(lambda: run_over(tmp_path, {"only": account}, jobs, meanwhile=refuse_for_a_while))
    assert ended.statuses["done"] == 300
    assert ended.seconds < 180.0
