"""Recovers a run after a crash: existing images, lost requests, images that were never uploaded.

The bucket is believed first, then the request that the API still knows, then the run's own log.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from pathlib import Path

import orjson
import pyarrow as pa

from imagemill.bucket.image_bucket import StoredImage, image_name
from imagemill.bucket.superseded import keep
from imagemill.durable import drop_parts
from imagemill.engine.image_check import check_picture
from imagemill.engine.receipt import RECEIPT_SUFFIX, Receipt, drop_with_receipt, image_metadata
from imagemill.errors import RETRY_RULES, ApiError, ErrorClass, Outcome
from imagemill.jobs import Job, JobStatus
from imagemill.quality.inspection import Finding
from imagemill.quality.judge import UNANSWERED, Answer
from imagemill.runs.log_replay import LastLine, catch_up, costs_of, last_lines, perhaps_sent, was_unanswered
from imagemill.runs.records import QUALITY_SCHEMA
from imagemill.runs.route_costs import count_in_shares
from imagemill.runs.session import Session
from imagemill.stores import shards
from imagemill.takes import REJECTED, is_rejected, take_of

_LOOKED_UP_AT_ONCE = 10_000


def upload_unsaved(session: Session) -> None:
    """Upload images that were paid for while the bucket was unavailable, if they are whole.

    One that is not, such as a disk that was full left it, is dropped and counted as lost: its job is made
    anew. One whose picture another machine, or another run, has put there meanwhile is dropped too: that
    picture may be in use, and what this one cost is counted as unanswered.
    """
    files: dict[str, list[Path]] = {}
    for file in session.folder.unsaved_images:
        files.setdefault(file.name.partition(".")[0], []).append(file)
    if not files:
        return
    there = session.bucket.images(files.keys())
    for job in _jobs_of(session, files.keys()):
        for file in files.pop(job.key):
            if job.key in there and take_of(there[job.key].name) >= take_of(file.name):
                session.recorder.event("unsaved_ignored", image=file.name, kept=there[job.key].name)
                drop_with_receipt(file)
            else:
                _upload_unsaved(session, job, file)
    for file in chain.from_iterable(files.values()):
        session.recorder.event("unsaved_ignored", image=file.name)  # of no job of this run


def _upload_unsaved(session: Session, job: Job, file: Path) -> None:
    receipt = _receipt_in(file.with_suffix(RECEIPT_SUFFIX))
    try:
        content = file.read_bytes()
        picture = check_picture(content, job.width, job.height, exact=session.api_of(job).profile.sizes.exact)
    except FileNotFoundError:
        return  # another worker on this machine has uploaded it
    except ApiError as error:
        session.recorder.lost_image(file.name, error.message)
    else:
        name = image_name(job.key, picture.extension, take_of(file.name))
        session.wait(session.bucket.put_image, name, content, image_metadata(job, receipt))
    drop_with_receipt(file)


def drop_leftovers(session: Session) -> None:
    """Remove incomplete images that killed processes left: cut files, and receipts without an image.

    Only for the process that leads the run, before others join it.
    """
    unsaved = session.folder.unsaved
    for folder in (session.folder.path, unsaved):
        drop_parts(folder)
    kept = {file.stem for file in session.folder.unsaved_images}
    for receipt in unsaved.glob(f"*{RECEIPT_SUFFIX}"):
        if receipt.stem not in kept:
            receipt.unlink(missing_ok=True)


def _receipt_in(file: Path) -> Receipt | None:
    """The receipt kept beside an image; None if there is no readable one."""
    try:
        return Receipt.from_metadata(orjson.loads(file.read_bytes()))
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None


def _jobs_of(session: Session, keys: Collection[str]) -> list[Job]:
    """The jobs that have these keys."""

    async def find() -> list[Job]:
        return [job async for jobs in session.store.all_jobs() for job in jobs if job.key in keys]

    return session.wait(find)


def find_images(
    session: Session, numbers: Sequence[int], *, begun: bool, asked: bool = True
) -> Sequence[int]:
    """Find images and requests of these unfinished jobs; the numbers of the jobs that remain unfinished.

    A job whose image is in the bucket is done; one that failed according to the log stays failed. If the run
    has ``begun`` before, the image's receipt tells whether this run paid for it, even if neither store nor
    log could record that. A request that was in flight when a process died, and whose id is unknown, is
    looked for in the API's list of requests. If it is not found, it is counted as unanswered: it will be sent
    again, and the API may charge for both. So is one that a machine may have sent just before it was lost.
    Jobs that nobody ``asked`` for, as far as the store knows, are only read where bucket or log have some.
    """
    store = session.store
    images = session.bucket.images(job.key for jobs in _batches(session, numbers) for job in jobs)
    if images:
        keep(session.bucket, session.folder.path, {image.name for image in images.values()})
    lines = last_lines(session.folder.log, numbers)
    on_dask = session.settings.execution.on_dask  # whose store knows what workers sent
    perhaps = {} if on_dask else perhaps_sent(session.folder.log)
    if not (images or lines or perhaps or asked):
        return numbers  # nothing was ever sent

    async def save(jobs: list[Job]) -> None:
        for job in jobs:
            store.save(job)
        await store.commit()

    for jobs in _batches(session, numbers):
        tell_refusals(session, jobs, lines)
        doubtful_usd = sum(job.unanswered_usd for job in jobs)
        known = {job.number: costs_of(job, lines.get(job.number)) for job in jobs}
        perhaps = _unwritten_retries(jobs, {} if on_dask else lines) | perhaps
        found = {job.number: image for job in jobs if (image := _image_of(job, images)) is not None}
        receipts = _receipts(session, [image.name for image in found.values()] if begun else [])
        changed = [
            job
            for job in jobs
            if _settle(session, job, found.get(job.number), receipts.get(job.key), lines.get(job.number))
        ]
        named = _find_named(session, jobs, lines, perhaps)
        doubted = [
            job for job in jobs if _doubt(session, job, receipts.get(job.key), lines.get(job.number), perhaps)
        ]
        lost = [job for job in jobs if _is_lost(job)]
        ended = [job for job in jobs if _note_ended(job, lines.get(job.number))]
        if lost:
            session.wait(session.engine.earlier.find_lost, lost)
        session.cost.recover(doubtful_usd=sum(job.unanswered_usd for job in jobs) - doubtful_usd)
        for job in jobs:  # what the store had missed
            costs = costs_of(job, lines.get(job.number))
            count_in_shares(session.engine.routes, job, costs, known[job.number])
        _expect(session, jobs)
        if to_save := {job.number: job for job in (*changed, *doubted, *named, *lost, *ended)}:
            session.wait(save, list(to_save.values()))
    return session.wait(store.unfinished_numbers) if images or lines else numbers


def _doubt(
    session: Session,
    job: Job,
    receipt: Receipt | None,
    line: LastLine | None,
    perhaps: Mapping[int, Sequence[datetime]],
) -> bool:
    """Count the requests that lost machines may have sent, once; whether there are any.

    The job is pending; or it has the picture of another run, or of an earlier request, and nobody will ask
    about these.
    """
    if not (new := _uncounted(job, perhaps)):
        return False
    if job.request_id is not None:  # it is what the last of them sent, and is asked about
        job.note_lost(machine.isoformat() for machine in new)
        return True
    others = job.reused or (receipt is not None and receipt.run_id != session.settings.run_id)
    before = receipt is not None and line is not None and receipt.attempts <= line.attempt
    if job.status is not JobStatus.PENDING and not (job.status is JobStatus.DONE and (others or before)):
        return False
    for _ in range(len(new) - _is_known_to_store(job, line)):
        job.lose_answer(_highest_price(session, job))  # any route may have had it
    job.note_lost(machine.isoformat() for machine in new)
    job.started_at = job.started_at or min(new).timestamp()  # from when on the API's list is read
    return True


def _find_named(
    session: Session,
    jobs: Sequence[Job],
    lines: Mapping[int, LastLine],
    perhaps: dict[int, list[datetime]],
) -> list[Job]:
    """Ask about requests of these jobs that this client named; the jobs that it asked about.

    What an API has leaves ``perhaps``. So does what the only one does not know: it is asked about once more,
    and sent again under its name, which is the same purchase if the API was at work on it. Until then its
    price is expected. What else lost machines may have sent stays in doubt.
    """
    named = [job for job in jobs if _may_be_known_by_name(session, job, perhaps)]
    missed: dict[int, int] = {}
    """How many doubts a job lacks, if an API has a request of this name; or how many it has too many."""
    for job in named:
        line, new = lines.get(job.number), _uncounted(job, perhaps)
        elsewhere = any(route.api.name_of(job) is None for route in session.engine.routes)
        if elsewhere and new:
            missed[job.number] = max(0, len(new) - 1 - _is_known_to_store(job, line))
        else:  # the API was away when others were counted, whose task is the same if it is theirs
            counted = 1 if elsewhere else len(perhaps[job.number]) - len(new)
            missed[job.number] = -max(0, min(counted, job.unanswered - _in_doubt(line)))
    unwritten = {job.number: _only_in_store(job, lines.get(job.number)) for job in named}
    if named:
        session.wait(session.engine.earlier.find_named, named, unwritten)
    for job in named:
        if job.request_id is not None:
            for _ in range(-missed[job.number]):
                job.find_request(job.request_id, _highest_price(session, job))
            for _ in range(missed[job.number]):
                job.lose_answer(_highest_price(session, job))
            job.note_lost(machine.isoformat() for machine in perhaps.pop(job.number))
    return named


def _unwritten_retries(jobs: Sequence[Job], lines: Mapping[int, LastLine]) -> dict[int, list[datetime]]:
    """The jobs whose retry a machine may have sent that was lost with the line that tells of its reason."""
    pairs = [(job, line) for job in jobs if (line := lines.get(job.number)) is not None and line.is_cut]
    return {job.number: [line.at] for job, line in pairs if _went_on(job, line)}


def _uncounted(job: Job, perhaps: Mapping[int, Sequence[datetime]]) -> list[datetime]:
    """The lost machines whose request of a job is not counted yet."""
    counted = job.lost_machines
    return [since for since in perhaps.get(job.number, ()) if since.isoformat() not in counted]


def _note_ended(job: Job, line: LastLine | None) -> bool:
    """Keep the ids of an unfinished job's earlier requests with it; whether any is new."""
    if line is None or job.status is JobStatus.DONE:
        return False
    return job.note_ended(line.request_ids - {job.request_id or ""})


