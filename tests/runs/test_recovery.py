"""Images that a run kept in its folder are uploaded by a resume, and paid for once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import httpx
import orjson
import pytest
from prefect.logging import disable_run_logger

from imagemill.blocks.apis import Runware
from imagemill.bucket.output_lease import LEASE
from imagemill.emulator import Emulator
from imagemill.engine.receipt import Receipt, image_metadata
from imagemill.engine.route import Route
from imagemill.errors import ApiError, ErrorClass
from imagemill.jobs import CostSource, Job, JobStatus
from imagemill.quality.judge import Answer, Opinion
from imagemill.runs.log_replay import perhaps_sent
from imagemill.runs.planning import plan_run
from imagemill.runs.recovery import drop_leftovers, find_images, upload_unsaved
from imagemill.runs.review_choices import ReviewChoices
from imagemill.runs.session import Session, open_session
from imagemill.settings import RunSettings
from imagemill.takes import take_of
from imagemill.tasks.apply_choices import apply_choices
from imagemill.tasks.reopen_failed import reopen_failed
from tests.blocks.apis.link_server import picture
from tests.blocks.apis.test_lost_within_a_run import unheard_of
from tests.blocks.apis.variants import make_job
from tests.conftest import Place
from tests.losing_transport import LosingTransport
from tests.runs.test_session import settings

PRICE_USD = 0.003
LINK = "https://api.together.ai/imgproxy/a.png"
ANOTHERS = Receipt("another", 1, 2.5, 0.007, 0, 0.0, CostSource.TOLD)


def killed_at_work(session: Session, **state: object) -> Job:
    """A job whose image was kept in the run's folder, as the store has it after its process died."""
    job = make_job(session.api)
    job.start(1.0)
    for name, value in state.items():
        setattr(job, name, value)

    async def stored() -> None:
        await session.store.add([job])
        await session.store.mark_planned()
        session.store.save(job)
        await session.store.commit()

    session.wait(stored)
    session.folder.unsaved.mkdir(parents=True)
    return job


def saved(session: Session, job: Job) -> None:
    """The job store has this state of the job."""
    session.store.save(job)
    session.wait(session.store.commit)


def lose_a_machine(session: Session) -> None:
    """A machine has named the job as its next, and was lost before its next lines were uploaded."""
    session.recorder.event("up_next", jobs=[0])
    session.recorder.event("log_cut")


def resumed(session: Session) -> Job:
    upload_unsaved(session)
    find_images(session, [0], begun=True)

    async def found() -> list[Job]:
        return [job async for jobs in session.store.all_jobs() for job in jobs]

    (job,) = session.wait(found)
    return job


def test_an_image_whose_cost_is_booked_is_not_paid_for_again(
    place: Place, catalog: Callable[..., str]
) -> None:
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        paid = {"request_id": LINK, "cost_usd": PRICE_USD, "cost_source": CostSource.LIST}
        job = killed_at_work(session, **paid)
        (session.folder.unsaved / f"{job.key}.png").write_bytes(picture())
        job = resumed(session)
        assert (job.status, job.cost_usd) == (JobStatus.DONE, PRICE_USD)
        assert job.image is not None
        assert place.head(job.image)["Metadata"]["key"] == job.key


def test_an_image_kept_with_its_receipt_is_uploaded_with_it(
    place: Place, catalog: Callable[..., str]
) -> None:
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        job = killed_at_work(session)
        file = session.folder.unsaved / f"{job.key}.png"
        file.write_bytes(picture())
        receipt = Receipt("r", 1, 2.5, 0.007, 0, 0.0, CostSource.TOLD, queued_s=1.5)
        file.with_suffix(".json").write_bytes(orjson.dumps(receipt.to_metadata()))
        job = resumed(session)
        assert (job.status, job.cost_usd, job.cost_source) == (JobStatus.DONE, 0.007, CostSource.TOLD)
        assert (job.latency_s, job.queued_s) == (2.5, 1.5)
        assert session.cost.spent_usd == pytest.approx(0.007)
        assert not list(session.folder.unsaved.iterdir())


@pytest.mark.parametrize(
    ("maker", "answer", "quality", "suspect"),
    [
        ("r", None, {"judge_failure": "the run stopped before the judge's answer was recorded"}, ""),
        ("r", Answer(Opinion(0.2, "dull")), {"judge_score": 0.2, "judge_words": "dull"}, "judged"),
        ("r", Answer(failure="HTTP 500"), {"judge_failure": "HTTP 500"}, ""),
        ("another", None, {}, ""),
    ],
    ids=["unjudged", "judged", "judge failed", "reused"],
)
def test_a_killed_runs_image_has_the_judges_answer_or_says_why_not(
    place: Place,
    catalog: Callable[..., str],
    maker: str,
    answer: Answer | None,
    quality: dict[str, object],
    suspect: str,
) -> None:
    """The answer in the log is that to this image, not to the first one of a job that was made again."""
    described = settings(place, catalog(prompt=["a"])).model_dump(exclude_unset=True)
    judged = RunSettings.model_validate({**described, "quality": {"judge": "json:dumps"}})
    with open_session(judged) as session:
        job = killed_at_work(session, quality='{"judge_score": 0.1}', suspect="blurred")
        session.recorder.judged(job, Answer(Opinion(0.1)))
        job.attempts = 2
        session.recorder.sent(job)
        if answer is not None:
            session.recorder.judged(job, answer)
        file = session.folder.unsaved / f"{job.key}.2.png"
        file.write_bytes(picture())
        receipt = Receipt(maker, 2, 2.5, 0.007, 0, 0.0, CostSource.TOLD)
        file.with_suffix(".json").write_bytes(orjson.dumps(receipt.to_metadata()))
        job = resumed(session)
        assert (job.status, job.suspect, job.reused) == (JobStatus.DONE, suspect, maker != "r")
        assert take_of(job.image or "") == 2
        assert orjson.loads(job.quality or "{}") == quality


