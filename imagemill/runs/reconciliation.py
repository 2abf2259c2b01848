"""Compares what a run booked with what its vendor charged, request by request, to the last digit."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from imagemill.blocks.apis.billing import ListsCharges
from imagemill.blocks.loading import image_api
from imagemill.bucket.image_bucket import ImageBucket
from imagemill.errors import InputError
from imagemill.formatting import money
from imagemill.media_types import PARQUET
from imagemill.parquet import ROWS, RowWriter
from imagemill.runs.billed_requests import Booked, booked_requests, exported_charges, listed_charges
from imagemill.runs.folder import RunFolder
from imagemill.settings import ApiSettings, RunSettings
from imagemill.usd import PICO_USD, of_picos

FILE = "reconciliation.parquet"

_USD = pa.decimal128(24, 12)

RECONCILIATION_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("job", pa.int64()),
        ("id", pa.string()),
        ("reason", pa.string()),
        ("booked_usd", _USD),
        ("charged_usd", _USD),
        ("difference_usd", _USD),
        ("source", pa.string()),
        ("reconciled_at", pa.timestamp("ms", "UTC")),
    ]
)


class Reason(StrEnum):
    """How a request's charge differs from what was booked for it."""

    AGREED = "agreed"
    OTHER_AMOUNT = "other_amount"
    CHARGED_NOT_BOOKED = "charged_not_booked"
    BOOKED_NOT_CHARGED = "booked_not_charged"
    NO_REQUEST_ID = "no_request_id"
    """Booked, but the vendor gave the request no id that its bill could name."""
    UNKNOWN_REQUEST = "unknown_request"
    """Charged for a request that is none of the run's, as far as the run knows."""


_WORDS = {
    Reason.AGREED: ("Charged as booked", ""),
    Reason.OTHER_AMOUNT: ("Charged another amount", "check the price that the run assumed"),
    Reason.CHARGED_NOT_BOOKED: ("Charged, not booked", "requests that brought no image"),
    Reason.BOOKED_NOT_CHARGED: ("Booked, not charged", "charges may be listed some minutes late"),
    Reason.NO_REQUEST_ID: ("Booked without a request id", "no bill can name these"),
    Reason.UNKNOWN_REQUEST: ("Not this run's", "not part of the sums"),
}


def reason_in_words(reason: str) -> tuple[str, str]:
    """What a reason is called, and a note on it."""
    return _WORDS[Reason(reason)]


class ReasonTotal(BaseModel):
    """The requests with one reason, and their sums in USD. ``difference_usd`` is charged minus booked."""

    model_config = ConfigDict(frozen=True)

    requests: int
    booked_usd: float
    charged_usd: float
    difference_usd: float


