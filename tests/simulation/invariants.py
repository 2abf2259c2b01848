"""What must be true of a simulation, at every moment and at its end."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from imagemill.engine.engine import StopKind
from imagemill.engine.lost_requests import LEAST_S
from imagemill.jobs import JobStatus
from tests.simulation.scenario import CLIENT_NAMED, LISTS, LISTS_ENDED, RENEWING, UNLISTED

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

_EXACT = 1e-8


class Violation(Exception):  # noqa: N818 - what is looked for, not an error of the simulator's
    """Something that must be true is not."""


def check_written(simulation: Simulation, name: str, content: bytes) -> None:
    """An object is being written: it must be readable, and a manifest must name only what is there."""
    if name.endswith(".parquet"):
        try:
            table = pq.ParquetFile(pa.BufferReader(content), pre_buffer=False).read(use_threads=False)
        except pa.ArrowInvalid as error:
            raise Violation(f"{name} cannot be read: {error}") from None
        if name.endswith("manifest.parquet"):
            for row in table.to_pylist():
                held = row["uri"] and row["uri"].removeprefix("s3://bucket/") in simulation.bucket.objects
                if row["status"] == "done" and not held:
                    raise Violation(f"the manifest says done of {row['id']}, whose image is not there")
    elif name.endswith((".json", ".lease")):
        try:
            orjson.loads(content)
        except orjson.JSONDecodeError:
            raise Violation(f"{name} cannot be read") from None


def check_end(simulation: Simulation) -> None:
    """The whole is over, and nothing is in flight any more."""
    endings = [ending for ending in simulation.endings if ending.summary is not None]
    if not endings:
        raise Violation("no process got to its end")
    last = {ending.summary.run_id: ending for ending in endings if ending.summary}
    for ending in last.values():
        _check_states(simulation, ending)
    _check_images(simulation, last)
    _check_bought_once_stored(simulation)
    _check_money(simulation, last)
    _check_secrets(simulation)


def _check_states(simulation: Simulation, ending: object) -> None:
    from tests.simulation.simulation import Ending  # noqa: PLC0415

    assert isinstance(ending, Ending)
    assert ending.summary is not None
    summary, jobs = ending.summary, ending.jobs
    unique = len(simulation.prompts_of(summary.run_id))
    if len(jobs) != unique or summary.done + summary.failed + summary.pending != unique:
        raise Violation(f"{unique} jobs were planned: {summary}")
    pending = [job for job in jobs if job.status is JobStatus.PENDING]
    if any(job.status is JobStatus.RUNNING for job in jobs):
        raise Violation("a job is running, and no process is")
    if pending and ending.stopped is None:
        raise Violation(f"{len(pending)} jobs are pending, and no reason is given")
    budgets = [simulation.scenario.max_cost_usd]
    for account in simulation.scenario.accounts:
        budgets += [account.share_usd, account.vendor.credit_images]
    if ending.stopped is StopKind.OUT_OF_BUDGET and all(budget is None for budget in budgets):
        raise Violation("out of a budget that there is none of")


def _check_images(simulation: Simulation, last: dict[str, object]) -> None:
    objects, scenario = simulation.bucket.objects, simulation.scenario
    pruned = set()
    if scenario.refresh is not None and scenario.refresh.prune:
        pruned = set(scenario.prompts) - set(scenario.refresh.prompts.values())
    for ending in last.values():
        for job in ending.jobs:  # type: ignore[attr-defined]
            if job.status is not JobStatus.DONE or job.prompt in pruned:
                continue
            stored = objects.get(f"out/{job.image}")
            if stored is None:
                raise Violation(f"{job.id} is done, and {job.image} is not in the bucket")
            made_for = simulation.vendors.prompt_of(stored.content)
            if made_for != job.prompt:
                raise Violation(f"{job.id} has the picture of {made_for!r}, not of {job.prompt!r}")


def _check_bought_once_stored(simulation: Simulation) -> None:
    """No process buys a picture that was in the bucket when it started."""
    objects, first_written = simulation.bucket.objects, simulation.bucket.first_written
    stored_at: dict[str | None, float] = {}
    for name, stored in objects.items():
        if name.startswith("out/images/"):
            stored_at[simulation.vendors.prompt_of(stored.content)] = first_written[name]
    for charge in simulation.vendors.charges:
        if stored_at.get(charge.prompt, charge.begun) < charge.begun:
            raise Violation(f"{charge.prompt!r} was bought though its picture was in the bucket before")


def _check_money(simulation: Simulation, last: dict[str, object]) -> None:
    vendors, scenario = simulation.vendors, simulation.scenario
    summaries = [ending.summary for ending in last.values()]  # type: ignore[attr-defined]
    bill_usd = vendors.units / 1e10
    cost_usd = sum(summary.cost_usd for summary in summaries)
    unanswered_usd = sum(summary.unanswered_usd for summary in summaries)
    again = _may_be_bought_again(simulation, last)
    asks = scenario.apis <= CLIENT_NAMED and not simulation.loses_pictures
    remembers = asks or not simulation.forgets
    if simulation.forgets:  # its machine's name for a request is found by each run, by no other run
        again.update(dict.fromkeys(simulation.prompts_of("run"), len(last) - 1))
    for prompt, count in vendors.charged().items():
        if count > 1 + again[prompt] and remembers:
            raise Violation(
                f"{prompt!r} was paid {count} times, at most {1 + again[prompt]} can be explained"
            )
    _check_booked(simulation, last)
    # A list of requests names no run, and a clock may be wrong by 20 minutes: a run whose request was lost
    # takes another run's of that time for it, which asked for the same picture, and books it too. Nothing
    # more is bought.
    may_share = len(last) > 1 and scenario.apis & LISTS
    said_usd = max(summary.cost_usd for summary in summaries) if may_share else cost_usd
    if said_usd > bill_usd + _EXACT:
        raise Violation(f"the summary says {said_usd:.10f} USD, the bill {bill_usd:.6f}")
    if bill_usd > cost_usd + unanswered_usd + _EXACT and not simulation.forgets:
        known = f"the summary {cost_usd:.10f} and {unanswered_usd:.10f} unanswered"
        raise Violation(f"the bill says {bill_usd:.10f} USD, {known}")


def _check_booked(simulation: Simulation, last: dict[str, object]) -> None:
    """No run says that a picture cost more than the bill has for it."""
    billed: Counter[str] = Counter()
    for charge in simulation.vendors.charges:
        billed[charge.prompt] += charge.units
    for run_id, ending in last.items():
        for job in ending.jobs:  # type: ignore[attr-defined]
            if job.cost_usd > billed[job.prompt] / 1e10 + _EXACT:
                words = f"{job.cost_usd:.10f} USD, the bill {billed[job.prompt] / 1e10:.6f}"
                raise Violation(f"{run_id} says that {job.prompt!r} cost {words}")


def _may_be_bought_again(simulation: Simulation, last: dict[str, object]) -> Counter[str]:
    """How often a prompt may have been bought beyond the first time."""
    scenario, objects = simulation.scenario, simulation.bucket.objects
    # A link expires before it is followed only where a process dies or stops, the network is slow, or the
    # request took longer than it was waited for.
    met = simulation.world.met
    slowed = any(
        what.startswith(("death", "network", "interrupt", "API: hang", "API: timeout")) for what in met
    )
    again: Counter[str] = Counter()
    unlisted: Counter[str] = Counter()
    for vendor in simulation.vendors:
        account = vendor.account
        late = vendor.slow(account.settings["request_timeout_s"])
        if account.api not in RENEWING:
            again += vendor.missed if slowed else vendor.missed & late
        if account.api in LISTS_ENDED:
            # A lost request that takes longer than it is looked for is in no list of those that have ended.
            unlisted += vendor.slow(min(LEAST_S, account.settings["request_timeout_s"]))
    if len(last) > 1:
        again.update(prompt for _, prompt in simulation.kept)
        # What was in flight when a run could not renew its lease, the one that took the output over buys too.
        again.update(
            {charge.prompt for charge in simulation.vendors.charges if charge.begun in simulation.overtaken}
        )
    failed = _failed_though_paid(simulation)
    for run_id, ending in last.items():
        for job in ending.jobs:  # type: ignore[attr-defined]
            is_done = job.status is JobStatus.DONE
            stored = objects.get(f"out/{job.image}")
            # What one run leaves behind, another may buy.
            left = len(last) > 1 and (not is_done or (stored and stored.metadata.get("run-id") != run_id))
            # What a lost machine had sent may have gone to any route, and the name is known at its own only.
            forgot = simulation.machines_lost or simulation.power_cuts
            elsewhere = forgot and scenario.others and scenario.apis & CLIENT_NAMED
            if left or elsewhere or scenario.apis & UNLISTED:
                again[job.prompt] += job.unanswered
            else:
                again[job.prompt] += min(job.unanswered, unlisted[job.prompt])
            if left and job.request_id is not None and not is_done and not job.unanswered:
                again[job.prompt] += 1  # only this run will ask about it
            interrupted = run_id == "run" and met["interrupt"]
            retried = len(last) > 1 and is_done and (run_id, job.prompt) in failed
            if retried or (left and job.cost_usd and (not is_done or scenario.away_s or interrupted)):
                again[job.prompt] += 1
    return again


def _failed_though_paid(simulation: Simulation) -> set[tuple[str, str]]:
    """Runs and prompts of jobs that failed at first: what one run has paid for, another buys meanwhile."""
    return {
        (ending.summary.run_id, job.prompt)
        for ending in simulation.endings
        if ending.summary is not None
        for job in ending.jobs
        if job.status is JobStatus.FAILED and job.cost_usd
    }


def _check_secrets(simulation: Simulation) -> None:
    from tests.simulation.process import KEY, S3_SECRET, STORE_PASSWORD  # noqa: PLC0415

    secrets = (KEY.encode(), S3_SECRET.encode(), STORE_PASSWORD.encode())
    for name, stored in simulation.bucket.objects.items():
        held = stored.content + repr(stored.metadata).encode()
        if any(secret in held for secret in secrets):
            raise Violation(f"a secret is in the bucket, in {name}")
    for path in simulation.home.rglob("*"):
        if path.is_file() and any(secret in path.read_bytes() for secret in secrets):
            raise Violation(f"a secret is on the disk, in {path.name}")
