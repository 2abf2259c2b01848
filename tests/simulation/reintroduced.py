"""Faults that the product once had, or could have, put back one by one: the simulator must find each."""

from __future__ import annotations

import contextlib
import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import imagemill.blocks.apis.past_requests
import imagemill.blocks.apis.queued
import imagemill.engine.cost_limit
import imagemill.engine.engine
import imagemill.engine.lost_requests
import imagemill.runs.folder
import imagemill.runs.log_parts
import imagemill.runs.recovery
import imagemill.secrets
from imagemill.blocks.apis import PROVIDERS
from imagemill.bucket.output_lease import OutputLease
from imagemill.engine.image_check import Picture, check_picture
from imagemill.engine.purchase import Purchase
from imagemill.engine.receipt import Receipt
from imagemill.errors import ApiError
from tests.simulation.object_store import StoreWeather
from tests.simulation.scenario import CLIENT_NAMED, SYNCHRONOUS, Scenario, drawn


def _own_receipts(session: Any, images: Sequence[str]) -> dict[str, Receipt]:
    return {
        key: receipt
        for key, receipt in _receipts(session, images).items()
        if receipt.run_id == session.settings.run_id
    }


_receipts = imagemill.runs.recovery._receipts


async def _kept_nowhere(*_: object) -> None:
    """The image is dropped."""


def _cut_short(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError), path.open("wb") as file:
        for start in range(0, len(content), 100):
            file.write(content[start : start + 100])
            file.flush()


def _unchecked(content: bytes, width: int, height: int, *, exact: bool) -> Picture:
    del exact
    try:
        return check_picture(content, width, height, exact=False)
    except ApiError:
        return Picture("png", width, height)


def _written(path: Path, content: bytes) -> None:
    path.write_bytes(content)


_past_requests: Any = imagemill.blocks.apis.past_requests
_queued: Any = imagemill.blocks.apis.queued
_recovery: Any = imagemill.runs.recovery
_folder: Any = imagemill.runs.folder
_log_parts: Any = imagemill.runs.log_parts
_engine: Any = imagemill.engine.engine
_lost: Any = imagemill.engine.lost_requests.LostRequests

_PATCHES: dict[str, Sequence[tuple[Any, str, Any]]] = {
    "two runs at once on one output: no lease": [
        (OutputLease, "take", lambda _: None),
        (OutputLease, "check", lambda _: None),
        (OutputLease, "renew", lambda _: None),
        (OutputLease, "is_late", property(lambda _: False)),
    ],
    "a lost submit is not looked for in the vendor's list": [(_lost, "can_look", property(lambda _: False))],
    "the list is read from five minutes before, whatever the clock": [
        (_past_requests, "_CLOCKS_DIFFER", timedelta(minutes=5))
    ],
    "a client-named request gets another name on each resume": [
        (PROVIDERS["runware"], "task_of", lambda _api, _job: str(uuid.uuid4()))
    ],
    "the log is not read on resume": [(_recovery, "last_lines", lambda *_: {})],
    "what a power cut took from the log is not missed": [
        (_log_parts.LeaderLog, "_note_missing", lambda _: None)
    ],
    "requests without an answer are not counted": [(Purchase, "doubt", lambda _: None)],
    "the limit on cost does not count requests in flight": [
        (
            imagemill.engine.cost_limit.CostLimit,
            "committed_usd",
            property(lambda limit: limit.spent_usd),
        )
    ],
    "a job is done before its image is in the bucket": [(_engine.Engine, "_keep", _kept_nowhere)],
    "an image of another run counts as paid by this one": [(_recovery, "_receipts", _own_receipts)],
    "the run's record is not safe on the disk": [
        (_folder, "write_whole", _written),
        (_folder, "make_durable", lambda _: None),
    ],
    "a full disk while a run opens is a traceback": [
        (_folder.RunFolder, "trouble_named", lambda _: contextlib.nullcontext())
    ],
    "a lost answer to the lease's second write is a traceback": [
        (OutputLease, "_write_ours", lambda lease: lease._write())
    ],
    "what was charged for an answer without a picture is not counted": [
        (_engine.Engine, "_bill", lambda *_: None)
    ],
    "a picture kept on a full disk is cut short, and uploaded unchecked": [
        (_engine, "write_whole", _cut_short),
        (_recovery, "check_picture", _unchecked),
    ],
    "a queue that has not heard of its own request yet ends it": [(_queued, "_UNHEARD_OF_S", 0.0)],
    "secrets are masked nowhere": [(imagemill.secrets._Secrets, "mask", lambda _, text: text)],
}


