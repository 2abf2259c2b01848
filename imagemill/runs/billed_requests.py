"""Compares what a run booked for its requests with what the vendor says it charged."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import anyio
import httpx
import orjson
import pyarrow as pa

from imagemill.blocks.apis.billing import BillingEvent, ListsCharges, billed_name
from imagemill.errors import ApiError, ErrorClass, InputError
from imagemill.usd import PICOS, exact, picos

T = TypeVar("T")

_NAMED_AT_ONCE = 50
_MOST_ASKED_AGAIN = 5_000
"""At most this many requests with a different charge are looked up by their ids."""

_AROUND = timedelta(minutes=10)
"""Charges are also read for this long before and after the run: clocks differ, and bills come late."""

_MOST_USD = 10**9
"""No charge, and no bill, is larger; the comparison's columns hold up to a thousand times as much."""

_WAITS_S = (2.0, 10.0, 30.0)

_IDS = ("request_id", "requestid", "prediction_id", "task_uuid", "taskuuid", "generation_id", "id")
_AMOUNTS = (
    *("cost_estimate_nano_usd", "cost_total", "cost_usd", "amount_usd", "charged_usd", "total_usd"),
    *("cost", "amount", "charge", "total", "usd"),
)


@dataclass(frozen=True, slots=True)
class Booked:
    """What a run booked for one request, in millionths of a millionth of a dollar.

    ``request_id`` is None where the vendor gave the request no id that its bill could name. ``route`` is ""
    in a run over one API.
    """

    job: int
    id: str
    request_id: str | None
    picos: int
    route: str = ""


class _Logged(NamedTuple):
    """A request in the log: its name on a bill, what the job had cost before it, in picos, and its route."""

    name: str
    before: int
    route: str


def booked_requests(jobs: Iterable[pa.RecordBatch], lines: Iterable[bytes]) -> Iterator[Booked]:
    """What a run booked for each of its requests; the sum for a job is what its row in jobs.parquet says.

    ``jobs`` are rows of jobs.parquet, ``lines`` those of log.jsonl, which knows the earlier requests of jobs
    that were sent more than once.
    """
    logged = _logged_requests(lines)
    columns = ("number", "id", "attempts", "request_id", "cost_usd", "route")
    for batch in jobs:
        rows = zip(*(batch[name].to_pylist() for name in columns), strict=True)
        for number, job_id, attempts, last, usd, route in rows:
            name, total, route_name = billed_name(last), picos(usd or 0.0), route or ""
            requests = logged.get(number, []) if attempts > 1 or name is None else []
            if name and name not in {known.name for known in requests}:
                requests = [*requests, _Logged(name, requests[-1].before if requests else 0, route_name)]
            unnamed = requests[0].before if requests else total
            if unnamed > 0:
                yield Booked(number, job_id, None, unnamed, route_name)
            for request, after in pairwise([*requests, _Logged("", total, "")]):
                yield Booked(number, job_id, request.name, after.before - request.before, request.route)


def _logged_requests(lines: Iterable[bytes]) -> dict[int, list[_Logged]]:
    """The requests of each job, in order."""
    found: dict[int, list[_Logged]] = {}
    cost: dict[int, int] = {}
    for line in lines:
        if b'"request_id":"' not in line and b'"cost_usd":' not in line:
            continue
        try:
            event = orjson.loads(line)
            number: int = event["job"]
        except (orjson.JSONDecodeError, KeyError):
            continue  # cut short by a kill, or no event of a job
        name = billed_name(event.get("request_id"))
        requests = found.setdefault(number, [])
        if name and name not in {known.name for known in requests}:
            requests.append(_Logged(name, cost.get(number, 0), event.get("route", "")))
        if "cost_usd" in event:
            cost[number] = picos(event["cost_usd"])
    return found


async def listed_charges(
    api: ListsCharges, booked: Mapping[str, int], first: datetime, last: datetime
) -> dict[str, int]:
    """What the vendor lists for the time of a run, in picos by request id, including requests of other runs.

    Requests whose charge is not what was ``booked`` are asked about by their ids: a charge may be listed
    late, or corrected.

    Raises:
        InputError: the vendor does not say, and what to do.
    """
    since, until = first - _AROUND, min(last + _AROUND, datetime.now(UTC))

    async def read() -> dict[str, int]:
        charged = await _total(api.billing_events(http, since, until))
        differing = [name for name, amount in booked.items() if charged.get(name, 0) != amount]
        for start in range(0, min(len(differing), _MOST_ASKED_AGAIN), _NAMED_AT_ONCE):
            names = differing[start : start + _NAMED_AT_ONCE]
            known = await _total(api.billing_events(http, since, datetime.now(UTC), names))
            for name in names:
                charged.pop(name, None)
            charged |= {name: known[name] for name in names if name in known}
        return charged

    async with httpx.AsyncClient(timeout=httpx.Timeout(60.0, connect=10.0)) as http:
        return await _patiently(read, api)