def test_an_image_that_another_worker_uploads_meanwhile_is_left_to_it(
    place: Place, catalog: Callable[..., str]
) -> None:
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        job = killed_at_work(session, request_id=LINK, cost_usd=PRICE_USD)
        gone = session.folder.unsaved / f"{job.key}.png"
        gone.symlink_to(session.folder.unsaved / "gone")  # listed, and gone once it is read
        job = resumed(session)
        assert (job.status, job.request_id) == (JobStatus.PENDING, LINK)


def test_a_picture_that_another_run_or_machine_has_made_meanwhile_stays(
    place: Place, catalog: Callable[..., str]
) -> None:
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        job = killed_at_work(session, attempts=1)
        name = f"images/{job.key[:2]}/{job.key}.jpg"
        theirs = image_metadata(job, Receipt("another", 1, 2.5, 0.007, 0, 0.0, CostSource.TOLD))
        session.wait(session.bucket.put_image, name, b"theirs", theirs)
        for later_take in ("", ".2"):
            (session.folder.unsaved / f"{job.key}{later_take}.png").write_bytes(picture())
        upload_unsaved(session)
        assert place.head(name)["Metadata"]["run-id"] == "another"
        assert {each for each in place.objects() if "images/" in each} == {
            name,
            f"images/{job.key[:2]}/{job.key}.2.png",
        }
        assert not list(session.folder.unsaved.iterdir())


def test_a_picture_that_comes_home_to_a_run_that_lost_its_output_is_kept_on_its_disk(
    place: Place, catalog: Callable[..., str], emulator: Callable[..., Emulator]
) -> None:
    emulated = emulator(latency_s=3.0, latency_sigma=0)
    described = settings(place, catalog(prompt=["a"])).model_dump(exclude_unset=True)
    described["api"] = {"provider": "together", "base_url": emulated.base_url}
    with open_session(RunSettings.model_validate(described)) as session:
        plan_run(session)
        work = session.portal.start_task_soon(session.engine.run_shard, 0, 0)
        while not emulated.stats()["in_flight"]:
            time.sleep(0.01)
        found = orjson.loads(place.read(LEASE))
        theirs = found | {"holder": "another", "nonce": "theirs", "process": ""}
        session.bucket.write(LEASE, orjson.dumps(theirs), "application/json")
        assert session.lease is not None
        session.lease.renew()
        work.result()
        assert session.engine.stopped is not None
        assert "Run another took it over" in session.engine.stopped.reason
        assert not [name for name in place.objects() if name.startswith("images/")]
        assert {file.suffix for file in session.folder.unsaved.iterdir()} == {".png", ".json"}
    assert emulated.bill()["images"] == 1


def test_what_a_kill_left_of_images_it_could_not_keep_is_removed(
    place: Place, catalog: Callable[..., str]
) -> None:
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        drop_leftovers(session)  # of nothing
        job = killed_at_work(session)
        unsaved = session.folder.unsaved
        for name in (f"{job.key}.png", f"{job.key}.json", "0a.json", ".0a.png.1f2e3d4c.part"):
            (unsaved / name).write_bytes(b"")
        drop_leftovers(session)
        assert {file.name for file in unsaved.iterdir()} == {f"{job.key}.png", f"{job.key}.json"}


def test_a_suspect_pictures_second_request_is_counted_where_the_first_picture_is_found(
    place: Place, catalog: Callable[..., str]
) -> None:
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        job = killed_at_work(session, attempts=2, cost_usd=PRICE_USD, cost_source=CostSource.LIST)
        name = f"images/{job.key[:2]}/{job.key}.png"
        receipt = Receipt("r", 1, 2.5, PRICE_USD, 0, 0.0, CostSource.LIST)
        session.wait(session.bucket.put_image, name, picture(), image_metadata(job, receipt))
        job = resumed(session)
        assert (job.status, job.cost_usd, job.unanswered) == (JobStatus.DONE, PRICE_USD, 1)


def test_an_image_that_another_run_made_costs_this_run_nothing(
    place: Place, catalog: Callable[..., str]
) -> None:
    """Its own request may be charged as well: that is counted, and the picture is not."""
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        job = killed_at_work(session)
        receipt = Receipt("another", 1, 2.5, 0.007, 0, 0.0, CostSource.TOLD)
        session.wait(
            session.bucket.put_image,
            f"images/{job.key[:2]}/{job.key}.png",
            picture(),
            image_metadata(job, receipt),
        )
        job = resumed(session)
        assert (job.status, job.reused, job.cost_usd) == (JobStatus.DONE, True, 0.0)
        assert job.unanswered == 1


