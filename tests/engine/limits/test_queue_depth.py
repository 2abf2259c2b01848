"""A vendor's queue kept just full, in virtual time."""

from __future__ import annotations

import statistics

import pytest

from imagemill.engine.limits.pacer import Limit
from tests.engine.limits.vendor_queue import VendorQueue, used_share


@pytest.mark.parametrize("latency_s", [0.5, 3.0])
@pytest.mark.parametrize(("slots", "images"), [(1, 200), (2, 400), (10, 1000), (40, 1000)])
def test_no_slot_idles_and_the_queue_stays_short(slots: int, images: int, latency_s: float) -> None:
    queue = VendorQueue(slots, latency_s)
    assert used_share(queue, images) >= 0.97
    assert queue.longest_queue <= 3 * slots
    assert queue.made == images
    assert statistics.mean(queue.queued_s) < 3 * latency_s


def test_few_slots_are_used_though_the_vendor_is_far_away() -> None:
    queue = VendorQueue(2, 0.5, transit_s=0.2)
    assert used_share(queue, 400) >= 0.97
    assert queue.longest_queue <= 6


def test_slots_that_the_account_gains_or_loses_are_followed() -> None:
    queue = VendorQueue(4, 0.5, slots_from={20.0: 20, 40.0: 5})
    used_share(queue, 1000)
    assert queue.most_in_progress == 20
    assert queue.made == 1000
    assert queue.longest_queue <= 3 * 20
    assert queue.longest_queue_since(45.0) <= 3 * 5


def test_slots_that_are_known_are_used_from_the_first_request() -> None:
    queue = VendorQueue(40, 0.5)
    assert used_share(queue, 400, known=Limit(40)) >= 0.985
    assert queue.longest_queue <= 45
    lost = VendorQueue(2, 0.5)  # the account has fewer now
    assert used_share(lost, 200, known=Limit(40)) >= 0.97
    assert lost.longest_queue <= 40
    assert lost.longest_queue_since(15.0) <= 6