async def _total(events: AsyncIterator[BillingEvent]) -> dict[str, int]:
    charged: defaultdict[str, int] = defaultdict(int)
    async for event in events:
        if abs(event.usd) >= _MOST_USD:
            raise InputError(f"The vendor says {event.usd:.3g} USD of request {event.request_id[:80]!r}.")
        charged[event.request_id] += _picos(event.usd)
    return dict(charged)


async def _patiently(read: Callable[[], Awaitable[T]], api: ListsCharges) -> T:
    for wait_s in (*_WAITS_S, None):
        try:
            return await read()
        except ApiError as error:
            if error.error_class in {ErrorClass.UNAUTHORIZED, ErrorClass.OUT_OF_BUDGET}:
                raise InputError(
                    f"The key may not read what was charged ({error.message}). That takes an admin key: set"
                    f" {api.admin_key_variable} to one, or export the bill as CSV and name it: --from FILE."
                ) from error
            later = {ErrorClass.RATE_LIMITED, ErrorClass.SERVER_ERROR, ErrorClass.TIMEOUT}
            if error.error_class not in later or wait_s is None:
                raise InputError(
                    f"The vendor does not say what it charged ({error.message}). Try again later, or export"
                    " the bill as CSV and name it: --from FILE."
                ) from error
            await anyio.sleep(error.retry_after_s or wait_s)
    raise AssertionError("unreachable")


def exported_charges(file: Path, columns: Mapping[str, str]) -> dict[str, int]:
    """What an exported CSV says was charged, in picos by request id; "" for rows without an id.

    ``columns`` names the columns ``request_id`` and ``usd``, where they are not called as is usual.

    Raises:
        InputError: the file cannot be read, or lacks a column; says which.
    """
    charged: defaultdict[str, int] = defaultdict(int)
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            head = text.readline()
            delimiter = max(",;\t|", key=head.count)
            names = next(csv.reader([head], delimiter=delimiter), [])
            request_id = _column(file, names, columns.get("request_id"), _IDS, "request_id")
            amount = _column(file, names, columns.get("usd"), _AMOUNTS, "usd")
            billionths = _plain(amount).endswith("nano_usd")
            rows = csv.DictReader(text, names, delimiter=delimiter)
            for row in rows:
                usd = _usd(row.get(amount), file, rows.line_num + 1, decimal_comma=delimiter == ";")
                charged[billed_name((row.get(request_id) or "").strip()) or ""] += _picos(
                    usd / 1_000_000_000 if billionths else usd
                )
    except OSError as error:
        raise InputError(f"Cannot read {str(file)!r} ({error.strerror}).") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{str(file)!r} is not a CSV file in UTF-8 ({error}).") from error
    return dict(charged)


def _column(file: Path, names: list[str], given: str | None, usual: Iterable[str], what: str) -> str:
    if given is not None:
        found = given if given in names else None
    else:
        by_name = {_plain(name): name for name in reversed(names)}
        found = next((by_name[name] for name in usual if name in by_name), None)
    if found is None:
        raise InputError(
            f"{str(file)!r} has no column {given or what!r} (its columns: {', '.join(names[:20]) or 'none'})."
            f" Name the right one: --column {what}=COLUMN."
        )
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")


def _usd(text: Any, file: Path, line: int, *, decimal_comma: bool) -> Decimal:  # noqa: ANN401 - a cell
    cell = re.sub(r"[\s$]|USD", "", str(text or "0"))
    if decimal_comma and "," in cell and "." not in cell:
        cell = cell.replace(",", ".")
    try:
        usd = Decimal(cell.replace(",", ""))
    except InvalidOperation:
        usd = Decimal("NaN")
    if not usd.is_finite() or abs(usd) >= _MOST_USD:
        raise InputError(f"Line {line} of {str(file)!r}: {str(text)[:40]!r} is not an amount.")
    return exact(usd)


def _picos(usd: Decimal) -> int:
    return int(exact(usd) * PICOS)