class Reconciliation(BaseModel):
    """What a run booked, compared with what its vendor charged. In USD.

    Requests that are none of the run's count in neither sum: they may be other work of the same account.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    source: str = Field(description="Who says what was charged: the vendor's list, or a file.")
    booked_usd: float
    charged_usd: float = Field(description="What was charged for the run's requests.")
    difference_usd: float = Field(description="Charged minus booked.")
    unanswered: int = Field(description="Requests of the run that got no answer, and may be charged.")
    unanswered_usd: float = Field(description="What these may cost.")
    agrees: bool = Field(description="Whether each request was charged exactly what was booked for it.")
    reasons: dict[str, ReasonTotal]
    left_out: list[str] = Field(
        default_factory=list, description="Routes that are not compared: their vendors list no charges."
    )
    file: str = Field(description="Where the comparison is, one row per request.")

    @property
    def in_words(self) -> str:
        """The result in a few sentences."""
        booked, charged = money(self.booked_usd), money(self.charged_usd)
        if self.agrees:
            words = [f"The {booked} that this run booked are what was charged, request by request."]
        elif not self.difference_usd:
            words = [f"This run booked {booked}, and as much was charged, but not for the same requests."]
        else:
            word = "more" if self.difference_usd > 0 else "less"
            difference = money(abs(self.difference_usd))
            words = [f"{charged} were charged for this run's requests, {difference} {word} than it booked."]
        if unknown := self.reasons.get(Reason.UNKNOWN_REQUEST):
            words.append(
                f"{unknown.requests:,} other requests cost {money(unknown.charged_usd)}: other work of the"
                " account, as far as this run knows."
            )
        if self.unanswered:
            words.append(
                f"{self.unanswered:,} requests of this run got no answer, and may be among them, for up to"
                f" {money(self.unanswered_usd)}."
            )
        if self.left_out:
            words.append(
                f"Not compared: {', '.join(self.left_out)}. No list says what each request there was charged;"
                " compare a bill of one of them by --route NAME --from FILE."
            )
        if Reason.BOOKED_NOT_CHARGED in self.reasons:
            words.append("Charges may be listed some minutes late: reconcile again later.")
        return " ".join(words)


@dataclass(slots=True)
class _Sums:
    """Requests and sums by reason, in picos."""

    requests: Counter[str] = field(default_factory=Counter)
    booked: Counter[str] = field(default_factory=Counter)
    charged: Counter[str] = field(default_factory=Counter)

    def add(self, reason: Reason, booked: int, charged: int) -> None:
        self.requests[reason] += 1
        self.booked[reason] += booked
        self.charged[reason] += charged

    def by_reason(self) -> dict[str, ReasonTotal]:
        return {
            reason.value: ReasonTotal(
                requests=self.requests[reason],
                booked_usd=of_picos(self.booked[reason]),
                charged_usd=of_picos(self.charged[reason]),
                difference_usd=of_picos(self.charged[reason] - self.booked[reason]),
            )
            for reason in Reason
            if self.requests[reason]
        }


def reconcile(
    settings: RunSettings,
    bucket: ImageBucket,
    export: Path | None = None,
    columns: Mapping[str, str] | None = None,
    *,
    base_url: str | None = None,
    route: str | None = None,
) -> Reconciliation:
    """Compare a run with its vendors' lists of charges or with ``export``, a CSV; store the comparison.

    ``columns`` names the CSV's columns ``request_id`` and ``usd``; ``base_url`` is where to ask, if not where
    the run sent its requests. ``route`` is the one to compare; the settings are its own then
    (:func:`.settings_of_route`). By default all routes are, whose vendors list charges.

    Raises:
        InputError: the run is not over, the vendor lists no charges, or the file cannot be used.
    """
    folder = RunFolder(settings.run_id)
    jobs = _jobs(folder, bucket)
    lines = _lines(folder, bucket)
    names = [each.name or "" for each in settings.routes] if route is None else [route]
    left_out: list[str] = []
    if export is not None:
        charged, source = exported_charges(export, columns or {}), export.name
    else:
        settings_of: Sequence[ApiSettings] = settings.routes or [settings.api]
        apis = dict(zip(names or [""], settings_of, strict=True))
        left_out = [name for name, api in apis.items() if not _lists_charges(api)]
        if len(left_out) == len(apis):
            left_out.pop(0)  # asked, it says what to do instead
        apis = {name: api for name, api in apis.items() if name not in left_out}
        names = [name for name in names if name in apis]
        charged, source = _listed_by_all(apis, base_url, jobs, lines)
    folder.create()
    compared = (each for each in booked_requests(_batches(jobs), lines) if not names or each.route in names)
    sums = _compare(folder.path / FILE, compared, charged, source)
    if names:
        jobs = jobs.filter(pc.is_in(jobs["route"], pa.array(names)))
    name = f"runs/{settings.run_id}/{FILE}"
    uri = bucket.upload(folder.path / FILE, name, PARQUET)
    of_run = [reason for reason in Reason if reason is not Reason.UNKNOWN_REQUEST]
    booked, paid = (sum(of[reason] for reason in of_run) for of in (sums.booked, sums.charged))
    return Reconciliation(
        run_id=settings.run_id,
        source=source,
        booked_usd=of_picos(booked),
        charged_usd=of_picos(paid),
        difference_usd=of_picos(paid - booked),
        unanswered=pc.sum(jobs["unanswered"]).as_py() or 0,
        unanswered_usd=round(pc.sum(jobs["unanswered_usd"]).as_py() or 0.0, 12),
        agrees=not set(sums.requests) - {Reason.AGREED, Reason.UNKNOWN_REQUEST},
        reasons=sums.by_reason(),
        left_out=left_out,
        file=uri,
    )


def _jobs(folder: RunFolder, bucket: ImageBucket) -> pa.Table:
    """The run's jobs.parquet, from this machine or the bucket."""
    content = None
    if (file := folder.path / "jobs.parquet").exists():
        content = file.read_bytes()
    else:
        content = bucket.read(f"runs/{folder.run_id}/jobs.parquet")
    if content is None:
        raise InputError(
            f"The run {folder.run_id!r} has no jobs.parquet yet, which is written at its end. Resume it"
            f" first: imagemill resume {folder.run_id}"
        )
    columns = ["number", "id", "attempts", "request_id", "cost_usd"]
    columns += ["unanswered", "unanswered_usd", "started_at", "finished_at"]
    there = pq.read_schema(pa.BufferReader(content)).names
    more = [name for name in ("judge_usd", "route") if name in there]  # records of earlier versions lack them
    jobs = pq.read_table(pa.BufferReader(content), columns=[*columns, *more])
    if "route" not in more:
        jobs = jobs.append_column("route", pa.nulls(jobs.num_rows, pa.string()))
    if "judge_usd" in more:  # the judge is on another bill
        place = columns.index("cost_usd")
        jobs = jobs.set_column(place, "cost_usd", pc.subtract(jobs["cost_usd"], jobs["judge_usd"]))
    return jobs


def _lines(folder: RunFolder, bucket: ImageBucket) -> list[bytes]:
    if folder.log.exists():
        return folder.log.read_bytes().splitlines()
    return (bucket.read(f"runs/{folder.run_id}/log.jsonl") or b"").splitlines()