def test_a_request_whose_outcome_only_the_store_knows_is_not_in_doubt(
    place: Place, catalog: Callable[..., str]
) -> None:
    """Seed 403483: a full disk took its lines; it was found in the vendor's list, and booked twice."""
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        killed_at_work(session, status=JobStatus.PENDING, cost_usd=PRICE_USD)
        session.recorder.up_next([0])
        session.recorder.event("log_cut")
        job = resumed(session)
        assert (job.status, job.attempts, job.unanswered) == (JobStatus.PENDING, 1, 0)


@pytest.mark.parametrize(
    ("known", "doubts"),
    [
        ({"status": JobStatus.PENDING, "attempts": 0}, 1),
        ({}, 1),  # the store knows that it was sent
        ({"status": JobStatus.PENDING}, 1),  # that it was refused: the next may have left at once
        ({"status": JobStatus.PENDING, "attempts": 2}, 1),  # twice
        ({"status": JobStatus.PENDING, "cost_usd": PRICE_USD}, 0),  # that it was charged: the next waits
        ({"status": JobStatus.PENDING, "attempts": 2, "unanswered": 1}, 1),  # that nobody answered once
    ],
)
def test_what_each_of_several_lost_machines_may_have_sent_is_in_doubt_once(
    place: Place, catalog: Callable[..., str], known: dict[str, object], doubts: int
) -> None:
    """Whatever a store on a server knows of the first one's requests, of which there are no lines."""
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        killed_at_work(session, **known)
        for machine in range(3):
            lose_a_machine(session)
            for _ in range(2):  # resumed, and once more before anything was sent
                assert resumed(session).unanswered == doubts + machine


def test_what_a_lost_machine_has_made_is_not_in_doubt(place: Place, catalog: Callable[..., str]) -> None:
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        job = killed_at_work(session, status=JobStatus.PENDING, attempts=0)
        lose_a_machine(session)
        receipt = replace(ANOTHERS, run_id=session.settings.run_id or "")
        name = f"images/{job.key[:2]}/{job.key}.png"
        session.wait(session.bucket.put_image, name, picture(), image_metadata(job, receipt))
        job = resumed(session)
        assert (job.status, job.cost_usd, job.unanswered) == (JobStatus.DONE, receipt.cost_usd, 0)


def test_a_retry_that_only_a_lost_machine_knew_of_is_in_doubt(
    place: Place, catalog: Callable[..., str]
) -> None:
    """Seed 1019192: the log had that it was sent, the store that it was not taken, and nobody the retry."""
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        job = killed_at_work(session, status=JobStatus.PENDING)
        session.recorder.up_next([0])
        session.recorder.sent(job)
        session.recorder.event("log_cut")
        for _ in range(2):
            assert resumed(session).unanswered == 1


def test_a_doubt_is_counted_once_though_another_run_makes_the_picture(
    place: Place, catalog: Callable[..., str]
) -> None:
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        job = killed_at_work(session, status=JobStatus.PENDING, attempts=0)
        lose_a_machine(session)
        assert resumed(session).unanswered == 1
        name = f"images/{job.key[:2]}/{job.key}.png"
        session.wait(session.bucket.put_image, name, picture(), image_metadata(job, ANOTHERS))
        job = resumed(session)
        assert (job.status, job.unanswered) == (JobStatus.DONE, 1)


def test_a_doubt_is_counted_once_though_a_second_lost_machine_made_a_picture_and_took_it_back(
    place: Place, catalog: Callable[..., str]
) -> None:
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        killed_at_work(session, status=JobStatus.PENDING, attempts=0)
        lose_a_machine(session)
        job = resumed(session)
        session.recorder.event("up_next", jobs=[0])
        job.start(5.0)
        job.pay(PRICE_USD, CostSource.LIST)
        job.finish(6.0, image=f"images/{job.key}.png", image_bytes=1, latency_s=1.0)
        job.redo()  # a placeholder; a store on a server knows of it
        saved(session, job)
        session.recorder.event("log_cut")
        assert resumed(session).unanswered == 1


def test_a_lost_machine_whose_request_the_store_knew_is_in_no_doubt_later(
    place: Place, catalog: Callable[..., str]
) -> None:
    """What the second one may have sent after its failure is."""
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        killed_at_work(session, status=JobStatus.PENDING, attempts=1, request_id="X")
        lose_a_machine(session)
        job = resumed(session)
        assert (job.request_id, job.unanswered) == ("X", 0)
        session.recorder.event("up_next", jobs=[0])
        job.start(5.0)
        job.drop_request()  # it failed for nothing, and the second machine was lost
        job.requeue()
        saved(session, job)
        session.recorder.event("log_cut")
        assert resumed(session).unanswered == 1


def test_a_task_that_was_in_doubt_for_two_lost_machines_is_found_for_both(
    on_runware: RunSettings, emulator: Callable[..., Emulator]
) -> None:
    """The API was away when the first was counted."""
    emulated = emulator()
    with open_session(at_runware(on_runware, emulated)) as session:
        named = session.api.name_of(
            replace(lost_with_its_machine(session, session.engine.routes.first), attempts=1)
        )
        session.api.base_url = "http://127.0.0.1:9"
        assert resumed(session).unanswered == 1
        lose_a_machine(session)
        session.api.base_url = emulated.base_url
        job = resumed(session)
        assert (job.request_id, job.unanswered) == (named, 0)