def _only_in_store(job: Job, line: LastLine | None) -> int:
    """How many attempts of a job its lines do not have, as after a full disk."""
    return max(0, job.attempts - (0 if line is None else line.attempt))


def _is_known_to_store(job: Job, line: LastLine | None) -> bool:
    """Whether the store knows all that one lost machine sent that was not counted before, and its outcome."""
    counted = max(job.lost_machines.values(), default=0)
    return job.attempts > max(counted, 0 if line is None else line.attempt) and not _went_on(job, line)


def _went_on(job: Job, line: LastLine | None) -> bool:
    """Whether the store alone knows that an attempt brought nothing: a retry may have left since.

    A retry waits until its log is safe only where the attempt before it may be charged.
    """
    told, sums = 0, (0, 0.0)
    if line is not None:
        told = line.attempt - (line.event in {"sent", "accepted", "judged"})
        sums = line.unanswered or 0, line.cost_usd or 0.0
    is_free = (job.unanswered, job.cost_usd) == sums
    return job.status is JobStatus.PENDING and job.request_id is None and is_free and job.attempts > told


def _in_doubt(line: LastLine | None) -> int:
    """How many requests of a job are in doubt by its lines."""
    return 0 if line is None else (line.unanswered or 0) + line.is_in_doubt


def _may_be_known_by_name(session: Session, job: Job, perhaps: Collection[int]) -> bool:
    """Whether an API can be asked about what a lost machine may have sent: this client named the request."""
    is_open = job.status is JobStatus.PENDING and job.request_id is None and job.number in perhaps
    return is_open and any(route.api.name_of(job) is not None for route in session.engine.routes)