def settings_of_route(settings: RunSettings, name: str) -> RunSettings:
    """The settings of a run as if it had gone over one of its routes alone.

    Raises:
        InputError: it has no such route.
    """
    found = next((route for route in settings.routes if route.name == name), None)
    if found is None:
        names = ", ".join(route.name or "" for route in settings.routes) or "none: it went over one API"
        raise InputError(f"The run {settings.run_id!r} has no route {name[:60]!r}. Its routes: {names}.")
    return settings.model_copy(update={"api": found, "routes": []})


def _lists_charges(settings: ApiSettings) -> bool:
    return isinstance(image_api(settings, needs_key=False), ListsCharges)


def _with_admin_key(settings: ApiSettings, *, keep_key: bool) -> ListsCharges:
    """The vendor, with the key that may read what was charged, if the environment has one.

    ``keep_key``: a block's own key is the one for its account.
    """
    api = image_api(settings, needs_key=False)
    if not isinstance(api, ListsCharges):
        raise InputError(
            f"{api.provider} does not list what it charged for each request. Export its bill as CSV, with"
            " columns request_id and usd, and name it: --from FILE."
        )
    held = {name: getattr(api, name) for name in type(api).model_fields}
    key = os.environ.get(api.admin_key_variable)
    if key and not (keep_key and settings.block):
        held["api_key"] = SecretStr(key)
    elif not settings.block:
        held["api_key"] = image_api(settings).api_key
    return type(api)(**held)


def _batches(jobs: pa.Table) -> Iterator[pa.RecordBatch]:
    return iter(jobs.to_batches(max_chunksize=ROWS))


def _listed_by_all(
    apis: Mapping[str, ApiSettings], base_url: str | None, jobs: pa.Table, lines: list[bytes]
) -> tuple[dict[str, int], str]:
    """What the vendors of these routes list, and the vendors' names; "" names the API of a run over one."""
    charged: dict[str, int] = {}
    sources = []
    several = len(apis) > 1
    booked: dict[str, Counter[str]] = {name: Counter() for name in apis}
    for request in booked_requests(_batches(jobs), lines):
        of_route = booked.get("" if "" in booked else request.route)
        if of_route is not None and request.request_id is not None:
            of_route[request.request_id] += request.picos
    for name, api in apis.items():
        found, source = _listed(api, base_url, jobs, booked[name], keep_key=several)
        charged |= found
        sources.append(f"{source} ({name})" if several else source)
    return charged, " and ".join(sources)


def _listed(
    settings: ApiSettings,
    base_url: str | None,
    jobs: pa.Table,
    booked: Mapping[str, int],
    *,
    keep_key: bool,
) -> tuple[dict[str, int], str]:
    """What the vendor lists, and the vendor's name; ``booked`` are the picos of each request."""
    if base_url is not None:
        settings = settings.model_copy(update={"base_url": base_url})
    api = _with_admin_key(settings, keep_key=keep_key)
    source = f"{settings.provider}'s billing events"
    if not booked:
        return {}, source
    now = datetime.now(UTC)
    first, last = (
        of(jobs[name]).as_py() or now for of, name in ((pc.min, "started_at"), (pc.max, "finished_at"))
    )
    return anyio.run(listed_charges, api, booked, first, last), source


def _compare(file: Path, requests: Iterator[Booked], charged: dict[str, int], source: str) -> _Sums:
    """Write one row per request, and sum up. What remains of ``charged`` is not of this run."""
    sums, now = _Sums(), datetime.now(UTC)
    rows: list[dict[str, Any]] = []
    left = dict(charged)

    def add(reason: Reason, request_id: str | None, booked: int, paid: int, job: Booked | None) -> None:
        sums.add(reason, booked, paid)
        rows.append(
            {
                "request_id": request_id,
                "job": job and job.job,
                "id": job and job.id,
                "reason": reason.value,
                "booked_usd": _decimal(booked),
                "charged_usd": _decimal(paid),
                "difference_usd": _decimal(paid - booked),
                "source": source,
                "reconciled_at": now,
            }
        )
        if len(rows) >= ROWS:
            write()

    with RowWriter(file, RECONCILIATION_SCHEMA) as writer:

        def write() -> None:
            writer.write(pa.Table.from_pylist(rows, RECONCILIATION_SCHEMA))
            rows.clear()

        for request in requests:
            name = request.request_id
            paid = left.pop(name, 0) if name else 0
            add(_reason(request, paid), name, request.picos, paid, request)
        for name, paid in left.items():
            add(Reason.UNKNOWN_REQUEST, name or None, 0, paid, None)
        write()
    return sums


def _reason(request: Booked, charged: int) -> Reason:
    if request.request_id is None:
        return Reason.NO_REQUEST_ID
    if charged == request.picos:
        return Reason.AGREED
    if not charged:
        return Reason.BOOKED_NOT_CHARGED
    return Reason.OTHER_AMOUNT if request.picos else Reason.CHARGED_NOT_BOOKED


def _decimal(amount: int) -> Decimal:
    return amount * PICO_USD