def test_a_task_that_is_found_takes_away_no_doubt_about_an_earlier_one(
    on_runware: RunSettings, emulator: Callable[..., Emulator]
) -> None:
    """The lost machine counts as known: what it had sent before was in the store."""
    with open_session(at_runware(on_runware, emulator())) as session:
        job = killed_at_work(session, unanswered=1, unanswered_usd=PRICE_USD)
        session.recorder.attempt_failed(job, ApiError(ErrorClass.SERVER_ERROR, "late", code="http_504"), 0.0)
        job.requeue()
        session.recorder.event("up_next", jobs=[0])
        route = session.engine.routes.first

        async def accepted(_: str) -> None: ...

        sent = replace(job, attempts=2, model=route.api.model)
        session.wait(route.api.generate, route.http, sent, accepted)
        session.recorder.event("log_cut")
        job.note_lost(machine.isoformat() for machine in perhaps_sent(session.folder.log)[0])
        saved(session, job)
        job = resumed(session)
        assert (job.request_id, job.unanswered) == (route.api.name_of(sent), 1)


def test_two_models_of_one_runware_account_have_tasks_of_their_own(on_runware: RunSettings) -> None:
    """Or what failed for one would be asked about for the other, and booked again."""
    api = {"provider": "runware", "base_url": "http://127.0.0.1:9", "family": "flux"}
    other = {**api, "model": "runware:101@1", "usd_per_image": 0.003}
    described = on_runware.model_dump(exclude_unset=True)
    both = RunSettings.model_validate({**described, "routes": [api, other]})
    with open_session(both) as session:
        job = killed_at_work(session)
        assert len({route.api.name_of(job) for route in session.engine.routes}) == 2


@pytest.mark.parametrize(("paid_usd", "receipt"), [(0.0, ANOTHERS), (PRICE_USD, ANOTHERS), (0.0, None)])
def test_what_a_lost_machine_may_have_sent_is_in_doubt_where_another_run_made_the_picture_since(
    place: Place, catalog: Callable[..., str], paid_usd: float, receipt: Receipt | None
) -> None:
    """Seed 34926: also if the job has paid for a picture that could not be used."""
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        job = killed_at_work(session, status=JobStatus.PENDING, attempts=bool(paid_usd), cost_usd=paid_usd)
        if paid_usd:
            session.recorder.attempt_failed(job, ApiError(ErrorClass.INVALID_IMAGE, "a cut PNG"), 0.0)
        session.recorder.up_next([0])
        session.recorder.event("log_cut")
        name = f"images/{job.key[:2]}/{job.key}.png"
        session.wait(session.bucket.put_image, name, picture(), image_metadata(job, receipt))
        job = resumed(session)
        assert (job.status, job.reused, job.cost_usd) == (JobStatus.DONE, not paid_usd, paid_usd)
        assert job.unanswered == 1


@pytest.mark.parametrize(("made_by", "unanswered"), [(1, 1), (2, 0)], ids=["before it", "by it"])
def test_a_suspect_pictures_second_request_is_counted_where_only_a_lost_machine_knew_of_it(
    place: Place, catalog: Callable[..., str], made_by: int, unanswered: int
) -> None:
    """Unless it made the picture that is there, whose receipt says what it cost."""
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        job = killed_at_work(session)
        session.recorder.sent(job)
        job.pay(PRICE_USD, CostSource.LIST)
        suspect = ApiError(ErrorClass.INVALID_IMAGE, "blurred", code="suspect")
        session.recorder.attempt_failed(job, suspect, 0.0)
        session.recorder.event("log_cut")
        name = f"images/{job.key[:2]}/{job.key}.png"
        receipt = Receipt("r", made_by, 2.5, made_by * PRICE_USD, 0, 0.0, CostSource.LIST)
        session.wait(session.bucket.put_image, name, picture(), image_metadata(job, receipt))
        job = resumed(session)
        assert (job.status, job.cost_usd) == (JobStatus.DONE, pytest.approx(made_by * PRICE_USD))
        assert job.unanswered == unanswered


def test_a_request_without_an_answer_and_what_lost_machines_may_have_sent_since_are_all_counted_once(
    place: Place, catalog: Callable[..., str]
) -> None:
    """Seeds 1514 and 6963: sent, sent again after a restart, and that line was lost with the machine."""
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        job = killed_at_work(session)
        session.recorder.sent(job)
        for _ in range(2):
            lose_a_machine(session)
        assert [resumed(session).unanswered for _ in range(2)] == [3, 3]


@pytest.mark.parametrize("said", ["sent", "timed out"])
def test_a_request_that_another_machine_found_is_asked_about_by_the_one_that_was_thought_lost(
    place: Place, catalog: Callable[..., str], said: str
) -> None:
    """Seed 728783: what the first machine's own log says was sent, the store knows as found in the list."""
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        job = killed_at_work(session, status=JobStatus.PENDING, attempts=0)
        session.recorder.event("up_next", jobs=[0])
        session.recorder.sent(sent := replace(job, attempts=1))
        if said == "timed out":
            sent.lose_answer(PRICE_USD)
            session.recorder.attempt_failed(sent, ApiError(ErrorClass.TIMEOUT, "timed out"), 0.0)
        job.note_lost(["2026-11-28T00:00:00+00:00"])
        job.find_request("found", PRICE_USD, listed=True)
        saved(session, job)
        job = resumed(session)
        assert (job.status, job.request_id, job.attempts) == (JobStatus.PENDING, "found", 1)
        job.start(5.0)
        session.recorder.sent(job)  # it is asked about, and brings nothing that can be used
        job.drop_request()
        session.recorder.attempt_failed(job, ApiError(ErrorClass.INVALID_IMAGE, "cut"), None)
        assert resumed(session).request_id is None