def _restarts_only(scenario: Scenario) -> bool:
    """Whether nothing is lost with a machine or in a power cut, so that all is known after a death."""
    return all(death.how == "restart" for death in scenario.deaths)


_CAN_SHOW: dict[str, Callable[[Scenario], bool]] = {
    "two runs at once on one output: no lease": lambda s: s.second_after_s is not None and not s.away_s,
    "a lost submit is not looked for in the vendor's list": lambda s: (
        s.api in {"fal", "replicate"}
        and bool(s.network.lost_answer or s.network.slow_answer)
        and _restarts_only(s)
    ),
    "the list is read from five minutes before, whatever the clock": lambda s: (
        s.api == "fal"
        and not s.others
        and s.clock_error_s > 300
        and bool(s.deaths)
        and s.network.lost_answer + s.network.slow_answer + s.network.cut_answer > 0
    ),
    "a client-named request gets another name on each resume": lambda s: (
        s.apis <= CLIENT_NAMED
        and not s.others
        and not _restarts_only(s)
        and any(death.at for death in s.deaths)
    ),
    "the log is not read on resume": lambda s: (
        s.api in SYNCHRONOUS and s.store == "memory" and bool(s.deaths) and _restarts_only(s)
    ),
    "what a power cut took from the log is not missed": lambda s: (
        s.api in SYNCHRONOUS
        and any(death.how == "power cut" for death in s.deaths)
        and s.store_weather == StoreWeather(s.store_weather.latency_s)
        and not s.disk_full[1]
    ),
    "the limit on cost does not count requests in flight": lambda s: (
        s.max_cost_usd is not None and s.concurrency != 1
    ),
    "requests without an answer are not counted": lambda s: (
        s.api in SYNCHRONOUS
        and (s.network.lost_answer + s.network.cut_answer > 0.05 or "timeout_after_charge" in s.vendor.faults)
        and _restarts_only(s)
    ),
    "an image of another run counts as paid by this one": lambda s: s.away_s > 0 and bool(s.deaths),
    "the run's record is not safe on the disk": lambda s: any(d.how == "power cut" for d in s.deaths),
    "a full disk while a run opens is a traceback": lambda s: s.disk_full[1] > 0,
    "a lost answer to the lease's second write is a traceback": lambda s: (
        abs(s.clock_error_s) > 5 and s.store_weather.lost_answer > 0
    ),
    "what was charged for an answer without a picture is not counted": lambda s: bool(
        s.vendor.faults.keys() & {"expired_link", "truncated", "wrong_size", "black"}
    ),
    "secrets are masked nowhere": lambda s: s.network.echo > 0.1,
    "a picture kept on a full disk is cut short, and uploaded unchecked": lambda s: any(
        max(start, s.disk_full[0]) < (death.interrupt_after_s or 0.0) < min(end, s.disk_full[1])
        for start, end in s.store_weather.away
        for death in s.deaths
    ),
    "a queue that has not heard of its own request yet ends it": lambda s: (
        s.network.unheard > 0.1 and s.api not in SYNCHRONOUS
    ),
}
"""What a scenario needs to have to show a fault at all."""

REINTRODUCED = tuple(_PATCHES)
"""The faults, each in a few words."""


@contextmanager
def put_back(fault: str) -> Iterator[None]:
    """The product with one of these faults, in the block."""
    with contextlib.ExitStack() as stack:
        for target, name, value in _PATCHES[fault]:
            if hasattr(target, name):
                stack.enter_context(mock.patch.object(target, name, value))
        yield


def first_found(play: Callable[[Scenario], list[str]], fault: str, most: int) -> tuple[int, int, str] | None:
    """How many seeds it takes until a fault shows, which one that is, and its first words.

    Only seeds count that could show it; None where ``most`` of them do not.
    """
    can_show = _CAN_SHOW.get(fault, lambda _: True)
    scenarios = (scenario for scenario in map(drawn, itertools.count()) if can_show(scenario))
    with put_back(fault):
        for count, scenario in enumerate(itertools.islice(scenarios, most), start=1):
            if violations := play(scenario):
                return count, scenario.seed, violations[0].partition("\n")[0]
    return None