def tell_refusals(session: Session, jobs: Sequence[Job], lines: Mapping[int, LastLine]) -> None:
    """Tell each route's API how often it did not take these jobs: another route's do not count."""
    for route in session.engine.routes:
        name = route.name if session.settings.routes else ""
        for job in jobs:
            if (line := lines.get(job.number)) is not None:
                route.api.was_refused(job, list(line.refused.values()).count(name))


def _image_of(job: Job, images: Mapping[str, StoredImage]) -> StoredImage | None:
    """The job's image in the bucket; None if it is one in place of which another is wanted."""
    image = images.get(job.key)
    return None if image is None or take_of(image.name) < job.take else image


def _is_lost(job: Job) -> bool:
    return job.status is JobStatus.PENDING and job.unanswered > 0 and job.request_id is None


def _expect(session: Session, jobs: Sequence[Job]) -> None:
    """Count what the requests that the APIs have may cost."""
    asked = [job for job in jobs if job.status is JobStatus.PENDING and job.request_id is not None]
    session.portal.call(session.engine.expect, asked)


def _receipts(session: Session, images: Sequence[str]) -> dict[str, Receipt]:
    """The receipts of those images that a run made, this one or another, by key."""
    metadata = session.bucket.metadata(images)
    found = {carried.get("key", ""): Receipt.from_metadata(carried) for carried in metadata.values()}
    return {key: receipt for key, receipt in found.items() if receipt}