@pytest.mark.parametrize("killed_after", ["attempt_failed", "failed"])
def test_a_job_that_failed_is_not_bought_again_where_only_the_log_knows(
    place: Place, catalog: Callable[..., str], killed_after: str
) -> None:
    """Seeds 5510 and 15771: the process died between the line of the refusal and that of the failure."""
    with open_session(settings(place, catalog(prompt=["a"]))) as session:
        job = killed_at_work(session, request_id="request-1", cost_usd=0.0)
        job.request_id = None
        job.pay(PRICE_USD, CostSource.LIST)
        flagged = ApiError(ErrorClass.CONTENT_FILTERED, "flagged", code="flagged")
        session.recorder.attempt_failed(job, flagged, None)
        if killed_after == "failed":
            job.fail(2.0, error_class=flagged.error_class, code="flagged", message="flagged", retryable=False)
            session.recorder.gave_up(job)
        job = resumed(session)
        assert (job.status, job.error_code, job.retryable) == (JobStatus.FAILED, "flagged", False)
        assert (job.request_id, job.cost_usd) == (None, PRICE_USD)


@pytest.fixture
def on_fal(place: Place, catalog: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> RunSettings:
    """A run of one row at fal, whose requests keep their ids."""
    monkeypatch.setenv("FAL_KEY", "k")
    described = settings(place, catalog(prompt=["a"])).model_dump(exclude_unset=True)
    api = {"provider": "fal", "usd_per_image": PRICE_USD}
    return RunSettings.model_validate({**described, "api": api})


def failed_with_its_request(session: Session) -> Job:
    """A job that failed while its request waited, as only the log has it."""
    job = killed_at_work(session, request_id="request-1")
    session.recorder.accepted(job)
    late = ApiError(ErrorClass.TIMEOUT, "still in the queue", keep_request=True)
    job.lose_answer(PRICE_USD)
    job.fail(2.0, error_class=late.error_class, code=late.code, message=late.message, retryable=True)
    session.recorder.gave_up(job)
    return job


def test_a_request_that_a_failed_job_has_kept_counts_against_the_limit_where_only_the_log_knew_of_it(
    on_fal: RunSettings,
) -> None:
    """Another machine tries the job again: its request counted neither as unanswered nor as expected."""
    with open_session(on_fal) as session:
        failed_with_its_request(session)
        job = resumed(session)
        assert (job.status, job.request_id, job.unanswered) == (JobStatus.FAILED, "request-1", 1)
        for _ in range(2):
            assert session.cost.committed_usd == pytest.approx(PRICE_USD)
            reopen_failed.fn(session, permanent=False, prepared=True)


def test_a_request_that_retry_failed_asks_about_is_in_doubt_no_more_on_another_machine_either(
    on_fal: RunSettings,
) -> None:
    """The line of that said nothing of it: what the one before said stood, also once it was charged."""
    with open_session(on_fal) as session:
        session.portal.call(session.engine.reopen, failed_with_its_request(session))
        job = resumed(session)  # the store does not know that it failed
        assert (job.status, job.request_id, job.unanswered) == (JobStatus.PENDING, "request-1", 0)


def test_a_later_request_of_a_failed_job_is_asked_about_though_the_store_was_put_back(
    on_fal: RunSettings,
) -> None:
    """Seed 1000762: the next retry-failed after a power cut wrote over what the log had of the first."""
    with open_session(on_fal) as session:
        job = killed_at_work(session)
        job.fail(2.0, error_class="rate_limited", code="429", message="too many", retryable=True)
        session.recorder.gave_up(job)

        async def stored() -> None:
            session.store.save(job)
            await session.store.commit()

        session.wait(stored)
        session.portal.call(session.engine.reopen, job)
        job.start(3.0)
        session.recorder.sent(job)
        job.request_id = "request-2"
        session.recorder.accepted(job)
        reopen_failed.fn(session, permanent=False)
        job = resumed(session)
        assert (job.status, job.request_id, job.attempts) == (JobStatus.PENDING, "request-2", 2)


@pytest.fixture
def on_runware(place: Place, catalog: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> RunSettings:
    """A run of one row at Runware, where this client names the requests."""
    monkeypatch.setenv("RUNWARE_API_KEY", "k")
    described = settings(place, catalog(prompt=["a"])).model_dump(exclude_unset=True)
    return RunSettings.model_validate({**described, "api": "runware"})


def at_runware(on_runware: RunSettings, emulated: Emulator) -> RunSettings:
    """The same run at an emulated Runware."""
    described = on_runware.model_dump(exclude_unset=True)
    api = {"provider": "runware", "base_url": emulated.base_url}
    return RunSettings.model_validate({**described, "api": api})


def test_a_request_that_this_client_named_is_asked_about_though_no_record_has_its_name(
    on_runware: RunSettings,
) -> None:
    with open_session(on_runware) as session:
        assert isinstance(session.api, Runware)
        job = killed_at_work(session)
        named = session.api.task_of(job)
        job = resumed(session)
        assert (job.status, job.request_id, job.unanswered) == (JobStatus.PENDING, named, 0)


@pytest.mark.parametrize("answered", ["", "{}", "paid:{}"])
def test_a_request_after_a_refusal_that_only_the_store_knows_is_asked_about_by_its_name(
    on_runware: RunSettings, emulator: Callable[..., Emulator], answered: str
) -> None:
    """It has the name of the one that was refused; but one that was answered is not asked about again."""
    with open_session(at_runware(on_runware, emulator())) as session:
        job = killed_at_work(session, status=JobStatus.PENDING, attempts=1)
        session.recorder.up_next([0])
        route = session.engine.routes.first
        route.api.was_refused(job, 1)
        sent = replace(job, attempts=2, model=route.api.model)
        name = route.api.name_of(sent)

        async def accepted(_: str, charged_usd: float | None = None) -> None: ...

        session.wait(route.api.generate, route.http, sent, accepted)
        if answered:
            job.note_ended([answered.format(name)])
            saved(session, job)
        session.recorder.event("log_cut")
        route.api.was_refused(job, 0)  # another process
        job = resumed(session)
        following = route.api.name_of(replace(sent, request_id=None))
        assert following != name
        assert (job.request_id, job.unanswered) == (following if answered else name, 0)


def test_a_task_under_way_after_a_refusal_that_only_the_store_knows_is_sent_again_under_its_name(
    on_runware: RunSettings, emulator: Callable[..., Emulator]
) -> None:
    """Seed 681073: Runware knew no task by its names yet, and the picture was bought under the next one."""
    with open_session(at_runware(on_runware, emulator())) as session:
        job = killed_at_work(session, status=JobStatus.PENDING, attempts=1)
        session.recorder.up_next([0])
        api = session.engine.routes.first.api
        following = replace(job, attempts=2, model=api.model)
        api.was_refused(job, 1)
        name = api.name_of(following)
        session.recorder.event("log_cut")
        api.was_refused(job, 0)  # another process
        assert resumed(session).request_id == name


def test_a_request_without_a_price_that_is_asked_about_again_is_in_doubt_no_more(
    on_fal: RunSettings,
) -> None:
    free = on_fal.model_dump(exclude_unset=True) | {"api": {"provider": "fal", "usd_per_image": 0}}
    with open_session(RunSettings.model_validate(free)) as session:
        job = killed_at_work(session, request_id="request-1")
        job.lose_answer(0.0)
        job.fail(2.0, error_class="timeout", code="timeout", message="late", retryable=True)
        session.portal.call(session.engine.reopen, job)
        assert (job.status, job.unanswered) == (JobStatus.PENDING, 0)


def test_a_request_that_is_asked_about_again_counts_once_in_its_routes_share(
    on_runware: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOGETHER_API_KEY", "k")
    runware = {"provider": "runware", "usd_per_image": PRICE_USD, "max_cost_usd": 1.0}
    described = on_runware.model_dump(exclude_unset=True)
    both = RunSettings.model_validate({**described, "routes": [runware, {"provider": "together"}]})
    with open_session(both) as session:
        route = session.engine.routes.first
        job = killed_at_work(session, request_id="X", route=route.name)
        job.lose_answer(PRICE_USD)
        job.fail(2.0, error_class="timeout", code="timeout", message="late", retryable=True)
        assert route.share is not None
        route.share.recover(doubtful_usd=PRICE_USD)
        session.portal.call(session.engine.reopen, job)
        session.portal.call(session.engine.expect, [job])
        assert route.share.committed_usd == pytest.approx(PRICE_USD)


@pytest.mark.parametrize(
    "why",
    [
        ApiError(ErrorClass.RATE_LIMITED, "too many"),
        ApiError(ErrorClass.TIMEOUT, "no connection", code="connection"),
    ],
)
def test_a_request_that_was_not_taken_before_has_the_same_name_after_a_kill(
    on_runware: RunSettings, why: ApiError
) -> None:
    with open_session(on_runware) as session:
        assert isinstance(session.api, Runware)
        job = killed_at_work(session)
        first = session.api.task_of(job)
        session.recorder.attempt_failed(job, why, 1.0)
        job.requeue()
        job.start(2.0)
        session.recorder.sent(job)
        assert resumed(session).request_id == first


def test_a_task_in_doubt_that_a_rate_limit_refuses_changes_no_later_name(
    on_runware: RunSettings, emulator: Callable[..., Emulator]
) -> None:
    """A lost machine bought the next one by a name that its successor did not derive."""
    with open_session(at_runware(on_runware, emulator())) as session:
        killed_at_work(session, prompt="Fox #fault:429*1")
        job = resumed(session)
        job.start(2.0)

        async def send(http: httpx.AsyncClient) -> None:
            await session.api.generate(http, job, accepted)

        async def accepted(_: str) -> None: ...

        with pytest.raises(ApiError) as refused:
            session.wait(send, session.engine.routes.first.http)
        assert refused.value.keep_request
        session.recorder.attempt_failed(job, refused.value, 1.0)
        following = replace(job, attempts=job.attempts + 2, request_id=None)
        named = session.api.name_of(following)
        resumed(session)
        assert session.api.name_of(following) == named


def test_a_picture_that_is_made_anew_has_the_same_name_on_a_machine_that_knows_only_the_log(
    on_runware: RunSettings,
) -> None:
    """Its first refusals were counted there, and not here: what a lost machine bought was bought again."""
    with open_session(on_runware) as session:
        job = killed_at_work(session)
        refused = ApiError(ErrorClass.RATE_LIMITED, "too many")
        session.recorder.sent(job)
        session.recorder.attempt_failed(job, refused, 1.0)
        job.requeue()
        job.start(2.0)
        name = f"images/{job.key[:2]}/{job.key}.png"
        session.wait(session.bucket.put_image, name, picture(), image_metadata(job, None))
        assert resumed(session).status is JobStatus.DONE
    with open_session(on_runware) as session, disable_run_logger():
        apply_choices.fn(session, ReviewChoices(run_id="r", redo=[job.key]))
        following = replace(job, attempts=job.attempts + 1, request_id=None)
        named = session.api.name_of(following)
        resumed(session)
        assert session.api.name_of(following) == named


def lost_with_its_machine(session: Session, *routes: Route) -> Job:
    """A job whose first request went to these routes just before its machine was lost: no record has it."""
    job = killed_at_work(session, status=JobStatus.PENDING, attempts=0)
    session.recorder.up_next([0])
    for route in routes:
        session.wait(sent_by_a_lost_machine, route, job)
    session.recorder.event("log_cut")
    return job


async def sent_by_a_lost_machine(route: Route, job: Job) -> None:
    async def accepted(_: str) -> None: ...

    await route.api.generate(route.http, replace(job, attempts=1, model=route.api.model), accepted)


@pytest.mark.parametrize(("sent", "away"), [(True, False), (False, False), (True, True)])
def test_what_a_lost_machine_may_have_sent_is_asked_about_by_its_name(
    on_runware: RunSettings, emulator: Callable[..., Emulator], *, sent: bool, away: bool
) -> None:
    """Seed 74575: it was charged, nobody counted it, and the next images exceeded the budget."""
    emulated = emulator()
    with open_session(at_runware(on_runware, emulated)) as session:
        job = lost_with_its_machine(session, *[session.engine.routes.first] * sent)
        if away:
            emulated.stop()
        named = None if away else session.api.name_of(replace(job, attempts=1))
        for _ in range(2):
            job = resumed(session)
            assert (job.status, job.request_id, job.unanswered) == (JobStatus.PENDING, named, away)


def test_after_a_lost_machines_request_that_failed_the_next_has_another_name(
    on_runware: RunSettings, emulator: Callable[..., Emulator]
) -> None:
    """It had the same: the API refused it as a conflict, and the job failed once more for the old error."""
    with open_session(at_runware(on_runware, emulator())) as session:
        failing = {"attempts": 0, "prompt": "Fox #fault:fail*1"}
        job = killed_at_work(session, status=JobStatus.PENDING, **failing)
        session.recorder.up_next([0])
        http = session.engine.routes.first.http

        async def send(http: httpx.AsyncClient, job: Job) -> str | None:
            async def accepted(name: str) -> None:
                job.request_id = name

            return (await session.api.generate(http, job, accepted)).request_id

        with pytest.raises(ApiError):
            session.wait(send, http, replace(job, attempts=1))
        session.recorder.event("log_cut")
        job = resumed(session)
        job.start(2.0)
        before = job.request_id
        assert session.wait(send, http, job) not in {None, before}


def test_what_was_counted_while_the_api_was_away_is_found_once_it_is_back(
    on_runware: RunSettings, emulator: Callable[..., Emulator]
) -> None:
    """It was counted as unanswered for good, and as charged as well."""
    emulated = emulator()
    with open_session(at_runware(on_runware, emulated)) as session:
        job = lost_with_its_machine(session, session.engine.routes.first)
        price_usd = session.engine.routes.first.price(job)
        named = session.api.name_of(replace(job, attempts=1))
        for address, found in (("http://127.0.0.1:9", (None, 1)), (emulated.base_url, (named, 0))):
            session.api.base_url = address
            job = resumed(session)
            assert (job.request_id, job.unanswered) == found
            assert session.cost.committed_usd == pytest.approx(price_usd)


@pytest.mark.parametrize("sent", ["to none", "to the second", "to both"])
def test_every_account_is_asked_about_what_a_lost_machine_may_have_sent(
    on_runware: RunSettings, emulator: Callable[..., Emulator], sent: str
) -> None:
    """What no account knows may be under way at one of them, and the next request may go to another."""
    described = on_runware.model_dump(exclude_unset=True)
    accounts = [{"provider": "runware", "base_url": emulator().base_url} for _ in range(2)]
    both = RunSettings.model_validate({**described, "api": accounts[0], "routes": accounts})
    with open_session(both) as session:
        first, second = session.engine.routes
        routes = {"to none": (), "to the second": (second,), "to both": (first, second)}[sent]
        job = lost_with_its_machine(session, *routes)
        named = second.api.name_of(replace(job, attempts=1))
        job = resumed(session)
        found = {
            "to none": (None, "", 1),
            "to the second": (named, second.name, 0),
            "to both": (named, first.name, 1),  # by two machines, one after the other
        }
        assert (job.request_id, job.route, job.unanswered) == found[sent]


def test_what_another_lost_machine_may_have_sent_elsewhere_stays_in_doubt(
    on_runware: RunSettings, emulator: Callable[..., Emulator]
) -> None:
    """Seed 5033595: the second machine's task was found by its name, and took away the first one's doubt."""
    described = on_runware.model_dump(exclude_unset=True)
    accounts = [{"provider": name, "base_url": emulator().base_url} for name in ("together", "runware")]
    both = RunSettings.model_validate({**described, "api": accounts[0], "routes": accounts})
    with open_session(both) as session:
        together, runware = session.engine.routes
        job = lost_with_its_machine(session, together)
        session.recorder.event("up_next", jobs=[0])  # by another machine
        session.wait(sent_by_a_lost_machine, runware, job)
        session.recorder.event("log_cut")
        named = runware.api.name_of(replace(job, attempts=1))
        for _ in range(2):
            job = resumed(session)
            assert (job.request_id, job.route, job.unanswered) == (named, runware.name, 1)


def test_a_request_that_was_answered_is_not_taken_for_a_lost_one_after_a_restart(
    place: Place,
    catalog: Callable[..., str],
    emulator: Callable[..., Emulator],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seed 95335: it was booked twice. The job has no request in doubt as it is resumed, but later."""
    emulated = emulator()
    described = settings(place, catalog(prompt=["a"])).model_dump(exclude_unset=True)
    monkeypatch.setenv("REPLICATE_API_TOKEN", "k")
    described["api"] = {"provider": "replicate", "base_url": emulated.base_url}
    with open_session(RunSettings.model_validate(described)) as session:
        job = killed_at_work(session)
        session.recorder.sent(job)

        async def accepted(request_id: str, _: float | None = None) -> None:
            job.request_id = request_id
            session.recorder.accepted(job)

        async def send(http: httpx.AsyncClient) -> None:
            await session.api.generate(http, job, accepted)

        session.wait(send, session.engine.routes.first.http)
        job.request_id = None
        job.pay(PRICE_USD, CostSource.LIST)
        broken = ApiError(ErrorClass.INVALID_IMAGE, "a PNG that is cut short", code="cut_image")
        session.recorder.attempt_failed(job, broken, 0.0)
        job = resumed(session)
        job.lose_answer(PRICE_USD)
        session.wait(session.engine.earlier.find_lost, [job])
        assert (job.request_id, job.unanswered, job.cost_usd) == (None, 1, PRICE_USD)


def test_a_request_that_the_list_has_now_is_not_gone_though_its_line_is_old(
    place: Place,
    catalog: Callable[..., str],
    emulator: Callable[..., Emulator],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The line's time replaced that of the list, so that the first 404 was believed."""
    described = settings(place, catalog(prompt=["a"])).model_dump(exclude_unset=True)
    monkeypatch.setenv("REPLICATE_API_TOKEN", "k")
    described["api"] = {"provider": "replicate", "base_url": emulator().base_url}
    with open_session(RunSettings.model_validate(described)) as session:
        job = killed_at_work(session, started_at=1.0)
        line = {"at": "2026-01-01T00:00:00.000+00:00", "event": "sent", "job": 0, "attempt": 1}
        with session.folder.log.open("ab") as log:
            log.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        api, headers = session.api, {**session.api.headers, "prefer": ""}
        httpx.post(api.endpoint(job), json=api.body(job), headers=headers, trust_env=False)
        job = resumed(session)

        def unheard_of_once(request: httpx.Request, before: int) -> httpx.Response | None:
            return unheard_of(request, before + 1)

        async def ask() -> str | None:
            async with httpx.AsyncClient(transport=LosingTransport(unheard_of_once)) as http:
                return (await api.generate(http, job, accepted)).request_id

        async def accepted(_: str, __: float | None = None) -> None: ...

        assert job.request_id is not None
        assert session.wait(ask) == job.request_id


def test_an_attempt_that_was_booked_before_a_power_cut_is_not_booked_again(on_runware: RunSettings) -> None:
    """Seed 3261: the power cut took the log; the store knows that the attempt is over, and what it cost."""
    with open_session(on_runware) as session:
        paid = {"cost_usd": PRICE_USD, "cost_source": CostSource.TOLD}
        killed_at_work(session, status=JobStatus.PENDING, **paid)
        job = resumed(session)
        assert (job.status, job.request_id) == (JobStatus.PENDING, None)
        assert (job.cost_usd, job.unanswered) == (PRICE_USD, 0)


def test_refusals_of_another_route_change_no_name(
    place: Place, catalog: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNWARE_API_KEY", "k")
    described = settings(place, catalog(prompt=["a"])).model_dump(exclude_unset=True)
    routes = ["together", "runware"]
    both = RunSettings.model_validate(
        {**described, "api": "together", "routes": [{"provider": r} for r in routes]}
    )
    with open_session(both) as session:
        together, runware = session.engine.routes
        job = killed_at_work(session)
        for route in (together, runware):
            job.route = route.name
            session.recorder.sent(job)
            session.recorder.attempt_failed(job, ApiError(ErrorClass.RATE_LIMITED, "too many"), 1.0)
            runware.api.was_refused(job, route is runware)
            job.requeue()
            job.start(2.0)
        session.recorder.sent(job)
        named = runware.api.name_of(job)
        runware.api.was_refused(job, 0)
        assert resumed(session).request_id == named
