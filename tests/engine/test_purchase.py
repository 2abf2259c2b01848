"""The money of one request from its promise to the bill: spent, promised, in doubt, expected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imagemill.blocks.apis import Fal
from imagemill.engine.cost_limit import BudgetSpentError, CostLimit
from imagemill.engine.job_log import JobLog
from imagemill.engine.limits.pacer import Pacer
from imagemill.engine.purchase import Purchase
from imagemill.engine.recorder import Recorder
from imagemill.engine.telemetry import Telemetry
from imagemill.jobs import CostSource, Job
from tests.blocks.apis.variants import make_job
from tests.virtual_time import run

PRICE_USD = 0.03
REQUEST = "request-1"


def amounts(cost: CostLimit) -> tuple[float, float, float, float]:
    """What a limit counts as spent, promised, doubtful and expected, in cents."""
    usd = (cost.spent_usd, cost.promised_usd, cost.doubtful_usd, cost.expected_usd)
    return tuple(round(100 * amount, 6) for amount in usd)  # type: ignore[return-value]


@dataclass
class Deal:
    """A purchase, and all that it may change."""

    job: Job
    cost: CostLimit
    recorder: Recorder
    purchase: Purchase

    @property
    def of_the_run(self) -> tuple[float, float, float, float]:
        return amounts(self.cost)

    @property
    def of_the_job(self) -> tuple[float, int, float]:
        """What the job was charged, in cents; its unanswered requests, and what they may cost, in cents."""
        job = self.job
        return round(100 * job.cost_usd, 6), job.unanswered, round(100 * job.unanswered_usd, 6)

    def promise(self) -> None:
        run(self.purchase.promise)


@pytest.fixture
def deal(tmp_path: Path) -> Iterator[Callable[..., Deal]]:
    """``deal(limit_usd, request_id=…, expected=…, charged=…)``: a purchase for 3 cents."""
    api = Fal(api_key="k")
    recorder = Recorder("run", JobLog("run", tmp_path / "log"), Pacer(1), Telemetry("run", "fal", "m"))

    def make(limit_usd: float | None = None, *, request_id: str | None = None, **given: bool) -> Deal:
        job, cost = make_job(api, request_id=request_id), CostLimit(limit_usd)
        return Deal(job, cost, recorder, Purchase(job, PRICE_USD, cost, recorder, **given))

    yield make
    recorder.close()


def test_what_is_promised_is_set_aside_once_and_is_free_again_where_nothing_is_charged(
    deal: Callable[..., Deal],
) -> None:
    one = deal()
    for _ in range(2):
        one.promise()
        assert one.of_the_run == (0, 3, 0, 0)
    one.purchase.leave()
    assert one.of_the_run == (0, 0, 0, 0)
    one.promise()
    one.purchase.end()
    one.purchase.end()
    assert (one.of_the_run, one.of_the_job) == ((0, 0, 0, 0), (0, 0, 0))


def test_a_charge_is_booked_once_at_what_the_api_says(deal: Callable[..., Deal]) -> None:
    one = deal()
    one.promise()
    one.purchase.charge(0.02, CostSource.TOLD)
    one.purchase.charge(0.05)
    one.purchase.doubt()
    one.promise()
    one.purchase.leave()
    assert (one.of_the_run, one.of_the_job) == ((2, 0, 0, 0), (2, 0, 0))
    assert (one.job.cost_source, one.recorder.cost_usd) == (CostSource.TOLD, 0.02)
    one.purchase.end()  # the next request is bought by itself
    one.promise()
    one.purchase.charge(PRICE_USD)
    assert (one.of_the_run, one.of_the_job) == ((5, 0, 0, 0), (5, 0, 0))
    assert one.job.cost_source is CostSource.LIST


def test_a_charge_without_a_promise_is_booked_all_the_same(deal: Callable[..., Deal]) -> None:
    one = deal()
    one.purchase.charge(0.02)
    assert (one.of_the_run, one.of_the_job) == ((2, 0, 0, 0), (2, 0, 0))


def test_what_is_paid_already_costs_nothing_more(deal: Callable[..., Deal]) -> None:
    one = deal(0.0, request_id=REQUEST, charged=True)
    one.promise()
    one.purchase.charge(PRICE_USD)
    one.purchase.doubt()
    assert (one.of_the_run, one.of_the_job) == ((0, 0, 0, 0), (0, 0, 0))


def test_a_lost_answer_is_in_doubt_until_its_request_is_found(deal: Callable[..., Deal]) -> None:
    one = deal()
    one.promise()
    one.purchase.doubt()
    one.purchase.end()
    assert (one.of_the_run, one.of_the_job) == ((0, 0, 3, 0), (0, 1, 3))
    one.purchase.found(REQUEST, in_share=True)
    assert (one.of_the_run, one.of_the_job) == ((0, 3, 0, 0), (0, 0, 0))
    assert one.job.request_id == REQUEST
    one.promise()  # which stands already
    one.purchase.charge(PRICE_USD)
    assert (one.of_the_run, one.of_the_job) == ((3, 0, 0, 0), (3, 0, 0))


@pytest.mark.parametrize("doubted_usd", [0.05, 0.02])
def test_what_was_in_doubt_at_another_routes_price_is_in_doubt_no_more_once_found(
    deal: Callable[..., Deal], doubted_usd: float
) -> None:
    one = deal()
    one.job.lose_answer(doubted_usd)
    one.cost.recover(doubtful_usd=doubted_usd)
    one.purchase.found(REQUEST, in_share=True)
    assert (one.of_the_run, one.of_the_job) == ((0, 3, 0, 0), (0, 0, 0))


@pytest.mark.parametrize("expected", [True, False])
def test_a_request_that_is_sent_is_asked_about_whatever_the_limit(
    deal: Callable[..., Deal], *, expected: bool
) -> None:
    one = deal(PRICE_USD / 2, request_id=REQUEST, expected=expected)
    if expected:
        one.cost.recover(expected_usd=PRICE_USD)
    one.promise()
    assert one.of_the_run == (0, 3, 0, 0)
    one.purchase.end()
    one.promise()  # it is asked about once more
    assert one.of_the_run == (0, 3, 0, 0)
    one.purchase.leave()  # a resume asks; until then it may be charged
    assert (one.of_the_run, one.of_the_job) == ((0, 0, 3, 0), (0, 0, 0))
    with pytest.raises(BudgetSpentError):
        deal(PRICE_USD / 2).promise()


def test_a_request_that_is_put_off_is_expected_until_it_is_asked_about(deal: Callable[..., Deal]) -> None:
    one = deal(request_id=REQUEST)
    one.purchase.defer()  # nothing is promised yet
    assert one.of_the_run == (0, 0, 0, 0)
    for _ in range(2):
        one.promise()
        assert one.of_the_run == (0, 3, 0, 0)
        one.purchase.defer()
        assert one.of_the_run == (0, 0, 0, 3)
    one.promise()
    one.purchase.charge(PRICE_USD)
    assert one.of_the_run == (3, 0, 0, 0)


def test_what_moves_to_another_route_is_promised_at_its_price_and_set_aside_of_its_share(
    deal: Callable[..., Deal],
) -> None:
    one, share = deal(), CostLimit(1.0)
    one.purchase.move(0.05)  # before the promise: the dearest of the routes
    one.promise()
    assert one.of_the_run == (0, 5, 0, 0)
    for _ in range(2):
        one.purchase.move(0.02, share)
        assert (one.of_the_run, amounts(share)) == ((0, 2, 0, 0), (0, 2, 0, 0))
    one.purchase.doubt()
    assert (one.of_the_run, amounts(share)) == ((0, 0, 2, 0), (0, 0, 2, 0))
    one.purchase.found(REQUEST, in_share=True)
    assert (one.of_the_run, amounts(share)) == ((0, 2, 0, 0), (0, 2, 0, 0))
    one.purchase.defer()
    assert (one.of_the_run, amounts(share)) == ((0, 0, 0, 2), (0, 0, 0, 2))
    one.promise()
    one.purchase.move(0.02, share)
    assert (one.of_the_run, amounts(share)) == ((0, 2, 0, 0), (0, 2, 0, 0))
    one.purchase.charge(0.02)
    assert (one.of_the_run, amounts(share)) == ((2, 0, 0, 0), (2, 0, 0, 0))


def test_a_request_that_is_found_at_another_route_than_it_was_in_doubt_at_is_set_aside_of_its_share(
    deal: Callable[..., Deal],
) -> None:
    one, share = deal(), CostLimit(1.0)
    one.job.lose_answer(0.02)
    one.cost.recover(doubtful_usd=0.02)
    one.purchase.move(0.02, share)
    one.purchase.found(REQUEST, in_share=False)
    assert (one.of_the_run, amounts(share)) == ((0, 2, 0, 0), (0, 2, 0, 0))
    one.purchase.charge(0.02)
    assert (one.of_the_run, amounts(share)) == ((2, 0, 0, 0), (2, 0, 0, 0))


def test_a_request_of_an_earlier_process_is_expected_of_its_routes_share_as_well(
    deal: Callable[..., Deal],
) -> None:
    one, share = deal(request_id=REQUEST, expected=True), CostLimit(1.0)
    for limit in (one.cost, share):
        limit.recover(expected_usd=PRICE_USD)
    one.promise()
    one.purchase.move(PRICE_USD, share)
    assert (one.of_the_run, amounts(share)) == ((0, 3, 0, 0), (0, 3, 0, 0))
    one.purchase.end()
    assert (one.of_the_run, amounts(share)) == ((0, 0, 0, 0), (0, 0, 0, 0))
    one.promise()
    one.purchase.move(PRICE_USD, share)
    assert (one.of_the_run, amounts(share)) == ((0, 3, 0, 0), (0, 3, 0, 0))


def test_a_request_of_an_earlier_process_was_expected_of_its_own_routes_share_only(
    deal: Callable[..., Deal],
) -> None:
    """Seeds 59972 and 133800: another route bought one image more than its part of the budget allows."""
    one, share = deal(request_id=REQUEST, expected=True), CostLimit(1.0)
    one.cost.recover(expected_usd=PRICE_USD)
    one.promise()
    one.purchase.end()
    one.promise()
    one.purchase.move(PRICE_USD, share)
    assert (one.of_the_run, amounts(share)) == ((0, 3, 0, 0), (0, 3, 0, 0))


def test_a_request_that_is_put_off_before_its_share_was_set_aside_is_not_expected_of_it(
    deal: Callable[..., Deal],
) -> None:
    one, share = deal(request_id=REQUEST), CostLimit(1.0)
    one.purchase.move(PRICE_USD, share)
    one.promise()
    one.purchase.defer()
    assert (one.of_the_run, amounts(share)) == ((0, 0, 0, 3), (0, 0, 0, 0))
    one.promise()
    one.purchase.move(PRICE_USD, share)
    assert (one.of_the_run, amounts(share)) == ((0, 3, 0, 0), (0, 3, 0, 0))