def _batches(session: Session, numbers: Sequence[int]) -> Iterator[list[Job]]:
    """The unfinished jobs, in batches."""
    for block in shards(numbers, _LOOKED_UP_AT_ONCE):
        yield session.wait(session.store.unfinished, *block)


def _settle(
    session: Session, job: Job, image: StoredImage | None, receipt: Receipt | None, line: LastLine | None
) -> bool:
    """Update one unfinished job from what was found; whether that changed it."""
    known_usd = job.total_usd
    missed = catch_up(job, line)
    if image is not None and is_rejected(image.name):
        job.image = image.name
        job.fail(
            time.time(),
            error_class=ErrorClass.CONTENT_FILTERED,
            code=REJECTED,
            message="rejected in a review of an earlier run",
            retryable=False,
        )
    elif image is not None:
        _settle_found(session, job, image, receipt, line, missed=missed)
    elif missed and line is not None and line.has_failed and line.error_class and not job.has_picture:
        job.fail(
            line.at.timestamp(),
            error_class=line.error_class,
            code=line.error_code or "",
            message=line.message or "",
            retryable=RETRY_RULES[line.error_class].outcome is Outcome.RETRYABLE
            and line.retryable is not False,
        )
    elif missed:
        if was_unanswered(job, line):
            job.request_id = session.api_of(job).name_of(job)
            if job.request_id is None:
                job.lose_answer(_price(session, job, line))
        job.requeue()
    session.cost.recover(spent_usd=job.total_usd - known_usd)
    return missed or image is not None


def _settle_found(
    session: Session,
    job: Job,
    image: StoredImage,
    receipt: Receipt | None,
    line: LastLine | None,
    *,
    missed: bool,
) -> None:
    """The job's image is in the bucket: the job is done, and what it cost is on the receipt."""
    others = receipt is not None and receipt.run_id != session.settings.run_id
    asked_again = receipt is not None and receipt.attempts < job.attempts  # for a suspect picture
    if receipt is not None and not others:
        receipt.settle(job)
    asked = job.attempts > 0
    booked = job.cost_usd and (not missed or session.api_of(job).is_paid(job.request_id))
    if asked and receipt is None and not booked:
        job.pay(
            *session.api_of(job).expected_charge(job)
        )  # this run paid for it, and died before recording it
    if (others or asked_again) and _is_in_doubt(session, job, line, missed=missed):
        job.lose_answer(_price(session, job, line))  # nobody will ask about it any more
    reused = not asked or (others and not job.cost_usd)
    was_done = line is not None and line.event == "done" and not others and not asked_again
    job.finish(
        line.at.timestamp() if line is not None and was_done else time.time(),
        image=image.name,
        image_bytes=image.size,
        latency_s=receipt.latency_s if receipt is not None and not others else None,
        reused=reused,
    )
    if line is not None and was_done:
        job.quality, job.suspect = _readable(line.quality), line.suspect
    else:
        found = Finding() if reused else _judged(session, None if others else receipt, line)
        job.quality, job.suspect = found.quality, found.suspect  # not those of an earlier take


def _readable(quality: str) -> str:
    """What a line says of a picture's quality, if records can hold it; a log may be damaged."""
    try:
        pa.Table.from_pylist([orjson.loads(quality or "{}")], QUALITY_SCHEMA)
    except (orjson.JSONDecodeError, pa.ArrowException, AttributeError, TypeError, ValueError):
        return ""
    return quality


def _price(session: Session, job: Job, line: LastLine | None) -> float:
    """What a request in doubt may cost: that of a lost machine, whose lines may be missing, at any route."""
    if line is not None and line.is_cut:
        return _highest_price(session, job)
    return session.api_of(job).price_usd(job.width, job.height, job.steps, job.params)


def _highest_price(session: Session, job: Job) -> float:
    return max(route.price(job) for route in session.engine.routes)


def _judged(session: Session, receipt: Receipt | None, line: LastLine | None) -> Finding:
    """What the judge answered about a picture of this run, from the log; the measures are lost."""
    quality = session.settings.quality
    if quality.judge is None:
        return Finding()
    answers = line.answers if line is not None else {}
    answer = answers.get(receipt.attempts) if receipt is not None else None
    return Finding().judged(answer or Answer(failure=UNANSWERED), quality.judge_threshold)


def _is_in_doubt(session: Session, job: Job, line: LastLine | None, *, missed: bool) -> bool:
    """Whether the API may charge for a request of the job whose outcome neither store nor log knows."""
    if job.request_id is not None:
        return not session.api_of(job).is_paid(job.request_id)
    return missed and was_unanswered(job, line)
